"""The architectures of the detection experiment: each is a `DetectionModule` around one network."""

from typing import Annotated, Unpack

import torch
from annotated_types import Ge, Gt, Lt

from models.detection import pretrained, two_stage
from models.detection.module import DetectionModule, Schema
from models.detection.networks import FcosSmall
from models.muon import OptimizerName, optimizer_of
from models.optim import Recipe

Count = Annotated[int, Gt(0)]
NETWORKS = {
    **dict.fromkeys(pretrained.ARCHITECTURES, pretrained.TorchvisionDetector),
    **dict.fromkeys(two_stage.ARCHITECTURES, two_stage.TwoStageDetector),
}


class DetectionFcosSmall(DetectionModule):
    """A small detector without anchors that trains from scratch on a CPU: see `FcosSmall`.

    `width_2` to `sides` are what pruning leaves.
    """

    def __init__(
        self,
        schema: Schema,
        *,
        width: Count,
        depth: Count,
        input_size: Annotated[int, Ge(32)] | None,
        most_overlap: Annotated[float, Gt(0), Lt(1)],
        optimizer: OptimizerName = "adamw",  # of runs from before there was a choice
        width_2: Count | None = None,
        width_4: Count | None = None,
        width_8: Count | None = None,
        width_16: Count | None = None,
        width_32: Count | None = None,
        hidden_2: Count | None = None,
        hidden_4: Count | None = None,
        hidden_8: Count | None = None,
        hidden_16: Count | None = None,
        hidden_32: Count | None = None,
        across: Count | None = None,
        joined: Count | None = None,
        classes: Count | None = None,
        sides: Count | None = None,
        **training: Unpack[Recipe],
    ) -> None:
        sizes = {
            **{"width_2": width_2, "width_4": width_4, "width_8": width_8, "width_16": width_16, "width_32": width_32},
            **{"hidden_2": hidden_2, "hidden_4": hidden_4, "hidden_8": hidden_8},
            **{"hidden_16": hidden_16, "hidden_32": hidden_32},
            **{"across": across, "joined": joined, "classes": classes, "sides": sides},
        }
        network = FcosSmall(
            schema,
            width=width,
            depth=depth,
            input_size=input_size,
            most_overlap=most_overlap,
            sizes={name: size for name, size in sizes.items() if size is not None},
        )
        super().__init__(schema, network, **training)
        self.save_hyperparameters(logger=False)  # names of classes are no YAML: OmegaConf reads ${ in them
        self.optimizer_name = optimizer

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return the optimizer that was asked for, over the trained network."""
        return optimizer_of(self.optimizer_name, self.network, self.training_options)


class DetectionTorchvision(DetectionModule):
    """A detector of torchvision, with published weights or from scratch.

    See `TorchvisionDetector` for those of one stage, `TwoStageDetector` for Faster and Mask R-CNN.
    """

    def __init__(
        self,
        schema: Schema,
        *,
        architecture: str,
        weights: str | None,
        input_size: Annotated[int, Ge(32)] | None,
        most_overlap: Annotated[float, Gt(0), Lt(1)],
        anchor_scale: Annotated[float, Gt(0)],
        **training: Unpack[Recipe],
    ) -> None:
        if architecture not in NETWORKS:
            raise ValueError(f"architecture must be one of {', '.join(NETWORKS)}; got {architecture!r}")
        network = NETWORKS[architecture](
            schema,
            architecture=architecture,
            weights=weights,
            input_size=input_size,
            most_overlap=most_overlap,
            anchor_scale=anchor_scale,
        )
        super().__init__(schema, network, **training)
        self.save_hyperparameters(logger=False)  # names of classes are no YAML: OmegaConf reads ${ in them
