"""Logistic regression of words' TF-IDF weights, fitted before the first step: a second opinion beside what is trained.

It is convex and regularized, so that it errs elsewhere than a network that is trained step by step.
"""

import warnings
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.distributed
from numpy.typing import NDArray
from scipy.sparse import csr_matrix, diags, vstack
from torch import Tensor

from models.optim import is_distributed

STRENGTH = 10.0  # inverse of the L2 penalty, scikit-learn's C

Features = Callable[[Tensor], tuple[Tensor, Tensor]]


class Rows(NamedTuple):
    """Rows with the features that they have.

    Attributes:
        counts: of each feature, float32 [N, F].
        target: classes int64 [N], or yes and no of several [N, C].
    """

    counts: Any
    target: NDArray[Any]


class Opinion(NamedTuple):
    """What a feature says.

    Attributes:
        table: for each class, float32 [F, C].
        bias: of the classes, float32 [C].
        rarity: the features' inverse document frequency, float32 [F].
    """

    table: Tensor
    bias: Tensor
    rarity: Tensor


@torch.no_grad()
def rows_of(features: Features, batches: Iterable[Mapping[str, Tensor]], *, size: int) -> Rows:
    """Return the rows of the batches of all ranks, in the order of their numbers.

    Args:
        features: tokens [B, L] to places of features [B, N] and which of those hold one.
        batches: of this rank, with `tokens`, `target` and `row`.
        size: number of features.
    """
    parts = []
    for batch in batches:
        places, is_there = features(batch["tokens"])
        ends = np.concatenate([[0], is_there.sum(dim=1).cumsum(dim=0).cpu().numpy()])
        found = places[is_there].cpu().numpy()
        counts = csr_matrix((np.ones(len(found), np.float32), found, ends), shape=(len(ends) - 1, size))
        counts.sum_duplicates()
        parts.append((counts, batch["target"].cpu().numpy(), batch["row"].cpu().numpy()))
    if is_distributed():
        ranks: list[Any] = [None] * torch.distributed.get_world_size()
        torch.distributed.all_gather_object(ranks, parts)
        parts = [part for own in ranks for part in own]
    order = np.argsort(np.concatenate([row for _, _, row in parts]))
    return Rows(
        vstack([counts for counts, _, _ in parts]).tocsr()[order], np.concatenate([t for _, t, _ in parts])[order]
    )


def fitted(rows: Rows, num_classes: int) -> Opinion:
    """Fit one logistic regression a class, against all others; of two classes only one.

    A row's weights are its features' counts by their rarity, divided by the root of the sum of the squares of each.
    """
    counts, num_rows = rows.counts, rows.counts.shape[0]
    frequency = np.bincount(counts.indices, minlength=counts.shape[1])
    rarity = (np.log((1 + num_rows) / (1 + frequency)) + 1).astype(np.float32)
    norms = np.sqrt(counts @ rarity**2)
    used = np.flatnonzero(frequency)  # the others would be zeros in each step of the fit
    weights = (diags(1 / np.maximum(norms, 1e-9)) @ counts[:, used] @ diags(rarity[used])).tocsr().astype(np.float32)
    table: NDArray[np.float32] = np.zeros((counts.shape[1], num_classes), np.float32)
    bias: NDArray[np.float32] = np.zeros(num_classes, np.float32)
    is_binary = rows.target.ndim == 1 and num_classes == 2
    for number in range(is_binary, num_classes):
        is_in = rows.target[:, number] > 0 if rows.target.ndim == 2 else rows.target == number
        if len(used) and is_in.any() and not is_in.all():
            table[used, number], bias[number] = _log_odds(weights, is_in)
        elif rows.target.ndim == 1 and not is_in.any():
            bias[number] = -np.log(num_rows + 1)  # as rare as what has not been seen
    if is_binary:  # half the log odds for the one class, half against the other
        table *= 0.5
        bias *= 0.5
        table[:, 0], bias[0] = -table[:, 1], -bias[1]
    return Opinion(torch.from_numpy(table), torch.from_numpy(bias), torch.from_numpy(rarity))


def _log_odds(weights: Any, is_in: NDArray[np.bool_]) -> tuple[NDArray[np.float64], float]:
    from sklearn.linear_model import LogisticRegression

    # In the dual, steps cost what the rows have, and not the number of features.
    model = LogisticRegression(C=STRENGTH, solver="liblinear", dual=True, random_state=0, max_iter=200)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it has not converged in the last digit
        model.fit(weights, is_in)
    return model.coef_[0], float(model.intercept_[0])
