"""Sets of torchvision: published files and torchvision's own local copies are read, torn ones named."""

import gzip

import numpy as np
import pytest
import torchvision

from datamodules.vision import sets
from datamodules.vision.sets import TorchvisionSet

OPTIONS = {
    "val_share": 0.2,
    "test_share": 0.0,
    "image_size": None,
    "decode": "once",
    "most_pixels": 1_000_000,
    "unreadable": "error",
    "batch_size": 16,
    "batches_per_call": 2,
    "flip": False,
    "translate": 0,
    "policy": "none",
    "num_ops": 2,
    "magnitude": 9,
    "cutout": 0,
    "mixup": 0.0,
    "cutmix": 0.0,
    "class_weights": "none",
    "seed": 0,
}


def pictures(num):
    noise = np.random.default_rng(num).integers(0, 40, (num, 7, 7))
    return (noise + 80 * (np.arange(num) % 3)[:, None, None]).astype(np.uint8)


def write_idx(folder, *, gz=True, labels=None):
    for prefix, num in (("train", 60), ("t10k", 20)):
        images, targets = pictures(num), np.arange(num, dtype=np.uint8) % 3
        targets = targets if labels is None else targets[:labels]
        for kind, values in (("images-idx3", images), ("labels-idx1", targets)):
            head = bytes((0, 0, 8, values.ndim)) + np.array(values.shape, ">u4").tobytes()
            body = head + values.tobytes()
            name = f"{prefix}-{kind}-ubyte"
            (folder / (f"{name}.gz" if gz else name)).write_bytes(gzip.compress(body) if gz else body)


def of_set(name, path, **changed):
    module = TorchvisionSet(name=name, path=str(path), download=False, **{**OPTIONS, **changed})
    module.prepare_data()
    module.setup()
    return module


def sizes(module):
    return {split: len(tensors["target"]) for split, tensors in module.tensors.items()}


@pytest.mark.parametrize("gz", [True, False])
def test_published_idx_files_are_read(tmp_path, gz):
    write_idx(tmp_path, gz=gz)
    module = of_set("FashionMNIST", tmp_path)
    assert sizes(module)["test"] == 20
    assert sizes(module)["train"] + sizes(module)["val"] == 60
    assert module.schema["classes"] == ["Pullover", "T-shirt/top", "Trouser"]
    assert module.schema["image_size"] == [7, 7]


def test_torn_idx_files_are_named(tmp_path):
    write_idx(tmp_path, labels=10)
    with pytest.raises(ValueError, match="60 train images of 2 sides, 10 labels"):
        of_set("MNIST", tmp_path)
    path = tmp_path / "train-images-idx3-ubyte.gz"
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(ValueError, match="train-images-idx3-ubyte.gz cannot be read"):
        of_set("MNIST", tmp_path)
    path.write_bytes(gzip.compress(b"no idx"))
    with pytest.raises(ValueError, match="is no whole idx file"):
        of_set("MNIST", tmp_path)
    path.unlink()
    with pytest.raises(FileNotFoundError, match="no such file: .*train-images-idx3-ubyte, nor with .gz"):
        of_set("MNIST", tmp_path)


def test_torchvision_reads_its_own_local_copy(tmp_path):
    (tmp_path / "MNIST" / "raw").mkdir(parents=True)
    write_idx(tmp_path / "MNIST" / "raw", gz=False)
    module = of_set("MNIST", tmp_path, image_size=14)
    assert sizes(module)["test"] == 20
    assert module.schema["classes"] == ["0 - zero", "1 - one", "2 - two"]
    assert module.schema["image_size"] == [14, 14]
    with pytest.raises(ValueError, match="CIFAR10 is not at .*: give the folder that holds it.*download=true"):
        of_set("CIFAR10", tmp_path)


def test_a_set_is_downloaded_where_that_is_asked_for(tmp_path, monkeypatch):
    asked = []

    def get(root, train, download=False):
        asked.append(download)
        raise RuntimeError("no network")

    monkeypatch.setattr(torchvision.datasets, "CIFAR10", get)
    module = TorchvisionSet(name="CIFAR10", path=str(tmp_path), download=True, **OPTIONS)
    with pytest.raises(ValueError, match=r"CIFAR10 is not at .* \(no network\)"):
        module.prepare_data()
    assert asked == [True]


class InFiles:
    """A set that keeps its pictures in files, as torchvision's larger ones do."""

    classes = ("a", "b")

    def __init__(self, root, split, download=False):
        from PIL import Image

        self._labels = [0, 1] * (12 if split == "train" else 4)
        generator = np.random.default_rng(len(split))
        self.images = [
            Image.fromarray(generator.integers(0, 255, (6 + row, 9, 3)).astype(np.uint8))
            for row in range(len(self._labels))
        ]

    def __getitem__(self, place):
        return self.images[place], self._labels[place]


def test_pictures_of_many_sizes_are_resized_and_official_validation_rows_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(torchvision.datasets, "Flowers102", InFiles)
    module = of_set("Flowers102", tmp_path, image_size=8)
    assert sizes(module) == {"train": 24, "val": 8, "test": 8}
    assert module.schema["classes"] == ["a", "b"]
    assert module.schema["image_size"] == [8, 8]


def test_every_set_is_one_of_torchvision():
    for name in sets.SPLITS:
        assert hasattr(torchvision.datasets, name)
    assert set(sets.Name.__args__) == set(sets.SPLITS)
