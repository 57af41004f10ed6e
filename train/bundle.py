"""A bundle: a flat folder of files, a manifest with the SHA-256 of each, and a signature over the manifest.

manifest.json is canonical JSON; manifest.sig is an Ed25519 signature over exactly its bytes. Nothing of a folder is
believed before it is verified, and what is handed out are the very bytes that were.
"""

import hashlib
import os
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from io import BufferedReader
from pathlib import Path
from typing import Any

from train.envelope import Envelope
from train.errors import ConfigError, StorageError, TrustError
from train.keys import SigningKey, Trusted
from train.manifest import (
    FORMAT,
    MANIFEST,
    MOST_BYTES,
    MOST_FILES,
    SIGNATURE,
    believed,
    canonical,
    digest,
    explaining,
    is_safe_name,
    manifest_of,
    shown,
    signature_of,
    verified_manifest,
)

__all__ = [
    "MANIFEST",
    "SIGNATURE",
    "Bundle",
    "canonical",
    "digest",
    "open_bundle",
    "verified_manifest",
    "verify",
    "write",
]


@dataclass(frozen=True)
class Bundle:
    """A bundle that was verified.

    Attributes:
        manifest: what its manifest says.
    """

    manifest: Mapping[str, Any]
    _contents: Mapping[str, bytes] = field(repr=False)

    @property
    def names(self) -> list[str]:
        """The names of its files, without the manifest and the signature."""
        return sorted(self.manifest["files"])

    def read(self, name: str) -> bytes:
        """Return the content of a file as it was verified, and decrypted.

        Raises:
            ConfigError: there is no such file, or the bundle is encrypted and was opened without its master key.
        """
        if name not in self.manifest["files"]:
            raise ConfigError(f"the bundle has no file {name!r}; it has {', '.join(self.names)}")
        if name not in self._contents:
            raise ConfigError(f"the bundle is encrypted, with {shown(self.manifest['encryption']['master'])}: give it")
        return self._contents[name]


def write(folder: Path, about: Mapping[str, Any], *, key: SigningKey | None, envelope: Envelope | None = None) -> Path:
    """Make a bundle of the files in `folder`; return the folder.

    Without an envelope the same files and `about` give the same bytes. With one, each file is replaced by its
    ciphertext. The manifest comes last.

    Args:
        folder: the files, and nothing else.
        about: what the manifest says besides the files: `name`, `run`, and what else there is to say, in JSON.
        key: what signs it; a bundle without a signature is opened only where that is asked for.
        envelope: what encrypts it.

    Raises:
        ConfigError: the folder is a bundle already, or holds what cannot be in one.
        StorageError: it cannot be written.
    """
    try:
        names = _files_to_bundle(folder)
        manifest = {**about, "format": FORMAT, "key_id": key.key_id if key else None}
        manifest["encryption"] = envelope.encrypt_files(folder, names) if envelope else None
        manifest["files"] = {name: _measured(folder / name) for name in names}
        content = _valid(manifest, folder)
        if key is not None:
            _put(folder / SIGNATURE, signature_of(content, key))
        _put(folder / MANIFEST, content)
    except OSError as error:
        raise StorageError(f"could not write the bundle {folder}: {error}") from error
    return folder


def open_bundle(
    folder: Path, *, trusted: Trusted, envelope: Envelope | None = None, allow_unsigned: bool = False
) -> Bundle:
    """Verify a bundle wholly and return it, its files in memory.

    Without an envelope an encrypted bundle is verified but cannot be read.

    Raises:
        TrustError: it is not wholly what a trusted key signed, whatever is wrong with it; or it was encrypted with
            another master key.
        ConfigError, StorageError: AWS KMS does not let us decrypt, or is away.
    """
    contents: dict[str, bytes] = {}
    with explaining(str(folder)):
        manifest = _manifest(folder, trusted, allow_unsigned)
        encryption = manifest["encryption"]
        for name, facts in manifest["files"].items():
            content = _read(folder / name, facts["size"])
            _compare(name, facts, len(content), digest(content))
            if encryption is None:
                contents[name] = content
            elif envelope is not None:
                contents[name] = envelope.decrypt(content, name, encryption)
    return Bundle(manifest, contents)


