"""Sharded checkpoints: each rank writes its shards in the background; the folder gets its name when it is whole."""

import json
import os
import shutil
import threading
import zlib
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.checkpoint import state_dict_saver

from train import ranks
from train.errors import StorageError

META = "meta.pt"  # what is no tensor of the model or the optimizer; Lightning knows a sharded checkpoint by it
DIGESTS = "digests.json"


class ShardedWriter:
    """Writes one sharded checkpoint at a time (torch.distributed.checkpoint), while training goes on.

    The state is copied before `save` returns. A background thread writes it, over a process group of its own, since
    its messages must not mix with those of training.
    """

    def __init__(self) -> None:
        self._group: Any = None
        self._thread: threading.Thread | None = None
        self._path = Path()
        self._problem: str | None = None

    def save(self, state: dict[str, Any], rest: dict[str, Any], path: Path) -> None:
        """Begin to write `state` (sharded tensors) and `rest` (plain) to the folder `path`; collective.

        Raises:
            StorageError: the one before it could not be written.
        """
        self.wait()
        if self._group is None:
            self._group = dist.new_group(backend="gloo", timeout=ranks.timeout)
        aside = path.with_name(f".{path.name}.tmp")
        if dist.get_rank() == 0:
            shutil.rmtree(aside, ignore_errors=True)
            aside.mkdir(parents=True)
        dist.barrier(group=self._group)
        written = state_dict_saver.async_save(state, checkpoint_id=aside, process_group=self._group)
        self._path = path
        self._thread = threading.Thread(target=self._name, args=(written, aside, rest), name="checkpoint", daemon=True)
        self._thread.start()

    def _name(self, written: Any, aside: Path, rest: dict[str, Any]) -> None:
        """Give the folder its name once all ranks have written, which is when rank 0 is told."""
        self._problem = None
        try:
            written.result()
            if dist.get_rank() == 0:
                _finish(aside, self._path, rest)
        except Exception as error:  # of any kind, of any rank: `wait` raises what it says
            self._problem = f"{type(error).__name__}: {error}"

    def wait(self) -> None:
        """Wait until what is being written has its name; collective, since it may fail on one rank only."""
        if self._thread is None:
            return
        self._thread.join()
        self._thread = None
        problems: list[str | None] = [None] * dist.get_world_size(self._group)
        dist.all_gather_object(problems, self._problem, group=self._group)
        if any(problems):
            raise StorageError(
                f"could not save the checkpoint {self._path}: {next(filter(None, problems))}. The older checkpoints "
                "beside it are whole; make room, or make the folder writable, and start again with the same run_id."
            )


def is_whole(path: Path) -> bool:
    """Tell whether every file of a sharded checkpoint has the size and checksum that were noted when it was written."""
    try:
        digests = json.loads((path / DIGESTS).read_text())
        return all(digest(path / name) == expected for name, expected in digests.items())
    except (OSError, ValueError):
        return False


def digest(path: Path) -> list[int]:
    """Return a file's size and CRC-32."""
    size, checksum = 0, 0
    with path.open("rb") as file:
        while part := file.read(1 << 24):
            size, checksum = size + len(part), zlib.crc32(part, checksum)
    return [size, checksum]


def _finish(aside: Path, path: Path, rest: dict[str, Any]) -> None:
    torch.save(rest, aside / META)
    files = sorted(each for each in aside.iterdir() if each.name != DIGESTS)
    (aside / DIGESTS).write_text(json.dumps({each.name: digest(each) for each in files}))
    for each in [*files, aside / DIGESTS]:
        descriptor = os.open(each, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    if path.exists():
        shutil.rmtree(path)
    os.replace(aside, path)
