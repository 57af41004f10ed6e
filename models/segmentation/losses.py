"""Losses of class maps, each the mean over a picture's pixels or classes: [B], so that ranks' rows add up.

Shapes: B pictures, C classes, P pixels of a picture. Pixels that are `IGNORED` count for nothing; a picture of nothing
else has no loss.
"""

from typing import Literal, get_args

import torch
from torch import Tensor
from torch.nn import functional

IGNORED = 255  # of a target: not one of the classes
FOCUS = 2.0  # gamma of the focal loss

Loss = Literal[
    "cross_entropy",
    "dice",
    "focal",
    "lovasz",
    "cross_entropy+dice",
    "cross_entropy+lovasz",
    "focal+dice",
    "focal+lovasz",
]
LOSSES = get_args(Loss)


def loss_of(name: Loss, logits: Tensor, target: Tensor, weights: Tensor) -> Tensor:
    """Sum of the named losses of each picture, [B].

    Args:
        name: losses with + between them.
        logits: float32 [B, C, H, W].
        target: integers [B, H, W].
        weights: of the classes, [C], for cross-entropy and focal loss.
    """
    scores, truth = logits.flatten(2), target.flatten(1).long()
    is_valid = truth != IGNORED
    truth = torch.where(is_valid, truth, 0)
    parts = []
    for part in name.split("+"):
        if part in ("cross_entropy", "focal"):
            parts.append(_cross_entropy(scores, truth, is_valid, weights, focus=FOCUS if part == "focal" else 0.0))
        else:
            shares = torch.softmax(scores, dim=1)
            parts.append((dice if part == "dice" else lovasz)(shares, truth, is_valid))
    return torch.stack(parts).sum(dim=0)


def _cross_entropy(scores: Tensor, truth: Tensor, is_valid: Tensor, weights: Tensor, *, focus: float) -> Tensor:
    """Cross-entropy; with a focus above 0 the focal loss (Lin et al., 2017, arXiv 1708.02002)."""
    loss = functional.cross_entropy(scores, truth, reduction="none")
    if focus:
        loss = loss * (1 - torch.exp(-loss)) ** focus
    return (loss * weights[truth] * is_valid).sum(dim=1) / is_valid.sum(dim=1).clamp_min(1)


def _one_hot(truth: Tensor, is_valid: Tensor, num_classes: int) -> Tensor:
    hot = functional.one_hot(truth, num_classes).to(torch.float32) * is_valid.unsqueeze(2)
    return hot.transpose(1, 2)


def _mean_of_present(by_class: Tensor, hot: Tensor) -> Tensor:
    """Mean over the classes that a picture shows, [B], of [B, C]."""
    is_present = hot.sum(dim=2) > 0
    return (by_class * is_present).sum(dim=1) / is_present.sum(dim=1).clamp_min(1)


def dice(shares: Tensor, truth: Tensor, is_valid: Tensor) -> Tensor:
    """One minus the soft Dice coefficient, mean over the classes that are there (Milletari et al., 2016)."""
    hot = _one_hot(truth, is_valid, shares.shape[1])
    shares = shares * is_valid.unsqueeze(1)
    both = (shares * hot).sum(dim=2)
    by_class = 1 - (2 * both + 1) / (shares.sum(dim=2) + hot.sum(dim=2) + 1)
    return _mean_of_present(by_class, hot)


def lovasz(shares: Tensor, truth: Tensor, is_valid: Tensor) -> Tensor:
    """The Lovasz extension of one minus IoU, mean over the classes that are there (Berman et al., arXiv 1705.08790)."""
    hot = _one_hot(truth, is_valid, shares.shape[1])
    is_present = hot.sum(dim=2) > 0
    # Sorting is what it costs, and most classes are not in a picture: K pairs of a picture and a class of it.
    errors, own = ((hot - shares).abs() * is_valid.unsqueeze(1))[is_present], hot[is_present]
    errors, order = errors.sort(dim=1, descending=True, stable=True)
    hits = own.gather(1, order)
    total = own.sum(dim=1, keepdim=True)
    # Pixels that are ignored come last, with errors of nothing: whatever they are multiplied with.
    jaccard = 1 - (total - hits.cumsum(dim=1)) / (total + (1 - hits).cumsum(dim=1))
    steps = torch.cat([jaccard[:, :1], jaccard[:, 1:] - jaccard[:, :-1]], dim=1)
    by_class = torch.zeros_like(is_present, dtype=errors.dtype).masked_scatter(is_present, (errors * steps).sum(dim=1))
    return by_class.sum(dim=1) / is_present.sum(dim=1).clamp_min(1)
