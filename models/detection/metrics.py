"""COCO's metrics of detections, by torchmetrics and faster-coco-eval, and intervals of the main ones."""

import logging
import warnings
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.detection import masks
from models.detection.matching import Detected, Judged, average_precision

NAMES = {
    "map": "map",
    "map_50": "map_50",
    "map_75": "map_75",
    "map_small": "map_small",
    "map_medium": "map_medium",
    "map_large": "map_large",
    "mar_100": "recall",
}
RESAMPLES = 200


def metrics_of(rows: Detected, image_size: Sequence[int], num_classes: int) -> tuple[dict[str, float], list[float]]:
    """Every metric, but for those of sizes that there are not; and the mean average precision of each class.

    Small is below 32 x 32 pixels of the pictures as they were given, large above 96 x 96; NaN for a class without
    objects.
    """
    from torchmetrics.detection import MeanAveragePrecision

    logging.getLogger("faster_coco_eval").setLevel(logging.WARNING)  # it logs a table each time
    metric = MeanAveragePrecision(backend="faster_coco_eval", class_metrics=True)
    metric.warn_on_many_detections = False
    scale = np.tile(rows.size[:, ::-1] / np.array(image_size)[::-1], 2)[:, None]
    found, boxes = rows.found[..., :4] * scale, rows.boxes * scale
    is_found, is_object = rows.found[..., 5] >= 0, rows.target >= 0
    with warnings.catch_warnings(action="ignore"):
        metric.update(
            [
                {
                    "boxes": _tensor(found[row][own]),
                    "scores": _tensor(rows.found[row, own, 4]),
                    "labels": _tensor(rows.found[row, own, 5]).long(),
                }
                for row, own in enumerate(is_found)
            ],
            [
                {
                    "boxes": _tensor(boxes[row][own]),
                    "labels": torch.from_numpy(rows.target[row, own]),
                    "iscrowd": torch.from_numpy(rows.crowd[row, own].astype(np.int64)),
                }
                for row, own in enumerate(is_object)
            ],
        )
        told = metric.compute()
    by_class = dict(zip(told["classes"].reshape(-1).tolist(), told["map_per_class"].reshape(-1).tolist(), strict=True))
    known = [by_class.get(label, -1.0) for label in range(num_classes)]
    values = {name: float(told[key]) for key, name in NAMES.items()}
    return (
        {name: value for name, value in values.items() if value >= 0},
        [value if value >= 0 else float("nan") for value in known],
    )


def mask_metrics_of(rows: Detected, image_size: Sequence[int]) -> dict[str, float]:
    """`mask_map`, which is mAP@[.5:.95] by overlaps of masks, `mask_map_50` and `mask_map_75`; nothing without masks.

    Masks are compared in the pixels of resized pictures.
    """
    from torchmetrics.detection import MeanAveragePrecision

    if rows.cells is None or rows.masks is None or rows.frames is None:
        return {}
    logging.getLogger("faster_coco_eval").setLevel(logging.WARNING)
    metric = MeanAveragePrecision(backend="faster_coco_eval", iou_type="segm")
    metric.warn_on_many_detections = False
    height, width = image_size
    with warnings.catch_warnings(action="ignore"):
        for row in range(len(rows.row)):  # one by one, so that only one picture's masks are pixels at a time
            own, is_object = rows.found[row, :, 5] >= 0, rows.target[row] >= 0
            found = masks.pasted(masks.of_bytes(rows.cells[row, own]), _tensor(rows.found[row, own, :4]), height, width)
            truth = masks.unpacked(torch.from_numpy(rows.masks[row, is_object]))
            covered = masks.pasted(truth, _tensor(rows.frames[row, is_object]), height, width)
            metric.update(
                [
                    {
                        "masks": torch.from_numpy(found),
                        "scores": _tensor(rows.found[row, own, 4]),
                        "labels": _tensor(rows.found[row, own, 5]).long(),
                    }
                ],
                [
                    {
                        "masks": torch.from_numpy(covered),
                        "labels": torch.from_numpy(rows.target[row, is_object]),
                        "iscrowd": torch.from_numpy(rows.crowd[row, is_object].astype(np.int64)),
                    }
                ],
            )
        told = metric.compute()
    if not ((rows.target >= 0) & ~rows.crowd).any():
        return {}
    # Of masks, and not of boxes, -1 also says that nothing was found.
    return {f"mask_{name}": max(0.0, float(told[name])) for name in ("map", "map_50", "map_75")}


def _tensor(values: NDArray[np.floating]) -> Tensor:
    return torch.from_numpy(values.astype(np.float32))


def quick(rows: Judged, index: NDArray[np.int64] | None = None) -> dict[str, float]:
    """`map`, `map_50` and `map_75` of resampled pictures."""
    by_class = average_precision(rows, index)
    if np.isnan(by_class).all():
        return {name: float("nan") for name in ("map", "map_50", "map_75")}
    mean = np.nanmean(by_class, axis=0)
    return {"map": float(mean.mean()), "map_50": float(mean[0]), "map_75": float(mean[5])}


def intervals(rows: Judged) -> dict[str, tuple[float, float]]:
    """95 % intervals by the bootstrap over pictures."""
    draw, size = np.random.default_rng(0), len(rows.score)
    found = [quick(rows, draw.integers(size, size=size)) for _ in range(RESAMPLES)]
    return {
        name: (float(np.nanpercentile(values, 2.5)), float(np.nanpercentile(values, 97.5)))
        for name in found[0]
        if not np.isnan(values := [one[name] for one in found]).all()
    }
