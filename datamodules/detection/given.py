"""Pictures that are not decoded yet, with what their annotations say is in them."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from datamodules.detection.objects import Objects
from datamodules.vision.decoded import Source


@dataclass(frozen=True)
class Given:
    """Pictures of a split that the data name.

    Attributes:
        source: the pictures.
        objects: in each, their boxes in pixels of the file turned upright.
        in_shares: whether boxes are shares of width and height instead.
    """

    source: Source
    objects: Sequence[Objects]
    in_shares: bool = False

    def of(self, place: int, size: NDArray[np.int32]) -> Objects:
        """The objects of a picture of this height and width, in pixels."""
        found = self.objects[place]
        if not self.in_shares:
            return found
        height, width = size
        return Objects(found.boxes * [width, height, width, height], found.labels, found.is_crowd)
