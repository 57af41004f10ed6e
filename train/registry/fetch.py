"""Get a version out of a registry, verified before it has its name."""

import hashlib
import os
import secrets
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from train import bundle
from train.errors import ConfigError, StorageError, TrustError
from train.keys import Trusted, trusted_keys
from train.manifest import MANIFEST, SIGNATURE
from train.objects.local import sync_folder
from train.objects.place import MissingError, Objects, Settings, open_objects
from train.registry import versions
from train.registry.versions import Version


def fetch(
    uri: str,
    version: str,
    output: Path,
    trusted: Trusted | None = None,
    *,
    settings: Settings | None = None,
    allow_unsigned: bool = False,
) -> Path:
    """Have a version as the folder `output`, and return that; one that is there already is verified again.

    Args:
        uri: s3://BUCKET/PREFIX, file:///FOLDER or a plain path.
        version: v1, v2 and so on, or `latest` or `production`.
        output: a folder that is not there, or empty.
        trusted: the keys that may have signed it; by default those trusted here.
        settings: how an object store is spoken to.
        allow_unsigned: take one without a signature.

    Raises:
        ConfigError: there is no such version, or `output` is something else.
        TrustError: a trusted key did not sign it, or a file of it is not what was signed.
        StorageError: the store is away, or `output` cannot be written.
    """
    objects, trusted = open_objects(uri, settings), trusted or trusted_keys()
    found = versions.find(objects, version)
    manifest = versions.verified(objects, found, trusted, allow_unsigned=allow_unsigned)
    with _writing(output):
        if output.exists() and (not output.is_dir() or any(output.iterdir())):
            _refuse_another(output, found)
        else:
            _download(objects, found, manifest, output)
    bundle.verify(output, trusted=trusted, allow_unsigned=allow_unsigned)
    return output


def check(objects: Objects, version: Version, trusted: Trusted, *, allow_unsigned: bool = False) -> int:
    """Read the whole of a version and return its bytes. Raises TrustError unless it is what a trusted key signed."""
    manifest = versions.verified(objects, version, trusted, allow_unsigned=allow_unsigned)
    for name, facts in sorted(manifest["files"].items()):
        _read(objects, version, name, facts, lambda chunk: None)
    return sum(facts["size"] for facts in manifest["files"].values())


def _refuse_another(output: Path, version: Version) -> None:
    manifest = output / MANIFEST
    if not manifest.is_file() or manifest.read_bytes() != version.manifest:
        raise ConfigError(f"output: {str(output)!r} is there already and is not {version}: give another name")


def _download(objects: Objects, version: Version, manifest: dict[str, Any], output: Path) -> None:
    aside = output.absolute().with_name(f".{output.absolute().name}.{secrets.token_hex(4)}.fetch")
    aside.mkdir(parents=True)
    try:
        for name, facts in sorted(manifest["files"].items()):
            _write(aside / name, partial(_read, objects, version, name, facts))
        if (signature := versions.signature(objects, version)) is not None:
            _write(aside / SIGNATURE, lambda write: write(signature))
        _write(aside / MANIFEST, lambda write: write(version.manifest))
        os.replace(aside, output)
        sync_folder(output.absolute().parent)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _read(
    objects: Objects, version: Version, name: str, facts: dict[str, Any], write: Callable[[bytes], object]
) -> None:
    """Hand on a file's bytes while they are read; TrustError if they were not those of the manifest."""
    place = f"{name} of {version} in {objects.uri} ({versions.blob(facts)})"
    digest, size = hashlib.sha256(), 0
    try:
        for chunk in objects.chunks(versions.blob(facts)):
            size += len(chunk)
            if size > facts["size"]:
                break
            digest.update(chunk)
            write(chunk)
    except MissingError as error:
        raise TrustError(f"{place} is not there: the version is not whole") from error
    if size != facts["size"] or digest.hexdigest() != facts["sha256"]:
        raise TrustError(f"{place} was changed: it is not what the manifest names")


def _write(path: Path, fill: Callable[[Callable[[bytes], object]], object]) -> None:
    with path.open("xb") as file:
        fill(file.write)
        file.flush()
        os.fsync(file.fileno())


@contextmanager
def _writing(output: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StorageError(
            f"could not write {output}: {error}. Make room, or give a folder that can be written."
        ) from error
