"""Images and masks of one's own, named or held by a table."""

from collections.abc import Mapping
from typing import Any, Unpack

import pyarrow as pa

from datamodules.images import Size
from datamodules.segmentation.datamodule import Options, SegmentationDataModule
from datamodules.segmentation.folder import Classes, Value
from datamodules.segmentation.masks import Mask, Meaning, Pairs, decode_mask
from datamodules.sources import read_table
from datamodules.splits import Value as SplitValue
from datamodules.tables import paths_of, read_splits, require_split_column
from datamodules.vision.files import of_column


class MaskTable(SegmentationDataModule):
    """A table with a column of images and one of masks, as paths or as bytes: CSV, JSON lines or Parquet.

    Args:
        path: where the table is, local or on S3.
        val_path: where the validation rows are; None to take them out of the training rows.
        test_path: where the test rows are; None to take them out of the training rows.
        image: column of the images: bytes, a struct with `bytes`, or paths.
        mask: column of the masks, in the same forms.
        image_root: folder that the paths start from; None for the table's own.
        split_column: column that names each row's split; None for none.
        splits: values of that column by split, {train: [..], val: [..], test: [..]}; None for the usual ones.
        classes: names of the values 0, 1, ..; or NAME: VALUE; None to number the values that training masks have.
        ignore: value of pixels that count for nothing; None for none.
        options: see `Options`.
    """

    def __init__(
        self,
        *,
        path: str,
        val_path: str | None,
        test_path: str | None,
        image: str,
        mask: str,
        image_root: str | None,
        split_column: str | None,
        splits: dict[str, list[SplitValue] | None] | None,
        classes: Classes,
        ignore: Value | None,
        **options: Unpack[Options],
    ) -> None:
        if image == mask:
            raise ValueError(f"mask must be another column than the image; both are {mask!r}")
        raw = {"image": image, "mask": mask, "image_root": image_root}
        super().__init__(raw, Meaning.of(classes, ignore), options)
        require_split_column(split_column, splits)
        self.paths = paths_of(path, val_path, test_path)
        self.split_column, self.splits = split_column, splits
        self.name = path.rstrip("/").rsplit("/", 1)[-1]

    def read(self) -> dict[str, Pairs]:
        """For each split that the data name, train first, its images and masks."""
        tables = read_splits(self.paths, self.split_column, self.splits, self.notes)
        return {
            split: pairs_of(uri, table, self.raw, self.meaning, self.options, self.notes)
            for split, (uri, table) in tables.items()
        }


def read(uri: str) -> pa.Table:
    """A table as it is stored."""
    return read_table(uri, as_text=True)


def pairs_of(
    uri: str, table: pa.Table, raw: Mapping[str, Any], meaning: Meaning, options: Options, notes: list[str]
) -> Pairs:
    """Images and masks of a table's rows. Raises ValueError where a row lacks one."""
    rows = range(1, len(table) + 1)
    beside: list[str] = []  # what lies beside the images are the masks, and the reverse
    images = of_column(uri, table, {"image": raw["image"], "image_root": raw["image_root"]}, beside, rows)
    masks = of_column(uri, table, {"image": raw["mask"], "image_root": raw["image_root"]}, beside, rows)

    def mask(place: int, _: Size) -> Mask:
        try:
            given = masks.read(place)
            assert isinstance(given, bytes)
            return meaning.checked(decode_mask(given, most_pixels=options["most_pixels"]))
        except (OSError, ValueError) as error:
            raise ValueError(f"{error} (mask of {masks.names[place]})") from error

    def image(place: int) -> bytes:
        given = images.read(place)
        assert isinstance(given, bytes)
        return given

    version = [images.version, masks.version, meaning.values, meaning.ignore]
    return Pairs(uri, images.names, image, mask, version)