def verify(folder: Path, *, trusted: Trusted, allow_unsigned: bool = False) -> dict[str, Any]:
    """Verify a bundle as `open_bundle` does, in constant memory; return the manifest."""
    with explaining(str(folder)):
        manifest = _manifest(folder, trusted, allow_unsigned)
        for name, facts in manifest["files"].items():
            with _plain_file(folder / name, facts["size"]) as file:
                sha256 = hashlib.file_digest(file, "sha256").hexdigest()
                _compare(name, facts, file.tell(), sha256)
    return manifest


# Writing


def _files_to_bundle(folder: Path) -> list[str]:
    names = sorted(entry.name for entry in os.scandir(folder))
    if MANIFEST in names or SIGNATURE in names:
        raise ConfigError(f"{folder} is a bundle already: bundle the files in a new folder")
    for name in names:
        if not is_safe_name(name) or (folder / name).is_symlink() or not (folder / name).is_file():
            raise ConfigError(
                f"{folder} cannot be a bundle with {shown(name)} in it: only plain files, named with letters, digits, "
                "'.', '_' and '-', at most 100, first a letter or digit"
            )
    if not names:
        raise ConfigError(f"{folder} has no files to bundle")
    return names


def _measured(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        return {"sha256": sha256, "size": file.tell()}


def _valid(manifest: Mapping[str, Any], folder: Path) -> bytes:
    """The bytes of a manifest that will be believed."""
    try:
        content = canonical(manifest)
        manifest_of(content)
    except (TypeError, ValueError, TrustError) as error:
        raise ConfigError(f"{folder} cannot be a bundle: {error}") from error
    return content


def _put(path: Path, content: bytes) -> None:
    aside = path.with_name(f".{path.name}.tmp")
    with aside.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(aside, path)


# Reading


def _manifest(folder: Path, trusted: Trusted, allow_unsigned: bool) -> dict[str, Any]:
    """The believed manifest of a folder that has the files which it names, and no others."""
    present = _entries(folder)
    if MANIFEST not in present:
        raise TrustError("it has no manifest.json, so that it is no bundle or not a whole one")
    signature = _read(folder / SIGNATURE, MOST_BYTES[SIGNATURE]) if SIGNATURE in present else None
    manifest = believed(_read(folder / MANIFEST, MOST_BYTES[MANIFEST]), signature, trusted, allow_unsigned)
    present, listed = present - {MANIFEST, SIGNATURE}, set(manifest["files"])
    if present - listed:
        raise TrustError(f"{shown(min(present - listed))} in it is not in its manifest")
    if listed - present:
        raise TrustError(f"{shown(min(listed - present))} is missing")
    return manifest


def _entries(folder: Path) -> set[str]:
    names = set()
    with os.scandir(folder) as entries:
        for entry in entries:
            if not entry.is_file(follow_symlinks=False):
                raise TrustError(f"{shown(entry.name)} in it is no plain file")
            names.add(entry.name)
            if len(names) > MOST_FILES + len(MOST_BYTES):
                raise TrustError(f"it has more than {MOST_FILES} files")
    return names


def _compare(name: str, facts: Mapping[str, Any], size: int, sha256: str) -> None:
    if size != facts["size"]:
        raise TrustError(f"{name} has {size:,} bytes and not the {facts['size']:,} of its manifest")
    if sha256 != facts["sha256"]:
        raise TrustError(f"{name} was changed: its SHA-256 is not that of its manifest")


def _read(path: Path, most: int) -> bytes:
    with _plain_file(path, most) as file:
        return file.read(most)


@contextmanager
def _plain_file(path: Path, most: int) -> Iterator[BufferedReader]:
    """Open a file to be read once; a link or pipe put there since the folder was listed is refused."""
    with os.fdopen(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK), "rb") as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise TrustError(f"{path.name} in it is no plain file")
        if status.st_size > most:
            raise TrustError(f"{path.name} has {status.st_size:,} bytes, more than the {most:,} that it may have")
        yield file
