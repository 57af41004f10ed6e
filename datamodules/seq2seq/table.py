"""Pairs of one's own: any table with a column of sources and a column of targets."""

from typing import Unpack

import pyarrow as pa

from datamodules.seq2seq.datamodule import Options, Seq2SeqDataModule
from datamodules.splits import Value
from datamodules.tables import paths_of, read_splits, require_split_column


class Seq2SeqTable(Seq2SeqDataModule):
    """Any table: CSV, TSV, JSON lines or Parquet, a file or a folder, local or on S3. Other data stream.

    Args:
        path: where the table is.
        val_path: where the validation rows are; None to take them out of the training rows.
        test_path: where the test rows are; None to take them out of the training rows.
        source: column of the sources, or several, joined by a newline.
        target: column of the targets.
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
        source: str | list[str],
        target: str,
        split_column: str | None,
        splits: dict[str, list[Value] | None] | None,
        **options: Unpack[Options],
    ) -> None:
        super().__init__([source] if isinstance(source, str) else source, target=target, options=options)
        require_split_column(split_column, splits)
        self.paths = paths_of(path, val_path, test_path)
        self.split_column = split_column
        self.splits = splits
        self.name = path.rstrip("/").rsplit("/", 1)[-1]

    def read(self) -> dict[str, tuple[str, pa.Table]]:
        """For each split that the data name, where it comes from and its table as it is stored."""
        return read_splits(self.paths, self.split_column, self.splits, self.notes)
