"""Where a study lives: in a journal file on a disk that its workers share, or in a database, which may be away."""

from __future__ import annotations

import fcntl
import json
import logging
import os
import time
import warnings
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

from optuna.exceptions import ExperimentalWarning, StorageInternalError
from optuna.storages import BaseStorage, JournalStorage, RDBStorage, get_storage
from optuna.storages.journal import JournalFileBackend
from optuna.storages.journal._file import BaseJournalFileLock, get_lock_file
from optuna.storages.journal._storage import JournalOperation
from sqlalchemy.exc import (
    ArgumentError,
    DBAPIError,
    InterfaceError,
    NoSuchModuleError,
    OperationalError,
    PendingRollbackError,
)

from train.errors import ConfigError, StorageError
from train.folder import masked

log = logging.getLogger(__name__)

JOURNAL = "study.journal"
PATIENCE_SECONDS = 600.0  # how long a database may be away
_FIRST_PAUSE_SECONDS, _MOST_PAUSE_SECONDS = 0.1, 5.0
# Optuna reads again on a session whose connection was lost while it read: SQLAlchemy calls that a pending rollback.
_LOST = (OperationalError, InterfaceError, PendingRollbackError)
_DRIVERS = {"postgresql": "postgresql+psycopg", "postgres": "postgresql+psycopg"}


def open_storage(uri: str | None, folder: Path) -> BaseStorage:
    """Open the storage of a study.

    Args:
        uri: SQLAlchemy's, such as postgresql://user@host/database; None for a journal file in `folder`.
        folder: the study's.

    Raises:
        ConfigError: no such kind of storage, or its driver is not installed.
        StorageError: it cannot be reached or written.
    """
    if uri is None:
        try:
            return JournalStorage(JournalFile(folder / JOURNAL))
        except OSError as error:
            raise StorageError(
                f"cannot write the study's journal in {folder}: {error}. "
                "Set output_dir to a folder that can be written."
            ) from error
        except (ValueError, KeyError, TypeError) as error:
            raise StorageError(
                f"{folder / JOURNAL} is no journal of a study, or damaged ({_first_line(error)}): move it away, or "
                "begin another study with study=NAME"
            ) from error
    scheme, _, rest = uri.partition("://")
    url = f"{_DRIVERS.get(scheme, scheme)}://{rest}"
    try:
        with warnings.catch_warnings(action="ignore", category=ExperimentalWarning):
            inner = RDBStorage(url, engine_kwargs={"pool_pre_ping": True})
    except (ArgumentError, NoSuchModuleError, ImportError) as error:
        hint = "; pip install 'fullcycle[postgres]'" if "psycopg" in str(error) else ""
        raise ConfigError(
            f"storage: {masked(uri)!r} is no database that can be used here ({_first_line(error)}){hint}"
        ) from error
    except (DBAPIError, StorageInternalError) as error:
        raise StorageError(
            f"storage: {masked(uri)} cannot be reached ({_first_line(error)}): is the server up, and are the user, the "
            "password and the database right?"
        ) from error
    return _patient(get_storage(inner))


def _first_line(error: BaseException) -> str:
    return masked(str(error).strip().splitlines()[0]) if str(error).strip() else type(error).__name__


class JournalFile(JournalFileBackend):
    """Optuna's journal file under a lock that the kernel takes from a process however that ends.

    Optuna's own locks outlive a killed process for 30 s. What a process killed in the middle of a line has left is cut
    off before the next line is written. Parameters are on the disk with the trial's next report or end, which flush the
    whole file: after a power cut a trial that was running is lost in either case.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(str(path), lock_obj=_Lock(path))

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        """Write lines."""
        lines = "".join(json.dumps(log, separators=(",", ":")) + "\n" for log in logs)
        with get_lock_file(self._lock), open(self._file_path, "ab", buffering=0) as file:
            file.write(lines.encode())
            if any(log["op_code"] != JournalOperation.SET_TRIAL_PARAM for log in logs):
                os.fsync(file.fileno())


class _Lock(BaseJournalFileLock):
    """An exclusive lock on `<path>.lock`; after taking it the journal ends with a whole line."""

    def __init__(self, path: Path) -> None:
        # Kept open, since a sweep takes the lock at each step.
        self._lock = os.open(path.with_name(f"{path.name}.lock"), os.O_CREAT | os.O_WRONLY, 0o666)
        self._journal = os.open(path, os.O_CREAT | os.O_RDWR, 0o666)
        self._path = path
        for descriptor in (self._lock, self._journal):
            weakref.finalize(self, os.close, descriptor)

    def acquire(self) -> bool:
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        self._cut_torn_line()
        return True

    def release(self) -> None:
        fcntl.flock(self._lock, fcntl.LOCK_UN)

    def _cut_torn_line(self) -> None:
        size = os.fstat(self._journal).st_size
        if size == 0 or os.pread(self._journal, 1, size - 1) == b"\n":
            return
        whole = self._path.read_bytes().rpartition(b"\n")[0]
        os.ftruncate(self._journal, len(whole) + 1 if whole else 0)
        log.warning("%s: cut off a line that a killed process had not finished", self._path)


def _patient(storage: BaseStorage) -> BaseStorage:
    """Make each call of a database wait for one that is away.

    A call that was carried out just before the connection was lost is carried out again; `train.sweep.slots` allows
    for a trial that is created twice, and every other call says the same again.
    """
    for name in BaseStorage.__abstractmethods__:
        setattr(storage, name, _waiting(getattr(storage, name)))
    return storage


def _waiting(method: Callable[..., Any]) -> Callable[..., Any]:
    def call(*args: Any, **kwargs: Any) -> Any:
        deadline, pause = time.monotonic() + PATIENCE_SECONDS, _FIRST_PAUSE_SECONDS
        while True:
            try:
                return method(*args, **kwargs)
            except (DBAPIError, StorageInternalError) as error:
                cause = _lost_connection(error)
                if cause is None:
                    raise
                if time.monotonic() > deadline:
                    raise StorageError(
                        f"the study's database has been away for {PATIENCE_SECONDS:.0f} s ({_first_line(cause)}); "
                        "the same command goes on when it is back"
                    ) from error
                if pause == _FIRST_PAUSE_SECONDS:
                    log.warning("the study's database is away (%s): waiting for it", _first_line(cause))
                time.sleep(pause)
                pause = min(2 * pause, _MOST_PAUSE_SECONDS)

    return call


def _lost_connection(error: BaseException | None) -> BaseException | None:
    """What is behind an error: a connection that was lost, or a row that others hold; None for a defect."""
    while error is not None and not isinstance(error, _LOST):
        error = error.__cause__
    return error
