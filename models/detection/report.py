"""What a trained detector tells beyond its metrics: inputs, limits, curves, pictures that it gets right and wrong."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from numpy.typing import NDArray
from torch import Tensor

from models import markdown, plots
from models.detection import masks
from models.detection.matching import Detected, Judged, average_precision, curves

MOST_PICTURES = 18
COLUMNS = 6
MOST_CLASSES = 20  # of a plot
RIGHT, WRONG, TRUE = "#2f6fb0", "#c8373c", "#f2c14e"
SURE = 0.3  # least score of what pictures show
DIGITS = 4
COLUMNS_OF_BOX = 6  # of a detection; those of its mask come behind
SHADE = 0.45  # of the colour over what a mask covers


def as_json(
    found: NDArray[np.float32], scale: NDArray[np.float64], classes: Sequence[str], sizes: NDArray[np.int64]
) -> list[str]:
    """Each picture's detections [D, 6] as a JSON list, boxes multiplied by its `scale` [4].

    Detections with masks behind their columns have COCO's run lengths of the picture's size [2], `segmentation`.
    """
    told = []
    for rows, factor, size in zip(found, scale, sizes, strict=True):
        own = [_told(row, factor, classes, size) for row in rows if row[5] >= 0]
        told.append(json.dumps(own))
    return told


def _told(
    row: NDArray[np.float32], scale: NDArray[np.float64], classes: Sequence[str], size: NDArray[np.int64]
) -> dict[str, Any]:
    box = row[:4] * scale
    found: dict[str, Any] = {
        "label": classes[int(row[5])],
        "score": round(float(row[4]), DIGITS),
        "box": [round(float(side), 2) for side in box],
    }
    if len(row) > COLUMNS_OF_BOX:
        cells = masks.of_bytes((row[None, COLUMNS_OF_BOX:] * 255).round().astype(np.uint8))
        (covered,) = masks.pasted(cells, torch.from_numpy(box[None].astype(np.float32)), int(size[0]), int(size[1]))
        found["segmentation"] = masks.run_lengths(covered)
    return found


def predicts(schema: Mapping[str, Any]) -> str:
    """Return what the model predicts, in words."""
    classes = ", ".join(map(str, schema["classes"][:MOST_CLASSES]))
    what = "a box, a mask and a score" if schema.get("masks") else "a box and a score"
    return f"{what} for each object that it finds, of these classes: {classes}"


def inputs(schema: Mapping[str, Any]) -> dict[str, str]:
    """Return what the input of the exported graph holds."""
    height, width = schema["image_size"]
    masks = ". The cells of a mask, from 0 to 1, fill its box" if schema.get("masks") else ""
    return {
        "image": "uint8 [rows, height, width, 3], red, green and blue, upright; any height and width, of which the "
        f"graph makes {height} x {width}. Decoding of files and EXIF rotation are the caller's. Boxes come in pixels "
        f"of this input; the first `count` of each picture are detections, the surest first, the rest pads{masks}"
    }


def limits(schema: Mapping[str, Any]) -> list[str]:
    """Return what a user should not expect of a detector."""
    height, width = schema["image_size"]
    return [
        "It knows the classes of its training images only.",
        f"It sees {height} x {width} pixels, whatever it is given, and no aspect ratio: what is smaller than about 8 "
        "of these pixels is hard to find.",
        "Scores order detections; they are no calibrated probabilities.",
    ]


def slices(rows: Detected, classes: Sequence[str], by_class: Sequence[float]) -> dict[str, dict[str, float]]:
    """Return each class's objects and average precision."""
    counts = [int(((rows.target == label) & ~rows.crowd).sum()) for label in range(len(classes))]
    pairs = zip(classes, counts, by_class, strict=True)
    return {name: {"objects": float(count), "map": value} for name, count, value in pairs}


def class_table(rows: Detected, classes: Sequence[str], by_class: Sequence[float]) -> str:
    """Return the same as Markdown."""
    told = slices(rows, classes, by_class).items()
    lines = [(name, f"{values['objects']:,.0f}", f"{values['map']:.4f}") for name, values in told]
    return markdown.table(("class", "objects", "map"), lines)


def figures(rows: Detected, judged: Judged, classes: Sequence[str], images: Tensor) -> dict[str, Figure]:
    """Return the plots of one scored set and grids of its pictures, by file name."""
    some = np.linspace(0, len(rows.row) - 1, min(len(rows.row), MOST_PICTURES)).astype(np.int64)
    missed, mistaken = mistakes(rows, judged)
    costs = missed + mistaken
    worst = np.argsort(-costs, kind="stable")[:MOST_PICTURES]
    found = {
        "precision_recall": _precision_recall(judged, classes),
        "classes": _classes(judged, classes),
        "predictions": _grid(
            "predictions (blue right, red wrong) and truth (yellow)", rows, judged, classes, images, some
        ),
    }
    if costs[worst].max(initial=0) > 0:
        title = "the worst pictures: objects missed (yellow), surest false detections (red)"
        found["mistakes"] = _grid(title, rows, judged, classes, images, worst[costs[worst] > 0])
    return found


