"""Pictures with boxes, changed at random, a whole batch at once: a pure function of (seed, epoch, sample).

Shapes: B pictures, H rows, W columns of pixels, M boxes. Each picture is read through one affine map (mirror, scale,
translation), with one bilinear look-up a pixel, and its boxes go through the inverse.
"""

from typing import Annotated, Any, TypedDict

import torch
from annotated_types import Ge, Le, Lt
from torch import Tensor
from torch.nn import functional

from datamodules.augment import grid_of, middles, uniform
from datamodules.detection.objects import ABSENT
from datamodules.loading import Batch, TensorLoader

GEOMETRY, COLOUR, MOSAIC = range(10, 13)  # streams of random numbers
LEAST_LEFT = 0.3  # share of an object's area that must stay in the picture for it to count
SMALLEST = 2.0  # pixels of a side of a box that is left
GREY = 114.0  # what comes in at the edges
OBJECTS = ("boxes", "target", "crowd", "masks", "frames")  # what a batch may have of each object


class Augmentation(TypedDict):
    """How training pictures are changed.

    Attributes:
        flip: whether half of the pictures are mirror images.
        scale: largest change of size, as a share: 0.3 gives 0.7 to 1.3.
        translate: largest shift, each way, as a share of the side.
        colour: largest change of brightness, contrast and each channel, as a share; 0 for none.
        mosaic: share of pictures that are put together of four (arXiv 2004.10934).
    """

    flip: bool
    scale: Annotated[float, Ge(0), Lt(1)]
    translate: Annotated[float, Ge(0), Lt(1)]
    colour: Annotated[float, Ge(0), Lt(1)]
    mosaic: Annotated[float, Ge(0), Le(1)]


class AugmentedLoader(TensorLoader):
    """Training batches of image, boxes, target, crowd and row, changed as `how` says.

    The other three pictures of a mosaic are drawn of all training pictures.

    Args:
        tensors: of the training rows.
        how: see `Augmentation`.
        options: of `TensorLoader`.
    """

    def __init__(self, tensors: dict[str, Tensor], how: Augmentation, **options: Any) -> None:
        super().__init__(tensors, **options)
        self.how = how

    def _gather(self, order: Tensor | None, first: int, last: int) -> list[Batch]:
        batches = super()._gather(order, first, last)
        for batch in batches:
            if self.how["mosaic"]:
                self._put_together(batch)
            batch |= augmented(batch, self.how, seed=self.seed, epoch=self.epoch)
        return batches

    def _put_together(self, batch: Batch) -> None:
        draw = uniform(self.seed, self.epoch, batch["row"], MOSAIC, 4)
        chosen = torch.nonzero(draw[:, 3] < self.how["mosaic"]).flatten()
        others = (draw[chosen, :3] * self.num_rows).long().clamp_max(self.num_rows - 1)
        rows = torch.cat([batch["row"][chosen].unsqueeze(1), others], dim=1)
        parts = {name: self.tensors[name][rows] for name in ("image", *OBJECTS) if name in self.tensors}
        whole = mosaic(parts)
        room = whole["target"].shape[1] - batch["target"].shape[1]
        batch["image"] = batch["image"].index_copy(0, chosen, whole["image"])
        for name in OBJECTS:
            if name in whole:
                sides = (0, 0, 0, room) if batch[name].ndim == 3 else (0, room)
                wide = functional.pad(batch[name], sides, value=ABSENT if name == "target" else 0)
                batch[name] = wide.index_copy(0, chosen, whole[name])


