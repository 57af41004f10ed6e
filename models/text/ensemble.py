"""Several trained text networks as one: the weighted mean of their calibrated probabilities, calibrated once more."""

from collections.abc import Iterable, Sequence
from typing import Any, TypedDict

import torch
from torch import Tensor, nn

from models.calibration import logit
from models.ensemble import build, check_same, load, options_of, refuse_pruning, refuse_training
from models.text.module import Schema, TextModule


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

    def __init__(self, modules: Iterable[TextModule], weights: Sequence[float], *, is_multi_label: bool) -> None:
        super().__init__()
        chosen = list(modules)
        self.is_multi_label = is_multi_label
        self.networks = nn.ModuleList(module.scorer for module in chosen)
        self.calibrations = nn.ModuleList(module.calibration for module in chosen)
        self.register_buffer("weights", torch.tensor(weights) / sum(weights))

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits [B, C] of token ids [B, L]."""
        pairs = zip(self.networks, self.calibrations, strict=True)
        logits = torch.stack([calibration(network(tokens)) for network, calibration in pairs], dim=2)
        if self.is_multi_label:
            return logit((torch.sigmoid(logits) * self.weights).sum(dim=2))
        return torch.log((torch.softmax(logits, dim=1) * self.weights).sum(dim=2).clamp_min(1e-30))


class TextEnsemble(TextModule):
    """A mean of trained networks. Validating fits its own temperature; it is not trained.

    Args:
        schema: of the data.
        members: what the mean is of; the ensemble is calibrated in the way of the first.
    """

    def __init__(self, schema: Schema, *, members: list[Member]) -> None:
        modules = [build(TextModule, schema, member["model"]) for member in members]
        weights = [member["weight"] for member in members]
        network: Any = Blend(modules, weights, is_multi_label=bool(schema["multi_label"]))
        super().__init__(schema, network, **modules[0].training_options)
        self.save_hyperparameters(logger=False)  # a tokenizer's pieces are no YAML: OmegaConf reads ${ in them

    @classmethod
    def of(cls, modules: Sequence[TextModule], weights: Sequence[float]) -> "TextEnsemble":
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
