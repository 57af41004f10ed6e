"""What a model offers for export: a module, what goes in and what comes out."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn


@dataclass(frozen=True)
class Graph:
    """One exported graph.

    Attributes:
        name: of the file, without its suffix.
        module: in eval mode; its first output is what the LightningModule's `forward` returns.
        inputs: example inputs, two rows or more, by the names of `forward`'s parameters; of a parameter that is a
            dictionary, each of its tensors is an input of the graph.
        outputs: names of the outputs.
        dynamic: sizes that vary: input to {dimension: name}.
        tolerance: how far an output may be from torch's: rounding, and what the module makes of it.
        front: an onnx.GraphProto whose outputs are inputs of the module, computed from what a caller really has, such
            as codes from texts; None where the module takes that itself.
        is_first: whether callers give the inputs, and not another graph.
        paired: puts the outputs of two runtimes side by side before they are compared, where their order is a matter of
            rounding: (found, expected) to the same; None where each element stands by its own.
    """

    name: str
    module: nn.Module
    inputs: Mapping[str, Tensor | Mapping[str, Tensor]]
    outputs: tuple[str, ...]
    dynamic: Mapping[str, Mapping[int, str]]
    tolerance: float = 1e-4
    front: Any = None
    is_first: bool = True
    paired: Callable[[Sequence[Any], Sequence[Any]], tuple[Sequence[Any], Sequence[Any]]] | None = None

    @property
    def flat(self) -> dict[str, Tensor]:
        """Example inputs by the graph's own names."""
        found: dict[str, Tensor] = {}
        for name, given in self.inputs.items():
            found |= {name: given} if isinstance(given, Tensor) else given
        return found

    def nested(self, flat: Mapping[str, Any]) -> dict[str, Any]:
        """The arguments of `forward` out of the graph's inputs."""
        return {
            name: flat[name] if isinstance(given, Tensor) else {part: flat[part] for part in given}
            for name, given in self.inputs.items()
        }
