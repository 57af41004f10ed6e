"""Metrics of class maps out of counts of pixels, picture by picture: what is resampled are pictures.

Shapes: N or B pictures, H x W pixels, C classes.
"""

from dataclasses import dataclass, fields

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from models.segmentation.losses import IGNORED

Floats = NDArray[np.float64]
TOLERANCE = 0.0075  # of the diagonal: how far off a boundary may be found (Csurka et al., 2013), at least one pixel


@dataclass(frozen=True)
class Segmented:
    """Pictures with what was found in them.

    Attributes:
        confusion: pixels by true and by found class, int64 [N, C, C].
        boundary: for each class pixels of the found boundary, those of them near the true one, pixels of the true
            boundary, those of them near the found one, int64 [N, C, 4].
        row: number of the row in its split, ascending, [N].
    """

    confusion: NDArray[np.int64]
    boundary: NDArray[np.int64]
    row: NDArray[np.int64]

    @classmethod
    def of(cls, confusion: NDArray[np.int64], boundary: NDArray[np.int64], row: NDArray[np.int64]) -> "Segmented":
        """Join rows in any order, each once."""
        order = np.argsort(row, kind="stable")
        return cls(confusion[order].astype(np.int64), boundary[order].astype(np.int64), row[order])

    def take(self, chosen: NDArray[np.int64]) -> "Segmented":
        """Return some of the rows, by their places."""
        return Segmented(**{column.name: getattr(self, column.name)[chosen] for column in fields(self)})


def confusions(found: Tensor, target: Tensor, num_classes: int) -> Tensor:
    """Pixels of each picture by true and by found class, int32 [B, C, C], of class maps [B, H, W]."""
    pictures = torch.arange(len(found), device=found.device).view(-1, 1, 1)
    places = (pictures * num_classes + target.long()) * num_classes + found.long()
    counts = torch.bincount(places[target != IGNORED], minlength=len(found) * num_classes**2)
    return counts.view(len(found), num_classes, num_classes).to(torch.int32)


def boundaries(found: Tensor, target: Tensor, num_classes: int) -> Tensor:
    """What `Segmented.boundary` has, int32 [B, C, 4], of class maps [B, H, W]."""
    height, width = target.shape[1:]
    reach = max(1, round(TOLERANCE * float(np.hypot(height, width))))
    is_ignored = (target == IGNORED).float().unsqueeze(1)
    counts = ~(_near(is_ignored, 1) > 0)
    parts = []
    for index in range(num_classes):
        edges = [_edge((one == index).float().unsqueeze(1)) & counts for one in (found, target)]
        near = [_near(edge.float(), reach) > 0 for edge in edges]
        columns = (edges[0], edges[0] & near[1], edges[1], edges[1] & near[0])
        parts.append(torch.stack([column.sum(dim=(1, 2, 3)) for column in columns], dim=1))
    return torch.stack(parts, dim=1).to(torch.int32)


def _near(mask: Tensor, reach: int) -> Tensor:
    return functional.max_pool2d(mask, 2 * reach + 1, stride=1, padding=reach)


def _edge(mask: Tensor) -> Tensor:
    """Pixels of a mask [B, 1, H, W] beside others, bool; the picture's own edge is none."""
    return (mask > 0) & (_near(1 - mask, 1) > 0)


def metrics_of(rows: Segmented) -> dict[str, float]:
    """Return every metric: means over the classes that are there or are found."""
    return {
        "mean_iou": mean_iou(rows),
        "dice": _mean(dice(rows)),
        "pixel_accuracy": pixel_accuracy(rows),
        "boundary_f": _mean(boundary_f(rows)),
    }


def counts(rows: Segmented) -> tuple[Floats, Floats, Floats]:
    """Pixels of each class that are found rightly, found, and true, [C] each."""
    total = rows.confusion.sum(axis=0).astype(np.float64)
    return np.diagonal(total), total.sum(axis=0), total.sum(axis=1)


def iou(rows: Segmented) -> Floats:
    """Intersection over union of each class over all pictures, [C]; NaN where it is neither there nor found."""
    hits, found, true = counts(rows)
    union = found + true - hits
    return np.where(union > 0, hits / np.maximum(union, 1), np.nan)


def dice(rows: Segmented) -> Floats:
    """The same of the Dice coefficient, which is the F1 of pixels."""
    hits, found, true = counts(rows)
    return np.where(found + true > 0, 2 * hits / np.maximum(found + true, 1), np.nan)


def mean_iou(rows: Segmented) -> float:
    """Mean IoU of the classes."""
    return _mean(iou(rows))


def pixel_accuracy(rows: Segmented) -> float:
    """Share of pixels that are right."""
    hits, _, true = counts(rows)
    return float(hits.sum() / max(true.sum(), 1))


def boundary_f(rows: Segmented) -> Floats:
    """F1 of each class's boundary pixels within the tolerance, [C]; NaN where there are none."""
    found, right, true, met = rows.boundary.sum(axis=0).astype(np.float64).T
    precision, recall = right / np.maximum(found, 1), met / np.maximum(true, 1)
    both = 2 * precision * recall / np.maximum(precision + recall, 1e-12)
    return np.where(found + true > 0, both, np.nan)


def iou_by_picture(rows: Segmented) -> Floats:
    """Mean IoU of the classes of each picture, [N]; NaN for a picture without any counted pixel."""
    hits = np.diagonal(rows.confusion, axis1=1, axis2=2).astype(np.float64)
    union = rows.confusion.sum(axis=1) + rows.confusion.sum(axis=2) - hits
    is_there = union > 0
    total = np.where(is_there, hits / np.maximum(union, 1), 0.0).sum(axis=1)
    return np.where(is_there.any(axis=1), total / np.maximum(is_there.sum(axis=1), 1), np.nan)


def per_class(rows: Segmented, classes: list[str]) -> dict[str, dict[str, float]]:
    """Return pixels, IoU, precision, recall and boundary F of each class; 0 where nothing is there or found."""
    hits, found, true = counts(rows)
    overlap, edges = np.nan_to_num(iou(rows)), np.nan_to_num(boundary_f(rows))
    return {
        name: {
            "pixels": float(true[index]),
            "iou": float(overlap[index]),
            "precision": float(hits[index] / max(found[index], 1)),
            "recall": float(hits[index] / max(true[index], 1)),
            "boundary_f": float(edges[index]),
        }
        for index, name in enumerate(classes)
    }


BOOTSTRAPPED = {"mean_iou": mean_iou, "pixel_accuracy": pixel_accuracy}


def bootstrap_intervals(rows: Segmented, *, resamples: int = 200, seed: int = 0) -> dict[str, tuple[float, float]]:
    """Return 95 % percentile intervals of metrics over resampled pictures (Efron, 1979)."""
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


def _mean(by_class: Floats) -> float:
    return float("nan") if np.all(np.isnan(by_class)) else float(np.nanmean(by_class))
