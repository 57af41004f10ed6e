"""Penn-Fudan's annotations: a text file for each image, whose boxes count pixels from 1 and include the last one.

The text files name images as .png; copies with .jpg are found as well.
"""

import posixpath
import re
from collections.abc import Sequence

import numpy as np

from datamodules.detection.given import Given
from datamodules.detection.masks import Masks, framed
from datamodules.detection.objects import Objects
from datamodules.images import Size
from datamodules.segmentation.masks import decode_mask
from datamodules.vision.files import Files, read_bytes

LABEL = "pedestrian"  # of all objects, whatever they do
FOLDERS = ("PNGImages", "JPEGImages")
BOX = re.compile(rb"^Bounding box for object (\d+) .*: *(.*)$", re.M)
PLACES = re.compile(rb"\(\s*(-?\d+)\s*,\s*(-?\d+)\s*\)\s*-\s*\(\s*(-?\d+)\s*,\s*(-?\d+)\s*\)\s*")
COUNT = re.compile(rb"^Objects with ground truth *: *(\d+)", re.M)


def is_there(files: Files) -> bool:
    """Whether a folder looks like that of the archive."""
    return any(path.startswith("Annotation/") and path.endswith(".txt") for path in files.others)


def splits(uri: str, files: Files, num_test: int, seed: int) -> dict[str, list[str]]:
    """Images that train and, drawn of all with a seed, those that test. Raises ValueError if none are left."""
    images = _own(files)
    if len(images) <= num_test:
        raise ValueError(f"{uri}: num_test must be below the number of images, {len(images)}, got {num_test}")
    order = np.random.default_rng(seed).permutation(len(images))
    testing = {images[place] for place in order[:num_test]}
    train = {"train": [image for image in images if image not in testing]}
    return train | ({"test": sorted(testing)} if testing else {})


def given(uri: str, files: Files, images: Sequence[str], notes: list[str]) -> Given:
    """Some of the images with their pedestrians; masks are no images here."""
    there = set(files.others)
    own = [image for image in images if image.split("/")[0] in FOLDERS]
    objects = []
    for image in own:
        path = f"Annotation/{posixpath.splitext(posixpath.basename(image))[0]}.txt"
        if path not in there:
            raise ValueError(f"{uri}/{image}: there must be an annotation, {path}")
        objects.append(_objects(read_bytes(files.filesystem, f"{files.root}/{path}"), f"{uri.rstrip('/')}/{path}"))
    paths = [f"PedMasks/{posixpath.splitext(posixpath.basename(image))[0]}_mask.png" for image in own]

    def masks(place: int, size: Size) -> list[Masks]:
        return _masks(uri, files, paths[place], objects[place], size)

    version = [[path, *files.images.get(path, [])] for path in paths]
    return Given(files.source(uri, own), objects, masks=masks, masks_version=version)


def _masks(uri: str, files: Files, path: str, objects: Objects, size: Size) -> list[Masks]:
    where = f"{uri.rstrip('/')}/{path}"
    if path not in files.images:
        raise ValueError(f"{where}: there must be a mask; give data.masks=false to learn boxes alone")
    try:
        values = decode_mask(read_bytes(files.filesystem, f"{files.root}/{path}"), most_pixels=size[0] * size[1])
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error
    if values.shape != size or int(values.max()) != len(objects.labels):
        raise ValueError(
            f"{where}: it must number {len(objects.labels)} pedestrians in {size[0]} x {size[1]} pixels, as its "
            f"annotation; it has {int(values.max())} in {values.shape[0]} x {values.shape[1]}"
        )
    return [framed(values == number, box) for number, box in enumerate(objects.boxes.tolist(), start=1)]


def _own(files: Files) -> list[str]:
    return [image for image in files.images if image.split("/")[0] in FOLDERS]


def _objects(text: bytes, where: str) -> Objects:
    boxes = []
    for number, told in BOX.findall(text):
        places = PLACES.fullmatch(told)
        if places is None:
            rule = "(LEFT, TOP) - (RIGHT, BOTTOM)"
            raise ValueError(
                f"{where}, object {int(number)}: the box must be {rule}, got {told.decode(errors='replace')!r}"
            )
        left, top, right, bottom = map(int, places.groups())
        boxes.append([left - 1, top - 1, right, bottom])
    count = COUNT.search(text)
    if count is None or int(count[1]) != len(boxes):
        said = "none" if count is None else int(count[1])
        raise ValueError(
            f"{where}: the boxes must be as many as the objects that it says, {said}; they are {len(boxes)}"
        )
    return Objects.of(boxes, [LABEL] * len(boxes))
