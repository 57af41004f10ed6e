"""Pictures that are not decoded yet, with what their annotations say is in them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from datamodules.detection.objects import Objects
from datamodules.images import Size
from datamodules.vision.decoded import Source


@dataclass(frozen=True)
class Given:
    """Pictures of a split that the data name.

    Attributes:
        source: the pictures.
        objects: in each, their boxes in pixels of the file turned upright.
        in_shares: whether boxes are shares of width and height instead.
        sizes: height and width of each file as the annotations tell; None, or of a picture None, where they do not.
        masks: gives the packed masks of a picture's objects by its place and size; None where there are none, or
            nobody asked.
        masks_version: JSON of what tells these masks from others.
    """

    source: Source
    objects: Sequence[Objects]
    in_shares: bool = False
    sizes: Sequence[Size | None] | None = None
    masks: Callable[[int, Size], Sequence[NDArray[np.uint8]]] | None = None
    masks_version: Any = None

    def of(self, place: int, size: NDArray[np.int32]) -> Objects:
        """The objects of a picture of this height and width, in pixels.

        Raises ValueError where its annotation was made of another size: its boxes would lie anywhere.
        """
        found, (rows, columns) = self.objects[place], (int(size[0]), int(size[1]))
        told = self.sizes[place] if self.sizes else None
        if told is not None and told != (rows, columns):
            raise ValueError(
                f"{self.source.where}: {self.source.names[place]} has {rows} x {columns} pixels, its annotation "
                f"{told[0]} x {told[1]}: its boxes are of another picture; annotate it again, or leave the size out"
            )
        if not self.in_shares:
            return found
        height, width = size
        return replace(found, boxes=found.boxes * [width, height, width, height])
