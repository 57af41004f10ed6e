"""A bundle's manifest and signature: one way to write them; whatever breaks a rule is refused before it is used."""

import base64
import hashlib
import json
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from train.errors import TrustError
from train.keys import SigningKey, Trusted

MANIFEST, SIGNATURE = "manifest.json", "manifest.sig"
MOST_BYTES = {MANIFEST: 4 * 2**20, SIGNATURE: 4_096}
MOST_FILES = 1_000
MOST_LEVELS = 20  # of JSON, so that none of those who read it runs out of stack
FORMAT = 1
ALGORITHM = "Ed25519"
_REQUIRED = {"format", "name", "run", "files", "key_id", "encryption"}
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_DIGEST = re.compile(r"[0-9a-f]{64}")


def canonical(content: Mapping[str, Any]) -> bytes:
    """Return the one JSON that says so: sorted keys, no spaces, UTF-8, a newline at the end."""
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return text.encode() + b"\n"


def digest(content: bytes) -> str:
    """Return the SHA-256 in hex."""
    return hashlib.sha256(content).hexdigest()


def is_safe_name(name: object) -> bool:
    """Whether a file in a bundle may be called so: one component of a path, nothing odd, and not manifest.*."""
    return isinstance(name, str) and bool(_NAME.fullmatch(name)) and not name.lower().startswith("manifest.")


def shown(text: str) -> str:
    """Return a text of unknown origin as it may go to a screen: quoted, without control characters, not long."""
    return ascii(text if len(text) <= 120 else text[:120] + "...")


def parsed(content: bytes, name: str) -> dict[str, Any]:
    """Return the object in manifest.json or manifest.sig, which must be canonical: it reads in one way only.

    Raises:
        TrustError: it is not so.
    """
    if len(content) > MOST_BYTES[name]:
        raise TrustError(f"{name} has {len(content):,} bytes, more than {MOST_BYTES[name]:,}")
    try:
        found = json.loads(content.decode())
        is_canonical = isinstance(found, dict) and canonical(found) == content and not _is_deep(found, MOST_LEVELS)
    except (ValueError, RecursionError):  # no UTF-8, no JSON, NaN, half a surrogate pair, a number without end, deep
        is_canonical = False
    if not is_canonical:
        raise TrustError(f"{name} is no JSON object in canonical form of at most {MOST_LEVELS} levels")
    return dict(found)


def manifest_of(content: bytes) -> dict[str, Any]:
    """Return what manifest.json says.

    Raises:
        TrustError: it breaks a rule.
    """
    manifest = parsed(content, MANIFEST)
    if missing := _REQUIRED - set(manifest):
        raise TrustError(f"its manifest has no {min(missing)!r}")
    for field, is_right in _FIELDS.items():
        if not is_right(manifest.get(field)):
            raise TrustError(f"{field!r} in its manifest has a wrong form")
    for name, facts in manifest["files"].items():
        if not is_safe_name(name):
            raise TrustError(f"its manifest has the file name {shown(name)}, which is not safe")
        if not _is_facts(facts):
            raise TrustError(f"its manifest must have sha256 and size of {name}, and nothing else")
    if len({name.lower() for name in manifest["files"]}) < len(manifest["files"]):
        raise TrustError("its manifest has two file names that some file systems take for one")
    if manifest["encryption"] is not None and set(manifest["encryption"]["keys"]) != set(manifest["files"]):
        raise TrustError("its manifest must have one wrapped key for each file")
    return manifest


def verified_manifest(
    manifest: bytes,
    signature: bytes | None,
    trusted: Trusted,
    allow_unsigned: bool = False,
    *,
    source: str = "the bundle",
) -> dict[str, Any]:
    """Return what a manifest says if a trusted key signed it and it keeps the rules.

    Args:
        manifest: the bytes of manifest.json.
        signature: those of manifest.sig.
        trusted: the keys that are believed.
        allow_unsigned: believe one without a signature; one that is there must be good all the same.
        source: what the error calls it.

    Raises:
        TrustError: it is not so.
    """
    with explaining(source):
        return believed(manifest, signature, trusted, allow_unsigned)


def believed(manifest: bytes, signature: bytes | None, trusted: Trusted, allow_unsigned: bool) -> dict[str, Any]:
    """Return what a manifest says, as `verified_manifest`; the error does not name the bundle.

    Nothing of the manifest is parsed before its signature is verified.
    """
    identity = None
    if signature is not None:
        identity = _signer(manifest, signature, trusted)
    elif not allow_unsigned:
        raise TrustError("it has no signature (manifest.sig)")
    content = manifest_of(manifest)
    if content["key_id"] != identity:
        raise TrustError(f"its manifest names the key {shown(str(content['key_id']))}, its signature {identity!r}")
    return content


def _signer(manifest: bytes, signature: bytes, trusted: Trusted) -> str:
    said = parsed(signature, SIGNATURE)
    if set(said) != {"key_id", "algorithm", "signature"} or not all(isinstance(text, str) for text in said.values()):
        raise TrustError("manifest.sig must have the texts key_id, algorithm and signature")
    if said["algorithm"] != ALGORITHM:
        raise TrustError(f"manifest.sig must be by {ALGORITHM}, not by {shown(said['algorithm'])}")
    try:
        raw = base64.b64decode(said["signature"], validate=True)
    except ValueError:
        raise TrustError("the signature in manifest.sig is no base64") from None
    trusted.verify(said["key_id"], raw, manifest)
    return str(said["key_id"])


def signature_of(content: bytes, key: SigningKey) -> bytes:
    """Return the bytes of manifest.sig for those of manifest.json."""
    signature = base64.b64encode(key.sign(content)).decode()
    return canonical({"key_id": key.key_id, "algorithm": ALGORITHM, "signature": signature})


@contextmanager
def explaining(source: str) -> Iterator[None]:
    """Say what cannot be trusted; that goes for what the system does not let us read, too."""
    try:
        yield
    except TrustError as error:
        raise TrustError(f"{source} cannot be trusted: {error}") from error.__cause__
    except (OSError, MemoryError) as error:
        raise TrustError(f"{source} cannot be trusted: it cannot be read ({error})") from error


def _is_deep(value: Any, levels: int) -> bool:
    children = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return levels < 0 or any(_is_deep(child, levels - 1) for child in children)


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and 0 < len(value) <= 400


def _is_facts(facts: Any) -> bool:
    if not isinstance(facts, dict) or set(facts) != {"sha256", "size"}:
        return False
    is_size = type(facts["size"]) is int and 0 <= facts["size"] < 2**50  # True is no size
    return is_size and isinstance(facts["sha256"], str) and bool(_DIGEST.fullmatch(facts["sha256"]))


def _is_encryption(value: Any) -> bool:
    if not isinstance(value, dict) or set(value) != {"scheme", "master", "keys"}:
        return False
    keys = value["keys"]
    has_texts = _is_text(value["scheme"]) and _is_text(value["master"]) and isinstance(keys, dict)
    return has_texts and all(isinstance(key, str) for key in keys.values())


_FIELDS: Mapping[str, Callable[[Any], bool]] = {
    "format": lambda value: type(value) is int and value == FORMAT,
    "name": _is_text,
    "run": _is_text,
    "data_fingerprint": lambda value: value is None or _is_text(value),
    "config_sha256": lambda value: value is None or _is_text(value),
    "graphs": lambda value: value is None or isinstance(value, dict),
    "files": lambda value: isinstance(value, dict) and 0 < len(value) <= MOST_FILES,
    "key_id": lambda value: value is None or _is_text(value),
    "encryption": lambda value: value is None or _is_encryption(value),
}
