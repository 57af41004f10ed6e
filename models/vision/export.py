"""The image classifier as a graph from bytes of pixels.

Shapes: B rows, H x W pixels, C classes.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from models.graph import Graph

ROWS = 4  # of the example


class Classifier(nn.Module):
    """Pictures uint8 [B, H, W, 3] to calibrated probabilities [B, C] and the class, int64 [B]."""

    def __init__(self, scorer: nn.Module, calibration: nn.Module) -> None:
        super().__init__()
        self.scorer, self.calibration = scorer, calibration

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Score pictures of any size."""
        probability = torch.softmax(self.calibration(self.scorer(image)), dim=1)
        return probability, probability.argmax(dim=1)


def graph_of(scorer: nn.Module, calibration: nn.Module, schema: Mapping[str, Any]) -> Graph:
    """The classifier as a graph of any number of pictures of one size, whichever; resizing is in the graph."""
    height, width = schema["image_size"]
    image = torch.arange(ROWS * (height + 3) * (width + 5) * 3).view(ROWS, height + 3, width + 5, 3) % 251
    return Graph(
        name="model",
        module=Classifier(scorer, calibration).eval(),
        inputs={"image": image.to(torch.uint8)},
        outputs=("probability", "label"),
        dynamic={"image": {0: "rows", 1: "height", 2: "width"}},
    )
