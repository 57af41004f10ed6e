"""Masks of objects: unpacked, looked up where a network or a picture asks, and told as COCO's run lengths.

Shapes: n objects, S x S cells of a mask, which fill the object's frame: left, top, right, bottom; of a mirror image,
left is right of right.
"""

import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

Objects = Mapping[str, Tensor]
SURE = 0.5  # from which on a pixel is of the object


def unpacked(masks: Tensor) -> Tensor:
    """Masks float32 [n, S, S] out of packed ones, uint8 [n, S S / 8]."""
    shifts = torch.arange(7, -1, -1, device=masks.device)
    bits = (masks.unsqueeze(2).to(torch.int64) >> shifts) & 1
    side = int((masks.shape[1] * 8) ** 0.5)
    return bits.to(torch.float32).view(-1, side, side)


def looked_up(masks: Tensor, frames: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """What masks float [n, S, S] have at columns x [n, w] and rows y [n, h], [n, h, w]; outside them, nothing."""
    across = 2 * (x - frames[:, :1]) / _extent(frames[:, 2:3] - frames[:, :1]) - 1
    down = 2 * (y - frames[:, 1:2]) / _extent(frames[:, 3:] - frames[:, 1:2]) - 1
    size = (len(masks), y.shape[1], x.shape[1])
    grid = torch.stack([across.unsqueeze(1).expand(size), down.unsqueeze(2).expand(size)], dim=3)
    return functional.grid_sample(masks.unsqueeze(1), grid, align_corners=False).squeeze(1)


def _extent(sides: Tensor) -> Tensor:
    return torch.where(sides.abs() < 1e-3, 1e-3, sides)


def within(masks: Tensor, frames: Tensor, regions: Tensor, side: int) -> Tensor:
    """What masks have at the middles of side x side cells of regions [n, 4], [n, side, side]."""
    middles = (torch.arange(side, device=regions.device) + 0.5) / side
    x = regions[:, :1] + middles * (regions[:, 2:3] - regions[:, :1])
    y = regions[:, 1:2] + middles * (regions[:, 3:] - regions[:, 1:2])
    return looked_up(masks, frames, x, y)


def mask_losses(logits: Tensor, chosen: Sequence[Objects], wanted: Sequence[Objects]) -> Tensor:
    """Of each picture [B]: what the masks of its regions of objects cost, each by its object's class alone.

    Args:
        logits: of the masks of each class in these regions, [R, C, side, side].
        chosen: the regions of each picture: boxes, labels (0 for none), and the number of the object matched.
        wanted: the objects of each picture: masks, packed, and frames.
    """
    counts = [int((one["labels"] > 0).sum()) for one in chosen]
    losses = []
    for own, one, objects in zip(torch.split(logits, counts), chosen, wanted, strict=True):
        is_object = one["labels"] > 0
        matched, labels = one["matched"][is_object], one["labels"][is_object]
        target = within(
            unpacked(objects["masks"])[matched], objects["frames"][matched], one["boxes"][is_object], logits.shape[2]
        )
        said = own[torch.arange(len(labels), device=labels.device), labels]
        entropy = functional.binary_cross_entropy_with_logits(said, target, reduction="sum")
        losses.append(entropy / max(1, target.numel()))
    return torch.stack(losses)


def pasted(masks: Tensor, frames: Tensor, height: int, width: int) -> NDArray[np.bool_]:
    """Which pixels of a picture objects cover, bool [n, height, width]."""
    x = (torch.arange(width) + 0.5).expand(len(masks), -1)
    y = (torch.arange(height) + 0.5).expand(len(masks), -1)
    found: NDArray[np.bool_] = (looked_up(masks, frames, x, y) > SURE).numpy()
    return found


def bytes_of(cells: Tensor) -> Tensor:
    """Cells from 0 to 1 as uint8."""
    return (cells * 255).round().to(torch.uint8)


def of_bytes(cells: NDArray[np.uint8]) -> Tensor:
    """Found masks float [n, S, S] out of their cells [n, S S]."""
    side = math.isqrt(cells.shape[1])
    return torch.from_numpy(cells.astype(np.float32) / 255).view(-1, side, side)


def run_lengths(covered: NDArray[np.bool_]) -> dict[str, object]:
    """A mask [height, width] as COCO's packed run lengths, as its results have them."""
    from faster_coco_eval.core import mask

    told = mask.encode(np.asfortranarray(covered.astype(np.uint8)))
    return {"size": list(covered.shape), "counts": told["counts"].decode()}
