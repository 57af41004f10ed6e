"""Signs that data tell more than could be known: customers on both sides of a split, columns that hold the label."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from datamodules.schema import Schema

MOST_ROWS = 20_000  # of each label
TELLING_AUC = 0.999


def num_shared(customers: NDArray[np.int64], train: NDArray[np.int64], test: NDArray[np.int64]) -> tuple[int, int]:
    """How many customers of the test rows also have training rows, and how many the test rows have."""
    known, asked = np.unique(customers[train]), np.unique(customers[test])
    return int(np.isin(asked, known).sum()), len(asked)


def telling_columns(tensors: Mapping[str, Tensor], schema: Schema) -> list[str]:
    """Names of columns that alone rank the positive rows almost perfectly: they may have been filled in afterwards."""
    target = tensors["target"].numpy() > 0
    positives, negatives = (_thinned(np.flatnonzero(target == label)) for label in (True, False))
    names: dict[str, list[str]] = {"numeric": [], "categorical": []}
    for column in schema["columns"]:
        names.setdefault("numeric" if column["kind"] == "boolean" else column["kind"], []).append(column["name"])
    found = []
    for kind in ("numeric", "categorical"):
        for place, name in enumerate(names[kind]):
            values = tensors[kind][:, place].numpy()
            if kind == "categorical":
                values = np.bincount(values, weights=target)[values] / np.bincount(values)[values]
            auc = _auc(values[positives], values[negatives])
            if max(auc, 1 - auc) > TELLING_AUC:
                found.append(name)
    return found


def _thinned(rows: NDArray[np.int64]) -> NDArray[np.int64]:
    return rows[:: max(1, len(rows) // MOST_ROWS)]


def _auc(positives: NDArray[np.floating[Any]], negatives: NDArray[np.floating[Any]]) -> float:
    """Probability that a positive has the larger value, ties halved; missing is the least."""
    positives, ordered = (np.where(np.isnan(part), -np.inf, part) for part in (positives, negatives))
    ordered.sort()
    sides = [np.searchsorted(ordered, positives, side=side).mean() for side in ("left", "right")]
    return float(sum(sides) / 2 / len(ordered))
