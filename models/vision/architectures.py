"""The architectures of the image experiment: each is a `VisionModule` around one network."""

from typing import Annotated, Unpack

from annotated_types import Ge, Gt

from models.vision.module import Schema, Training, VisionModule
from models.vision.networks import ResNet9
from models.vision.pretrained import Torchvision

Count = Annotated[int, Gt(0)]


class VisionResNet9(VisionModule):
    """A small residual network for small pictures, without batch statistics: see `ResNet9`."""

    def __init__(
        self,
        schema: Schema,
        *,
        width_1: Count,
        width_2: Count,
        width_3: Count,
        input_size: Annotated[int, Ge(4)] | None,
        flip_at_test: bool,
        hidden_1: Count | None = None,
        hidden_2: Count | None = None,
        hidden_3: Count | None = None,
        **training: Unpack[Training],
    ) -> None:
        network = ResNet9(
            schema,
            width_1=width_1,
            width_2=width_2,
            width_3=width_3,
            input_size=input_size,
            flip_at_test=flip_at_test,
            hidden_1=hidden_1,
            hidden_2=hidden_2,
            hidden_3=hidden_3,
        )
        super().__init__(schema, network, **training)
        self.save_hyperparameters(logger=False)  # names of classes are no YAML: OmegaConf reads ${ in them


class VisionTorchvision(VisionModule):
    """A classifier of torchvision, with published weights or from scratch, without batch statistics."""

    def __init__(
        self,
        schema: Schema,
        *,
        architecture: str,
        weights: str | None,
        input_size: Annotated[int, Ge(4)] | None,
        flip_at_test: bool,
        **training: Unpack[Training],
    ) -> None:
        network = Torchvision(
            schema, architecture=architecture, weights=weights, input_size=input_size, flip_at_test=flip_at_test
        )
        super().__init__(schema, network, **training)
        self.save_hyperparameters(logger=False)  # names of classes are no YAML: OmegaConf reads ${ in them
