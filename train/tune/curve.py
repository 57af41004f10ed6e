"""Loss by learning rate, and what is read off it."""

import math
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

AVERAGED_DECADES = 0.15  # of rates that the smoothed loss remembers
SLOPE_DECADES = 0.5  # of rates through which a line is laid for the slope
DIVERGED_FACTOR = 4.0
LEAST_FALL = 0.01  # of the loss; what falls less has not learned


@dataclass
class Curve:
    """The losses of a range test, in the order of its steps.

    Mini-batches differ, and where few rows matter they differ by more than is learned in many steps. So each loss is
    set against that of the untrained weights on the same mini-batch: the smoothed loss is the average of the losses
    over the average of those references, times the mean reference. The averages are exponential and corrected for
    their start (Kingma and Ba, 2015). The logarithm of the rate is averaged with the same weights: an average lags
    behind, but here it lags along the curve and not beside it.

    Args:
        low: the first rate.
        high: the last rate.
        references: the untrained weights' loss in each step, positive.
    """

    low: float
    high: float
    references: list[float]
    losses: list[float] = field(default_factory=list)
    smoothed: list[tuple[float, float]] = field(default_factory=list)  # log10 of the rate, loss
    _averages: NDArray[np.float64] = field(default_factory=lambda: np.zeros(3))
    _best: float = math.inf

    @property
    def num_steps(self) -> int:
        """Optimizer steps from the first rate to the last."""
        return len(self.references)

    @property
    def remembered_steps(self) -> float:
        """Mean age of what the averages hold, in steps."""
        return max(3.0, AVERAGED_DECADES * self.num_steps / math.log10(self.high / self.low))

    def rate(self, step: int) -> float:
        """Return the learning rate of optimizer step `step` (from 0)."""
        return float(self.low * (self.high / self.low) ** (step / (self.num_steps - 1)))

    def add(self, loss: float) -> bool:
        """Add the loss of the next step; return whether to stop: above 4 times the best, or not finite."""
        if not math.isfinite(loss):
            return True
        step = len(self.losses)
        self.losses.append(loss)
        kept = self.remembered_steps / (1 + self.remembered_steps)
        now = np.array([math.log10(self.rate(step)), loss, self.references[step]])
        self._averages = kept * self._averages + (1 - kept) * now
        x, average, reference = self._averages
        smoothed = float(average / reference * np.mean(self.references))
        self.smoothed.append((float(x / (1 - kept ** (step + 1))), smoothed))
        self._best = min(self._best, smoothed)
        return smoothed > DIVERGED_FACTOR * self._best

    def lowest(self) -> float | None:
        """Return the rate at which the smoothed loss is least."""
        return 10 ** min(self.smoothed, key=lambda point: point[1])[0] if self.smoothed else None

    def suggestion(self) -> float | None:
        """Return the rate of steepest descent; None where the loss falls by less than 1 %.

        That is the rate, up to the one of least loss, at which the smoothed loss falls most per decade of rates. The
        slope at a point is that of the least-squares line through the smoothed points within a quarter of a decade.
        """
        points = np.array(self.smoothed).reshape(-1, 2)
        if not len(points) or points[:, 1].min() > (1 - LEAST_FALL) * np.mean(self.references):
            return None
        before_least = points[: points[:, 1].argmin() + 1, 0]
        steepest = int(np.argmin([slope_at(x, points) for x in before_least]))
        return float(10 ** points[steepest, 0])


def slope_at(x: float, points: NDArray[np.float64]) -> float:
    """Return the slope of the line through the points around `x`; infinite where fewer than three are."""
    near = points[np.abs(points[:, 0] - x) <= SLOPE_DECADES / 2]
    return float(np.polyfit(near[:, 0] - x, near[:, 1], 1)[0]) if len(near) >= 3 else math.inf
