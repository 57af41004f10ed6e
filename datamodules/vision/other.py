"""Pictures at another place, for evaluation and prediction: in a table by its columns, or in a folder."""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pyarrow as pa

from datamodules import labels as label
from datamodules.columns import Column
from datamodules.csv_files import suffix_of
from datamodules.schema import require_columns
from datamodules.sources import KINDS, find_files, iter_batches, read_table
from datamodules.texts import naming
from datamodules.vision.decoded import Source
from datamodules.vision.files import by_class, files_in, of_column

PREDICT_BATCH_ROWS = 1_024


def is_table(uri: str) -> bool:
    """Whether there is a table, or a folder of tables, and not a folder of images."""
    if suffix_of(uri) in KINDS:
        return True
    try:
        return bool(find_files(uri))
    except ValueError:  # other files
        return False


def labelled(uri: str, raw: Mapping[str, Any], notes: list[str]) -> tuple[Source, Column]:
    """The pictures with a label, and the labels."""
    if not is_table(uri):
        return by_class(uri, files_in(uri), notes)
    return of_table(uri, read_table(uri, as_text=True), raw, notes)


def of_table(uri: str, table: pa.Table, raw: Mapping[str, Any], notes: list[str]) -> tuple[Source, Column]:
    """The pictures of a table's rows that have a label, and the labels."""
    with naming(uri):
        require_columns(table.schema, [raw["image"], raw["label"]])
    with naming(f"{uri}, column {raw['label']!r}"):
        labels = label.labels_of(table[raw["label"]], None)
        if label.is_multiple(labels):
            raise ValueError("an image has one label here; these are lists")
    has_label = np.asarray(labels.is_valid())
    if not has_label.all():
        notes.append(f"{int((~has_label).sum()):,} rows of {uri} without a label are left out")
    if not has_label.any():
        raise ValueError(f"{uri}: no row has a label in column {raw['label']!r}")
    rows = np.flatnonzero(has_label)
    taken = pa.array(rows)
    return of_column(uri, table.take(taken), raw, notes, (rows + 1).tolist()), labels.take(taken)


def batches(uri: str, raw: Mapping[str, Any]) -> Iterator[tuple[pa.RecordBatch, Source]]:
    """Batches of a table, or of a folder's files as a table with the column `image`, each with its pictures."""
    if is_table(uri):
        row = 1
        for batch in iter_batches(uri, batch_rows=PREDICT_BATCH_ROWS, as_text=True):
            rows = range(row, row + batch.num_rows)
            yield batch, of_column(uri, pa.Table.from_batches([batch]), raw, [], rows)
            row += batch.num_rows
        return
    files = files_in(uri)
    names = list(files.images)
    if not names:
        raise ValueError(f"{uri}: there are no images")
    for start in range(0, len(names), PREDICT_BATCH_ROWS):
        some = names[start : start + PREDICT_BATCH_ROWS]
        yield pa.RecordBatch.from_pydict({"image": some}), files.source(uri, some)
