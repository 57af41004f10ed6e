"""Greedy selection of an ensemble (Caruana et al., 2004, "Ensemble selection from libraries of models").

From the best one on, what improves the mean most is added, as often as it does; how often is its weight.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

MOST_ROUNDS = 25
LEAST_GAIN = 1e-4  # of the metric: what adds less is likely noise of the validation rows


def selected(
    scores: Sequence[Floats],
    quality: Callable[[Floats], float],
    *,
    most_rounds: int = MOST_ROUNDS,
    least_gain: float = LEAST_GAIN,
) -> list[int]:
    """Return how often each of the scores is in the mean that is best.

    Args:
        scores: of the same rows, by each of the candidates.
        quality: of scores, more being better; NaN counts as the worst.
        most_rounds: the most that the counts add up to.
        least_gain: ends the search where no addition gains more.
    """
    counts, total = [0] * len(scores), np.zeros_like(scores[0])
    reached = -np.inf
    for size in range(1, most_rounds + 1):
        found = [_number(quality((total + score) / size)) for score in scores]
        best = int(np.argmax(found))  # of equal ones the first
        if size > 1 and not found[best] > reached + least_gain:
            break
        counts[best] += 1
        total, reached = total + scores[best], found[best]
    return counts


def _number(quality: float) -> float:
    return -np.inf if np.isnan(quality) else quality
