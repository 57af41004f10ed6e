"""One column of a table: what kind of thing it holds, and its values as a NumPy array.

Columns are Arrow arrays, chunked or not. A missing value is a null, an empty text, or (in numbers) NaN or an infinity.
"""

import hashlib
from typing import Any, Literal, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from sklearn.utils import murmurhash3_32

Kind = Literal["numeric", "boolean", "categorical", "timestamp"]
Column: TypeAlias = Any  # pa.Array or pa.ChunkedArray, which ship no type information

MISSING_SECONDS = -(2**63)
HOLES = ("", "?", "-", ".", "na", "n/a", "#n/a", "nan", "null", "nil", "none", "missing")  # texts in columns of numbers
TRUE, FALSE = ("true", "yes", "t", "y"), ("false", "no", "f", "n")
UNITS = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}


def plain(column: Column) -> Column:
    """The same values without dictionary encoding, odd string types, decimals, and spaces around texts."""
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    if pa.types.is_decimal(column.type) or pa.types.is_float16(column.type):
        return column.cast(pa.float64())
    if is_text(column.type):
        texts = pc.utf8_trim_whitespace(column.cast(pa.large_string()))
        return pc.if_else(pc.equal(texts, ""), pa.scalar(None, pa.large_string()), texts)
    return column


def is_text(type_: pa.DataType) -> bool:
    """Whether an Arrow type is one of the string types."""
    return bool(pa.types.is_string(type_) or pa.types.is_large_string(type_) or pa.types.is_string_view(type_))


def is_number(type_: pa.DataType) -> bool:
    """Whether an Arrow type is an integer, floating-point or decimal type."""
    return bool(pa.types.is_integer(type_) or pa.types.is_floating(type_) or pa.types.is_decimal(type_))


def is_time(type_: pa.DataType) -> bool:
    """Whether an Arrow type names a moment: a timestamp or a date."""
    return bool(pa.types.is_timestamp(type_) or pa.types.is_date(type_))


def kind_of(column: Column) -> Kind | None:
    """What a column with at least one value holds; None where no model input can be made of it."""
    column = plain(column)
    if pa.types.is_boolean(column.type):
        return "boolean"
    if is_number(column.type):
        return "numeric"
    if is_time(column.type):
        return "timestamp"
    return _kind_of_texts(column) if is_text(column.type) else None


def _kind_of_texts(texts: Column) -> Kind:
    distinct = pc.unique(texts).drop_null()
    if set(pc.utf8_lower(distinct.slice(0, 8)).to_pylist()) <= {*TRUE, *FALSE} and len(distinct) <= 8:
        return "boolean"
    # 00701 is a postal code, not a quantity.
    if not pc.any(pc.match_substring_regex(distinct, "^0[0-9]")).as_py() and _parses(numbers, distinct):
        return "numeric"
    return "timestamp" if _parses(seconds, distinct) else "categorical"


def _parses(convert: Any, column: Column) -> bool:
    try:
        convert(column)
    except ValueError:
        return False
    return True


# Kept in float32, with room to subtract and scale; no real amount is larger.
LARGEST = 1e30


def numbers(column: Column) -> NDArray[np.float64]:
    """Values as float64, NaN where missing; true is 1. Raises ValueError naming the first that is no number."""
    column = plain(column)
    if is_text(column.type):
        holes = pc.is_in(pc.utf8_lower(column), pa.array(HOLES, pa.large_string()))
        column = _cast(pc.if_else(holes, pa.scalar(None, pa.large_string()), column), pa.float64(), "a number")
    elif not (is_number(column.type) or pa.types.is_boolean(column.type) or pa.types.is_null(column.type)):
        raise ValueError(f"{column.type} values are not numbers")
    values = np.array(column.cast(pa.float64(), safe=False).to_numpy(zero_copy_only=False), np.float64)
    values[~np.isfinite(values)] = np.nan
    return values.clip(-LARGEST, LARGEST)


def booleans(column: Column) -> tuple[NDArray[np.float64], int]:
    """Values as 1 and 0, NaN where missing, and how many texts are neither a yes nor a no (taken as missing)."""
    column = plain(column)
    if not is_text(column.type):
        return numbers(column), 0
    lower = pc.utf8_lower(column)
    is_true, is_false = (pc.is_in(lower, pa.array(words, pa.large_string())) for words in (TRUE, FALSE))
    values = np.where(np.asarray(is_true), 1.0, np.where(np.asarray(is_false), 0.0, np.nan))
    return values, int(np.isnan(values).sum()) - column.null_count


