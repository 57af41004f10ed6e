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
            `Undecoded`, which decodes them whenever they are asked for.
        hashes: of the pixels' colours, ascending, [N].
        places: of each row in the source, [N].
        sizes: height and width before resizing, upright, int32 [N, 2].
        handled: how many were something that a plain picture is not, by words for it.
        unreadable: what was wrong with those that are left out, by name.
    """

    pixels: Any
    hashes: NDArray[np.uint64]
    places: NDArray[np.int64]
    sizes: NDArray[np.int32]
    handled: dict[str, int]
    unreadable: dict[str, str]

    def __len__(self) -> int:
        return len(self.places)


@dataclass(frozen=True)
class Index:
    """What is known of a source's pictures once each has been decoded; as in `Decoded`, but without their pixels.

    Attributes:
        shape: of each picture, (H, W, 3), or with the source's further channels.
        order: of each row its number among the pictures as they were decoded, [N].
    """

    shape: tuple[int, ...]
    order: NDArray[np.int64]
    hashes: NDArray[np.uint64]
    places: NDArray[np.int64]
    sizes: NDArray[np.int32]
    handled: dict[str, int]
    unreadable: dict[str, str]

    def decoded(self, pixels: Any) -> Decoded:
        """The same with pixels, in this order."""
        return Decoded(pixels, self.hashes, self.places, self.sizes, self.handled, self.unreadable)


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


def write(file: Any, index: Index, unordered: int) -> None:
    """Write pictures in their order, out of a file of their pixels as they were decoded, whose descriptor is given.

    They are one record batch: a second one would not lie right behind the first.
    """
    num_rows, row_bytes = len(index.order), int(np.prod(index.shape))
    # As large as the pixels, and takes no memory: nobody reads or writes it.
    nothing = mmap.mmap(-1, num_rows * row_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, prot=mmap.PROT_READ)
    buffer = pa.py_buffer(nothing)
    about = {"shape": index.shape, "handled": index.handled, "unreadable": index.unreadable}
    columns = {
        "pixels": pa.FixedSizeBinaryArray.from_buffers(pa.binary(row_bytes), num_rows, [None, buffer]),
        "hash": pa.array(index.hashes),
        "place": pa.array(index.places),
        "height": pa.array(index.sizes[:, 0]),
        "width": pa.array(index.sizes[:, 1]),
    }
    batch = pa.RecordBatch.from_pydict(columns)
    rows = (os.pread(unordered, row_bytes, int(number) * row_bytes) for number in index.order)
    schema = batch.schema.with_metadata({"about": json.dumps(about)})
    with pa.ipc.new_file(_Instead(file, buffer, rows), schema) as writer:
        writer.write_batch(batch)


def read(path: Path) -> Decoded | None:
    """What is in a cache file, mapped into memory; None where there is none that is whole."""
    try:
        reader = pa.ipc.open_file(pa.memory_map(str(path)))
        about = json.loads(reader.schema.metadata[b"about"])
        batch = reader.get_batch(0)
        pixels = np.frombuffer(batch.column("pixels").buffers()[1], np.uint8, batch.num_rows * np.prod(about["shape"]))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, pa.ArrowException) as error:
        log.warning("making the damaged cache file %s again (%s)", path, str(error).splitlines()[0])
        return None
    return Decoded(
        pixels.reshape(batch.num_rows, *about["shape"]),
        batch.column("hash").to_numpy(),
        batch.column("place").to_numpy(),
        np.stack([batch.column(name).to_numpy() for name in ("height", "width")], axis=1),
        about["handled"],
        about["unreadable"],
    )
