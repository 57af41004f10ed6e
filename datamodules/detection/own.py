"""Pictures with boxes of one's own, in the formats that there are: each a data module around its reader."""

from typing import Annotated, Unpack

from annotated_types import Ge

from datamodules.detection import coco, penn_fudan, table, voc, yolo
from datamodules.detection.datamodule import DetectionDataModule, Options
from datamodules.detection.given import Given
from datamodules.splits import Value
from datamodules.tables import paths_of, read_splits, require_split_column
from datamodules.vision.files import files_in

COLUMNS = {"image": "image", "objects": "objects"}  # of other data that are a table


class DetectionCoco(DetectionDataModule):
    """COCO annotation files, local or on S3.

    Args:
        path: the annotation file.
        val_path: that of the validation images; None to take them out of the training images.
        test_path: that of the test images; None to take them out of the training images.
        image_root: folder that the file names start from; None for the annotation file's own.
        masks: whether objects have masks, out of their polygons and run lengths, for a model that learns them.
        options: see `Options`.
    """

    def __init__(
        self,
        *,
        path: str,
        val_path: str | None,
        test_path: str | None,
        image_root: str | None,
        masks: bool,
        **options: Unpack[Options],
    ) -> None:
        super().__init__({**COLUMNS, "image_root": image_root, "masks": masks}, options)
        self.paths = paths_of(path, val_path, test_path)
        self.name = _last(path)

    def read(self) -> dict[str, Given]:
        """For each split that a file names, train first, its images and objects."""
        return {split: coco.of_file(path, self.raw["image_root"], self.notes) for split, path in self.paths.items()}


class DetectionYolo(DetectionDataModule):
    """A folder of images and text files of YOLO's, local or on S3; see `datamodules.detection.yolo`.

    Args:
        path: where the folder is.
        options: see `Options`.
    """

    def __init__(self, *, path: str, **options: Unpack[Options]) -> None:
        super().__init__({**COLUMNS, "image_root": None}, options)
        self.path, self.name = path, _last(path)

    def read(self) -> dict[str, Given]:
        """For each split that the folders name, train first, its images and objects."""
        files = files_in(self.path)
        splits = yolo.splits(self.path, files, self.notes)
        return {split: yolo.given(self.path, files, own, self.notes) for split, own in splits.items()}


class DetectionVoc(DetectionDataModule):
    """A folder with Pascal VOC's Annotations (XML) and images, local or on S3; see `datamodules.detection.voc`.

    Args:
        path: where the folder is.
        options: see `Options`.
    """

    def __init__(self, *, path: str, **options: Unpack[Options]) -> None:
        super().__init__({**COLUMNS, "image_root": None}, options)
        self.path, self.name = path, _last(path)

    def read(self) -> dict[str, Given]:
        """For each split that ImageSets/Main names, train first, its images and objects."""
        files = files_in(self.path)
        splits = voc.splits(self.path, files, self.notes)
        return {split: voc.given(self.path, files, own, self.notes) for split, own in splits.items()}


class DetectionPennFudan(DetectionDataModule):
    """The Penn-Fudan pedestrians (Wang et al., 2007), 170 images, as their archive unpacks.

    Args:
        path: where the folder is.
        num_test: images that test.
        split_seed: of which they are; another than the run's, so that runs of several seeds have the same.
        masks: whether pedestrians have masks, those of the folder PedMasks, for a model that learns them.
        options: see `Options`; `test_share` counts for nothing where `num_test` is not 0.
    """

    def __init__(
        self,
        *,
        path: str,
        num_test: Annotated[int, Ge(0)],
        split_seed: Annotated[int, Ge(0)],
        masks: bool,
        **options: Unpack[Options],
    ) -> None:
        super().__init__({**COLUMNS, "image_root": None, "masks": masks}, options)
        self.path, self.name = path, "penn_fudan"
        self.num_test, self.split_seed = num_test, split_seed

    def read(self) -> dict[str, Given]:
        """The images that train and those that test."""
        files = files_in(self.path)
        splits = penn_fudan.splits(self.path, files, self.num_test, self.split_seed)
        return {split: penn_fudan.given(self.path, files, own, self.notes) for split, own in splits.items()}


class DetectionTable(DetectionDataModule):
    """A table with a column of images, as paths or bytes, and one of objects: CSV, JSON lines or Parquet.

    Objects are JSON as `python -m train.predict` writes it: [{"label": .., "box": [left, top, right, bottom]}, ..], in
    pixels of the file, or the same as a list of structs; an empty list or field is a picture with nothing in it.

    Args:
        path: where the table is, local or on S3.
        val_path: where the validation rows are; None to take them out of the training rows.
        test_path: where the test rows are; None to take them out of the training rows.
        image: column of the images: bytes, a struct with `bytes`, or paths.
        objects: column of the objects.
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
        objects: str,
        image_root: str | None,
        split_column: str | None,
        splits: dict[str, list[Value] | None] | None,
        **options: Unpack[Options],
    ) -> None:
        if image == objects:
            raise ValueError(f"objects must be another column than the image; both are {objects!r}")
        super().__init__({"image": image, "objects": objects, "image_root": image_root}, options)
        require_split_column(split_column, splits)
        self.paths = paths_of(path, val_path, test_path)
        self.split_column, self.splits = split_column, splits
        self.name = _last(path)

    def read(self) -> dict[str, Given]:
        """For each split that the data name, train first, its images and objects."""
        tables = read_splits(self.paths, self.split_column, self.splits, self.notes)
        return {split: table.of_table(*given, self.raw, self.notes) for split, given in tables.items()}


def _last(path: str) -> str:
    return path.rstrip("/").rsplit("/", 1)[-1]
