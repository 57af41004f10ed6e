"""Tables by URI: CSV, JSON lines and Parquet, single files and folders, on this machine and on S3."""

import hashlib
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset
import pyarrow.fs

from datamodules import json_lines
from datamodules.csv_files import DELIMITERS, iter_csv, read_csv, suffix_of
from datamodules.json_lines import iter_json, read_json

PARQUET_SUFFIXES = (".parquet", ".pq")
KINDS = dict.fromkeys(DELIMITERS, "CSV") | dict.fromkeys(json_lines.SUFFIXES, "JSON")
KINDS |= dict.fromkeys(PARQUET_SUFFIXES, "Parquet")
ALLOWED = (
    "a .csv, .tsv, .jsonl (also .gz) or .parquet file, or a folder of one of these kinds, local or s3://bucket/key"
)


def read_table(uri: str, *, columns: Sequence[str] | None = None, as_text: bool = False) -> pa.Table:
    """Read all of it; `columns` picks some.

    With `as_text`, fields of a CSV file are texts, missing only if empty, and texts of JSON lines stay what they are
    where they look like times.

    Raises FileNotFoundError where there is nothing, ValueError where it cannot be read.
    """
    filesystem, paths = find_files(uri)
    kind = KINDS[suffix_of(paths[0])]
    try:
        if kind == "Parquet":
            table = parquet_dataset(filesystem, paths).to_table(columns=None if columns is None else list(columns))
        else:
            tables = [
                read_json(filesystem, path, columns, as_text=as_text)
                if kind == "JSON"
                else read_csv(filesystem, path, columns, as_text=as_text)
                for path in paths
            ]
            _require_unique_names(uri, tables[0].schema.names)
            table = pa.concat_tables(tables, promote_options="permissive")
    except (pa.ArrowException, OSError) as error:
        raise ValueError(_unreadable(uri, error)) from error
    _require_unique_names(uri, table.column_names)
    return table


def iter_batches(
    uri: str, *, columns: Sequence[str] | None = None, batch_rows: int = 65_536, as_text: bool = False
) -> Iterator[pa.RecordBatch]:
    """Read it piece by piece, in order, in constant memory; a table without rows gives one batch without rows.

    With `as_text` as `read_table`.

    Raises FileNotFoundError where there is nothing, ValueError where it cannot be read.
    """
    filesystem, paths = find_files(uri)
    kind = KINDS[suffix_of(paths[0])]
    try:
        if kind == "Parquet":
            batches = _iter_parquet(parquet_dataset(filesystem, paths), columns, batch_rows)
        elif kind == "JSON":
            batches = iter_json(filesystem, paths, columns, batch_rows, as_text=as_text)
        else:
            batches = iter_csv(filesystem, paths, columns, batch_rows, as_text=as_text)
        any_rows = False
        for batch in batches:
            _require_unique_names(uri, batch.schema.names)
            # The last batch is empty: it stands for the table if there was no other.
            if batch.num_rows or not any_rows:
                yield batch
            any_rows = any_rows or batch.num_rows > 0
    except (pa.ArrowException, OSError) as error:
        raise ValueError(_unreadable(uri, error)) from error


def fingerprint(table: pa.Table) -> str:
    """Hash of the names, types and values of all columns: equal for equal content, however it is chunked."""
    digest = hashlib.blake2b(digest_size=16)
    for name in table.column_names:
        column = table[name]
        if pa.types.is_dictionary(column.type):
            column = column.cast(column.type.value_type)
        digest.update(f"{name}\0{column.type}\0{len(column)}\0".encode())
        for part in _content(column):
            digest.update(part)
    return digest.hexdigest()


def find_files(uri: str) -> tuple[pa.fs.FileSystem, list[str]]:
    """File system and sorted paths of the data files at uri, all of one format."""
    filesystem, path = place_of(uri, ALLOWED)
    try:
        info = filesystem.get_file_info(path)
        if info.type == pa.fs.FileType.NotFound:
            raise FileNotFoundError(f"no such file or folder: {uri!r}; give {ALLOWED}")
        if info.type == pa.fs.FileType.File:
            paths = [path]
        else:
            selector = pa.fs.FileSelector(path, recursive=True)
            files = [f.path for f in filesystem.get_file_info(selector) if f.type == pa.fs.FileType.File]
            paths = sorted(f for f in files if not _is_hidden(f.removeprefix(path)))
    except (pa.ArrowException, OSError) as error:
        if isinstance(error, FileNotFoundError):
            raise
        raise ValueError(_unreadable(uri, error)) from error
    return filesystem, _of_one_format(uri, paths)


def place_of(uri: str, allowed: str) -> tuple[pa.fs.FileSystem, str]:
    """File system and path of a URI; ValueError says what is `allowed` where it is neither local nor on S3."""
    if uri.startswith("s3://"):
        return s3_filesystem(), uri.removeprefix("s3://").rstrip("/")
    if "://" in uri and not uri.startswith("file://"):
        raise ValueError(f"cannot read {uri!r}: it must be {allowed}")
    return pa.fs.LocalFileSystem(), os.path.abspath(os.path.expanduser(uri.removeprefix("file://")))


