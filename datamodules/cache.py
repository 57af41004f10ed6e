"""Files that can be made again: kept in $FULLCYCLE_CACHE, else ~/.cache/fullcycle, whole or not at all."""

import contextlib
import fcntl
import hashlib
import json
import logging
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet

log = logging.getLogger(__name__)


def cache_file(kind: str, parameters: Mapping[str, Any], suffix: str) -> Path:
    """Where a file is kept: under a hash of all that determines it."""
    folder = Path(os.environ.get("FULLCYCLE_CACHE") or Path.home() / ".cache" / "fullcycle").expanduser()
    text = json.dumps(dict(parameters), sort_keys=True)
    return folder / f"{kind}-{hashlib.blake2b(text.encode(), digest_size=8).hexdigest()}{suffix}"


def write_atomically(path: Path, write: Callable[[Any], Any]) -> None:
    """Make a file of what `write` writes to an open one; nobody ever sees a part of it. Raises OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=".", suffix=".tmp")
    try:
        with os.fdopen(descriptor, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


@contextlib.contextmanager
def one_at_a_time(path: Path) -> Iterator[None]:
    """Let one process of this machine make a file, while the others wait for it; where none can lock, all make it."""
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError):
            path.parent.mkdir(parents=True, exist_ok=True)
            lock = stack.enter_context(open(path.with_name(f".{path.name}.lock"), "w"))
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def cached_table(kind: str, parameters: Mapping[str, Any], make: Callable[[], pa.Table]) -> pa.Table:
    """What `make` gives, kept as a Parquet file; a damaged file is made again, an impossible one is done without."""
    path = cache_file(kind, parameters, ".parquet")
    found = _read(path)
    if found is None:
        with one_at_a_time(path):
            found = _read(path)
            if found is None:
                found = table = make()
                try:
                    write_atomically(path, lambda file: pa.parquet.write_table(table, file, write_page_checksum=True))
                except OSError as error:
                    log.warning("the %s are not cached (%s); set FULLCYCLE_CACHE to a folder", kind, error)
    return found


def _read(path: Path) -> pa.Table | None:
    try:
        return pa.parquet.read_table(path, page_checksum_verification=True)
    except FileNotFoundError:
        return None
    except (OSError, pa.ArrowException) as error:
        log.warning("making the damaged cache file %s again (%s)", path, str(error).splitlines()[0])
        return None
