"""Encryption of files: what comes back is what went in, and whatever is not wholly as it was made is refused."""

import base64
import os
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from train import envelope
from train.bundle import open_bundle, write
from train.envelope import Envelope, KeyFile, envelope_of
from train.errors import ConfigError, StorageError, TrustError
from train.key_files import write_key
from train.keys import Trusted

CHUNK = 64
HEADER, WHOLE = 16, CHUNK + 16
MASTER = bytes(range(32))


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(envelope, "CHUNK", CHUNK)


@pytest.fixture
def sealed(tmp_path: Path) -> Callable[[bytes], tuple[bytes, dict[str, Any]]]:
    """Encrypts a file called model.onnx; returns its ciphertext and what the manifest would say."""

    def sealed(content: bytes) -> tuple[bytes, dict[str, Any]]:
        (tmp_path / "model.onnx").write_bytes(content)
        encryption = Envelope(KeyFile(MASTER)).encrypt_files(tmp_path, ["model.onnx"])
        assert os.listdir(tmp_path) == ["model.onnx"]
        return (tmp_path / "model.onnx").read_bytes(), encryption

    return sealed


def opened(content: bytes, encryption: dict[str, Any], name: str = "model.onnx") -> bytes:
    return Envelope(KeyFile(MASTER)).decrypt(content, name, encryption)


Sealed = Callable[[bytes], tuple[bytes, dict[str, Any]]]


