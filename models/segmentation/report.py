"""What a trained segmentation module tells beyond its metrics: inputs, limits, pictures with what is found in them."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from numpy.typing import NDArray
from torch import Tensor

from models import markdown, plots
from models.segmentation import metrics
from models.segmentation.losses import IGNORED
from models.segmentation.metrics import Segmented

MOST_CLASSES = 40  # of a plot
MOST_PICTURES = 6
OPACITY = 0.6
YELLOW = 250, 220, 40

Find = Callable[[Tensor], NDArray[np.int64]]


def predicts(schema: Mapping[str, Any]) -> str:
    """Return what the model predicts, in words."""
    classes = ", ".join(f"{number} {name}" for number, name in enumerate(schema["classes"][:MOST_CLASSES]))
    return f"the class of each pixel, one of: {classes}; and its probability, which is not calibrated"


def inputs(schema: Mapping[str, Any]) -> dict[str, str]:
    """Return what the input of the exported graph holds."""
    height, width = schema["image_size"]
    return {
        "image": "uint8 [rows, height, width, 3], red, green and blue, upright; any height and width, of which the "
        f"graph makes {height} x {width}, and of what it finds the given size again. Decoding of files and EXIF "
        "rotation are the caller's"
    }


def limits(schema: Mapping[str, Any]) -> list[str]:
    """Return what a user should not expect of it."""
    height, width = schema["image_size"]
    return [
        "It knows the classes of its training masks only. Each pixel gets one of them.",
        f"It sees {height} x {width} pixels, whatever it is given, and no aspect ratio: what is thinner is lost.",
        "Things of one class that touch are one area: it does not count them.",
    ]


def figures(rows: Segmented, classes: list[str], tensors: Mapping[str, Tensor], find: Find) -> dict[str, Figure]:
    """Return the plots of one scored set, and pictures beside truth and prediction, by file name.

    Args:
        rows: the counts.
        classes: their names.
        tensors: image and target of the set's rows.
        find: class maps [B, H, W] of pictures [B, H, W, 3].
    """
    found = {"classes": _classes(rows, classes)}
    if len(classes) <= MOST_CLASSES:
        found["confusion"] = _confusion(rows, classes)
    some = np.linspace(0, len(rows.row) - 1, min(len(rows.row), MOST_PICTURES)).astype(np.int64)
    chosen = {"predictions": some, "worst": worst(rows)[:MOST_PICTURES]}
    for name, places in chosen.items():
        if len(places):
            found[name] = _overlays(name, rows, classes, tensors, find, places)
    return found


def worst(rows: Segmented) -> NDArray[np.int64]:
    """Return the places of pictures, the one with the lowest IoU first; those without a counted pixel are left out."""
    overlap = metrics.iou_by_picture(rows)
    order = np.argsort(overlap, kind="stable")
    return order[~np.isnan(overlap[order])]


def worst_named(rows: Segmented, names: Sequence[Any]) -> list[tuple[str, str]]:
    """Return the IoU and the names of the worst pictures."""
    overlap = metrics.iou_by_picture(rows)
    return [(f"{overlap[place]:.4f}", str(names[int(rows.row[place])])) for place in worst(rows)[:24]]


def write_tables(rows: Segmented, classes: list[str], named: Sequence[tuple[str, str]], writer: Any, step: int) -> None:
    """Write to TensorBoard each class's IoU, precision, recall and boundary F, and the worst pictures."""
    keys = ("iou", "precision", "recall", "boundary_f")
    by_class = [
        (name, f"{values['pixels']:,.0f}", *(f"{values[key]:.4f}" for key in keys))
        for name, values in metrics.per_class(rows, classes).items()
    ]
    writer.add_text("test/classes", markdown.table(("class", "pixels", *keys), by_class), step)
    writer.add_text("test/worst", markdown.table(("mean IoU", "what"), named), step)


def colours(num: int) -> NDArray[np.uint8]:
    """A colour for each class, uint8 [num, 3]: the first, the ground as a rule, is none."""
    chosen = matplotlib.colormaps["tab10" if num <= 11 else "gist_ncar"]
    spread = np.arange(num - 1) if num <= 11 else np.linspace(0.05, 0.95, num - 1)
    found: NDArray[np.uint8] = np.vstack([np.zeros(3), 255 * chosen(spread)[:, :3]]).astype(np.uint8)
    found[8:9] = YELLOW if num <= 11 else found[8:9]  # its grey is that of the ground
    return found


