"""The architectures of the image experiment: each is a `VisionModule` around one network."""

from typing import Annotated, Any, Unpack

import torch
from annotated_types import Ge, Gt, Le, Lt

from models.muon import OptimizerName, optimizer_of
from models.optim import adamw, adamw_by_depth
from models.vision.module import Schema, Training, VisionModule
from models.vision.networks import ResNet9
from models.vision.pretrained import Classifier, Torchvision
from models.vision.timm import Timm

Count = Annotated[int, Gt(0)]
Depth = Annotated[float, Ge(0), Lt(1)]
Decay = Annotated[float, Gt(0), Le(1)]


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
        optimizer: OptimizerName = "adamw",  # of runs from before there was a choice
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
        self.optimizer_name = optimizer

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return the optimizer that was asked for, over the trained network."""
        return optimizer_of(self.optimizer_name, self.network, self.training_options)


class VisionTorchvision(VisionModule):
    """A classifier of torchvision, with published weights or from scratch, without batch statistics.

    Args:
        schema: what the data module knows of the data.
        architecture: see `Torchvision`, as of what follows.
        weights: published ones.
        input_size: that pictures are resized to.
        flip_at_test: whether mirror images count at the test.
        stochastic_depth: of the last layer.
        layer_decay: of the learning rate, from each layer to the one before it; 1 for one rate.
        training: see `Training`.
    """

    def __init__(
        self,
        schema: Schema,
        *,
        architecture: str,
        weights: str | None,
        input_size: Annotated[int, Ge(4)] | None,
        flip_at_test: bool,
        stochastic_depth: Depth | None,
        layer_decay: Decay,
        **training: Unpack[Training],
    ) -> None:
        network = Torchvision(
            schema,
            architecture=architecture,
            weights=weights,
            input_size=input_size,
            flip_at_test=flip_at_test,
            stochastic_depth=stochastic_depth,
        )
        super().__init__(schema, network, **training)
        self.save_hyperparameters(logger=False)  # names of classes are no YAML: OmegaConf reads ${ in them
        self.layer_decay = layer_decay

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return AdamW, fused, whose rate is lower the deeper a layer lies."""
        return _adamw(self.network, self.training_options, self.layer_decay)


class VisionTimm(VisionModule):
    """A classifier of timm, with published weights or from scratch, without batch statistics.

    Checkpoints hold all weights and what they were trained on: they load without the hub.

    Args:
        schema: what the data module knows of the data.
        name: see `Timm`, as of what follows.
        pretrained: whether it begins with published weights, or the file of such.
        input_size: that pictures are resized to.
        flip_at_test: whether mirror images count at the test.
        stochastic_depth: of the last layer.
        layer_decay: of the learning rate, from each layer to the one before it; 1 for one rate.
        weights_config: of a checkpoint: what its published weights were trained on.
        training: see `Training`.
    """

    def __init__(
        self,
        schema: Schema,
        *,
        name: str,
        pretrained: bool | str,
        input_size: Annotated[int, Ge(4)] | None,
        flip_at_test: bool,
        stochastic_depth: Depth | None,
        layer_decay: Decay,
        weights_config: dict[str, Any] | None = None,
        **training: Unpack[Training],
    ) -> None:
        network = Timm(
            schema,
            name=name,
            pretrained=pretrained,
            input_size=input_size,
            flip_at_test=flip_at_test,
            stochastic_depth=stochastic_depth,
            config=weights_config,
        )
        super().__init__(schema, network, **training)
        self.save_hyperparameters(logger=False)  # names of classes are no YAML: OmegaConf reads ${ in them
        self.hparams["weights_config"] = network.config
        self.layer_decay = layer_decay

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return AdamW, fused, whose rate is lower the deeper a layer lies."""
        return _adamw(self.network, self.training_options, self.layer_decay)


def _adamw(network: Any, options: Training, layer_decay: float) -> torch.optim.Optimizer:
    assert isinstance(network, Classifier)
    if layer_decay == 1:
        return adamw(network, options)
    return adamw_by_depth(network, options, layer_decay=layer_decay, depth=network.depth)
