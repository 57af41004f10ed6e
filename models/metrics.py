"""Metrics of a binary detector, weighted, in numpy. Ties in the score count as one threshold, as in scikit-learn."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Scored:
    """Rows with their scores, in any order.

    Attributes:
        score: probability of the positive class, [rows].
        target: 0 or 1, [rows].
        weight: how many rows of the world each stands for, [rows].
        amount: cost of missing the row if it is positive, [rows].
        day: day number, [rows]; all 0 where time is unknown.
        customer: entity code, [rows]; -1 where unknown.
    """

    score: Floats
    target: Floats
    weight: Floats
    amount: Floats
    day: NDArray[np.int64]
    customer: NDArray[np.int64]

    @classmethod
    def of(cls, score: NDArray[Any], columns: Mapping[str, NDArray[Any]]) -> "Scored":
        """Join scores with the other columns of their rows, of any float type."""
        floats = {name: columns[name].astype(np.float64) for name in ("target", "weight", "amount")}
        return cls(score.astype(np.float64), **floats, day=columns["day"], customer=columns["customer"])

    def take(self, chosen: NDArray[Any]) -> "Scored":
        """Return some of the rows, by places or by a mask."""
        return Scored(**{column.name: getattr(self, column.name)[chosen] for column in fields(self)})


@dataclass(frozen=True)
class Ranked:
    """Weighted counts above each distinct score, highest first: the base of every ranking metric."""

    threshold: Floats
    true_positives: Floats
    false_positives: Floats

    @classmethod
    def of(cls, score: Floats, target: Floats, weight: Floats) -> "Ranked":
        """Sort by score and accumulate; [distinct scores] each."""
        order = np.argsort(-score, kind="stable")
        score = score[order]
        last_of_tie = np.append(np.flatnonzero(np.diff(score)), len(score) - 1)
        positive = np.cumsum(weight[order] * target[order])[last_of_tie]
        alerts = np.cumsum(weight[order])[last_of_tie]
        return cls(score[last_of_tie], positive, alerts - positive)


def average_precision(ranked: Ranked) -> float:
    """Area under the precision-recall steps (no interpolation); NaN without positives."""
    if not ranked.true_positives[-1] > 0:
        return float("nan")
    precision = ranked.true_positives / np.maximum(ranked.true_positives + ranked.false_positives, 1e-300)
    return float(np.sum(np.diff(ranked.true_positives, prepend=0.0) * precision) / ranked.true_positives[-1])


def roc_auc(ranked: Ranked) -> float:
    """Area under the ROC curve, ties counted half; NaN with one class only."""
    positives, negatives = ranked.true_positives[-1], ranked.false_positives[-1]
    if not (positives > 0 and negatives > 0):
        return float("nan")
    true_positive_rate = np.append(0.0, ranked.true_positives / positives)
    false_positive_rate = np.append(0.0, ranked.false_positives / negatives)
    return float(np.trapezoid(true_positive_rate, false_positive_rate))


def recall_at_alert_share(ranked: Ranked, share: float) -> float:
    """Share of positives among the `share` of rows with the highest scores, ties split evenly."""
    alerts = np.append(0.0, ranked.true_positives + ranked.false_positives)
    found = np.append(0.0, ranked.true_positives)
    return float(np.interp(share * alerts[-1], alerts, found) / found[-1]) if found[-1] > 0 else float("nan")


def threshold_at_alert_share(ranked: Ranked, share: float) -> float:
    """Lowest threshold that keeps the share of alerts at or under `share`; above every score if none does."""
    alerts = ranked.true_positives + ranked.false_positives
    allowed = np.flatnonzero(alerts <= share * alerts[-1] * (1 + 1e-12))  # 0.29 * 100 is 28.999999999999996
    return midway(ranked.threshold, int(allowed[-1])) if len(allowed) else just_above(ranked.threshold[0])


def just_above(score: float) -> float:
    """Return a threshold above `score` that stays above it in the float32 in which modules keep thresholds."""
    return float(np.nextafter(np.float32(score), np.float32(2.0)))


def midway(scores: Floats, index: int) -> float:
    """Return a threshold between a score and the next lower one, [distinct scores] being the highest first.

    At the score itself, the rounding of another machine or runtime would decide the very row that set it.
    """
    score = float(scores[index])
    if index + 1 == len(scores):
        return score
    middle = (score + float(scores[index + 1])) / 2
    return middle if scores[index + 1] < np.float32(middle) <= score else score


def cost_at_thresholds(rows: Scored, false_positive: float) -> tuple[Floats, Floats]:
    """Return every distinct score as a threshold (alert at or above it), highest first, and the total cost there."""
    by_cost = Ranked.of(rows.score, rows.target, rows.weight * rows.amount)
    by_count = Ranked.of(rows.score, rows.target, rows.weight)
    missed = float(np.sum(rows.weight * rows.amount * rows.target)) - by_cost.true_positives
    return by_count.threshold, missed + false_positive * by_count.false_positives


def threshold_of_least_cost(rows: Scored, false_positive: float) -> float:
    """Return the score threshold with the lowest total cost; above every score if alerting never pays."""
    threshold, cost = cost_at_thresholds(rows, false_positive)
    best = int(np.argmin(cost))
    silent = float(np.sum(rows.weight * rows.amount * rows.target))
    return midway(threshold, best) if cost[best] < silent else just_above(threshold[0])


def brier(rows: Scored) -> float:
    """Weighted mean squared error of the probability."""
    return float(np.average((rows.score - rows.target) ** 2, weights=rows.weight))


def calibration_bins(rows: Scored, num_bins: int = 15) -> tuple[Floats, Floats, Floats]:
    """Return mean score, positive rate and weight of bins of equal count, [bins] each, empty bins left out.

    A bin holds the scores up to and with its upper edge, so that the few above a large tie have one of their own.
    """
    edges = np.unique(np.quantile(rows.score, np.linspace(0, 1, num_bins + 1)[1:-1]))
    place = np.searchsorted(edges, rows.score, side="left")
    weight = np.bincount(place, rows.weight).astype(np.float64)
    filled = weight > 0
    score = np.bincount(place, rows.weight * rows.score)[filled] / weight[filled]
    rate = np.bincount(place, rows.weight * rows.target)[filled] / weight[filled]
    return score, rate, weight[filled]


def expected_calibration_error(rows: Scored) -> float:
    """Weighted mean gap between score and positive rate over 15 bins of equal count (Naeini et al., 2015)."""
    score, rate, weight = calibration_bins(rows)
    return float(np.average(np.abs(score - rate), weights=weight))


def card_precision(rows: Scored, top: int = 100) -> float:
    """Card precision@top of the Fraud Detection Handbook (chapter 4): the daily share of true ones in the top cards.

    Each day, customers are ranked by their highest score; a card once detected is left out of later days. NaN where
    there are no customers; rows without one are no card.
    """
    known = rows.customer != -1
    if not known.any():
        return float("nan")
    detected: set[int] = set()
    precisions = []
    for day in np.unique(rows.day):
        today = known & (rows.day == day)
        customers, place = np.unique(rows.customer[today], return_inverse=True)
        best, fraud = np.full(len(customers), -np.inf), np.zeros(len(customers))
        np.maximum.at(best, place, rows.score[today])
        np.maximum.at(fraud, place, rows.target[today])
        open_cards = ~np.isin(customers, list(detected))
        customers, best, fraud = customers[open_cards], best[open_cards], fraud[open_cards]
        chosen = np.argsort(-best, kind="stable")[:top]
        precisions.append(fraud[chosen].sum() / top)
        detected.update(customers[chosen][fraud[chosen] > 0].tolist())
    return float(np.mean(precisions))


def at_threshold(rows: Scored, threshold: float, false_positive: float) -> dict[str, float]:
    """Return precision, recall, share of alerts and cost saved (against never alerting) at a score threshold."""
    alert = rows.score >= threshold
    caught = float(np.sum(rows.weight[alert] * rows.target[alert]))
    alerts = float(np.sum(rows.weight[alert]))
    positives = float(np.sum(rows.weight * rows.target))
    saved = float(np.sum((rows.weight * rows.amount * rows.target)[alert])) - false_positive * (alerts - caught)
    losses = float(np.sum(rows.weight * rows.amount * rows.target))
    return {
        "precision": caught / alerts if alerts > 0 else 0.0,
        "recall": caught / positives if positives > 0 else float("nan"),
        "alert_share": alerts / float(np.sum(rows.weight)),
        "cost_saved": saved,
        "cost_saved_share": saved / losses if losses > 0 else float("nan"),
    }


def ranking(rows: Scored) -> dict[str, float]:
    """Return the metrics that need no threshold."""
    ranked = Ranked.of(rows.score, rows.target, rows.weight)
    return {
        "average_precision": average_precision(ranked),
        "roc_auc": roc_auc(ranked),
        "card_precision_at_100": card_precision(rows),
        "recall_at_1pct": recall_at_alert_share(ranked, 0.01),
        "recall_at_0.1pct": recall_at_alert_share(ranked, 0.001),
        "brier": brier(rows),
        "expected_calibration_error": expected_calibration_error(rows),
    }


BOOTSTRAPPED: Mapping[str, Callable[[Ranked], float]] = {"average_precision": average_precision, "roc_auc": roc_auc}


def bootstrap_intervals(rows: Scored, *, resamples: int = 200, seed: int = 0) -> dict[str, tuple[float, float]]:
    """Return 95 % percentile intervals of average precision and ROC AUC over resampled rows (Efron, 1979)."""
    generator = np.random.default_rng(seed)
    order = np.argsort(-rows.score, kind="stable")
    score, target, weight = rows.score[order], rows.target[order], rows.weight[order]
    draws: dict[str, list[float]] = {name: [] for name in BOOTSTRAPPED}
    for _ in range(resamples):
        counts = np.bincount(generator.integers(len(score), size=len(score)), minlength=len(score))
        ranked = Ranked.of(score, target, weight * counts)
        for name, metric in BOOTSTRAPPED.items():
            draws[name].append(metric(ranked))
    return {
        name: (float(np.nanpercentile(values, 2.5)), float(np.nanpercentile(values, 97.5)))
        for name, values in draws.items()
        if not np.all(np.isnan(values))
    }
