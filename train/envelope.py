"""Encryption of a bundle's files: a data key for each, wrapped by a master key, which is a file or lies in AWS KMS.

A file is AES-256-GCM in chunks of 1 MiB by STREAM (Hoang, Reyhanitabar, Rogaway and Vizard, "Online
authenticated-encryption and its nonce-reuse misuse-resistance", CRYPTO 2015), laid out as in RustCrypto's StreamBE32:
the nonce of a chunk is a random prefix of 7 bytes, the chunk's number in 4 bytes and 1 in the last byte of the last
chunk. A changed, lost, doubled or reordered chunk and an end cut off are refused. The header and the file's name are
associated data, so that files cannot be swapped.
"""

import base64
import hashlib
import hmac
import os
import secrets
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, Protocol

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from train import kms
from train.errors import TrustError
from train.key_files import master_key

SCHEME = "STREAM-AES-256-GCM-1MiB"
MAGIC = b"FCSTREAM1"
CHUNK = 2**20
_PREFIX, _NONCE, _TAG, _KEY = 7, 12, 16, 32
_HEADER = len(MAGIC) + _PREFIX


class Master(Protocol):
    """What wraps data keys.

    Attributes:
        reference: what a manifest calls it.
    """

    reference: str

    def new_data_key(self, name: str) -> tuple[bytes, bytes]:
        """Return a new key for the file `name`, and that key wrapped."""

    def unwrap(self, wrapped: bytes, name: str) -> bytes:
        """Return the key of the file `name`. Raises TrustError if we did not wrap it for that."""


class KeyFile:
    """A master key of 32 bytes that wraps with AES-256-GCM; it shows its id, and nothing of the secret."""

    def __init__(self, key: bytes) -> None:
        self._cipher = AESGCM(key)
        self.reference = "key:" + hmac.digest(key, b"fullcycle master key id", hashlib.sha256).hex()[:16]

    def __repr__(self) -> str:
        return f"KeyFile({self.reference})"

    def new_data_key(self, name: str) -> tuple[bytes, bytes]:
        """Return a new key for the file `name`, and that key wrapped."""
        key, nonce = secrets.token_bytes(_KEY), secrets.token_bytes(_NONCE)
        return key, nonce + self._cipher.encrypt(nonce, key, _purpose(name))

    def unwrap(self, wrapped: bytes, name: str) -> bytes:
        """Return the key of the file `name`. Raises TrustError if this key did not wrap it for that."""
        if len(wrapped) != _NONCE + _KEY + _TAG:
            raise TrustError(f"the wrapped key of {name} has {len(wrapped)} bytes, not {_NONCE + _KEY + _TAG}")
        try:
            return self._cipher.decrypt(wrapped[:_NONCE], wrapped[_NONCE:], _purpose(name))
        except InvalidTag:
            raise TrustError(
                f"the wrapped key of {name} is not one that the master key {self.reference} made"
            ) from None


def _purpose(name: str) -> bytes:
    return b"fullcycle data key of " + name.encode()


class Envelope:
    """Encrypts and decrypts the files of bundles under one master key."""

    def __init__(self, master: Master) -> None:
        self.master = master

    def __repr__(self) -> str:
        return f"Envelope({self.master.reference})"

    def encrypt_files(self, folder: Path, names: Sequence[str]) -> dict[str, Any]:
        """Replace each file by its ciphertext, in constant memory; return what the manifest says of it."""
        keys = {name: self.master.new_data_key(name) for name in names}  # all, before a file is touched
        for name, (key, _) in keys.items():
            _encrypt(folder / name, AESGCM(key))
        wrapped = {name: base64.b64encode(wrapped).decode() for name, (_, wrapped) in keys.items()}
        return {"scheme": SCHEME, "master": self.master.reference, "keys": wrapped}

    def decrypt(self, content: bytes, name: str, encryption: Mapping[str, Any]) -> bytes:
        """Return the plaintext of a file, the manifest's `encryption` at hand.

        Raises:
            TrustError: another master key or another way, or the ciphertext is not wholly as it was made.
        """
        if encryption["scheme"] != SCHEME:
            raise TrustError(f"it is encrypted by {encryption['scheme']!a}; this version knows {SCHEME}")
        is_kms = encryption["master"].startswith(kms.SCHEME) and self.master.reference.startswith(kms.SCHEME)
        if encryption["master"] != self.master.reference and not is_kms:  # a key of KMS has several names
            made, here = encryption["master"], self.master.reference
            raise TrustError(f"it is encrypted with {made!a}, and the key here is {here}")
        try:
            wrapped = base64.b64decode(encryption["keys"][name], validate=True)
        except ValueError:
            raise TrustError(f"the wrapped key of {name} is no base64") from None
        return b"".join(_opened(content, name, AESGCM(self.master.unwrap(wrapped, name))))


def envelope_of(master: str | Path | None = None) -> Envelope:
    """Return the envelope of a master key.

    Args:
        master: kms://KEY_ID, or a key file; None: FULLCYCLE_MASTER_KEY, or the key file at its default place.

    Raises:
        ConfigError: there is no such key.
        TrustError: others can read the key file.
    """
    if isinstance(master, str) and master.startswith(kms.SCHEME):
        return Envelope(kms.Kms(master))
    return Envelope(KeyFile(master_key(master)))


def _encrypt(path: Path, cipher: AESGCM) -> None:
    aside = path.with_name(f".{path.name}.tmp")
    try:
        with path.open("rb") as source, aside.open("wb") as target:
            for piece in _sealed(source, path.name, cipher):
                target.write(piece)
            target.flush()
            os.fsync(target.fileno())
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)


def _sealed(source: IO[bytes], name: str, cipher: AESGCM) -> Iterator[bytes]:
    prefix = secrets.token_bytes(_PREFIX)
    header = MAGIC + prefix
    yield header
    chunk, number, is_last = source.read(CHUNK), 0, False
    while not is_last:
        following = source.read(CHUNK)
        is_last = not following
        yield cipher.encrypt(_nonce(prefix, number, is_last), chunk, header + name.encode())
        chunk, number = following, number + 1


def _opened(content: bytes, name: str, cipher: AESGCM) -> Iterator[bytes]:
    header, whole = content[:_HEADER], CHUNK + _TAG
    if len(content) < _HEADER + _TAG or not header.startswith(MAGIC):
        raise TrustError(f"{name} is not encrypted as its manifest says")
    starts = range(_HEADER, len(content), whole)
    for number, start in enumerate(starts):
        nonce = _nonce(header[len(MAGIC) :], number, number + 1 == len(starts))
        try:
            yield cipher.decrypt(nonce, content[start : start + whole], header + name.encode())
        except InvalidTag:
            raise TrustError(f"{name} does not decrypt: it is not wholly what was encrypted under that name") from None


def _nonce(prefix: bytes, number: int, is_last: bool) -> bytes:
    return prefix + number.to_bytes(4, "big") + bytes([is_last])
