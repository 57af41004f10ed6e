"""The architectures of the detection experiment: each is a `DetectionModule` around one network."""

from typing import Annotated, Unpack

from annotated_types import Ge, Gt, Lt

from models.detection.module import DetectionModule, Schema
from models.detection.networks import FcosSmall
from models.detection.pretrained import TorchvisionDetector
from models.optim import Recipe

Count = Annotated[int, Gt(0)]


class DetectionFcosSmall(DetectionModule):
    """A small detector without anchors that trains from scratch on a CPU: see `FcosSmall`."""

    def __init__(
        self,
        schema: Schema,
        *,
        width: Count,
        depth: Count,
        input_size: Annotated[int, Ge(32)] | None,
        most_overlap: Annotated[float, Gt(0), Lt(1)],
        **training: Unpack[Recipe],
    ) -> None:
        network = FcosSmall(schema, width=width, depth=depth, input_size=input_size, most_overlap=most_overlap)
        super().__init__(schema, network, **training)
        self.save_hyperparameters(logger=False)  # names of classes are no YAML: OmegaConf reads ${ in them


class DetectionTorchvision(DetectionModule):
    """A one-stage detector of torchvision, with published weights or from scratch: see `TorchvisionDetector`."""

    def __init__(
        self,
        schema: Schema,
        *,
        architecture: str,
        weights: str | None,
        input_size: Annotated[int, Ge(32)] | None,
        most_overlap: Annotated[float, Gt(0), Lt(1)],
        **training: Unpack[Recipe],
    ) -> None:
        network = TorchvisionDetector(
            schema, architecture=architecture, weights=weights, input_size=input_size, most_overlap=most_overlap
        )
        super().__init__(schema, network, **training)
        self.save_hyperparameters(logger=False)  # names of classes are no YAML: OmegaConf reads ${ in them
