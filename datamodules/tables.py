"""Tables of one's own: a file for each split, or one file with a column that names them."""

from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa

from datamodules.schema import require_columns
from datamodules.sources import read_table
from datamodules.splits import Value, parts_by_column
from datamodules.texts import naming


def paths_of(path: str, val_path: str | None, test_path: str | None) -> dict[str, str]:
    """The files that there are, by split."""
    return {"train": path} | ({"val": val_path} if val_path else {}) | ({"test": test_path} if test_path else {})


def require_split_column(split_column: str | None, splits: Mapping[str, Sequence[Value] | None] | None) -> None:
    """Raise ValueError if values are given of no column."""
    if splits is not None and split_column is None:
        raise ValueError("splits needs the column whose values it names: give data.split_column=COLUMN")


def read_splits(
    paths: Mapping[str, str],
    split_column: str | None,
    splits: Mapping[str, Sequence[Value] | None] | None,
    notes: list[str],
) -> dict[str, tuple[str, pa.Table]]:
    """For each split that files or a column of the first name, where it comes from and its table as it is stored."""
    tables = {name: (path, read_table(path, as_text=True)) for name, path in paths.items()}
    if split_column is None:
        return tables
    path, table = tables["train"]
    with naming(path):
        require_columns(table.schema, [split_column])
        parts = parts_by_column(table[split_column], split_column, splits, notes)
    if both := parts.keys() & tables.keys() - {"train"}:
        name = sorted(both)[0]
        raise ValueError(f"{name} rows are named twice: by data.{name}_path and by column {split_column!r}")
    return tables | {name: (path, table.take(pa.array(rows.astype(np.int64)))) for name, rows in parts.items()}
