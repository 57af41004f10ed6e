"""Networks that find objects. Each takes uint8 [B, H, W, 3] of any size and returns detections [B, D, 6].

Shapes: B pictures, H x W pixels, L locations of all levels, C classes, D detections: left, top, right, bottom in pixels
of the given picture, score, class; rows of score 0 and class -1 pad.
"""

from collections.abc import Iterable, Mapping, Sequence
from copy import deepcopy
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from models.detection import boxes
from models.detection.targets import loss_of, targets_of
from models.pruning import Slice, Units
from models.vision.networks import Pixels, ScaledConv2d, gelu

LEAST_SCORE = 0.05  # below, detections are left out
MOST_CANDIDATES = 256  # of a picture, before suppression
MOST = 100  # detections of a picture
RARE = 0.01  # how sure an untrained network is of each class anywhere (focal loss, arXiv 1708.02002)
STEM = 4  # pixels of a side that become one
STRIDES = (8, 16, 32)
REACH = 8  # strides to the farthest side of a box that a level is for


class DetectionNetwork(nn.Module):
    """A network that finds objects; `blocks` are its large parts.

    One that `has_masks` takes packed masks and their frames in training, too (see `models.detection.masks`), and puts
    behind the six columns of each detection the cells of its mask, from 0 to 1.
    """

    blocks: Iterable[nn.Module]
    has_masks = False

    def score(self, image: Tensor, boxes: Tensor, target: Tensor, crowd: Tensor) -> Tensor:
        """Loss of a batch in training, the mean over its pictures, a scalar."""
        raise NotImplementedError

    def forward(self, image: Tensor) -> Tensor:
        """Detections [B, D, 6] of pictures uint8 [B, H, W, 3]."""
        raise NotImplementedError

    def units(self) -> list[Units]:
        """What structured pruning may take out."""
        raise ValueError("this network cannot be pruned: leave prune.ratio out")

    def folded(self) -> "DetectionNetwork":
        """The network as it predicts, with what training alone needs computed away."""
        return deepcopy(self).eval()


class Block(nn.Module):
    """Perhaps halve the picture, then add to it what two convolutions make of it.

    Args:
        inputs: channels.
        width: channels of the result.
        hidden: channels between the two.
        halve: whether it is halved; where it is not, `inputs` is `width`.
    """

    def __init__(self, inputs: int, width: int, hidden: int, *, halve: bool) -> None:
        super().__init__()
        self.enter = ScaledConv2d(inputs, width, 2, stride=2) if halve else None
        self.first = ScaledConv2d(width, hidden, 3)
        self.second = ScaledConv2d(hidden, width, 3)

    def forward(self, hidden: Tensor) -> Tensor:
        """Return [B, width, H / 2, W / 2], rounded down, or of the same height and width."""
        if self.enter is not None:
            hidden = gelu(self.enter(hidden))
        return hidden + gelu(self.second(gelu(self.first(hidden))))


