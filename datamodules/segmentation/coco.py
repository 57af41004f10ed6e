"""Images of one's own with COCO's annotations: polygons and run lengths are painted, and each pixel is one category."""

import posixpath
from collections.abc import Sequence
from typing import Unpack

import numpy as np

from datamodules.coco import CocoImage, read_coco
from datamodules.images import Size
from datamodules.outlines import area
from datamodules.segmentation.datamodule import Options, SegmentationDataModule
from datamodules.segmentation.masks import Mask, Meaning, Pairs, told
from datamodules.vision.files import of_paths

GROUND = "background"
OUTSIDE = "painted as far as its polygons lie within it"


class CocoMasks(SegmentationDataModule):
    """COCO annotation files, one for each split or one to be split.

    A pixel is of the object that covers it, of several of the smallest; of none, it is background.

    Args:
        path: annotations of the training images, local or on S3.
        val_path: of the validation images; None to take them out of the training images.
        test_path: of the test images; None to take them out of the training images.
        image_root: folder that the file names start from; None for the annotation file's own.
        options: see `Options`.
    """

    def __init__(
        self,
        *,
        path: str,
        val_path: str | None,
        test_path: str | None,
        image_root: str | None,
        **options: Unpack[Options],
    ) -> None:
        super().__init__({"image_root": image_root}, Meaning(None, None), options)
        self.paths = {"train": path, "val": val_path, "test": test_path}
        self.name = path.rstrip("/").rsplit("/", 1)[-1]

    def read(self) -> dict[str, Pairs]:
        """For each split that has a file, train first, its images and their categories, which are those of train."""
        listed = {split: (uri, read_coco(uri, self.notes)) for split, uri in self.paths.items() if uri}
        names = sorted({item.category for image in listed["train"][1] for item in image.objects} - {GROUND})
        if not names:
            raise ValueError(f"{self.paths['train']}: there are no objects to learn from")
        self.meaning = Meaning.of([GROUND, *names], None)
        classes = list(self.meaning.values or {})
        return {
            split: _pairs(uri, images, self.raw["image_root"], classes, self.options, self.notes)
            for split, (uri, images) in listed.items()
        }


def pairs_of(uri: str, root: str | None, classes: Sequence[str], options: Options, notes: list[str]) -> Pairs:
    """Images of an annotation file with their categories as a run's classes."""
    return _pairs(uri, read_coco(uri, notes), root, classes, options, notes)


def _pairs(
    uri: str, images: list[CocoImage], root: str | None, classes: Sequence[str], options: Options, notes: list[str]
) -> Pairs:
    if not images:
        raise ValueError(f"{uri}: there are no images")
    known = {name: number for number, name in enumerate(classes)}
    strange = [item.category for image in images for item in image.objects if item.category not in known]
    if strange:
        some = ", ".join(sorted(set(strange))[:5])
        notes.append(f"{len(strange):,} objects of {uri} are of categories that training has not ({some}): background")
    source = of_paths(uri, [image.name for image in images], root or posixpath.dirname(uri) or ".", notes)

    def image(place: int) -> bytes:
        found = source.read(place)
        assert isinstance(found, bytes)  # of paths
        return found

    def mask(place: int, size: Size) -> Mask:
        return painted(images[place], size, known)

    version = [uri, source.version, [repr(image) for image in images], list(classes)]
    return Pairs(uri, source.names, image, mask, version)


def painted(image: CocoImage, size: Size, known: dict[str, int]) -> Mask:
    """The categories of a picture's pixels. Raises ValueError where an object has no outline, or a broken one."""
    if image.size is not None and image.size != size:
        raise ValueError(f"it has {told(size)} pixels, its annotation {told(image.size)}")
    values = np.zeros(size, np.uint8)
    covered, is_outside = [], False
    for number, item in enumerate(image.objects):
        if item.category not in known:
            continue
        try:
            where, leaves = area(item, size)
        except ValueError as error:
            raise ValueError(f"object {number + 1} ({item.category}): {error}") from error
        is_outside |= leaves
        covered.append((int(where.sum()), known[item.category], where))
    for _, category, where in sorted(covered, key=lambda one: -one[0]):
        values[where] = category
    return Mask(values, (OUTSIDE,) if is_outside else ())
