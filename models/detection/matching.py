"""Which detections are right, and COCO's average precision of that; fast enough to be asked of many resamples.

The figures of a run come from torchmetrics and faster-coco-eval (`models.detection.metrics`); a test holds these
against them. Shapes: N pictures, D detections, M objects, T thresholds of overlap.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

# COCO's, rounded as torchmetrics does: a recall of 0.6 is below 0.6 in 32 bits.
THRESHOLDS = torch.linspace(0.5, 0.95, 10).double().numpy()
RECALLS = torch.linspace(0, 1, 101).double().numpy()
Bools = NDArray[np.bool_]
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Detected:
    """Detections of scored pictures, in the loader's order, beside the truth.

    Attributes:
        found: left, top, right, bottom, score, class, float32 [N, D, 6]; class -1 pads.
        boxes: of objects, in the same pixels, [N, M, 4].
        target: their classes, -1 pads, [N, M].
        crowd: whether they are neither to be found nor a mistake if found, [N, M].
        size: height and width of the pictures before resizing, [N, 2].
        row: number of the picture in the split, [N].
        cells: of the masks of detections, 255 for what is sure, uint8 [N, D, S S]; None where there are no masks.
        masks: of objects, packed, uint8 [N, M, bytes].
        frames: boxes that they fill, [N, M, 4].
    """

    found: NDArray[np.float32]
    boxes: NDArray[np.float32]
    target: NDArray[np.int64]
    crowd: Bools
    size: NDArray[np.int32]
    row: NDArray[np.int64]
    cells: NDArray[np.uint8] | None = None
    masks: NDArray[np.uint8] | None = None
    frames: NDArray[np.float32] | None = None


@dataclass(frozen=True)
class Judged:
    """Pictures' detections, judged.

    Attributes:
        score: float32 [N, D]; labels: their classes, -1 pads, [N, D].
        right: whether each is, at each threshold, bool [N, D, T].
        counts: whether each counts: not where it lies on a crowd, bool [N, D, T].
        num_objects: of each class, without crowds, [N, C].
    """

    score: NDArray[np.float32]
    labels: NDArray[np.int64]
    right: Bools
    counts: Bools
    num_objects: NDArray[np.int64]

    @property
    def num_classes(self) -> int:
        """C."""
        return int(self.num_objects.shape[1])


def judged(rows: Detected, num_classes: int) -> Judged:
    """Match each picture's detections, the surest first, with objects of their class that they overlap most."""
    shape = (*rows.found.shape[:2], len(THRESHOLDS))
    right, counts = np.zeros(shape, bool), np.ones(shape, bool)
    labels = rows.found[..., 5].astype(np.int64)
    for picture, own, objects in _by_class(labels, rows.target):
        crowd = rows.crowd[picture, objects]
        overlap = _overlaps(rows.found[picture, own, :4], rows.boxes[picture, objects], crowd)
        right[picture, own], counts[picture, own] = _matched(overlap, crowd)
    is_object = (rows.target[..., None] == np.arange(num_classes)) & ~rows.crowd[..., None]
    return Judged(rows.found[..., 4], labels, right, counts, is_object.sum(axis=1))


def average_precision(rows: Judged, index: NDArray[np.int64] | None = None) -> Floats:
    """Average precision of each class and threshold, [C, T]; NaN for a class without objects.

    index: pictures that are looked at, those twice that are in it twice; None for all of them once.
    """
    times = np.bincount(np.arange(len(rows.score)) if index is None else index, minlength=len(rows.score))
    found = np.full((rows.num_classes, len(THRESHOLDS)), np.nan)
    weight = np.broadcast_to(times[:, None], rows.score.shape)
    for label in range(rows.num_classes):
        num = int((times * rows.num_objects[:, label]).sum())
        if num:
            own = (rows.labels == label) & (weight > 0)
            order = np.argsort(-rows.score[own], kind="stable")
            right, counts = rows.right[own][order], rows.counts[own][order]
            found[label] = [_area(*curve) for curve in curves(right, counts, weight[own][order], num)]
    return found


def curves(right: Bools, counts: Bools, weight: NDArray[np.int64], num: int) -> Iterator[tuple[Floats, Floats]]:
    """Recall and precision at each threshold, the surest detection first; right and counts are [n, T]."""
    for place in range(right.shape[1]):
        is_right = (weight * (right & counts)[:, place]).cumsum()
        is_wrong = (weight * (~right & counts)[:, place]).cumsum()
        yield is_right / num, is_right / np.maximum(is_right + is_wrong, 1)


def _area(recall: Floats, precision: Floats) -> float:
    """Mean precision at 101 recalls, each the best at that recall or more."""
    best = np.maximum.accumulate(precision[::-1])[::-1]
    places = np.searchsorted(recall, RECALLS, side="left")
    return float(np.append(best, 0.0)[np.minimum(places, len(best))].mean())


def _by_class(labels: NDArray[np.int64], target: NDArray[np.int64]) -> Iterator[tuple[int, Bools, Bools]]:
    """Each picture's detections and objects of one class, where there are both."""
    for picture in range(len(labels)):
        for label in np.intersect1d(labels[picture], target[picture]):
            if label >= 0:
                yield picture, labels[picture] == label, target[picture] == label


def _overlaps(found: NDArray[np.float32], boxes: NDArray[np.float32], crowd: Bools) -> Floats:
    """Intersection over union [n, m]; with a crowd, over the detection's own area."""
    one, other = found.astype(np.float64)[:, None], boxes.astype(np.float64)[None]
    sides = np.minimum(one[..., 2:], other[..., 2:]) - np.maximum(one[..., :2], other[..., :2])
    shared = sides.clip(0).prod(axis=2)
    own, theirs = ((each[..., 2:] - each[..., :2]).prod(axis=2) for each in (one, other))
    result: Floats = shared / np.maximum(np.where(crowd, own, own + theirs - shared), 1e-9)
    return result


def _matched(overlap: Floats, crowd: Bools) -> tuple[Bools, Bools]:
    """Which detections [n] of overlap [n, m] are right and which count, at each threshold: [n, T] both."""
    shape = (len(overlap), len(THRESHOLDS))
    right, counts = np.zeros(shape, bool), np.ones(shape, bool)
    for place, threshold in enumerate(THRESHOLDS):
        is_free = np.ones(overlap.shape[1], bool)
        for number, row in enumerate(overlap):
            own = np.where(is_free & ~crowd & (row >= threshold - 1e-10), row, -1.0)
            if own.max() >= 0:
                # Of objects that it overlaps equally, COCO takes the last.
                chosen = len(own) - 1 - int(own[::-1].argmax())
                is_free[chosen], right[number, place] = False, True
            elif (crowd & (row >= threshold - 1e-10)).any():
                counts[number, place] = False
    return right, counts
