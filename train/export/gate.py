"""The gate: each graph is scored by the model's own `test_step`, compared with float32, and passed or refused in words.

A drop is what the metric loses against float32 on the validation rows, in the metric's own units, whatever its sign.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from train.export.session import standing_in

Floats = NDArray[np.float64]
Mode = Literal["max", "min"]
RESAMPLES = 200


class Named(Protocol):
    """A version of the graphs, with what was done or why there is none."""

    @property
    def name(self) -> str:
        """Its method."""

    @property
    def note(self) -> str:
        """What was done."""


@dataclass(frozen=True)
class Score:
    """What a test tells of a graph.

    Attributes:
        metrics: by Lightning's names, `test/...`.
        rows: the module's `scored`, a dataclass of arrays over the rows of the loader in its order; None without.
    """

    metrics: dict[str, float]
    rows: Any


def score(model: Any, loader: Any, sessions: Mapping[str, Any] | None = None) -> Score:
    """Run the model's own test over the loader, sessions answering for its network; without any, the network."""
    from train.evaluate import test

    if sessions is None:
        return Score(test(model, loader, "cpu"), getattr(model, "scored", None))
    with standing_in(model, sessions):
        return Score(test(model, loader, "cpu"), getattr(model, "scored", None))


def draws(rows: Any, statistic: Callable[[Any], float], *, resamples: int = RESAMPLES, seed: int = 0) -> Floats:
    """Return a metric of resampled rows, [resamples] (Efron, 1979).

    Equal seeds draw equal rows: the differences of two graphs' draws are those of a paired bootstrap.
    """
    generator = np.random.default_rng(seed)
    size = len(getattr(rows, dataclasses.fields(rows)[0].name))
    return np.array([statistic(taken(rows, generator.integers(size, size=size))) for _ in range(resamples)])


def taken(rows: Any, index: NDArray[np.int64]) -> Any:
    """Return the rows of a dataclass of arrays at an index."""
    columns = {field.name: getattr(rows, field.name)[index] for field in dataclasses.fields(rows)}
    return dataclasses.replace(rows, **columns)


@dataclass(frozen=True)
class Rule:
    """What a graph must keep.

    Attributes:
        metric: its name, for the messages.
        mode: whether more of it is better, `max`, or less, `min`.
        max_drop: largest drop that passes.
        prefer: which of those that pass ships.
        slack: share by which a graph may seem slower than float32, since timing is not exact.
    """

    metric: str
    mode: Mode
    max_drop: float = 0.005
    prefer: Literal["smallest", "fastest"] = "smallest"
    slack: float = 0.03

    @property
    def test_name(self) -> str:
        """The metric's name in `Score.metrics`."""
        return f"test/{self.metric}"


@dataclass(frozen=True)
class Measured:
    """What is known of one graph.

    Attributes:
        name: its method.
        size: bytes of its file.
        metric: on the validation rows.
        draws: the metric of resampled rows, equally seeded for each graph; None where the model keeps no rows.
        times: its time as a multiple of float32's, by setting, such as "batch 1 on 1 thread".
    """

    name: str
    size: int
    metric: float
    draws: Floats | None
    times: Mapping[str, float]


@dataclass(frozen=True)
class Verdict:
    """The gate's word on one candidate; `drop` and its 95 % `interval` are None where nothing was measured."""

    name: str
    passed: bool
    reason: str
    drop: float | None = None
    interval: tuple[float, float] | None = None


@dataclass(frozen=True)
class Decision:
    """Which graph ships, and why; the verdicts are in the candidates' order."""

    winner: str
    reason: str
    verdicts: tuple[Verdict, ...]


def decide(reference: Measured, candidates: Sequence[Named], measured: Mapping[str, Measured], rule: Rule) -> Decision:
    """Judge each candidate, and choose among those that pass and the reference, float32, which ships if none passes.

    A candidate that was not measured is refused with its note.
    """
    verdicts = tuple(
        judge(reference, measured[one.name], rule) if one.name in measured else Verdict(one.name, False, one.note)
        for one in candidates
    )
    passed = [measured[verdict.name] for verdict in verdicts if verdict.passed]
    winner = preferred([reference, *passed], rule)
    return Decision(winner.name, _why(winner, reference, verdicts, rule), verdicts)


