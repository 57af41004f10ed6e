"""CSV files as Arrow: read whole, or in constant memory with the types that hold in every row."""

import codecs
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.fs

DELIMITERS = {".csv": ",", ".csv.gz": ",", ".tsv": "\t", ".tsv.gz": "\t"}
# What a column may turn out to be, in the order in which it is tried.
LADDER = (pa.null(), pa.int64(), pa.float64(), pa.bool_(), pa.timestamp("s"), pa.timestamp("us"), pa.string())
BLOCK_BYTES = 2 << 20  # Arrow reads 32 such blocks ahead
TEXT_BLOCK_BYTES = 16 << 20  # a row must fit into a block, and texts may be long


def suffix_of(path: str) -> str:
    """Lower-case extension, .gz taken together with what stands before it."""
    parts = os.path.basename(path).lower().split(".")
    if len(parts) == 1:
        return ""
    return "." + ".".join(parts[-2:] if parts[-1] == "gz" and len(parts) > 2 else parts[-1:])


def read_csv(
    filesystem: pa.fs.FileSystem, path: str, columns: Sequence[str] | None, *, as_text: bool = False
) -> pa.Table:
    """All of one file; missing are empty fields and the usual words for "not available".

    With `as_text`, all fields are texts, and only empty ones are missing.
    """
    parse = _parse_options(filesystem, path)
    types = dict.fromkeys(_names(filesystem, path), pa.string()) if as_text else None
    read = pa.csv.ReadOptions(block_size=TEXT_BLOCK_BYTES) if as_text else None
    convert = _convert_options(columns, types, as_text)
    with _utf8(filesystem, path), filesystem.open_input_stream(path) as stream:
        return pa.csv.read_csv(stream, read_options=read, parse_options=parse, convert_options=convert)


def iter_csv(
    filesystem: pa.fs.FileSystem,
    paths: Sequence[str],
    columns: Sequence[str] | None,
    batch_rows: int,
    *,
    as_text: bool = False,
) -> Iterator[pa.RecordBatch]:
    """Rows of all files in order. They are read twice: their first rows do not tell the types of the others.

    With `as_text`, all fields are texts, and only empty ones are missing; then they are read once.
    """
    if as_text:
        types = {name: pa.string() for path in paths for name in _names(filesystem, path)}
    else:
        types = csv_types(filesystem, paths)
    names = list(types) if columns is None else list(columns)
    schema = pa.schema([(name, types.get(name, pa.null())) for name in names])
    for path in paths:
        for batch in _batches(filesystem, path, types, names, as_text):
            for start in range(0, batch.num_rows, batch_rows):
                yield batch.slice(start, batch_rows).cast(schema)
    yield pa.RecordBatch.from_pylist([], schema=schema)


def csv_types(filesystem: pa.fs.FileSystem, paths: Sequence[str]) -> dict[str, pa.DataType]:
    """Narrowest type of each column that holds in every row of every file; names in order of appearance."""
    rungs: dict[str, int] = {}
    for path in paths:
        names = _names(filesystem, path)
        rungs |= {name: 0 for name in names if name not in rungs}
        for batch in _batches(filesystem, path, dict.fromkeys(names, pa.string())):
            for name in names:
                rungs[name] = _climb(batch[name], rungs[name])
    return {name: LADDER[rung] for name, rung in rungs.items()}


def _names(filesystem: pa.fs.FileSystem, path: str) -> list[str]:
    parse = _parse_options(filesystem, path)
    with _utf8(filesystem, path), filesystem.open_input_stream(path) as stream:
        read = pa.csv.ReadOptions(block_size=TEXT_BLOCK_BYTES)
        return list(pa.csv.open_csv(stream, read_options=read, parse_options=parse).schema.names)


@contextmanager
def _utf8(filesystem: pa.fs.FileSystem, path: str) -> Iterator[None]:
    """Tell where a file is not UTF-8, if that is what reading it failed on."""
    try:
        yield
    except pa.ArrowInvalid as error:
        with filesystem.open_input_stream(path) as stream:
            broken = _first_broken(stream)
        if broken is None:
            raise
        raise pa.ArrowInvalid(broken) from error


def _first_broken(stream: pa.NativeFile) -> str | None:
    number, rest, block = 0, b"", b" "
    while block:
        block = stream.read(BLOCK_BYTES)
        *lines, rest = (rest + block).split(b"\n") if block else (rest, b"")
        for line in lines:
            number += 1
            if told := not_utf8(line, number):
                return told
    return None


def not_utf8(line: bytes, number: int) -> str | None:
    """What is wrong with the bytes of a file's line of this number, from 1; None for UTF-8."""
    try:
        line.decode()
    except UnicodeDecodeError as error:
        if number == 1 and line.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
            return "it is UTF-16; save it as UTF-8"
        return f"line {number} is not UTF-8: byte {line[error.start]:#04x} at place {error.start + 1}"
    return None


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
    filesystem: pa.fs.FileSystem,
    path: str,
    types: Mapping[str, pa.DataType],
    columns: Sequence[str] | None = None,
    as_text: bool = False,
) -> Iterator[pa.RecordBatch]:
    parse = _parse_options(filesystem, path)
    with _utf8(filesystem, path), filesystem.open_input_stream(path) as stream:
        yield from pa.csv.open_csv(
            stream,
            read_options=pa.csv.ReadOptions(block_size=TEXT_BLOCK_BYTES if as_text else BLOCK_BYTES),
            parse_options=parse,
            convert_options=_convert_options(columns, dict(types), as_text),
        )


def _parse_options(filesystem: pa.fs.FileSystem, path: str) -> pa.csv.ParseOptions:
    delimiter = DELIMITERS[suffix_of(path)]
    with filesystem.open_input_stream(path) as stream:
        header = stream.read(BLOCK_BYTES).split(b"\n", 1)[0]
    if delimiter.encode() not in header and b";" in header:
        delimiter = ";"
    return pa.csv.ParseOptions(delimiter=delimiter, newlines_in_values=True)


def _convert_options(
    columns: Sequence[str] | None, types: dict[str, Any] | None, as_text: bool
) -> pa.csv.ConvertOptions:
    return pa.csv.ConvertOptions(
        column_types=types,
        null_values=[""] if as_text else None,
        strings_can_be_null=True,
        include_columns=None if columns is None else list(columns),
        include_missing_columns=True,
    )
