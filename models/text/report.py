"""What a trained text module tells beyond its metrics: classes, confusions, calibration, worst mistakes."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from models import classification, markdown, plots
from models.classification import Classified

MOST_CLASSES = 40  # of a picture
MOST_MISTAKES = 20
MOST_CHARACTERS = 300  # of a text that is shown


def predicts(schema: Mapping[str, Any]) -> str:
    """Return what the model predicts, in words."""
    classes = ", ".join(map(str, schema["classes"][:MOST_CLASSES]))
    what = "each" if schema["multi_label"] else "the"
    return f"the calibrated probability of each class, and {what} {schema['target']['name']}, one of: {classes}"


def inputs(schema: Mapping[str, Any]) -> dict[str, str]:
    """Return what the input of the exported graph holds."""
    tokenizer = schema["tokenizer"]
    return {
        "tokens": f"int64 ids of the tokenizer in schema.json ({tokenizer['vocab_size']:,} pieces), cut to "
        f"{schema['max_length']} and padded at the end with {tokenizer['pad_id']}"
    }


def limits(schema: Mapping[str, Any]) -> list[str]:
    """Return what a user should not expect of a classifier."""
    several = "A row may have none of the classes." if schema["multi_label"] else "A text of none of them gets one too."
    return [
        f"It knows the classes of its training rows only. {several}",
        f"What is behind the first {schema['max_length']} tokens of a text is not read.",
        "The temperature was fitted on the validation rows: where classes become more or less common, it is off.",
    ]


def slices(rows: Classified, classes: list[str]) -> dict[str, dict[str, float]]:
    """Return the metrics of each class."""
    return classification.per_class(rows, classes)


def figures(rows: Classified, classes: list[str]) -> dict[str, Figure]:
    """Return the plots of one scored set, by file name."""
    found = {"reliability": _reliability(rows), "classes": _classes(rows, classes)}
    if not rows.is_multi_label and len(classes) <= MOST_CLASSES:
        found["confusion"] = _confusion(rows, classes)
    return found


def mistakes(rows: Classified, classes: list[str], texts: Sequence[Any]) -> list[tuple[str, str, float, str]]:
    """Return the surest of the wrong predictions: true, predicted, confidence, text."""
    wrong = np.flatnonzero(~rows.right)
    sure = rows.score.max(axis=1)[wrong]
    told = []
    for place in wrong[np.argsort(-sure, kind="stable")][:MOST_MISTAKES]:
        text = str(texts[int(rows.row[place])])
        shown = text if len(text) <= MOST_CHARACTERS else f"{text[:MOST_CHARACTERS]}..."
        true, found = (_names(part[place], classes) for part in (rows.target, rows.found))
        told.append((true, found, float(rows.score[place].max()), shown))
    return told


def write_summaries(
    rows: Classified, classes: list[str], wrong: Sequence[tuple[str, str, float, str]], writer: Any, step: int
) -> None:
    """Write the table of classes and the worst mistakes to TensorBoard."""
    names = ("precision", "recall", "f1")
    by_class = [
        (name, f"{values['rows']:,.0f}", *(f"{values[key]:.4f}" for key in names))
        for name, values in classification.per_class(rows, classes).items()
    ]
    writer.add_text("test/classes", markdown.table(("class", "rows", *names), by_class), step)
    told = [(true, found, f"{confidence:.3f}", text) for true, found, confidence, text in wrong]
    header = ("true", "predicted", "confidence", "text")
    writer.add_text("test/worst_mistakes", markdown.table(header, told), step)


def _names(value: Any, classes: list[str]) -> str:
    if np.ndim(value):
        return ", ".join(name for name, is_one in zip(classes, value, strict=True) if is_one) or "none"
    return classes[int(value)]


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
