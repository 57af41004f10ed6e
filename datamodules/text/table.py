"""Texts of one's own: any table with a column of texts and a column of labels."""

from typing import Unpack

import numpy as np
import pyarrow as pa

from datamodules.schema import require_columns
from datamodules.sources import read_table
from datamodules.text.datamodule import Options, TextDataModule
from datamodules.text.splits import Value, parts_by_column
from datamodules.text.texts import naming


class TextTable(TextDataModule):
    """Any table: CSV, TSV, JSON lines or Parquet, a file or a folder, local or on S3. Other data stream.

    Args:
        path: where the table is.
        val_path: where the validation rows are; None to take them out of the training rows.
        test_path: where the test rows are; None to take them out of the training rows.
        text: column of the texts, or several, joined by a newline.
        label: column of the label, or of a list of labels.
        label_separator: what stands between several labels of a row; None where there is one, or a list column.
        split_column: column that names each row's split; None for none.
        splits: values of that column by split, {train: [..], val: [..], test: [..]}; None for the usual ones.
        options: see `Options`.
    """

    def __init__(
        self,
        *,
        path: str,
        val_path: str | None,
        test_path: str | None,
        text: str | list[str],
        label: str,
        label_separator: str | None,
        split_column: str | None,
        splits: dict[str, list[Value] | None] | None,
        **options: Unpack[Options],
    ) -> None:
        columns = [text] if isinstance(text, str) else text
        super().__init__(columns, label=label, label_separator=label_separator, options=options)
        if splits is not None and split_column is None:
            raise ValueError("splits needs the column whose values it names: give data.split_column=COLUMN")
        self.paths = (
            {"train": path} | ({"val": val_path} if val_path else {}) | ({"test": test_path} if test_path else {})
        )
        self.split_column = split_column
        self.splits = splits
        self.name = path.rstrip("/").rsplit("/", 1)[-1]

    def read(self) -> dict[str, tuple[str, pa.Table]]:
        """For each split that the data name, where it comes from and its table as it is stored."""
        tables = {name: (path, read_table(path, as_text=True)) for name, path in self.paths.items()}
        if self.split_column is None:
            return tables
        path, table = tables["train"]
        with naming(path):
            require_columns(table.schema, [self.split_column])
            parts = parts_by_column(table[self.split_column], self.split_column, self.splits, self.notes)
        if both := parts.keys() & tables.keys() - {"train"}:
            name = sorted(both)[0]
            raise ValueError(f"{name} rows are named twice: by data.{name}_path and by column {self.split_column!r}")
        return tables | {name: (path, table.take(pa.array(rows.astype(np.int64)))) for name, rows in parts.items()}
