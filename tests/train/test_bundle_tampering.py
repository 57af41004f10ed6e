"""2,000 bundles that were tampered with: each is refused, in one sentence, and none crashes us."""

import base64
import json
import os
import random
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from train import envelope as envelopes
from train.bundle import MANIFEST, SIGNATURE, canonical, digest, open_bundle, write
from train.envelope import Envelope, KeyFile
from train.errors import TrustError
from train.keys import SigningKey, Trusted
from train.manifest import signature_of

MUTATIONS = 2_000
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


def lay(folder: Path, files: Mapping[str, Any]) -> Path:
    """Write files; a Path stands for a link to it, None for a folder."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for name, content in files.items():
        path = os.path.join(os.fsencode(folder), name.encode("utf-8", "surrogateescape"))
        if isinstance(content, Path):
            os.symlink(content, path)
        elif content is None:
            os.mkdir(path)
        else:
            with open(path, "wb") as file:
                file.write(content)
    return folder


@dataclass
class Attack:
    """One attempt on a bundle: its files, to be changed in place, and what is there to draw from."""

    files: dict[str, Any]
    other: Mapping[str, bytes]  # a bundle of the same model, signed by the same key, with other content
    outside: Path  # has a file for each of the bundle's, with the same content
    draw: random.Random

    def name(self, *, of: str = "any") -> str:
        """One of its files' names: of any, of the manifest's two, or of those with content to bundle."""
        own = {MANIFEST, SIGNATURE}
        names = [name for name in self.files if of == "any" or (name in own) == (of == "manifest")]
        return self.draw.choice(sorted(names))

    def manifest(self) -> dict[str, Any]:
        return dict(json.loads(self.files[MANIFEST]))

    def put(self, manifest: bytes | Mapping[str, Any], *, signed: SigningKey | None = None, as_id: str = "") -> None:
        """Put another manifest there, and another signature, perhaps under an id that is not the signer's."""
        content = manifest if isinstance(manifest, bytes) else lax(manifest)
        self.files[MANIFEST] = content
        if signed is not None:
            said = json.loads(signature_of(content, signed))
            self.files[SIGNATURE] = canonical({**said, "key_id": as_id or signed.key_id})


def lax(content: Any) -> bytes:
    """JSON in the canonical form, of what the canonical form refuses too."""
    return json.dumps(content, sort_keys=True, separators=(",", ":")).encode() + b"\n"


def flip_a_bit(attack: Attack) -> None:
    name = attack.name()
    content = bytearray(attack.files[name] or b"\0")
    content[attack.draw.randrange(len(content))] ^= 1 << attack.draw.randrange(8)
    attack.files[name] = bytes(content)


def flip_a_bit_of_the_manifest(attack: Attack) -> None:
    content = bytearray(attack.files[name := attack.name(of="manifest")])
    content[attack.draw.randrange(len(content))] ^= 1 << attack.draw.randrange(8)
    attack.files[name] = bytes(content)


def overwrite_bytes(attack: Attack) -> None:
    content = attack.files[name := attack.name()]
    start = attack.draw.randrange(len(content) + 1)
    junk = attack.draw.choice([b"\0" * 20, attack.draw.randbytes(20), b'"', b"\n", b"\xef\xbb\xbf"])
    attack.files[name] = content[:start] + junk + content[start + attack.draw.choice([0, len(junk)]) :]


def truncate(attack: Attack) -> None:
    content = attack.files[name := attack.name()]
    attack.files[name] = content[: attack.draw.randrange(len(content) + 1)]


def lengthen(attack: Attack) -> None:
    name = attack.name()
    attack.files[name] += attack.draw.choice([b"\0", b"\n", b" ", attack.files[name], attack.draw.randbytes(5_000)])


def swap_files(attack: Attack) -> None:
    one, two = attack.name(), attack.name()
    attack.files[one], attack.files[two] = attack.files[two], attack.files[one]


def remove(attack: Attack) -> None:
    del attack.files[attack.name()]


def rename(attack: Attack) -> None:
    name = attack.name()
    attack.files[attack.draw.choice([name.upper(), name + ".bak", "x"])] = attack.files.pop(name)


def add_a_file(attack: Attack) -> None:
    names = ["x", ".hidden", "manifest.sig.bak", "a\nb", "\x1b[2J", "\udcff", "manifest.json ", "MANIFEST.JSON"]
    attack.files[attack.draw.choice(names)] = attack.draw.choice([b"", b"x", attack.draw.randbytes(100)])


