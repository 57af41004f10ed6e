"""The keys of configs/sweep.yaml and their types."""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypedDict

from annotated_types import Ge, Gt

from train.config.settings import TrainSettings


class Objective(TypedDict):
    """One number that the trials are judged by."""

    metric: str
    mode: Literal["min", "max"]


class SweepSettings(TrainSettings):
    """The top level of configs/sweep.yaml: that of configs/train.yaml, and the search."""

    study: str
    storage: str | None
    workers: Annotated[int, Ge(1)]
    trials: Annotated[int, Ge(1)]
    timeout: Annotated[float, Gt(0)] | None
    space: dict[str, Any]
    objectives: list[Objective]
    constraints: dict[str, float]
    sampler: Literal["tpe", "gp", "cmaes", "random", "qmc", "grid"]
    sampler_options: dict[str, Any]
    pruner: Literal["hyperband", "median", "percentile", "patient", "wilcoxon", "none"]
    pruner_options: dict[str, Any]
    start_with_default: bool
    warm_start: list[str] | Literal["auto"]
    max_failures: Annotated[int, Ge(1)]
    heartbeat_seconds: Annotated[float, Gt(0)]
    ensemble: Annotated[int, Ge(0)]
    test: bool
