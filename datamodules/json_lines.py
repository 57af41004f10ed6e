"""Files with one JSON object a line as Arrow: read whole, or in constant memory with types that hold in every row."""

import io
import json
import re
from collections.abc import Iterator, Mapping, Sequence

import pyarrow as pa
import pyarrow.fs
import pyarrow.json

from datamodules.csv_files import not_utf8

SUFFIXES = (".jsonl", ".jsonl.gz", ".ndjson", ".ndjson.gz")
BLOCK_BYTES = 16 << 20


def read_json(
    filesystem: pa.fs.FileSystem, path: str, columns: Sequence[str] | None, *, as_text: bool = False
) -> pa.Table:
    """All of one file; a name that an object lacks is missing there. With `as_text`, no text is taken for a time."""
    tables = list(_blocks(filesystem, path, as_text))
    if not tables:
        raise pa.ArrowInvalid("Empty JSON file")
    return picked(pa.concat_tables(tables, promote_options="permissive"), columns)


def iter_json(
    filesystem: pa.fs.FileSystem,
    paths: Sequence[str],
    columns: Sequence[str] | None,
    batch_rows: int,
    *,
    as_text: bool = False,
) -> Iterator[pa.RecordBatch]:
    """Rows of all files in order. They are read twice: their first rows do not tell the types of the others."""
    schemas = [table.schema for path in paths for table in _blocks(filesystem, path, as_text)]
    if not schemas:
        raise pa.ArrowInvalid("Empty JSON file")
    schema = pa.unify_schemas(schemas, promote_options="permissive")
    empty = schema.empty_table()
    for path in paths:
        for table in _blocks(filesystem, path, as_text):
            whole = pa.concat_tables([empty, table], promote_options="permissive")
            yield from picked(whole, columns).combine_chunks().to_batches(max_chunksize=batch_rows)
    yield pa.RecordBatch.from_pylist([], schema=picked(empty, columns).schema)


def picked(table: pa.Table, columns: Sequence[str] | None) -> pa.Table:
    """The columns of these names; one that is not there is all missing."""
    if columns is None:
        return table
    given = {name: table[name] if name in table.column_names else pa.nulls(len(table)) for name in columns}
    return pa.table(given)


def _blocks(filesystem: pa.fs.FileSystem, path: str, as_text: bool) -> Iterator[pa.Table]:
    """Whole lines, about 16 MB of them at a time."""
    line, rest = 1, b""
    with filesystem.open_input_stream(path) as stream:
        while block := stream.read(BLOCK_BYTES):
            end = block.rfind(b"\n") + 1
            if end:
                lines, rest = rest + block[:end], block[end:]
                yield from _parsed(lines, line, as_text)
                line += lines.count(b"\n")
            else:
                rest += block
    yield from _parsed(rest, line, as_text)


def _parsed(lines: bytes, first_line: int, as_text: bool) -> Iterator[pa.Table]:
    if not lines.strip():
        return
    numbered = list(enumerate(lines.split(b"\n"), start=first_line))
    try:
        lines.decode()  # Arrow takes texts of any bytes
    except UnicodeDecodeError:
        raise pa.ArrowInvalid(next(filter(None, (not_utf8(line, number) for number, line in numbered)))) from None
    try:
        table = _read(lines, {})
        times = [field.name for field in table.schema if pa.types.is_temporal(field.type)] if as_text else []
        yield _read(lines, dict.fromkeys(times, pa.string())) if times else table
    except pa.ArrowInvalid as error:
        numbered = [(number, line) for number, line in numbered if line.strip()]
        told = re.sub(r"in row (\d+)", lambda row: f"in line {numbered[int(row[1])][0]}", str(error))
        raise pa.ArrowInvalid(_first_broken(numbered) or told) from error


def _first_broken(numbered: Sequence[tuple[int, bytes]]) -> str | None:
    """Which line is no JSON and why, which Arrow tells of some of them alone; None where each is."""
    for number, line in numbered:
        try:
            json.loads(line)
        except json.JSONDecodeError as error:
            return f"line {number} is no JSON: {error.msg} at character {error.pos + 1}"
    return None


def _read(lines: bytes, types: Mapping[str, pa.DataType]) -> pa.Table:
    options = pa.json.ReadOptions(block_size=len(lines) + 1, use_threads=False)
    parse = pa.json.ParseOptions(explicit_schema=pa.schema(types) if types else None)
    return pa.json.read_json(io.BytesIO(lines), read_options=options, parse_options=parse)
