"""Tables by URI: CSV and Parquet, single files and folders, on this machine and on S3."""

import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.dataset
import pyarrow.fs

CSV_SUFFIXES = {".csv": ",", ".csv.gz": ",", ".tsv": "\t", ".tsv.gz": "\t"}
PARQUET_SUFFIXES = (".parquet", ".pq")
ALLOWED = "a .csv, .tsv (also .gz) or .parquet file, or a folder of one of these kinds, local or s3://bucket/key"
# What a column of a CSV file may turn out to be, in the order in which it is tried.
LADDER = (pa.null(), pa.int64(), pa.float64(), pa.bool_(), pa.timestamp("s"), pa.timestamp("us"), pa.string())
SCAN_BYTES = 4 << 20


def read_table(uri: str, *, columns: Sequence[str] | None = None) -> pa.Table:
    """Read all of it; `columns` picks some.

    An empty field or a usual word for "not available" is a missing value. Raises FileNotFoundError where there is
    nothing, ValueError where it cannot be read.
    """
    filesystem, paths = find_files(uri)
    try:
        if suffix_of(paths[0]) in PARQUET_SUFFIXES:
            return parquet_dataset(filesystem, uri, paths).to_table(columns=_list(columns))
        tables = [_read_csv(filesystem, path, columns) for path in paths]
        return pa.concat_tables(tables, promote_options="permissive")
    except (pa.ArrowException, OSError) as error:
        raise ValueError(_unreadable(uri, error)) from error


def iter_batches(
    uri: str, *, columns: Sequence[str] | None = None, batch_rows: int = 65_536
) -> Iterator[pa.RecordBatch]:
    """Read it piece by piece, in order, in constant memory; an empty table gives one batch without rows.

    A CSV file is read twice: first for the types of its columns, which its first rows alone do not tell.
    Raises FileNotFoundError where there is nothing, ValueError where it cannot be read.
    """
    filesystem, paths = find_files(uri)
    try:
        if suffix_of(paths[0]) in PARQUET_SUFFIXES:
            yield from _iter_parquet(parquet_dataset(filesystem, uri, paths), columns, batch_rows)
        else:
            yield from _iter_csv(filesystem, paths, columns, batch_rows)
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
    if uri.startswith("s3://"):
        filesystem, path = s3_filesystem(), uri.removeprefix("s3://").rstrip("/")
    elif "://" in uri and not uri.startswith("file://"):
        raise ValueError(f"cannot read {uri!r}: it must be {ALLOWED}")
    else:
        filesystem, path = pa.fs.LocalFileSystem(), os.path.abspath(os.path.expanduser(uri.removeprefix("file://")))
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


def s3_filesystem() -> pa.fs.FileSystem:
    """S3 by the usual AWS_* environment variables, AWS_ENDPOINT_URL (or AWS_ENDPOINT_URL_S3) among them."""
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    options: dict[str, Any] = {"connect_timeout": 10, "request_timeout": 60}
    if endpoint:
        scheme, _, host = endpoint.rpartition("://")
        options |= {"endpoint_override": host.rstrip("/"), "scheme": scheme or "https"}
    region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION") or ("us-east-1" if endpoint else None)
    return pa.fs.S3FileSystem(region=region, **options)


def suffix_of(path: str) -> str:
    """Lower-case extension, .gz taken together with what stands before it."""
    parts = os.path.basename(path).lower().split(".")
    return "." + ".".join(parts[-2:] if parts[-1] == "gz" and len(parts) > 2 else parts[-1:]) if len(parts) > 1 else ""


def parquet_dataset(filesystem: pa.fs.FileSystem, uri: str, paths: Sequence[str]) -> pa.dataset.Dataset:
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
    scanner = dataset.scanner(
        columns=_list(columns), batch_size=batch_rows, batch_readahead=2, fragment_readahead=1, cache_metadata=False
    )
    any_batch = False
    for batch in scanner.to_batches():
        if batch.num_rows:
            any_batch = True
            yield batch
    if not any_batch:
        yield pa.RecordBatch.from_pylist([], schema=scanner.projected_schema)


def _iter_csv(
    filesystem: pa.fs.FileSystem, paths: Sequence[str], columns: Sequence[str] | None, batch_rows: int
) -> Iterator[pa.RecordBatch]:
    types = csv_types(filesystem, paths)
    names = _list(columns) or list(types)
    schema = pa.schema([(name, types.get(name, pa.null())) for name in names])
    any_batch = False
    for path in paths:
        with filesystem.open_input_stream(path) as stream:
            for batch in _open_csv(stream, path, types, names):
                for start in range(0, batch.num_rows, batch_rows):
                    any_batch = True
                    yield batch.slice(start, batch_rows).cast(schema)
    if not any_batch:
        yield pa.RecordBatch.from_pylist([], schema=schema)