def add_a_folder(attack: Attack) -> None:
    attack.files[attack.draw.choice(["x", ".git", "..."])] = None


def turn_into_a_link(attack: Attack) -> None:
    name = attack.name()
    targets = [
        attack.outside / name,
        Path("/dev/zero"),
        Path("/dev/null"),
        Path(name),
        attack.outside,
        Path("/nowhere"),
    ]
    attack.files[name] = attack.draw.choice(targets)


def turn_into_a_folder(attack: Attack) -> None:
    attack.files[attack.name()] = None


def take_from_another_bundle(attack: Attack) -> None:
    names = attack.draw.sample(sorted(attack.other), attack.draw.randint(1, len(attack.other) - 1))
    attack.files.update({name: attack.other[name] for name in names})


def edit_the_manifest(attack: Attack) -> None:
    """Each edit for itself, or signed with a key of one's own, under its id or ours."""
    manifest = attack.manifest()
    name = attack.name(of="content")
    content = attack.draw.randbytes(10)
    attack.draw.choice(
        [
            lambda: manifest.update(run="other"),
            lambda: manifest.update(graphs={}),
            lambda: manifest.update(key_id=THEIRS.key_id),
            lambda: manifest.update(more=1),
            lambda: manifest["files"].pop(name),
            lambda: manifest["files"][name].update(sha256=digest(content), size=len(content)),
        ]
    )()
    if attack.draw.random() < 0.5 and name in manifest["files"]:
        attack.files[name] = content
        manifest["files"][name] = {"sha256": digest(content), "size": len(content)}
    elif name not in manifest["files"]:
        del attack.files[name]
    key, identity = attack.draw.choice([(None, ""), (THEIRS, ""), (THEIRS, OURS.key_id)])
    attack.put(manifest, signed=key, as_id=identity)


def sign_with_another_key(attack: Attack) -> None:
    manifest = {**attack.manifest(), "key_id": attack.draw.choice([OURS.key_id, THEIRS.key_id, None])}
    attack.put(manifest, signed=THEIRS, as_id=attack.draw.choice(["", OURS.key_id, "", "\x1b[2J", "x" * 3_000]))


def edit_the_signature(attack: Attack) -> None:
    said = json.loads(attack.files[SIGNATURE])
    field = attack.draw.choice([*said, "more"])
    wrong = [None, "", [], {}, 1, True, "none", "RSA", "\0", "AAAA", "=", "ä", base64.b64encode(bytes(64)).decode()]
    attack.files[SIGNATURE] = lax({**said, field: attack.draw.choice(wrong)})


def odd_json(attack: Attack) -> bytes:
    depth = attack.draw.choice([500, 5_000, 100_000])
    manifest = attack.files[MANIFEST]
    return attack.draw.choice(
        [
            b"",
            b"\0",
            b"null",
            b"[]\n",
            b'"text"\n',
            b"{}\n",
            b"[" * depth,
            b"[" * depth + b"]" * depth,
            b'{"a":' * depth + b"1" + b"}" * depth + b"\n",
            manifest.replace(b"{", b'{"a":' + b"[" * 500 + b"]" * 500 + b",", 1),
            manifest.replace(b'"format":1', b'"format":' + b"1" * 5_000),
            manifest.replace(b'"format":1', b'"format":NaN'),
            manifest.replace(b'"format":1', b'"format":1e999'),
            manifest.replace(b'"format":1', b'"format":1,"format":1'),
            manifest.replace(b'"cards"', b'"\\ud800"'),
            manifest.replace(b'"cards"', b'"\xff"'),
            manifest.replace(b'"cards"', b'"\0"'),
            manifest.replace(b",", b", "),
            b"\xef\xbb\xbf" + manifest,
            manifest.decode().encode("utf-16"),
            manifest.rstrip() + b" " * 5 * 2**20,
        ]
    )


def put_odd_json(attack: Attack) -> None:
    """Signed by our own key, so that it comes as far as the parser."""
    if attack.draw.random() < 0.3:
        attack.files[SIGNATURE] = odd_json(attack)
    else:
        attack.put(odd_json(attack), signed=OURS)


