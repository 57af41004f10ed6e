"""A registry in a folder: versions that are whole, pointers, what is refused, and what each mistake is answered."""

import json
import multiprocessing
import os
import re
import resource
import signal
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pytest

from train import errors
from train.bundle import write
from train.envelope import Envelope, KeyFile
from train.errors import ConfigError, StorageError, TrustError
from train.keys import SigningKey, Trusted, new
from train.objects.place import Settings, open_objects
from train.registry import __main__ as command
from train.registry import pointers
from train.registry.fetch import fetch
from train.registry.publish import publish

Make = Callable[..., Path]
Verb = Callable[..., tuple[int | str | None, str, str]]


@pytest.fixture
def key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SigningKey:
    """A key that is trusted here."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for name in ("FULLCYCLE_SIGNING_KEY", "FULLCYCLE_TRUSTED_KEYS"):
        monkeypatch.delenv(name, raising=False)
    return new(tmp_path / "home" / ".config" / "fullcycle" / "signing.key")


@pytest.fixture
def make(key: SigningKey, tmp_path: Path) -> Make:
    """Makes bundles of two files."""

    def make(run: str, *, size: int = 3_000_000, signer: SigningKey | None = key, **options: Envelope) -> Path:
        folder = tmp_path / "bundles" / run
        folder.mkdir(parents=True)
        (folder / "model.onnx").write_bytes(run.encode() * (size // len(run)))
        (folder / "schema.json").write_text("{}")
        return write(folder, {"name": "cards", "run": run, "graphs": {}}, key=signer, **options)

    return make


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """Where the registry is; not there yet."""
    return tmp_path / "registry"


@pytest.fixture
def verb(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Verb:
    """Calls the verb in this process; gives its exit code, standard output and error."""

    def verb(*words: object) -> tuple[int | str | None, str, str]:
        monkeypatch.setattr(sys, "argv", ["registry", *map(str, words)])
        try:
            code: int | str | None = errors.guard(command.main)
        except SystemExit as end:  # of argparse
            code = end.code
        return code, *capsys.readouterr()

    return verb


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def run_of(folder: Path) -> str:
    return str(json.loads((folder / "manifest.json").read_text())["run"])


def largest_blob(place: Path) -> Path:
    return max((place / "blobs").iterdir(), key=lambda path: path.stat().st_size)


def test_what_is_published_is_fetched_byte_for_byte(make: Make, place: Path, tmp_path: Path) -> None:
    one, two = make("one"), make("two")
    assert publish(one, str(place)) == "v1"
    assert publish(two, f"file://{place}") == "v2"
    assert contents(fetch(str(place), "v1", tmp_path / "a" / "b")) == contents(one)
    assert contents(fetch(str(place), "latest", tmp_path / "c")) == contents(two)
    assert contents(fetch(str(place), "latest", tmp_path / "c")) == contents(two), "again is no mistake"
    (tmp_path / "empty").mkdir()
    assert contents(fetch(str(place), "v1", tmp_path / "empty")) == contents(one)
    assert not [path for path in tmp_path.rglob(".*") if path.name not in (".lock", ".config")]
    assert len(list((place / "blobs").iterdir())) == 3, "a file that two versions have is there once"


def test_publishing_the_latest_again_makes_no_other_version(make: Make, place: Path) -> None:
    one, two = make("one"), make("two")
    lines: list[str] = []
    assert [publish(folder, str(place), tell=lines.append) for folder in (one, one, two, one)] == [
        "v1",
        "v1",
        "v2",
        "v3",
    ]
    assert lines[0].endswith("sent 2 files in 2 parts, 3,000,002 bytes; 0 files and 0 parts were there already")
    assert lines[1].endswith("sent 0 files in 0 parts, 0 bytes; 2 files and 0 parts were there already")


def test_a_publisher_that_was_killed_before_it_moved_latest_gets_its_version(make: Make, place: Path) -> None:
    publish(make("one"), str(place))
    before = (place / "latest.json").read_bytes()
    publish(make("two"), str(place))
    (place / "latest.json").write_bytes(before)
    assert publish(place.parent / "bundles" / "two", str(place)) == "v2"
    assert json.loads((place / "latest.json").read_bytes())["version"] == "v2"


def _publish(arguments: tuple[Path, str]) -> str:
    return publish(*arguments)


def test_publishers_at_once_get_a_version_each_and_readers_see_whole_ones(
    make: Make, place: Path, tmp_path: Path, verb: Verb
) -> None:
    folders = [make(f"run{number}", size=300_000) for number in range(16)]
    publish(folders[0], str(place))
    seen, over = [], threading.Event()

    def read() -> None:
        while not over.is_set():
            seen.append(run_of(fetch(str(place), "latest", tmp_path / f"seen{len(seen)}")))

    reader = threading.Thread(target=read)
    reader.start()
    with ProcessPoolExecutor(4, mp_context=multiprocessing.get_context("spawn")) as pool:
        found = list(pool.map(_publish, [(folder, str(place)) for folder in folders[1:]]))
    over.set()
    reader.join()
    assert sorted(found, key=lambda name: int(name[1:])) == [f"v{number}" for number in range(2, 17)]
    assert verb("verify", place)[1].count("good") == 16
    assert json.loads((place / "latest.json").read_text())["version"] == "v16"
    assert seen, "whole versions were read meanwhile"


def test_production_is_promoted_and_rolled_back(make: Make, place: Path, verb: Verb, key: SigningKey) -> None:
    for run in ("one", "two", "three"):
        publish(make(run), str(place))
    for version in ("v1", "latest", "v2"):
        assert verb("promote", place, version)[0] == 0
    assert verb("rollback", place) == (0, f"production of {place} is v3 again\n", "")
    code, table, _ = verb("list", place)
    rows = [line.split() for line in table.splitlines()]
    assert code == 0
    assert [row[:5] for row in rows[1:]] == [
        [f"v{number}", run, "2", "3,000,002", key.key_id] for number, run in enumerate(("one", "two", "three"), 1)
    ]
    assert table.endswith("latest, production\n")
    assert verb("rollback", place)[1] == f"production of {place} is v1 again\n"
    code, _, message = verb("rollback", place)
    assert (code, message) == (2, f"production of {place} has no version before: nothing to roll back to\n")
    assert json.loads(verb("show", place, "production")[1])["run"] == "one"


def test_latest_is_not_moved_back_by_a_publisher_that_is_late(make: Make, place: Path) -> None:
    publish(make("one"), str(place))
    publish(make("two"), str(place))
    objects = open_objects(str(place))
    late = pointers.move(objects, "latest", "v1", "0" * 64, only_forward=True)
    assert late.version == "v2"


@pytest.mark.parametrize(
    "tamper", ["flip", "cut", "grow", "delete", "manifest", "signature", "pointer", "no signature"]
)
def test_what_was_tampered_with_is_refused(tamper: str, make: Make, place: Path, tmp_path: Path, verb: Verb) -> None:
    publish(make("one"), str(place))
    publish(make("two"), str(place))
    blob, manifest = largest_blob(place), place / "v2" / "manifest.json"
    signature = sorted((place / "signatures").iterdir())
    content = blob.read_bytes()
    if tamper in ("flip", "cut", "grow"):
        for each in (place / "blobs").iterdir():
            changed = {"flip": b"x" + content[1:], "cut": content[:-1], "grow": content + b"x"}
            each.write_bytes(changed[tamper])
    elif tamper == "delete":
        for each in (place / "blobs").iterdir():
            each.unlink()
    elif tamper == "manifest":
        manifest.write_bytes(manifest.read_bytes().replace(b'"two"', b'"six"'))
    elif tamper == "pointer":
        (place / "latest.json").write_text("[" * 100_000)
    else:
        for each in signature:
            each.write_bytes(b"{}") if tamper == "signature" else each.unlink()
    with pytest.raises(TrustError):
        fetch(str(place), "latest", tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert not list(tmp_path.glob(".*"))
    code, _, message = verb("verify", place, "latest")
    assert code == 9
    assert len(message.splitlines()) <= 2


def test_a_blob_that_was_damaged_is_mended_by_publishing_again(make: Make, place: Path, tmp_path: Path) -> None:
    folder = make("one")
    publish(folder, str(place))
    largest_blob(place).write_bytes(b"")
    assert publish(folder, str(place)) == "v1"
    fetch(str(place), "latest", tmp_path / "out")


def test_who_is_not_trusted_publishes_and_is_read_nowhere(make: Make, place: Path, tmp_path: Path, verb: Verb) -> None:
    stranger = new(tmp_path / "stranger.key")
    folder = make("one", signer=stranger)
    with pytest.raises(TrustError, match="is not trusted here"):
        publish(folder, str(place))
    assert not place.exists()
    publish(folder, str(place), trusted=Trusted(stranger.public))
    with pytest.raises(TrustError, match="v1 of .* cannot be trusted: the key .* is not trusted here"):
        fetch(str(place), "latest", tmp_path / "out")
    assert verb("promote", place, "v1")[0] == 9
    assert "NOT TRUSTED" in verb("list", place)[1]
    assert verb("fetch", place, "--output", tmp_path / "out", "--trust", tmp_path / "stranger.pub")[0] == 0


def test_a_bundle_without_a_signature_is_taken_where_that_is_asked_for(
    make: Make, place: Path, tmp_path: Path, verb: Verb
) -> None:
    folder = make("one", signer=None)
    assert verb("publish", place, folder)[0] == 9
    assert verb("publish", place, folder, "--allow-unsigned")[0] == 0
    assert verb("fetch", place, "--output", tmp_path / "out")[0] == 9
    assert verb("fetch", place, "--output", tmp_path / "out", "--allow-unsigned")[0] == 0
    assert contents(tmp_path / "out") == contents(folder)
    assert "unsigned" in verb("list", place, "--allow-unsigned")[1]


def test_gc_deletes_what_no_version_has_and_nothing_young(make: Make, place: Path, verb: Verb) -> None:
    publish(make("one"), str(place))
    forgotten, torn = place / "blobs" / ("0" * 64), place / "blobs" / f".{'1' * 64}.12.part"
    young = place / "blobs" / ("2" * 64)
    for path in (forgotten, torn, young):
        path.write_bytes(b"x")
    for path in (forgotten, torn, *place.rglob("*")):
        if path != young and path.is_file():
            os.utime(path, (0, 0))
    assert "2 objects would be deleted" in verb("gc", place, "--dry-run")[1]
    assert forgotten.exists()
    assert "2 objects were deleted" in verb("gc", place)[1]
    assert young.exists()
    assert not forgotten.exists()
    assert not torn.exists()
    assert "1 objects were deleted" in verb("gc", place, "--older-than", "0s")[1]
    assert verb("verify", place)[0] == 0


def test_gc_deletes_nothing_where_a_manifest_is_damaged(make: Make, place: Path, verb: Verb) -> None:
    publish(make("one"), str(place))
    (place / "v1" / "manifest.json").write_text("{}")
    code, _, message = verb("gc", place, "--older-than", "0s")
    assert (code, "nothing was deleted: the manifest of v1" in message) == (6, True)
    assert len(list((place / "blobs").iterdir())) == 2


def test_publishing_makes_an_old_file_new_so_that_gc_leaves_it(make: Make, place: Path, verb: Verb) -> None:
    folder = make("one")
    publish(folder, str(place))
    (place / "v1" / "manifest.json").unlink()
    (place / "latest.json").unlink()
    for path in place.rglob("*"):
        os.utime(path, (0, 0))
    publish(folder, str(place))
    (place / "v1" / "manifest.json").unlink()
    assert verb("gc", place, "--older-than", "1h")[1] == "0 objects were deleted\n"
    assert len(list((place / "blobs").iterdir())) == 2


def _fetch_onto_a_small_disk(place: Path, output: Path) -> None:
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, 1_000_000))
    with pytest.raises(StorageError, match="could not write .*out: .*Make room"):
        fetch(str(place), "latest", output)


def test_a_disk_that_is_full_is_told_and_leaves_nothing(make: Make, place: Path, tmp_path: Path) -> None:
    publish(make("one"), str(place))
    process = multiprocessing.get_context("spawn").Process(
        target=_fetch_onto_a_small_disk, args=(place, tmp_path / "disk" / "out")
    )
    process.start()
    process.join(60)
    assert process.exitcode == 0
    assert not list((tmp_path / "disk").iterdir())


def test_an_encrypted_bundle_is_published_and_fetched_without_its_key(make: Make, place: Path, tmp_path: Path) -> None:
    folder = make("one", envelope=Envelope(KeyFile(os.urandom(32))))
    publish(folder, str(place))
    assert contents(fetch(str(place), "latest", tmp_path / "out")) == contents(folder)


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        ("list gs://bucket/cards", 2, "the place must be s3://BUCKET/PREFIX, file:///FOLDER or a plain path"),
        ("list s3:///cards", 2, "an object store is given as s3://BUCKET"),
        ("list file://cards", 2, "the place must be s3://"),
        ("show PLACE v7", 2, "unknown version v7 in PLACE: it has v1"),
        ("show PLACE 7", 2, "a version is named v1, v2 and so on, or by a pointer, latest or production; got '7'"),
        ("show PLACE production", 2, "PLACE has no production: it has v1"),
        ("show PLACE/none", 2, "PLACE/none has no latest: nothing is published there"),
        ("verify PLACE/none", 2, "nothing is published in PLACE/none"),
        ("promote PLACE v2", 2, "unknown version v2 in PLACE: it has v1"),
        ("fetch PLACE --output PLACE", 2, "is there already and is not v1: give another name"),
        ("publish PLACE PLACE/none", 2, "there is no bundle"),
        ("publish PLACE/latest.json BUNDLE", 6, "PLACE/latest.json cannot be used: .*Not a directory"),
        ("list PLACE --sse AES128", 2, "sse must be None or 'AES256' or 'aws:kms'; got 'AES128'"),
        ("list PLACE --part-size 1", 2, "part_size must be at least 5 MiB"),
        ("list PLACE --sse-kms-key-id k", 2, "sse_kms_key_id goes with sse 'aws:kms' only; got sse None"),
        ("gc PLACE --older-than 3", 2, "must be a number with s, m, h or d, such as 6h; got '3'"),
        ("drop PLACE", 2, "invalid choice: 'drop'"),
    ],
)
def test_a_mistake_is_answered_in_a_sentence(
    words: str, code: int, message: str, make: Make, place: Path, verb: Verb
) -> None:
    publish(make("one"), str(place))
    filled = words.replace("PLACE", str(place)).replace("BUNDLE", str(place.parent / "bundles" / "one"))
    found, output, errors = verb(*filled.split())
    assert (found, output) == (code, "")
    assert re.search(message.replace("PLACE", re.escape(str(place))), errors), errors


def test_settings_of_a_store_are_checked() -> None:
    with pytest.raises(ConfigError, match="parallel must be at least 1; got 0"):
        Settings(parallel=0)
    with pytest.raises(ConfigError, match="checksums must be 'when_supported' or 'when_required'; got 'never'"):
        Settings(checksums="never")


def test_help_shows_every_verb(verb: Verb) -> None:
    code, text, _ = verb("--help")
    assert code == 0
    for name in ("publish", "list", "show", "promote", "rollback", "fetch", "verify", "gc"):
        assert f"python -m train.registry {name} PLACE" in text
        assert verb(name, "--help")[0] == 0
