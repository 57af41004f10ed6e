"""Keys that sign bundles (Ed25519), the keys that are trusted, and the master key that encrypts them.

python -m train.keys new                    # a key pair: ~/.config/fullcycle/signing.key, and signing.pub to give away
python -m train.keys show                   # the ids of these keys and of those that are trusted here
python -m train.keys master                 # a master key for encrypted bundles: ~/.config/fullcycle/master.key

Another's signing.pub is trusted once it lies in ~/.config/fullcycle/trusted as NAME.pub. The environment goes before
these files: the text of a key file in FULLCYCLE_SIGNING_KEY and FULLCYCLE_MASTER_KEY; FULLCYCLE_TRUSTED_KEYS adds files
or folders of public keys, with ':' between them. No secret is ever printed.

Exit codes: 0 done; 2 the command line or a key file is wrong, or would be overwritten; 6 a file cannot be written;
9 a secret that others could have read or changed.
"""

import argparse
import base64
import hashlib
import os
import re
import secrets
import sys
from collections.abc import Mapping
from pathlib import Path

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from train import errors
from train.errors import ConfigError, TrustError
from train.key_files import MASTER_KEY, MOST_BYTES, home, master_key, read_secret, write_key

SIGNING_KEY, TRUSTED_KEYS = "FULLCYCLE_SIGNING_KEY", "FULLCYCLE_TRUSTED_KEYS"
_ARMOUR = re.compile(r"-----(BEGIN|END) [A-Z ]+-----")
_PEM = serialization.Encoding.PEM


class SigningKey:
    """A private Ed25519 key; it shows its id, and nothing of the secret."""

    def __init__(self, private: Ed25519PrivateKey) -> None:
        self._private = private
        self.public = private.public_key()
        self.key_id = key_id(self.public)

    def __repr__(self) -> str:
        return f"SigningKey({self.key_id})"

    def sign(self, message: bytes) -> bytes:
        """Return the signature."""
        return self._private.sign(message)


class Trusted:
    """Public keys whose signatures are believed."""

    def __init__(self, *keys: Ed25519PublicKey) -> None:
        self.keys: Mapping[str, Ed25519PublicKey] = {key_id(key): key for key in keys}

    def __repr__(self) -> str:
        return f"Trusted({', '.join(sorted(self.keys))})"

    def verify(self, identity: str, signature: bytes, message: bytes) -> None:
        """Raise TrustError unless a trusted key of this id signed the message."""
        key = self.keys.get(identity)
        if key is None:
            known = ", ".join(sorted(self.keys)) or "none"
            raise TrustError(
                f"the key {identity[:40]!a} that signed it is not trusted here (trusted: {known}). If you know "
                f"whose it is, put its .pub file into {home() / 'trusted'}"
            )
        try:
            key.verify(signature, message)
        except InvalidSignature:
            raise TrustError(f"its signature is not by the key {identity}: it was changed after signing") from None


def key_id(key: Ed25519PublicKey) -> str:
    """Return the first 16 hex digits of the SHA-256 of the public key's 32 bytes."""
    return hashlib.sha256(key.public_bytes_raw()).hexdigest()[:16]