def wrong_types(name: str, size: int) -> list[tuple[list[str], Any]]:
    """Places in a manifest, and what must not be there."""
    wrong: list[Any] = [0, True, -1, 1.5, [], ["x"], {"x": 1}, "", "x" * 500]
    places: list[tuple[list[str], list[Any]]] = [
        *(([field], wrong) for field in ("name", "run", "files", "encryption", "config_sha256")),
        (["format"], [None, True, 0, 2, 1.0, "1", [1]]),
        (["graphs"], [1, "x", [], True]),
        (["files"], [None, {}]),
        (["key_id"], [*wrong, None, "0" * 16]),
        (["files", name], [*wrong, None, {}, {"size": 1}]),
        (["files", name, "size"], [None, True, -1, float(size), f"{size}", 2**60, 10**30, []]),
        (["files", name, "sha256"], [None, 1, "", "0" * 64, "g" * 64, "F" * 64, "0" * 64 + "\n", []]),
        (["files", name, "more"], [None]),
    ]
    return [(place, value) for place, values in places for value in values]


def put_a_wrong_type(attack: Attack, number: int | None = None) -> None:
    """Signed by our own key: what breaks a rule is refused, whoever made it."""
    manifest = attack.manifest()
    name = attack.name(of="content")
    choices = wrong_types(name, manifest["files"][name]["size"])
    place, value = attack.draw.choice(choices) if number is None else choices[number]
    target = manifest
    for step in place[:-1]:
        target = target[step]
    target[place[-1]] = value
    attack.put(manifest, signed=OURS)


def leave_out_a_field(attack: Attack) -> None:
    manifest = attack.manifest()
    del manifest[attack.draw.choice(["format", "name", "run", "files", "key_id", "encryption"])]
    attack.put(manifest, signed=OURS)


def put_an_unsafe_name(attack: Attack) -> None:
    """Signed by our own key, and in the folder under that name where a file can have it."""
    name = attack.name(of="content")
    odd = [
        "../x",
        "..",
        ".",
        "/etc/passwd",
        "a/b",
        "a/../x",
        "C:\\x",
        "..\\x",
        "",
        "x\0",
        "x\0.onnx",
        "\0",
        "x\n",
        " x",
    ]
    odd += [str(attack.outside / name), ".hidden", MANIFEST, SIGNATURE, "Manifest.json", "~", "$HOME", "x" * 101, "ä"]
    odd += [name.upper(), "-rf", "a;b", "CON:", "%2e%2e%2fx", "\u202ex", "\ud800"]
    new = attack.draw.choice(odd)
    manifest = attack.manifest()
    facts = manifest["files"][name] if attack.draw.random() < 0.5 else manifest["files"].pop(name)
    manifest["files"][new] = facts
    if manifest["encryption"]:
        manifest["encryption"]["keys"] = dict.fromkeys(manifest["files"], "AAAA")
    attack.put(manifest, signed=OURS)


def tamper_with_encryption(attack: Attack) -> None:
    """Changed, rehashed and signed by our own key, so that it comes as far as the cipher; none if it is plain."""
    manifest = attack.manifest()
    if (encryption := manifest["encryption"]) is None:
        return
    one, two = attack.draw.sample(sorted(manifest["files"]), 2)
    content, keys = bytearray(attack.files[one]), encryption["keys"]
    content[attack.draw.randrange(len(content))] ^= 1 << attack.draw.randrange(8)
    chunk = envelopes.CHUNK + 16
    cut = attack.files["model.onnx"][: 16 + chunk * attack.draw.randrange(1, 3)]
    attack.draw.choice(
        [
            lambda: attack.files.update({one: bytes(content)}),
            lambda: attack.files.update({one: attack.files[one][: attack.draw.randrange(len(content))]}),
            lambda: attack.files.update({"model.onnx": cut}),
            lambda: attack.files.update({one: attack.files[two], two: attack.files[one]}),
            lambda: (
                attack.files.update({one: attack.files[two], two: attack.files[one]})
                or keys.update({one: keys[two], two: keys[one]})
            ),
            lambda: keys.update({one: keys[two]}),
            lambda: keys.update({one: attack.draw.choice(["", "AAAA", "!", "ä", "\0", 1, None])}),
            lambda: keys.pop(one),
            lambda: encryption.update(scheme="none"),
            lambda: encryption.update(master=attack.draw.choice(["kms://x", "key:0", "", None, "\x1b[2J"])),
            lambda: encryption.update(more=1),
            lambda: encryption.pop(attack.draw.choice(["scheme", "master", "keys"])),
        ]
    )()
    manifest["files"] = {
        name: {"sha256": digest(attack.files[name]), "size": len(attack.files[name])} for name in manifest["files"]
    }
    attack.put(manifest, signed=OURS)


