"""What a trained text module tells beyond its metrics: classes, confusions, calibration, worst mistakes."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from models import classification
from models.class_plots import MOST_CLASSES
from models.classification import Classified

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


def _names(value: Any, classes: list[str]) -> str:
    if np.ndim(value):
        return ", ".join(name for name, is_one in zip(classes, value, strict=True) if is_one) or "none"
    return classes[int(value)]