def signing_key(path: str | Path | None = None) -> SigningKey:
    """Return the private key of `path`, or of FULLCYCLE_SIGNING_KEY, or of the default place.

    Raises:
        ConfigError: there is none, or it is no Ed25519 key.
        TrustError: others can read the file.
    """
    text, source = read_secret(path, SIGNING_KEY, home() / "signing.key", make="python -m train.keys new")
    try:
        private = serialization.load_der_private_key(_unarmoured(text), password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        private = None
    if not isinstance(private, Ed25519PrivateKey):
        raise ConfigError(f"{source} is no Ed25519 private key in PKCS#8, as `python -m train.keys new` makes it")
    return SigningKey(private)


def public_key(path: Path) -> Ed25519PublicKey:
    """Return the public key in a .pub file. Raises ConfigError if it is none."""
    try:
        with path.open("rb") as file:
            key = serialization.load_der_public_key(_unarmoured(file.read(MOST_BYTES).decode("ascii", "replace")))
    except OSError as error:
        raise ConfigError(f"cannot read the public key {path}: {error.strerror}") from error
    except (ValueError, UnsupportedAlgorithm):
        key = None
    if not isinstance(key, Ed25519PublicKey):
        raise ConfigError(f"{path} is no Ed25519 public key, as `python -m train.keys new` makes it (signing.pub)")
    return key


def trusted_keys(*more: str | Path) -> Trusted:
    """Return the keys trusted here: one's own, those in trusted/, in FULLCYCLE_TRUSTED_KEYS and in `more`.

    Args:
        more: files, or folders of *.pub files.

    Raises:
        ConfigError: one of them is no public key, or not there.
    """
    own = home() / "signing.pub"
    places = [place for place in (own, home() / "trusted") if place.exists()]
    places += [Path(text) for text in os.environ.get(TRUSTED_KEYS, "").split(os.pathsep) if text]
    places += [Path(place) for place in more]
    keys = [public_key(path) for place in places for path in _files(place.expanduser())]
    if os.environ.get(SIGNING_KEY):
        keys.append(signing_key().public)
    return Trusted(*keys)


def _files(place: Path) -> list[Path]:
    return sorted(place.glob("*.pub")) if place.is_dir() else [place]


def _unarmoured(text: str) -> bytes:
    """The DER of a PEM text. Variables often lose line breaks or have them as backslash n, which is no matter here."""
    body = "".join(_ARMOUR.sub("", text.replace("\\n", "\n")).split())
    return base64.b64decode(body, validate=True)


def new(path: Path) -> SigningKey:
    """Make a key pair: `path`, for its owner alone, and the public half beside it as .pub."""
    public = path.with_suffix(".pub")
    if path == public:
        raise ConfigError(f"--out {path}: the secret half must not end in .pub, as the public half beside it does")
    if public.exists():
        raise ConfigError(f"{public} is there already and is not overwritten: give --out another name")
    private = Ed25519PrivateKey.generate()
    plain = serialization.NoEncryption()
    write_key(path, private.private_bytes(_PEM, serialization.PrivateFormat.PKCS8, plain))
    spki = serialization.PublicFormat.SubjectPublicKeyInfo
    write_key(public, private.public_key().public_bytes(_PEM, spki), mode=0o644)
    return SigningKey(private)


def main() -> None:
    """Make or show keys."""
    options = _parser().parse_args()
    if options.verb == "new":
        path = Path(options.out or home() / "signing.key").expanduser()
        identity = new(path).key_id
        print(f"key {identity}: {path} signs and stays here; give {path.with_suffix('.pub')} to those who verify")
    elif options.verb == "master":
        path = Path(options.out or home() / "master.key").expanduser()
        write_key(path, base64.b64encode(secrets.token_bytes(32)) + b"\n")
        print(f"master key: {path} encrypts and decrypts; without it, nothing that it encrypted can be read again")
    else:
        _show(options.key, options.trust)


def _show(key: str | None, trust: list[str]) -> None:
    from train.envelope import KeyFile

    has_key = key or os.environ.get(SIGNING_KEY) or (home() / "signing.key").exists()
    print(f"signs     {signing_key(key).key_id}" if has_key else "signs     none: python -m train.keys new makes a key")
    if os.environ.get(MASTER_KEY) or (home() / "master.key").exists():
        print(f"encrypts  {KeyFile(master_key()).reference}")
    for identity in sorted(trusted_keys(*trust).keys):
        print(f"trusts    {identity}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m train.keys",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="new|show|master")
    for name, summary in (("new", "make a key pair to sign with"), ("master", "make a master key to encrypt with")):
        verb = verbs.add_parser(name, help=summary, description=summary, allow_abbrev=False)
        verb.add_argument("--out", metavar="FILE", help="new file for the secret")
    summary = "show the ids of the keys, and none of their secrets"
    show = verbs.add_parser("show", help=summary, description=summary, allow_abbrev=False)
    show.add_argument("--key", metavar="FILE", help="the signing key")
    show.add_argument("--trust", metavar="FILE|FOLDER", action="append", default=[], help="trust these keys too")
    return parser


if __name__ == "__main__":
    sys.exit(errors.guard(main))
