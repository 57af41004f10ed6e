"""What the ensembles of all domains share: members as plain options, made from them again, and what is refused."""

from collections.abc import Mapping, Sequence
from pkgutil import resolve_name
from typing import Any, NoReturn, TypeVar

from pytorch_lightning import LightningModule

Module = TypeVar("Module", bound=LightningModule)


def options_of(module: LightningModule) -> dict[str, Any]:
    """What a module is made from again: `_target_` and the arguments of its constructor but for the schema."""
    kind = type(module)
    options = {name: value for name, value in module.hparams.items() if name != "schema"}
    # Of the averaged and the trained weights only those that predict are kept.
    return {"_target_": f"{kind.__module__}.{kind.__qualname__}", **options, "ema_decay": None, "compile": False}


def build(kind: type[Module], schema: Mapping[str, Any], model: Mapping[str, Any]) -> Module:
    """Make a module from `options_of` it, its weights as they were drawn.

    Raises:
        ValueError: it is not of that kind: a checkpoint must not call what it likes.
    """
    options = dict(model)
    target = options.pop("_target_")
    found = resolve_name(target)
    if not (isinstance(found, type) and issubclass(found, kind)):
        raise ValueError(f"members: {target} is no {kind.__name__}")
    return found(schema, **options)


def check_same(one: Mapping[str, Any], other: Mapping[str, Any]) -> None:
    """Raise ValueError where two schemas do not describe the same inputs."""
    differing = [key for key in sorted({*one, *other}) if one.get(key) != other.get(key)]
    if differing:
        raise ValueError(f"it was trained with other {', '.join(differing)}")


def load(blend: Any, modules: Sequence[Any]) -> None:
    """Copy trained weights and calibrations into a blend's `networks` and `calibrations`."""
    for index, module in enumerate(modules):
        blend.networks[index].load_state_dict(module.scorer.state_dict())
        blend.calibrations[index].load_state_dict(module.calibration.state_dict())


def refuse_pruning(*_: Any, **__: Any) -> NoReturn:
    """Stand for `pruned`; raises ValueError."""
    raise ValueError("an ensemble cannot be pruned as a whole: leave prune.ratio out, or export one of its members")


def refuse_training(*_: Any) -> NoReturn:
    """Stand for `configure_optimizers`; raises ValueError."""
    raise ValueError("an ensemble is not trained: its members were; train one of them, or search again")
