"""Plain text files with one text a line, local or on S3, compressed (.gz) or not."""

import codecs
from collections.abc import Iterator

import pyarrow as pa
import pyarrow.fs

from datamodules.sources import place_of, reason

ALLOWED = "a text file with one sentence a line (also .gz), local or s3://bucket/key"
BLOCK_BYTES = 4 << 20


def read_lines(uri: str) -> pa.Array:
    """All lines of a file, without their ends. Raises as `iter_lines` does."""
    return pa.array((line for lines in iter_lines(uri) for line in lines), pa.large_string())


def iter_lines(uri: str, *, batch_rows: int = 8_192) -> Iterator[list[str]]:
    """Lines of a file in their order, without their ends, in constant memory; only a line feed ends a line.

    A file without lines gives one empty list.

    Raises FileNotFoundError where there is nothing, ValueError naming file and line where it is not UTF-8.
    """
    rows: list[str] = []
    number = 0
    for number, line in enumerate(_raw_lines(uri), start=1):
        try:
            rows.append(line.removesuffix(b"\r").decode())
        except UnicodeDecodeError as error:
            raise ValueError(
                f"{uri}, line {number}: texts must be UTF-8; byte {line[error.start]:#04x} at character "
                f"{error.start} is not"
            ) from None
        if len(rows) == batch_rows:
            yield rows
            rows = []
    if rows or not number:
        yield rows


def _raw_lines(uri: str) -> Iterator[bytes]:
    filesystem, path = place_of(uri, ALLOWED)
    rest = b""
    try:
        if filesystem.get_file_info(path).type != pa.fs.FileType.File:
            raise FileNotFoundError(f"no such file: {uri!r}; give {ALLOWED}")
        with filesystem.open_input_stream(path) as stream:
            start = stream.read(len(codecs.BOM_UTF8)).removeprefix(codecs.BOM_UTF8)
            while block := start or stream.read(BLOCK_BYTES):
                start = b""
                *lines, rest = (rest + block).split(b"\n")
                yield from lines
    except (pa.ArrowException, OSError) as error:
        if isinstance(error, FileNotFoundError):
            raise
        raise ValueError(f"cannot read {uri!r} ({reason(error)}); give {ALLOWED}") from error
    if rest:
        yield rest
