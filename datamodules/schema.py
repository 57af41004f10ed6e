"""What a model must know of a table: found once on the training rows, applied unchanged to every other row.

N rows, F numeric and boolean columns, C categorical columns, T timestamp columns.
"""

import difflib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from datamodules.columns import (
    Column,
    Kind,
    booleans,
    codes,
    is_number,
    is_text,
    is_time,
    kind_of,
    numbers,
    plain,
    seconds,
    texts,
)

Schema = dict[str, Any]
Floats = NDArray[np.floating[Any]]
FitBins = Callable[[Floats, Floats], list[float]]

FEWEST_ROWS_OF_IDENTIFIER = 20  # below, all values being different says little
IQR_OF_UNIT_NORMAL = 1.349


def infer(
    table: pa.Table,
    *,
    target: str,
    positive: bool | int | float | str | None,
    max_categories: int,
    fit_bins: FitBins,
    left_out: Mapping[str, str] | None = None,
) -> Schema:
    """Kinds and statistics of the columns of the training rows; plain and JSON-able.

    Args:
        table: training rows, in time order where there is one.
        target: the column to predict.
        positive: its value that counts as positive; None for the rarer of the two.
        max_categories: a text column with more different values is hashed into so many buckets.
        fit_bins: (values [N], labels [N]) -> ascending edges of a numeric column's bins.
        left_out: columns that are no model inputs, and why.

    Raises:
        ValueError: an unknown column, or a target that does not have two values.
    """
    left_out = dict(left_out or {})
    require_columns(table.schema, [target, *left_out])
    described = describe_target(table[target], target, positive)
    labels = encode_target(table[target], described)
    columns = []
    for name in table.column_names:
        if name == target or name in left_out:
            continue
        kind = kind_of(table[name]) if table[name].null_count < len(table) else None
        reason = useless(table[name], kind)
        if reason or kind is None:
            left_out[name] = reason or ""
        else:
            columns.append(_column(name, table[name], kind, labels, max_categories, fit_bins))
    if not columns:
        raise ValueError(f"the table has no column to learn from; left out: {left_out}")
    reasons = [{"name": name, "reason": reason} for name, reason in left_out.items()]
    described["rate"] = float(labels.mean())
    return {"columns": columns, "target": described, "left_out": reasons, "raw": {}}


def encode(
    table: pa.Table | pa.RecordBatch, schema: Schema, unseen: Counter[str] | None = None
) -> dict[str, NDArray[Any]]:
    """Model inputs of any rows: numeric float32 [N, F], categorical int64 [N, C], timestamp int64 [N, T].

    `unseen` is added to: per column, the values that are no category of the schema. Raises ValueError naming the
    column whose values cannot be read as its kind.
    """
    counts = unseen if unseen is not None else Counter()
    kinds = [column["kind"] for column in schema["columns"]]
    widths = {kind: kinds.count(kind) for kind in set(kinds)}
    numeric = np.empty((len(table), widths.get("numeric", 0) + widths.get("boolean", 0)), np.float32)
    categorical = np.empty((len(table), widths.get("categorical", 0)), np.int64)
    timestamp = np.empty((len(table), widths.get("timestamp", 0)), np.int64)
    places: dict[str, Iterator[NDArray[Any]]] = {
        "numeric": iter(numeric.T),
        "categorical": iter(categorical.T),
        "timestamp": iter(timestamp.T),
    }
    places["boolean"] = places["numeric"]
    for column in schema["columns"]:
        try:
            values, num_unseen = _values(table.column(column["name"]), column)
        except ValueError as error:
            raise ValueError(f"column {column['name']!r} should be {column['kind']}: {error}") from error
        next(places[column["kind"]])[:] = values
        if num_unseen:
            counts[column["name"]] += num_unseen
    return {"numeric": numeric, "categorical": categorical, "timestamp": timestamp}


