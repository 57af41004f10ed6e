"""Any classifier of torchvision as a network of ours, with published weights or without."""

import difflib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import Tensor, nn
from torchvision.ops import StochasticDepth

from models.dropout import RowDropout
from models.vision.networks import VisionNetwork

TOGETHER = 16  # channels that GroupNorm normalizes together, or more (Wu and He, 2018, arXiv 1803.08494)


class Classifier(VisionNetwork):
    """A classifier that others have made.

    No layer has statistics of a batch, which would differ between ranks and batch sizes: with published weights
    BatchNorm keeps theirs (its scales and offsets are trained), without weights GroupNorm stands where it was.
    Dropout and stochastic depth fall alike on any number of ranks.

    Args:
        schema: of the data.
        body: pixels [B, 3, h, w] to logits [B, C]; changed in place.
        has_weights: whether its weights are published ones.
        size: that pictures are resized to; None for that of the training pictures.
        flip_at_test: see `VisionNetwork`.
    """

    def __init__(
        self, schema: Mapping[str, Any], body: nn.Module, *, has_weights: bool, size: int | None, flip_at_test: bool
    ) -> None:
        super().__init__(schema, size=size, flip_at_test=flip_at_test)
        self.body = body
        replace(body, has_weights=has_weights)
        self.depths = depths_of(body)

    @property
    def blocks(self) -> Iterable[nn.Module]:  # type: ignore[override]
        """The body's large parts, which FSDP2 shards one by one."""
        return [part for part in self.body.children() if any(True for _ in part.parameters())]

    def logits(self, pixels: Tensor) -> Tensor:
        """Logits [B, C] of normalized pixels [B, 3, h, w]."""
        logits: Tensor = self.body(pixels)
        return logits

    def train(self, mode: bool = True) -> "Classifier":
        """Switch to training; the statistics of published weights stay what they are."""
        super().train(mode)
        keep_statistics(self.body)
        return self

    def depth(self, parameter: str) -> int:
        """How many layers a parameter lies below the head: 0 for the head itself, most for what comes first."""
        return next(
            (depth for layer, depth in self.depths.items() if parameter.startswith(f"body.{layer}.")),
            max(self.depths.values(), default=0),  # of no layer: tokens and positions that are added to the first
        )


class Torchvision(Classifier):
    """A classifier of torchvision with as many outputs as there are classes.

    Args:
        schema: of the data.
        architecture: its name, as torchvision.models.list_models has it.
        weights: name of published weights, such as DEFAULT or IMAGENET1K_V1, which are downloaded; None to train from
            scratch.
        input_size: that pictures are resized to; None for the weights' own, or that of the training pictures.
        flip_at_test: see `VisionNetwork`.
        stochastic_depth: probability that a row skips the last layer, which falls towards the first; None for the
            architecture's own.
    """

    def __init__(
        self,
        schema: Mapping[str, Any],
        *,
        architecture: str,
        weights: str | None,
        input_size: int | None,
        flip_at_test: bool,
        stochastic_depth: float | None,
    ) -> None:
        published = weights_of(architecture, weights)
        how: Any = None if published is None else published.transforms()
        size = input_size or (how.crop_size[0] if how else None)
        body = body_of(architecture, published, num_classes=len(schema["classes"]))
        if stochastic_depth is not None:
            scale_depth(body, stochastic_depth, architecture)
        has_weights = published is not None
        super().__init__(schema, body, has_weights=has_weights, size=size, flip_at_test=flip_at_test)
        if how:
            self.pixels.normalize(how.mean, how.std)


class RowDepth(nn.Module):
    """Stochastic depth (Huang et al., 2016) by rows, alike on any number of ranks."""

    def __init__(self, probability: float) -> None:
        super().__init__()
        self.drop = RowDropout(probability)

    def forward(self, hidden: Tensor) -> Tensor:
        """Drop whole rows of [B, ...] in training, with the rest scaled up."""
        if not self.training:
            return hidden
        ones = torch.ones(len(hidden), *(1,) * (hidden.ndim - 1), dtype=hidden.dtype, device=hidden.device)
        kept: Tensor = self.drop(ones)
        return hidden * kept


def scale_depth(body: nn.Module, wanted: float, architecture: str) -> None:
    """Make `wanted` the largest probability of stochastic depth. Raises ValueError where there is none."""
    layers = [layer for layer in body.modules() if isinstance(layer, StochasticDepth)]
    most = max((layer.p for layer in layers), default=0.0)
    if not most:
        raise ValueError(no_depth(architecture, wanted))
    for layer in layers:
        layer.p *= wanted / most


def no_depth(architecture: str, wanted: float) -> str:
    """What to say to whoever wants a probability of layers that are not there."""
    return f"stochastic_depth must be null for {architecture}, which has no layers that can be skipped; got {wanted}"


