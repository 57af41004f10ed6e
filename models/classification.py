"""Metrics of a classifier of any number of classes, one or several of which a row has, in numpy."""

from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
THRESHOLD = 0.5  # from which on a class counts as found where a row may have several


@dataclass(frozen=True)
class Classified:
    """Rows with their scores.

    Attributes:
        score: probabilities, or before calibration logits, [rows, classes].
        target: the class, int64 [rows]; where a row may have several, bool [rows, classes].
        row: number of the row in its split, ascending, [rows].
    """

    score: Floats
    target: NDArray[Any]
    row: NDArray[np.int64]

    @classmethod
    def of(cls, score: NDArray[Any], target: NDArray[Any], row: NDArray[np.int64]) -> "Classified":
        """Join rows in any order, each once."""
        order = np.argsort(row, kind="stable")
        truth = target[order] > 0 if target.ndim == 2 else target[order].astype(np.int64)
        return cls(score[order].astype(np.float64), truth, row[order])

    @property
    def is_multi_label(self) -> bool:
        """Whether a row may have several classes."""
        return self.target.ndim == 2

    @property
    def found(self) -> NDArray[Any]:
        """What is predicted, in the form of the target."""
        return self.score >= THRESHOLD if self.is_multi_label else self.score.argmax(axis=1)

    @property
    def right(self) -> NDArray[np.bool_]:
        """Whether a row is predicted as it is, with all its classes, [rows]."""
        same = np.asarray(self.found == self.target)
        return np.asarray(same.all(axis=1)) if self.is_multi_label else same

    def take(self, chosen: NDArray[Any]) -> "Classified":
        """Return some of the rows, by places or by a mask."""
        return Classified(**{column.name: getattr(self, column.name)[chosen] for column in fields(self)})


def metrics_of(rows: Classified) -> dict[str, float]:
    """Return every metric of probabilities; `accuracy` is of rows with all their classes right."""
    found = {"accuracy": accuracy(rows), "macro_f1": macro_f1(rows)}
    if rows.is_multi_label:
        found["micro_f1"] = micro_f1(rows)
    return found | {"nll": nll(rows), "expected_calibration_error": expected_calibration_error(rows)}


def accuracy(rows: Classified) -> float:
    """Share of rows that are right."""
    return float(rows.right.mean())


def counts(rows: Classified) -> tuple[Floats, Floats, Floats]:
    """True positives, predicted and true ones of each class, [classes] each."""
    num_classes = rows.score.shape[1]
    if rows.is_multi_label:
        both = rows.found & rows.target
        return tuple(part.sum(axis=0).astype(np.float64) for part in (both, rows.found, rows.target))
    hits, found, true = (
        np.bincount(part, minlength=num_classes).astype(np.float64)
        for part in (rows.target[rows.right], rows.found, rows.target)
    )
    return hits, found, true


def f1(hits: Floats, found: Floats, true: Floats) -> Floats:
    """Harmonic mean of precision and recall; NaN for a class that neither is there nor is predicted."""
    total = found + true
    return np.where(total > 0, 2 * hits / np.maximum(total, 1), np.nan)


def macro_f1(rows: Classified) -> float:
    """Mean F1 of the classes that are there or predicted."""
    by_class = f1(*counts(rows))
    return float(np.nanmean(by_class)) if not np.all(np.isnan(by_class)) else float("nan")


def micro_f1(rows: Classified) -> float:
    """F1 of all pairs of a row and a class together."""
    return float(f1(*(np.array(part.sum()) for part in counts(rows))))


def nll(rows: Classified) -> float:
    """Mean negative log-likelihood in nats; with several classes a row, summed over them."""
    probability = np.clip(rows.score, 1e-12, 1 - 1e-7 if rows.is_multi_label else 1.0)
    if rows.is_multi_label:
        return float(-np.where(rows.target, np.log(probability), np.log1p(-probability)).sum(axis=1).mean())
    return float(-np.log(probability[np.arange(len(probability)), rows.target]).mean())


