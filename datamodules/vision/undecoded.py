"""Pictures that are too many to be kept decoded: what is known of them is kept, and they are decoded when asked for."""

import logging
import os
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from datamodules.cache import cache_file, one_at_a_time, write_atomically
from datamodules.images import Pixels, quiet
from datamodules.vision.decoded import THREADS, How, Source, decode_all, determined, picture_of
from datamodules.vision.kept import Decoded, read, write_index

log = logging.getLogger(__name__)

NICENESS = 10  # of the threads that decode what comes next: the step at hand goes first


class ChangedError(ValueError):
    """An image is no longer what it was when the run began; `train` tells it as what is wrong with the data."""

    concerns_data = True


def undecoded(source: Source, how: How) -> Decoded:
    """The pictures of a source, each decoded once to see that it can be; only what is known of them is kept.

    They are the same, in the same order, as those of `decoded`. Raises ValueError as that does.
    """
    found = _index(source, how)
    return replace(found, pixels=Undecoded(source, how, found.shape, found.places))


def _index(source: Source, how: How) -> Decoded:
    if source.version is None:
        return decode_all(source, how, _forget)[0]
    path = cache_file("index-of-images", determined(source, how), ".arrow")
    found = read(path, with_pixels=False)
    if found is not None:
        return found
    with one_at_a_time(path):
        found = read(path, with_pixels=False)
        if found is None:
            found = index = decode_all(source, how, _forget)[0]
            try:
                write_atomically(path, lambda file: write_index(file, index))
            except OSError as error:
                log.warning("what is known of the images is not cached (%s); set FULLCYCLE_CACHE to a folder", error)
    return found


def _forget(pixels: Pixels) -> None:
    """Do nothing."""


class Undecoded:
    """Pictures that are decoded by threads whenever they are indexed, like a tensor uint8 [N, H, W, 3].

    `expect` has rows decoded in the background, so that they are there when they are asked for; no others are held.

    Args:
        source: of the pictures.
        how: they are decoded.
        shape: of each, (H, W, 3).
        places: of each row in the source, [N].
        device: that the pictures go to.
    """

    def __init__(
        self,
        source: Source,
        how: How,
        shape: Sequence[int],
        places: NDArray[np.int64],
        device: torch.device | str = "cpu",
    ) -> None:
        self.source, self.how, self.places = source, how, places
        self.shape = (len(places), *shape)
        self.device = torch.device(device)
        self._pool: ThreadPoolExecutor | None = None
        self._coming: dict[int, Future[Pixels]] = {}

    def __len__(self) -> int:
        return len(self.places)

    def to(self, device: torch.device | str) -> "Undecoded":
        """The same pictures, for a device."""
        return Undecoded(self.source, self.how, self.shape[1:], self.places, device)

    def take(self, rows: NDArray[np.int64] | slice) -> "Undecoded":
        """Some of the pictures, still not decoded."""
        return Undecoded(self.source, self.how, self.shape[1:], self.places[rows], self.device)

    def expect(self, rows: Tensor) -> None:
        """Begin to decode these rows, and forget all others."""
        if self._pool is None:
            self._pool = ThreadPoolExecutor(THREADS, initializer=_yield_to_others)
        quiet()
        before, self._coming = self._coming, {}
        for row in dict.fromkeys(rows.tolist()):  # a picture may be mixed with another of these
            self._coming[row] = before.pop(row) if row in before else self._pool.submit(self._decoded, row)
        for unwanted in before.values():
            unwanted.cancel()

    def forget(self) -> None:
        """Decode nothing more in the background."""
        if self._pool is not None:
            self._pool.shutdown(wait=False, cancel_futures=True)
        self._pool, self._coming = None, {}

    def __getitem__(self, rows: Any) -> Tensor:
        """Pictures by their numbers, or a slice of them: uint8 [.., H, W, 3] on the device."""
        numbers = np.arange(len(self))[rows] if isinstance(rows, slice) else np.asarray(rows)
        wanted = numbers.reshape(-1).tolist()
        pixels = np.empty((len(wanted), *self.shape[1:]), np.uint8)
        for place, found in enumerate(self._found(wanted)):
            pixels[place] = found
        return torch.from_numpy(pixels).reshape(*numbers.shape, *self.shape[1:]).to(self.device)

    def _found(self, rows: list[int]) -> Iterator[Pixels]:
        coming = self._coming
        if all(row in coming for row in rows):
            yield from (coming[row].result() for row in rows)
            return
        quiet()
        with ThreadPoolExecutor(THREADS) as pool:
            yield from pool.map(lambda row: coming[row].result() if row in coming else self._decoded(row), rows)

    def _decoded(self, row: int) -> Pixels:
        place = int(self.places[row])
        try:
            pixels = picture_of(self.source, place, self.how).pixels
            if pixels.shape != self.shape[1:]:
                raise ValueError(f"its shape is {pixels.shape}, and was {self.shape[1:]}")
        except (OSError, ValueError) as error:
            raise ChangedError(
                f"{self.source.where}: {self.source.names[place]}: {error}; with data.decode=always images are read in "
                "every epoch: leave them as they were when the run began"
            ) from error
        return pixels


def _yield_to_others() -> None:
    with suppress(OSError, AttributeError):  # priorities of threads are Linux's
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICENESS)
