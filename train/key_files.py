"""Key files: secrets for their owner alone, and the environment where there is no file."""

import base64
import os
import stat
from pathlib import Path

from train.errors import ConfigError, StorageError, TrustError

MASTER_KEY = "FULLCYCLE_MASTER_KEY"
MOST_BYTES = 4_096  # of a key file


def home() -> Path:
    """Return the folder of this user's keys."""
    return Path(os.path.expanduser("~")) / ".config" / "fullcycle"


def master_key(path: str | Path | None = None) -> bytes:
    """Return the 32 bytes of the master key of `path`, or of FULLCYCLE_MASTER_KEY, or of the default place.

    Raises:
        ConfigError: there is none, or it is none.
        TrustError: others can read the file.
    """
    text, source = read_secret(path, MASTER_KEY, home() / "master.key", make="python -m train.keys master")
    try:
        key = base64.b64decode(text.strip(), validate=True)
    except ValueError:
        key = b""
    if len(key) != 32:
        raise ConfigError(f"{source} is no master key (32 bytes in base64), as `python -m train.keys master` makes it")
    return key


def read_secret(path: str | Path | None, variable: str, default: Path, *, make: str) -> tuple[str, str]:
    """Return the text of a secret and where it is from: `path`, else the environment, else `default`."""
    if path is None and (text := os.environ.get(variable)):
        return text, f"the environment variable {variable}"
    place = default if path is None else Path(path).expanduser()
    try:
        with place.open("rb") as file:
            _refuse_shared(place, os.fstat(file.fileno()))
            return file.read(MOST_BYTES).decode("ascii", "replace"), str(place)
    except FileNotFoundError:
        raise ConfigError(f"there is no key {place}: make one with `{make}`, or set {variable} to its text") from None
    except OSError as error:
        raise ConfigError(f"cannot read the key {place}: {error.strerror}") from error


def _refuse_shared(place: Path, status: os.stat_result) -> None:
    if os.name == "posix" and status.st_mode & 0o077:
        mode = stat.S_IMODE(status.st_mode)
        raise TrustError(f"others than its owner can use the key {place} (mode {mode:o}): chmod 600 {place}")
    if os.name == "posix" and status.st_uid not in (os.geteuid(), 0):
        raise TrustError(f"the key {place} belongs to another user (id {status.st_uid}): copy it to a file of your own")


def write_key(path: Path, content: bytes, *, mode: int = 0o600) -> None:
    """Write a key to a new file.

    Raises:
        ConfigError: the file is there already; a key is never overwritten.
        StorageError: it cannot be written.
    """
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    except OSError as error:
        if path.exists():
            raise ConfigError(f"{path} is there already and is not overwritten: give --out another name") from None
        raise StorageError(f"could not write the key {path}: {error.strerror}") from error
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        path.unlink()
        raise StorageError(f"could not write the key {path}: {error.strerror}") from error
