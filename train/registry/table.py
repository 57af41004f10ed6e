"""The versions of a registry as a table for the screen."""

import time

from train.errors import TrustError
from train.keys import Trusted
from train.objects.place import Objects
from train.registry import pointers, versions


def overview(objects: Objects, trusted: Trusted, *, allow_unsigned: bool = False) -> str:
    """Return a line a version: what it is, who signed it, when it came, which pointers point at it."""
    rows = [("version", "run", "files", "bytes", "key", "published", "")]
    at = {name: pointers.read(objects, name) for name in pointers.NAMES}
    for number in versions.numbers(objects):
        version, entry = versions.read(objects, number), objects.find(versions.manifest_name(number))
        if version is None or entry is None:  # deleted by hand since it was listed
            continue
        names = [name for name, pointer in at.items() if pointer and pointer.version == str(version)]
        published = time.strftime("%Y-%m-%d %H:%M", time.localtime(entry.modified))
        try:
            manifest = versions.verified(objects, version, trusted, allow_unsigned=allow_unsigned)
        except TrustError:
            rows.append((str(version), "-", "-", "-", "NOT TRUSTED", published, ", ".join(names)))
            continue
        size = sum(facts["size"] for facts in manifest["files"].values())
        facts = (str(manifest.get("run", "-")), str(len(manifest["files"])), f"{size:,}")
        rows.append((str(version), *facts, manifest["key_id"] or "unsigned", published, ", ".join(names)))
    if len(rows) == 1:
        return f"nothing is published in {objects.uri}"
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)
