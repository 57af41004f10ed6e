"""The keys of configs/train.yaml and their types; below `data`, `model` and `trainer` a signature has them."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypedDict

from annotated_types import Ge, Gt, Le
from pydantic import BeforeValidator, Field


def _with_target(value: object) -> object:
    if not isinstance(value, dict) or "_target_" not in value:
        raise ValueError("must name a `_target_`")
    return value


Node = Annotated[dict[str, Any], BeforeValidator(_with_target)]


class CheckpointSettings(TypedDict):
    """When a checkpoint is written and how many are kept."""

    every_seconds: Annotated[float, Gt(0)]
    every_n_steps: Annotated[int, Gt(0)] | None
    keep: Annotated[int, Ge(1)]
    mirror: Annotated[str, Field(pattern=r"^s3://.+")] | None


class TrainSettings(TypedDict):
    """The top level of configs/train.yaml; a new key is one line here."""

    name: str
    run_id: str | int | None
    output_dir: str
    seed: Annotated[int, Ge(0), Le(2**32 - 1)]
    monitor: str
    mode: Literal["min", "max"]
    watchdog_seconds: Annotated[float, Gt(0)]
    patience: Annotated[int, Ge(1)] | None
    resume: Literal["auto", "never"]
    weights: str | None
    checkpoint: CheckpointSettings
    baselines: dict[str, Node] | None
    data: Node
    model: Node
    trainer: Node


# What `train.run` itself passes to the constructor of a node: not missing, and refused in a config.
SUPPLIED: Mapping[str, frozenset[str]] = {
    "model": frozenset({"schema"}),
    "trainer": frozenset(
        {
            "callbacks",
            "logger",
            "plugins",
            "default_root_dir",
            "enable_progress_bar",
            "enable_model_summary",
            "log_every_n_steps",
        }
    ),
}
