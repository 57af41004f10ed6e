"""A registry of bundles in a bucket or a folder: publish, look, choose, get, check, clean.

python -m train.registry publish PLACE FOLDER           # as the next version: v1, v2, ...
python -m train.registry list PLACE
python -m train.registry show PLACE [VERSION]           # v3, latest (default) or production
python -m train.registry promote PLACE VERSION          # production points at it
python -m train.registry rollback PLACE                 # production points at what it pointed at before
python -m train.registry fetch PLACE [VERSION] --output FOLDER
python -m train.registry verify PLACE [VERSION]         # read all of it; without VERSION, of every version
python -m train.registry gc PLACE [--older-than 1d] [--dry-run]

PLACE is s3://BUCKET/PREFIX, file:///FOLDER or a plain path. AWS_ENDPOINT_URL names a store that is not Amazon's.

Exit codes: 0 done; 2 the command line, the credentials or the bucket; 6 the store or the disk; 9 not to be trusted.
"""

import argparse
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path

from train import errors
from train.errors import ConfigError, TrustError
from train.keys import trusted_keys
from train.objects.place import MEBIBYTE, Objects, Settings, open_objects
from train.registry import pointers, versions
from train.registry.collect import collect
from train.registry.fetch import check, fetch
from train.registry.publish import publish
from train.registry.table import overview

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


def _publish(options: argparse.Namespace) -> None:
    """Publish a bundle as the next version."""
    publish(
        options.folder,
        options.place,
        settings=_settings(options),
        trusted=trusted_keys(*options.trust),
        allow_unsigned=options.allow_unsigned,
        tell=print,
    )


def _list(options: argparse.Namespace) -> None:
    """List the versions."""
    print(overview(_objects(options), trusted_keys(*options.trust), allow_unsigned=options.allow_unsigned))


def _show(options: argparse.Namespace) -> None:
    """Show what a version's manifest says."""
    objects = _objects(options)
    version = versions.find(objects, options.version)
    manifest = versions.verified(objects, version, trusted_keys(*options.trust), allow_unsigned=options.allow_unsigned)
    print(json.dumps({"version": str(version), "manifest_sha256": version.sha256, **manifest}, indent=2))


def _promote(options: argparse.Namespace) -> None:
    """Point at a version, once it is seen to be signed and whole."""
    objects = _objects(options)
    version = versions.find(objects, options.version)
    check(objects, version, trusted_keys(*options.trust), allow_unsigned=options.allow_unsigned)
    pointers.move(objects, options.pointer, str(version), version.sha256)
    print(f"{options.pointer} of {objects.uri} is {version}")


def _rollback(options: argparse.Namespace) -> None:
    """Point at what the pointer pointed at before."""
    objects = _objects(options)
    print(f"{options.pointer} of {objects.uri} is {pointers.roll_back(objects, options.pointer).version} again")


def _fetch(options: argparse.Namespace) -> None:
    """Get a version, verified, as a folder."""
    fetch(
        options.place,
        options.version,
        options.output,
        trusted_keys(*options.trust),
        settings=_settings(options),
        allow_unsigned=options.allow_unsigned,
    )
    print(f"{options.version} of {options.place}, verified: {options.output}")


def _verify(options: argparse.Namespace) -> None:
    """Read a version, or all, and compare each byte with what was signed."""
    objects, trusted = _objects(options), trusted_keys(*options.trust)
    names = [options.version] if options.version else [f"v{number}" for number in versions.numbers(objects)]
    if not names:
        raise ConfigError(f"nothing is published in {objects.uri}")
    faults = []
    for name in names:
        try:
            size = check(objects, versions.find(objects, name), trusted, allow_unsigned=options.allow_unsigned)
            print(f"{name}  good, {size:,} bytes", flush=True)
        except TrustError as error:
            faults.append(str(error))
    if faults:
        raise TrustError("\n".join(faults))


def _gc(options: argparse.Namespace) -> None:
    """Delete what no version has."""
    found = collect(_objects(options), older_than_seconds=options.older_than, dry_run=options.dry_run)
    for entry in found:
        print(f"{entry.name}  {'unfinished upload' if entry.upload else f'{entry.size:,} bytes'}")
    print(f"{len(found)} objects {'would be' if options.dry_run else 'were'} deleted")


