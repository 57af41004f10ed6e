"""How the plots of a sweep look: colours, bare axes, and values laid out from 0 to 1 as their space is."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from train.sweep.space import decoded, encoded

BLUE, RED, GREY, ORANGE, LIGHT = "#2f6fb0", "#c8373c", "#8a8f98", "#d98b2b", "#d5d8dd"
STATES: Mapping[str, str] = {"complete": BLUE, "pruned": ORANGE, "failed": RED, "running": LIGHT, "lost": GREY}
SHADES = "viridis"
MOST_LETTERS = 14


def grid(panels: int, *, columns: int = 1, width: float = 6.4, height: float = 3.9) -> tuple[Figure, list[Axes]]:
    """Make a figure of as many panels; width and height are one panel's, in inches."""
    columns = min(columns, panels)
    rows = math.ceil(panels / columns)
    figure = Figure(figsize=(columns * width, rows * height), dpi=110, layout="constrained")
    made = [figure.add_subplot(rows, columns, place + 1) for place in range(panels)]
    for axes in made:
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.25)
    return figure, made


class Scale:
    """Where the values of one key lie on a line from 0 to 1.

    Args:
        distribution: of the key.
    """

    def __init__(self, distribution: BaseDistribution) -> None:
        self.distribution = distribution
        self.is_log = bool(getattr(distribution, "log", False))

    def place(self, value: Any) -> float:
        """Return where a value lies."""
        one = self.distribution
        if isinstance(one, CategoricalDistribution):
            count = len(one.choices)
            return one.choices.index(encoded(value)) / (count - 1) if count > 1 else 0.5
        assert isinstance(one, FloatDistribution | IntDistribution)
        if one.high == one.low:
            return 0.5
        if self.is_log:
            return math.log(value / one.low) / math.log(one.high / one.low)
        return float((value - one.low) / (one.high - one.low))

    def ticks(self) -> tuple[list[float], list[str]]:
        """Return places to name, and their names: each choice, or the ends and the middle of a range."""
        one = self.distribution
        if isinstance(one, CategoricalDistribution):
            values: Sequence[Any] = [decoded(choice) for choice in one.choices]
        else:
            assert isinstance(one, FloatDistribution | IntDistribution)
            middle = math.sqrt(one.low * one.high) if self.is_log else (one.low + one.high) / 2
            has_middle = isinstance(one, FloatDistribution) or middle == int(middle)
            values = list(dict.fromkeys([one.low, middle, one.high] if has_middle else [one.low, one.high]))
        return [self.place(value) for value in values], [short(value) for value in values]


def short(value: Any) -> str:
    """A value in few letters."""
    text = f"{value:.3g}" if isinstance(value, float) else str(value)
    return text if len(text) <= MOST_LETTERS else f"{text[: MOST_LETTERS - 1]}…"


def short_key(key: str) -> str:
    """The last step of a dotted key, as it stands beside the others."""
    return key.rpartition(".")[2].replace("_", " ")
