"""One graph that writes by itself, beside the graphs that need a search: made, and held against torch on real rows."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from train import errors
from train.export import graph
from train.export.session import described, open_session, run
from train.export.source import Arrays, Source

if TYPE_CHECKING:
    from train.export.contest import Variant

NAME = "greedy_model"
NUM_ROWS, BATCH_SIZE = 1_000, 64
MOST_DIFFERING = 0.01  # share of rows: rounding makes and breaks ties, and one other token changes all that follow


@dataclass(frozen=True)
class Greedy:
    """The graph of a variant.

    Attributes:
        path: its file, float32 whatever else ships.
        sizes: its inputs and outputs, as a manifest has them.
        num_rows: real rows that it was compared on.
        num_differing: those in which it writes otherwise than torch.
    """

    path: Path
    sizes: dict[str, dict[str, list[str]]]
    num_rows: int
    num_differing: int

    def __str__(self) -> str:
        """What it is, for a reader of the card."""
        taken, made = ((f"{name} {kind} {sizes}") for name, kind, sizes in self._tensors())
        return (
            f"{NAME}.onnx needs no search around it: {taken} in, {made} out, written greedily (one beam), in float32. "
            f"On {self.num_rows - self.num_differing:,} of {self.num_rows:,} real rows it writes what torch does"
        )

    def _tensors(self) -> Iterator[tuple[str, str, str]]:
        for tensors in self.sizes.values():
            for name, (kind, *sizes) in tensors.items():
                yield name, kind.removeprefix("tensor(").removesuffix(")"), f"[{', '.join(sizes)}]"


def check(model: Any) -> None:
    """Raise ConfigError unless the model can offer such a graph."""
    if not hasattr(model, "greedy_graph"):
        raise errors.ConfigError(
            f"greedy=true is for models that write token by token, and {type(model).__name__} is none: leave it out"
        )


def beside(source: Source, variant: Variant, files: dict[str, Path], path: Path) -> Variant:
    """Make the graph of a variant out of the whole files of its graphs; return the variant with it.

    Raises:
        ConfigError: the model searches by a rule that the graph does not keep.
        GateError: it is not sound, or differs from torch on more than 1 % of real rows.
    """
    try:
        made = variant.model.greedy_graph(files)
    except ValueError as error:
        raise errors.ConfigError(f"greedy=true: {error}") from error
    graph.save(graph.plain(made), path)
    session = open_session(path)
    differs = [_differs(source, variant, session, batch) for batch in _batches(source.raw(NUM_ROWS))]
    found = np.concatenate(differs)
    if not found.mean() <= MOST_DIFFERING:
        raise errors.GateError(
            f"the graph {NAME!r} writes otherwise than torch on {found.mean():.1%} of {len(found):,} real rows, more "
            f"than {MOST_DIFFERING:.0%}: nothing is exported"
        )
    return replace(variant, greedy=Greedy(path, described(session), len(found), int(found.sum())))


def _batches(raw: Arrays) -> Iterator[Arrays]:
    for start in range(0, len(next(iter(raw.values()))), BATCH_SIZE):
        yield {name: values[start : start + BATCH_SIZE] for name, values in raw.items()}


def _differs(source: Source, variant: Variant, session: Any, raw: Arrays) -> NDArray[np.bool_]:
    """In which rows the graph's tokens are not torch's, [rows]."""
    given = variant.inputs(source.datamodule, raw)[variant.graphs[0].name]
    (found,) = run(session, given)
    with torch.inference_mode():
        expected = variant.model.greedy(**source.datamodule.encode_raw(raw)).numpy()
    # Beyond the narrower one's width all of its rows have ended: a row that goes on there differs before.
    width = min(found.shape[1], expected.shape[1])
    differs: NDArray[np.bool_] = (found[:, :width] != expected[:, :width]).any(axis=1)
    return differs
