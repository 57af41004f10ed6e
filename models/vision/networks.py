"""Networks for pictures. Each takes uint8 [B, H, W, 3] of any size and returns logits [B, C].

Shapes: B pictures, H x W pixels, C classes.
"""

from collections.abc import Iterable, Mapping, Sequence
from copy import deepcopy
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from models.pruning import Slice, Units

SMOOTHEST = 1e-3  # of a patch's directions, those with a smaller share of the first one's variance are left out
STEP = 4  # pixels of a side by which training pictures grow
GROWING = 0.8  # of the epochs
STEEPNESS = 1.7015  # what keeps a normal variable's variance through GELU (Brock et al., 2021, arXiv 2101.08692)

gelu = functional.gelu  # not the approximation by tanh, which costs twice as much on a CPU


class Pixels(nn.Module):
    """Bytes to normalized floats [B, 3, h, w], resized to what the network was trained on.

    Args:
        schema: of the data.
        size: of a side or height and width, of the result; None for that of the training pictures.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, schema: Mapping[str, Any], *, size: int | None = None) -> None:
        super().__init__()
        height, width = schema["image_size"]
        self.size = (size, size) if size else (int(height), int(width))
        self.normalize(schema["mean"], schema["std"])

    def normalize(self, mean: Sequence[float], std: Sequence[float]) -> None:
        """Take mean and spread of each channel, in shares of 255."""
        for name, values in (("mean", mean), ("std", std)):
            self.register_buffer(name, 255 * torch.tensor(list(values)).view(3, 1, 1), persistent=False)

    def forward(self, image: Tensor, size: tuple[int, int] | None = None) -> Tensor:
        """Resize bilinearly, with antialiasing, and normalize; the bytes' memory order stays (channels last).

        Args:
            image: uint8 [B, H, W, 3].
            size: another one than its own, for training.
        """
        pixels, size = image.permute(0, 3, 1, 2).to(self.mean.dtype), size or self.size
        if torch.compiler.is_exporting() or tuple(pixels.shape[2:]) != size:
            pixels = functional.interpolate(pixels, size, mode="bilinear", antialias=True)
        return (pixels - self.mean) / self.std


def training_size(full: tuple[int, int], *, first: float, epoch: int, num_epochs: int) -> tuple[int, int]:
    """Height and width of training pictures in an epoch: `first` of the full ones, growing until four fifths are over.

    They are multiples of `STEP`, so that there are few of them, and full in the last fifth (progressive resizing,
    arXiv 2104.00298).
    """
    share = first + (1 - first) * epoch / (GROWING * num_epochs)
    if share >= 1:
        return full
    height, width = (min(side, max(STEP, STEP * round(share * side / STEP))) for side in full)
    return height, width


class VisionNetwork(nn.Module):
    """A network over pictures; `blocks` are its large parts.

    Args:
        schema: of the data.
        size: that pictures are resized to; None for that of the training pictures.
        flip_at_test: whether `forward` takes the mean of the logits of a picture and of its mirror image.

    Attributes:
        training_size: that `score` resizes pictures to; None for that of `forward`.
    """

    blocks: Iterable[nn.Module]

    def __init__(self, schema: Mapping[str, Any], *, size: int | None = None, flip_at_test: bool) -> None:
        super().__init__()
        self.pixels = Pixels(schema, size=size)
        self.flip_at_test = flip_at_test
        self.training_size: tuple[int, int] | None = None

    def logits(self, pixels: Tensor) -> Tensor:
        """Logits [B, C] of normalized pixels [B, 3, h, w]."""
        raise NotImplementedError

    def units(self) -> list[Units]:
        """What structured pruning may take out."""
        raise ValueError("this network cannot be pruned: leave prune.ratio out")

    def folded(self) -> "VisionNetwork":
        """The network as it predicts, with what training alone needs computed away."""
        return deepcopy(self).eval()

    def score(self, image: Tensor) -> Tensor:
        """Logits [B, C] in training."""
        return self.logits(self.pixels(image, self.training_size))

    def forward(self, image: Tensor) -> Tensor:
        """Logits [B, C] of pictures uint8 [B, H, W, 3]."""
        pixels = self.pixels(image)
        logits = self.logits(pixels)
        return (logits + self.logits(pixels.flip(3))) / 2 if self.flip_at_test else logits


class ScaledConv2d(nn.Conv2d):
    """A convolution of what GELU gives, its kernels of mean 0 and of one variance (scaled weight standardization).

    It keeps activations normalized without looking at them: no statistics of a batch that ranks, gradient accumulation
    and small batches would change (Brock et al., 2021, arXiv 2101.08692).
    """

    def __init__(self, inputs: int, outputs: int, size: int, *, stride: int = 1) -> None:
        super().__init__(inputs, outputs, size, stride=stride, padding=size // 2 if stride == 1 else 0)
        nn.init.zeros_(self.bias)  # type: ignore[arg-type]
        self.gain = nn.Parameter(torch.ones(outputs))

    def kernels(self) -> Tensor:
        """The weights that are convolved with."""
        fan_in = self.weight[0].numel()
        # layer_norm is what standardizes rows at a tenth of var_mean's cost.
        rows: Tensor = functional.layer_norm(self.weight.flatten(1), (fan_in,), eps=1e-4 / fan_in)
        kernels: Tensor = rows * (STEEPNESS * fan_in**-0.5 * self.gain).unsqueeze(1)
        return kernels.view_as(self.weight)

    def forward(self, hidden: Tensor) -> Tensor:
        """Convolve [B, inputs, H, W]."""
        return functional.conv2d(hidden, self.kernels(), self.bias, stride=self.stride, padding=self.padding)

    def folded(self) -> nn.Conv2d:
        """The same as a plain convolution."""
        outputs, inputs, size, _ = self.weight.shape
        plain = nn.Conv2d(inputs, outputs, size, stride=self.stride, padding=self.padding)  # type: ignore[arg-type]
        plain.weight, plain.bias = nn.Parameter(self.kernels().detach()), self.bias
        return plain


class Whitening(nn.Module):
    """Patches along the principal directions of the training pictures', each with unit variance, and their negatives.

    Fixed: what it would learn first is known (airbench, arXiv 2404.00498). Directions that hardly vary, as colours do
    in grey pictures, are left out.
    """

    kernels: Tensor

    def __init__(self, schema: Mapping[str, Any]) -> None:
        super().__init__()
        size = int(schema["patches"]["size"])
        covariance = torch.tensor(schema["patches"]["covariance"], dtype=torch.float64)
        variances, directions = torch.linalg.eigh(covariance)
        kept = variances >= SMOOTHEST * variances.max()
        kernels = (directions[:, kept] / variances[kept].sqrt()).T.reshape(-1, 3, size, size)
        # Kept in checkpoints: which sign an eigenvector has is the choice of the machine's library.
        self.register_buffer("kernels", torch.cat([kernels, -kernels]).float())
        self.channels = len(self.kernels)

    def forward(self, pixels: Tensor) -> Tensor:
        """Return [B, channels, H - 1, W - 1] of [B, 3, H, W]."""
        return functional.conv2d(pixels, self.kernels)


class Residual(nn.Module):
    """Add to a picture what two convolutions make of it.

    Args:
        width: channels of the picture.
        hidden: channels between the two.
    """

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.first = ScaledConv2d(width, hidden, 3)
        self.second = ScaledConv2d(hidden, width, 3)

    def forward(self, hidden: Tensor) -> Tensor:
        """Return [B, width, H, W]."""
        return hidden + gelu(self.second(gelu(self.first(hidden))))


class Stage(Residual):
    """Halve the picture before; `inputs` are its channels."""

    def __init__(self, inputs: int, width: int, hidden: int) -> None:
        enter = ScaledConv2d(inputs, width, 3)
        super().__init__(width, hidden)
        self.enter = enter

    def forward(self, hidden: Tensor) -> Tensor:
        """Return [B, width, H / 2, W / 2], rounded up."""
        return super().forward(gelu(functional.max_pool2d(self.enter(hidden), 2, ceil_mode=True)))


class ResNet9(VisionNetwork):
    """A whitening layer, three stages and a linear layer; no batch statistics, so that ranks and batches are alike.

    Args:
        schema: of the data.
        width_1: channels of the first stage; the others' follow.
        width_2: the second's.
        width_3: the third's.
        input_size: side that pictures are resized to; None for that of the training pictures.
        flip_at_test: see `VisionNetwork`.
        hidden_1: channels between the two convolutions of the first stage; None for `width_1`.
        hidden_2: the second's.
        hidden_3: the third's.
    """

    def __init__(
        self,
        schema: Mapping[str, Any],
        *,
        width_1: int,
        width_2: int,
        width_3: int,
        input_size: int | None,
        flip_at_test: bool,
        hidden_1: int | None = None,
        hidden_2: int | None = None,
        hidden_3: int | None = None,
    ) -> None:
        super().__init__(schema, size=input_size, flip_at_test=flip_at_test)
        self.whitening = Whitening(schema)
        widths = (self.whitening.channels, width_1, width_2, width_3)
        hidden = (hidden_1 or width_1, hidden_2 or width_2, hidden_3 or width_3)
        self.blocks: Sequence[nn.Module] = nn.ModuleList(  # type: ignore[assignment]
            Stage(inputs, width, between) for inputs, width, between in zip(widths, widths[1:], hidden, strict=False)
        )
        self.head = nn.Linear(width_3, len(schema["classes"]))
        # Not at zero: gradients of the stages would begin at nothing, and rounding would decide where they go.
        nn.init.normal_(self.head.weight, std=0.1 * width_3**-0.5)
        nn.init.zeros_(self.head.bias)

    def logits(self, pixels: Tensor) -> Tensor:
        """Logits [B, C] of normalized pixels [B, 3, h, w]."""
        hidden = gelu(self.whitening(pixels))
        for block in self.blocks:
            hidden = block(hidden)
        logits: Tensor = self.head(hidden.amax(dim=(2, 3)))
        return logits

    def folded(self) -> VisionNetwork:
        """The network with plain convolutions."""
        return with_plain_convolutions(self)

    def units(self) -> list[Units]:
        """Channels of each stage, which the sum ties together, and those between its two convolutions."""
        found = []
        for index, block in enumerate(self.blocks):
            assert isinstance(block, Stage)
            name, number = f"blocks.{index}", index + 1
            after = f"blocks.{index + 1}.enter" if number < len(self.blocks) else "head"
            tied = (*made(f"{name}.enter", f"{name}.second"), *read(f"{name}.first", after))
            between = (*made(f"{name}.first"), *read(f"{name}.second"))
            # Of a pruned network the two may differ; without this the one would follow the other.
            found.append(Units(f"width_{number}", block.second.out_channels, tied))
            found.append(Units(f"hidden_{number}", block.first.out_channels, between))
        return found


Network = TypeVar("Network", bound=nn.Module)


def with_plain_convolutions(network: Network) -> Network:
    """Return a copy of a network that computes the same without scaling its kernels."""
    copied = deepcopy(network).eval()
    for name, module in list(copied.named_modules()):
        if isinstance(module, ScaledConv2d):
            copied.set_submodule(name, module.folded())
    return copied


def made(*layers: str) -> tuple[Slice, ...]:
    """Where the output channels of scaled convolutions lie."""
    return tuple(Slice(f"{layer}.{part}", 0) for layer in layers for part in ("weight", "bias", "gain"))


def read(*layers: str) -> tuple[Slice, ...]:
    """Where layers' input channels lie."""
    return tuple(Slice(f"{layer}.weight", 1) for layer in layers)
