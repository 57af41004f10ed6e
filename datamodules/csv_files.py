"""CSV files as Arrow: read whole, or in constant memory with the types that hold in every row."""

import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.fs

DELIMITERS = {".csv": ",", ".csv.gz": ",", ".tsv": "\t", ".tsv.gz": "\t"}
# What a column may turn out to be, in the order in which it is tried.
LADDER = (pa.null(), pa.int64(), pa.float64(), pa.bool_(), pa.timestamp("s"), pa.timestamp("us"), pa.string())
BLOCK_BYTES = 2 << 20  # Arrow reads 32 such blocks ahead


def suffix_of(path: str) -> str:
    """Lower-case extension, .gz taken together with what stands before it."""
    parts = os.path.basename(path).lower().split(".")
    if len(parts) == 1:
        return ""
    return "." + ".".join(parts[-2:] if parts[-1] == "gz" and len(parts) > 2 else parts[-1:])


def read_csv(filesystem: pa.fs.FileSystem, path: str, columns: Sequence[str] | None) -> pa.Table:
    """All of one file; missing are empty fields and the usual words for "not available"."""
    parse = _parse_options(filesystem, path)
    with filesystem.open_input_stream(path) as stream:
        return pa.csv.read_csv(stream, parse_options=parse, convert_options=_convert_options(columns))


def iter_csv(
    filesystem: pa.fs.FileSystem, paths: Sequence[str], columns: Sequence[str] | None, batch_rows: int
) -> Iterator[pa.RecordBatch]:
    """Rows of all files in order. They are read twice: their first rows do not tell the types of the others."""
    types = csv_types(filesystem, paths)
    names = list(types) if columns is None else list(columns)
    schema = pa.schema([(name, types.get(name, pa.null())) for name in names])
    for path in paths:
        for batch in _batches(filesystem, path, types, names):
            for start in range(0, batch.num_rows, batch_rows):
                yield batch.slice(start, batch_rows).cast(schema)
    yield pa.RecordBatch.from_pylist([], schema=schema)


def csv_types(filesystem: pa.fs.FileSystem, paths: Sequence[str]) -> dict[str, pa.DataType]:
    """Narrowest type of each column that holds in every row of every file; names in order of appearance."""
    rungs: dict[str, int] = {}
    for path in paths:
        parse = _parse_options(filesystem, path)
        with filesystem.open_input_stream(path) as stream:
            names = pa.csv.open_csv(stream, parse_options=parse).schema.names
        rungs |= {name: 0 for name in names if name not in rungs}
        for batch in _batches(filesystem, path, dict.fromkeys(names, pa.string())):
            for name in names:
                rungs[name] = _climb(batch[name], rungs[name])
    return {name: LADDER[rung] for name, rung in rungs.items()}


def _climb(values: pa.StringArray, rung: int) -> int:
    """First rung of the ladder from `rung` on that holds all values."""
    if values.null_count == len(values):
        return rung
    for candidate in range(max(rung, 1), len(LADDER) - 1):
        try:
            values.cast(LADDER[candidate])
        except pa.ArrowInvalid:
            continue
        return candidate
    return len(LADDER) - 1


def _batches(
    filesystem: pa.fs.FileSystem, path: str, types: Mapping[str, pa.DataType], columns: Sequence[str] | None = None
) -> Iterator[pa.RecordBatch]:
    parse = _parse_options(filesystem, path)
    with filesystem.open_input_stream(path) as stream:
        yield from pa.csv.open_csv(
            stream,
            read_options=pa.csv.ReadOptions(block_size=BLOCK_BYTES),
            parse_options=parse,
            convert_options=_convert_options(columns, dict(types)),
        )


def _parse_options(filesystem: pa.fs.FileSystem, path: str) -> pa.csv.ParseOptions:
    delimiter = DELIMITERS[suffix_of(path)]
    with filesystem.open_input_stream(path) as stream:
        header = stream.read(BLOCK_BYTES).split(b"\n", 1)[0]
    if delimiter.encode() not in header and b";" in header:
        delimiter = ";"
    return pa.csv.ParseOptions(delimiter=delimiter, newlines_in_values=True)


def _convert_options(columns: Sequence[str] | None, types: dict[str, Any] | None = None) -> pa.csv.ConvertOptions:
    return pa.csv.ConvertOptions(
        column_types=types,
        strings_can_be_null=True,
        include_columns=None if columns is None else list(columns),
        include_missing_columns=True,
    )
