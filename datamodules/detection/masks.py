"""Masks of objects, each in the frame of its box: moving or resizing a picture moves the frame and no pixel of a mask.

A mask is SIDE x SIDE cells, whose middles are looked up in the picture, packed to bits: 1.6 KB an object, whatever the
size of the picture. Objects of up to SIDE pixels a side are kept exactly.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from datamodules.cache import cached_table
from datamodules.detection.given import Given
from datamodules.detection.objects import MASK_BYTES, SIDE, Objects
from datamodules.vision.decoded import Decoded

VERSION = 1  # of what is made here
Masks = NDArray[np.uint8]


def framed(covered: NDArray[np.bool_], box: Sequence[float]) -> Masks:
    """The packed mask of one object, uint8 [MASK_BYTES], out of the pixels of its picture [H, W]."""
    left, top, right, bottom = box
    middles = (np.arange(SIDE) + 0.5) / SIDE
    down, across = (
        np.floor(first + middles * (last - first)).astype(np.int64) for first, last in ((top, bottom), (left, right))
    )
    is_inside = [(places >= 0) & (places < side) for places, side in zip((down, across), covered.shape, strict=True)]
    down, across = (places.clip(0, side - 1) for places, side in zip((down, across), covered.shape, strict=True))
    found = covered[down[:, None], across] & is_inside[0][:, None] & is_inside[1]
    return np.packbits(found.reshape(-1))


def with_masks(given: Given, objects: Sequence[Objects], found: Decoded) -> list[Objects]:
    """The objects of decoded pictures with their masks, from the cache where they are.

    Raises ValueError where the data have none.
    """
    masks_of = given.masks
    if masks_of is None:
        raise ValueError(
            f"{given.source.where}: there are no masks of objects, which data.masks=true, also of the run, asks for: "
            "give COCO's annotations or Penn-Fudan's folder, or train with data.masks=false"
        )

    def made() -> pa.Table:
        places = zip(found.places.tolist(), found.sizes.tolist(), strict=True)
        parts = [b"".join(map(bytes, masks_of(place, (height, width)))) for place, (height, width) in places]
        return pa.table({"masks": pa.array(parts, pa.large_binary())})

    version = [VERSION, SIDE, given.source.where, given.masks_version, found.places.tolist(), found.sizes.tolist()]
    table = cached_table("instance-masks", {"version": version}, made)
    parts = [np.frombuffer(part, np.uint8).reshape(-1, MASK_BYTES) for part in table["masks"].to_pylist()]
    return [replace(one, masks=masks, frames=one.boxes) for one, masks in zip(objects, parts, strict=True)]
