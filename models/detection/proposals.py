"""What the two stages of Faster R-CNN choose: the first one's proposals, and what each stage learns from.

Nothing here depends on how pictures are spread over ranks: chance is a hash of the picture's seed and the anchor.

Shapes: B pictures, L anchors of all levels, P proposals.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from models.detection import boxes

PER_LEVEL = 1000  # anchors that suppression sees
MOST_OVERLAP = 0.7  # of two proposals of a level
SMALLEST = 1e-2  # pixels of a side
RANGE = 32.0  # of logits, by which `boxes.best` orders them in steps of 1/128
NONE = -1e3  # the logit of what is no proposal
FULL = 0xFFFFFFFF


@dataclass(frozen=True)
class Proposals:
    """Boxes [B, P, 4] of the first stage, the surest first, their anchors [B, P], and whether each is one, [B, P]."""

    boxes: Tensor
    anchors: Tensor
    is_there: Tensor


def proposals(logits: Tensor, located: Tensor, sizes: Sequence[int], *, most: int) -> Proposals:
    """The surest boxes that are left after suppression level by level.

    Args:
        logits: that there is an object, [B, L].
        located: boxes, cut to the picture, [B, L, 4].
        sizes: anchors of each level.
        most: proposals of a picture.
    """
    scores, anchors = [], []
    for own, first in zip(torch.split(logits, list(sizes), dim=1), _firsts(sizes), strict=True):
        chosen, places = boxes.best(own / RANGE, min(PER_LEVEL, own.shape[1]))
        candidates = located.gather(1, (places + first).unsqueeze(2).expand(-1, -1, 4))
        is_there = ((candidates[..., 2:] - candidates[..., :2]) >= SMALLEST).all(dim=2)
        stays = boxes.kept(
            boxes.overlaps(candidates, candidates), torch.zeros_like(places), is_there, most_overlap=MOST_OVERLAP
        )
        scores.append(torch.where(stays, chosen, NONE))
        anchors.append(places + first)
    every = torch.cat(anchors, dim=1)
    surest, at = boxes.best(torch.cat(scores, dim=1), min(most, every.shape[1]))
    which = every.gather(1, at)
    return Proposals(located.gather(1, which.unsqueeze(2).expand(-1, -1, 4)), which, surest > NONE / 2)


def drawn(logits: Tensor, located: Tensor, seeds: Tensor, *, most: int) -> Proposals:
    """What the second stage may learn from: boxes drawn in proportion to the odds that they are objects.

    Without replacement, by the Gumbel trick (arXiv 1903.06059), whose noise is a hash of seed and anchor. Not what
    suppression leaves, as in the paper: one of two overlapping boxes would go by a rounding of their scores or of their
    overlap, which are others in a batch of another size, so that ranks would soon learn from other boxes.

    Args:
        logits: that there is an object, [B, L].
        located: boxes, cut to the picture, [B, L, 4].
        seeds: of the pictures, [B].
        most: boxes of a picture.
    """
    anchors = torch.arange(logits.shape[1], device=logits.device)
    bits = mixed(mixed(anchors) ^ seeds.unsqueeze(1)) >> 8
    noise = -(-((bits + 0.5) * 2.0**-24).log()).log()
    is_there = ((located[..., 2:] - located[..., :2]) >= SMALLEST).all(dim=2)
    key = torch.where(is_there, logits + noise, NONE)
    which = key.topk(min(most, logits.shape[1]), dim=1).indices
    found = located.gather(1, which.unsqueeze(2).expand(-1, -1, 4))
    return Proposals(found, which, is_there.gather(1, which))


def sampled(labels: Tensor, ids: Tensor, seed: Tensor, *, num: int, share: float) -> Tensor:
    """Places of what is learnt from, [at most num]: positive labels, at most `share` of num, then those of 0.

    Torchvision draws them by their place in the list; here each has a number of its own, a hash of the seed and of
    what it is, so that one more in the list, or another order, moves nothing else.

    Args:
        labels: above 0 for objects, 0 for none, below for what does not count, [K].
        ids: of each, [K].
        seed: of the picture, a scalar.
        num: that are learnt from.
        share: of them that may be objects.
    """
    order = mixed(mixed(ids) ^ seed).argsort(stable=True)
    positive = order[labels[order] > 0][: int(num * share)]
    negative = order[labels[order] == 0][: num - len(positive)]
    return torch.cat([positive, negative])


def mixed(value: Tensor) -> Tensor:
    """A bijection of 32 bits whose every output bit depends on every input bit (lowbias32, C. Wellons, 2018)."""
    value = value & FULL
    value = ((value ^ (value >> 16)) * 0x7FEB352D) & FULL
    value = ((value ^ (value >> 15)) * 0x846CA68B) & FULL
    return value ^ (value >> 16)


def _firsts(sizes: Sequence[int]) -> list[int]:
    return [sum(sizes[:level]) for level in range(len(sizes))]
