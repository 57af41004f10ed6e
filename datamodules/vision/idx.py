"""The idx files of MNIST and its kin as they are published, gzipped or not (http://yann.lecun.com/exdb/mnist)."""

import gzip
import zlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

PREFIXES = {"train": "train", "test": "t10k"}
KINDS = ("images-idx3-ubyte", "labels-idx1-ubyte")
BYTES = 8  # the code of unsigned bytes


def is_there(folder: Path) -> bool:
    """Whether a folder holds any of the files; `read` says which one lacks."""
    return any(_find(folder, split, kind) for split in PREFIXES for kind in KINDS)


def read(folder: Path, split: str) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Pictures of a split, grey in three channels [N, H, W, 3], and their classes [N].

    Raises FileNotFoundError, and ValueError where a file is torn or the two do not belong together.
    """
    images, labels = (_array(folder, split, kind) for kind in KINDS)
    if images.ndim != 3 or labels.ndim != 1 or len(images) != len(labels):
        raise ValueError(f"{folder}: {len(images):,} {split} images of {images.ndim - 1} sides, {len(labels):,} labels")
    return np.repeat(images[..., None], 3, axis=3), labels.astype(np.int64)


def _find(folder: Path, split: str, kind: str) -> Path | None:
    names = (f"{PREFIXES[split]}-{kind}{suffix}" for suffix in ("", ".gz"))
    return next((folder / name for name in names if (folder / name).is_file()), None)


def _array(folder: Path, split: str, kind: str) -> NDArray[np.uint8]:
    path = _find(folder, split, kind)
    if path is None:
        raise FileNotFoundError(f"no such file: {folder / f'{PREFIXES[split]}-{kind}'}, nor with .gz")
    try:
        data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"{path} cannot be read: {error}") from error
    num_sides = data[3] if len(data) > 4 else 0
    sides = np.frombuffer(data, ">u4", num_sides, offset=4) if len(data) >= 4 + 4 * num_sides else np.zeros(0)
    start = 4 + 4 * num_sides
    if data[:3] != bytes((0, 0, BYTES)) or not num_sides or len(data) - start != int(np.prod(sides, dtype=np.int64)):
        raise ValueError(f"{path} is no whole idx file of bytes")
    return np.frombuffer(data, np.uint8, offset=start).reshape(sides.astype(np.int64))
