"""The objects under one address, a bucket's or a folder's: put whole or not at all, changed only by comparing."""

import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol
from urllib.parse import unquote, urlsplit

from train.errors import ConfigError, StorageError

MEBIBYTE = 2**20
CHUNK = MEBIBYTE
LARGEST_DOCUMENT = 16 * MEBIBYTE  # of what is read into memory at once: manifests, signatures, pointers


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How an object store is spoken to.

    Attributes:
        part_size: bytes of a part; a larger file goes in parts, and what has arrived is not sent again.
        parallel: parts on their way at once; each is in memory.
        patience_seconds: how long a store that does not answer is tried again.
        timeout_seconds: a connection on which nothing moves for so long has failed.
        checksums: "when_supported" or, for stores that refuse the checksums that boto3 adds, "when_required".
        sse: server-side encryption: "AES256", "aws:kms" or None, the bucket's own default.
        sse_kms_key_id: the key of "aws:kms", else the account's own.

    Raises:
        ConfigError: a value breaks its rule.
    """

    part_size: int = 16 * MEBIBYTE
    parallel: int = 4
    patience_seconds: float = 60.0
    timeout_seconds: float = 20.0
    checksums: str = "when_supported"
    sse: str | None = None
    sse_kms_key_id: str | None = None

    def __post_init__(self) -> None:
        if self.part_size < 5 * MEBIBYTE:
            raise ConfigError(f"part_size must be at least 5 MiB (5242880), as S3 wants it; got {self.part_size}")
        if self.parallel < 1:
            raise ConfigError(f"parallel must be at least 1; got {self.parallel}")
        for name, allowed in (("checksums", ("when_supported", "when_required")), ("sse", (None, "AES256", "aws:kms"))):
            if getattr(self, name) not in allowed:
                choices = " or ".join(map(repr, allowed))
                raise ConfigError(f"{name} must be {choices}; got {getattr(self, name)!r}")
        if self.sse_kms_key_id is not None and self.sse != "aws:kms":
            raise ConfigError(f"sse_kms_key_id goes with sse 'aws:kms' only; got sse {self.sse!r}")


@dataclass(frozen=True)
class Entry:
    """An object, or an upload that was not finished: name, bytes, seconds since 1970, the upload's id."""

    name: str
    size: int
    modified: float
    upload: str = ""


@dataclass
class Sent:
    """What arrived of what was sent, what was there already, and how many tries failed."""

    files: int = 0
    parts: int = 0
    size: int = 0
    failed: int = 0
    kept_files: int = 0
    kept_parts: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False, compare=False)

    def add(self, **counts: int) -> None:
        """Count; from any thread."""
        with self._lock:
            for name, count in counts.items():
                setattr(self, name, getattr(self, name) + count)

    def __str__(self) -> str:
        sent = f"sent {self.files} files in {self.parts} parts, {self.size:,} bytes"
        failed = f" ({self.failed} tries failed)" if self.failed else ""
        return f"{sent}{failed}; {self.kept_files} files and {self.kept_parts} parts were there already"


class MissingError(StorageError):
    """There is no such object."""


class Objects(Protocol):
    """Objects by name under `uri`. Every method raises ConfigError or StorageError in the user's words."""

    uri: str
    sent: Sent

    def read(self, name: str) -> tuple[bytes, str] | None:
        """Return a small object and a tag of its content; None where there is none."""

    def create(self, name: str, content: bytes) -> bool:
        """Put a small object where there is none; False where there is one."""

    def replace(self, name: str, content: bytes, *, tag: str) -> bool:
        """Put a small object in the place of the one with this tag; False where it has another by now."""

    def upload(self, path: Path, name: str, *, sha256: str) -> None:
        """Have the file there, and see that it arrived; what is there already is not sent again.

        Raises:
            TrustError: the file has another digest.
        """

    def chunks(self, name: str) -> Iterator[bytes]:
        """Read an object bit by bit. Raises MissingError where there is none."""

    def find(self, name: str) -> Entry | None:
        """Return what is known of an object."""

    def entries(self, prefix: str) -> Iterator[Entry]:
        """Return the objects whose names begin so."""

    def delete(self, name: str) -> None:
        """Delete an object, if it is there."""

    def unfinished(self) -> Iterator[Entry]:
        """Return uploads that were begun and not finished."""

    def abandon(self, entry: Entry) -> None:
        """Give up such an upload and free its space."""


def open_objects(uri: str, settings: Settings | None = None) -> Objects:
    """Return the objects at s3://BUCKET/PREFIX, file:///FOLDER or a plain path; nothing is read yet.

    Raises:
        ConfigError: it is no such address.
    """
    scheme, separator, rest = uri.partition("://")
    if separator and scheme == "s3":
        from train.objects.s3 import S3Objects

        return S3Objects(uri, settings or Settings())
    if separator and (scheme != "file" or not rest.startswith("/")):
        raise ConfigError(f"the place must be s3://BUCKET/PREFIX, file:///FOLDER or a plain path; got {uri!r}")
    if not uri or uri == "file:///":
        raise ConfigError(f"the place must name a folder or a bucket; got {uri!r}")
    from train.objects.local import LocalObjects

    return LocalObjects(Path(unquote(urlsplit(uri).path)) if separator else Path(uri).expanduser())
