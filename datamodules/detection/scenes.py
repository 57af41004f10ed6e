"""Scenes of digits to find, composed on the spot: nothing to download."""

import json
from functools import cache
from typing import Annotated, Unpack

import pyarrow as pa
from annotated_types import Ge, Gt

from datamodules import scenes as composed
from datamodules.cache import cached_table
from datamodules.detection.datamodule import DetectionDataModule, Options
from datamodules.detection.given import Given
from datamodules.detection.masks import Masks, framed
from datamodules.detection.objects import Objects
from datamodules.images import Opened, Size
from datamodules.vision.decoded import Source


class Scenes(DetectionDataModule):
    """Handwritten digits of scikit-learn on cluttered ground, overlapping; see `datamodules.scenes`.

    Other data are read as `DetectionTable` and the others do.

    Args:
        num_train: scenes to train on.
        num_val: scenes that validate.
        num_test: scenes that test.
        scene_seed: of what is drawn; another than the run's, so that runs of several seeds have the same test scenes.
        masks: whether objects have masks, exact ones, for a model that learns them.
        options: see `Options`; scenes are square.
    """

    name = "scenes"

    def __init__(
        self,
        *,
        num_train: Annotated[int, Gt(0)],
        num_val: Annotated[int, Ge(0)],
        num_test: Annotated[int, Ge(0)],
        scene_seed: Annotated[int, Ge(0)],
        masks: bool,
        **options: Unpack[Options],
    ) -> None:
        super().__init__({"image": "image", "objects": "objects", "image_root": None, "masks": masks}, options)
        if self.size[0] != self.size[1]:
            raise ValueError(f"image_size must be one number, scenes are square; got {options['image_size']}")
        self.numbers = {"train": num_train, "val": num_val, "test": num_test}
        self.scene_seed = scene_seed

    def read(self) -> dict[str, Given]:
        """For each split its scenes; composing is left to whom the cache cannot serve."""
        return {split: self._given(split, num) for split, num in self.numbers.items() if num}

    def _given(self, split: str, num: int) -> Given:
        version = [composed.VERSION, split, num, self.size[0], self.scene_seed]

        @cache
        def made() -> list[composed.Scene]:
            return composed.scenes(split, num, size=self.size[0], seed=self.scene_seed)

        def objects() -> pa.Table:
            return pa.table(
                {
                    "boxes": [json.dumps(scene.boxes.tolist()) for scene in made()],
                    "labels": [json.dumps([composed.CLASSES[label] for label in scene.labels]) for scene in made()],
                }
            )

        def read(place: int) -> Opened:
            return made()[place].image

        table = cached_table("scene-objects", {"version": version}, objects).to_pylist()
        found = [Objects.of(json.loads(row["boxes"]), json.loads(row["labels"])) for row in table]
        names = [f"{split} scene {place}" for place in range(num)]

        def masks(place: int, size: Size) -> list[Masks]:
            scene = made()[place]
            return [framed(scene.owner == number + 1, box) for number, box in enumerate(scene.boxes.tolist())]

        source = Source(f"{self.name}, {split}", names, read, ["scenes", *version])
        return Given(source, found, masks=masks, masks_version=version)
