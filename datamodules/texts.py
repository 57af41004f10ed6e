"""Texts of a table: out of its columns, as a list, and in a form in which near-duplicates are equal."""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import overload

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from datamodules.columns import Column, is_text, plain, texts


class Texts(Sequence[str]):
    """A column of texts that reads like a list of str.

    Args:
        column: Arrow strings, none missing.
    """

    def __init__(self, column: Column) -> None:
        self.column = column

    def __len__(self) -> int:
        return len(self.column)

    @overload
    def __getitem__(self, place: int) -> str: ...
    @overload
    def __getitem__(self, place: slice) -> list[str]: ...
    def __getitem__(self, place: int | slice) -> str | list[str]:
        if isinstance(place, slice):
            return [self[number] for number in range(*place.indices(len(self)))]
        return str(self.column[int(place)].as_py())

    def take(self, places: Iterable[int]) -> list[str]:
        """The texts at these places."""
        return [self[place] for place in places]

    def to(self, device: object) -> "Texts":
        """Itself: texts stay where they are."""
        return self

    def __iter__(self) -> Iterator[str]:
        for start in range(0, len(self), 8_192):
            yield from self.column.slice(start, 8_192).to_pylist()


@contextmanager
def naming(uri: str) -> Iterator[None]:
    """Put the name of the file before what is wrong with it."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{uri}: {error}") from error


def texts_of(table: pa.Table | pa.RecordBatch, columns: Sequence[str], uri: str, *, first_row: int = 1) -> Column:
    """The text of each row, an Arrow array: columns joined by a newline, null where there is nothing but spaces.

    Raises ValueError naming file, row (the table begins with `first_row`) and column of what is no text.
    """
    parts = []
    for name in columns:
        column = table.column(name)
        if pa.types.is_nested(column.type) or pa.types.is_binary(column.type) or pa.types.is_large_binary(column.type):
            raise ValueError(f"{uri}: column {name!r} must hold texts; it holds {column.type}")
        require_utf8(column, name, uri, first_row=first_row)
        parts.append(texts(column))
    newline = pa.scalar("\n", pa.large_string())
    joined = parts[0] if len(parts) == 1 else plain(pc.binary_join_element_wise(*parts, newline, null_handling="skip"))
    return joined.combine_chunks() if isinstance(joined, pa.ChunkedArray) else joined


def require_utf8(column: Column, name: str, uri: str, *, first_row: int = 1) -> None:
    """Raise ValueError naming the first row that is not UTF-8."""
    type_ = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
    if not is_text(type_):
        return
    column = column.cast(type_)
    try:
        column.validate(full=True)
    except pa.ArrowInvalid:
        for row, value in enumerate(column.cast(pa.large_binary()).to_pylist(), start=first_row):
            try:
                (value or b"").decode()
            except UnicodeDecodeError as error:
                raise ValueError(
                    f"{uri}, row {row}, column {name!r}: texts must be UTF-8; byte {error.object[error.start]:#04x} at "
                    f"character {error.start} is not"
                ) from None
        raise


def hashes(column: Column, *, digits: bool = False) -> NDArray[np.uint64]:
    """A hash of each text that ignores case, spaces, compatibility forms and, unless `digits`, digits, [N]."""
    folded = pc.utf8_normalize(column.cast(pa.large_string()), form="NFKC")
    if not digits:
        folded = pc.replace_substring_regex(folded, pattern=r"[0-9]+", replacement="0")
    folded = pc.replace_substring_regex(folded, pattern=r"[\s\p{Z}\p{Cc}]+", replacement=" ")
    digests = (hashlib.blake2b(text.casefold().strip().encode(), digest_size=8).digest() for text in Texts(folded))
    return np.frombuffer(b"".join(digests), np.uint64)
