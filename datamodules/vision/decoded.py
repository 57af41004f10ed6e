"""All pictures of a source, decoded once into one memory-mapped file of uint8 [N, H, W, 3].

Rows lie in the order of a hash of their pixels: equal pictures lie side by side, and a share of the rows is a slice.
They are written as they are decoded and then put in order from file to file: memory never holds all of them.
"""

import hashlib
import logging
import os
import tempfile
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import PIL
from numpy.typing import NDArray

from datamodules.cache import cache_file, one_at_a_time, write_atomically
from datamodules.images import Opened, Picture, Pixels, Size, calm, decode, prepared
from datamodules.vision.kept import Decoded, read, write

log = logging.getLogger(__name__)

VERSION = 2  # of what is made here: a new one makes old cache files stale
THREADS = min(32, max(4, os.cpu_count() or 1))  # Pillow decodes without holding the interpreter
AHEAD = 4 * THREADS  # pictures that are decoded at a time

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


def decoded(source: Source, how: How) -> Decoded:
    """The pictures of a source, from the cache where they are.

    Raises:
        ValueError: some cannot be read and are not to be skipped, or they differ in size and none is given.
    """
    if source.version is None:
        return _in_memory(source, how)
    path = cache_file("images", determined(source, how), ".arrow")
    found = read(path)
    if found is None:
        with one_at_a_time(path):
            found = read(path) or _make(path, source, how)
    return found


def determined(source: Source, how: How) -> dict[str, Any]:
    """JSON of all that the pixels depend on."""
    return {"version": VERSION, "pillow": PIL.__version__, "source": source.version, "how": how._asdict()}


def picture_of(source: Source, place: int, how: How) -> Picture:
    """Decode one picture; within `calm`. Raises OSError or ValueError where it cannot be read."""
    given = source.read(place)
    if isinstance(given, Picture):
        return given
    if isinstance(given, bytes):
        return decode(given, size=how.size, most_pixels=how.most_pixels)
    return prepared(given, size=how.size)


def decode_all(source: Source, how: How, keep: Callable[[Pixels], Any]) -> tuple[Decoded, NDArray[np.int64]]:
    """Decode each picture, hand the pixels of what can be read to `keep` in the source's order, and hold none of them.

    Return what is known of them, and of each row its number among those that were kept. Raises ValueError as `decoded`.
    """
    places: list[int] = []
    sizes: list[Size] = []
    digests: list[bytes] = []
    shape: tuple[int, ...] = ()
    handled: Counter[str] = Counter()
    unreadable: dict[str, str] = {}
    with calm():
        for place, found in enumerate(_in_order(source, how)):
            if isinstance(found, str):
                unreadable[source.names[place]] = found
                continue
            picture, digest = found
            shape = shape or picture.pixels.shape
            if picture.pixels.shape != shape:
                raise ValueError(
                    f"{source.where}: images differ in size: {source.names[places[0]]} has {_told(shape)} pixels, "
                    f"{source.names[place]} {_told(picture.pixels.shape)}; give data.image_size=HEIGHT or "
                    "[HEIGHT,WIDTH]"
                )
            keep(picture.pixels)
            handled.update(picture.handled)
            places.append(place)
            sizes.append(picture.size)
            digests.append(digest)
    _require_readable(source, how, unreadable, len(places))
    hashes = np.frombuffer(b"".join(digests), np.uint64)
    order = np.argsort(hashes, kind="stable")
    where = np.asarray(places, np.int64)[order], np.asarray(sizes, np.int32)[order]
    return Decoded(None, shape, hashes[order], *where, dict(handled), unreadable), order


def _require_readable(source: Source, how: How, unreadable: dict[str, str], num_readable: int) -> None:
    if unreadable and how.unreadable == "error":
        name, why = next(iter(unreadable.items()))
        more = f" (and {len(unreadable) - 1:,} more)" if len(unreadable) > 1 else ""
        raise ValueError(f"{source.where}: {name}: {why}{more}; mend or remove it, or give data.unreadable=skip")
    if not num_readable:
        raise ValueError(f"{source.where}: there are no images that can be read")


def _in_order(source: Source, how: How) -> Iterator[tuple[Picture, bytes] | str]:
    """Each picture and the hash of its colours, or what is wrong with it."""

    def one(place: int) -> tuple[Picture, bytes] | str:
        try:
            picture = picture_of(source, place, how)
        except (OSError, ValueError) as error:
            return str(error)
        return picture, hashlib.blake2b(picture.pixels[..., :3].tobytes(), digest_size=8).digest()

    running: deque[Future[tuple[Picture, bytes] | str]] = deque()
    with ThreadPoolExecutor(THREADS) as pool:
        for place in range(len(source.names)):
            running.append(pool.submit(one, place))
            if len(running) == AHEAD:
                yield running.popleft().result()
        while running:
            yield running.popleft().result()


def _told(shape: Sequence[int]) -> str:
    return f"{shape[0]} x {shape[1]}"


def _in_memory(source: Source, how: How) -> Decoded:
    pixels: list[Pixels] = []
    found, order = decode_all(source, how, pixels.append)
    ordered = np.empty((len(pixels), *found.shape), np.uint8)
    for row, number in enumerate(order):
        ordered[row] = pixels[number]
    return replace(found, pixels=ordered)


def _make(path: Path, source: Source, how: How) -> Decoded:
    """Decode into a nameless file beside the cache's, and out of it into that in order."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path.parent) as unordered:
            found, order = decode_all(source, how, lambda pixels: unordered.write(np.ascontiguousarray(pixels).data))
            unordered.flush()
            write_atomically(path, lambda file: write(file, found, order, unordered.fileno()))
    except OSError as error:
        log.warning("the decoded images are not cached (%s); set FULLCYCLE_CACHE to a folder with room for them", error)
        return _in_memory(source, how)
    return read(path) or _in_memory(source, how)
