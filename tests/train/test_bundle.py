"""Bundles: the same bytes from the same files, opened wholly verified or not at all."""

import json
import os
import random
import shutil
from collections.abc import Mapping
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from train import bundle as bundles
from train.bundle import MANIFEST, SIGNATURE, canonical, digest, open_bundle, verified_manifest, verify, write
from train.envelope import Envelope, KeyFile
from train.errors import ConfigError, StorageError, TrustError
from train.keys import SigningKey, Trusted
from train.manifest import signature_of

OURS, THEIRS = (SigningKey(Ed25519PrivateKey.from_private_bytes(bytes([number]) * 32)) for number in (1, 2))
TRUSTED = Trusted(OURS.public)
MASTER = Envelope(KeyFile(bytes(32)))
ABOUT = {"name": "cards", "run": "20260131-1a2b", "data_fingerprint": "f", "config_sha256": "c", "graphs": {"main": 1}}
PLAIN = {
    "model.onnx": random.Random(0).randbytes(3_000),
    "config.yaml": b"seed: 1\n",
    "metrics.json": b"{}\n",
    "empty.txt": b"",
}


def lay(folder: Path, files: Mapping[str, bytes]) -> Path:
    """Write files into a new folder."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return folder


def made(folder: Path, *, key: SigningKey | None = OURS, envelope: Envelope | None = None) -> dict[str, bytes]:
    """The files of a bundle."""
    write(lay(folder, PLAIN), ABOUT, key=key, envelope=envelope)
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_bundle_opens_with_the_bytes_that_went_in(tmp_path: Path) -> None:
    for envelope in (None, MASTER):
        made(tmp_path / "bundle", envelope=envelope)
        bundle = open_bundle(tmp_path / "bundle", trusted=TRUSTED, envelope=MASTER)
        assert {name: bundle.read(name) for name in bundle.names} == PLAIN
        assert ABOUT.items() <= bundle.manifest.items()
        assert bundle.manifest == verify(tmp_path / "bundle", trusted=TRUSTED)
        shutil.rmtree(tmp_path / "bundle")
        assert bundle.read("model.onnx") == PLAIN["model.onnx"], "not read again"
        assert "seed" not in repr(bundle)


def test_the_same_files_make_the_same_bundle(tmp_path: Path) -> None:
    first, second = made(tmp_path / "one"), made(tmp_path / "two")
    assert first == second
    manifest = first[MANIFEST]
    assert manifest == json.dumps(json.loads(manifest), sort_keys=True, separators=(",", ":")).encode() + b"\n"
    assert json.loads(manifest)["files"]["empty.txt"] == {"sha256": digest(b""), "size": 0}


def test_an_encrypted_bundle_is_verified_without_the_master_key_but_not_read(tmp_path: Path) -> None:
    files = made(tmp_path / "bundle", envelope=MASTER)
    assert not any(content and content in b"".join(files.values()) for content in PLAIN.values())
    bundle = open_bundle(tmp_path / "bundle", trusted=TRUSTED)
    with pytest.raises(ConfigError, match=r"encrypted, with 'key:[0-9a-f]{16}'"):
        bundle.read("model.onnx")
    with pytest.raises(ConfigError, match=r"no file 'model\.pt'; it has config\.yaml, "):
        bundle.read("model.pt")
    with pytest.raises(TrustError, match="the key here is key:"):
        open_bundle(tmp_path / "bundle", trusted=TRUSTED, envelope=Envelope(KeyFile(b"x" * 32)))


def test_a_bundle_without_signature_is_opened_only_where_that_is_asked_for(tmp_path: Path) -> None:
    made(tmp_path / "bundle", key=None)
    with pytest.raises(TrustError, match="has no signature"):
        open_bundle(tmp_path / "bundle", trusted=TRUSTED)
    assert open_bundle(tmp_path / "bundle", trusted=TRUSTED, allow_unsigned=True).names == sorted(PLAIN)
    files = made(tmp_path / "bundle")
    del files[SIGNATURE]
    with pytest.raises(TrustError, match="manifest names the key"):  # it had one
        open_bundle(lay(tmp_path / "bundle", files), trusted=TRUSTED, allow_unsigned=True)
    made(tmp_path / "bundle", key=THEIRS)
    with pytest.raises(TrustError, match=f"{THEIRS.key_id}.*not trusted here"):
        open_bundle(tmp_path / "bundle", trusted=TRUSTED, allow_unsigned=True)


def test_a_manifest_is_verified_without_its_files(tmp_path: Path) -> None:
    files = made(tmp_path / "bundle")
    manifest, signature = files[MANIFEST], files[SIGNATURE]
    assert verified_manifest(manifest, signature, TRUSTED)["run"] == ABOUT["run"]
    with pytest.raises(TrustError, match="s3://b/v1 cannot be trusted: its signature"):
        verified_manifest(manifest.replace(b"cards", b"CARDS"), signature, TRUSTED, source="s3://b/v1")
    with pytest.raises(TrustError, match="the bundle cannot be trusted: it has no signature"):
        verified_manifest(manifest, None, TRUSTED)
    huge = canonical({**json.loads(manifest), "graphs": {"x": "x" * 2**22}})
    with pytest.raises(TrustError, match=r"manifest\.json has [0-9,]+ bytes, more than 4,194,304"):
        verified_manifest(huge, signature_of(huge, OURS), TRUSTED)


@pytest.mark.parametrize("name", [".hidden", "a b", "manifest.json.tmp", "Manifest.yaml", "-x", "ä", "x" * 101])
def test_a_name_that_is_not_safe_is_not_bundled(name: str, tmp_path: Path) -> None:
    files = {**PLAIN, name: b"x"}
    with pytest.raises(ConfigError, match="cannot be a bundle with"):
        write(lay(tmp_path / "bundle", files), ABOUT, key=OURS)
    assert not (tmp_path / "bundle" / MANIFEST).exists()


def test_what_makes_no_bundle_is_told(tmp_path: Path) -> None:
    folder = tmp_path / "bundle"
    deep: dict[str, object] = {}
    for _ in range(30):
        deep = {"deeper": deep}
    for make in (lambda path: path.mkdir(), lambda path: path.symlink_to(__file__), os.mkfifo):
        make(lay(folder, PLAIN) / "odd")
        with pytest.raises(ConfigError, match="with 'odd' in it: only plain files"):
            write(folder, ABOUT, key=OURS)
    with pytest.raises(ConfigError, match="no files"):
        write(lay(folder, {}), ABOUT, key=OURS)
    graphs = {"loss": float("nan")}, {"path": Path()}, deep
    for wrong in ({"name": None}, {"run": "\ud800"}, *({"graphs": each} for each in graphs)):
        with pytest.raises(ConfigError, match="cannot be a bundle: "):
            write(lay(folder, PLAIN), {**ABOUT, **wrong}, key=OURS)
    made(folder, envelope=MASTER)
    with pytest.raises(ConfigError, match="is a bundle already"):
        write(folder, ABOUT, key=OURS, envelope=MASTER)
    with pytest.raises(StorageError, match="could not write the bundle"):
        write(tmp_path / "nowhere", ABOUT, key=OURS)
    with pytest.raises(TrustError, match="nowhere cannot be trusted: it cannot be read"):
        open_bundle(tmp_path / "nowhere", trusted=TRUSTED)


@pytest.mark.parametrize("is_listed_first", [True, False])
@pytest.mark.parametrize("name", [MANIFEST, SIGNATURE, "model.onnx"])
def test_pipes_and_links_are_not_followed_also_when_put_there_late(
    name: str, is_listed_first: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = made(tmp_path / "outside")
    if is_listed_first:
        monkeypatch.setattr(bundles, "_entries", lambda folder: set(files))
    for make in (os.mkfifo, lambda path: path.symlink_to(tmp_path / "outside" / name)):
        path = lay(tmp_path / "bundle", files) / name
        path.unlink()
        make(path)
        with pytest.raises(TrustError, match=r"no plain file|cannot be read" if is_listed_first else "no plain file"):
            open_bundle(tmp_path / "bundle", trusted=TRUSTED)


def test_a_sparse_file_of_a_terabyte_is_not_read(tmp_path: Path) -> None:
    for name in (MANIFEST, SIGNATURE, "model.onnx"):
        made(tmp_path / "bundle")
        os.truncate(tmp_path / "bundle" / name, 2**40)
        for opening in (open_bundle, verify):
            with pytest.raises(TrustError, match="more than the"):
                opening(tmp_path / "bundle", trusted=TRUSTED)