ATTACKS: list[Callable[[Attack], None]] = [
    flip_a_bit,
    flip_a_bit_of_the_manifest,
    overwrite_bytes,
    truncate,
    lengthen,
    swap_files,
    remove,
    rename,
    add_a_file,
    add_a_folder,
    turn_into_a_link,
    turn_into_a_folder,
    take_from_another_bundle,
    edit_the_manifest,
    sign_with_another_key,
    edit_the_signature,
    put_odd_json,
    put_a_wrong_type,
    leave_out_a_field,
    put_an_unsafe_name,
    tamper_with_encryption,
]


def attacked(original: Mapping[str, bytes], other: Mapping[str, bytes], outside: Path, seed: int) -> tuple[str, Any]:
    """The files of a bundle that is not as it was, and how it came so."""
    draw = random.Random(seed)
    attack = ATTACKS[seed % len(ATTACKS)]
    while True:
        attempt = Attack(dict(original), other, outside, draw)
        attack(attempt)
        if attempt.files not in (original, other):
            return attack.__name__, attempt.files
        attack = draw.choice(ATTACKS)  # such as an attack on the encryption of a plain bundle


def outcome(folder: Path, **how: Any) -> str:
    """What came of opening it: refused, opened, or what else was raised."""
    try:
        open_bundle(folder, trusted=TRUSTED, envelope=MASTER, **how)
    except TrustError as error:
        return "refused" if str(error).isprintable() else f"said {str(error)!r}"
    except BaseException as error:
        return f"raised {error!r}"
    return "opened"


@pytest.fixture(params=["plain", "encrypted"])
def bundles(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[dict[str, bytes], dict[str, bytes]]:
    """A bundle and another, each of which opens."""
    monkeypatch.setattr(envelopes, "CHUNK", 1_000)
    envelope = MASTER if request.param == "encrypted" else None
    found = []
    for name, extra in (("one", b""), ("two", b"x")):
        lay(tmp_path / name, {key: content + extra for key, content in PLAIN.items()})
        write(tmp_path / name, ABOUT, key=OURS, envelope=envelope)
        found.append({path.name: path.read_bytes() for path in (tmp_path / name).iterdir()})
        assert outcome(lay(tmp_path / "laid", found[-1])) == "opened"
    return found[0], found[1]


def test_every_bundle_that_was_tampered_with_is_refused(
    bundles: tuple[dict[str, bytes], dict[str, bytes]], tmp_path: Path
) -> None:
    wrong, seen = [], set()
    for seed in range(MUTATIONS // 2):
        attack, files = attacked(*bundles, tmp_path / "one", seed)
        came = outcome(lay(tmp_path / "bundle", files))
        seen.add(attack)
        if came != "refused":
            wrong.append(f"{attack} (seed {seed}): {came}")
    assert not wrong, "\n".join(wrong[:20])
    assert len(seen) >= len(ATTACKS) - 1
    assert outcome(lay(tmp_path / "bundle", bundles[0])) == "opened"


def test_no_value_of_a_wrong_type_is_taken(bundles: tuple[dict[str, bytes], dict[str, bytes]], tmp_path: Path) -> None:
    for number in range(len(wrong_types("any", 0))):
        attack = Attack(dict(bundles[0]), bundles[1], tmp_path, random.Random(number))
        put_a_wrong_type(attack, number)
        assert outcome(lay(tmp_path / "bundle", attack.files)) == "refused", attack.files[MANIFEST]


def test_nothing_that_was_tampered_with_crashes_us_where_no_signature_is_asked_for(
    bundles: tuple[dict[str, bytes], dict[str, bytes]], tmp_path: Path
) -> None:
    unsigned = [dict(bundle) for bundle in bundles]
    for bundle in unsigned:
        del bundle[SIGNATURE]
        bundle[MANIFEST] = canonical({**json.loads(bundle[MANIFEST]), "key_id": None})
    assert outcome(lay(tmp_path / "bundle", unsigned[0]), allow_unsigned=True) == "opened"
    came = []
    for seed in range(300):
        _, files = attacked({**unsigned[0], SIGNATURE: bundles[0][SIGNATURE]}, unsigned[1], tmp_path / "one", seed)
        files.pop(SIGNATURE, None)
        came.append(outcome(lay(tmp_path / "bundle", files), allow_unsigned=True))
    assert set(came) <= {"refused", "opened"}
    assert came.count("refused") > 200