def judge(reference: Measured, one: Measured, rule: Rule) -> Verdict:
    """Compare one graph with the reference: first what it predicts, then how fast."""
    drop = drop_of(reference.metric, one.metric, rule.mode)
    interval = drop_interval(reference.draws, one.draws, rule.mode)
    words = f"{rule.metric} {_moves(drop, rule.mode)}{_between(interval)}"
    if not np.isfinite(drop):
        reason = f"{rule.metric} is {one.metric} and {reference.metric} in {reference.name}: it cannot be judged"
        return Verdict(one.name, False, reason, drop, interval)
    if drop > rule.max_drop:
        return Verdict(one.name, False, f"{words}: more than gate.max_drop={rule.max_drop:g}", drop, interval)
    slower = [f"{ratio:.2f} times {reference.name}'s at {setting}" for setting, ratio in _slower(one, rule).items()]
    if slower:
        return Verdict(one.name, False, f"slower: its time is {' and '.join(slower)}", drop, interval)
    return Verdict(one.name, True, words, drop, interval)


def drop_of(reference: float, metric: float, mode: Mode) -> float:
    """Return by how much a metric is worse than the reference's; below 0 if it is better."""
    return reference - metric if mode == "max" else metric - reference


def drop_interval(reference: Floats | None, found: Floats | None, mode: Mode) -> tuple[float, float] | None:
    """Return the 95 % percentile interval of the drop; None where there are no draws."""
    if reference is None or found is None:
        return None
    drops = reference - found if mode == "max" else found - reference
    drops = drops[np.isfinite(drops)]
    return (float(np.percentile(drops, 2.5)), float(np.percentile(drops, 97.5))) if len(drops) else None


def preferred(passed: Sequence[Measured], rule: Rule) -> Measured:
    """Return the smallest; or the smallest of the fastest, which no timing tells apart: those within the slack."""
    if rule.prefer == "fastest":
        fastest = min(map(pace, passed))
        passed = [one for one in passed if pace(one) <= fastest * (1 + rule.slack)]
    return min(passed, key=lambda one: (one.size, pace(one)))


def pace(one: Measured) -> float:
    """Geometric mean of a graph's times as multiples of float32's; 1 for float32 itself."""
    return float(np.exp(np.mean(np.log(list(one.times.values()))))) if one.times else 1.0


def _slower(one: Measured, rule: Rule) -> dict[str, float]:
    return {setting: ratio for setting, ratio in one.times.items() if not ratio <= 1 + rule.slack}


def _moves(drop: float, mode: Mode) -> str:
    verb = ("falls" if drop > 0 else "rises") if mode == "max" else ("rises" if drop > 0 else "falls")
    return f"{verb} by {abs(drop):.4f}" if abs(drop) >= 5e-5 else "stays"


def _between(interval: tuple[float, float] | None) -> str:
    if interval is None:
        return ""
    low, high = (round(bound, 4) + 0.0 for bound in interval)  # no -0.0000
    return f" (95 % interval of the drop {low:.4f} to {high:.4f})"


def _why(winner: Measured, reference: Measured, verdicts: Sequence[Verdict], rule: Rule) -> str:
    passed = [verdict for verdict in verdicts if verdict.passed]
    if not verdicts:
        return f"nothing else was asked for: {reference.name} ships"
    if not passed:
        refused = "; ".join(f"{verdict.name}: {verdict.reason}" for verdict in verdicts)
        return f"no candidate passed the gate: {reference.name} ships" + (f" ({refused})" if refused else "")
    if winner is reference:
        return f"{reference.name} is the {rule.prefer}, also beside the {len(passed)} that passed the gate"
    (verdict,) = (one for one in passed if one.name == winner.name)
    share = f"{winner.size:,} bytes against {reference.size:,}, {pace(winner):.2f} times the time"
    return f"{winner.name} is the {rule.prefer} of {len(passed)} that passed the gate: {share}; {verdict.reason}"
