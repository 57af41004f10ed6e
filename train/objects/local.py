"""Objects in a folder: for one machine, or several that share a file system with locks."""

import fcntl
import hashlib
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from train.errors import StorageError, TrustError, UserError
from train.objects.place import CHUNK, LARGEST_DOCUMENT, Entry, MissingError, Sent

_ASIDE = ".part"


class LocalObjects:
    """Files of a folder, which the first put makes; written under another name, flushed and renamed."""

    def __init__(self, root: Path) -> None:
        self.root, self.uri, self.sent = root.absolute(), str(root), Sent()

    def read(self, name: str) -> tuple[bytes, str] | None:
        """Return a small object and a tag of its content; None where there is none."""
        with self._explaining():
            try:
                with self._path(name).open("rb") as file:
                    content = file.read(LARGEST_DOCUMENT + 1)
            except (FileNotFoundError, NotADirectoryError):
                return None
        if len(content) > LARGEST_DOCUMENT:
            raise StorageError(f"{self.uri}/{name} is larger than {LARGEST_DOCUMENT:,} bytes: no file of a registry is")
        return content, hashlib.sha256(content).hexdigest()

    def create(self, name: str, content: bytes) -> bool:
        """Put a small object where there is none; False where there is one."""
        with self._explaining(), self._locked():
            if self._path(name).exists():
                return False
            self._write(name, content)
            return True

    def replace(self, name: str, content: bytes, *, tag: str) -> bool:
        """Put a small object in the place of the one with this tag; False where it has another by now."""
        with self._explaining(), self._locked():
            found = self.read(name)
            if found is None or found[1] != tag:
                return False
            self._write(name, content)
            return True

    def upload(self, path: Path, name: str, *, sha256: str) -> None:
        """Have the file there; a good copy of it is only marked as wanted."""
        with self._explaining():
            if self._path(name).exists() and _digest_of(self._path(name)) == sha256:
                os.utime(self._path(name))
                self.sent.add(kept_files=1)
                return
            with path.open("rb") as source, self._aside(name) as target:
                digest = hashlib.sha256()
                while chunk := source.read(CHUNK):
                    digest.update(chunk)
                    target.write(chunk)
                if digest.hexdigest() != sha256:
                    raise TrustError(f"{path} is not the file that its manifest names: its sha256 is another")
                size = target.tell()
        self.sent.add(files=1, parts=1, size=size)

    def chunks(self, name: str) -> Iterator[bytes]:
        """Read an object bit by bit."""
        with self._explaining():
            try:
                file = self._path(name).open("rb")
            except FileNotFoundError as error:
                raise MissingError(f"{self.uri}/{name} is not there") from error
        with file:
            while chunk := file.read(CHUNK):
                yield chunk

    def find(self, name: str) -> Entry | None:
        """Return what is known of an object."""
        with self._explaining():
            try:
                status = self._path(name).stat()
            except (FileNotFoundError, NotADirectoryError):
                return None
        return Entry(name, status.st_size, status.st_mtime)

    def entries(self, prefix: str) -> Iterator[Entry]:
        """Return the objects whose names begin so."""
        for name in self._names():
            if name.startswith(prefix) and not _is_hidden(name) and (entry := self.find(name)):
                yield entry

    def delete(self, name: str) -> None:
        """Delete an object, if it is there."""
        with self._explaining():
            self._path(name).unlink(missing_ok=True)

    def unfinished(self) -> Iterator[Entry]:
        """Return files of processes that ended while they wrote."""
        for name in self._names():
            if _is_hidden(name) and name.endswith(_ASIDE) and (entry := self.find(name)):
                yield entry

    def abandon(self, entry: Entry) -> None:
        """Delete such a file."""
        self.delete(entry.name)

    def _names(self) -> list[str]:
        def fail(error: OSError) -> None:
            if not isinstance(error, FileNotFoundError):
                raise error

        with self._explaining():
            walk = os.walk(self.root, onerror=fail)
            return sorted(
                str((Path(folder) / name).relative_to(self.root)) for folder, _, names in walk for name in names
            )

    def _write(self, name: str, content: bytes) -> None:
        with self._aside(name) as file:
            file.write(content)

    @contextmanager
    def _aside(self, name: str) -> Iterator[BinaryIO]:
        """A file that gets its name when it is whole and on the disk."""
        path = self._path(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        aside = path.with_name(f".{path.name}.{secrets.token_hex(4)}{_ASIDE}")
        try:
            with aside.open("xb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.replace(aside, path)
            sync_folder(path.parent)
        finally:
            with suppress(OSError):
                aside.unlink(missing_ok=True)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        self.root.mkdir(parents=True, exist_ok=True)
        with (self.root / ".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    @contextmanager
    def _explaining(self) -> Iterator[None]:
        try:
            yield
        except UserError:
            raise
        except OSError as error:
            raise StorageError(
                f"{self.uri} cannot be used: {error}. Make room, or give a folder that can be read and written."
            ) from error

    def _path(self, name: str) -> Path:
        return self.root / name


def sync_folder(folder: Path) -> None:
    """Have the names in a folder on the disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _is_hidden(name: str) -> bool:
    return name.rpartition("/")[2].startswith(".")


def _digest_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
