"""Images of one's own in folders: one for each class, perhaps within one for each split."""

from typing import Unpack

from datamodules.splits import USUAL, parts_by_folders
from datamodules.vision.datamodule import Given, Options, VisionDataModule
from datamodules.vision.files import by_class, files_in


class ImageFolder(VisionDataModule):
    """A folder with a folder of images for each class, local or on S3.

    Where its folders are called train, val and test (or as usual for these), each holds class folders of its own; a
    split without a folder is taken out of the training images. Images may lie deeper in a class folder.

    Args:
        path: where the folder is.
        options: see `Options`.
    """

    def __init__(self, *, path: str, **options: Unpack[Options]) -> None:
        super().__init__({"image": "image", "label": "label", "image_root": None}, options)
        self.path = path
        self.name = path.rstrip("/").rsplit("/", 1)[-1]

    def read(self) -> dict[str, Given]:
        """For each split that the folders name, train first, its images and their classes."""
        files = files_in(self.path)
        tops = {path.partition("/")[0] for path in (*files.images, *files.folders) if "/" in path}
        tops |= {path for path in files.folders if "/" not in path}
        known = {alias for aliases in USUAL.values() for alias in aliases}
        deep = {path.partition("/")[0].lower() for path in files.images if path.count("/") > 1}
        # A folder called train beside others may be a class; one that holds class folders is none.
        is_split = deep & set(USUAL["train"]) or all(top.lower() in known for top in tops)
        folders = parts_by_folders(self.path, tops) if is_split else {}
        if not folders:
            return {"train": Given(*by_class(self.path, files, self.notes))}
        return {split: Given(*by_class(self.path, files, self.notes, name)) for split, name in folders.items()}
