"""What lies where in a registry, and one version of it.

blobs/<sha256>            files of bundles, each once however many versions have it
signatures/<sha256>.sig   of the manifest with this digest
v1/manifest.json          put last and only where there is none: a version is whole or not there
latest.json               a pointer, and production.json
"""

import re
from dataclasses import dataclass
from typing import Any

from train.errors import ConfigError, TrustError
from train.keys import Trusted
from train.manifest import MANIFEST, digest, verified_manifest
from train.objects.place import Objects
from train.registry import pointers

_NAME = re.compile(r"v([1-9][0-9]{0,8})")


@dataclass(frozen=True)
class Version:
    """One version: its number, and the bytes of its manifest."""

    number: int
    manifest: bytes

    def __str__(self) -> str:
        return f"v{self.number}"

    @property
    def sha256(self) -> str:
        """The digest of the manifest."""
        return digest(self.manifest)


def blob(facts: dict[str, Any]) -> str:
    """Return where a file lies, given what a manifest says of it."""
    return f"blobs/{facts['sha256']}"


def signature_name(manifest_sha256: str) -> str:
    """Return where the signature of a manifest lies."""
    return f"signatures/{manifest_sha256}.sig"


def manifest_name(number: int) -> str:
    """Return where the manifest of a version lies."""
    return f"v{number}/{MANIFEST}"


def numbers(objects: Objects) -> list[int]:
    """Return the numbers of all versions, oldest first."""
    folders = (entry.name.removesuffix(f"/{MANIFEST}") for entry in objects.entries("v") if MANIFEST in entry.name)
    return sorted(int(match[1]) for match in map(_NAME.fullmatch, folders) if match)


def read(objects: Objects, number: int) -> Version | None:
    """Return a version; None where there is none."""
    found = objects.read(manifest_name(number))
    return found and Version(number, found[0])


def find(objects: Objects, wanted: str) -> Version:
    """Return the version that a name such as v3, or a pointer, names.

    Raises:
        ConfigError: there is no such version or pointer.
        TrustError: a pointer names a version whose manifest is another by now.
    """
    if match := _NAME.fullmatch(wanted):
        version = read(objects, int(match[1]))
        if version is None:
            raise ConfigError(f"unknown version {wanted} in {objects.uri}: {_known(objects)}")
        return version
    if wanted not in pointers.NAMES:
        names = " or ".join(pointers.NAMES)
        raise ConfigError(f"a version is named v1, v2 and so on, or by a pointer, {names}; got {wanted!r}")
    pointer = pointers.read(objects, wanted)
    if pointer is None:
        raise ConfigError(f"{objects.uri} has no {wanted}: {_known(objects)}")
    version = find(objects, pointer.version)
    if version.sha256 != pointer.manifest_sha256:
        raise TrustError(f"{objects.uri}: {wanted} points at another manifest than that of {version}: it was changed")
    return version


def verified(objects: Objects, version: Version, trusted: Trusted, *, allow_unsigned: bool = False) -> dict[str, Any]:
    """Return what a version's manifest says. Raises TrustError unless a trusted key signed it."""
    source = f"{version} of {objects.uri}"
    return verified_manifest(version.manifest, signature(objects, version), trusted, allow_unsigned, source=source)


def signature(objects: Objects, version: Version) -> bytes | None:
    """Return a version's signature; None where it has none."""
    found = objects.read(signature_name(version.sha256))
    return found[0] or None if found else None


def _known(objects: Objects) -> str:
    found = numbers(objects)
    if not found:
        return "nothing is published there"
    return "it has v1" if found == [1] else f"it has v{found[0]} to v{found[-1]}"
