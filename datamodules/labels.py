"""Labels of rows: one of several classes, or any number of them (multi-label).

N rows, C classes.
"""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from annotated_types import Ge
from torch import Tensor

from datamodules.columns import Column, texts

Weights = Literal["none", "balanced"] | dict[str, Annotated[float, Ge(0)]]
FEWEST_ROWS = 20  # below, as many classes as rows say little


def labels_of(column: Column, separator: str | None) -> Column:
    """Labels as texts; for several a row, lists of texts: those of a list column, or of texts split at a separator.

    Null where the label is missing; with a separator, an empty text has no label and is not missing.
    """
    if isinstance(column, pa.ChunkedArray):
        column = column.combine_chunks()
    if pa.types.is_list(column.type) or pa.types.is_large_list(column.type):
        lists = column.cast(pa.large_list(column.type.value_type))
        values = texts(lists.values)
        return pa.LargeListArray.from_arrays(lists.offsets, values, mask=lists.is_null() if lists.null_count else None)
    if pa.types.is_nested(column.type):
        raise ValueError(f"labels must be texts, numbers or lists of them; they are {column.type}")
    plain_texts = texts(column)
    if separator is None:
        return plain_texts
    return pc.split_pattern(plain_texts.fill_null(""), separator).cast(pa.large_list(pa.large_string()))


def is_multiple(labels: Column) -> bool:
    """Whether rows have lists of labels."""
    return bool(pa.types.is_large_list(labels.type))


def flat(labels: Column) -> tuple[Any, Column]:
    """Row number and text of every label, without empty ones."""
    if not is_multiple(labels):
        rows, values = np.arange(len(labels)), labels
    else:
        rows, values = np.asarray(pc.list_parent_indices(labels)), texts(labels.flatten())
    is_there = np.asarray(values.is_valid())
    return rows[is_there], values.filter(pa.array(is_there))


def classes_of(labels: Column, name: str) -> list[str]:
    """All labels of the training rows, sorted. Raises ValueError unless they can be classes."""
    classes = sorted(pc.unique(flat(labels)[1]).to_pylist())
    if len(classes) < (1 if is_multiple(labels) else 2):
        raise ValueError(
            f"label {name!r} must have at least two different values in the training rows; it has "
            f"{', '.join(map(repr, classes)) or 'none'}. Is the table sorted by it, or data.splits too narrow?"
        )
    if not is_multiple(labels) and FEWEST_ROWS <= len(labels) < 2 * len(classes):
        raise ValueError(
            f"label {name!r} must be a class; it has {len(classes):,} different values in {len(labels):,} rows, such "
            f"as {classes[0]!r}"
        )
    return [str(text) for text in classes]


def known(labels: Column, classes: Sequence[str]) -> tuple[Any, list[str]]:
    """Which rows have nothing but labels that training saw, bool [N], and the labels that it did not see."""
    rows, values = flat(labels)
    is_new = np.asarray(pc.invert(pc.is_in(values, pa.array(classes, pa.large_string()))))
    is_known = np.ones(len(labels), bool)
    is_known[rows[is_new]] = False
    return is_known, sorted(pc.unique(values.filter(pa.array(is_new))).to_pylist())


def encode(labels: Column, classes: Sequence[str]) -> Tensor:
    """Class numbers int64 [N]; of several labels a row, float32 [N, C] with 1 for each. All labels are classes."""
    rows, values = flat(labels)
    codes = np.asarray(pc.index_in(values, pa.array(classes, pa.large_string()))).astype(np.int64)
    if not is_multiple(labels):
        return torch.from_numpy(codes)
    target = torch.zeros(len(labels), len(classes))
    target[torch.from_numpy(rows.astype(np.int64)), torch.from_numpy(codes)] = 1.0
    return target


def counts_of(target: Tensor, num_classes: int) -> list[int]:
    """Rows of each class."""
    found = target.sum(dim=0) if target.ndim == 2 else torch.bincount(target, minlength=num_classes)
    return [int(count) for count in found]


def weights_of(given: Weights, classes: Sequence[str], counts: Sequence[int], num_rows: int) -> list[float] | None:
    """Weight of each class in the loss; None for all equal. Raises ValueError for an unknown class.

    balanced: inversely as its rows, N / (C * count). A mapping: classes that it does not name weigh 1.
    """
    if given == "none":
        return None
    if given == "balanced":
        return [num_rows / (len(classes) * max(1, count)) for count in counts]
    assert isinstance(given, Mapping)
    named = {str(name): float(weight) for name, weight in given.items()}
    if strange := sorted(set(named) - set(classes)):
        raise ValueError(
            f"class_weights names {strange[0]!r}, which is no class; classes are {', '.join(classes[:20])}"
        )
    return [named.get(name, 1.0) for name in classes]
