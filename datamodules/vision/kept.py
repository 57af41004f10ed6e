"""Decoded pictures as a file in the cache: written without ever being in memory, read by being mapped into it."""

import json
import logging
import mmap
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.ipc
from numpy.typing import NDArray

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Decoded:
    """Decoded pictures.

    Attributes:
        pixels: uint8 [N, H, W, 3], or with the source's further channels, those of a cache file mapped into memory; or
            `Undecoded`, which decodes them whenever they are asked for; None as long as only the rest is known.
        shape: of each picture, (H, W, 3) or with the further channels.
        hashes: of the pixels' colours, ascending, [N].
        places: of each row in the source, [N].
        sizes: height and width before resizing, upright, int32 [N, 2].
        handled: how many were something that a plain picture is not, by words for it.
        unreadable: what was wrong with those that are left out, by name.
    """

    pixels: Any
    shape: tuple[int, ...]
    hashes: NDArray[np.uint64]
    places: NDArray[np.int64]
    sizes: NDArray[np.int32]
    handled: dict[str, int]
    unreadable: dict[str, str]

    def __len__(self) -> int:
        return len(self.places)


class _Instead:
    """A file into which `rows` go where Arrow writes `buffer`: of what is not in memory, it can write nothing."""

    closed = False

    def __init__(self, file: Any, buffer: pa.Buffer, rows: Iterable[bytes]) -> None:
        self.file, self.address, self.rows = file, buffer.address, rows

    def write(self, data: Any) -> None:
        if isinstance(data, pa.Buffer) and data.address == self.address:
            self.file.writelines(self.rows)
        else:
            self.file.write(data)

    def flush(self) -> None:
        self.file.flush()


def write(file: Any, found: Decoded, order: NDArray[np.int64], unordered: int) -> None:
    """Write pictures in their order, out of a file of their pixels as they were decoded, whose descriptor is given.

    They are one record batch: a second one would not lie right behind the first.
    """
    num_rows, row_bytes = len(order), int(np.prod(found.shape))
    # As large as the pixels, and takes no memory: nobody reads or writes it.
    nothing = mmap.mmap(-1, num_rows * row_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, prot=mmap.PROT_READ)
    buffer = pa.py_buffer(nothing)
    pixels = pa.FixedSizeBinaryArray.from_buffers(pa.binary(row_bytes), num_rows, [None, buffer])
    rows = (os.pread(unordered, row_bytes, int(number) * row_bytes) for number in order)
    _write(_Instead(file, buffer, rows), found, {"pixels": pixels})


def write_index(file: Any, found: Decoded) -> None:
    """Write what is known of pictures, without their pixels."""
    _write(file, found, {})


def _write(file: Any, found: Decoded, pixels: dict[str, pa.Array]) -> None:
    about = {"shape": found.shape, "handled": found.handled, "unreadable": found.unreadable}
    columns = {
        **pixels,
        "hash": pa.array(found.hashes),
        "place": pa.array(found.places),
        "height": pa.array(found.sizes[:, 0]),
        "width": pa.array(found.sizes[:, 1]),
    }
    batch = pa.RecordBatch.from_pydict(columns)
    with pa.ipc.new_file(file, batch.schema.with_metadata({"about": json.dumps(about)})) as writer:
        writer.write_batch(batch)


def read(path: Path, *, with_pixels: bool = True) -> Decoded | None:
    """What is in a cache file, mapped into memory; None where there is none that is whole."""
    try:
        reader = pa.ipc.open_file(pa.memory_map(str(path)))
        about = json.loads(reader.schema.metadata[b"about"])
        batch = reader.get_batch(0)
        return Decoded(
            _pixels(batch, about["shape"]) if with_pixels else None,
            tuple(about["shape"]),
            batch.column("hash").to_numpy(),
            batch.column("place").to_numpy(),
            np.stack([batch.column(name).to_numpy() for name in ("height", "width")], axis=1),
            about["handled"],
            about["unreadable"],
        )
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, pa.ArrowException) as error:
        log.warning("making the damaged cache file %s again (%s)", path, str(error).splitlines()[0])
        return None


def _pixels(batch: pa.RecordBatch, shape: list[int]) -> NDArray[np.uint8]:
    values = np.frombuffer(batch.column("pixels").buffers()[1], np.uint8, batch.num_rows * np.prod(shape))
    return values.reshape(batch.num_rows, *shape)