def raw(table: pa.Table | pa.RecordBatch, schema: Schema) -> dict[str, NDArray[Any]]:
    """What an exported graph takes of any rows; a kind without columns is left out.

    numeric float32 [N, F], NaN where missing; categorical texts [N, C], "" where missing; timestamp int64 [N, T].
    """
    arrays = {name: values for name, values in encode(table, schema).items() if values.shape[1]}
    if "categorical" in arrays:
        names = [column["name"] for column in schema["columns"] if column["kind"] == "categorical"]
        columns = [texts(table.column(name)).fill_null("").to_numpy(zero_copy_only=False) for name in names]
        arrays["categorical"] = np.stack([column.astype(object) for column in columns], axis=1)
    return arrays


def encode_raw(arrays: Mapping[str, NDArray[Any]], schema: Schema) -> dict[str, NDArray[Any]]:
    """Model inputs, as `encode` makes them, of what `raw` returns."""
    num_rows = len(next(iter(arrays.values())))
    empty = {"numeric": np.float32, "categorical": np.int64, "timestamp": np.int64}
    encoded = {name: np.empty((num_rows, 0), dtype) for name, dtype in empty.items()} | dict(arrays)
    if "categorical" in arrays:
        columns = [column for column in schema["columns"] if column["kind"] == "categorical"]
        pairs = zip(arrays["categorical"].T, columns, strict=True)
        found = [codes(pa.array(values, pa.large_string()), c["categories"], c["hash_buckets"]) for values, c in pairs]
        encoded["categorical"] = np.stack([of_column for of_column, _ in found], axis=1)
    return encoded


def check(table_schema: pa.Schema, schema: Schema, also: Mapping[str, Kind] | None = None) -> None:
    """Raise ValueError naming every model input (and column of `also`) that a table lacks or holds as another type."""
    wanted = {column["name"]: column["kind"] for column in schema["columns"]} | dict(also or {})
    problems = [_missing(name, table_schema.names) for name in wanted if name not in table_schema.names]
    for name, kind in wanted.items():
        if name in table_schema.names and not _fits(table_schema.field(name).type, kind):
            problems.append(f"column {name!r} should be {kind}, but is {table_schema.field(name).type}")
    if problems:
        raise ValueError("; ".join(problems) + f"; columns here: {', '.join(table_schema.names)}")


def require_columns(table_schema: pa.Schema, names: Iterable[str]) -> None:
    """Raise ValueError naming every column that a table lacks."""
    problems = [_missing(name, table_schema.names) for name in names if name not in table_schema.names]
    if problems:
        raise ValueError("; ".join(problems) + f"; columns here: {', '.join(table_schema.names)}")


def describe_target(column: Column, name: str, positive: bool | int | float | str | None) -> dict[str, Any]:
    """Names of the positive and the negative value of a binary column. Raises ValueError if it is not binary."""
    pairs = pc.value_counts(texts(column).drop_null()).to_pylist()
    counts = {str(pair["values"]): int(pair["counts"]) for pair in pairs}
    if len(counts) != 2:
        some = ", ".join(sorted(counts)[:8]) or "none"
        raise ValueError(
            f"target {name!r} must have two different values; it has {len(counts)} ({some}). Choose another target, or "
            "data.split=random if the table is sorted by it, so that the training rows have only one"
        )
    first, second = sorted(counts)
    if positive is not None:
        chosen = str(texts(pa.array([positive]))[0].as_py())
        if chosen not in counts:
            raise ValueError(f"positive must be a value of target {name!r} ({first}, {second}), got {positive!r}")
    else:
        # Sorted, 1 follows 0 and true follows false.
        chosen = first if counts[first] < counts[second] else second
    return {"name": name, "positive": chosen, "negative": second if chosen == first else first}


def encode_target(column: Column, target: Mapping[str, Any]) -> NDArray[np.float32]:
    """1 for positive, 0 for negative, NaN where missing, [N]. Raises ValueError naming any other value."""
    column = texts(column)
    is_positive = np.asarray(pc.fill_null(pc.equal(column, target["positive"]), False))
    is_negative = np.asarray(pc.fill_null(pc.equal(column, target["negative"]), False))
    strange = ~(is_positive | is_negative | np.asarray(column.is_null()))
    if strange.any():
        value = column[int(np.argmax(strange))].as_py()
        raise ValueError(
            f"target {target['name']!r} must be {target['positive']} or {target['negative']}; "
            f"{int(strange.sum())} rows have another value, such as {value!r}"
        )
    return np.where(is_positive, 1.0, np.where(is_negative, 0.0, np.nan)).astype(np.float32)