def seconds(column: Column) -> NDArray[np.int64]:
    """Moments as whole seconds since 1970 (UTC where they have a zone), MISSING_SECONDS where missing.

    Texts in ISO 8601 count as moments. Raises ValueError naming the first that is none.
    """
    column = plain(column)
    if is_text(column.type):
        column = _parsed_moments(column)
    if pa.types.is_date(column.type):
        column = column.cast(pa.timestamp("ms"))
    if pa.types.is_null(column.type):
        return np.full(len(column), MISSING_SECONDS)
    if not pa.types.is_timestamp(column.type):
        raise ValueError(f"{column.type} values are not dates or times")
    ticks = pc.fill_null(column.cast(pa.int64()), 0).to_numpy(zero_copy_only=False)
    whole: NDArray[np.int64] = ticks // UNITS[column.type.unit]
    return np.where(np.asarray(column.is_null()), MISSING_SECONDS, whole)


def _parsed_moments(texts: Column) -> Column:
    """Timestamps of ISO 8601 texts, with a zone or without."""
    has_zone = pc.match_substring_regex(texts, r"[T ].*(Z|[+-]\d\d(:?\d\d)?)$")
    null, what = pa.scalar(None, pa.large_string()), "a date or time (ISO 8601)"
    zoned = _cast(pc.if_else(has_zone, texts, null), pa.timestamp("us", tz="UTC"), what)
    local = _cast(pc.if_else(has_zone, null, texts), pa.timestamp("us"), what)
    return pc.coalesce(local.cast(pa.int64()), zoned.cast(pa.int64())).cast(pa.timestamp("us"))


def texts(column: Column) -> Column:
    """Values as texts that do not depend on how they are stored: 1, 1.0, true and "1" are all "1"; null stays null."""
    column = plain(column)
    if pa.types.is_boolean(column.type):
        column = column.cast(pa.int8())
    if pa.types.is_floating(column.type):
        column = pc.if_else(pc.is_nan(column), pa.scalar(None, column.type), column)
        if pc.all(pc.equal(column, pc.floor(column))).as_py() and not pc.any(pc.is_inf(column)).as_py():
            column = column.cast(pa.int64(), safe=False)
    return column.cast(pa.large_string())


def codes(column: Column, categories: list[str], hash_buckets: int) -> tuple[NDArray[np.int64], int]:
    """Category codes from 1 (0: unknown or missing), and how many values are no category that is known.

    With hash_buckets, a code is 1 + MurmurHash3 of the text modulo that number, and none is unknown.
    """
    indices, distinct = factorized(texts(column))
    if hash_buckets:
        # Not stable_hash: ONNX Runtime has this one, so that an exported graph takes the texts themselves.
        of_distinct = [1 + murmurhash3_32(text, seed=0, positive=True) % hash_buckets for text in distinct]
    else:
        known = {text: code for code, text in enumerate(categories, start=1)}
        of_distinct = [known.get(text, 0) for text in distinct]
    result = np.array([*of_distinct, 0], np.int64)[indices]
    return result, int(np.sum((result == 0) & (indices >= 0)))


def factorized(column: Column) -> tuple[NDArray[np.int64], list[str]]:
    """Index of each value among the distinct ones, -1 where missing, and the distinct ones."""
    encoded = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    encoded = encoded.dictionary_encode()
    indices = pc.fill_null(encoded.indices.cast(pa.int64()), -1)
    return np.asarray(indices), encoded.dictionary.to_pylist()


def entities(column: Column) -> NDArray[np.int64]:
    """A code of each value that is the same in every table (whole numbers stand for themselves), -1 where missing."""
    column = plain(column)
    if pa.types.is_integer(column.type):
        return np.asarray(pc.fill_null(column.cast(pa.int64(), safe=False), -1))
    indices, distinct = factorized(texts(column))
    return np.array([*(stable_hash(text) for text in distinct), -1], np.int64)[indices]


def stable_hash(text: str) -> int:
    """Non-negative 63-bit hash that is the same in every process."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") >> 1


def _cast(column: Column, type_: pa.DataType, what: str) -> Column:
    try:
        return column.cast(type_)
    except pa.ArrowInvalid as error:
        for value in pc.unique(column).drop_null().to_pylist():
            try:
                pa.scalar(value, pa.large_string()).cast(type_)
            except pa.ArrowInvalid:
                raise ValueError(f"{value!r} is not {what}") from None
        raise ValueError(str(error)) from error
