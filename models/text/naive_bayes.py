"""Naive Bayes: what a feature says of each class by its counts alone, as a second opinion beside what is trained.

Counting needs few rows and is never overfitted, training finds what words do together (Ng and Jordan, 2001).
"""

from collections.abc import Callable, Iterable, Mapping

import torch
import torch.distributed
import torch.nn.functional as F
from torch import Tensor

from models.optim import is_distributed

SMOOTHING = 0.3

Features = Callable[[Tensor], tuple[Tensor, Tensor]]


@torch.no_grad()
def counts_of(features: Features, batches: Iterable[Mapping[str, Tensor]], *, size: int, num_classes: int) -> Tensor:
    """Count features by class over the batches of all ranks, float64 [size, C]: whole numbers, in whatever order.

    Args:
        features: tokens [B, L] to places of features [B, N] and which of those hold one.
        batches: of this rank.
        size: number of features.
        num_classes: C.
    """
    counts = None
    for batch in batches:
        target = batch["target"]
        if counts is None:
            counts = torch.zeros(size, num_classes, dtype=torch.float64, device=target.device)
        places, is_there = features(batch["tokens"])
        classes = target if target.ndim == 2 else F.one_hot(target, num_classes)
        counts.index_add_(0, places[is_there], classes.double().repeat_interleave(is_there.sum(dim=1), dim=0))
    assert counts is not None  # there are training rows
    if is_distributed():
        torch.distributed.all_reduce(counts)
    return counts


def log_ratios(counts: Tensor) -> Tensor:
    """How much more likely a feature is in a class than in the others, float32 [size, C]; 0 for what never was."""
    inside = counts + SMOOTHING
    outside = counts.sum(dim=1, keepdim=True) - counts + SMOOTHING
    ratio = torch.log(inside / inside.sum(dim=0)) - torch.log(outside / outside.sum(dim=0))
    return torch.where(counts.sum(dim=1, keepdim=True) > 0, ratio, 0.0).float()


def informativeness(counts: Tensor) -> Tensor:
    """How much a feature tells of the classes, float32 [size]: the mean square of its log ratios; 1 on average.

    In the manner of Wang and Manning (2012), whose linear classifiers are trained on log ratios in place of counts.
    """
    told = log_ratios(counts).double().square().mean(dim=1)
    share = counts.sum(dim=1) / counts.sum().clamp_min(1)
    return (told / (told * share).sum().clamp_min(1e-12)).float()
