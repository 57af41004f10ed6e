"""What a network's first layers must know of the training pictures: mean and spread of colours and of small patches.

Sums are of whole numbers, and so the same on any number of threads.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor

MOST_IMAGES = 10_000  # spread evenly over the training rows: more do not move the statistics
PATCH = 2  # pixels of a side
DIGITS = 9


def statistics(images: Tensor) -> dict[str, Any]:
    """Return `mean` and `std` of each channel, in shares of 255, and the `patches` of normalized pixels.

    `patches` has their `size` and their `covariance`, whose rows and columns are channel by channel, then down, then
    across, as a convolution's weights are.

    Args:
        images: uint8 [N, H, W, 3], N at least 1.
    """
    chosen = images[torch.linspace(0, len(images) - 1, min(len(images), MOST_IMAGES)).long()]
    values = chosen.reshape(-1, 3).long()
    mean = values.sum(dim=0).double() / len(values)
    std = ((values * values).sum(dim=0).double() / len(values) - mean * mean).clamp_min(1.0).sqrt()
    covariance = _covariance(chosen) / torch.outer(*(2 * [std.repeat_interleave(PATCH * PATCH)]))
    return {
        "mean": _plain(mean / 255),
        "std": _plain(std / 255),
        "patches": {"size": PATCH, "covariance": [_plain(row) for row in covariance]},
    }


def _covariance(images: Tensor) -> Tensor:
    """Covariance of the raw values in patches, float64 [3 * PATCH * PATCH, the same]."""
    height, width = images.shape[1:3]
    size = 3 * PATCH * PATCH
    total, products = torch.zeros(size, dtype=torch.float64), torch.zeros(size, size, dtype=torch.float64)
    count = 0
    for start in range(0, len(images), 1_000):
        some = images[start : start + 1_000].double().permute(0, 3, 1, 2)
        parts = [
            some[:, channel, down : height - PATCH + 1 + down, across : width - PATCH + 1 + across].reshape(-1)
            for channel in range(3)
            for down in range(PATCH)
            for across in range(PATCH)
        ]
        patches = torch.stack(parts)
        # Products of bytes and their sums are whole numbers below 2**53: exact, in whatever order they are added.
        total, products = total + patches.sum(dim=1), products + patches @ patches.T
        count += patches.shape[1]
    mean = total / count
    return products / count - torch.outer(mean, mean)


def _plain(values: Tensor) -> list[float]:
    return [float(value) for value in np.round(values.numpy(), DIGITS)]