@pytest.mark.parametrize("size", [0, 1, CHUNK - 1, CHUNK, CHUNK + 1, 3 * CHUNK, 5 * CHUNK + 7])
def test_what_comes_back_is_what_went_in(size: int, sealed: Sealed) -> None:
    content = os.urandom(size)
    ciphertext, encryption = sealed(content)
    assert len(ciphertext) == HEADER + size + 16 * max(1, -(-size // CHUNK))
    assert opened(ciphertext, encryption) == content
    assert size < 16 or content[:16] not in ciphertext


def test_the_layout_is_that_of_stream(sealed: Sealed) -> None:
    content = os.urandom(CHUNK + 5)
    ciphertext, encryption = sealed(content)
    wrapped = base64.b64decode(encryption["keys"]["model.onnx"])
    key = AESGCM(MASTER).decrypt(wrapped[:12], wrapped[12:], b"fullcycle data key of model.onnx")
    prefix, about = ciphertext[9:16], ciphertext[:16] + b"model.onnx"
    first = AESGCM(key).decrypt(prefix + b"\0\0\0\0" + b"\0", ciphertext[16 : 16 + WHOLE], about)
    last = AESGCM(key).decrypt(prefix + b"\0\0\0\1" + b"\1", ciphertext[16 + WHOLE :], about)
    assert first + last == content


def test_no_key_is_used_for_two_files_or_twice(sealed: Sealed) -> None:
    (first, one), (second, two) = sealed(bytes(100)), sealed(bytes(100))
    assert first != second
    assert one["keys"] != two["keys"]


def rearranged(content: bytes) -> dict[str, bytes]:
    head, body = content[:HEADER], content[HEADER:]
    chunks = [body[start : start + WHOLE] for start in range(0, len(body), WHOLE)]
    return {
        "a chunk swapped with the next": head + b"".join([chunks[1], chunks[0], *chunks[2:]]),
        "the first chunk lost": head + b"".join(chunks[1:]),
        "a middle chunk lost": head + b"".join([chunks[0], *chunks[2:]]),
        "the last chunk lost": head + b"".join(chunks[:-1]),
        "a chunk doubled": head + b"".join([chunks[0], *chunks]),
        "the last chunk doubled": head + b"".join([*chunks, chunks[-1]]),
        "nothing but the header": head,
        "no header": body,
        "nothing": b"",
        "half a header": head[:8],
        "a byte more": content + b"\0",
        "twice": content + content,
    }


@pytest.mark.parametrize("change", rearranged(bytes(HEADER + 4 * WHOLE)))
def test_chunks_lost_doubled_or_reordered_are_refused(change: str, sealed: Sealed) -> None:
    ciphertext, encryption = sealed(os.urandom(3 * CHUNK + 20))
    with pytest.raises(TrustError):
        opened(rearranged(ciphertext)[change], encryption)


def test_every_flipped_bit_and_every_shorter_length_is_refused(sealed: Sealed) -> None:
    ciphertext, encryption = sealed(os.urandom(2 * CHUNK))
    for place in range(len(ciphertext)):
        changed = bytearray(ciphertext)
        changed[place] ^= 1 << place % 8
        for wrong in (bytes(changed), ciphertext[:place]):
            with pytest.raises(TrustError):
                opened(wrong, encryption)


def test_a_file_under_another_name_is_refused(sealed: Sealed) -> None:
    ciphertext, encryption = sealed(b"content")
    keys = {"keys": {"other.onnx": encryption["keys"]["model.onnx"]}}
    with pytest.raises(TrustError, match=r"wrapped key of other\.onnx"):
        opened(ciphertext, {**encryption, **keys}, "other.onnx")


def test_a_part_of_another_file_under_the_same_master_key_is_refused(sealed: Sealed) -> None:
    (first, encryption), (second, _) = sealed(os.urandom(2 * CHUNK)), sealed(os.urandom(2 * CHUNK))
    for mixed in (second, first[: HEADER + WHOLE] + second[HEADER + WHOLE :], second[:HEADER] + first[HEADER:]):
        with pytest.raises(TrustError, match=r"model\.onnx does not decrypt"):
            opened(mixed, encryption)


@pytest.mark.parametrize("wrapped", ["", "AAAA", "no base64!", "ä", base64.b64encode(bytes(60)).decode()])
def test_a_wrapped_key_that_is_none_is_refused(wrapped: str, sealed: Sealed) -> None:
    ciphertext, encryption = sealed(b"content")
    with pytest.raises(TrustError, match="wrapped key"):
        opened(ciphertext, {**encryption, "keys": {"model.onnx": wrapped}})


def test_another_master_key_or_scheme_is_refused(sealed: Sealed) -> None:
    ciphertext, encryption = sealed(b"content")
    other = KeyFile(os.urandom(32))
    with pytest.raises(TrustError, match=f"{encryption['master']}.*{other.reference}"):
        Envelope(other).decrypt(ciphertext, "model.onnx", encryption)
    with pytest.raises(TrustError, match="not one that the master key"):  # also if the manifest says it was that one
        Envelope(other).decrypt(ciphertext, "model.onnx", {**encryption, "master": other.reference})
    with pytest.raises(TrustError, match="ROT13"):
        opened(ciphertext, {**encryption, "scheme": "ROT13"})


def test_the_master_key_comes_from_a_file_or_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_key(tmp_path / "master.key", base64.b64encode(MASTER) + b"\n")
    expected = KeyFile(MASTER).reference
    assert envelope_of(tmp_path / "master.key").master.reference == expected
    monkeypatch.setenv("FULLCYCLE_MASTER_KEY", base64.b64encode(MASTER).decode())
    monkeypatch.setenv("HOME", str(tmp_path / "nowhere"))
    assert repr(envelope_of()) == f"Envelope({expected})"
    assert MASTER.hex() not in repr(vars(envelope_of().master))
    monkeypatch.delenv("FULLCYCLE_MASTER_KEY")
    with pytest.raises(ConfigError, match=r"python -m train\.keys master"):
        envelope_of()


# AWS KMS


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    """Moto's KMS over HTTP."""
    server = pytest.importorskip("moto.server", reason="needs moto[server]").ThreadedMotoServer("127.0.0.1", port=0)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def kms(endpoint: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A client; the environment points at the server."""
    for name, value in (("ACCESS_KEY_ID", "someone"), ("SECRET_ACCESS_KEY", "secret"), ("REGION", "us-east-1")):
        monkeypatch.setenv(f"AWS_{name}", value)
    monkeypatch.setenv("AWS_ENDPOINT_URL_KMS", endpoint)
    import boto3

    return boto3.client("kms", region_name="us-east-1", endpoint_url=endpoint)


@pytest.mark.services
def test_kms_encrypts_a_bundle_and_refuses_what_is_not_its_own(kms: Any, tmp_path: Path) -> None:
    mine, other = (kms.create_key()["KeyMetadata"] for _ in range(2))
    kms.create_alias(AliasName="alias/models", TargetKeyId=mine["KeyId"])
    content = {"model.onnx": random.Random(0).randbytes(1_000), "schema.json": b"{}"}
    for name, data in content.items():
        (tmp_path / name).write_bytes(data)
    write(tmp_path, {"name": "cards", "run": "r"}, key=None, envelope=envelope_of("kms://alias/models"))
    for reference in ("alias/models", mine["KeyId"], mine["Arn"]):
        bundle = open_bundle(
            tmp_path, trusted=Trusted(), envelope=envelope_of(f"kms://{reference}"), allow_unsigned=True
        )
        assert {name: bundle.read(name) for name in bundle.names} == content
    encryption = dict(bundle.manifest["encryption"])
    assert encryption["master"] == "kms://alias/models"
    ciphertext = (tmp_path / "model.onnx").read_bytes()

    def decrypted(master: str, **changes: Any) -> bytes:
        return envelope_of(master).decrypt(ciphertext, "model.onnx", {**encryption, **changes})

    assert decrypted("kms://alias/models") == content["model.onnx"]
    with pytest.raises((TrustError, ConfigError)):  # AWS: IncorrectKeyException; moto: AccessDeniedException
        decrypted(f"kms://{other['KeyId']}")
    swapped = {"model.onnx": encryption["keys"]["schema.json"]}
    wrapped = bytearray(base64.b64decode(encryption["keys"]["model.onnx"]))
    wrapped[-1] ^= 1
    for keys in (swapped, {"model.onnx": base64.b64encode(wrapped).decode()}, {"model.onnx": ""}):
        with pytest.raises(TrustError, match="wrapped key"):
            decrypted("kms://alias/models", keys=keys)


@pytest.mark.services
def test_what_kms_will_not_do_is_told_and_leaves_the_files_alone(
    kms: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "model.onnx").write_bytes(b"content")

    def refused(kind: type[Exception], reference: str, match: str) -> None:
        with pytest.raises(kind, match=match):
            write(tmp_path, {"name": "cards", "run": "r"}, key=None, envelope=envelope_of(reference))
        assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"model.onnx": b"content"}

    refused(ConfigError, "kms://alias/none", "there is no such key in this region")
    refused(ConfigError, "kms://", "kms://KEY")
    monkeypatch.setenv("AWS_ENDPOINT_URL_KMS", "http://127.0.0.1:9")
    refused(StorageError, "kms://alias/models", "cannot be used now")
    for name in ("ACCESS_KEY_ID", "SECRET_ACCESS_KEY"):
        monkeypatch.delenv(f"AWS_{name}")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    refused(ConfigError, "kms://alias/models", "no credentials or region")
