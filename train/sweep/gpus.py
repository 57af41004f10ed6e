"""The GPUs of a machine, shared out among the workers on it: each takes the one that fewest others have."""

from __future__ import annotations

import fcntl
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import IO

from train import ranks

MOST_WORKERS = 64  # on one GPU
_held: list[IO[str]] = []  # the lock goes with the process


def share() -> None:
    """Make one GPU the only one that this process sees, unless torchrun, or the user, has given it some already."""
    if ranks.num_processes() > 1 or _held:
        return
    found = visible()
    if len(found) > 1:
        os.environ["CUDA_VISIBLE_DEVICES"] = take(found, Path(tempfile.gettempdir()))


def part(number: int, size: int, of: int) -> dict[str, str]:
    """The environment that gives worker `number` of `of` as many GPUs for itself, where there are enough for all."""
    found = visible()
    if size == 1 or len(found) < size * of:
        return {}
    return {"CUDA_VISIBLE_DEVICES": ",".join(found[number * size : (number + 1) * size])}


def visible() -> list[str]:
    """The GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        return [name.strip() for name in named.split(",") if name.strip()]
    import torch

    return [str(index) for index in range(torch.cuda.device_count())]


def take(found: Sequence[str], folder: Path) -> str:
    """Hold a GPU for as long as this process lives.

    Args:
        found: their names.
        folder: of the locks; the same for all workers of this machine.
    """
    for place in range(MOST_WORKERS):
        for name in found:
            lock = (folder / f"fullcycle-gpu-{os.getuid()}-{name}.{place}.lock").open("w")
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                lock.close()
            else:
                _held.append(lock)
                return name
    return found[os.getpid() % len(found)]
