"""The text classifier as a graph from token ids.

Shapes: B rows, L tokens, C classes.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from models.classification import THRESHOLD
from models.graph import Graph

ROWS, LENGTH = 4, 12  # of the example


class Classifier(nn.Module):
    """Token ids to calibrated probabilities [B, C] and labels: the class, int64 [B], or yes and no of each, [B, C]."""

    def __init__(self, scorer: nn.Module, calibration: nn.Module, *, is_multi_label: bool) -> None:
        super().__init__()
        self.scorer, self.calibration, self.is_multi_label = scorer, calibration, is_multi_label

    def forward(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Score token ids [B, L], each row padded at its end."""
        logits = self.calibration(self.scorer(tokens))
        if self.is_multi_label:
            probability = torch.sigmoid(logits)
            return probability, probability >= THRESHOLD
        probability = torch.softmax(logits, dim=1)
        return probability, probability.argmax(dim=1)


def graph_of(scorer: nn.Module, calibration: nn.Module, schema: Mapping[str, Any]) -> Graph:
    """The classifier as a graph of any number of rows and tokens."""
    pad = int(schema["tokenizer"]["pad_id"])
    tokens = torch.arange(ROWS * LENGTH).view(ROWS, LENGTH) % int(schema["tokenizer"]["vocab_size"])
    tokens[1, LENGTH // 2 :] = pad
    return Graph(
        name="model",
        module=Classifier(scorer, calibration, is_multi_label=bool(schema["multi_label"])).eval(),
        inputs={"tokens": tokens},
        outputs=("probability", "label"),
        dynamic={"tokens": {0: "rows", 1: "length"}},
    )
