"""The detector as a graph from bytes of pixels.

Shapes: B pictures, H x W pixels, D detections.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from models.graph import Graph

ROWS = 4  # of the example
OUTPUTS = ("boxes", "scores", "labels", "count")
NEAR = 0.02  # how far sides may be from torch's, as a share of a hundred pixels, and scores, for a detection to be its
TOLERANCE = 2e-2

Arrays = Sequence[NDArray[Any]]


class Detector(nn.Module):
    """Pictures uint8 [B, H, W, 3] to what is in them, the surest first, after non-maximum suppression.

    Gives boxes [B, D, 4] (left, top, right, bottom in pixels of the given pictures), scores [B, D], labels int64 [B, D]
    and count int64 [B]: the first `count` of the D are detections, the rest pads with zeros and label -1.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Find objects in pictures of any size."""
        found = self.network(image)
        labels = found[..., 5].to(torch.int64)
        return found[..., :4], found[..., 4], labels, (labels >= 0).sum(dim=1)


def joined(outputs: Mapping[str, Tensor]) -> Tensor:
    """What a graph gives as detections [B, D, 6]."""
    columns = outputs["scores"], outputs["labels"].to(outputs["scores"].dtype)
    return torch.cat([outputs["boxes"], torch.stack(columns, dim=2)], dim=2)


def graph_of(network: nn.Module, schema: Mapping[str, Any]) -> Graph:
    """The detector as a graph of any number of pictures of one size, whichever; resizing is in the graph."""
    height, width = schema["image_size"]
    image = torch.arange(ROWS * (height + 3) * (width + 5) * 3).view(ROWS, height + 3, width + 5, 3) % 251
    return Graph(
        name="model",
        module=Detector(network).eval(),
        inputs={"image": image.to(torch.uint8)},
        outputs=OUTPUTS,
        dynamic={"image": {0: "rows", 1: "height", 2: "width"}},
        tolerance=TOLERANCE,
        paired=paired,
    )


def paired(found: Arrays, expected: Arrays) -> tuple[Arrays, Arrays]:
    """Each expected detection beside the one found that is the same; whether there is one is a decision.

    Of two detections equally sure, rounding decides which comes first: places in the list mean nothing.
    """
    names = dict(zip(OUTPUTS, range(len(OUTPUTS)), strict=True))
    ours, theirs = ([part[names[name]] for name in OUTPUTS[:3]] for part in (found, expected))
    rows, places = np.nonzero(theirs[2] >= 0)
    boxes, scores, labels = (part[rows] for part in ours)  # of the picture of each expected one, [n, D, ..]
    expected_box, expected_score, label = (part[rows, places] for part in theirs)
    scale = np.maximum(1.0, np.abs(expected_box).max(axis=1, initial=1.0) / 100)
    away = np.abs(boxes - expected_box[:, None]).max(axis=2) / scale[:, None]
    off = np.maximum(away, np.abs(scores - expected_score[:, None]))
    off = np.where(labels == label[:, None], off, np.inf)
    chosen = off.argmin(axis=1) if len(off) else np.zeros(0, np.int64)
    is_same = off.min(axis=1, initial=np.inf) <= NEAR
    number = np.flatnonzero(is_same)
    surplus = int((found[names["count"]] - expected[names["count"]]).clip(0).sum())
    is_right = np.concatenate([is_same, np.zeros(surplus, bool)])
    return (
        [boxes[number, chosen[number]], scores[number, chosen[number]], is_right],
        [expected_box[number], expected_score[number], np.ones_like(is_right)],
    )