def s3_filesystem() -> pa.fs.FileSystem:
    """S3 by the usual AWS_* environment variables, AWS_ENDPOINT_URL (or AWS_ENDPOINT_URL_S3) among them."""
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    options: dict[str, Any] = {"connect_timeout": 10, "request_timeout": 60}
    if endpoint:
        scheme, _, host = endpoint.rpartition("://")
        options |= {"endpoint_override": host.rstrip("/"), "scheme": scheme or "https"}
    region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION") or ("us-east-1" if endpoint else None)
    return pa.fs.S3FileSystem(region=region, **options)


def parquet_dataset(filesystem: pa.fs.FileSystem, paths: Sequence[str]) -> pa.dataset.Dataset:
    """Files as one table: types promoted, columns absent from a file missing there, folders like day=1 columns."""
    root = paths[0] if len(paths) == 1 else os.path.commonpath(paths)
    options = pa.dataset.FileSystemFactoryOptions(
        partition_base_dir=root, partitioning=pa.dataset.HivePartitioning.discover(infer_dictionary=False)
    )
    format_ = pa.dataset.ParquetFileFormat()
    factory = pa.dataset.FileSystemDatasetFactory(filesystem, list(paths), format_, options)
    return factory.finish(factory.inspect(promote_options="permissive"))


def _iter_parquet(
    dataset: pa.dataset.Dataset, columns: Sequence[str] | None, batch_rows: int
) -> Iterator[pa.RecordBatch]:
    options = {"columns": None if columns is None else list(columns), "cache_metadata": False}
    # One row group at a time: a scanner of the whole reads up to a gigabyte ahead of a slower consumer.
    groups = (group for fragment in dataset.get_fragments() for group in fragment.split_by_row_group())
    for group in groups:
        batches = group.to_batches(schema=dataset.schema, batch_size=batch_rows, batch_readahead=2, **options)
        yield from (batch for batch in batches if batch.num_rows)
    yield pa.RecordBatch.from_pylist([], schema=dataset.scanner(**options).projected_schema)


def _content(column: pa.ChunkedArray) -> Iterator[Any]:
    """Buffers that hold the values alone, with nothing of how they are laid out."""
    yield np.packbits(np.asarray(column.is_null())).data
    type_ = column.type
    if pa.types.is_boolean(type_) or pa.types.is_integer(type_) or pa.types.is_floating(type_):
        yield np.ascontiguousarray(pc.fill_null(column, pa.scalar(0).cast(type_)).to_numpy()).data
    elif pa.types.is_temporal(type_) and type_.bit_width in (32, 64):
        yield from _content(column.combine_chunks().view(pa.int64() if type_.bit_width == 64 else pa.int32()))
    elif pa.types.is_null(type_):
        return
    else:
        texts = column if pa.types.is_binary(type_) or pa.types.is_large_binary(type_) else _texts(column)
        filled = pc.fill_null(texts.cast(pa.large_binary()), b"")
        yield np.asarray(pc.binary_length(filled)).data
        for chunk in filled.chunks:
            yield b"".join(chunk.to_pylist())


def _texts(column: pa.ChunkedArray) -> pa.ChunkedArray:
    if pa.types.is_nested(column.type):
        return pa.chunked_array([pa.array([repr(value) for value in column.to_pylist()], pa.large_string())])
    return column.cast(pa.large_string())


def _of_one_format(uri: str, paths: list[str]) -> list[str]:
    if not paths:
        raise FileNotFoundError(f"the folder {uri!r} holds no data files; give {ALLOWED}")
    for path in paths:
        if suffix_of(path) not in KINDS:
            name = uri if len(paths) == 1 else path
            raise ValueError(f"cannot read {name!r}: extension {suffix_of(path) or '(none)'!r}; it must be {ALLOWED}")
    if len(kinds := sorted({KINDS[suffix_of(path)] for path in paths})) > 1:
        raise ValueError(f"the folder {uri!r} holds both {' and '.join(kinds)} files; it must be {ALLOWED}")
    return paths


def _is_hidden(path: str) -> bool:
    return any(part.startswith((".", "_")) for part in path.split("/") if part)


def _require_unique_names(uri: str, names: Sequence[str]) -> None:
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise ValueError(f"columns of {uri!r} must have different names (CSV: on the first line); twice: {twice[:8]}")


def _unreadable(uri: str, error: Exception) -> str:
    return f"cannot read {uri!r} ({reason(error)}); it must be {ALLOWED}"


def reason(error: Exception) -> str:
    """Why a file cannot be read, in a few words."""
    told = str(error).splitlines()[0].rstrip(". ")
    return "its name ends in .gz, but gzip has not made it" if "incorrect header check" in told else told
