"""Pictures changed at random, a whole batch at once on its device: a pure function of (seed, epoch, sample).

Shapes: B pictures, H rows, W columns of pixels. Random numbers are hashes, not states: a picture is changed alike
whatever batch and rank it is in.
"""

from collections.abc import Sequence
from typing import Annotated, Any, TypedDict

import numpy as np
import torch
from annotated_types import Ge, Le
from torch import Tensor

from datamodules import policies
from datamodules.loading import Batch, TensorLoader, rank_and_world_size
from datamodules.policies import Policy

FULL = 0xFFFFFFFF
FLIP, SHIFT, CUT, MIX, BOX, POLICY = range(6)  # streams of random numbers


class Augmentation(TypedDict):
    """How training pictures are changed.

    Attributes:
        flip: whether every second epoch a picture is its mirror image (alternating flip, arXiv 2404.00498).
        translate: pixels that a picture is moved at most, each way; what comes in at the edge is a reflection.
        policy: further operations, of random kind and strength: none, trivial (TrivialAugment) or rand (RandAugment).
        num_ops: of rand: how many operations follow each other.
        magnitude: of rand: their strength, from 0 to 30.
        cutout: side in pixels of a square that is set to the mean colour (arXiv 1708.04552); 0 for none.
        mixup: alpha of the Beta distribution of shares in which two pictures are mixed (arXiv 1710.09412); 0 for none.
        cutmix: the same for a box of the one that is put into the other (arXiv 1905.04899); 0 for none. Where both are
            set, each picture gets one of the two.
    """

    flip: bool
    translate: Annotated[int, Ge(0)]
    policy: Policy
    num_ops: Annotated[int, Ge(1), Le(14)]
    magnitude: Annotated[int, Ge(0), Le(30)]
    cutout: Annotated[int, Ge(0)]
    mixup: Annotated[float, Ge(0), Le(10)]
    cutmix: Annotated[float, Ge(0), Le(10)]


def uniform(seed: int, epoch: int, rows: Tensor, stream: int, num: int) -> Tensor:
    """Random numbers in [0, 1) of samples, float32 [B, num]; the same wherever and whenever they are asked for."""
    key = int(np.random.SeedSequence((seed, epoch, stream)).generate_state(1)[0])
    places = torch.arange(num, device=rows.device) * 0x9E3779B9
    mixed = _mixed((_mixed(rows.unsqueeze(1) ^ key) + places) & FULL)
    return (mixed >> 8).to(torch.float32) * 2.0**-24


def _mixed(value: Tensor) -> Tensor:
    """A bijection of 32 bits whose every output bit depends on every input bit (lowbias32, C. Wellons, 2018)."""
    value = value & FULL
    value = ((value ^ (value >> 16)) * 0x7FEB352D) & FULL
    value = ((value ^ (value >> 15)) * 0x846CA68B) & FULL
    return value ^ (value >> 16)


def augmented(images: Tensor, rows: Tensor, how: Augmentation, *, seed: int, epoch: int, fill: Tensor) -> Tensor:
    """Flip, move, change by a policy and cut uint8 pictures [B, H, W, 3], whose samples' numbers are `rows` [B]."""
    height, width = images.shape[1:3]
    if how["flip"]:
        is_flipped = (uniform(seed, 0, rows, FLIP, 1) < 0.5) ^ bool(epoch % 2)
        images = torch.where(is_flipped.view(-1, 1, 1, 1), images.flip(2), images)
    if how["translate"]:
        most = min(how["translate"], height - 1, width - 1)
        shift = (uniform(seed, epoch, rows, SHIFT, 2) * (2 * most + 1)).long() - most
        images = moved(images, shift)
    if how["policy"] != "none":
        num_ops = how["num_ops"] if how["policy"] == "rand" else 1
        draws = uniform(seed, epoch, rows, POLICY, policies.DRAWS * num_ops)
        options: Any = {"policy": how["policy"], "num_ops": num_ops, "magnitude": how["magnitude"]}
        images = policies.changed(images, draws, fill, **options)
    if how["cutout"]:
        images = torch.where(_boxes(seed, epoch, rows, how["cutout"], height, width).unsqueeze(3), fill, images)
    return images


def moved(images: Tensor, shift: Tensor) -> Tensor:
    """Pictures moved down and right by whole pixels [B, 2], reflected at the edges."""
    size, height, width = images.shape[:3]
    down = _reflected(torch.arange(height, device=images.device) - shift[:, :1], height)
    right = _reflected(torch.arange(width, device=images.device) - shift[:, 1:], width)
    pictures = torch.arange(size, device=images.device).view(-1, 1, 1)
    return images[pictures, down.unsqueeze(2), right.unsqueeze(1)]


def _reflected(places: Tensor, size: int) -> Tensor:
    places = places.abs()
    return torch.where(places >= size, 2 * (size - 1) - places, places)


def middles(size: Sequence[int], device: torch.device) -> tuple[Tensor, Tensor]:
    """Where the middles of pixels are down and across, [H] and [W], from -1 to 1."""
    down, across = ((2 * torch.arange(side, device=device) + 1) / side - 1 for side in size)
    return down, across


