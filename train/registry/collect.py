"""Give back the space of what no version has: files of publishers that ended, unfinished uploads."""

import json
import time
from collections.abc import Iterator

from train.errors import StorageError
from train.objects.place import Entry, Objects
from train.registry import versions


def collect(objects: Objects, *, older_than_seconds: float, dry_run: bool = False) -> list[Entry]:
    """Delete what no version names and is older, and return it; with `dry_run` only return it.

    A publisher at work has files that no version names yet: `older_than_seconds` must be longer than it works.

    Raises:
        StorageError: the manifest of a version cannot be read, so that nothing was deleted.
    """
    before = time.time() - older_than_seconds
    # Files are listed first: a version that comes after names files that are too young, or were made new.
    candidates = [entry for prefix in ("blobs/", "signatures/") for entry in objects.entries(prefix)]
    wanted = _wanted(objects)
    forgotten = [entry for entry in candidates if entry.name not in wanted and entry.modified < before]
    unfinished = [entry for entry in objects.unfinished() if entry.modified < before]
    if not dry_run:
        forgotten = list(_delete(objects, forgotten, before))
        for entry in unfinished:
            objects.abandon(entry)
    return [*forgotten, *unfinished]


def _wanted(objects: Objects) -> set[str]:
    wanted = set()
    for number in versions.numbers(objects):
        version = versions.read(objects, number)
        if version is None:  # deleted by hand since it was listed
            continue
        wanted.add(versions.signature_name(version.sha256))
        wanted |= {versions.blob(facts) for facts in _files(objects, version)}
    return wanted


def _files(objects: Objects, version: versions.Version) -> list[dict[str, str]]:
    """What a manifest names, whoever signed it."""
    try:
        return [{"sha256": str(facts["sha256"])} for facts in json.loads(version.manifest)["files"].values()]
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise StorageError(
            f"nothing was deleted: the manifest of {version} in {objects.uri} is damaged, and cannot say what it needs"
        ) from error


def _delete(objects: Objects, entries: list[Entry], before: float) -> Iterator[Entry]:
    for entry in entries:
        again = objects.find(entry.name)
        if again is not None and again.modified < before:  # not if a publisher has made it new meanwhile
            objects.delete(entry.name)
            yield entry
