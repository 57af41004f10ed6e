"""Pictures at another place, for evaluation and prediction: in a table, a folder, or a COCO file."""

from collections.abc import Iterator, Mapping
from typing import Any

import pyarrow as pa

from datamodules.detection import coco, penn_fudan, table, voc, yolo
from datamodules.detection.given import Given
from datamodules.sources import read_table
from datamodules.vision import other
from datamodules.vision.decoded import Source
from datamodules.vision.files import files_in


def annotated(uri: str, raw: Mapping[str, Any], notes: list[str]) -> Given:
    """All pictures there with their objects; what tells the format is how the place looks."""
    if uri.endswith(".json"):
        return coco.of_file(uri, raw["image_root"], notes)
    if other.is_table(uri):
        return table.of_table(uri, read_table(uri, as_text=True), raw, notes)
    files = files_in(uri)
    for is_there, given in (
        (penn_fudan.is_there, penn_fudan.given),
        (voc.is_there, voc.given),
        (yolo.is_there, yolo.given),
    ):
        if is_there(files):
            images = voc.photographs(files) if given is voc.given else list(files.images)
            return given(uri, files, images, notes)
    raise ValueError(
        f"{uri}: it must be a COCO file (.json), a table with columns of images and objects, or a folder with "
        "annotations of YOLO (.txt), Pascal VOC (.xml) or Penn-Fudan"
    )


def batches(uri: str, raw: Mapping[str, Any]) -> Iterator[tuple[pa.RecordBatch, Source]]:
    """Batches of a table, or of a folder's files as a table with the column `image`, each with its pictures."""
    return other.batches(uri, raw)
