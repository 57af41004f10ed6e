"""Torchvision's two-stage detectors, Faster and Mask R-CNN (arXiv 1506.01497, 1703.06870), as networks of ours.

Shapes: B pictures, L anchors of all levels, P proposals, R regions of all pictures, C classes; torchvision's class 0 is
the background.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.roi_heads import fastrcnn_loss
from torchvision.ops import roi_align

from models.detection import boxes
from models.detection.masks import mask_losses
from models.detection.networks import LEAST_SCORE, MOST, MOST_CANDIDATES, DetectionNetwork
from models.detection.pretrained import body_of, scaled
from models.detection.proposals import Proposals, drawn, proposals, sampled
from models.dropout import RowSeeds
from models.vision.networks import Pixels
from models.vision.pretrained import keep_statistics, replace

ARCHITECTURES = (
    "fasterrcnn_resnet50_fpn",
    "fasterrcnn_resnet50_fpn_v2",
    "fasterrcnn_mobilenet_v3_large_fpn",
    "fasterrcnn_mobilenet_v3_large_320_fpn",
    "maskrcnn_resnet50_fpn",
    "maskrcnn_resnet50_fpn_v2",
)
LEARNT_FROM = 1000  # boxes of a picture that are drawn in training, of which the second stage sees some
PROPOSED = 300  # proposals of a picture otherwise
FIRST, SECOND = 256, 512  # what the stages learn from in each picture
FIRST_SHARE, SECOND_SHARE = 0.5, 0.25  # of them that may be objects
SMOOTH = 1 / 9  # of the L1 loss of boxes


class TwoStageDetector(DetectionNetwork):
    """A two-stage detector of torchvision for the data's classes.

    Losses are torchvision's, picture by picture and then their mean. What they are made of is chosen by a hash of the
    step, the picture's place in the global batch and the anchor, not by a generator: ranks add up to one process.
    BatchNorm as in `TorchvisionDetector`.

    Args:
        schema: of the data.
        architecture: among `ARCHITECTURES`.
        weights: name of published weights, such as DEFAULT, which are downloaded; None to train from scratch.
        input_size: side that pictures are resized to; None for that of the training pictures.
        most_overlap: of two detections of a class.
        anchor_scale: by which the published sizes of anchors, 32 to 512 pixels, are multiplied.
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
        self.has_masks = architecture.startswith("maskrcnn")
        if self.has_masks and not schema.get("masks"):
            raise ValueError(f"architecture={architecture} learns masks, and the data have none: give data.masks=true")
        self.most_overlap = most_overlap
        self.pixels = Pixels(schema, size=input_size)
        self.body = body_of(architecture, weights, num_classes=len(schema["classes"]) + 1)
        self.pixels.normalize(self.body.transform.image_mean, self.body.transform.image_std)
        replace(self.body, has_weights=weights is not None)
        self.body.rpn.anchor_generator = scaled(self.body.rpn.anchor_generator, anchor_scale)
        self.seeds = RowSeeds()
        with torch.no_grad():
            levels = self.body.backbone(torch.zeros(1, 3, *self.pixels.size))
            pictures = ImageList(torch.zeros(1, 3, *self.pixels.size), [self.pixels.size])
            anchors = self.body.rpn.anchor_generator(pictures, list(levels.values()))[0]
            # The pooler learns the levels' strides from its first call.
            for pooler in (self.body.roi_heads.box_roi_pool, self.body.roi_heads.mask_roi_pool):
                if pooler is not None:
                    pooler(levels, [torch.tensor([[0.0, 0.0, 8.0, 8.0]])], [self.pixels.size])
        per_place = self.body.rpn.anchor_generator.num_anchors_per_location()
        shapes = [level.shape[2] * level.shape[3] for level in levels.values()]
        self.sizes = [places * num for places, num in zip(shapes, per_place, strict=True)]
        self.register_buffer("anchors", anchors, persistent=False)

    @property
    def blocks(self) -> Iterable[nn.Module]:  # type: ignore[override]
        """Its large parts."""
        heads = self.body.roi_heads
        masks = [heads.mask_head, heads.mask_predictor] if self.has_masks else []
        return [self.body.backbone, self.body.rpn.head, heads.box_head, heads.box_predictor, *masks]

    def train(self, mode: bool = True) -> "TwoStageDetector":
        """Switch to training; the statistics of published weights stay what they are."""
        super().train(mode)
        keep_statistics(self.body)
        return self

    def score(self, image: Tensor, boxes: Tensor, target: Tensor, crowd: Tensor, **given_masks: Tensor) -> Tensor:
        """Loss of a batch in training, the mean over its pictures, a scalar; nothing is learnt of a crowd's box."""
        levels = self.body.backbone(self.pixels(image))
        logits, deltas = self._proposed(levels)
        sides = torch.tensor([image.shape[2], image.shape[1]] * 2, device=boxes.device)
        scale = torch.tensor(self.pixels.size[::-1] * 2, device=boxes.device) / sides
        given = {"boxes": boxes * scale, "labels": target + 1}
        if self.has_masks:
            given |= {"masks": given_masks["masks"], "frames": given_masks["frames"] * scale}
        is_own = (target >= 0) & ~crowd
        wanted = [{name: values[row][own] for name, values in given.items()} for row, own in enumerate(is_own)]
        seeds = self.seeds(len(image), image.device)
        found = drawn(logits.detach(), self._located(deltas.detach()), seeds + 2, most=LEARNT_FROM)
        chosen = [self._chosen(found, row, own, seeds[row]) for row, own in enumerate(wanted)]
        answers = [*self._second(levels, [one["boxes"] for one in chosen])]
        if self.has_masks:
            answers.append(self._masks(levels, [one["boxes"][one["labels"] > 0] for one in chosen]))
        if not chosen:  # sharded parts must be asked even so: other ranks wait for them
            return torch.stack([part.sum() for part in (logits, deltas, *answers)]).sum() * torch.nan
        first = [self._first_loss(logits[row], deltas[row], own, seeds[row]) for row, own in enumerate(wanted)]
        losses = torch.stack(first) + self._second_losses(answers[0], answers[1], chosen)
        return (losses + mask_losses(answers[2], chosen, wanted) if self.has_masks else losses).mean()

    def forward(self, image: Tensor) -> Tensor:
        """Detections [B, D, 6] of pictures uint8 [B, H, W, 3]."""
        levels = self.body.backbone(self.pixels(image))
        logits, deltas = self._proposed(levels)
        found = proposals(logits, self._located(deltas), self.sizes, most=PROPOSED)
        heads = self.body.roi_heads
        regions = found.boxes.flatten(0, 1)
        logits, deltas = heads.box_predictor(heads.box_head(self._pooled(heads.box_roi_pool, levels, found.boxes)))
        located = heads.box_coder.decode_single(deltas.float(), regions)
        shape = (*found.boxes.shape[:2], logits.shape[1])
        scores = logits.float().softmax(dim=1).view(shape) * found.is_there.unsqueeze(2)
        sides = torch.tensor([image.shape[2], image.shape[1]] * 2, device=image.device)
        across = sides / torch.tensor(self.pixels.size[::-1] * 2, device=image.device)
        detected = boxes.detections(
            self._cut(located.view(*shape, 4)[:, :, 1:]) * across,
            scores[..., 1:],
            most_overlap=self.most_overlap,
            least_score=LEAST_SCORE,
            most_candidates=MOST_CANDIDATES,
            most=MOST,
        )
        if not self.has_masks:
            return detected
        cells = self._masks_of(levels, detected[..., :4] / across, detected[..., 5].long())
        return torch.cat([detected, cells.flatten(2)], dim=2)

    def _proposed(self, levels: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """The first stage's logits [B, L] and changes of anchors [B, L, 4]."""
        logits, deltas = self.body.rpn.head(list(levels.values()))
        return _flat(logits, 1).squeeze(2).float(), _flat(deltas, 4).float()

    def _located(self, deltas: Tensor) -> Tensor:
        """The first stage's boxes [B, L, 4], cut to the resized picture."""
        coder: Any = self.body.rpn.box_coder
        anchors = self.anchors.repeat(deltas.shape[0], 1)
        return self._cut(coder.decode_single(deltas.reshape(-1, 4), anchors).view(-1, len(self.anchors), 4))

    def _first_loss(self, logits: Tensor, deltas: Tensor, wanted: dict[str, Tensor], seed: Tensor) -> Tensor:
        """Of one picture: whether there is an object at some anchors, and where."""
        rpn: Any = self.body.rpn
        (labels,), (matched,) = rpn.assign_targets_to_anchors([self.anchors], [wanted])
        ids = torch.arange(len(labels), device=labels.device)
        chosen = sampled(labels, ids, seed, num=FIRST, share=FIRST_SHARE)
        objects = chosen[labels[chosen] > 0]
        change = rpn.box_coder.encode_single(matched[objects], self.anchors[objects])
        located = functional.smooth_l1_loss(deltas[objects], change, beta=SMOOTH, reduction="sum")
        entropy = functional.binary_cross_entropy_with_logits(logits[chosen], labels[chosen], reduction="sum")
        return (entropy + located) / max(1, len(chosen))

    def _second(self, levels: Mapping[str, Tensor], regions: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Logits [R, C] and changes of boxes [R, C 4] of some regions of each picture."""
        heads: Any = self.body.roi_heads
        own = list(regions) or [self.anchors[:0]]
        pooled = heads.box_roi_pool(levels, own, [self.pixels.size] * len(own))
        logits, deltas = heads.box_predictor(heads.box_head(pooled))
        return logits.float(), deltas.float()

    def _masks(self, levels: Mapping[str, Tensor], regions: Sequence[Tensor]) -> Tensor:
        """Logits of the masks of each class in some regions of each picture, [R, C, side, side]."""
        heads: Any = self.body.roi_heads
        own = list(regions) or [self.anchors[:0]]
        pooled = heads.mask_roi_pool(levels, own, [self.pixels.size] * len(own))
        logits: Tensor = heads.mask_predictor(heads.mask_head(pooled))
        return logits.float()

    def _masks_of(self, levels: Mapping[str, Tensor], located: Tensor, labels: Tensor) -> Tensor:
        """Masks of detections [B, D, 4] of classes [B, D], from 0 to 1, [B, D, side, side]."""
        heads: Any = self.body.roi_heads
        logits = heads.mask_predictor(heads.mask_head(self._pooled(heads.mask_roi_pool, levels, located)))
        own = (labels.flatten() + 1).view(-1, 1, 1, 1).expand(-1, 1, *logits.shape[2:])
        cells: Tensor = logits.float().sigmoid().gather(1, own).view(*labels.shape, *logits.shape[2:])
        return cells * (labels >= 0).unsqueeze(2).unsqueeze(3)

    def _second_losses(self, logits: Tensor, deltas: Tensor, chosen: Sequence[dict[str, Tensor]]) -> Tensor:
        """Of each picture [B]: which class some proposals are of, and where that is."""
        counts = [len(one["boxes"]) for one in chosen]
        parts = zip(torch.split(logits, counts), torch.split(deltas, counts), chosen, strict=True)
        losses = [fastrcnn_loss(*own, [one["labels"]], [one["changes"]]) for *own, one in parts]
        return torch.stack([entropy + located for entropy, located in losses])

    def _chosen(self, found: Proposals, row: int, wanted: dict[str, Tensor], seed: Tensor) -> dict[str, Tensor]:
        """The proposals and objects of one picture that the second stage learns from, with what they should be."""
        heads: Any = self.body.roi_heads
        own = found.is_there[row]
        objects = wanted["boxes"]
        regions = torch.cat([found.boxes[row][own], objects])
        numbers = len(self.anchors) + torch.arange(len(objects), device=objects.device)
        ids = torch.cat([found.anchors[row][own], numbers])
        (matched,), (labels,) = heads.assign_targets_to_proposals([regions], [objects], [wanted["labels"]])
        places = sampled(labels, ids, seed + 1, num=SECOND, share=SECOND_SHARE)
        regions, matched, labels = regions[places], matched[places], labels[places]
        fitting = objects[matched] if len(objects) else regions
        return {
            "boxes": regions,
            "labels": labels,
            "matched": matched,
            "changes": heads.box_coder.encode_single(fitting, regions),
        }

    def _pooled(self, pooler: Any, levels: Mapping[str, Tensor], regions: Tensor) -> Tensor:
        """What the levels show of regions [B, P, 4], [B P, channels, h, w].

        Torchvision's pooler gathers the regions of each level, whose number depends on the picture; a graph cannot.
        Here all are pooled of all levels and the right one is taken.
        """
        num, flat = regions.shape[1], regions.flatten(0, 1)
        picture = torch.arange(regions.shape[0], device=flat.device).repeat_interleave(num).unsqueeze(1)
        rois = torch.cat([picture.to(flat.dtype), flat], dim=1)
        level = pooler.map_levels([flat]).view(-1, 1, 1, 1)
        own = [values for name, values in levels.items() if name in pooler.featmap_names]
        found = torch.zeros((), device=flat.device)
        for number, (values, scale) in enumerate(zip(own, pooler.scales, strict=True)):
            one = roi_align(values.float(), rois, pooler.output_size, scale, pooler.sampling_ratio)
            found = torch.where(level == number, one, found)
        return found

    def _cut(self, located: Tensor) -> Tensor:
        """Boxes [.., 4] cut to the resized picture."""
        height, width = self.pixels.size
        left, top, right, bottom = located.unbind(dim=-1)
        sides = [left.clamp(0, width), top.clamp(0, height), right.clamp(0, width), bottom.clamp(0, height)]
        return torch.stack(sides, dim=-1)


def _flat(levels: Sequence[Tensor], num: int) -> Tensor:
    """What a head says of the anchors of each level, [B, A num, h, w], as one [B, L, num], in the anchors' order."""
    shapes = [(level.shape[0], level.shape[1:].numel() // num, num) for level in levels]
    parts = [level.permute(0, 2, 3, 1).reshape(shape) for level, shape in zip(levels, shapes, strict=True)]
    return torch.cat(parts, dim=1)