def grid_of(x: Tensor, y: Tensor) -> Tensor:
    """Where each pixel is looked up, for `grid_sample`, [B, H, W, 2], of columns x [B, W] and rows y [B, H].

    Not by `affine_grid`, whose matrix product may be rounded by the size of the batch, and so of the rank.
    """
    size = (len(x), y.shape[1], x.shape[1])
    return torch.stack([x.unsqueeze(1).expand(size), y.unsqueeze(2).expand(size)], dim=3)


def _boxes(seed: int, epoch: int, rows: Tensor, side: int, height: int, width: int) -> Tensor:
    """Where the square is, bool [B, H, W]; it may hang over the edge."""
    centre = uniform(seed, epoch, rows, CUT, 2)
    found = []
    for index, size in enumerate((height, width)):
        first = (centre[:, index : index + 1] * size).long() - side // 2
        place = torch.arange(size, device=rows.device)
        found.append((place >= first) & (place < first + side))
    return found[0].unsqueeze(2) & found[1].unsqueeze(1)


def mixed(
    images: Tensor, others: Tensor, rows: Tensor, how: Augmentation, *, seed: int, epoch: int
) -> tuple[Tensor, Tensor]:
    """Mix each picture [B, H, W, 3] with another; return them and the share that is its own, float32 [B]."""
    height, width = images.shape[1:3]
    draw, which = uniform(seed, epoch, rows, MIX, 2).unbind(dim=1)
    is_box = which < 0.5 if how["mixup"] and how["cutmix"] else torch.full_like(which, bool(how["cutmix"])) > 0
    share = torch.where(is_box, beta(draw, how["cutmix"]), beta(draw, how["mixup"]))
    # A box of the other picture, its area 1 - share, within the picture.
    sides = (1 - share).sqrt().unsqueeze(1) * torch.tensor([height, width], device=rows.device)
    sides = sides.round().long()
    room = torch.tensor([height, width], device=rows.device) - sides + 1
    first = (uniform(seed, epoch, rows, BOX, 2) * room).long()
    inside = [
        (torch.arange(size, device=rows.device) >= first[:, index : index + 1])
        & (torch.arange(size, device=rows.device) < (first + sides)[:, index : index + 1])
        for index, size in enumerate((height, width))
    ]
    box = inside[0].unsqueeze(2) & inside[1].unsqueeze(1)
    area = box.sum(dim=(1, 2)) / (height * width)
    share = torch.where(is_box, 1 - area, share)
    weight = torch.where(is_box.view(-1, 1, 1), 1.0 - box.float(), share.view(-1, 1, 1)).unsqueeze(3)
    return (weight * images + (1 - weight) * others).round().to(torch.uint8), share


def beta(draw: Tensor, alpha: float) -> Tensor:
    """Numbers of the Beta(alpha, alpha) distribution out of uniform ones, by its inverse; 1 where alpha is 0."""
    from scipy.special import betaincinv

    if not alpha:
        return torch.ones_like(draw)
    return torch.from_numpy(betaincinv(alpha, alpha, draw.cpu().double().numpy())).to(draw)


class AugmentedLoader(TensorLoader):
    """Training batches of `image`, `target` and `row`, the pictures changed as `how` says.

    Where pictures are mixed, a batch has `other_target` and `share`, too: the loss is of `target` by `share`, and of
    `other_target` by what is left. The other picture is the one before it in the global batch.

    Args:
        tensors: of the training rows.
        how: see `Augmentation`.
        fill: the mean colour, uint8 [3].
        options: of `TensorLoader`.
    """

    def __init__(self, tensors: dict[str, Tensor], how: Augmentation, *, fill: list[int], **options: Any) -> None:
        super().__init__(tensors, **options)
        self.how = how
        self.fill = torch.tensor(fill, dtype=torch.uint8, device=tensors["image"].device)

    def _gather(self, order: Tensor | None, first: int, last: int) -> list[Batch]:
        batches = super()._gather(order, first, last)
        for number, batch in enumerate(batches, start=first):
            batch["image"] = self._augmented(batch["image"], batch["row"])
            if self.how["mixup"] or self.how["cutmix"]:
                self._mix(batch, self._others(order, number))
        return batches

    def _coming(self, order: Tensor | None, first: int, last: int) -> Tensor:
        rows = super()._coming(order, first, last)
        if not self.how["mixup"] and not self.how["cutmix"]:
            return rows
        return torch.cat([rows, *(self._others(order, number) for number in range(first, last))])

    def _others(self, order: Tensor | None, number: int) -> Tensor:
        """The rows that this rank's rows of a global mini-batch are mixed with."""
        begin = number * self.batch_size
        end = min(begin + self.batch_size, self.num_rows)
        window = torch.arange(begin, end, device=self._device) if order is None else order[begin:end]
        rank, world_size = rank_and_world_size()
        return window.roll(1)[rank::world_size]

    def _augmented(self, images: Tensor, rows: Tensor) -> Tensor:
        return augmented(images, rows, self.how, seed=self.seed, epoch=self.epoch, fill=self.fill)

    def _mix(self, batch: Batch, others: Tensor) -> None:
        other = {name: self._taken(name, others) for name in ("image", "target", "row")}
        images = self._augmented(other["image"], other["row"])
        options = {"seed": self.seed, "epoch": self.epoch}
        batch["image"], batch["share"] = mixed(batch["image"], images, batch["row"], self.how, **options)
        batch["other_target"] = other["target"]
