"""Any classifier of torchvision as a network of ours, with published weights or without."""

import difflib
from collections.abc import Iterable, Mapping
from typing import Any

import torch
import torchvision
from torch import Tensor, nn
from torchvision.ops import StochasticDepth

from models.dropout import RowDropout
from models.vision.networks import VisionNetwork

TOGETHER = 16  # channels that GroupNorm normalizes together, or more (Wu and He, 2018, arXiv 1803.08494)


class Torchvision(VisionNetwork):
    """A classifier of torchvision with as many outputs as there are classes.

    No layer has statistics of a batch, which would differ between ranks and batch sizes: with published weights
    BatchNorm keeps theirs (its scales and offsets are trained), without weights GroupNorm stands where it was.
    Dropout and stochastic depth fall alike on any number of ranks.

    Args:
        schema: of the data.
        architecture: its name, as torchvision.models.list_models has it.
        weights: name of published weights, such as DEFAULT or IMAGENET1K_V1, which are downloaded; None to train from
            scratch.
        input_size: that pictures are resized to; None for the weights' own, or that of the training pictures.
        flip_at_test: see `VisionNetwork`.
    """

    def __init__(
        self,
        schema: Mapping[str, Any],
        *,
        architecture: str,
        weights: str | None,
        input_size: int | None,
        flip_at_test: bool,
    ) -> None:
        published = weights_of(architecture, weights)
        how: Any = None if published is None else published.transforms()
        size = input_size or (how.crop_size[0] if how else None)
        super().__init__(schema, size=size, flip_at_test=flip_at_test)
        if how:
            self.pixels.normalize(how.mean, how.std)
        self.has_weights = published is not None
        self.body = body_of(architecture, published, num_classes=len(schema["classes"]))
        replace(self.body, has_weights=self.has_weights)

    @property
    def blocks(self) -> Iterable[nn.Module]:  # type: ignore[override]
        """The body's large parts, which FSDP2 shards one by one."""
        return [part for part in self.body.children() if any(True for _ in part.parameters())]

    def logits(self, pixels: Tensor) -> Tensor:
        """Logits [B, C] of normalized pixels [B, 3, h, w]."""
        logits: Tensor = self.body(pixels)
        return logits

    def train(self, mode: bool = True) -> "Torchvision":
        """Switch to training; the statistics of published weights stay what they are."""
        super().train(mode)
        keep_statistics(self.body)
        return self


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
    own, given = body.state_dict(), published.get_state_dict(progress=False, check_hash=True)
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
            channels = child.num_features
            groups = next(num for num in range(max(1, channels // TOGETHER), 0, -1) if channels % num == 0)
            setattr(module, name, nn.GroupNorm(groups, channels, eps=child.eps))
        elif isinstance(child, nn.Dropout):
            setattr(module, name, RowDropout(child.p))
        elif isinstance(child, StochasticDepth):
            setattr(module, name, RowDepth(child.p))
        else:
            replace(child, has_weights=has_weights)
