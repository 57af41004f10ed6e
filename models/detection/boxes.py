"""Boxes as tensors: overlaps, and what is left of detections once those of the same object are put aside.

Shapes: B pictures, K candidates, L locations, C classes. Boxes are left, top, right, bottom.
"""

import torch
from torch import Tensor

FINENESS = 4096  # steps of a score from 0 to 1 by which candidates are ordered
NEAR = 0.05  # how fast a vote counts less the less it overlaps
ROUNDS = 16  # of suppression: chains of overlapping boxes are hardly ever as long


def area(boxes: Tensor) -> Tensor:
    """Areas [..] of boxes [.., 4]."""
    return (boxes[..., 2] - boxes[..., 0]).clamp_min(0) * (boxes[..., 3] - boxes[..., 1]).clamp_min(0)


def overlaps(one: Tensor, other: Tensor) -> Tensor:
    """Intersection over union [B, K, M] of each box [B, K, 4] with each [B, M, 4]."""
    first = torch.maximum(one[:, :, None, :2], other[:, None, :, :2])
    last = torch.minimum(one[:, :, None, 2:], other[:, None, :, 2:])
    shared = (last - first).clamp_min(0).prod(dim=3)
    return shared / (area(one)[:, :, None] + area(other)[:, None, :] - shared).clamp_min(1e-9)


def generalized_overlap(one: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
    """Intersection over union, and GIoU (arXiv 1902.09630), [..] each, of boxes [.., 4] one by one."""
    shared = (torch.minimum(one[..., 2:], other[..., 2:]) - torch.maximum(one[..., :2], other[..., :2])).clamp_min(0)
    hull = torch.maximum(one[..., 2:], other[..., 2:]) - torch.minimum(one[..., :2], other[..., :2])
    # Not `prod`, whose gradient is rounded otherwise while Telemetry counts operations: in a resumed run's first steps.
    intersection, around = shared[..., 0] * shared[..., 1], (hull[..., 0] * hull[..., 1]).clamp_min(1e-9)
    union = (area(one) + area(other) - intersection).clamp_min(1e-9)
    found = intersection / union
    return found, found - (around - union) / around


def best(scores: Tensor, num: int) -> tuple[Tensor, Tensor]:
    """The highest scores [B, num] of [B, K] and their places, in order.

    Scores that differ by less than a step stand as they come: whatever rounds them, the order stays.
    """
    steps = (scores * FINENESS).round().to(torch.int64)
    key = steps * scores.shape[1] + torch.arange(scores.shape[1] - 1, -1, -1, device=scores.device)
    places = key.topk(num, dim=1).indices
    return scores.gather(1, places), places


def kept(overlap: Tensor, labels: Tensor, is_there: Tensor, *, most_overlap: float) -> Tensor:
    """Greedy non-maximum suppression class by class, bool [B, K], of candidates in order of their scores.

    Their boxes overlap by `overlap` [B, K, K].

    A box goes if one that stays, is ahead of it and is of its class overlaps it by more than `most_overlap`. Found by
    repeating that rule (Cluster-NMS, arXiv 2005.03572), which ends at the greedy result: no loop over boxes, so that
    whole batches do it at once, in any runtime.
    """
    size = overlap.shape[1]
    ahead = torch.ones(size, size, dtype=torch.bool, device=overlap.device).triu(1)
    rules_out = (overlap > most_overlap) & (labels[:, :, None] == labels[:, None, :]) & ahead
    stays = is_there
    for _ in range(ROUNDS):
        stays = is_there & ~(rules_out & stays[:, :, None]).any(dim=1)
    return stays


def voted(boxes: Tensor, overlap: Tensor, labels: Tensor, scores: Tensor) -> Tensor:
    """Each box [B, K, 4] as the mean of all of its class by their scores [B, K] and their overlap with it [B, K, K].

    Locations about an object err apart, and their mean errs less (box voting: arXiv 1505.01749; weighted by overlap as
    in arXiv 1809.08545, so that no vote turns on a threshold).
    """
    nearness = torch.exp(-(1 - overlap).square() / NEAR)
    votes = nearness * scores.unsqueeze(1) * (labels.unsqueeze(2) == labels.unsqueeze(1))
    return votes @ boxes / votes.sum(dim=2, keepdim=True).clamp_min(1e-9)


def detections(
    boxes: Tensor,
    scores: Tensor,
    *,
    vote: bool = False,
    most_overlap: float,
    least_score: float,
    most_candidates: int,
    most: int,
) -> Tensor:
    """Detections float32 [B, most, 6], the surest first: box, score, class; rows of score 0 and class -1 pad.

    Args:
        boxes: of each location, [B, L, 4], or of each location and class, [B, L, C, 4].
        scores: of each location and class, [B, L, C].
        vote: whether detections take the mean of the boxes about them, see `voted`.
        most_overlap: of two detections of a class.
        least_score: of a detection.
        most_candidates: of a picture, before suppression.
        most: detections of a picture.
    """
    num_classes = scores.shape[2]
    flat = scores.flatten(1)
    chosen, places = best(flat, min(most_candidates, flat.shape[1]))
    labels = places % num_classes
    where = places // num_classes if boxes.ndim == 3 else places
    located = boxes.reshape(len(boxes), -1, 4).gather(1, where.unsqueeze(2).expand(-1, -1, 4))
    overlap = overlaps(located, located)
    stays = kept(overlap, labels, chosen >= least_score, most_overlap=most_overlap)
    located = voted(located, overlap, labels, chosen) if vote else located
    # What stays goes first, in its order: the key counts down.
    order = stays.to(torch.int64) * chosen.shape[1] + torch.arange(chosen.shape[1] - 1, -1, -1, device=boxes.device)
    first = order.topk(min(most, chosen.shape[1]), dim=1).indices
    is_found = stays.gather(1, first).unsqueeze(2)
    columns = torch.cat([located, chosen.unsqueeze(2), labels.unsqueeze(2).to(located.dtype)], dim=2)
    found = columns.gather(1, first.unsqueeze(2).expand(-1, -1, 6))
    nothing = torch.tensor([0.0, 0.0, 0.0, 0.0, 0.0, -1.0], device=boxes.device)
    return torch.where(is_found, found, nothing)
