"""Objects of pictures: boxes with labels, as annotations have them and as tensors.

Shapes: N pictures, M objects of the picture that has most, n of one.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from datamodules.images import Size

ABSENT = -1  # the class of a row that pads
SIDE = 112  # cells of a mask's side
MASK_BYTES = SIDE * SIDE // 8


@dataclass(frozen=True)
class Objects:
    """What is in one picture.

    Attributes:
        boxes: float64 [n, 4]: left, top, right, bottom in pixels, the right and bottom ones exclusive.
        labels: of each.
        is_crowd: whether it stands for many objects or is too hard: not to be learnt, no mistake if found, bool [n].
        masks: packed, uint8 [n, MASK_BYTES] (see `datamodules.detection.masks`); None where the data have none.
        frames: boxes that the masks fill, which nothing cuts, float64 [n, 4].
    """

    boxes: NDArray[np.float64]
    labels: tuple[str, ...]
    is_crowd: NDArray[np.bool_]
    masks: NDArray[np.uint8] | None = None
    frames: NDArray[np.float64] | None = None

    @classmethod
    def of(cls, boxes: Sequence[Sequence[float]], labels: Sequence[str], crowds: Sequence[bool] = ()) -> "Objects":
        """Out of plain lists; no object is a crowd where that is not said."""
        is_crowd = np.array(crowds or [False] * len(labels), bool)
        return cls(np.array(boxes, np.float64).reshape(-1, 4), tuple(labels), is_crowd)

    def where(self, kept: NDArray[np.bool_]) -> "Objects":
        """Those that a mask [n] keeps."""
        labels = tuple(label for label, is_kept in zip(self.labels, kept, strict=True) if is_kept)
        masks = None if self.masks is None else self.masks[kept]
        frames = None if self.frames is None else self.frames[kept]
        return Objects(self.boxes[kept], labels, self.is_crowd[kept], masks, frames)


def cut(given: Sequence[Objects], sizes: NDArray[np.int32], names: Sequence[str], notes: list[str]) -> list[Objects]:
    """The objects with their boxes cut to their pictures, without those of which nothing is left, both counted."""
    found, outside, empty = [], 0, []
    for objects, (height, width), name in zip(given, sizes, names, strict=True):
        inside = objects.boxes.clip(0, [width, height, width, height])
        outside += int((np.abs(inside - objects.boxes) > 0.5).any(axis=1).sum())  # less is rounding
        is_there = np.asarray((inside[:, 2:] > inside[:, :2]).all(axis=1))
        empty += [name] * int((~is_there).sum())
        found.append(replace(objects, boxes=inside).where(is_there))
    if outside:
        notes.append(f"{outside:,} boxes reach out of their images: cut")
    if empty:
        notes.append(f"{len(empty):,} boxes have no area within their images (such as in {empty[0]}): left out")
    return found


def known(given: Sequence[Objects], classes: Sequence[str], what: str, notes: list[str]) -> list[Objects]:
    """The objects of classes that training has seen; how many have others is noted."""
    strange = [label for objects in given for label in objects.labels if label not in classes]
    if not strange:
        return list(given)
    some = sorted(set(strange))
    told = ", ".join(map(repr, some[:5])) + (", ..." if len(some) > 5 else "")
    notes.append(f"{len(strange):,} objects of {what} have a label that training has not ({told}): left out")
    return [objects.where(np.array([label in classes for label in objects.labels], bool)) for objects in given]


def tensors_of(
    given: Sequence[Objects], sizes: NDArray[np.int32], size: Size, classes: Sequence[str]
) -> dict[str, Tensor]:
    """Boxes float32 [N, M, 4] in pixels of pictures resized to `size`, target int64 [N, M] and crowd bool [N, M].

    M is at least 1; rows of target that are no objects are -1, and lie behind the others. Where objects have masks,
    also masks uint8 [N, M, MASK_BYTES] and frames float32 [N, M, 4].
    """
    most = max([1, *(len(objects.labels) for objects in given)])
    boxes = np.zeros((len(given), most, 4), np.float32)
    target = np.full((len(given), most), ABSENT, np.int64)
    crowd = np.zeros((len(given), most), bool)
    has_masks = any(objects.masks is not None for objects in given)
    masks = np.zeros((len(given), most if has_masks else 0, MASK_BYTES), np.uint8)
    frames = np.zeros((len(given), most, 4), np.float32)
    numbers = {name: number for number, name in enumerate(classes)}
    for row, (objects, (height, width)) in enumerate(zip(given, sizes, strict=True)):
        num = len(objects.labels)
        scale = np.array([size[1], size[0]] * 2) / [width, height, width, height]
        boxes[row, :num] = objects.boxes * scale
        target[row, :num] = [numbers[label] for label in objects.labels]
        crowd[row, :num] = objects.is_crowd
        if objects.masks is not None and objects.frames is not None:
            masks[row, :num], frames[row, :num] = objects.masks, objects.frames * scale
    found = {"boxes": boxes, "target": target, "crowd": crowd}
    if has_masks:
        found |= {"masks": masks, "frames": frames}
    return {name: torch.from_numpy(values) for name, values in found.items()}