class Head(nn.Module):
    """What locations say, the same for all levels: logits of classes and distances to a box's sides, in strides.

    Args:
        width: channels of what it looks at.
        classes: channels behind the logits.
        sides: channels behind the distances.
        num_classes: C.
    """

    def __init__(self, width: int, classes: int, sides: int, num_classes: int) -> None:
        super().__init__()
        self.classes, self.sides = ScaledConv2d(width, classes, 3), ScaledConv2d(width, sides, 3)
        self.logits, self.distances = nn.Conv2d(classes, num_classes, 1), nn.Conv2d(sides, 4, 1)
        for layer, bias in ((self.logits, torch.tensor(RARE).logit().item()), (self.distances, 1.5)):
            nn.init.normal_(layer.weight, std=0.1 * layer.in_channels**-0.5)
            nn.init.constant_(layer.bias, bias)  # type: ignore[arg-type]

    def forward(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """Return [B, C, h, w] and [B, 4, h, w]."""
        logits = self.logits(gelu(self.classes(hidden)))
        return logits, functional.softplus(self.distances(gelu(self.sides(hidden))))


class FcosSmall(DetectionNetwork):
    """A small FCOS (arXiv 1904.01355): each location says what is there and how far its sides are; no anchors.

    Three levels, of strides 8, 16 and 32, joined from the top down (arXiv 1612.03144). Instead of a branch for
    centredness, scores learn how well their boxes fit (arXiv 2006.04388). No statistics of a batch.

    Args:
        schema: of the data.
        width: channels of stride 4; stride 8 has twice as many, the others three times.
        depth: blocks of stride 8.
        input_size: side that pictures are resized to; None for that of the training pictures.
        most_overlap: of two detections of a class.
        sizes: channels by the names of `units`, where pruning has left other numbers.
    """

    points: Tensor
    strides: Tensor
    reach: Tensor

    def __init__(
        self,
        schema: Mapping[str, Any],
        *,
        width: int,
        depth: int,
        input_size: int | None,
        most_overlap: float,
        sizes: Mapping[str, int] = MappingProxyType({}),
    ) -> None:
        super().__init__()
        self.most_overlap = most_overlap
        self.objects = max(float(schema["objects_per_image"]), 1e-3)
        self.pixels = Pixels(schema, size=input_size)
        usual = (width, 2 * width, 3 * width, 3 * width)
        widths = [sizes.get(f"width_{stride}", own) for stride, own in zip((STEM, *STRIDES), usual, strict=True)]
        between = [sizes.get(f"hidden_{stride}", own) for stride, own in zip((STEM, *STRIDES), usual, strict=True)]
        across, joined, classes, sides = (
            sizes.get(name, usual[1]) for name in ("across", "joined", "classes", "sides")
        )
        stem = ScaledConv2d(3, widths[0], STEM, stride=STEM)
        self.stem = nn.Sequential(stem, Block(widths[0], widths[0], between[0], halve=False))
        self.stages = nn.ModuleList(
            nn.Sequential(*(Block(after if more else before, after, hidden, halve=not more) for more in range(blocks)))
            for before, after, hidden, blocks in zip(widths, widths[1:], between[1:], (depth, 1, 1), strict=False)
        )
        self.across = nn.ModuleList(nn.Conv2d(own, across, 1) for own in widths[1:])
        self.joined = ScaledConv2d(across, joined, 3)
        self.head = Head(joined, classes, sides, len(schema["classes"]))
        for name, values in zip(("points", "strides", "reach"), locations(self.pixels.size), strict=True):
            self.register_buffer(name, values, persistent=False)

    @property
    def blocks(self) -> Sequence[nn.Module]:  # type: ignore[override]
        """Its large parts."""
        return [self.stem, *self.stages, self.head]

    def answers(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Logits [B, L, C] and boxes [B, L, 4], in pixels of the resized picture, of pixels [B, 3, h, w]."""
        hidden, levels = gelu(self.stem(pixels)), []
        for stage in self.stages:
            hidden = stage(hidden)
            levels.append(hidden)
        above: Tensor | None = None
        found = []
        for across, level in reversed(list(zip(self.across, levels, strict=True))):
            own = across(level)
            if above is not None:
                own = own + functional.interpolate(above, size=own.shape[2:], mode="nearest")
            above = own
            found.append(self.head(gelu(self.joined(gelu(own)))))
        logits, distances = (torch.cat([one[part].flatten(2) for one in reversed(found)], dim=2).mT for part in (0, 1))
        away = distances.float() * self.strides.unsqueeze(1)
        return logits, torch.cat([self.points - away[..., :2], self.points + away[..., 2:]], dim=2)

    def score(self, image: Tensor, boxes: Tensor, target: Tensor, crowd: Tensor) -> Tensor:
        """Loss of a batch in training, the mean over its pictures, a scalar; boxes are in pixels of `image`."""
        sides = torch.tensor([image.shape[2], image.shape[1]] * 2, device=boxes.device)
        own = torch.tensor([self.pixels.size[1], self.pixels.size[0]] * 2, device=boxes.device)
        wanted = targets_of(self.points, self.strides, self.reach, boxes * (own / sides), target, crowd)
        return loss_of(*self.answers(self.pixels(image)), wanted, objects=self.objects)

    def forward(self, image: Tensor) -> Tensor:
        """Detections [B, D, 6] of pictures uint8 [B, H, W, 3]."""
        logits, located = self.answers(self.pixels(image))
        height, width = self.pixels.size
        left, top, right, bottom = located.unbind(dim=2)
        across, down = image.shape[2] / width, image.shape[1] / height
        sides = [left.clamp(0, width) * across, top.clamp(0, height) * down]
        sides += [right.clamp(0, width) * across, bottom.clamp(0, height) * down]
        return boxes.detections(
            torch.stack(sides, dim=2),
            logits.float().sigmoid(),
            most_overlap=self.most_overlap,
            least_score=LEAST_SCORE,
            most_candidates=MOST_CANDIDATES,
            most=MOST,
        )

    def units(self) -> list[Units]:
        """Channels of each stride, those within its blocks, of the levels joined, and of the head."""
        blocks = {name: module for name, module in self.named_modules() if isinstance(module, Block)}
        found = []
        for number, stride in enumerate((STEM, *STRIDES)):
            names = [name for name in blocks if name.startswith(f"stages.{number - 1}." if number else "stem.")]
            made = [f"{names[0]}.enter" if number else "stem.0", *(f"{name}.second" for name in names)]
            read = [f"{name}.first" for name in names]
            read += [f"stages.{number}.0.enter"] if number < len(self.stages) else []
            read += [f"across.{number - 1}"] if number else []
            width, hidden = blocks[names[0]].second.weight.shape[:2]
            found.append(Units(f"width_{stride}", width, (*_made(*made), *_read(*read))))
            within = (*_made(*(f"{name}.first" for name in names)), *_read(*(f"{name}.second" for name in names)))
            found.append(Units(f"hidden_{stride}", hidden, within))
        joined, across = self.joined.weight.shape[:2]
        levels = [Slice(f"across.{number}.{part}", 0) for number in range(len(STRIDES)) for part in ("weight", "bias")]
        head = self.head
        return [
            *found,
            Units("across", across, (*levels, *_read("joined"))),
            Units("joined", joined, (*_made("joined"), *_read("head.classes", "head.sides"))),
            Units("classes", head.classes.out_channels, (*_made("head.classes"), *_read("head.logits"))),
            Units("sides", head.sides.out_channels, (*_made("head.sides"), *_read("head.distances"))),
        ]

    def folded(self) -> "FcosSmall":
        """The network with plain convolutions."""
        copied = deepcopy(self).eval()
        for module in list(copied.modules()):
            for name, child in list(module.named_children()):
                if isinstance(child, ScaledConv2d):
                    setattr(module, name, child.folded())
        return copied


def _made(*layers: str) -> tuple[Slice, ...]:
    """Where the output channels of scaled convolutions lie."""
    return tuple(Slice(f"{layer}.{part}", 0) for layer in layers for part in ("weight", "bias", "gain"))


def _read(*layers: str) -> tuple[Slice, ...]:
    """Where layers' input channels lie."""
    return tuple(Slice(f"{layer}.weight", 1) for layer in layers)


def locations(size: tuple[int, int]) -> tuple[Tensor, Tensor, Tensor]:
    """Points [L, 2], strides [L] and reach [L, 2] of the levels on a picture of this height and width."""
    sides = [side // STEM for side in size]
    points, strides, reach = [], [], []
    for number, stride in enumerate(STRIDES):
        sides = [side // 2 for side in sides]
        rows, columns = ((torch.arange(side) + 0.5) * stride for side in sides)
        points.append(torch.cartesian_prod(rows, columns).flip(1))
        strides.append(torch.full((len(points[-1]),), float(stride)))
        least = 0.0 if number == 0 else REACH * STRIDES[number - 1]
        most = float("inf") if stride == STRIDES[-1] else float(REACH * stride)
        reach.append(torch.tensor([least, most]).expand(len(points[-1]), 2))
    return torch.cat(points), torch.cat(strides), torch.cat(reach)
