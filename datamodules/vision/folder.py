"""Images of one's own in folders: one for each class, perhaps within one for each split."""

from typing import Unpack

from datamodules.splits import USUAL
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
        top = {path.partition("/")[0] for path in (*files.images, *files.folders) if "/" in path}
        top |= {path for path in files.folders if "/" not in path}
        known = {alias: split for split, aliases in USUAL.items() for alias in aliases}
        meant = {name: known.get(name.lower()) for name in sorted(top)}
        if None in meant.values() or "train" not in meant.values():
            return {"train": Given(*by_class(self.path, files, self.notes))}
        folders = {split: name for name, split in meant.items()}
        if len(folders) < len(meant):
            raise ValueError(f"{self.path}: two of the folders {', '.join(meant)} name the same split: rename one")
        order = [split for split in USUAL if split in folders]
        return {split: Given(*by_class(self.path, files, self.notes, folders[split])) for split in order}
