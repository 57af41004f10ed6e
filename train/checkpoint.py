"""Checkpoints that are whole or not there: written aside, flushed, renamed, and verified before they are loaded."""

import logging
import os
import re
import shutil
import time
import zipfile
from pathlib import Path
from typing import Any, Protocol

import torch
from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.callbacks import Checkpoint
from pytorch_lightning.plugins.io import TorchCheckpointIO

from train import ranks, sharded, stopping
from train.config.finding import did_you_mean
from train.errors import ConfigError, StorageError
from train.strategies import FullySharded

log = logging.getLogger(__name__)

BEST = "best.ckpt"
_RECENT = re.compile(r"step=(\d+)\.ckpt")


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint under a temporary name and renames it once it is on the disk."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None) -> None:
        """Save to `path`, or leave what was there.

        Raises:
            StorageError: the disk is full or not writable.
        """
        path = Path(path)
        aside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with aside.open("wb") as file:
                torch.save(checkpoint, file)
                file.flush()
                os.fsync(file.fileno())
            os.replace(aside, path)
            sync_folder(path.parent)
        except (OSError, RuntimeError) as error:  # torch wraps a failing write in a RuntimeError
            cause = error if isinstance(error, OSError) else error.__context__ or error
            aside.unlink(missing_ok=True)
            raise StorageError(
                f"could not save the checkpoint {path}: {cause}. The older checkpoints beside it are whole; "
                "make room, or make the folder writable, and start again with the same run_id to go on from them."
            ) from error


def sync_folder(folder: Path) -> None:
    """Flush a folder's entries, so that a rename survives a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def is_whole(path: Path) -> bool:
    """Tell whether every record of a checkpoint, or every file of a sharded one, has its checksum."""
    if path.is_dir():
        return sharded.is_whole(path)
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.testzip() is None
    except (zipfile.BadZipFile, OSError, EOFError, NotImplementedError):
        return False


def recent(folder: Path) -> list[Path]:
    """Return the checkpoints that a run can go on from, newest first."""
    found = [(int(match[1]), path) for path in folder.glob("*.ckpt") if (match := _RECENT.fullmatch(path.name))]
    return [path for _, path in sorted(found, reverse=True)]


def remove(path: Path) -> None:
    """Delete a checkpoint, sharded or not."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def load_weights(model: torch.nn.Module, path: Path) -> None:
    """Give a model the weights of a checkpoint.

    Raises:
        ConfigError: there is no such checkpoint, or it is of another model.
        StorageError: it is torn.
    """
    if not path.is_file():
        raise ConfigError(f"weights: there is no checkpoint {str(path)!r}")
    if not is_whole(path):
        raise StorageError(f"weights: the checkpoint {path} is not whole")
    try:
        model.load_state_dict(torch.load(path, map_location="cpu", weights_only=True)["state_dict"])
    except RuntimeError as error:
        raise ConfigError(f"weights: {path} is of another model: {error}") from error


def newest_whole(folder: Path) -> Path | None:
    """Return the newest checkpoint that verifies, with a warning for each newer one that does not."""
    for path in recent(folder):
        if is_whole(path):
            return path
        log.warning("checkpoint %s is torn (truncated or damaged): passing over it", path)
    return None


def best_whole(folder: Path) -> Path | None:
    """Return the best checkpoint if it verifies, else the newest that does."""
    best = folder / BEST
    return best if is_whole(best) else newest_whole(folder)


class Mirror(Protocol):
    """What has copies of checkpoints made elsewhere."""

    def offer(self, path: Path) -> None:
        """Have it copied; return at once."""


