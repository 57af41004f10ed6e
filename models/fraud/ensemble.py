"""Several trained fraud networks as one: the weighted mean of their calibrated probabilities, calibrated once more.

Each member is calibrated by itself first: raw probabilities of networks that were trained with other losses or weights
of the positives lie on other scales, and the boldest of them would rule the mean.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypedDict

import torch
from torch import Tensor, nn

from models.calibration import logit
from models.ensemble import build, check_same, load, options_of, refuse_pruning, refuse_training
from models.fraud.module import FraudModule, Schema


class Member(TypedDict):
    """One network of an ensemble.

    Attributes:
        model: its module: `_target_` and the arguments of the constructor but for the schema.
        bins: edges of a column's bins, by its name, where they are not those of the ensemble's schema.
        weight: of its probability in the mean.
    """

    model: dict[str, Any]
    bins: dict[str, list[float]]
    weight: float


class Blend(nn.Module):
    """The weighted mean of calibrated networks as logits [B, 1], so that it can stand where one network does."""

    weights: Tensor

    def __init__(self, modules: Iterable[FraudModule], weights: Sequence[float]) -> None:
        super().__init__()
        chosen = list(modules)
        self.networks = nn.ModuleList(module.scorer for module in chosen)
        self.calibrations = nn.ModuleList(module.calibration for module in chosen)
        self.register_buffer("weights", torch.tensor(weights) / sum(weights))

    def forward(self, numeric: Tensor, categorical: Tensor, timestamp: Tensor) -> Tensor:
        """Logits [B, 1] of raw columns [B, F], [B, C] and [B, T]."""
        probabilities = [
            calibration(torch.sigmoid(network(numeric, categorical, timestamp)).mean(dim=1))
            for network, calibration in zip(self.networks, self.calibrations, strict=True)
        ]
        mean = (torch.stack(probabilities, dim=1) * self.weights).sum(dim=1, keepdim=True)
        return logit(mean)


class FraudEnsemble(FraudModule):
    """A mean of trained networks. Validating fits its own calibration and thresholds; it is not trained.

    Args:
        schema: of the data; its bins are those of the members that have no others.
        members: what the mean is of; the ensemble is calibrated in the way of the first.
    """

    def __init__(self, schema: Schema, *, members: list[Member]) -> None:
        modules = [_module(schema, member) for member in members]
        network: Any = Blend(modules, [member["weight"] for member in members])
        super().__init__(schema, network, **modules[0].training_options)
        self.save_hyperparameters()

    @classmethod
    def of(cls, modules: Sequence[FraudModule], weights: Sequence[float]) -> "FraudEnsemble":
        """Join trained modules; the schema is the first one's.

        Raises:
            ValueError: they do not take the same inputs.
        """
        schema = modules[0].schema
        members = [_member(schema, module, weight) for module, weight in zip(modules, weights, strict=True)]
        made = cls(schema, members=members)
        load(made.network, modules)
        return made.eval()

    pruned = refuse_pruning
    configure_optimizers = refuse_training


def _module(schema: Schema, member: Member) -> FraudModule:
    """The module of a member, its weights as they were drawn."""
    columns = [
        {**column, "bins": member["bins"][column["name"]]} if column["name"] in member["bins"] else column
        for column in schema["columns"]
    ]
    return build(FraudModule, {**schema, "columns": columns}, member["model"])


def _member(schema: Schema, module: FraudModule, weight: float) -> Member:
    """What a module is made from again. Raises ValueError where its inputs are not those of the schema."""
    check_same(_without_bins(schema), _without_bins(module.schema))
    bins = {
        own["name"]: list(own["bins"])
        for own, column in zip(module.schema["columns"], schema["columns"], strict=True)
        if own.get("bins") != column.get("bins")
    }
    return {"model": options_of(module), "bins": bins, "weight": float(weight)}


def _without_bins(schema: Schema) -> Mapping[str, Any]:
    columns = [{name: value for name, value in column.items() if name != "bins"} for column in schema["columns"]]
    return {**schema, "columns": columns}