def depths_of(body: nn.Module) -> dict[str, int]:
    """The layers that follow one another, by name, and how many there are after each; norms go with what is before."""
    levels: list[list[str]] = []
    for name in _layers(body, ""):
        if levels and all(parameter.ndim < 2 for parameter in body.get_submodule(name).parameters()):
            levels[-1].append(name)
        else:
            levels.append([name])
    return {name: depth for depth, names in enumerate(reversed(levels)) for name in names}


def _layers(module: nn.Module, prefix: str) -> Iterator[str]:
    """Names of the layers of a network, a list of them being none itself."""
    for name, child in module.named_children():
        if any(True for _ in child.parameters()):
            yield from _layers(child, f"{prefix}{name}.") if _is_stack(child) else (f"{prefix}{name}",)


def _is_stack(module: nn.Module) -> bool:
    """Tell a list of layers, or what has a list of blocks of one kind, from a layer."""
    lists = (nn.Sequential, nn.ModuleList)  # their subclasses are layers, such as a convolution with its norm
    if type(module) in lists:
        return True
    kinds = ([type(one) for one in child.children()] for child in module.children() if type(child) in lists)
    return any(len(kind) > 1 and len(set(kind)) == 1 and not issubclass(kind[0], nn.Sequential) for kind in kinds)


def weights_of(architecture: str, weights: str | None) -> Any:
    """Published weights by name; None for none. Raises ValueError naming what there is."""
    known = torchvision.models.list_models(module=torchvision.models)
    if architecture not in known:
        near = difflib.get_close_matches(architecture, known, 3) or known[:8]
        raise ValueError(
            f"architecture must be a classifier of torchvision, such as {', '.join(near)}: {architecture!r}"
        )
    return published_of(architecture, weights)


def published_of(architecture: str, weights: str | None) -> Any:
    """Published weights of a network of torchvision; None for none. Raises ValueError naming what there is."""
    if weights is None:
        return None
    published = torchvision.models.get_model_weights(architecture)
    names = ["DEFAULT", *(one.name for one in published)]
    if weights not in names:
        raise ValueError(f"weights of {architecture} must be null or among {', '.join(names)}; got {weights!r}")
    return published[weights]


def body_of(architecture: str, published: Any, *, num_classes: int) -> nn.Module:
    """Make a network of torchvision with so many outputs; published weights are taken where their sizes fit."""
    builder = torchvision.models.get_model_builder(architecture)
    options: dict[str, Any] = {"num_classes": num_classes}
    kind = {"googlenet": torchvision.models.GoogLeNet, "inception_v3": torchvision.models.Inception3}.get(architecture)
    if kind is not None:  # outputs beside the logits in training, and a slow first draw of weights
        options |= {"aux_logits": False, "init_weights": published is None}
    body: nn.Module = builder(weights=None, **options)
    take_weights(body, published)
    return body


def take_weights(body: nn.Module, published: Any) -> None:
    """Load published weights where their sizes fit; nothing where there are none."""
    if published is None:
        return
    try:
        own, given = body.state_dict(), published.get_state_dict(progress=False, check_hash=True)
    except OSError as error:  # also where nothing outside can be reached
        raise ValueError(
            f"model.weights={published.name}: they cannot be downloaded from {published.url} ({error}); put that file "
            f"into {Path(torch.hub.get_dir(), 'checkpoints')}, or leave model.weights out"
        ) from error
    fitting = {name: value for name, value in given.items() if name in own and value.shape == own[name].shape}
    body.load_state_dict(fitting, strict=False)


def keep_statistics(body: nn.Module) -> None:
    """Let the batch statistics of published weights be what they are, also in training."""
    for module in body.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.eval()


def replace(module: nn.Module, *, has_weights: bool) -> None:
    """Put what falls alike on ranks where a network's dropout is, and GroupNorm where untrained BatchNorm is."""
    for name, child in module.named_children():
        if isinstance(child, nn.BatchNorm2d) and not has_weights:
            setattr(module, name, grouped(child))
        elif isinstance(child, nn.Dropout) and name != "attn_drop":  # whose probability, 0, timm's attention reads
            setattr(module, name, RowDropout(child.p))
        elif isinstance(child, StochasticDepth):
            setattr(module, name, RowDepth(child.p))
        elif type(child).__name__ == "DropPath":  # timm's
            setattr(module, name, RowDepth(float(child.drop_prob)))  # type: ignore[arg-type]
        else:
            replace(child, has_weights=has_weights)


def grouped(norm: nn.BatchNorm2d) -> nn.Module:
    """GroupNorm where BatchNorm was, with the activation that timm's has within."""
    channels = norm.num_features
    groups = next(num for num in range(max(1, channels // TOGETHER), 0, -1) if channels % num == 0)
    found = nn.GroupNorm(groups, channels, eps=norm.eps)
    activation = getattr(norm, "act", None)
    return found if activation is None else nn.Sequential(found, activation)
