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
from models.vision.networks import Pixels, Residual, ScaledConv2d, gelu, made, read, with_plain_convolutions

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


class Stage(nn.Sequential):
    """Halve the picture, then add to it what pairs of convolutions make of it: [B, width, H / 2, W / 2], rounded down.

    Args:
        inputs: channels.
        width: channels of the result.
        hidden: channels between the two of a pair.
        depth: pairs.
    """

    def __init__(self, inputs: int, width: int, hidden: int, depth: int) -> None:
        enter = nn.Sequential(ScaledConv2d(inputs, width, 2, stride=2), nn.GELU())
        super().__init__(enter, *(Residual(width, hidden) for _ in range(depth)))


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
        width: channels of stride 4; stride 2 has half as many, stride 8 twice, the others three times.
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
        fine = sizes.get("width_2", -(-width // 2)), sizes.get("hidden_2", -(-width // 2))
        usual = (width, 2 * width, 3 * width, 3 * width)
        widths = [sizes.get(f"width_{stride}", own) for stride, own in zip((STEM, *STRIDES), usual, strict=True)]
        between = [sizes.get(f"hidden_{stride}", own) for stride, own in zip((STEM, *STRIDES), usual, strict=True)]
        across, joined, classes, sides = (
            sizes.get(name, usual[1]) for name in ("across", "joined", "classes", "sides")
        )
        self.stem = nn.Sequential(
            *(ScaledConv2d(3, fine[0], 2, stride=2), nn.GELU(), ScaledConv2d(*fine, 3), nn.GELU()),
            *(ScaledConv2d(fine[1], widths[0], 2, stride=2), Residual(widths[0], between[0])),
        )
        self.stages = nn.ModuleList(
            Stage(*each) for each in zip(widths, widths[1:], between[1:], (depth, 1, 1), strict=False)
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
            vote=True,
            most_overlap=self.most_overlap,
            least_score=LEAST_SCORE,
            most_candidates=MOST_CANDIDATES,
            most=MOST,
        )

    def units(self) -> list[Units]:
        """Channels of each stride, those within its blocks, of the levels joined, and of the head."""
        pairs = {name: module for name, module in self.named_modules() if isinstance(module, Residual)}
        # Of the stem, two convolutions and what leads to stride 4.
        found = [
            Units("width_2", self.stem[0].out_channels, (*made("stem.0"), *read("stem.2"))),  # type: ignore[arg-type]
            Units("hidden_2", self.stem[2].out_channels, (*made("stem.2"), *read("stem.4"))),  # type: ignore[arg-type]
        ]
        for number, stride in enumerate((STEM, *STRIDES)):
            own = [name for name in pairs if name.startswith(f"stages.{number - 1}." if number else "stem.")]
            first, second = ([f"{name}.{part}" for name in own] for part in ("first", "second"))
            enter = f"stages.{number - 1}.0.0" if number else "stem.4"
            after = [f"stages.{number}.0.0"] if number < len(self.stages) else []
            after += [f"across.{number - 1}"] if number else []
            width, hidden = pairs[own[0]].second.weight.shape[:2]
            found.append(Units(f"width_{stride}", width, (*made(enter, *second), *read(*first, *after))))
            found.append(Units(f"hidden_{stride}", hidden, (*made(*first), *read(*second))))
        joined, across = self.joined.weight.shape[:2]
        levels = [Slice(f"across.{number}.{part}", 0) for number in range(len(STRIDES)) for part in ("weight", "bias")]
        head = self.head
        return [
            *found,
            Units("across", across, (*levels, *read("joined"))),
            Units("joined", joined, (*made("joined"), *read("head.classes", "head.sides"))),
            Units("classes", head.classes.out_channels, (*made("head.classes"), *read("head.logits"))),
            Units("sides", head.sides.out_channels, (*made("head.sides"), *read("head.distances"))),
        ]

    def folded(self) -> "FcosSmall":
        """The network with plain convolutions."""
        return with_plain_convolutions(self)


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
