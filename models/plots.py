"""Plots of a binary detector: what it finds, how sure it is, what that costs, what it looks at."""

from collections.abc import Mapping

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from models import metrics

RED, BLUE, GREY = "#c8373c", "#2f6fb0", "#8a8f98"
MOST_POINTS = 2_000


def axes_of(title: str, x: str, y: str) -> tuple[Figure, Axes]:
    """An empty plot with its title and labels."""
    figure = Figure(figsize=(5.2, 3.8), dpi=110)
    axes = figure.add_axes((0.16, 0.15, 0.8, 0.76))
    axes.set(title=title, xlabel=x, ylabel=y)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25)
    return figure, axes


def _thinned(size: int) -> np.ndarray:
    return np.unique(np.linspace(0, size - 1, min(size, MOST_POINTS)).astype(int))


def precision_recall(rows: metrics.Scored) -> Figure:
    """Precision against recall, with the base rate."""
    ranked = metrics.Ranked.of(rows.score, rows.target, rows.weight)
    recall = ranked.true_positives / max(ranked.true_positives[-1], 1e-12)
    precision = ranked.true_positives / np.maximum(ranked.true_positives + ranked.false_positives, 1e-12)
    figure, axes = axes_of(f"average precision {metrics.average_precision(ranked):.3f}", "recall", "precision")
    keep = _thinned(len(recall))
    axes.step(recall[keep], precision[keep], where="post", color=BLUE)
    axes.axhline(np.average(rows.target, weights=rows.weight), color=GREY, linestyle=":", label="base rate")
    axes.set(xlim=(0, 1), ylim=(0, 1.02))
    axes.legend(frameon=False)
    return figure


def roc(rows: metrics.Scored) -> Figure:
    """True against false positive rate; the false positives on a logarithmic scale, where alerts are affordable."""
    ranked = metrics.Ranked.of(rows.score, rows.target, rows.weight)
    figure, axes = axes_of(f"ROC AUC {metrics.roc_auc(ranked):.3f}", "false positive rate", "true positive rate")
    keep = _thinned(len(ranked.threshold))
    false_positive_rate = np.maximum(ranked.false_positives / max(ranked.false_positives[-1], 1e-12), 1e-5)
    true_positive_rate = ranked.true_positives / max(ranked.true_positives[-1], 1e-12)
    axes.plot(false_positive_rate[keep], true_positive_rate[keep], color=BLUE)
    chance = np.geomspace(1e-5, 1, 100)
    axes.plot(chance, chance, color=GREY, linestyle=":", label="chance")
    axes.set(xscale="log", xlim=(1e-5, 1), ylim=(0, 1.02))
    axes.legend(frameon=False)
    return figure


def calibration(rows: metrics.Scored) -> Figure:
    """Share of positives against predicted probability, in bins of equal count."""
    score, rate, _ = metrics.calibration_bins(rows, num_bins=30)
    error = metrics.expected_calibration_error(rows)
    figure, axes = axes_of(f"expected calibration error {error:.4f}", "predicted probability", "share of positives")
    low = max(min(score.min(), 1e-2), 1e-5)
    axes.plot([low, 1], [low, 1], color=GREY, linestyle=":")
    axes.plot(np.maximum(score, low), np.maximum(rate, low), "o-", color=BLUE, markersize=4)
    axes.set(xscale="log", yscale="log")
    return figure


def score_histogram(rows: metrics.Scored, threshold: float) -> Figure:
    """Number of rows by score, positives and negatives apart."""
    figure, axes = axes_of("scores", "predicted probability", "rows")
    bins = np.linspace(0, 1, 41).tolist()
    axes.hist(rows.score[rows.target == 0], bins, color=GREY, alpha=0.6, label="negative")
    axes.hist(rows.score[rows.target == 1], bins, color=RED, alpha=0.7, label="positive")
    axes.axvline(threshold, color="black", linewidth=1, label="threshold of least cost")
    axes.set(yscale="log")
    axes.legend(frameon=False)
    return figure


def cost_against_threshold(rows: metrics.Scored, threshold: float, false_positive: float) -> Figure:
    """Total cost of missed positives and false alerts at every threshold."""
    thresholds, cost = metrics.cost_at_thresholds(rows, false_positive)
    figure, axes = axes_of("cost of decisions", "threshold", "cost on the test rows")
    keep = _thinned(len(cost))
    axes.plot(np.clip(thresholds[keep], 1e-5, 1), cost[keep], color=BLUE)
    axes.axhline(np.sum(rows.weight * rows.amount * rows.target), color=GREY, linestyle=":", label="never alerting")
    axes.axvline(np.clip(threshold, 1e-5, 1), color="black", linewidth=1, label="chosen on validation")
    lowest = min(cost.min(), 0)
    axes.set(xscale="log", ylim=(lowest, 2.2 * np.sum(rows.weight * rows.amount * rows.target) + 1))
    axes.legend(frameon=False)
    return figure


def importance(drops: Mapping[str, float], most: int = 20) -> Figure:
    """Fall of average precision when a column is shuffled."""
    chosen = sorted(drops.items(), key=lambda item: item[1])[-most:]
    figure, axes = axes_of("permutation importance", "fall of average precision", "")
    axes.barh([name for name, _ in chosen], [drop for _, drop in chosen], color=BLUE)
    axes.tick_params(axis="y", labelsize=7)
    axes.set_position((0.36, 0.15, 0.6, 0.76))  # names of columns are long
    return figure


def detector_figures(rows: metrics.Scored, *, threshold: float, false_positive: float) -> dict[str, Figure]:
    """Return the plots of one scored set, by file name."""
    return {
        "precision_recall": precision_recall(rows),
        "roc": roc(rows),
        "calibration": calibration(rows),
        "score_histogram": score_histogram(rows, threshold),
        "cost_against_threshold": cost_against_threshold(rows, threshold, false_positive),
    }
