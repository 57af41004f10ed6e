"""The Penn-Fudan pedestrians as they are published: https://www.cis.upenn.edu/~jshi/ped_html (Wang et al., 2007)."""

import posixpath
from dataclasses import replace
from typing import Unpack

import numpy as np

from datamodules.images import Size
from datamodules.segmentation.datamodule import Options, SegmentationDataModule
from datamodules.segmentation.folder import pairs_of_files
from datamodules.segmentation.masks import Mask, Meaning, Pairs
from datamodules.vision.files import files_in

CLASSES = ("ground", "pedestrian")
FOLDERS = ("PNGImages", "JPEGImages")
MASKS, SUFFIX = "PedMasks", "_mask"


class PennFudanMasks(SegmentationDataModule):
    """170 pictures of streets; a mask numbers its pedestrians, all of whom are one class here.

    Args:
        path: folder that holds PNGImages (or JPEGImages) and PedMasks.
        options: see `Options`.
    """

    name = "penn_fudan"

    def __init__(self, *, path: str, **options: Unpack[Options]) -> None:
        raw = {"images": "images", "masks": "masks", "mask_suffix": ""}
        super().__init__(raw, Meaning.of(list(CLASSES), None), options)
        self.path = path

    def read(self) -> dict[str, Pairs]:
        """All of them: the set names no splits."""
        files = files_in(self.path)
        images = [path for path in files.images if path.split("/")[0] in FOLDERS]
        if not images:
            raise ValueError(f"{self.path}: there are no images in {' or '.join(FOLDERS)}; give the set's folder")
        names = [posixpath.splitext(posixpath.basename(path))[0] for path in images]
        masks = [f"{MASKS}/{name}{SUFFIX}.png" for name in names]
        if lonely := [mask for mask in masks if mask not in files.images]:
            raise ValueError(f"{self.path}: there is no {lonely[0]}")
        found = pairs_of_files(self.path, files, images, masks, Meaning(None, None), self.options)

        def mask(place: int, size: Size) -> Mask:
            return Mask(np.minimum(found.mask(place, size).values, 1))

        return {"train": replace(found, mask=mask, version=[found.version, "pedestrians"])}
