"""The keys of configs/tune.yaml and their types: those of a run, and what is to be found."""

from typing import Annotated, Literal, TypedDict

from annotated_types import Ge, Gt, Lt

from train.config.settings import TrainSettings


class RangeSettings(TypedDict):
    """The learning rates of a range test."""

    low: Annotated[float, Gt(0)]
    high: Annotated[float, Gt(0)]
    steps: Annotated[int, Ge(50)]


class SizeSettings(TypedDict):
    """How far batch sizes are tried, and how long each."""

    most: Annotated[int, Ge(1)] | None
    seconds: Annotated[float, Gt(0)]
    memory_share: Annotated[float, Gt(0), Lt(1)]


class TuneSettings(TrainSettings):
    """The top level of configs/tune.yaml."""

    find: Literal["lr", "batch_size"]
    lr: RangeSettings
    batch_size: SizeSettings
