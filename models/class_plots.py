"""Plots and tables of a classifier of any number of classes: calibration, classes, confusions."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from models import classification, markdown, plots
from models.classification import Classified

MOST_CLASSES = 40  # of a picture


def figures(rows: Classified, classes: list[str]) -> dict[str, Figure]:
    """Return the plots of one scored set, by file name."""
    found = {"reliability": _reliability(rows), "classes": _classes(rows, classes)}
    if not rows.is_multi_label and len(classes) <= MOST_CLASSES:
        found["confusion"] = _confusion(rows, classes)
    return found


def write_tables(
    rows: Classified, classes: list[str], wrong: Sequence[tuple[str, str, float, str]], writer: Any, step: int
) -> None:
    """Write to TensorBoard each class's precision, recall and F1, and mistakes: true, predicted, confidence, what."""
    writer.add_text("test/classes", _class_table(rows, classes), step)
    told = [(true, found, f"{confidence:.3f}", what) for true, found, confidence, what in wrong]
    table = markdown.table(("true", "predicted", "confidence", "what"), told)
    writer.add_text("test/worst_mistakes", table, step)


def _class_table(rows: Classified, classes: list[str]) -> str:
    names = ("precision", "recall", "f1")
    by_class = [
        (name, f"{values['rows']:,.0f}", *(f"{values[key]:.4f}" for key in names))
        for name, values in classification.per_class(rows, classes).items()
    ]
    return markdown.table(("class", "rows", *names), by_class)


def _reliability(rows: Classified) -> Figure:
    confidence, share, _ = classification.reliability(rows)
    error = classification.expected_calibration_error(rows)
    figure, axes = plots.axes_of(f"expected calibration error {error:.4f}", "confidence", "share that is right")
    axes.plot([0, 1], [0, 1], color=plots.GREY, linestyle=":")
    axes.plot(confidence, share, "o-", color=plots.BLUE, markersize=4)
    axes.set(xlim=(0, 1), ylim=(0, 1.02))
    return figure


def _classes(rows: Classified, classes: list[str]) -> Figure:
    """F1 of each class; of many, the commonest."""
    told = sorted(classification.per_class(rows, classes).items(), key=lambda item: -item[1]["rows"])[:MOST_CLASSES]
    figure, axes = plots.axes_of(f"macro F1 {classification.macro_f1(rows):.3f}", "F1", "")
    figure.set_size_inches(5.2, max(2.4, 0.8 + 0.24 * len(told)))
    axes.barh([name[:24] for name, _ in told][::-1], [values["f1"] for _, values in told][::-1], color=plots.BLUE)
    axes.tick_params(axis="y", labelsize=7)
    axes.set(xlim=(0, 1))
    axes.set_position((0.36, 0.15, 0.6, 0.74))  # names of classes are long
    return figure


def _confusion(rows: Classified, classes: list[str]) -> Figure:
    """Rows by true and predicted class, as shares of the true one."""
    table = classification.confusion(rows)
    size = max(3.8, 1.8 + 0.32 * len(classes))
    figure = Figure(figsize=(size + 1, size), dpi=110, layout="constrained")
    axes = figure.subplots()
    axes.imshow(table / np.maximum(table.sum(axis=1, keepdims=True), 1), cmap="Blues", vmin=0, vmax=1)
    axes.set(xlabel="predicted", ylabel="true", title=f"accuracy {classification.accuracy(rows):.3f}")
    names, places = [name[:24] for name in classes], list(range(len(classes)))
    axes.set_xticks(places, names, rotation=90, fontsize=7)
    axes.set_yticks(places, names, fontsize=7)
    for (true, found), count in np.ndenumerate(table):
        if count:
            dark = count > 0.5 * table[true].sum()
            axes.text(found, true, f"{count:,}", ha="center", va="center", fontsize=6, color="w" if dark else "k")
    return figure
