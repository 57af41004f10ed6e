"""The run folder: runs/<name>/<run_id>/ with the config, the provenance, the log and the result of one run."""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
import platform
import re
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from importlib import metadata
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from omegaconf import DictConfig, OmegaConf

from train import ranks
from train.errors import ConfigError, StorageError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LATEST = "latest"
_LOCK = ".lock"
FILE_ONLY = {"file_only": True}  # `extra` of a log record that is not for the screen
_PLAIN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._=-]*")
# Of a config that is run again as it is: Hydra makes no folder and no log of its own.
_QUIET = """defaults:
- quiet
- _self_
- override hydra/job_logging: none
- override hydra/hydra_logging: none
"""
_PACKAGES = ("torch", "torchvision", "pytorch-lightning", "hydra-core", "optuna", "numpy", "scikit-learn", "pyarrow")


def is_plain_name(text: str) -> bool:
    """Tell whether a text can be the name of a folder, on any machine and in any command line."""
    return _PLAIN_NAME.fullmatch(text) is not None


class RunFolder:
    """One run's folder; made by rank 0, known to all.

    Raises:
        ConfigError: `name` or `run_id` is no plain name.
        StorageError: it cannot be made or written, or another process trains in it.
    """

    def __init__(self, root: Path, name: str, run_id: str) -> None:
        for key, value in (("name", name), ("run_id", run_id)):
            if not is_plain_name(value) or value == LATEST:
                raise ConfigError(
                    f"{key} must be the name of a folder: letters, digits, '.', '_', '=' and '-', first a letter or "
                    f"digit, and not '{LATEST}'; got {value!r}"
                )
        self.path = root.absolute() / name / run_id
        self.run_id = run_id
        try:
            (self.path / "checkpoints").mkdir(parents=True, exist_ok=True)
            self._lock = self._locked() if ranks.is_rank_zero() else None
        except OSError as error:
            raise StorageError(
                f"cannot write the run folder {self.path}: {error}. Set output_dir to a folder that can be written."
            ) from error

    @property
    def checkpoints(self) -> Path:
        """Folder of the checkpoints."""
        return self.path / "checkpoints"

    @property
    def log(self) -> Path:
        """This rank's log."""
        return self.path / ("train.log" if ranks.is_rank_zero() else f"train-rank{ranks.rank()}.log")

    def _locked(self) -> IO[str]:
        """Hold the folder for this process; the lock goes with it, however it ends."""
        lock = (self.path / _LOCK).open("w")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            lock.close()
            raise StorageError(
                f"another process is training in {self.path}: wait for it, or give another run_id"
            ) from error
        return lock

    def release(self) -> None:
        """Let another process train here."""
        if self._lock is not None:
            self._lock.close()

    def point_latest(self) -> None:
        """Point runs/<name>/latest here."""
        aside = self.path.parent / f".latest.{os.getpid()}"
        aside.unlink(missing_ok=True)
        aside.symlink_to(self.path.name)
        os.replace(aside, self.path.parent / LATEST)

    def write_json(self, name: str, content: Mapping[str, Any]) -> None:
        """Write a JSON file atomically; NaN becomes null."""
        write_json(self.path / name, content)

    def write_config(self, cfg: DictConfig) -> None:
        """Write config.yaml, resolved: `python -m train --config-dir FOLDER --config-name config` runs it again."""
        write_text(self.path / "config.yaml", _QUIET + OmegaConf.to_yaml(cfg, resolve=True))

    @contextlib.contextmanager
    def logging_open(self) -> Iterator[None]:
        """Send the log to train.log (rank 0) or train-rank<N>.log, and warnings to the screen, while it is open."""
        handler = logging.FileHandler(self.log)
        handler.handleError = lambda record: None  # type: ignore[method-assign]  # a full disk ends the run by itself
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
        root = logging.getLogger()
        for library in ("pytorch_lightning", "lightning_fabric"):
            logging.getLogger(library).handlers.clear()  # their own go to the screen
        level = root.level
        screen = logging.StreamHandler()
        screen.setLevel(logging.WARNING)
        # Libraries' warnings are for the file, and what ends the run is shown by `train.errors`.
        screen.addFilter(lambda record: record.name != "py.warnings" and not hasattr(record, "file_only"))
        screen.setFormatter(logging.Formatter("%(levelname)s: %(message)s"))
        handlers: list[logging.Handler] = [handler, screen] if ranks.is_rank_zero() else [handler]
        for each in handlers:
            root.addHandler(each)
        root.setLevel(logging.INFO)
        logging.captureWarnings(True)
        try:
            yield
        finally:
            logging.captureWarnings(False)
            for each in handlers:
                root.removeHandler(each)
            root.setLevel(level)
            with contextlib.suppress(OSError):  # a full disk: what ends the run says so
                handler.close()
            self.release()


def is_held(run: Path) -> bool:
    """Whether a process trains in a run folder."""
    try:
        with (run / _LOCK).open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:  # there is none yet
        return False
    return False


def write_text(path: Path, text: str) -> None:
    """Write a file whole or not at all.

    Raises:
        StorageError: it cannot be written.
    """
    aside = path.with_name(f".{path.name}.tmp")
    try:
        with aside.open("w") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(aside, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            aside.unlink()
        raise StorageError(_not_written(path, error)) from error


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON file whole or not at all; NaN becomes null."""
    write_text(path, json.dumps(_without_nan(content), indent=2, allow_nan=False) + "\n")


def write_picture(path: Path, figure: Figure) -> NDArray[np.uint8]:
    """Write a figure as a PNG file and return it as [height, width, RGB]; it is drawn once for both.

    Raises:
        StorageError: it cannot be written.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.image import imsave

    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    picture = np.asarray(canvas.buffer_rgba())[..., :3]
    try:
        imsave(path, picture)
    except OSError as error:
        raise StorageError(_not_written(path, error)) from error
    return picture


def _not_written(path: Path, error: OSError) -> str:
    return f"could not write {path}: {error}; make room, or make the folder writable, and start again"


def _without_nan(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _without_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(item) for item in value]
    if isinstance(value, float) and value != value:
        return None
    return value


def masked(text: str) -> str:
    """The text without the passwords of the URIs in it."""
    text = re.sub(r"(://[^:/@\s]*):\S*@", r"\1:***@", text)
    return re.sub(r"([?&](?:password|sslpassword)=)[^&\s]*", r"\1***", text)


def provenance(*, seed: int, fingerprint: str) -> dict[str, Any]:
    """Return what is needed to tell where a run came from: command, code, packages, hardware, data, seed."""
    versions = {}
    for package in _PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[package] = metadata.version(package)
    cuda = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return {
        "command": [sys.executable, *map(masked, sys.argv)],
        "working_folder": os.getcwd(),
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "seed": seed,
        "data_fingerprint": fingerprint,
        "git_commit": _git("rev-parse", "HEAD"),
        "git_diff": _git("diff", "HEAD"),
        "packages": versions,
        "python": platform.python_version(),
        "host": platform.node(),
        "platform": platform.platform(),
        "cpus": os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "gpus": cuda,
    }


def _git(*arguments: str) -> str | None:
    """Ask git about the code that runs; None outside a checkout."""
    folder = Path(__file__).parent
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        done = subprocess.run(["git", *arguments], cwd=folder, capture_output=True, text=True, timeout=20, check=True)
        return done.stdout.strip()
    return None