def reliability(rows: Classified, num_bins: int = 15) -> tuple[Floats, Floats, Floats]:
    """Mean confidence, share that is right and number of rows of bins of equal count, [bins] each.

    Confidence is the probability of the predicted class; where a row may have several, that of each pair of row and
    class, which is right where the row has the class.
    """
    if rows.is_multi_label:
        confidence, right = rows.score.ravel(), rows.target.ravel()
    else:
        confidence, right = rows.score.max(axis=1), rows.right
    edges = np.unique(np.quantile(confidence, np.linspace(0, 1, num_bins + 1)[1:-1]))
    place = np.searchsorted(edges, confidence, side="left")
    size = np.bincount(place).astype(np.float64)
    filled = size > 0
    mean = np.bincount(place, confidence)[filled] / size[filled]
    share = np.bincount(place, right.astype(np.float64))[filled] / size[filled]
    return mean, share, size[filled]


def expected_calibration_error(rows: Classified) -> float:
    """Mean gap between confidence and share that is right over 15 bins of equal count (Naeini et al., 2015)."""
    confidence, share, size = reliability(rows)
    return float(np.average(np.abs(confidence - share), weights=size))


def per_class(rows: Classified, classes: list[str]) -> dict[str, dict[str, float]]:
    """Return rows, precision, recall and F1 of each class; 0 where nothing was predicted or is there."""
    hits, found, true = counts(rows)
    both = np.nan_to_num(f1(hits, found, true))
    return {
        name: {
            "rows": true[index],
            "precision": float(hits[index] / max(found[index], 1)),
            "recall": float(hits[index] / max(true[index], 1)),
            "f1": float(both[index]),
        }
        for index, name in enumerate(classes)
    }


def confusion(rows: Classified) -> NDArray[np.int64]:
    """Rows by true class and predicted one, [classes, classes]; only where a row has one class."""
    num_classes = rows.score.shape[1]
    flat = np.bincount(rows.target * num_classes + rows.found, minlength=num_classes**2)
    return flat.reshape(num_classes, num_classes)


def scored_by(baseline: Any, inputs: Any, target: NDArray[Any], *, num_classes: int) -> Classified:
    """Score rows by a fitted classifier of scikit-learn: logits, or what it has that comes next to them.

    Args:
        baseline: fitted to numbers of classes, or, one model a class, to yes and no.
        inputs: what it takes.
        target: as in `Classified`, or floats of 0 and 1.
        num_classes: of the data; a class that was not there to fit gets a score that is never the highest.
    """
    if hasattr(baseline, "predict_proba"):
        probability = np.clip(np.asarray(baseline.predict_proba(inputs), np.float64), 1e-12, 1 - 1e-12)
        score = np.log(probability) - (np.log1p(-probability) if target.ndim == 2 else 0.0)
    else:
        score = np.asarray(baseline.decision_function(inputs), np.float64)
        score = np.stack([-score, score], axis=1) / 2 if score.ndim == 1 and num_classes == 2 else score
    score = score.reshape(len(score), -1)
    if target.ndim == 1 and score.shape[1] != num_classes:
        score, fitted = np.full((len(score), num_classes), -30.0), score
        score[:, np.asarray(baseline.classes_, np.int64)] = fitted
    return Classified.of(score, target, np.arange(len(target)))


BOOTSTRAPPED = {"accuracy": accuracy, "macro_f1": macro_f1, "nll": nll}


def bootstrap_intervals(rows: Classified, *, resamples: int = 200, seed: int = 0) -> dict[str, tuple[float, float]]:
    """Return 95 % percentile intervals of metrics over resampled rows (Efron, 1979)."""
    generator, size = np.random.default_rng(seed), len(rows.row)
    draws: dict[str, list[float]] = {name: [] for name in BOOTSTRAPPED}
    for _ in range(resamples):
        drawn = rows.take(generator.integers(size, size=size))
        for name, metric in BOOTSTRAPPED.items():
            draws[name].append(metric(drawn))
    return {
        name: (float(np.nanpercentile(values, 2.5)), float(np.nanpercentile(values, 97.5)))
        for name, values in draws.items()
        if not np.all(np.isnan(values))
    }
