"""Scenes of handwritten digits on cluttered ground, each pixel's digit known: nothing to download."""

from collections.abc import Sequence
from functools import cache
from threading import Lock
from typing import Annotated, Unpack

from annotated_types import Ge

from datamodules import scenes
from datamodules.images import Size
from datamodules.segmentation.datamodule import Options, SegmentationDataModule
from datamodules.segmentation.masks import Mask, Meaning, Pairs

Count = Annotated[int, Ge(1)]
GROUND = "ground"


class SegmentationScenes(SegmentationDataModule):
    """Scenes that are composed out of scikit-learn's digits: see `datamodules.scenes`.

    Other data are a folder with `images` and `masks`, whose values are 0 for the ground and 1 more than the digit.

    Args:
        num_train: scenes to train on.
        num_val: to validate on.
        num_test: to test on.
        size: of a side, in pixels.
        scene_seed: of the scenes; other than the run's, so that runs of all seeds see the same.
        options: see `Options`.
    """

    name = "scenes"

    def __init__(
        self,
        *,
        num_train: Count,
        num_val: Count,
        num_test: Count,
        size: Annotated[int, Ge(32)],
        scene_seed: Annotated[int, Ge(0)],
        **options: Unpack[Options],
    ) -> None:
        raw = {"images": "images", "masks": "masks", "mask_suffix": ""}
        super().__init__(raw, Meaning.of([GROUND, *scenes.CLASSES], None), options)
        self.nums = {"train": num_train, "val": num_val, "test": num_test}
        self.size, self.scene_seed = size, scene_seed

    def read(self) -> dict[str, Pairs]:
        """Scenes of all splits."""
        return {split: self._pairs(split, num) for split, num in self.nums.items()}

    def _pairs(self, split: str, num: int) -> Pairs:
        lock = Lock()  # pairs are asked for by several threads

        @cache
        def composed() -> Sequence[scenes.Scene]:
            return scenes.scenes(split, num, size=self.size, seed=self.scene_seed)

        def made() -> Sequence[scenes.Scene]:
            with lock:
                return composed()

        def mask(place: int, _: Size) -> Mask:
            return Mask(made()[place].classes)

        names = [f"{split} scene {place}" for place in range(num)]
        version = ["scenes", scenes.VERSION, split, num, self.size, self.scene_seed]
        return Pairs(f"scenes ({split})", names, lambda place: made()[place].image, mask, version)
