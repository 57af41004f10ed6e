"""Torchvision's one-stage detectors as networks of ours, with published weights or without; see also `two_stage`.

Shapes: B pictures, L anchors of all levels, C classes; torchvision's class 0 is the background.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
import torchvision
from torch import Tensor, nn
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.image_list import ImageList
from torchvision.ops import box_iou

from models.detection import boxes
from models.detection.networks import LEAST_SCORE, MOST, MOST_CANDIDATES, DetectionNetwork
from models.vision.networks import Pixels
from models.vision.pretrained import keep_statistics, published_of, replace, take_weights

ARCHITECTURES = (
    "fcos_resnet50_fpn",
    "retinanet_resnet50_fpn",
    "retinanet_resnet50_fpn_v2",
    "ssd300_vgg16",
    "ssdlite320_mobilenet_v3_large",
)


class TorchvisionDetector(DetectionNetwork):
    """A detector of torchvision for the data's classes.

    Losses are torchvision's, picture by picture and then their mean, and no layer has statistics of a batch: ranks add
    up to one process. With published weights BatchNorm keeps theirs, without weights GroupNorm stands where it was.

    Args:
        schema: of the data.
        architecture: among `ARCHITECTURES`.
        weights: name of published weights, such as DEFAULT, which are downloaded; None to train from scratch.
        input_size: side that pictures are resized to; None for that of the training pictures, or 300 and 320 where the
            architecture has its own.
        most_overlap: of two detections of a class.
        anchor_scale: by which the published sizes of anchors are multiplied; only RetinaNet can have another than 1.
    """

    anchors: Tensor

    def __init__(
        self,
        schema: Mapping[str, Any],
        *,
        architecture: str,
        weights: str | None,
        input_size: int | None,
        most_overlap: float,
        anchor_scale: float,
    ) -> None:
        super().__init__()
        if anchor_scale != 1 and not architecture.startswith("retinanet"):
            raise ValueError(
                f"anchor_scale must be 1: {architecture} has no anchors of given sizes; got {anchor_scale}"
            )
        self.most_overlap, self.has_weights = most_overlap, weights is not None
        self.is_ssd = architecture.startswith("ssd")
        own = int(architecture.removeprefix("ssdlite").removeprefix("ssd")[:3]) if self.is_ssd else None
        self.pixels = Pixels(schema, size=input_size or own)
        self.body = body_of(architecture, weights, num_classes=len(schema["classes"]) + 1)
        self.pixels.normalize(self.body.transform.image_mean, self.body.transform.image_std)
        replace(self.body, has_weights=self.has_weights)
        if anchor_scale != 1:
            self.body.anchor_generator = scaled(self.body.anchor_generator, anchor_scale)
        with torch.no_grad():
            levels = self._levels(torch.zeros(1, 3, *self.pixels.size))
        self.sizes = [level.shape[2] * level.shape[3] for level in levels]
        pictures = ImageList(torch.zeros(1, 3, *self.pixels.size), [self.pixels.size])
        self.register_buffer("anchors", self.body.anchor_generator(pictures, levels)[0], persistent=False)

    @property
    def blocks(self) -> Iterable[nn.Module]:  # type: ignore[override]
        """Its large parts."""
        return [self.body.backbone, self.body.head]

    def train(self, mode: bool = True) -> "TorchvisionDetector":
        """Switch to training; the statistics of published weights stay what they are."""
        super().train(mode)
        keep_statistics(self.body)
        return self

    def score(self, image: Tensor, boxes: Tensor, target: Tensor, crowd: Tensor) -> Tensor:
        """Loss of a batch in training, the mean over its pictures, a scalar; nothing is learnt of a crowd's box."""
        sides = torch.tensor([image.shape[2], image.shape[1]] * 2, device=boxes.device)
        scale = torch.tensor([self.pixels.size[1], self.pixels.size[0]] * 2, device=boxes.device) / sides
        answers = self.body.head(self._levels(self.pixels(image)))
        losses = []
        for row in range(len(image)):
            is_own = (target[row] >= 0) & ~crowd[row]
            wanted = [{"boxes": boxes[row][is_own] * scale, "labels": target[row][is_own] + 1}]
            one = {name: values[row : row + 1] for name, values in answers.items()}
            losses.append(sum(self._losses(wanted, one).values(), torch.zeros((), device=image.device)))
        return torch.stack(losses).mean() if losses else answers["bbox_regression"].sum() * torch.nan

    def forward(self, image: Tensor) -> Tensor:
        """Detections [B, D, 6] of pictures uint8 [B, H, W, 3]."""
        answers = self.body.head(self._levels(self.pixels(image)))
        height, width = self.pixels.size
        left, top, right, bottom = self._located(answers["bbox_regression"].float()).unbind(dim=2)
        across, down = image.shape[2] / width, image.shape[1] / height
        sides = [left.clamp(0, width) * across, top.clamp(0, height) * down]
        sides += [right.clamp(0, width) * across, bottom.clamp(0, height) * down]
        return boxes.detections(
            torch.stack(sides, dim=2),
            self._scores(answers),
            most_overlap=self.most_overlap,
            least_score=LEAST_SCORE,
            most_candidates=MOST_CANDIDATES,
            most=MOST,
        )

    def _levels(self, pixels: Tensor) -> list[Tensor]:
        found = self.body.backbone(pixels)
        return [found] if isinstance(found, Tensor) else list(found.values())

    def _losses(self, wanted: list[dict[str, Tensor]], answers: dict[str, Tensor]) -> dict[str, Tensor]:
        body: Any = self.body
        if self.is_ssd:
            overlap = box_iou(wanted[0]["boxes"], self.anchors)
            none = torch.full((len(self.anchors),), -1, device=self.anchors.device)
            matched = body.proposal_matcher(overlap) if len(overlap) else none
            found: dict[str, Tensor] = body.compute_loss(wanted, answers, [self.anchors], [matched])
        elif "bbox_ctrness" in answers:
            found = body.compute_loss(wanted, answers, [self.anchors], self.sizes)
        else:
            found = body.compute_loss(wanted, answers, [self.anchors])
        return found

    def _scores(self, answers: dict[str, Tensor]) -> Tensor:
        logits = answers["cls_logits"].float()
        if self.is_ssd:
            return logits.softmax(dim=2)[..., 1:]
        scores = logits.sigmoid()[..., 1:]
        return (scores * answers["bbox_ctrness"].float().sigmoid()).sqrt() if "bbox_ctrness" in answers else scores

    def _located(self, regression: Tensor) -> Tensor:
        """Boxes [B, L, 4], in pixels of the resized picture."""
        coder: Any = self.body.box_coder
        if hasattr(coder, "decode_single"):
            rows = len(self.anchors)
            flat: Tensor = coder.decode_single(regression.reshape(-1, 4), self.anchors.repeat(regression.shape[0], 1))
            return flat.reshape(-1, rows, 4)
        found: Tensor = coder.decode(regression, self.anchors.expand_as(regression))
        return found


def body_of(architecture: str, weights: str | None, *, num_classes: int) -> Any:
    """Make a detector of torchvision; published weights are taken where their sizes fit.

    Raises ValueError for weights that there are not.
    """
    body = torchvision.models.get_model(architecture, weights=None, weights_backbone=None, num_classes=num_classes)
    take_weights(body, published_of(architecture, weights))
    return body


def scaled(given: AnchorGenerator, scale: float) -> AnchorGenerator:
    """Anchors of the same shapes in another size."""
    sizes = tuple(tuple(size * scale for size in level) for level in given.sizes)
    return AnchorGenerator(sizes, given.aspect_ratios)
