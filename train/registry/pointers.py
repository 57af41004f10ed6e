"""The pointers `latest` and `production`: which version, and which before it; moved by compare-and-set."""

import json
import random
import re
import time
from collections.abc import Callable
from dataclasses import dataclass

from train.errors import ConfigError, StorageError, TrustError
from train.manifest import canonical
from train.objects.place import Objects

NAMES = ("latest", "production")
_ATTEMPTS = 100  # each is lost only to another's success
_REFUSED = 5  # times in a row, with nothing changed
_LONGEST_HISTORY = 100
_VERSION, _DIGEST = re.compile(r"v[1-9][0-9]{0,8}"), re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Pointer:
    """Where a pointer points, and where it pointed before, oldest first, by version and its manifest's digest."""

    version: str
    manifest_sha256: str
    history: tuple[tuple[str, str], ...] = ()

    @property
    def number(self) -> int:
        """The number of the version."""
        return int(self.version[1:])

    def moved(self, version: str, manifest_sha256: str) -> "Pointer":
        """Return the pointer after it was moved."""
        history = (*self.history, (self.version, self.manifest_sha256))[-_LONGEST_HISTORY:]
        return Pointer(version, manifest_sha256, history)

    def rolled_back(self) -> "Pointer":
        """Return the pointer as it was before; its history must not be empty."""
        return Pointer(*self.history[-1], self.history[:-1])

    def content(self) -> bytes:
        """Return it as an object."""
        history = [{"version": version, "manifest_sha256": digest} for version, digest in self.history]
        return canonical({"version": self.version, "manifest_sha256": self.manifest_sha256, "history": history})


def read(objects: Objects, name: str) -> Pointer | None:
    """Return a pointer; None where there is none. Raises TrustError where what is there is none."""
    found = objects.read(f"{name}.json")
    return found and _parsed(found[0], f"{objects.uri}/{name}.json")


def move(objects: Objects, name: str, version: str, manifest_sha256: str, *, only_forward: bool = False) -> Pointer:
    """Point at a version, and return the pointer; with `only_forward` not if it points at a later one already."""

    def change(pointer: Pointer | None) -> Pointer:
        if pointer is None:
            return Pointer(version, manifest_sha256)
        if (pointer.version, pointer.manifest_sha256) == (version, manifest_sha256):
            return pointer
        if only_forward and pointer.number > int(version[1:]):
            return pointer
        return pointer.moved(version, manifest_sha256)

    return _change(objects, name, change)


def roll_back(objects: Objects, name: str) -> Pointer:
    """Point at the version before; return the pointer.

    Raises:
        ConfigError: there is none.
    """
    before = read(objects, name)
    if before is None or not before.history:
        raise ConfigError(f"{name} of {objects.uri} has no version before: nothing to roll back to")

    def change(pointer: Pointer | None) -> Pointer:
        if pointer not in (before, before.rolled_back()):
            raise ConfigError(f"{name} of {objects.uri} was moved by another meanwhile: look at it, and try again")
        return before.rolled_back()

    return _change(objects, name, change)


def _change(objects: Objects, name: str, change: Callable[[Pointer | None], Pointer]) -> Pointer:
    document, refused = f"{name}.json", 0
    last: tuple[bytes, str] | None = None
    for attempt in range(_ATTEMPTS):
        found = objects.read(document)
        before = found and _parsed(found[0], f"{objects.uri}/{document}")
        after = change(before)
        if after == before or _put(objects, document, after.content(), found):
            return after
        refused = refused + 1 if found == last else 0
        if refused == _REFUSED:
            raise ConfigError(
                f"{objects.uri}/{document} cannot be changed by comparing (If-Match) though nobody else changes it. "
                "Use a store that knows conditional puts; Ceph 16 knows them in buckets without versioning only."
            )
        last = found
        time.sleep(random.uniform(0, min(1.0, 0.02 * 2 ** min(attempt, 6))))
    raise StorageError(f"{objects.uri}/{document} was changed by others {_ATTEMPTS} times in between: try again")


def _put(objects: Objects, name: str, content: bytes, found: tuple[bytes, str] | None) -> bool:
    return objects.create(name, content) if found is None else objects.replace(name, content, tag=found[1])


def _parsed(content: bytes, place: str) -> Pointer:
    try:
        parsed = json.loads(content)
        history = tuple((each["version"], each["manifest_sha256"]) for each in parsed["history"])
        pointer = Pointer(parsed["version"], parsed["manifest_sha256"], history)
        for version, digest in (*history, (pointer.version, pointer.manifest_sha256)):
            if not (_VERSION.fullmatch(version) and _DIGEST.fullmatch(digest)):
                raise ValueError("no version or digest")
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise TrustError(f"{place} is no pointer: it was changed ({error!r}). Delete it, and promote again") from error
    return pointer
