"""Sets of torchvision by name: a local copy, or downloaded where the set allows it."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Unpack

import pyarrow as pa
import torchvision

from datamodules.vision import idx
from datamodules.vision.datamodule import Given, Options, VisionDataModule
from datamodules.vision.decoded import Source

Name = Literal[
    "MNIST",
    "FashionMNIST",
    "KMNIST",
    "USPS",
    "CIFAR10",
    "CIFAR100",
    "SVHN",
    "STL10",
    "GTSRB",
    "Food101",
    "Flowers102",
    "DTD",
    "FGVCAircraft",
    "Country211",
    "OxfordIIITPet",
    "RenderedSST2",
    "Imagenette",
]
Arguments = Mapping[str, Any]

BY_TRAIN: dict[str, Arguments] = {"train": {"train": True}, "test": {"train": False}}
TWO: dict[str, Arguments] = {"train": {"split": "train"}, "test": {"split": "test"}}
THREE = {**TWO, "val": {"split": "val"}}
SPLITS: dict[str, dict[str, Arguments]] = {
    **dict.fromkeys(("MNIST", "FashionMNIST", "KMNIST", "USPS", "CIFAR10", "CIFAR100"), BY_TRAIN),
    **dict.fromkeys(("SVHN", "STL10", "GTSRB", "Food101"), TWO),
    **dict.fromkeys(("Flowers102", "DTD", "FGVCAircraft", "RenderedSST2"), THREE),
    "Country211": {**TWO, "val": {"split": "valid"}},
    "OxfordIIITPet": {"train": {"split": "trainval"}, "test": {"split": "test"}},
    "Imagenette": {"train": {"split": "train"}, "test": {"split": "val"}},
}
IDX = ("MNIST", "FashionMNIST", "KMNIST")  # whose files are also read as they are published
LABELS = ("targets", "labels", "_labels")  # where sets keep the classes of all rows
SAMPLES = ("samples", "_samples")  # the same beside the paths


class TorchvisionSet(VisionDataModule):
    """A set of torchvision with its official test rows; validation rows are taken out of the training rows.

    Args:
        name: the set's class in torchvision.datasets.
        path: folder with a local copy, as torchvision keeps it, or, of the MNIST family, with the four published files.
        download: whether to get it where it is not there.
        options: see `Options`.
    """

    def __init__(self, *, name: Name, path: str, download: bool, **options: Unpack[Options]) -> None:
        super().__init__({"image": "image", "label": "label", "image_root": None}, options)
        self.name: str = name
        self.path, self.download = path, download

    def prepare_data(self) -> None:
        """Download, in one process of each machine."""
        if self.download and not self._is_published():
            self._get(self._arguments("train"), download=True)

    def read(self) -> dict[str, Given]:
        """Training and test rows, and validation rows where the set has such."""
        if self._is_published():
            return {split: self._published(split) for split in ("train", "test")}
        return {split: self._given(split) for split in SPLITS[self.name]}

    def _is_published(self) -> bool:
        return self.name in IDX and idx.is_there(Path(self.path).expanduser())

    def _published(self, split: str) -> Given:
        classes = getattr(torchvision.datasets, self.name).classes
        images, targets = idx.read(Path(self.path).expanduser(), split)
        labels = pa.array([str(classes[target]) for target in targets], pa.large_string())
        names = [f"{split} image {place}" for place in range(len(images))]
        return Given(Source(f"{self.path} ({split})", names, lambda place: images[place]), labels)

    def _given(self, split: str) -> Given:
        found = self._get(self._arguments(split), download=False)
        targets = _targets(found)
        classes = getattr(found, "classes", None)
        labels = pa.array([str(classes[one] if classes else one) for one in targets], pa.large_string())
        names = [f"{split} image {place}" for place in range(len(targets))]
        version = [self.name, split, _files(Path(self.path).expanduser())]
        return Given(Source(f"{self.name} ({split})", names, lambda place: found[place][0], version), labels)

    def _arguments(self, split: str) -> Arguments:
        return SPLITS[self.name][split]

    def _get(self, arguments: Arguments, *, download: bool) -> Any:
        kind = getattr(torchvision.datasets, self.name)
        options = {"download": download} if self.name != "USPS" or download else {}
        try:
            return kind(str(Path(self.path).expanduser()), **arguments, **options)
        except (RuntimeError, OSError) as error:
            raise ValueError(
                f"{self.name} is not at {self.path} ({str(error).splitlines()[0]}): give the folder that holds it as "
                "torchvision keeps it, or data.download=true"
            ) from error


def _targets(found: Any) -> list[int]:
    """Classes of all rows, which torchvision's sets keep under different names."""
    for name in LABELS:
        if hasattr(found, name):
            return [int(one) for one in getattr(found, name)]
    for name in SAMPLES:
        if hasattr(found, name):
            return [int(one[1]) for one in getattr(found, name)]
    raise ValueError(f"{type(found).__name__} does not tell the classes of its images")


def _files(root: Path) -> list[list[Any]]:
    """Path, size and time of all files below a folder: another content is another list."""
    found = []
    for folder, _, names in os.walk(root):
        for name in names:
            status = (Path(folder) / name).stat()
            found.append([os.path.relpath(Path(folder) / name, root), status.st_size, status.st_mtime_ns])
    return sorted(found)