def mistakes(rows: Detected, judged: Judged) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """For each picture the objects that no sure detection fits by half, and the summed scores of the false ones."""
    is_sure = (judged.score >= SURE) & (judged.labels >= 0)
    is_right = is_sure & judged.right[..., 0]
    num = ((rows.target >= 0) & ~rows.crowd).sum(axis=1)
    is_false = is_sure & ~judged.right[..., 0] & judged.counts[..., 0]
    return (num - is_right.sum(axis=1)).clip(0).astype(np.float64), (judged.score * is_false).sum(axis=1).astype(float)


def _precision_recall(judged: Judged, classes: Sequence[str]) -> Figure:
    """Precision against recall of the commonest classes, at an overlap of one half."""
    precision = average_precision(judged)
    figure, axes = plots.axes_of(f"mAP@.5 {np.nanmean(precision[:, 0]):.3f}", "recall", "precision")
    counts = judged.num_objects.sum(axis=0)
    for label in np.argsort(-counts, kind="stable")[:MOST_CLASSES]:
        own = judged.labels == label
        order = np.argsort(-judged.score[own], kind="stable")
        if counts[label] and own.any():
            parts = judged.right[own][order][:, :1], judged.counts[own][order][:, :1]
            ((recall, exact),) = curves(*parts, np.ones(len(order), np.int64), int(counts[label]))
            axes.step(
                recall, exact, where="post", linewidth=1, label=f"{classes[label][:16]} {precision[label, 0]:.2f}"
            )
    axes.set(xlim=(0, 1), ylim=(0, 1.02))
    if axes.lines:
        axes.legend(frameon=False, fontsize=6, ncols=2, loc="lower left")
    return figure


def _classes(judged: Judged, classes: Sequence[str]) -> Figure:
    """Average precision of the commonest classes, over all thresholds of overlap."""
    value = average_precision(judged).mean(axis=1)
    shown = np.argsort(-judged.num_objects.sum(axis=0), kind="stable")[:MOST_CLASSES][::-1]
    figure, axes = plots.axes_of(f"mAP@[.5:.95] {np.nanmean(value):.3f}", "average precision", "")
    axes.barh(
        [classes[label][:24] for label in shown], [float(np.nan_to_num(value[label])) for label in shown], color=RIGHT
    )
    axes.tick_params(axis="y", labelsize=7)
    axes.set(xlim=(0, 1))
    axes.set_position((0.3, 0.15, 0.66, 0.74))  # names of classes are long
    return figure


def _grid(
    title: str, rows: Detected, judged: Judged, classes: Sequence[str], images: Tensor, places: NDArray[np.int64]
) -> Figure:
    """Pictures with their objects and sure detections."""
    num_lines = max(1, -(-len(places) // COLUMNS))
    figure = Figure(figsize=(1.7 * COLUMNS, 1.75 * num_lines + 0.4), dpi=110, layout="constrained")
    figure.suptitle(title, fontsize=9)
    grid = figure.subplots(num_lines, COLUMNS, squeeze=False)
    for axes in grid.flat:
        axes.set_axis_off()
    for axes, place in zip(grid.flat, places, strict=False):
        picture = images[int(rows.row[place])].cpu().numpy()
        axes.imshow(picture)
        for box in rows.boxes[place][rows.target[place] >= 0]:
            _draw(axes, box, TRUE, "")
        for number in np.flatnonzero((judged.labels[place] >= 0) & (judged.score[place] >= SURE)):
            colour = RIGHT if judged.right[place, number, 0] else WRONG
            told = f"{classes[judged.labels[place, number]][:12]} {judged.score[place, number]:.2f}"
            _draw(axes, rows.found[place, number, :4], colour, told)
            if rows.cells is not None:
                _shade(axes, rows.cells[place, number], rows.found[place, number, :4], picture.shape, colour)
    return figure


def _shade(axes: Axes, cells: NDArray[np.uint8], box: NDArray[np.float32], shape: Sequence[int], colour: str) -> None:
    """Lay a colour over what a mask covers."""
    (covered,) = masks.pasted(masks.of_bytes(cells[None]), torch.from_numpy(box[None]), shape[0], shape[1])
    axes.imshow(np.where(covered[..., None], np.array(to_rgba(colour, SHADE)), 0.0))


def _draw(axes: Axes, box: NDArray[np.float32], colour: str, told: str) -> None:
    left, top, right, bottom = (float(side) for side in box)
    width = 0.9 if told else 1.8
    axes.add_patch(
        Rectangle((left - 0.5, top - 0.5), right - left, bottom - top, fill=False, color=colour, linewidth=width)
    )
    if told:
        axes.text(left, top - 1, told, fontsize=4.5, color="white", bbox={"color": colour, "pad": 0.4, "linewidth": 0})
