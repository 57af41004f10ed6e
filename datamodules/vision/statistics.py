"""What a network's first layers must know of the training pictures: mean and spread of colours and of small patches.

Sums are of whole numbers, and so the same on any number of threads.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor

MOST_IMAGES = 10_000  # spread evenly over the training rows: more do not move the statistics
AT_A_TIME = 1_000_000  # pixels that are looked at together
PATCH = 2  # pixels of a side
DIGITS = 9


def statistics(images: Any) -> dict[str, Any]:
    """Return `mean` and `std` of each channel, in shares of 255, and the `patches` of normalized pixels.

    `patches` has their `size` and their `covariance`, whose rows and columns are channel by channel, then down, then
    across, as a convolution's weights are.

    Args:
        images: uint8 [N, H, W, 3], N at least 1; a tensor, or `Undecoded`.
    """
    height, width = images.shape[1:3]
    chosen = torch.linspace(0, len(images) - 1, min(len(images), MOST_IMAGES)).long()
    colours, patches = _Sums(3), _Sums(3 * PATCH * PATCH)
    for rows in torch.split(chosen, max(1, AT_A_TIME // (height * width))):
        some = images[rows]
        colours.add(some.reshape(-1, 3).double().T)
        patches.add(_patches(some))
    std = colours.covariance.diagonal().clamp_min(1.0).sqrt()
    covariance = patches.covariance / torch.outer(*(2 * [std.repeat_interleave(PATCH * PATCH)]))
    return {
        "mean": _plain(colours.mean / 255),
        "std": _plain(std / 255),
        "patches": {"size": PATCH, "covariance": [_plain(row) for row in covariance]},
    }


class _Sums:
    """Sums of `size` numbers and of their products.

    Those of bytes are whole numbers below 2**53: exact, in whatever order and portions they are added.
    """

    def __init__(self, size: int) -> None:
        self.total, self.products = (torch.zeros(*shape, dtype=torch.float64) for shape in ((size,), (size, size)))
        self.count = 0

    def add(self, values: Tensor) -> None:
        """Add float64 [size, N]."""
        self.total, self.products = self.total + values.sum(dim=1), self.products + values @ values.T
        self.count += values.shape[1]

    @property
    def mean(self) -> Tensor:
        return self.total / self.count

    @property
    def covariance(self) -> Tensor:
        return self.products / self.count - torch.outer(self.mean, self.mean)


def _patches(images: Tensor) -> Tensor:
    """The raw values of all patches, float64 [3 * PATCH * PATCH, N]."""
    height, width = images.shape[1:3]
    some = images.permute(0, 3, 1, 2).double()
    parts = [
        some[:, channel, down : height - PATCH + 1 + down, across : width - PATCH + 1 + across].reshape(-1)
        for channel in range(3)
        for down in range(PATCH)
        for across in range(PATCH)
    ]
    return torch.stack(parts)


def _plain(values: Tensor) -> list[float]:
    return [float(value) for value in np.round(values.numpy(), DIGITS)]