def mosaic(parts: dict[str, Tensor]) -> dict[str, Tensor]:
    """Four pictures each, [B, 4, ..], at half their size in the quarters of one; boxes [B, 4 M, 4] and so on."""
    height, width = parts["image"].shape[2:4]
    half = parts["image"].flatten(0, 1).permute(0, 3, 1, 2).float()
    half = functional.interpolate(half, (height - height // 2, width - width // 2), mode="bilinear", antialias=True)
    half = half.round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1)
    half = half.reshape(-1, 4, *half.shape[1:])
    image = torch.empty_like(parts["image"][:, 0])
    shift = torch.zeros(4, 4, device=image.device)
    for place in range(4):
        top, left = (place // 2) * (height // 2), (place % 2) * (width // 2)
        image[:, top : top + half.shape[2], left : left + half.shape[3]] = half[:, place]
        shift[place] = torch.tensor([left, top, left, top])
    scale = torch.tensor([half.shape[3] / width, half.shape[2] / height] * 2, device=image.device)
    moved = {name: parts[name] * scale + shift.view(1, 4, 1, 4) for name in ("boxes", "frames") if name in parts}
    return {"image": image, **{name: (parts | moved)[name].flatten(1, 2) for name in OBJECTS if name in parts}}


def augmented(batch: Batch, how: Augmentation, *, seed: int, epoch: int) -> Batch:
    """Change the pictures of a batch and their boxes; objects of which too little is left are absent."""
    image, boxes, target = batch["image"], batch["boxes"], batch["target"]
    found: Batch = {}
    if not len(image):
        return {}
    if how["flip"] or how["scale"] or how["translate"]:
        draw = uniform(seed, epoch, batch["row"], GEOMETRY, 4)
        sign = torch.where((draw[:, 0] < 0.5) & how["flip"], -1.0, 1.0)
        scale = 1 + how["scale"] * (2 * draw[:, 1] - 1)
        shift = how["translate"] * (2 * draw[:, 2:] - 1)  # of the picture's side, right and down
        image = _moved(image, sign, scale, shift)
        if "frames" in batch:
            found["frames"] = _placed(batch["frames"], sign, scale, shift, image.shape[1:3])
        boxes, target = _moved_boxes(boxes, target, sign, scale, shift, image.shape[1:3])
    if how["colour"]:
        image = _coloured(image, uniform(seed, epoch, batch["row"], COLOUR, 5), how["colour"])
    return {"image": image, "boxes": boxes, "target": target, **found}


def _moved(image: Tensor, sign: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """Each new pixel, in coordinates from -1 to 1, is looked up where it was: (x - 2 shift) / scale, mirrored."""
    down, across = middles(image.shape[1:3], image.device)
    x = (across - 2 * shift[:, :1]) * (sign / scale).unsqueeze(1)
    y = (down - 2 * shift[:, 1:]) / scale.unsqueeze(1)
    pixels = image.permute(0, 3, 1, 2).float() - GREY
    found = functional.grid_sample(pixels, grid_of(x, y), align_corners=False) + GREY
    return found.round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1)


def _moved_boxes(
    boxes: Tensor, target: Tensor, sign: Tensor, scale: Tensor, shift: Tensor, size: torch.Size
) -> tuple[Tensor, Tensor]:
    sides = torch.tensor([size[1], size[0]] * 2, device=boxes.device)
    placed = _placed(boxes, sign, scale, shift, size)
    whole = torch.where(sign.view(-1, 1, 1) < 0, placed[..., [2, 1, 0, 3]], placed)
    inside = whole.clamp_min(0).minimum(sides)
    share = _area(inside) / _area(whole).clamp_min(1e-6)
    is_there = (share >= LEAST_LEFT) & ((inside[..., 2:] - inside[..., :2]) >= SMALLEST).all(dim=2)
    return inside, torch.where(is_there, target, ABSENT)


def _placed(boxes: Tensor, sign: Tensor, scale: Tensor, shift: Tensor, size: torch.Size) -> Tensor:
    """Where the corners come to lie; of a mirror image, what was left is right of what was right."""
    sides = torch.tensor([size[1], size[0]] * 2, device=boxes.device)
    turn = torch.stack([sign, torch.ones_like(sign)] * 2, dim=1).unsqueeze(1)
    return ((boxes / sides - 0.5) * turn * scale.view(-1, 1, 1) + shift.repeat(1, 2).unsqueeze(1) + 0.5) * sides


def _area(boxes: Tensor) -> Tensor:
    return (boxes[..., 2] - boxes[..., 0]).clamp_min(0) * (boxes[..., 3] - boxes[..., 1]).clamp_min(0)


def _coloured(image: Tensor, draw: Tensor, most: float) -> Tensor:
    """Contrast about the mean, brightness, and the strength of each channel."""
    change = (1 + most * (2 * draw - 1)).view(-1, 1, 1, 5)
    pixels = image.float()
    mean = pixels.mean(dim=(1, 2, 3), keepdim=True)
    pixels = ((pixels - mean) * change[..., :1] + mean * change[..., 1:2]) * change[..., 2:]
    return pixels.round().clamp(0, 255).to(torch.uint8)
