"""Where a study lives: in a journal file on a disk that its workers share, or in a database, which may be away."""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from optuna.exceptions import ExperimentalWarning, StorageInternalError
from optuna.storages import BaseStorage, JournalStorage, RDBStorage, get_storage
from optuna.storages.journal import JournalFileBackend
from optuna.storages.journal._file import BaseJournalFileLock
from sqlalchemy.exc import ArgumentError, DBAPIError, InterfaceError, NoSuchModuleError, OperationalError

from train.errors import ConfigError, StorageError
from train.folder import masked

log = logging.getLogger(__name__)

JOURNAL = "study.journal"
PATIENCE_SECONDS = 600.0  # how long a database may be away
_FIRST_PAUSE_SECONDS, _MOST_PAUSE_SECONDS = 0.1, 5.0
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
            raise StorageError(f"cannot write the study's journal in {folder}: {error}") from error
        except (ValueError, KeyError, TypeError) as error:
            raise StorageError(
                f"{folder / JOURNAL} is no journal of a study, or damaged ({_first_line(error)}): move it away, or "
                "begin another study with study=NAME"
            ) from error
    scheme, _, rest = uri.partition("://")
    url = f"{_DRIVERS.get(scheme, scheme)}://{rest}"
    try:
        with _quiet():
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


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        yield


def _first_line(error: BaseException) -> str:
    return masked(str(error).strip().splitlines()[0]) if str(error).strip() else type(error).__name__


class JournalFile(JournalFileBackend):
    """Optuna's journal file under a lock that the kernel takes from a process however that ends.

    Optuna's own locks outlive a killed process for 30 s. What a process killed in the middle of a line has left is cut
    off before the next line is written.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(str(path), lock_obj=_Lock(path))


class _Lock(BaseJournalFileLock):
    """An exclusive lock on `<path>.lock`; after taking it the journal ends with a whole line."""

    def __init__(self, path: Path) -> None:
        self._path, self._lock = path, path.with_name(f"{path.name}.lock")
        self._held: int | None = None

    def acquire(self) -> bool:
        self._held = os.open(self._lock, os.O_CREAT | os.O_WRONLY, 0o666)
        fcntl.flock(self._held, fcntl.LOCK_EX)
        _cut_torn_line(self._path)
        return True

    def release(self) -> None:
        assert self._held is not None
        os.close(self._held)
        self._held = None


def _cut_torn_line(path: Path) -> None:
    with path.open("rb+") as file:
        size = file.seek(0, os.SEEK_END)
        if size == 0:
            return
        file.seek(size - 1)
        if file.read(1) == b"\n":
            return
        file.seek(0)
        whole = file.read().rpartition(b"\n")[0]
        file.truncate(len(whole) + 1 if whole else 0)
        log.warning("%s: cut off a line that a killed process had not finished", path)


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
    while error is not None and not isinstance(error, OperationalError | InterfaceError):
        error = error.__cause__
    return error