class Checkpoints(Checkpoint):
    """Keeps the newest checkpoints of a run, to go on from, and the best, to ship.

    Saves and ends the run where a signal asks for it (`train.stopping`).

    Args:
        folder: where they go.
        monitor: the metric that tells the best; mode: "min" or "max".
        every_seconds: longest time between two saves within an epoch; each epoch's end is saved as well.
        every_n_steps: also save whenever this many optimizer steps have passed; null for never.
        keep: how many recent ones are kept.
        mirror: has a copy of each made, in the background; None for none.
    """

    def __init__(
        self,
        folder: Path,
        *,
        monitor: str,
        mode: str,
        every_seconds: float,
        every_n_steps: int | None,
        keep: int,
        mirror: Mirror | None = None,
    ) -> None:
        self.folder, self.monitor, self.mode, self.keep = folder, monitor, mode, keep
        self.every_seconds, self.every_n_steps, self.mirror = every_seconds, every_n_steps, mirror
        self.best_score: float | None = None
        self.best_epoch: int | None = None
        self.seconds_saving = 0.0
        self._has_told = False
        self._saved_at, self._saved_step = time.monotonic(), 0

    def state_dict(self) -> dict[str, Any]:
        """Return what the best has been so far."""
        return {"best_score": self.best_score, "best_epoch": self.best_epoch}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up what `state_dict` returned."""
        self.best_score, self.best_epoch = state_dict["best_score"], state_dict["best_epoch"]

    @property
    def best_path(self) -> Path | None:
        """The best checkpoint; the newest one where nothing was monitored; None where nothing was saved."""
        best = self.folder / BEST
        return best if self.best_score is not None and best.exists() else newest_whole(self.folder)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock, and listen for signals; from here on the run is not complete."""
        if trainer.is_global_zero:
            (self.folder.parent / "result.json").unlink(missing_ok=True)
        self._saved_at, self._saved_step = time.monotonic(), trainer.global_step
        stopping.listen()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Nothing is left to save."""
        self._finish(trainer)
        stopping.stop_listening()

    def _finish(self, trainer: Trainer) -> None:
        if isinstance(trainer.strategy, FullySharded):
            trainer.strategy.finish_checkpoint()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save within an epoch if it is time; the last call of an epoch is left to the epoch's end."""
        if trainer.fit_loop.epoch_loop.batch_progress.is_last_batch:
            return
        steps = trainer.global_step - self._saved_step
        is_late = time.monotonic() - self._saved_at >= self.every_seconds
        is_due, asked = ranks.agree(is_late, stopping.asked())
        if is_due or asked or (self.every_n_steps is not None and steps >= self.every_n_steps):
            self._save_recent(trainer)
        self._stop_if(trainer, asked)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save the best."""
        if trainer.sanity_checking or trainer.state.fn != "fit":
            return
        score = trainer.callback_metrics.get(self.monitor)
        if score is None and not self._has_told:
            self._tell_missing([name for name in trainer.callback_metrics if name.startswith("val/")])
        if score is None or torch.isnan(score):
            return
        value = float(score)
        if self.best_score is None or (value > self.best_score if self.mode == "max" else value < self.best_score):
            self.best_score, self.best_epoch = value, trainer.current_epoch
            self._save(trainer, self.folder / BEST)

    def _tell_missing(self, there: list[str]) -> None:
        """Warn, once: the name may be wrong, or the metric undefined, as where the rows are of one class."""
        self._has_told = True
        close, names = did_you_mean(self.monitor, there), ", ".join(sorted(there))
        log.warning("monitor=%s is no metric of this validation%s; there are %s", self.monitor, close, names)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save the epoch."""
        self._save_recent(trainer)
        self._stop_if(trainer, ranks.agree(stopping.asked())[0])

    def _stop_if(self, trainer: Trainer, asked: int) -> None:
        if asked:
            self._finish(trainer)
            saved = f"step {self._saved_step:,} in {self.folder}"
            raise stopping.stop(asked, saved=saved, run_id=self.folder.parent.name)

    def _save(self, trainer: Trainer, path: Path) -> None:
        start = time.perf_counter()
        trainer.save_checkpoint(path)
        if self.mirror is not None and path.is_file():  # shards are not mirrored
            self.mirror.offer(path)
        self.seconds_saving += time.perf_counter() - start

    def _save_recent(self, trainer: Trainer) -> None:
        path = self.folder / f"step={trainer.global_step:09d}.ckpt"
        if isinstance(trainer.strategy, FullySharded):
            with trainer.strategy.sharding_checkpoints():
                self._save(trainer, path)
        else:
            self._save(trainer, path)
        self._saved_at, self._saved_step = time.monotonic(), trainer.global_step
        if trainer.is_global_zero:
            for path in recent(self.folder)[self.keep :]:
                remove(path)
