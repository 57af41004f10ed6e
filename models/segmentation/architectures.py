"""The architectures of the segmentation experiment: each is a `SegmentationModule` around one network."""

from typing import Annotated, Unpack

import torch
from annotated_types import Ge, Gt

from models.muon import OptimizerName, optimizer_of
from models.segmentation.module import Schema, SegmentationModule, Training
from models.segmentation.networks import UNet
from models.segmentation.pretrained import TorchvisionSegmenter

Count = Annotated[int, Gt(0)]
Side = Annotated[int, Ge(16)]


class SegmentationUNet(SegmentationModule):
    """A small U-Net without batch statistics: see `UNet`; `hidden_1` to `up_3` are what pruning leaves."""

    def __init__(
        self,
        schema: Schema,
        *,
        width_0: Count,
        width_1: Count,
        width_2: Count,
        width_3: Count,
        width_4: Count,
        depth: Count,
        input_size: Side | None,
        flip_at_test: bool,
        optimizer: OptimizerName = "adamw",  # of runs from before there was a choice
        hidden_1: Count | None = None,
        hidden_2: Count | None = None,
        hidden_3: Count | None = None,
        hidden_4: Count | None = None,
        up_1: Count | None = None,
        up_2: Count | None = None,
        up_3: Count | None = None,
        **training: Unpack[Training],
    ) -> None:
        network = UNet(
            schema,
            width_0=width_0,
            width_1=width_1,
            width_2=width_2,
            width_3=width_3,
            width_4=width_4,
            depth=depth,
            input_size=input_size,
            flip_at_test=flip_at_test,
            hidden=(hidden_1, hidden_2, hidden_3, hidden_4),
            ups=(up_1, up_2, up_3),
        )
        super().__init__(schema, network, **training)
        self.save_hyperparameters(logger=False)  # names of classes are no YAML: OmegaConf reads ${ in them
        self.optimizer_name = optimizer

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return the optimizer that was asked for, over the trained network."""
        return optimizer_of(self.optimizer_name, self.network, self.training_options)


class SegmentationTorchvision(SegmentationModule):
    """A segmentation network of torchvision, with published weights or from scratch, without batch statistics."""

    def __init__(
        self,
        schema: Schema,
        *,
        architecture: str,
        weights: str | None,
        input_size: Side | None,
        flip_at_test: bool,
        **training: Unpack[Training],
    ) -> None:
        network = TorchvisionSegmenter(
            schema, architecture=architecture, weights=weights, input_size=input_size, flip_at_test=flip_at_test
        )
        super().__init__(schema, network, **training)
        self.save_hyperparameters(logger=False)  # names of classes are no YAML: OmegaConf reads ${ in them
