"""The detector as a graph from bytes of pixels.

Shapes: B pictures, H x W pixels, D detections.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from models.detection.networks import DetectionNetwork
from models.graph import Graph

ROWS = 4  # of the example
OUTPUTS = ("boxes", "scores", "labels", "count")
MASKS = "masks"  # the fifth, of a network that has them
COLUMNS = 6  # of a detection, before its mask
NEAR = 0.02  # how far sides may be from torch's, as a share of a hundred pixels, and scores, for a detection to be its
TOLERANCE = 2e-2

Arrays = Sequence[NDArray[Any]]


class Detector(nn.Module):
    """Pictures uint8 [B, H, W, 3] to what is in them, the surest first, after non-maximum suppression.

    Gives boxes [B, D, 4] (left, top, right, bottom in pixels of the given pictures), scores [B, D], labels int64 [B, D]
    and count int64 [B]: the first `count` of the D are detections, the rest pads with zeros and label -1. A network
    that has masks also gives those, [B, D, S, S] from 0 to 1, each filling its box.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """Find objects in pictures of any size."""
        found = self.network(image)
        labels = found[..., 5].to(torch.int64)
        answers = found[..., :4], found[..., 4], labels, (labels >= 0).sum(dim=1)
        side = math.isqrt(found.shape[2] - COLUMNS)
        return (*answers, found[..., COLUMNS:].unflatten(2, (side, side))) if side else answers


def joined(outputs: Mapping[str, Tensor]) -> Tensor:
    """What a graph gives as detections [B, D, 6], or with the cells of their masks behind."""
    columns = outputs["scores"], outputs["labels"].to(outputs["scores"].dtype)
    masks = [outputs[MASKS].flatten(2)] if MASKS in outputs else []
    return torch.cat([outputs["boxes"], torch.stack(columns, dim=2), *masks], dim=2)


def graph_of(network: DetectionNetwork, schema: Mapping[str, Any]) -> Graph:
    """The detector as a graph of any number of pictures of one size, whichever; resizing is in the graph."""
    height, width = schema["image_size"]
    image = torch.arange(ROWS * (height + 3) * (width + 5) * 3).view(ROWS, height + 3, width + 5, 3) % 251
    return Graph(
        name="model",
        module=Detector(network).eval(),
        inputs={"image": image.to(torch.uint8)},
        outputs=(*OUTPUTS, MASKS) if network.has_masks else OUTPUTS,
        dynamic={"image": {0: "rows", 1: "height", 2: "width"}},
        tolerance=TOLERANCE,
        paired=paired,
    )


def paired(found: Arrays, expected: Arrays) -> tuple[Arrays, Arrays]:
    """Each expected detection beside the one found that is the same; whether there is one is a decision.

    Of two detections equally sure, rounding decides which comes first: places in the list mean nothing.
    """
    names = dict(zip(OUTPUTS, range(len(OUTPUTS)), strict=True))
    told, true = ([part[names[name]] for name in OUTPUTS[:3]] for part in (found, expected))
    rows, places = np.nonzero(true[2] >= 0)
    boxes, scores, labels = (part[rows] for part in told)  # of the picture of each expected one, [n, D, ..]
    expected_box, expected_score, label = (part[rows, places] for part in true)
    scale = np.maximum(1.0, np.abs(expected_box).max(axis=1, initial=1.0) / 100)
    away = np.abs(boxes - expected_box[:, None]).max(axis=2) / scale[:, None]
    off = np.maximum(away, np.abs(scores - expected_score[:, None]))
    off = np.where(labels == label[:, None], off, np.inf)
    chosen = off.argmin(axis=1) if len(off) else np.zeros(0, np.int64)
    is_same = off.min(axis=1, initial=np.inf) <= NEAR
    number = np.flatnonzero(is_same)
    surplus = int((found[names["count"]] - expected[names["count"]]).clip(0).sum())
    is_right = np.concatenate([is_same, np.zeros(surplus, bool)])
    ours, theirs = [boxes[number, chosen[number]], scores[number, chosen[number]]], [expected_box, expected_score]
    if len(expected) > len(OUTPUTS):
        ours.append(found[len(OUTPUTS)][rows[number], chosen[number]])
        theirs.append(expected[len(OUTPUTS)][rows, places])
    return [*ours, is_right], [*(part[number] for part in theirs), np.ones_like(is_right)]
