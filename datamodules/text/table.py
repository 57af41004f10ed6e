"""Texts of one's own: any table with a column of texts and a column of labels."""

from typing import Unpack

import pyarrow as pa

from datamodules.splits import Value
from datamodules.tables import paths_of, read_splits, require_split_column
from datamodules.text.datamodule import Options, TextDataModule


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
        require_split_column(split_column, splits)
        self.paths = paths_of(path, val_path, test_path)
        self.split_column = split_column
        self.splits = splits
        self.name = path.rstrip("/").rsplit("/", 1)[-1]

    def read(self) -> dict[str, tuple[str, pa.Table]]:
        """For each split that the data name, where it comes from and its table as it is stored."""
        return read_splits(self.paths, self.split_column, self.splits, self.notes)
