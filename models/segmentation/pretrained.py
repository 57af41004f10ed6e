"""Any segmentation network of torchvision as one of ours, with published weights or without."""

from collections.abc import Iterable, Mapping
from typing import Any

import torchvision
from torch import Tensor, nn

from models.segmentation.networks import SegmentationNetwork
from models.vision.pretrained import keep_statistics, published_of, replace, take_weights


class TorchvisionSegmenter(SegmentationNetwork):
    """FCN, DeepLabV3 or LR-ASPP of torchvision, with as many outputs as there are classes.

    No layer has statistics of a batch: see `models.vision.pretrained.Torchvision`.

    Args:
        schema: of the data.
        architecture: its name, such as lraspp_mobilenet_v3_large.
        weights: name of published weights, such as DEFAULT, which are downloaded; None to train from scratch.
        input_size: that pictures are resized to; None for that of the training pictures.
        flip_at_test: see `SegmentationNetwork`.
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
        super().__init__(schema, size=input_size, flip_at_test=flip_at_test)
        published = weights_of(architecture, weights)
        if published is not None:
            how: Any = published.transforms()
            self.pixels.normalize(how.mean, how.std)
        self.has_weights = published is not None
        self.body = body_of(architecture, published, num_classes=len(schema["classes"]))
        replace(self.body, has_weights=self.has_weights)

    @property
    def blocks(self) -> Iterable[nn.Module]:  # type: ignore[override]
        """The body's large parts, which FSDP2 shards one by one."""
        return [part for part in self.body.children() if any(True for _ in part.parameters())]

    def logits(self, pixels: Tensor) -> Tensor:
        """Logits [B, C, h, w] of normalized pixels [B, 3, h, w]."""
        logits: Tensor = self.body(pixels)["out"]
        return logits

    def train(self, mode: bool = True) -> "TorchvisionSegmenter":
        """Switch to training; the statistics of published weights stay what they are."""
        super().train(mode)
        keep_statistics(self.body)
        return self


def weights_of(architecture: str, weights: str | None) -> Any:
    """Published weights by name; None for none. Raises ValueError naming what there is."""
    known = torchvision.models.list_models(module=torchvision.models.segmentation)
    if architecture not in known:
        raise ValueError(f"architecture must be one of torchvision's, {', '.join(known)}; got {architecture!r}")
    return published_of(architecture, weights)


def body_of(architecture: str, published: Any, *, num_classes: int) -> nn.Module:
    """Make a network of torchvision with so many outputs; published weights are taken where their sizes fit."""
    builder = torchvision.models.get_model_builder(architecture)
    body: nn.Module = builder(weights=None, weights_backbone=None, num_classes=num_classes)
    take_weights(body, published)
    return body
