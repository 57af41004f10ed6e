"""COCO annotation files as pictures with boxes."""

import posixpath

from datamodules.coco import CocoImage, read_coco
from datamodules.detection.given import Given
from datamodules.detection.objects import Objects
from datamodules.vision.files import of_paths


def of_file(uri: str, image_root: str | None, notes: list[str]) -> Given:
    """The pictures that an annotation file lists, from `image_root` or its own folder, and their objects."""
    images = read_coco(uri, notes)
    if not images:
        raise ValueError(f"{uri}: it lists no images")
    source = of_paths(uri, [image.name for image in images], image_root or posixpath.dirname(uri) or ".", notes)
    return Given(source, [_objects(image) for image in images], sizes=[image.size for image in images])


def _objects(image: CocoImage) -> Objects:
    return Objects.of(
        [found.box for found in image.objects],
        [found.category for found in image.objects],
        [found.is_crowd for found in image.objects],
    )
