"""Networks that say of each pixel what it shows: uint8 [B, H, W, 3] of any size in, logits [B, C, H, W] out.

Shapes: B pictures, H x W pixels, h x w pixels as the network sees them, C classes.
"""

from collections.abc import Iterable, Mapping, Sequence
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from models.pruning import Units
from models.vision.networks import Pixels, Residual, ScaledConv2d, Whitening, gelu, made, read, with_plain_convolutions

LEVELS = 4
PATCH = 2  # pixels of a side that the first layer takes together, and the last one gives back
STEP = PATCH * 2 ** (LEVELS - 1)  # sizes that all levels halve without a rest are its multiples
STEM_PIXELS = 0.1  # spread of the first logits


class SegmentationNetwork(nn.Module):
    """A network over pictures; `blocks` are its large parts.

    Args:
        schema: of the data.
        size: of a side that pictures are resized to; None for that of the training pictures.
        flip_at_test: whether `forward` takes the mean of the logits of a picture and of its mirror image.
        step: the sides of what the network sees are rounded up to multiples of it.
    """

    blocks: Iterable[nn.Module]

    def __init__(self, schema: Mapping[str, Any], *, size: int | None, flip_at_test: bool, step: int = 1) -> None:
        super().__init__()
        self.pixels = Pixels(schema, size=size)
        height, width = (-(-side // step) * step for side in self.pixels.size)
        self.pixels.size = (height, width)
        self.flip_at_test = flip_at_test

    def logits(self, pixels: Tensor) -> Tensor:
        """Logits [B, C, h, w] of normalized pixels [B, 3, h, w]."""
        raise NotImplementedError

    def units(self) -> list[Units]:
        """What structured pruning may take out."""
        raise ValueError("this network cannot be pruned: leave prune.ratio out")

    def folded(self) -> "SegmentationNetwork":
        """The network as it predicts, with what training alone needs computed away."""
        return deepcopy(self).eval()

    def score(self, image: Tensor) -> Tensor:
        """Logits [B, C, H, W] in training."""
        return self._resized(self.logits(self.pixels(image)), image)

    def forward(self, image: Tensor) -> Tensor:
        """Logits [B, C, H, W] of pictures uint8 [B, H, W, 3]."""
        pixels = self.pixels(image)
        logits = self.logits(pixels)
        if self.flip_at_test:
            logits = (logits + self.logits(pixels.flip(3)).flip(3)) / 2
        return self._resized(logits, image)

    def _resized(self, logits: Tensor, image: Tensor) -> Tensor:
        size = image.shape[1:3]
        if torch.compiler.is_exporting() or logits.shape[2:] != size:
            logits = functional.interpolate(logits, size, mode="bilinear")
        return logits


class Down(nn.Module):
    """One level of the way down: a convolution, and what pairs of more add to it.

    Args:
        inputs: channels.
        width: channels of the result.
        hidden: channels between the two of a pair.
        depth: pairs.
    """

    def __init__(self, inputs: int, width: int, hidden: int, depth: int) -> None:
        super().__init__()
        self.enter = ScaledConv2d(inputs, width, 3)
        self.pairs = nn.Sequential(*(Residual(width, hidden) for _ in range(depth)))

    def forward(self, hidden: Tensor) -> Tensor:
        """Return [B, width, h, w]."""
        found: Tensor = self.pairs(gelu(self.enter(hidden)))
        return found


class Up(nn.Module):
    """One level of the way up: what comes from below is doubled in size and joined with the level's own.

    A convolution of both one after the other is the sum of one of each; that of the smaller picture is a quarter of
    the work before the picture grows.

    Args:
        below: channels of what comes from below.
        level: channels of the level on the way down.
        width: channels of the result.
    """

    def __init__(self, below: int, level: int, width: int) -> None:
        super().__init__()
        self.below = ScaledConv2d(below, width, 3)
        self.skip = ScaledConv2d(level, width, 3)
        self.join = ScaledConv2d(width, width, 3)

    def forward(self, below: Tensor, level: Tensor) -> Tensor:
        """Return [B, width, h, w] of [B, below, h / 2, w / 2] and [B, level, h, w]."""
        grown = functional.interpolate(self.below(below), scale_factor=2.0, mode="nearest")
        hidden = gelu((grown + self.skip(level)) * 0.5**0.5)
        return hidden + gelu(self.join(hidden))


class Fine(nn.Module):
    """From patches back to single pixels: what the first level says of each, joined with the pixels themselves.

    Where an edge runs within a patch, only the pixels tell.

    Args:
        below: channels of the first level.
        width: channels of the result.
    """

    def __init__(self, below: int, width: int) -> None:
        super().__init__()
        self.below = ScaledConv2d(below, PATCH * PATCH * width, 3)
        self.skip = ScaledConv2d(3, width, 3)
        self.join = ScaledConv2d(width, width, 3)

    def forward(self, below: Tensor, pixels: Tensor) -> Tensor:
        """Return [B, width, h, w] of [B, below, h / 2, w / 2] and pixels [B, 3, h, w]."""
        grown = functional.pixel_shuffle(self.below(below), PATCH)
        hidden = gelu((grown + self.skip(pixels)) * 0.5**0.5)
        return hidden + gelu(self.join(hidden))


class UNet(SegmentationNetwork):
    """U-Net (Ronneberger et al., 2015, arXiv 1505.04597) of patches of 2 x 2 pixels, its first layer whitening.

    No statistics of batches: weights are standardized instead, so that ranks and batches are alike. Four levels. The
    logits of coarse levels are added to those of the pixels, as in FCN-8s (Long et al., 2015, arXiv 1411.4038): what
    something is they know best, and they learn it without all that lies between.

    Args:
        schema: of the data.
        width_0: channels of single pixels, at the end.
        width_1: channels of the first level, of patches; the others' follow.
        width_2: the second's.
        width_3: the third's.
        width_4: the deepest one's.
        depth: pairs of convolutions of the second level; the others have one.
        input_size: side that pictures are resized to; None for that of the training pictures.
        flip_at_test: see `SegmentationNetwork`.
        hidden: channels between the two convolutions of each level's pairs; None for the widths.
        ups: channels of the levels on the way up, from the first; None for the widths.
    """

    def __init__(
        self,
        schema: Mapping[str, Any],
        *,
        width_0: int,
        width_1: int,
        width_2: int,
        width_3: int,
        width_4: int,
        depth: int,
        input_size: int | None,
        flip_at_test: bool,
        hidden: Sequence[int | None] = (None,) * LEVELS,
        ups: Sequence[int | None] = (None,) * (LEVELS - 1),
    ) -> None:
        super().__init__(schema, size=input_size, flip_at_test=flip_at_test, step=STEP)
        self.whitening = Whitening(schema)
        widths = (width_1, width_2, width_3, width_4)
        inputs = (self.whitening.channels, *widths)
        between = [own or width for own, width in zip(hidden, widths, strict=True)]
        backs = [own or width for own, width in zip(ups, widths, strict=False)]
        depths = (1, depth, 1, 1)
        self.downs = nn.ModuleList(Down(*sizes) for sizes in zip(inputs, widths, between, depths, strict=False))
        belows = [*backs[1:], width_4]
        self.ups = nn.ModuleList(Up(*sizes) for sizes in zip(belows, widths, backs, strict=False))
        self.num_classes = len(schema["classes"])
        self.fine = Fine(backs[0], width_0)
        self.head = self._head(width_0)
        self.coarse = nn.ModuleList(map(self._head, (width_4, *reversed(backs[1:]))))

    def _head(self, width: int) -> nn.Conv2d:
        head = nn.Conv2d(width, self.num_classes, 1)
        # Not at zero: gradients of the levels would begin at nothing, and rounding would decide where they go.
        nn.init.normal_(head.weight, std=STEM_PIXELS * width**-0.5)
        nn.init.zeros_(head.bias)  # type: ignore[arg-type]
        return head

    @property
    def blocks(self) -> Iterable[nn.Module]:  # type: ignore[override]
        """The levels, which FSDP2 shards one by one."""
        return [*self.downs, *self.ups, self.fine]

    def logits(self, pixels: Tensor) -> Tensor:
        """Logits [B, C, h, w] of normalized pixels [B, 3, h, w]."""
        hidden = gelu(functional.conv2d(pixels, self.whitening.kernels, stride=PATCH))
        levels: list[Tensor] = []
        for down in self.downs:
            hidden = down(functional.max_pool2d(hidden, 2) if levels else hidden)
            levels.append(hidden)
        known = self.coarse[0](hidden)
        for index, (up, level) in enumerate(zip(reversed(self.ups), reversed(levels[:-1]), strict=True), start=1):
            hidden = up(hidden, level)
            known = functional.interpolate(known, scale_factor=2.0, mode="nearest")
            if index < len(self.coarse):
                known = known + self.coarse[index](hidden)
        logits: Tensor = self.head(self.fine(hidden, pixels))
        return logits + functional.interpolate(known, scale_factor=float(PATCH), mode="nearest")

    def folded(self) -> SegmentationNetwork:
        """The network with plain convolutions."""
        return with_plain_convolutions(self)

    def units(self) -> list[Units]:
        """Channels of each level down, those within its pairs, and channels of each level up."""
        found = []
        for index, down in enumerate(self.downs):
            name, number = f"downs.{index}", index + 1
            is_deepest = number == LEVELS
            after = (
                [f"ups.{index - 1}.below", "coarse.0"] if is_deepest else [f"downs.{number}.enter", f"ups.{index}.skip"]
            )
            pairs = range(len(down.pairs))  # type: ignore[arg-type]
            first, second = ([f"{name}.pairs.{pair}.{part}" for pair in pairs] for part in ("first", "second"))
            width, hidden = down.pairs[0].second.weight.shape[:2]  # type: ignore[index, union-attr]
            found.append(Units(f"width_{number}", width, (*made(f"{name}.enter", *second), *read(*first, *after))))
            # Of a pruned network the two may differ; without this the one would follow the other.
            found.append(Units(f"hidden_{number}", hidden, (*made(*first), *read(*second))))
        for index, up in enumerate(self.ups):
            name = f"ups.{index}"
            after = [f"ups.{index - 1}.below", f"coarse.{len(self.ups) - index}"] if index else ["fine.below"]
            tied = (*made(f"{name}.below", f"{name}.skip", f"{name}.join"), *read(f"{name}.join", *after))
            found.append(Units(f"up_{index + 1}", up.join.out_channels, tied))  # type: ignore[union-attr, arg-type]
        return found
