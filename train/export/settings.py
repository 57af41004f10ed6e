"""The keys of configs/export.yaml and their types."""

from typing import Annotated, Any, Literal, TypedDict

from annotated_types import Ge, Gt, Lt

Method = Literal[
    "int8_weights",
    "int8_dynamic",
    "int8_static_minmax",
    "int8_static_entropy",
    "int8_static_percentile",
    "float16",
    "int4_weights",
    "sparse_50",
    "sparse_2_4",
]


class PruneSettings(TypedDict):
    """How much structured pruning takes out, and how it is made good."""

    ratio: Annotated[float, Ge(0), Lt(1)] | Literal["search"]
    importance: Literal["magnitude", "taylor"]
    finetune_steps: Annotated[int, Ge(0)]


class GateSettings(TypedDict):
    """What a candidate must keep, and which of those that do is taken."""

    max_drop: Annotated[float, Ge(0)]
    prefer: Literal["smallest", "fastest"]
    rounds: Annotated[int, Ge(3)]


class ExportSettings(TypedDict):
    """The top level of configs/export.yaml."""

    run: str
    data: dict[str, Any]
    output: str | None
    prune: PruneSettings
    quantize: list[Method]
    greedy: bool
    calibration_rows: Annotated[int, Gt(0)]
    gate: GateSettings
    sign: bool
    key: str | None
    encrypt: bool
    master_key: str | None
    publish: str | None
