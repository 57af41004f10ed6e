"""All pictures of a source, decoded once into one memory-mapped file of uint8 [N, H, W, 3].

Rows lie in the order of a hash of their pixels: equal pictures lie side by side, and a share of the rows is a slice.
"""

import hashlib
import json
import logging
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import PIL
import pyarrow as pa
import pyarrow.ipc
from numpy.typing import NDArray

from datamodules.cache import cache_file, one_at_a_time, write_atomically
from datamodules.images import Opened, Picture, Pixels, Size, calm, decode, prepared

log = logging.getLogger(__name__)

VERSION = 2  # of what is made here: a new one makes old cache files stale
THREADS = 4  # Pillow decodes without holding the interpreter
AHEAD = 256  # pictures that are decoded at a time

Unreadable = Literal["error", "skip"]


class How(NamedTuple):
    """How pictures are decoded; see `Options` of the data module."""

    size: Size | None
    most_pixels: int
    unreadable: Unreadable


@dataclass(frozen=True)
class Source:
    """Pictures that are not decoded yet.

    Attributes:
        where: that they come from, for messages.
        names: of each, for messages.
        read: gives the bytes of one by its place, or what is opened, or decoded already, perhaps with further channels;
            raises OSError or ValueError.
        version: JSON of what tells this content from another; None where decoding is not worth a file.
    """

    where: str
    names: Sequence[str]
    read: Callable[[int], bytes | Opened | Picture]
    version: Any = None


@dataclass(frozen=True)
class Decoded:
    """Decoded pictures.

    Attributes:
        pixels: uint8 [N, H, W, 3], or with the source's further channels, those of a cache file mapped into memory.
        hashes: of the pixels' colours, ascending, [N].
        places: of each row in the source, [N].
        sizes: height and width before resizing, upright, int32 [N, 2].
        handled: how many were something that a plain picture is not, by words for it.
        unreadable: what was wrong with those that are left out, by name.
    """

    pixels: Pixels
    hashes: NDArray[np.uint64]
    places: NDArray[np.int64]
    sizes: NDArray[np.int32]
    handled: dict[str, int]
    unreadable: dict[str, str]

    def __len__(self) -> int:
        return len(self.places)


def decoded(source: Source, how: How) -> Decoded:
    """The pictures of a source, from the cache where they are.

    Raises:
        ValueError: some cannot be read and are not to be skipped, or they differ in size and none is given.
    """
    if source.version is None:
        return _ordered(*_decode_all(source, how))
    determined = {"version": VERSION, "pillow": PIL.__version__, "source": source.version, "how": how._asdict()}
    path = cache_file("images", determined, ".arrow")
    found = _read(path)
    if found is None:
        with one_at_a_time(path):
            found = _read(path) or _make(path, _ordered(*_decode_all(source, how)))
    return found


def _decode_all(source: Source, how: How) -> tuple[list[int], list[Size], Pixels, dict[str, int], dict[str, str]]:
    """Places, sizes and pixels of what can be read, and what was handled and unreadable."""
    places: list[int] = []
    sizes: list[Size] = []
    pixels = np.empty((0, 0, 0, 3), np.uint8)
    handled: Counter[str] = Counter()
    unreadable: dict[str, str] = {}
    with calm():
        for place, found in enumerate(_in_order(source, how)):
            if isinstance(found, str):
                unreadable[source.names[place]] = found
                continue
            if not places:
                pixels = np.empty((len(source.names), *found.pixels.shape), np.uint8)
            elif found.pixels.shape != pixels.shape[1:]:
                raise ValueError(
                    f"{source.where}: images differ in size: {source.names[places[0]]} has {_told(pixels[0])} pixels, "
                    f"{source.names[place]} {_told(found.pixels)}; give data.image_size=HEIGHT or [HEIGHT,WIDTH]"
                )
            handled.update(found.handled)
            pixels[len(places)] = found.pixels
            places.append(place)
            sizes.append(found.size)
    if unreadable and how.unreadable == "error":
        name, why = next(iter(unreadable.items()))
        more = f" (and {len(unreadable) - 1:,} more)" if len(unreadable) > 1 else ""
        raise ValueError(f"{source.where}: {name}: {why}{more}; mend or remove it, or give data.unreadable=skip")
    if not places:
        raise ValueError(f"{source.where}: there are no images that can be read")
    return places, sizes, pixels[: len(places)], dict(handled), unreadable


def _in_order(source: Source, how: How) -> Iterator[Picture | str]:
    """Each picture, or what is wrong with it."""

    def one(place: int) -> Picture | str:
        try:
            given = source.read(place)
            if isinstance(given, Picture):
                return given
            if isinstance(given, bytes):
                return decode(given, size=how.size, most_pixels=how.most_pixels)
            return prepared(given, size=how.size)
        except (OSError, ValueError) as error:
            return str(error)

    with ThreadPoolExecutor(THREADS) as pool:
        for start in range(0, len(source.names), AHEAD):
            yield from pool.map(one, range(start, min(start + AHEAD, len(source.names))))


def _told(pixels: Pixels) -> str:
    return f"{pixels.shape[0]} x {pixels.shape[1]}"


def _ordered(
    places: Sequence[int], sizes: Sequence[Size], pixels: Pixels, handled: dict[str, int], unreadable: dict[str, str]
) -> Decoded:
    digests = (hashlib.blake2b(row[..., :3].tobytes(), digest_size=8).digest() for row in pixels)
    hashes = np.frombuffer(b"".join(digests), np.uint64)
    order = np.argsort(hashes, kind="stable")
    where = np.asarray(places, np.int64)[order], np.asarray(sizes, np.int32)[order]
    return Decoded(pixels[order], hashes[order], *where, handled, unreadable)


def _make(path: Path, made: Decoded) -> Decoded:
    try:
        write_atomically(path, lambda file: _write(file, made))
    except OSError as error:
        log.warning("the decoded images are not cached (%s); set FULLCYCLE_CACHE to a folder", error)
        return made
    return _read(path) or made


def _write(file: Any, made: Decoded) -> None:
    """One record batch: a second one would not lie right behind the first."""
    num_rows, *shape = made.pixels.shape
    pixel_bytes = int(np.prod(shape))
    about = {"shape": shape, "handled": made.handled, "unreadable": made.unreadable}
    columns = {
        "pixels": pa.FixedSizeBinaryArray.from_buffers(
            pa.binary(pixel_bytes), num_rows, [None, pa.py_buffer(np.ascontiguousarray(made.pixels))]
        ),
        "hash": pa.array(made.hashes),
        "place": pa.array(made.places),
        "height": pa.array(made.sizes[:, 0]),
        "width": pa.array(made.sizes[:, 1]),
    }
    batch = pa.RecordBatch.from_pydict(columns)
    with pa.ipc.new_file(file, batch.schema.with_metadata({"about": json.dumps(about)})) as writer:
        writer.write_batch(batch)


def _read(path: Path) -> Decoded | None:
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
