"""Images of one's own, named or held by a table."""

from typing import Unpack

from datamodules.splits import Value
from datamodules.tables import paths_of, read_splits, require_split_column
from datamodules.vision.datamodule import Given, Options, VisionDataModule
from datamodules.vision.other import of_table


class ImageTable(VisionDataModule):
    """A table with a column of images, as paths or as bytes: CSV, JSON lines or Parquet, local or on S3.

    Args:
        path: where the table is.
        val_path: where the validation rows are; None to take them out of the training rows.
        test_path: where the test rows are; None to take them out of the training rows.
        image: column of the images: bytes, a struct with `bytes`, or paths.
        label: column of the classes.
        image_root: folder that the paths start from; None for the table's own.
        split_column: column that names each row's split; None for none.
        splits: values of that column by split, {train: [..], val: [..], test: [..]}; None for the usual ones.
        options: see `Options`.
    """

    def __init__(
        self,
        *,
        path: str,
        val_path: str | None,
        test_path: str | None,
        image: str,
        label: str,
        image_root: str | None,
        split_column: str | None,
        splits: dict[str, list[Value] | None] | None,
        **options: Unpack[Options],
    ) -> None:
        if image == label:
            raise ValueError(f"label must be another column than the image; both are {label!r}")
        super().__init__({"image": image, "label": label, "image_root": image_root}, options)
        require_split_column(split_column, splits)
        self.paths = paths_of(path, val_path, test_path)
        self.split_column, self.splits = split_column, splits
        self.name = path.rstrip("/").rsplit("/", 1)[-1]

    def read(self) -> dict[str, Given]:
        """For each split that the data name, train first, its images and labels."""
        tables = read_splits(self.paths, self.split_column, self.splits, self.notes)
        return {split: Given(*of_table(*given, self.raw, self.notes)) for split, given in tables.items()}
