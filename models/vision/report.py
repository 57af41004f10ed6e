"""What a trained image module tells beyond its metrics: inputs, limits, pictures that it gets right and wrong."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import Tensor

from models import class_plots, classification
from models.classification import Classified

TOP = 5
MOST_PICTURES = 24
COLUMNS = 8
RIGHT, WRONG = "#2f6fb0", "#c8373c"

Mistake = tuple[str, str, float, str]  # true, predicted, confidence, name


def metrics_of(rows: Classified) -> dict[str, float]:
    """Return every metric of probabilities; `top5_accuracy` where there are more than five classes."""
    found = classification.metrics_of(rows)
    if rows.score.shape[1] > TOP:
        own = rows.score[np.arange(len(rows.target)), rows.target]
        better = (rows.score > own[:, None]).sum(axis=1)
        found["top5_accuracy"] = float((better < TOP).mean())
    return found


def predicts(schema: Mapping[str, Any]) -> str:
    """Return what the model predicts, in words."""
    classes = ", ".join(map(str, schema["classes"][: class_plots.MOST_CLASSES]))
    return f"the calibrated probability of each class, and the {schema['target']['name']}, one of: {classes}"


def inputs(schema: Mapping[str, Any]) -> dict[str, str]:
    """Return what the input of the exported graph holds."""
    height, width = schema["image_size"]
    return {
        "image": "uint8 [rows, height, width, 3], red, green and blue, upright; any height and width, of which the "
        f"graph makes {height} x {width}. Decoding of files and EXIF rotation are the caller's"
    }


def limits(schema: Mapping[str, Any]) -> list[str]:
    """Return what a user should not expect of a classifier."""
    height, width = schema["image_size"]
    return [
        "It knows the classes of its training images only. An image of none of them gets one too.",
        f"It sees {height} x {width} pixels, whatever it is given, and no aspect ratio.",
        "The temperature was fitted on the validation rows: where classes become more or less common, it is off.",
    ]


def figures(rows: Classified, classes: list[str], images: Tensor) -> dict[str, Figure]:
    """Return the plots of one scored set and grids of its pictures, by file name."""
    found = class_plots.figures(rows, classes)
    some = np.linspace(0, len(rows.row) - 1, min(len(rows.row), MOST_PICTURES)).astype(np.int64)
    found["predictions"] = _grid("predictions", rows, classes, images, some)
    if len(wrong := worst(rows)):
        found["mistakes"] = _grid("the surest of the mistakes", rows, classes, images, wrong[:MOST_PICTURES])
    return found


def worst(rows: Classified) -> NDArray[np.int64]:
    """Return the places of wrong predictions, the surest first."""
    wrong = np.flatnonzero(~rows.right)
    return wrong[np.argsort(-rows.score[wrong].max(axis=1), kind="stable")]


def mistakes(rows: Classified, classes: list[str], names: Sequence[Any]) -> list[Mistake]:
    """Return the surest of the wrong predictions: true, predicted, confidence, name of the picture."""
    return [
        (
            classes[rows.target[place]],
            classes[rows.found[place]],
            float(rows.score[place].max()),
            str(names[int(rows.row[place])]),
        )
        for place in worst(rows)[:MOST_PICTURES]
    ]


def labels(rows: Classified, classes: list[str], numbers: NDArray[np.int64]) -> list[tuple[str, str]]:
    """Return true and predicted class of the rows with these numbers."""
    place = {int(row): index for index, row in enumerate(rows.row)}
    found = rows.found
    return [(classes[rows.target[at]], classes[found[at]]) for at in (place[int(number)] for number in numbers)]


def _grid(title: str, rows: Classified, classes: list[str], images: Tensor, places: NDArray[np.int64]) -> Figure:
    """Pictures with what was predicted and how sure, and beneath a wrong one what it is."""
    num_lines = max(1, -(-len(places) // COLUMNS))
    figure = Figure(figsize=(1.25 * COLUMNS, 1.75 * num_lines + 0.4), dpi=110, layout="constrained")
    figure.suptitle(title)
    grid = figure.subplots(num_lines, COLUMNS, squeeze=False)
    for axes in grid.flat:
        axes.set_axis_off()
    found, right = rows.found, rows.right
    for axes, place in zip(grid.flat, places, strict=False):
        axes.imshow(images[int(rows.row[place])].cpu().numpy())
        told = f"{classes[found[place]][:16]} {rows.score[place].max():.2f}"
        if not right[place]:
            told += f"\nis {classes[rows.target[place]][:16]}"
        axes.set_title(told, fontsize=7, color=RIGHT if right[place] else WRONG)
    return figure
