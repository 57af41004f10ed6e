"""Parallel text of one's own: line i of one file is the translation of line i of another."""

import os
import re
from collections.abc import Iterator
from typing import Unpack

import pyarrow as pa

from datamodules.csv_files import suffix_of
from datamodules.lines import iter_lines, read_lines
from datamodules.seq2seq.datamodule import PREDICT_BATCH_ROWS, Options, Seq2SeqDataModule, language_of
from datamodules.sources import KINDS

SOURCE, TARGET = "source", "target"


class ParallelText(Seq2SeqDataModule):
    """Two files of equally many lines for each split, plain or .gz, local or on S3.

    Other data are a plain file of sources, two files `SOURCE:TARGET`, or a table with columns `source` and `target`.

    Args:
        source: file with the training sources.
        target: file with the training targets.
        val_source: the same for validation; None to take it out of the training rows.
        val_target: the same.
        test_source: the same for test; None to take it out of the training rows.
        test_target: the same.
        options: see `Options`.
    """

    def __init__(
        self,
        *,
        source: str,
        target: str,
        val_source: str | None,
        val_target: str | None,
        test_source: str | None,
        test_target: str | None,
        **options: Unpack[Options],
    ) -> None:
        super().__init__([SOURCE], target=TARGET, options=options)
        self.files = {"train": (source, target)}
        if source == target:
            raise ValueError(f"target must be another file than the source; both are {source!r}")
        for name, own in (("val", (val_source, val_target)), ("test", (test_source, test_target))):
            if own[0] and own[1]:
                self.files[name] = (own[0], own[1])
            elif own[0] or own[1]:
                given, other = (SOURCE, TARGET) if own[0] else (TARGET, SOURCE)
                raise ValueError(f"data.{name}_{given} needs data.{name}_{other} as well: a file with as many lines")
        self.languages = {SOURCE: _language(source), TARGET: _language(target)}
        self.name = os.path.basename(source)

    def read(self) -> dict[str, tuple[str, pa.Table]]:
        """For each split, its files and their lines side by side."""
        return {name: (" and ".join(files), read_pair(*files)) for name, files in self.files.items()}

    def read_other(self, uri: str) -> pa.Table:
        """Two files as SOURCE:TARGET, or a table."""
        files = re.split(r":(?!//)", uri)
        if len(files) == 2:
            return read_pair(*files)
        if suffix_of(uri) not in KINDS:
            raise ValueError(f"{uri!r} has no targets; give two files, SOURCE:TARGET, or a table with both columns")
        return super().read_other(uri)

    def iter_tables(self, uri: str) -> Iterator[pa.RecordBatch]:
        """A table's rows, or the lines of a plain file, piece by piece."""
        if suffix_of(uri) in KINDS:
            yield from super().iter_tables(uri)
            return
        schema = pa.schema([(SOURCE, pa.large_string())])
        for lines in iter_lines(uri, batch_rows=PREDICT_BATCH_ROWS):
            yield pa.RecordBatch.from_arrays([pa.array(lines, pa.large_string())], schema=schema)


def read_pair(source: str, target: str) -> pa.Table:
    """The lines of two files side by side. Raises ValueError unless they are equally many."""
    sources, targets = read_lines(source), read_lines(target)
    if len(sources) != len(targets):
        raise ValueError(
            f"parallel files must have equally many lines; {source} has {len(sources):,} and {target} {len(targets):,}"
        )
    return pa.table({SOURCE: sources, TARGET: targets})


def _language(path: str) -> str | None:
    parts = os.path.basename(path).removesuffix(".gz").split(".")
    return language_of(parts[-1])
