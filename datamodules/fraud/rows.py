"""Rows of a table on their way to tensors: put in order of time, given inputs, encoded with all that metrics need."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor

from datamodules.columns import MISSING_SECONDS, Column, entities, is_number, numbers, plain, seconds, texts
from datamodules.fraud.features import transaction_features
from datamodules.schema import Schema, encode, encode_target

DAY = 86_400
Ints = NDArray[np.int64]
# Columns of the table by their role: target, time, amount, customer and so on.
Names = dict[str, str | None]


@dataclass(frozen=True)
class Rows:
    """Candidates for model inputs, with the target if there is one, and the columns as they came, row by row."""

    inputs: pa.Table
    given: pa.Table
    order: Ints  # the rows' places in the file

    def take(self, rows: Ints) -> "Rows":
        """The rows at these places, in this order."""
        if len(rows) and len(rows) == rows[-1] - rows[0] + 1 and np.all(rows[1:] > rows[:-1]):
            start = int(rows[0])
            return Rows(self.inputs.slice(start, len(rows)), self.given.slice(start, len(rows)), self.order[rows])
        given = self.given.take(rows)
        return Rows(given if self.inputs is self.given else self.inputs.take(rows), given, self.order[rows])


def in_order_of_time(table: pa.Table, time: str | None, notes: list[str]) -> Rows:
    """All rows that have a time, the oldest first; without a time column, all rows as they are."""
    order = np.arange(len(table))
    if time is None:
        return Rows(table, table, order)
    times = moments(table[time])
    is_dated = times != MISSING_SECONDS
    if not is_dated.all():
        notes.append(f"{int((~is_dated).sum()):,} rows without a time ({time}) are left out")
    order = np.argsort(times, kind="stable")
    return Rows(table, table, np.arange(len(table))).take(order[is_dated[order]])


def with_target(rows: Rows, target: str, notes: list[str]) -> Rows:
    """The rows that have a value of the target."""
    has_value = np.asarray(texts(rows.given[target]).is_valid())
    if has_value.all():
        return rows
    notes.append(f"{int((~has_value).sum()):,} rows without a target ({target}) are left out")
    return rows.take(np.flatnonzero(has_value))


def transactions(table: pa.Table, raw: Mapping[str, Any], target: Mapping[str, Any], notes: list[str]) -> Rows:
    """Raw transactions in order of time, with inputs that tell what was known of customer and terminal by then.

    Rows that lack time, customer, terminal or amount are left out. A missing label counts as legitimate in windows.
    """
    names = raw["names"]
    amount = numbers(table[names["amount"]])
    complete = np.isfinite(amount)
    for role in ("customer", "terminal"):
        complete &= np.asarray(plain(table[names[role]]).is_valid())
    if not complete.all():
        notes.append(f"{int((~complete).sum()):,} transactions without customer, terminal or amount are left out")
    rows = in_order_of_time(table, names["time"], notes)
    rows = rows if complete.all() else rows.take(np.flatnonzero(complete[rows.order]))
    given, label = rows.given, names["target"]
    has_label = label in table.column_names
    features = transaction_features(
        {
            "time_seconds": moments(given[names["time"]]),
            "customer": entities(given[names["customer"]]),
            "terminal": entities(given[names["terminal"]]),
            "amount": amount[rows.order],
            "label": np.nan_to_num(encode_target(given[label], target)) if has_label else np.zeros(len(given)),
        },
        label_delay_days=raw["label_delay_days"],
        windows_days=raw["windows_days"],
    )
    columns = {name: pa.chunked_array([values]) for name, values in features.items()}
    columns |= {name: given[name] for name in raw["extra_inputs"]}
    return Rows(pa.table(columns | ({label: given[label]} if has_label else {})), given, rows.order)


def to_tensors(rows: Rows, schema: Schema, unseen: Counter[str]) -> dict[str, Tensor]:
    """Inputs, target, weight, amount (cost of a miss), day and customer (-1: unknown) of each row."""
    inputs = encode(rows.inputs, schema, unseen)  # first, since its errors name the column
    given, cost = rows.given, schema["raw"]["cost_false_negative"]
    present = {role: given[name] for role, name in schema["raw"]["names"].items() if name in given.column_names}
    amount = np.full(len(given), 1.0 if cost == "amount" else cost, np.float32)
    if cost == "amount":
        amount = np.nan_to_num(numbers(present["amount"]).astype(np.float32)).clip(min=0)
    weight = numbers(present["weight"]) if "weight" in present else np.ones(len(given))
    if not np.all(weight >= 0):
        name = schema["raw"]["names"]["weight"]
        raise ValueError(f"column {name!r} should hold weights: no row may lack one or have a negative one")
    day = moments(present["time"]) // DAY if "time" in present else np.zeros(len(given), np.int64)
    return as_tensors(
        inputs
        | {
            "target": encode_target(present["target"], schema["target"]),
            "weight": weight.astype(np.float32),
            "amount": amount,
            "day": day,
            "customer": entities(present["customer"]) if "customer" in present else np.full(len(given), -1),
        }
    )


def as_tensors(arrays: Mapping[str, NDArray[Any]]) -> dict[str, Tensor]:
    """The same arrays as tensors."""
    return {name: torch.from_numpy(np.require(array, requirements=["C", "W"])) for name, array in arrays.items()}


def moments(column: Column) -> Ints:
    """Moments in whole seconds, of dates and times (since 1970) or of numbers of seconds (since any moment)."""
    if not is_number(plain(column).type):
        return seconds(column)
    values = numbers(column)
    return np.where(np.isnan(values), MISSING_SECONDS, np.nan_to_num(values).astype(np.int64))


def concatenated(tables: Sequence[pa.Table]) -> pa.Table:
    """Tables one below the other. Raises ValueError if a column has types that do not go together."""
    try:
        return pa.concat_tables(tables, promote_options="permissive")
    except pa.ArrowException as error:
        raise ValueError(f"history and data do not fit together: {error}") from error
