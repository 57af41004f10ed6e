"""COCO annotation files as pictures with boxes."""

import hashlib
import posixpath

from datamodules.coco import CocoImage, read_coco
from datamodules.detection.given import Given
from datamodules.detection.masks import Masks, framed
from datamodules.detection.objects import Objects
from datamodules.images import Size
from datamodules.outlines import area
from datamodules.vision.files import of_paths

VISIBLE = 3  # pixels a side


def of_file(uri: str, image_root: str | None, notes: list[str]) -> Given:
    """The pictures that an annotation file lists, from `image_root` or its own folder, and their objects."""
    images = read_coco(uri, notes)
    if not images:
        raise ValueError(f"{uri}: it lists no images")
    source = of_paths(uri, [image.name for image in images], image_root or posixpath.dirname(uri) or ".", notes)
    objects = [_objects(image) for image in images]

    def masks(place: int, size: Size) -> list[Masks]:
        return _masks(images[place], size, uri)

    # Reprs of all outlines, so that a file that was annotated again is read again.
    version = hashlib.blake2b(repr(images).encode(), digest_size=16).hexdigest()
    sizes = [image.size for image in images]
    return Given(source, objects, sizes=sizes, masks=masks, masks_version=version)


def _masks(image: CocoImage, size: Size, uri: str) -> list[Masks]:
    found = []
    for number, one in enumerate(image.objects, start=1):
        try:
            mask = framed(area(one, size)[0], one.box)
            if not mask.any() and _is_visible(one.box, size):
                raise ValueError("no pixel of its mask lies in its box")
            found.append(mask)
        except ValueError as error:
            where = f"{uri}, {image.name}, object {number} ({one.category})"
            raise ValueError(f"{where}: {error}; give data.masks=false to learn boxes alone") from error
    return found


def _is_visible(box: tuple[float, float, float, float], size: Size) -> bool:
    """Whether so much of a box is in the picture that its mask, too, must be: smaller ones may miss every pixel."""
    left, top, right, bottom = box
    return min(min(right, size[1]) - max(left, 0), min(bottom, size[0]) - max(top, 0)) >= VISIBLE


def _objects(image: CocoImage) -> Objects:
    return Objects.of(
        [found.box for found in image.objects],
        [found.category for found in image.objects],
        [found.is_crowd for found in image.objects],
    )
