"""Several trained text networks as one: the weighted mean of their calibrated probabilities, calibrated once more."""

from collections.abc import Iterable, Sequence
from pkgutil import resolve_name
from typing import Any, NoReturn, TypedDict

import torch
from torch import Tensor, nn

from models.calibration import logit
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
        modules = [_module(schema, member) for member in members]
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


def _module(schema: Schema, member: Member) -> TextModule:
    """The module of a member, its weights as they were drawn."""
    options = dict(member["model"])
    target = options.pop("_target_")
    kind = resolve_name(target)
    if not (isinstance(kind, type) and issubclass(kind, TextModule)):  # a checkpoint must not call what it likes
        raise ValueError(f"members: {target} is no TextModule")
    module: TextModule = kind(schema, **options)
    return module


def _member(schema: Schema, module: TextModule, weight: float) -> Member:
    """What a module is made from again. Raises ValueError where its inputs are not those of the schema."""
    differing = [key for key in sorted({*schema, *module.schema}) if schema.get(key) != module.schema.get(key)]
    if differing:
        raise ValueError(f"it was trained with other {', '.join(differing)}")
    kind = type(module)
    options = {name: value for name, value in module.hparams.items() if name != "schema"}
    # Of the averaged and the trained weights only those that predict are kept.
    model = {"_target_": f"{kind.__module__}.{kind.__qualname__}", **options, "ema_decay": None, "compile": False}
    return {"model": model, "weight": float(weight)}