def csv_types(filesystem: pa.fs.FileSystem, paths: Sequence[str]) -> dict[str, pa.DataType]:
    """Narrowest type of each column that holds in every row of every file; names in order of appearance."""
    rungs: dict[str, int] = {}
    for path in paths:
        with filesystem.open_input_stream(path) as stream:
            names = pa.csv.open_csv(stream, parse_options=_parse_options(path)).schema.names
        with filesystem.open_input_stream(path) as stream:
            for batch in _open_csv(stream, path, dict.fromkeys(names, pa.string())):
                for name in names:
                    rungs[name] = _climb(batch[name], rungs.get(name, 0))
    return {name: LADDER[rung] for name, rung in rungs.items()}


def _climb(values: pa.StringArray, rung: int) -> int:
    """First rung of the ladder from `rung` on that fits all values."""
    for candidate in range(rung, len(LADDER) - 1):
        if values.null_count == len(values):
            return candidate
        if LADDER[candidate] == pa.null():
            continue
        try:
            values.cast(LADDER[candidate])
        except pa.ArrowInvalid:
            continue
        # A column of whole numbers and then of true and false is text: only the rungs above are looser.
        return candidate
    return len(LADDER) - 1


def _open_csv(
    stream: Any, path: str, types: Mapping[str, pa.DataType], columns: Sequence[str] | None = None
) -> pa.csv.CSVStreamingReader:
    return pa.csv.open_csv(
        stream,
        read_options=pa.csv.ReadOptions(block_size=SCAN_BYTES),
        parse_options=_parse_options(path),
        convert_options=_convert_options(columns, dict(types)),
    )


def _read_csv(filesystem: pa.fs.FileSystem, path: str, columns: Sequence[str] | None) -> pa.Table:
    with filesystem.open_input_stream(path) as stream:
        return pa.csv.read_csv(
            stream, parse_options=_parse_options(path), convert_options=_convert_options(columns, None)
        )


def _parse_options(path: str) -> pa.csv.ParseOptions:
    return pa.csv.ParseOptions(delimiter=CSV_SUFFIXES[suffix_of(path)], newlines_in_values=True)


def _convert_options(columns: Sequence[str] | None, types: dict[str, pa.DataType] | None) -> pa.csv.ConvertOptions:
    return pa.csv.ConvertOptions(
        column_types=types, strings_can_be_null=True, include_columns=_list(columns), include_missing_columns=True
    )


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
        for chunk in pa.chunked_array([c.cast(pa.large_binary()) for c in texts.chunks], pa.large_binary()).chunks:
            filled = pc.fill_null(chunk, b"")
            yield np.asarray(pc.binary_length(filled)).data
            yield b"".join(filled.to_pylist())


def _texts(column: pa.ChunkedArray) -> pa.ChunkedArray:
    if pa.types.is_nested(column.type):
        return pa.chunked_array([pa.array([repr(value) for value in column.to_pylist()], pa.large_string())])
    return column.cast(pa.large_string())


def _of_one_format(uri: str, paths: list[str]) -> list[str]:
    if not paths:
        raise FileNotFoundError(f"the folder {uri!r} holds no data files; give {ALLOWED}")
    known = {*CSV_SUFFIXES, *PARQUET_SUFFIXES}
    for path in paths:
        if suffix_of(path) not in known:
            name = uri if len(paths) == 1 else path
            raise ValueError(f"cannot read {name!r}: extension {suffix_of(path) or '(none)'!r}; it must be {ALLOWED}")
    if len({suffix_of(path) in PARQUET_SUFFIXES for path in paths}) > 1:
        raise ValueError(f"the folder {uri!r} holds both CSV and Parquet files; it must be {ALLOWED}")
    return paths


def _is_hidden(path: str) -> bool:
    return any(part.startswith((".", "_")) for part in path.split("/") if part)


def _list(columns: Sequence[str] | None) -> list[str] | None:
    return None if columns is None else list(columns)


def _unreadable(uri: str, error: Exception) -> str:
    return f"cannot read {uri!r} ({str(error).splitlines()[0].rstrip('. ')}); it must be {ALLOWED}"
