"""trials.parquet: one row a trial."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from datetime import UTC
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from optuna.distributions import CategoricalDistribution, FloatDistribution

from train import errors
from train.sweep import best, winners
from train.sweep.plan import Plan
from train.sweep.slots import MEASURED, OWNER, Slot
from train.sweep.space import Parameter, decoded

FILE = "trials.parquet"
Column = tuple[str, Any, Callable[[Slot], Any]]


def write(plan: Plan, slots: Sequence[Slot]) -> None:
    """Write the table. Raises StorageError."""
    columns = [
        *_outcome(plan),
        *(_chosen(parameter) for parameter in plan.space.parameters),
        *_circumstances(plan),
    ]
    arrays = {name: pa.array([get(slot) for slot in slots], kind) for name, kind, get in columns}
    aside = plan.folder / f".{FILE}.tmp"
    with errors.reporting(errors.StorageError):
        pq.write_table(pa.table(arrays), aside)
        aside.replace(plan.folder / FILE)


def _outcome(plan: Plan) -> list[Column]:
    metrics = [metric for metric, _ in plan.objectives]
    return [
        ("number", pa.int64(), lambda slot: slot.number),
        ("state", pa.string(), lambda slot: slot.state),
        ("attempts", pa.int64(), lambda slot: len(slot.attempts)),
        ("reason", pa.string(), lambda slot: slot.reason),
        *((name, pa.float64(), _objective(plan, name)) for name in metrics),
        *((name, pa.float64(), _measured(name)) for name in plan.judged_by if name not in metrics),
        ("keeps_constraints", pa.bool_(), _keeps_constraints),
    ]


def _objective(plan: Plan, name: str) -> Callable[[Slot], float | None]:
    return lambda slot: winners.objectives(plan, slot).get(name)


def _measured(name: str) -> Callable[[Slot], float | None]:
    return lambda slot: None if slot.trial is None else slot.trial.user_attrs.get(MEASURED, {}).get(name)


def _keeps_constraints(slot: Slot) -> bool | None:
    return best.keeps_constraints(slot) if slot.state == "complete" else None


def _chosen(parameter: Parameter) -> Column:
    """The column of a key; null where it did not count."""
    kind = _kind(parameter)

    def value(slot: Slot) -> Any:
        found = winners.values(slot).get(parameter.key)
        return json.dumps(found) if pa.types.is_string(kind) and not isinstance(found, str | None) else found

    return parameter.key, kind, value


def _kind(parameter: Parameter) -> Any:
    one = parameter.distribution
    if not isinstance(one, CategoricalDistribution):
        return pa.float64() if isinstance(one, FloatDistribution) else pa.int64()
    kinds = {type(decoded(choice)) for choice in one.choices} - {type(None)}
    if kinds == {int, float}:
        return pa.float64()
    known = {bool: pa.bool_(), int: pa.int64(), float: pa.float64()}
    return known.get(kinds.pop(), pa.string()) if len(kinds) == 1 else pa.string()


def _circumstances(plan: Plan) -> list[Column]:
    def run(slot: Slot) -> str | None:
        return None if slot.trial is None else str(plan.run_folder(slot).relative_to(plan.folder))

    return [
        ("validations", pa.int64(), lambda slot: slot.trial and max(slot.reported, default=0)),
        ("started", pa.timestamp("ms", "UTC"), _started),
        ("seconds", pa.float64(), _seconds),
        ("host", pa.string(), lambda slot: _owner(slot).get("host", "").partition(" ")[0] or None),
        ("pid", pa.int64(), lambda slot: _owner(slot).get("pid")),
        ("run", pa.string(), run),
    ]


def _started(slot: Slot) -> Any:
    begun = slot.attempts[0].datetime_start if slot.attempts else None
    return None if begun is None else begun.astimezone(UTC)


def _seconds(slot: Slot) -> float | None:
    """Of the last attempt."""
    took = None if slot.trial is None else slot.trial.duration
    return None if took is None else took.total_seconds()


def _owner(slot: Slot) -> Any:
    return {} if slot.trial is None else slot.trial.user_attrs.get(OWNER, {})
