"""Bins for piecewise-linear encoding (https://arxiv.org/abs/2203.05556): quantiles and a decision tree's thresholds."""

import numpy as np
import numpy.typing as npt
from sklearn.tree import DecisionTreeClassifier

MAX_ROWS = 200_000  # a tree on more rows takes long and moves its thresholds little
MIN_LEAF_ROWS = 5
MIN_EVIDENCE = (
    15.0  # a split's likelihood ratio statistic (chi-squared, one degree of freedom); below, it is likely noise
)


def fit_bins(
    x: npt.NDArray[np.floating], y: npt.NDArray[np.number], *, num_quantiles: int, num_thresholds: int
) -> list[float]:
    """Ascending edges of one numeric column's bins, its least and greatest value at the ends.

    A quantile is one edge. A threshold of the tree is two, the values on its either side, so that the narrow bin
    between them rises from 0 to 1 as sharply as the tree does. Edges are float32 values, as the model reads its
    inputs. Infinite and missing values are left out; a column with fewer than two distinct values has no bins: [].

    x: [rows], may hold NaN. y: [rows], 1 for the class that the thresholds are to separate.
    """
    if x.shape != y.shape or x.ndim != 1:
        raise ValueError(
            f"x and y must be vectors of one length, got shapes {x.shape} and {y.shape}: pass one column at a time"
        )
    values, target = x.astype(np.float32), y > 0
    is_usable = np.isfinite(values)
    values, target = thinned(values[is_usable], target[is_usable])
    distinct = np.unique(values)
    if len(distinct) < 2:
        return []
    quantiles = np.quantile(values, np.linspace(0.0, 1.0, num_quantiles + 1), method="nearest")
    edges = np.concatenate([distinct[[0, -1]], quantiles, threshold_edges(values, target, distinct, num_thresholds)])
    return [float(edge) for edge in np.unique(edges.astype(np.float32))]


def threshold_edges(
    values: npt.NDArray[np.float32],
    target: npt.NDArray[np.bool_],
    distinct: npt.NDArray[np.float32],
    num_thresholds: int,
) -> npt.NDArray[np.float32]:
    """For each threshold of a tree fitted on this column alone, the nearest values below and above it."""
    if num_thresholds < 1 or target.all() or not target.any():
        return distinct[:0]
    tree = DecisionTreeClassifier(
        max_leaf_nodes=num_thresholds + 1,
        min_samples_leaf=MIN_LEAF_ROWS,
        criterion="entropy",
        min_impurity_decrease=MIN_EVIDENCE / (2 * np.log(2) * len(values)),  # entropy is in bits a row
        random_state=0,
    )
    tree.fit(values[:, None], target)
    thresholds = tree.tree_.threshold[tree.tree_.feature >= 0]
    above = np.searchsorted(distinct, thresholds, side="right").clip(1, len(distinct) - 1)
    return np.concatenate([distinct[above - 1], distinct[above]])


def thinned(
    values: npt.NDArray[np.float32], target: npt.NDArray[np.bool_]
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.bool_]]:
    """At most about MAX_ROWS rows: all of the rarer class up to half of them, and evenly spaced rows of the other."""
    if len(values) <= MAX_ROWS:
        return values, target
    kept = []
    positives, negatives = np.flatnonzero(target), np.flatnonzero(~target)
    few = min(len(positives), len(negatives), MAX_ROWS // 2)
    for rows in (positives, negatives):
        share = few if len(rows) == min(len(positives), len(negatives)) else MAX_ROWS - few
        kept.append(rows[np.linspace(0, len(rows) - 1, min(share, len(rows))).astype(np.int64)] if share else rows[:0])
    rows = np.sort(np.concatenate(kept))
    return values[rows], target[rows]
