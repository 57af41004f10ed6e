"""Handwritten digits, real and small, that come with scikit-learn: nothing to download."""

from typing import Unpack

import numpy as np
import pyarrow as pa

from datamodules.vision.datamodule import Given, Options, VisionDataModule
from datamodules.vision.decoded import Source

LEVELS = 16  # of grey


class Digits(VisionDataModule):
    """1,797 digits of 8 x 8 pixels by 43 people (UCI, Alpaydin and Kaynak, 1998).

    Other data are a folder of class folders, or a table with columns `image` (paths or bytes) and `label`.

    Args:
        options: see `Options`.
    """

    name = "digits"

    def __init__(self, **options: Unpack[Options]) -> None:
        super().__init__({"image": "image", "label": "label", "image_root": None}, options)

    def read(self) -> dict[str, Given]:
        """All of them."""
        from sklearn.datasets import load_digits

        found = load_digits()
        grey = (found.images * (255 / LEVELS)).round().astype(np.uint8)
        pixels = np.repeat(grey[..., None], 3, axis=3)
        names = [f"digit {place}" for place in range(len(pixels))]
        labels = pa.array([str(digit) for digit in found.target], pa.large_string())
        return {"train": Given(Source(self.name, names, lambda place: pixels[place]), labels)}
