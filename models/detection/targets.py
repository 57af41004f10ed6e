"""What each location of a detector is to learn: which object, and what the network's answer costs.

Shapes: B pictures, L locations, M objects, C classes.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from models.detection.boxes import area, generalized_overlap

RADIUS = 1.5  # strides about an object's centre in which locations are its own (FCOS, arXiv 1904.01355)
BOX_WEIGHT = 2.0
FAR = 1e9


@dataclass(frozen=True)
class Targets:
    """Of each location: its object's box [B, L, 4], class [B, L] (-1 for none), and whether it counts, [B, L]."""

    boxes: Tensor
    labels: Tensor
    counts: Tensor


def targets_of(points: Tensor, strides: Tensor, reach: Tensor, boxes: Tensor, target: Tensor, crowd: Tensor) -> Targets:
    """Give each location the smallest object whose middle it is in, if that is of its level's size.

    Args:
        points: of locations, x and y [L, 2].
        strides: of their levels, [L].
        reach: least and most distance to a side of the box that a level is for, [L, 2].
        boxes: [B, M, 4].
        target: classes [B, M], -1 for none.
        crowd: objects of which nothing is learnt, nor that there is nothing, [B, M].
    """
    around = points.repeat(1, 2).view(1, -1, 1, 4)
    centre = (boxes[..., :2] + boxes[..., 2:]) / 2
    half = (boxes[..., 2:] - boxes[..., :2]) / 2
    is_object = (target >= 0).unsqueeze(1)
    away = (points.view(1, -1, 1, 2) - centre.unsqueeze(1)).abs()
    # An object smaller than a stride has the one location nearest to its middle, though that may lie outside.
    room = torch.minimum(half.unsqueeze(1), RADIUS * strides.view(1, -1, 1, 1))
    room = torch.maximum(room, strides.view(1, -1, 1, 1) / 2)
    farthest = (around - boxes.unsqueeze(1)).abs().amax(dim=3)
    is_size = (farthest >= reach[:, 0].view(1, -1, 1)) & (farthest < reach[:, 1].view(1, -1, 1))
    is_own = (away <= room).all(dim=3) & is_size & is_object & ~crowd.unsqueeze(1)
    size, chosen = torch.where(is_own, area(boxes).unsqueeze(1), FAR).min(dim=2)
    labels = torch.where(size < FAR, target.gather(1, chosen), -1)
    in_crowd = ((away <= half.unsqueeze(1)).all(dim=3) & is_object & crowd.unsqueeze(1)).any(dim=2)
    located = boxes.gather(1, chosen.unsqueeze(2).expand(-1, -1, 4))
    return Targets(located, labels, (labels >= 0) | ~in_crowd)


def loss_of(logits: Tensor, boxes: Tensor, targets: Targets, *, objects: float) -> Tensor:
    """What the objects of pictures cost, on average, a scalar.

    Classes cost by quality focal loss (arXiv 2006.04388), whose target is the overlap of the box with its object;
    boxes by GIoU.

    Args:
        logits: [B, L, C].
        boxes: [B, L, 4].
        targets: of the locations.
        objects: of a picture, on average over the training pictures.
    """
    is_found = targets.labels >= 0
    overlap, generalized = generalized_overlap(boxes.float(), targets.boxes)
    wanted = functional.one_hot(targets.labels.clamp_min(0), logits.shape[2]) * is_found.unsqueeze(2)
    quality = wanted * overlap.detach().unsqueeze(2)
    scores = logits.float()
    entropy = functional.binary_cross_entropy_with_logits(scores, quality, reduction="none")
    focal = (entropy * (scores.sigmoid() - quality).square()).sum(dim=2) * targets.counts
    located = (1 - generalized) * is_found
    # By what is usual and not by what this batch holds: ranks whose pictures hold more objects add up to one process's,
    # and an object counts as much among many as alone.
    num = objects * (2 * RADIUS) ** 2
    return (focal.sum(dim=1) + BOX_WEIGHT * located.sum(dim=1)).mean() / num
