"""Pictures and their masks changed at random alike, a batch at once on its device: a function of (seed, epoch, sample).

Shapes: B pictures, H rows, W columns of pixels.
"""

from typing import Annotated, Any, TypedDict

import torch
from annotated_types import Ge, Lt
from torch import Tensor
from torch.nn import functional

from datamodules.augment import grid_of, middles, moved, uniform
from datamodules.loading import Batch, TensorLoader

FLIP, SHIFT, SCALE, BRIGHTNESS, COLOUR = range(5)  # streams of random numbers


class MaskAugmentation(TypedDict):
    """How training pictures and their masks are changed.

    Attributes:
        flip: whether every second epoch a picture is its mirror image (alternating flip, arXiv 2404.00498).
        translate: pixels that a picture is moved at most, each way; what comes in at the edge is a reflection.
        scale: share by which a picture is made larger or smaller at most, around its middle.
        brightness: share by which it is made brighter or darker at most.
        colour: share by which each of red, green and blue is besides.
    """

    flip: bool
    translate: Annotated[int, Ge(0)]
    scale: Annotated[float, Ge(0), Lt(1)]
    brightness: Annotated[float, Ge(0), Lt(1)]
    colour: Annotated[float, Ge(0), Lt(1)]


def augmented(
    images: Tensor, masks: Tensor, rows: Tensor, how: MaskAugmentation, *, seed: int, epoch: int
) -> tuple[Tensor, Tensor]:
    """Change uint8 pictures [B, H, W, 3] and their masks [B, H, W], the numbers of whose samples are `rows` [B]."""
    both = torch.cat([images, masks.unsqueeze(3)], dim=3)
    if how["flip"]:
        is_flipped = (uniform(seed, 0, rows, FLIP, 1) < 0.5) ^ bool(epoch % 2)
        both = torch.where(is_flipped.view(-1, 1, 1, 1), both.flip(2), both)
    if how["translate"]:
        most = min(how["translate"], both.shape[1] - 1, both.shape[2] - 1)
        both = moved(both, (uniform(seed, epoch, rows, SHIFT, 2) * (2 * most + 1)).long() - most)
    images, masks = both[..., :3], both[..., 3]
    if how["scale"]:
        factor = 1 + how["scale"] * (2 * uniform(seed, epoch, rows, SCALE, 1)[:, 0] - 1)
        images, masks = scaled(images, masks, factor)
    if how["brightness"] or how["colour"]:
        light = 1 + how["brightness"] * (2 * uniform(seed, epoch, rows, BRIGHTNESS, 1) - 1)
        tint = 1 + how["colour"] * (2 * uniform(seed, epoch, rows, COLOUR, 3) - 1)
        changed = images * (light * tint).view(-1, 1, 1, 3)
        images = changed.round().clamp(0, 255).to(torch.uint8)
    return images, masks


def scaled(images: Tensor, masks: Tensor, factor: Tensor) -> tuple[Tensor, Tensor]:
    """Pictures enlarged by a factor [B] around their middle, reflected at the edges; of masks the nearest pixel."""
    pixels = images.permute(0, 3, 1, 2).float()
    down, across = middles(images.shape[1:3], images.device)
    grid = grid_of(across / factor.unsqueeze(1), down / factor.unsqueeze(1))
    options: Any = {"padding_mode": "reflection", "align_corners": False}
    found = functional.grid_sample(pixels, grid, mode="bilinear", **options)
    nearest = functional.grid_sample(masks.unsqueeze(1).float(), grid, mode="nearest", **options)
    return found.round().to(torch.uint8).permute(0, 2, 3, 1), nearest.squeeze(1).round().to(torch.uint8)


class MaskLoader(TensorLoader):
    """Training batches of `image`, `target` and `row`, pictures and masks changed as `how` says.

    Args:
        tensors: of the training rows.
        how: see `MaskAugmentation`.
        options: of `TensorLoader`.
    """

    def __init__(self, tensors: dict[str, Tensor], how: MaskAugmentation, **options: Any) -> None:
        super().__init__(tensors, **options)
        self.how = how

    def _gather(self, order: Tensor | None, first: int, last: int) -> list[Batch]:
        batches = super()._gather(order, first, last)
        for batch in batches:
            batch["image"], batch["target"] = augmented(
                batch["image"], batch["target"], batch["row"], self.how, seed=self.seed, epoch=self.epoch
            )
        return batches
