"""The segmentation network as a graph from bytes of pixels.

Shapes: B rows, H x W pixels, C classes.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from models.graph import Graph

ROWS = 2  # of the example
TOLERANCE = 1e-3  # extreme pictures have logits of hundreds: torch itself was 1.7e-4 from what float64 gives


class Segmenter(nn.Module):
    """Pictures uint8 [B, H, W, 3] to the class of each pixel, int64 [B, H, W], and its probability, [B, H, W]."""

    def __init__(self, scorer: nn.Module) -> None:
        super().__init__()
        self.scorer = scorer

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Score pictures of any size."""
        shares = torch.softmax(self.scorer(image).float(), dim=1)
        return shares.argmax(dim=1), shares.amax(dim=1)


def graph_of(scorer: nn.Module, schema: Mapping[str, Any]) -> Graph:
    """The network as a graph of any number of pictures of one size, whichever; resizing, twice, is in the graph."""
    height, width = schema["image_size"]
    image = torch.arange(ROWS * (height + 3) * (width + 5) * 3).view(ROWS, height + 3, width + 5, 3) % 251
    return Graph(
        name="model",
        module=Segmenter(scorer).eval(),
        inputs={"image": image.to(torch.uint8)},
        outputs=("class_map", "probability"),
        dynamic={"image": {0: "rows", 1: "height", 2: "width"}},
        tolerance=TOLERANCE,
    )
