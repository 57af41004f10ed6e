"""What a model offers for export: a module, what goes in and what comes out."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn


@dataclass(frozen=True)
class Graph:
    """One exported graph.

    Attributes:
        name: of the file, without its suffix.
        module: in eval mode; its first output is what the LightningModule's `forward` returns.
        inputs: example inputs, two rows or more, by the names of `forward`'s parameters.
        outputs: names of the outputs.
        dynamic: sizes that vary: input to {dimension: name}.
        tolerance: how far an output may be from torch's: rounding, and what the module makes of it.
        front: an onnx.GraphProto whose outputs are inputs of the module, computed from what a caller really has, such
            as codes from texts; None where the module takes that itself.
    """

    name: str
    module: nn.Module
    inputs: Mapping[str, Tensor]
    outputs: tuple[str, ...]
    dynamic: Mapping[str, Mapping[int, str]]
    tolerance: float = 1e-4
    front: Any = None