def painted(image: NDArray[np.uint8], mask: NDArray[Any], palette: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """A picture [H, W, 3] with its classes [H, W] in colours upon it; pixels that count for nothing are black."""
    grey = image.mean(axis=2, keepdims=True).repeat(3, axis=2)
    colour = palette[np.where(mask == IGNORED, 0, mask)].astype(np.float64)
    mixed = np.where((mask > 0)[..., None], OPACITY * colour + (1 - OPACITY) * grey, grey)
    found: NDArray[np.uint8] = np.where((mask == IGNORED)[..., None], 0, mixed).astype(np.uint8)
    return found


def _overlays(
    title: str,
    rows: Segmented,
    classes: list[str],
    tensors: Mapping[str, Tensor],
    find: Find,
    places: NDArray[np.int64],
) -> Figure:
    """A column of picture, truth and prediction for each place."""
    images = tensors["image"][rows.row[places]]
    truths, maps = tensors["target"][rows.row[places]].cpu().numpy(), find(images)
    pictures, palette = images.cpu().numpy(), colours(len(classes))
    overlap = metrics.iou_by_picture(rows)
    figure = Figure(figsize=(1.6 * len(places) + 0.3, 5.9), dpi=110, layout="constrained")
    figure.suptitle(title, fontsize=9)
    grid = figure.subplots(3, len(places), squeeze=False)
    for axes in grid.flat:
        axes.set(xticks=[], yticks=[])
        axes.spines[:].set_visible(False)
    for column, place in enumerate(places):
        shown = (pictures[column], painted(pictures[column], truths[column], palette))
        for line, picture in enumerate((*shown, painted(pictures[column], maps[column], palette))):
            grid[line, column].imshow(picture, interpolation="nearest")
        grid[2, column].set_title(f"mean IoU {overlap[place]:.2f}", fontsize=7)
    for line, label in enumerate(("picture", "truth", "found")):
        grid[line, 0].set_ylabel(label, fontsize=8)
    there = [number for number in range(1, len(classes)) if rows.confusion[places][:, number].sum()][:12]
    patches = [Patch(color=palette[number] / 255.0, label=classes[number][:16]) for number in there]
    if patches:
        figure.legend(handles=patches, loc="outside lower center", ncols=6, fontsize=7, frameon=False)
    return figure


def _classes(rows: Segmented, classes: list[str]) -> Figure:
    """IoU of each class; of many, the commonest."""
    told = sorted(metrics.per_class(rows, classes).items(), key=lambda item: -item[1]["pixels"])[:MOST_CLASSES]
    figure, axes = plots.axes_of(f"mean IoU {metrics.mean_iou(rows):.3f}", "IoU", "")
    figure.set_size_inches(5.2, max(2.4, 0.8 + 0.24 * len(told)))
    axes.barh([name[:24] for name, _ in told][::-1], [values["iou"] for _, values in told][::-1], color=plots.BLUE)
    axes.tick_params(axis="y", labelsize=7)
    axes.set(xlim=(0, 1))
    axes.set_position((0.36, 0.15, 0.6, 0.74))  # names of classes are long
    return figure


def _confusion(rows: Segmented, classes: list[str]) -> Figure:
    """Pixels by true and found class, as shares of the true one."""
    table = rows.confusion.sum(axis=0)
    shares = table / np.maximum(table.sum(axis=1, keepdims=True), 1)
    size = max(3.8, 1.8 + 0.36 * len(classes))
    figure = Figure(figsize=(size + 1, size), dpi=110, layout="constrained")
    axes = figure.subplots()
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    axes.set(xlabel="found", ylabel="true", title=f"pixel accuracy {metrics.pixel_accuracy(rows):.3f}")
    names, places = [name[:24] for name in classes], list(range(len(classes)))
    axes.set_xticks(places, names, rotation=90, fontsize=7)
    axes.set_yticks(places, names, fontsize=7)
    for (true, found), share in np.ndenumerate(shares):
        if share >= 0.005:
            axes.text(
                found, true, f"{share:.2f}", ha="center", va="center", fontsize=6, color="w" if share > 0.5 else "k"
            )
    return figure
