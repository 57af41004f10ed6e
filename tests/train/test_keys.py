"""Keys: made once, for their owner alone, read from files or the environment, and never shown."""

import base64
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from train import keys
from train.errors import ConfigError, StorageError, TrustError
from train.key_files import master_key, write_key

needs_modes = pytest.mark.skipif(os.name != "posix", reason="needs POSIX file modes")


@pytest.fixture(autouse=True)
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of keys of a user who has none."""
    monkeypatch.setenv("HOME", str(tmp_path))
    for variable in ("FULLCYCLE_SIGNING_KEY", "FULLCYCLE_MASTER_KEY", "FULLCYCLE_TRUSTED_KEYS"):
        monkeypatch.delenv(variable, raising=False)
    return tmp_path / ".config" / "fullcycle"


def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "train.keys", *arguments], capture_output=True, text=True, timeout=60)


def test_a_new_key_signs_and_is_trusted(own: Path) -> None:
    made = keys.new(own / "signing.key")
    read, trusted = keys.signing_key(), keys.trusted_keys()
    assert made.key_id == read.key_id
    trusted.verify(read.key_id, read.sign(b"message"), b"message")
    with pytest.raises(TrustError, match="changed after signing"):
        trusted.verify(read.key_id, read.sign(b"message"), b"Message")
    for wrong in (b"", b"x", b"x" * 64, b"x" * 4_000):
        with pytest.raises(TrustError):
            trusted.verify(read.key_id, wrong, b"message")


def test_the_id_is_the_digest_of_the_public_key() -> None:
    # Of RFC 8032, section 7.1, test 1; the digest by sha256sum.
    secret = bytes.fromhex("9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60")
    key = keys.SigningKey(Ed25519PrivateKey.from_private_bytes(secret))
    assert key.public.public_bytes_raw().hex().startswith("d75a980182b10ab7d54bfed3c964073a")
    assert key.key_id == "21fe31dfa154a261"
    assert key.sign(b"").hex().startswith("e5564300c360ac729086e2cc806e828a")


@needs_modes
def test_a_secret_is_for_its_owner_alone(own: Path) -> None:
    keys.new(own / "signing.key")
    write_key(own / "master.key", base64.b64encode(bytes(32)))
    for name, read in (("signing.key", keys.signing_key), ("master.key", master_key)):
        assert (own / name).stat().st_mode & 0o777 == 0o600
        for mode in (0o640, 0o604, 0o620):
            (own / name).chmod(mode)
            with pytest.raises(TrustError, match=f"{mode:o}.*chmod 600"):
                read()
        (own / name).chmod(0o400)
        read()
    assert own.stat().st_mode & 0o077 == 0


def test_a_secret_is_in_no_text_about_it(own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    key = keys.new(own / "signing.key")
    text = (own / "signing.key").read_text()
    body = "".join(text.split("\n")[1:-2])
    seen = repr(key) + str(key) + repr(vars(key)) + repr(keys.trusted_keys())
    monkeypatch.setenv("FULLCYCLE_SIGNING_KEY", text[:-60])  # cut off
    with pytest.raises(ConfigError, match="FULLCYCLE_SIGNING_KEY is no Ed25519") as raised:
        keys.signing_key()
    seen += repr(raised.value) + repr(raised.value.__cause__)
    monkeypatch.setenv("FULLCYCLE_SIGNING_KEY", text)
    done = command("show")
    assert done.returncode == 0
    assert key.key_id in done.stdout
    seen += done.stdout + done.stderr
    assert not any(body[start : start + 12] in seen for start in range(16, len(body) - 12))
    with pytest.raises(TypeError):
        pickle.dumps(key)


@pytest.mark.parametrize("written", ["as the file", "in one line", "with backslashes", "without armour"])
def test_the_environment_holds_a_key_however_its_lines_were_treated(
    written: str, own: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = keys.new(own / "signing.key")
    text = (own / "signing.key").read_text()
    monkeypatch.setenv("HOME", "/nowhere")
    lines = {
        "as the file": text,
        "in one line": text.replace("\n", " "),
        "with backslashes": text.replace("\n", "\\n"),
        "without armour": text.split("\n")[1],
    }
    monkeypatch.setenv("FULLCYCLE_SIGNING_KEY", lines[written])
    assert keys.signing_key().key_id == key.key_id
    assert list(keys.trusted_keys().keys) == [key.key_id]


def test_a_file_that_is_no_key_is_told(own: Path) -> None:
    elliptic = generate_private_key(SECP256R1())
    plain = serialization.NoEncryption()
    pkcs8 = elliptic.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, plain)
    for number, content in enumerate((b"", b"key", b"\xff\x00", pkcs8, b"A" * 10_000)):
        write_key(own / f"{number}", content)
        with pytest.raises(ConfigError, match=r"is no Ed25519 private key"):
            keys.signing_key(own / f"{number}")
        with pytest.raises(ConfigError, match=r"is no Ed25519 public key"):
            keys.public_key(own / f"{number}")
        with pytest.raises(ConfigError, match=r"is no master key"):
            master_key(own / f"{number}")
    with pytest.raises(ConfigError, match=r"no key .*signing.key: make one with `python -m train.keys new`"):
        keys.signing_key()
    with pytest.raises(ConfigError, match=r"no key .*master.key: make one with `python -m train.keys master`"):
        master_key()
    with pytest.raises(ConfigError, match="cannot read the key"):
        keys.signing_key(own)


def test_keys_are_trusted_from_every_place(own: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    places = [own / "signing.key", own / "trusted" / "ann.key", tmp_path / "env" / "bob.key", tmp_path / "cid.key"]
    made = [keys.new(place).key_id for place in places]
    assert set(keys.trusted_keys().keys) == set(made[:2])
    monkeypatch.setenv("FULLCYCLE_TRUSTED_KEYS", str(tmp_path / "env"))
    assert set(keys.trusted_keys(tmp_path / "cid.pub").keys) == set(made)
    with pytest.raises(ConfigError, match=r"cannot read the public key .*dan.pub"):
        keys.trusted_keys("dan.pub")
    stranger = keys.SigningKey(Ed25519PrivateKey.generate())
    with pytest.raises(TrustError, match=f"{stranger.key_id}.*not trusted here"):
        keys.trusted_keys().verify(stranger.key_id, stranger.sign(b""), b"")


def test_the_verb_makes_keys_once_and_shows_their_ids(own: Path) -> None:
    assert "none" in command("show").stdout
    first = command("new")
    assert first.returncode == 0
    identity = keys.signing_key().key_id
    assert identity in first.stdout
    assert command("master").returncode == 0
    secrets = [(own / name).read_bytes() for name in ("signing.key", "master.key")]
    for verb in ("new", "master"):
        again = command(verb)
        assert again.returncode == 2
        assert "is not overwritten" in again.stderr
    assert secrets == [(own / name).read_bytes() for name in ("signing.key", "master.key")]
    shown = command("show").stdout.split()
    assert shown[0:2] + shown[4:6] == ["signs", identity, "trusts", identity]
    assert len(master_key()) == 32


@needs_modes
def test_a_key_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="could not write the key"):
        keys.new(tmp_path / "file" / "signing.key")
    with pytest.raises(ConfigError, match=r"must not end in \.pub"):
        keys.new(tmp_path / "key.pub")
    assert not (tmp_path / "key.pub").exists()
