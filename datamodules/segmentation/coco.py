"""Images of one's own with COCO's annotations: polygons and run lengths are painted, and each pixel is one category."""

import posixpath
from collections.abc import Sequence
from typing import Any, Unpack

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from datamodules.coco import CocoImage, CocoObject, read_coco
from datamodules.images import Size
from datamodules.segmentation.datamodule import Options, SegmentationDataModule
from datamodules.segmentation.masks import Mask, Meaning, Pairs, told
from datamodules.vision.files import of_paths

GROUND = "background"
FINE = 3  # times as many pixels a side that polygons are filled with
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


def area(item: CocoObject, size: Size) -> tuple[NDArray[np.bool_], bool]:
    """Pixels that an object covers, [H, W], and whether it also lies outside."""
    given = item.segmentation
    if isinstance(given, dict):
        return run_lengths(given, size), False
    if not isinstance(given, list) or not given:
        raise ValueError(f"segmentation must be polygons or run lengths, got {str(given)[:60]}")
    covered, is_outside = np.zeros(size, bool), False
    for polygon in given:
        points = _points(polygon)
        is_outside |= bool((points < -0.5).any() or (points > np.array([size[1], size[0]]) + 0.5).any())
        _fill(covered, points)
    return covered, is_outside


def _fill(covered: NDArray[np.bool_], points: NDArray[np.float64]) -> None:
    """Mark the pixels whose middles lie within a polygon [n, 2], x and y."""
    most = np.array(covered.shape[::-1])
    left, top = np.clip(np.floor(points.min(axis=0)), 0, most).astype(int)
    right, bottom = np.clip(np.ceil(points.max(axis=0)), 0, most).astype(int)
    if right <= left or bottom <= top:
        return
    # Pillow fills what its outline touches, too: of nine small pixels only the one in the middle counts.
    canvas = Image.new("1", (FINE * (right - left), FINE * (bottom - top)))
    outline = FINE * (points - (left, top)) - 0.5
    ImageDraw.Draw(canvas).polygon([(float(x), float(y)) for x, y in outline], fill=1)
    covered[top:bottom, left:right] |= np.asarray(canvas)[FINE // 2 :: FINE, FINE // 2 :: FINE]


def _points(polygon: Any) -> NDArray[np.float64]:
    try:
        points = np.asarray(polygon, np.float64)
    except (TypeError, ValueError) as error:
        raise ValueError(f"a polygon must be numbers, got {str(polygon)[:60]}") from error
    if points.ndim != 1 or len(points) < 6 or len(points) % 2 or not np.isfinite(points).all():
        raise ValueError(f"a polygon must have 3 points or more, [x, y, x, y, x, y, ..], got {str(polygon)[:60]}")
    return points.reshape(-1, 2)


def run_lengths(given: dict[str, Any], size: Size) -> NDArray[np.bool_]:
    """Pixels out of run lengths, column by column, of nothing and of the object in turns; also as COCO packs them."""
    counts = given.get("counts")
    runs = _unpacked(counts) if isinstance(counts, str) else counts
    if given.get("size") != list(size) or not isinstance(runs, list) or not _are_lengths(runs):
        raise ValueError(f"run lengths must be of {list(size)}, [height, width], got {str(given)[:60]}")
    if sum(runs) != size[0] * size[1]:
        raise ValueError(f"run lengths must add up to {size[0] * size[1]:,} pixels, got {sum(runs):,}")
    flat = np.repeat(np.arange(len(runs)) % 2 == 1, runs)
    found: NDArray[np.bool_] = flat.reshape(size[1], size[0]).T
    return found


def _are_lengths(runs: list[Any]) -> bool:
    return bool(runs) and all(type(run) is int and run >= 0 for run in runs)


def _unpacked(text: str) -> list[int]:
    """COCO's texts of run lengths: five bits a character, from the third on as differences to the last but one."""
    runs: list[int] = []
    value, shift = 0, 0
    for character in text:
        bits = ord(character) - 48
        if not 0 <= bits < 64:
            raise ValueError(f"run lengths hold {character!r}, which is none of COCO's characters")
        value |= (bits & 31) << shift
        shift += 5
        if bits & 32:
            continue
        if bits & 16:
            value -= 1 << shift
        runs.append(value + (runs[-2] if len(runs) > 2 else 0))
        value, shift = 0, 0
    return runs