def useless(column: Column, kind: Kind | None) -> str | None:
    """Why a column can teach nothing: empty, constant, or a name for the row. None if it can."""
    if column.null_count == len(column):
        return "it has no values"
    if kind is None:
        return f"no model input is made of {column.type} values"
    column = plain(column)
    if pa.types.is_integer(column.type):
        return _constant(column) or _identifier_of_numbers(np.asarray(column.drop_null()), len(column))
    if kind == "numeric" or kind == "boolean":
        values = numbers(column) if kind == "numeric" else booleans(column)[0]
        if np.isnan(values).all():
            return "it has no values"
        return f"every value is {values[0]:g}" if np.all(values == values[0]) else None
    if kind == "categorical" and _all_differ(column):
        return "every value is different: an identifier or free text"
    return _constant(column)


def _all_differ(column: Column) -> bool:
    is_long = len(column) >= FEWEST_ROWS_OF_IDENTIFIER
    return is_long and bool(pc.count_distinct(column, mode="only_valid").as_py() == len(column))


def _constant(column: Column) -> str | None:
    if column.null_count:
        return None
    least, greatest = pc.min_max(column).as_py().values()
    return f"every value is {least}" if least == greatest else None


def _identifier_of_numbers(values: NDArray[np.integer[Any]], num_rows: int) -> str | None:
    if num_rows < FEWEST_ROWS_OF_IDENTIFIER or len(values) < num_rows:
        return None
    if np.all(values[1:] > values[:-1]) or np.all(values[1:] < values[:-1]):
        return "it numbers the rows in order: an identifier"
    is_dense = int(values.max()) - int(values.min()) < 2 * num_rows
    return "every value is different: an identifier" if is_dense and len(np.unique(values)) == num_rows else None


def _column(
    name: str, column: Column, kind: Kind, labels: Floats, max_categories: int, fit_bins: FitBins
) -> dict[str, Any]:
    described: dict[str, Any] = {"name": name, "kind": kind, "dtype": str(column.type)}
    if kind == "timestamp":
        return described
    if kind == "categorical":
        categories = sorted(pc.unique(texts(column)).drop_null().to_pylist())
        is_hashed = len(categories) > max_categories
        buckets = max_categories if is_hashed else 0
        return described | {"categories": [] if is_hashed else categories, "hash_buckets": buckets}
    values = (booleans(column)[0] if kind == "boolean" else numbers(column)).astype(np.float32)
    present = values[~np.isnan(values)].astype(np.float64)
    lower, median, upper = np.percentile(present, [25, 50, 75]) if len(present) else (0.0, 0.0, 0.0)
    scale = upper - lower or (float(present.std()) if len(present) else 0.0) * IQR_OF_UNIT_NORMAL or 1.0
    return described | {
        "missing": float(np.isnan(values).mean()),
        "median": float(median),
        "iqr": float(scale),
        "bins": fit_bins(values, labels),
    }


def _values(column: Column, described: Mapping[str, Any]) -> tuple[NDArray[Any], int]:
    kind = described["kind"]
    if kind == "categorical":
        return codes(column, described["categories"], described["hash_buckets"])
    if kind == "timestamp":
        return seconds(column), 0
    return booleans(column) if kind == "boolean" else (numbers(column), 0)


def _fits(type_: pa.DataType, kind: Kind) -> bool:
    if pa.types.is_dictionary(type_):
        type_ = type_.value_type
    if is_text(type_) or pa.types.is_null(type_):
        return True  # whether texts parse, only their values can tell: encode does
    if kind == "timestamp":
        return is_time(type_)
    if kind == "categorical":
        return bool(pa.types.is_integer(type_) or pa.types.is_boolean(type_))
    return is_number(type_) or bool(pa.types.is_boolean(type_))


def _missing(name: str, names: Sequence[str]) -> str:
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.6) or [n for n in names if n.lower() == name.lower()]
    return f"column {name!r} is missing" + (f" (did you mean {close[0]!r}?)" if close else "")
