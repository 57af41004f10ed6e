"""Pictures at another place, with masks for evaluation and without for prediction: a folder, a table, a COCO file."""

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from datamodules.segmentation.masks import Meaning, Pairs
from datamodules.vision import other as pictures
from datamodules.vision.decoded import Source
from datamodules.vision.files import files_in

if TYPE_CHECKING:
    from datamodules.segmentation.datamodule import Options

PREDICT_ROWS = 256
DEFAULTS = {
    "image": "image",
    "mask": "mask",
    "image_root": None,
    "images": "images",
    "masks": "masks",
    "mask_suffix": "",
}


def labelled(
    uri: str, raw: Mapping[str, Any], meaning: Meaning, classes: Sequence[str], options: "Options", notes: list[str]
) -> Pairs:
    """The pictures with masks at another place: in the form that the place has, by the names that the run has."""
    from datamodules.segmentation import coco, folder, table

    given = {**DEFAULTS, **raw}
    if uri.endswith(".json"):
        return coco.pairs_of(uri, given["image_root"], classes, options, notes)
    if pictures.is_table(uri):
        return table.pairs_of(uri, table.read(uri), given, meaning, options, notes)
    found = folder.splits_of(uri, given, meaning, options, notes)
    if len(found) == 1:
        return next(iter(found.values()))
    raise ValueError(f"{uri}: it has the splits {', '.join(found)}; give the folder of one of them")


def batches(uri: str, raw: Mapping[str, Any]) -> Iterator[tuple[pa.RecordBatch, Source]]:
    """Batches of a table, or of a folder's images as a table with the column `image`, each with its pictures.

    Where a folder has folders of images and of masks, the masks are left away.
    """
    given = {**DEFAULTS, **raw}
    if pictures.is_table(uri):
        yield from pictures.batches(uri, given)
        return
    files = files_in(uri)
    names = [path for path in files.images if given["images"] in path.split("/")[:-1]] or list(files.images)
    if not names:
        raise ValueError(f"{uri}: there are no images")
    for start in range(0, len(names), PREDICT_ROWS):
        some = names[start : start + PREDICT_ROWS]
        yield pa.RecordBatch.from_pydict({"image": some}), files.source(uri, some)
