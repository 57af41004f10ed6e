"""Put a bundle into a registry, as a version that is whole or not there."""

import logging
from collections.abc import Callable
from pathlib import Path

from train.bundle import verify
from train.errors import ConfigError, StorageError
from train.keys import Trusted, trusted_keys
from train.manifest import MANIFEST, SIGNATURE, digest, verified_manifest
from train.objects.place import Objects, Settings, open_objects
from train.registry import pointers, versions
from train.registry.versions import Version

log = logging.getLogger(__name__)


def publish(
    folder: Path,
    uri: str,
    *,
    settings: Settings | None = None,
    trusted: Trusted | None = None,
    allow_unsigned: bool = False,
    tell: Callable[[str], object] = log.info,
) -> str:
    """Publish a bundle and return its version, such as "v3"; `latest` points at it then.

    A call that was interrupted is made again: what has arrived is not sent again, and a bundle that is the latest
    version already becomes no other one.

    Args:
        folder: the bundle.
        uri: s3://BUCKET/PREFIX, file:///FOLDER or a plain path.
        settings: how an object store is spoken to.
        trusted: the keys that may have signed it; by default those trusted here, one's own among them.
        allow_unsigned: take one without a signature.
        tell: is told in a line what was sent.

    Raises:
        TrustError: the folder is no whole bundle that a trusted key signed.
        ConfigError: no credentials, no bucket, or a bucket that does not let us.
        StorageError: the store is away; the same call goes on later.
    """
    trusted = trusted or trusted_keys()
    if not folder.is_dir():
        raise ConfigError(f"there is no bundle {str(folder)!r}: give the folder that train.export has written")
    verify(folder, trusted=trusted, allow_unsigned=allow_unsigned)
    content, signature = _read(folder)
    manifest = verified_manifest(content, signature, trusted, allow_unsigned)
    objects = open_objects(uri, settings)
    version = _known(objects, content)
    for name, facts in sorted(manifest["files"].items()):
        objects.upload(folder / name, versions.blob(facts), sha256=facts["sha256"])
    _put_signature(objects, versions.signature_name(digest(content)), signature or b"")
    version = version or _claim(objects, content)
    pointers.move(objects, "latest", str(version), version.sha256, only_forward=True)
    tell(f"{version} of {objects.uri}: {objects.sent}")
    return str(version)


def _read(folder: Path) -> tuple[bytes, bytes | None]:
    try:
        signature = folder / SIGNATURE
        return (folder / MANIFEST).read_bytes(), signature.read_bytes() if signature.exists() else None
    except OSError as error:
        raise StorageError(f"cannot read the bundle {folder}: {error}") from error


def _known(objects: Objects, content: bytes) -> Version | None:
    """The version that this bundle is already: the latest, or one after it whose publisher did not come to its end."""
    latest = pointers.read(objects, "latest")
    for number in versions.numbers(objects):
        if latest is not None and number < latest.number:
            continue
        version = versions.read(objects, number)
        if version is not None and version.manifest == content:
            return version
    return None


def _put_signature(objects: Objects, name: str, signature: bytes) -> None:
    """Put it, or nothing where there is none, and see on the way that the store keeps to conditions."""
    if objects.create(name, signature):
        if objects.create(name, signature):
            raise ConfigError(
                f"{objects.uri} takes a second object under a name that may be put only once (If-None-Match), so that "
                "two publishers could have the same version. Use a store that knows conditional puts; Ceph 16 knows "
                "them in buckets without versioning only."
            )
        return
    found = objects.read(name)  # put again, so that it is new and no `gc` takes it for forgotten
    if found is None or not objects.replace(name, signature, tag=found[1]):
        raise StorageError(f"{objects.uri}/{name} is being changed by another: try again")


def _claim(objects: Objects, content: bytes) -> Version:
    """Have the first free number."""
    number = max(versions.numbers(objects), default=0) + 1
    while True:
        # A put whose answer was lost is made twice, and refused the second time: what is there then is ours.
        if objects.create(versions.manifest_name(number), content):
            return Version(number, content)
        if (there := versions.read(objects, number)) is not None and there.manifest == content:
            return there
        number += 1
