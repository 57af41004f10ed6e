"""Several trained image networks as one: the weighted mean of their calibrated probabilities, calibrated once more."""

from collections.abc import Iterable, Sequence
from copy import deepcopy
from typing import Any, TypedDict

import torch
from torch import Tensor, nn

from models.ensemble import build, check_same, load, options_of, refuse_pruning, refuse_training
from models.vision.module import Schema, VisionModule


class Member(TypedDict):
    """One network of an ensemble.

    Attributes:
        model: its module: `_target_` and the arguments of the constructor but for the schema.
        weight: of its probabilities in the mean.
    """

    model: dict[str, Any]
    weight: float


class Blend(nn.Module):
    """The weighted mean of calibrated networks as logits [B, C], so that it can stand where one network does."""

    weights: Tensor

    def __init__(self, modules: Iterable[VisionModule], weights: Sequence[float]) -> None:
        super().__init__()
        chosen = list(modules)
        self.networks = nn.ModuleList(module.scorer for module in chosen)
        self.calibrations = nn.ModuleList(module.calibration for module in chosen)
        self.register_buffer("weights", torch.tensor(weights) / sum(weights))

    def forward(self, image: Tensor) -> Tensor:
        """Logits [B, C] of pictures uint8 [B, H, W, 3]."""
        pairs = zip(self.networks, self.calibrations, strict=True)
        logits = torch.stack([calibration(network(image)) for network, calibration in pairs], dim=2)
        return torch.log((torch.softmax(logits, dim=1) * self.weights).sum(dim=2).clamp_min(1e-30))

    def folded(self) -> "Blend":
        """The same of folded networks."""
        copied = deepcopy(self).eval()
        copied.networks = nn.ModuleList(network.folded() for network in copied.networks)  # type: ignore[operator]
        return copied


class VisionEnsemble(VisionModule):
    """A mean of trained networks. Validating fits its own temperature; it is not trained.

    Args:
        schema: of the data.
        members: what the mean is of; the ensemble is calibrated in the way of the first.
    """

    def __init__(self, schema: Schema, *, members: list[Member]) -> None:
        modules = [build(VisionModule, schema, member["model"]) for member in members]
        network: Any = Blend(modules, [member["weight"] for member in members])
        super().__init__(schema, network, **modules[0].training_options)
        self.save_hyperparameters(logger=False)  # names of classes are no YAML: OmegaConf reads ${ in them

    @classmethod
    def of(cls, modules: Sequence[VisionModule], weights: Sequence[float]) -> "VisionEnsemble":
        """Join trained modules; the schema is the first one's.

        Raises:
            ValueError: they do not take the same inputs.
        """
        schema = modules[0].schema
        members: list[Member] = []
        for module, weight in zip(modules, weights, strict=True):
            check_same(schema, module.schema)
            members.append({"model": options_of(module), "weight": float(weight)})
        made = cls(schema, members=members)
        load(made.network, modules)
        return made.eval()

    pruned = refuse_pruning
    configure_optimizers = refuse_training
