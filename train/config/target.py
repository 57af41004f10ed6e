"""The class or function that a `_target_` names."""

import importlib
import inspect
import pkgutil
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

from train.config.finding import did_you_mean
from train.errors import ConfigError

PACKAGES = ("datamodules", "models", "pytorch_lightning", "torch", "torchvision", "train")


def locate(name: Any) -> Callable[..., Any]:
    """Import what a `_target_` names.

    Any importable package will do, so that `--config-dir` brings modules of one's own, but for the standard library
    (a config does not call `os.system`) and `lightning`, whose classes are not those of `pytorch_lightning`.
    """
    if not isinstance(name, str) or "." not in name:
        raise ConfigError("must name a class or function as package.module.Name")
    root = name.partition(".")[0]
    if root in sys.stdlib_module_names:
        raise ConfigError(f"must not be in Python's standard library: '{root}'")
    if root == "lightning":
        raise ConfigError("must be spelled pytorch_lightning: its classes are not those of lightning.pytorch")
    found, rest = _import_longest(name)
    for step in rest:
        if not hasattr(found, step):
            raise ConfigError(f"{_title(found)} has no '{step}'{did_you_mean(step, _public(found))}")
        found = getattr(found, step)
    if not callable(found):
        raise ConfigError(f"must be a class or function, not {type(found).__name__}")
    target: Callable[..., Any] = found
    return target


def _import_longest(name: str) -> tuple[Any, list[str]]:
    """The deepest module of a dotted name, and the steps below it."""
    steps = name.split(".")
    module: ModuleType | None = None
    for depth in range(1, len(steps)):
        path = ".".join(steps[:depth])
        try:
            module = importlib.import_module(path)
        except ModuleNotFoundError as error:
            if error.name != path:  # the module is there and imports one that is not
                raise ConfigError(f"cannot be imported: {error}") from error
            if module is None:
                raise ConfigError(f"no module named '{path}'{did_you_mean(path, PACKAGES)}") from error
            return module, steps[depth - 1 :]
        except ImportError as error:
            raise ConfigError(f"cannot be imported: {error}") from error
    return module, steps[-1:]


def _public(found: object) -> list[str]:
    names = [name for name in dir(found) if not name.startswith("_")]
    return names + [module.name for module in pkgutil.iter_modules(getattr(found, "__path__", []))]


def _title(found: Any) -> str:
    return f"module {found.__name__}" if inspect.ismodule(found) else getattr(found, "__qualname__", str(found))