def main() -> None:
    """Do one of them."""
    options = _parser().parse_args()
    options.run(options)


def _objects(options: argparse.Namespace) -> Objects:
    return open_objects(options.place, _settings(options))


def _settings(options: argparse.Namespace) -> Settings:
    names = ("part_size", "patience_seconds", "checksums", "sse", "sse_kms_key_id")
    given = {name: getattr(options, name) for name in names if getattr(options, name) is not None}
    return Settings(**given)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m train.registry",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    verbs = parser.add_subparsers(required=True, metavar="|".join(_VERBS))
    for name, run in _VERBS.items():
        verb = verbs.add_parser(name, help=run.__doc__, description=run.__doc__, allow_abbrev=False)
        verb.set_defaults(run=run)
        verb.add_argument("place", metavar="PLACE", help="s3://BUCKET/PREFIX, file:///FOLDER or a plain path")
        if name in _ADD:
            _ADD[name](verb)
        _add_store(verb)
    return parser


def _add_publish(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("folder", metavar="FOLDER", type=Path, help="the bundle")


def _add_version(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("version", metavar="VERSION", nargs="?", default="latest", help="v3, latest or production")


def _add_promote(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("version", metavar="VERSION", help="v3 or latest")
    _add_pointer(verb)


def _add_pointer(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("--pointer", choices=pointers.NAMES, default="production", help="which pointer (production)")


def _add_fetch(verb: argparse.ArgumentParser) -> None:
    _add_version(verb)
    verb.add_argument("--output", metavar="FOLDER", type=Path, required=True, help="a folder that is not there")


def _add_verify(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("version", metavar="VERSION", nargs="?", help="v3, latest or production; all without it")


def _add_gc(verb: argparse.ArgumentParser) -> None:
    verb.add_argument(
        "--older-than", type=_duration, default="1d", help="longer than any publisher works: 30m, 6h, 1d (1d)"
    )
    verb.add_argument("--dry-run", action="store_true", help="say what would be deleted")


def _add_store(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("--trust", metavar="FILE|FOLDER", action="append", default=[], help="trust these keys too")
    verb.add_argument("--allow-unsigned", action="store_true", help="take bundles without a signature")
    store = verb.add_argument_group("object stores")
    store.add_argument("--part-size", type=_mebibytes, metavar="MIB", help="of a file's parts, each in memory (16)")
    store.add_argument("--patience-seconds", type=float, metavar="S", help="how long a store may be away (60)")
    store.add_argument("--checksums", help="when_supported, or when_required for stores that refuse boto3's")
    store.add_argument("--sse", metavar="AES256|aws:kms", help="server-side encryption, else the bucket's default")
    store.add_argument("--sse-kms-key-id", metavar="KEY", help="for aws:kms, else the account's own key")


def _duration(text: str) -> float:
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([smhd])", text)
    if match is None:
        raise argparse.ArgumentTypeError(f"must be a number with s, m, h or d, such as 6h; got {text!r}")
    return float(match[1]) * _UNITS[match[2]]


def _mebibytes(text: str) -> int:
    if not re.fullmatch(r"[1-9][0-9]{0,4}", text):
        raise argparse.ArgumentTypeError(f"must be a whole number of MiB; got {text!r}")
    return int(text) * MEBIBYTE


_VERBS: dict[str, Callable[[argparse.Namespace], None]] = {
    "publish": _publish,
    "list": _list,
    "show": _show,
    "promote": _promote,
    "rollback": _rollback,
    "fetch": _fetch,
    "verify": _verify,
    "gc": _gc,
}
_ADD: dict[str, Callable[[argparse.ArgumentParser], None]] = {
    "publish": _add_publish,
    "show": _add_version,
    "promote": _add_promote,
    "rollback": _add_pointer,
    "fetch": _add_fetch,
    "verify": _add_verify,
    "gc": _add_gc,
}

if __name__ == "__main__":
    sys.exit(errors.guard(main))
