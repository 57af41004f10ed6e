"""Samplers and pruners by name, each with the options of its own constructor."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import optuna
from optuna import pruners, samplers
from optuna.pruners import BasePruner
from optuna.samplers import BaseSampler

from train.config import signature
from train.config.finding import did_you_mean, shown
from train.config.values import misfits
from train.errors import ConfigError

SAMPLERS: Mapping[str, Callable[..., BaseSampler]] = {
    "tpe": samplers.TPESampler,
    "gp": samplers.GPSampler,
    "cmaes": samplers.CmaEsSampler,
    "random": samplers.RandomSampler,
    "qmc": samplers.QMCSampler,
    "grid": samplers.RandomSampler,  # each slot has its point: nothing is left to draw
}
PRUNERS: Mapping[str, Callable[..., BasePruner]] = {
    "hyperband": pruners.HyperbandPruner,
    "median": pruners.MedianPruner,
    "percentile": pruners.PercentilePruner,
    "wilcoxon": pruners.WilcoxonPruner,
    "patient": pruners.PatientPruner,
    "none": pruners.NopPruner,
}


def sampler(
    name: str, options: Mapping[str, Any], *, seed: int, slot: int, is_conditional: bool = False
) -> BaseSampler:
    """Make the sampler of one slot.

    Each slot's random numbers come from (seed, slot): a study that was interrupted draws what one that was not would
    have drawn, and workers do not draw the same. Quasi-random points are those of one sequence, so there the seed alone
    counts.

    Args:
        name: see `SAMPLERS`.
        options: of its constructor.
        seed: the sweep's.
        slot: which trial.
        is_conditional: whether some keys count only with some values of others.
    """
    given: dict[str, Any] = dict(options)
    if name == "tpe" and is_conditional:
        given.setdefault("multivariate", True)
        given.setdefault("group", True)
    if name in ("gp", "cmaes", "qmc"):
        given.setdefault("warn_independent_sampling", False)
    if name == "qmc":
        given.setdefault("scramble", True)
        given.setdefault("warn_asynchronous_seeding", False)
    own = seed if name == "qmc" else int(np.random.SeedSequence((seed, slot)).generate_state(1)[0])
    with warnings.catch_warnings(action="ignore", category=optuna.exceptions.ExperimentalWarning):
        return SAMPLERS[name](seed=own, **given)


def keep_search_space(before: BaseSampler | None, now: BaseSampler) -> None:
    """Hand on which keys the trials of the study have in common, so that only new trials are looked at."""
    for name in ("_search_space", "_group_decomposed_search_space"):
        if hasattr(before, name) and hasattr(now, name):
            setattr(now, name, getattr(before, name))


def with_fixed(base: BaseSampler, fixed: Mapping[str, Any]) -> BaseSampler:
    """Make a sampler give these values and draw only the others."""
    if not fixed:
        return base
    with warnings.catch_warnings(action="ignore", category=optuna.exceptions.ExperimentalWarning):
        return samplers.PartialFixedSampler(fixed_params=dict(fixed), base_sampler=base)


def pruner(name: str, options: Mapping[str, Any], *, validations: int | None) -> BasePruner:
    """Make the pruner.

    Args:
        name: see `PRUNERS`; "patient" is the median's, with patience.
        options: of its constructor.
        validations: of a whole trial, where known: the largest resource of Hyperband, which else waits for the first
            trial to end.
    """
    given: dict[str, Any] = dict(options)
    if name == "hyperband" and validations is not None:
        given.setdefault("max_resource", max(2, validations))
    if name == "patient":
        given = {"patience": 1, **given}
        given["wrapped_pruner"] = pruners.MedianPruner()
    if name == "percentile":
        given.setdefault("percentile", 25.0)
    with warnings.catch_warnings(action="ignore", category=optuna.exceptions.ExperimentalWarning):
        return PRUNERS[name](**given)


def check(key: str, constructor: Callable[..., Any], options: Mapping[str, Any]) -> None:
    """Raise a ConfigError where an option is none of the constructor's or has a wrong value."""
    parameters = signature.of_callable(constructor).annotations
    for name, value in options.items():
        if name not in parameters:
            raise ConfigError(
                f"{key}.{name}: {shown(value)} is no option of {constructor.__name__}"
                f"{did_you_mean(str(name), parameters)}; it has {', '.join(parameters)}"
            )
        for _, _, rule in misfits(value, parameters[name]):
            raise ConfigError(f"{key}.{name}: {shown(value)} {rule}")
