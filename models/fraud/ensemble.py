"""Several trained fraud networks as one: the weighted mean of their calibrated probabilities, calibrated once more.

Each member is calibrated by itself first: raw probabilities of networks that were trained with other losses or weights
of the positives lie on other scales, and the boldest of them would rule the mean.
"""

from collections.abc import Iterable, Mapping, Sequence
from pkgutil import resolve_name
from typing import Any, NoReturn, TypedDict

import torch
from torch import Tensor, nn

from models.calibration import logit
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
        blend: Any = made.network
        for index, module in enumerate(modules):
            blend.networks[index].load_state_dict(module.scorer.state_dict())
            blend.calibrations[index].load_state_dict(module.calibration.state_dict())
        return made.eval()

    def pruned(self, *_: Any, **__: Any) -> NoReturn:
        """Refuse, with a ValueError."""
        raise ValueError("an ensemble cannot be pruned as a whole: leave prune.ratio out, or export one of its members")

    def configure_optimizers(self) -> NoReturn:
        """Refuse, with a ValueError."""
        raise ValueError("an ensemble is not trained: its members were; train one of them, or search again")


def _module(schema: Schema, member: Member) -> FraudModule:
    """The module of a member, its weights as they were drawn."""
    options = dict(member["model"])
    target = options.pop("_target_")
    kind = resolve_name(target)
    if not (isinstance(kind, type) and issubclass(kind, FraudModule)):  # a checkpoint must not call what it likes
        raise ValueError(f"members: {target} is no FraudModule")
    columns = [
        {**column, "bins": member["bins"][column["name"]]} if column["name"] in member["bins"] else column
        for column in schema["columns"]
    ]
    module: FraudModule = kind({**schema, "columns": columns}, **options)
    return module


def _member(schema: Schema, module: FraudModule, weight: float) -> Member:
    """What a module is made from again. Raises ValueError where its inputs are not those of the schema."""
    if differing := _differing(schema, module.schema):
        raise ValueError(f"it was trained with other {', '.join(differing)}")
    bins = {
        own["name"]: list(own["bins"])
        for own, column in zip(module.schema["columns"], schema["columns"], strict=True)
        if own.get("bins") != column.get("bins")
    }
    kind = type(module)
    options = {name: value for name, value in module.hparams.items() if name != "schema"}
    # Of the averaged and the trained weights only those that predict are kept.
    model = {"_target_": f"{kind.__module__}.{kind.__qualname__}", **options, "ema_decay": None, "compile": False}
    return {"model": model, "bins": bins, "weight": float(weight)}


def _differing(one: Schema, other: Schema) -> list[str]:
    """Keys of a schema in which two differ, bins left out."""
    first, second = _without_bins(one), _without_bins(other)
    return [key for key in sorted({*first, *second}) if first.get(key) != second.get(key)]


def _without_bins(schema: Schema) -> Mapping[str, Any]:
    columns = [{name: value for name, value in column.items() if name != "bins"} for column in schema["columns"]]
    return {**schema, "columns": columns}
