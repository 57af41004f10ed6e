"""Which layers a quantized graph loses by: each alone is tried, and the worst stay float until the gate passes."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from train.export.quantize import Calibration, Candidate, candidate, quantizable

Drop = Callable[[Path], float]


@dataclass(frozen=True)
class Mended:
    """A candidate after the search.

    Attributes:
        candidate: with the layers `left` that it needs in float; without a file where even that does not help.
        drops: the gate's drop with each layer alone quantized, the worst first.
    """

    candidate: Candidate
    drops: dict[str, float]


def sensitivity(
    float32: Path, folder: Path, method: str, *, calibration: Calibration, drop: Drop, max_drop: float
) -> Mended:
    """Leave as few of the worst layers in float as the gate needs; the candidate takes its old file's place.

    Args:
        float32: the graph as exported.
        folder: where the candidate is.
        method: the candidate's.
        calibration: as it was made with.
        drop: the gate's drop of a file, such as `gate.drop_of` of its score.
        max_drop: largest drop that passes.
    """
    names = quantizable(float32, method)
    with tempfile.TemporaryDirectory() as aside:

        def tried(left: list[str]) -> float:
            found = candidate(float32, Path(aside), method, calibration=calibration, left=left)
            return float("inf") if found.path is None else drop(found.path)

        drops = {name: tried([other for other in names if other != name]) for name in names}
        worst = sorted(names, key=lambda name: (-drops[name], name))
        count = fewest(lambda count: tried(worst[:count]) <= max_drop, most=len(names) - 1)
    drops = {name: drops[name] for name in worst}
    if count is None:
        (folder / f"{method}.onnx").unlink(missing_ok=True)
        return Mended(Candidate(method, None, "fails the gate with any layer quantized"), drops)
    left = worst[:count]
    return Mended(candidate(float32, folder, method, calibration=calibration, left=left), drops)


def fewest(passes: Callable[[int], bool], *, most: int) -> int | None:
    """Return a count from 1 to `most` that passes while one less does not, by halving; None if `most` fails."""
    if most < 1 or not passes(most):
        return None
    low, high = 0, most  # 0 is the candidate that has failed
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if passes(middle) else (middle, high)
    return high
