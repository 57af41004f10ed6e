"""A registry in a real object store: who may, conditional puts, kill and resume, many publishers, encryption."""

import contextlib
import json
import re
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from train.errors import ConfigError, StorageError, TrustError
from train.objects.place import MEBIBYTE, Settings, open_objects
from train.registry.fetch import fetch
from train.registry.publish import publish

pytestmark = pytest.mark.services

Verb = Callable[..., subprocess.Popen[str]]
Make = Callable[..., Path]
PARTS, MEBIBYTES = 24, 5 * 24


def done(process: subprocess.Popen[str], code: int = 0) -> str:
    """What a process wrote, once it has ended as it should."""
    output, errors = process.communicate(timeout=120)
    assert process.returncode == code, errors
    assert "Traceback" not in errors
    return output if code == 0 else errors


def sent(line: str) -> tuple[int, int]:
    """How many parts were sent, and how many were there already."""
    match = re.search(r"in (\d+) parts, .* and (\d+) parts were there already", line)
    assert match is not None, line
    return int(match[1]), int(match[2])


def arrived(client: Any, bucket: str) -> int:
    """How many parts of an unfinished upload the store has."""
    with contextlib.suppress(client.exceptions.NoSuchUpload):
        for upload in client.list_multipart_uploads(Bucket=bucket).get("Uploads", []):
            parts = client.list_parts(Bucket=bucket, Key=upload["Key"], UploadId=upload["UploadId"])
            return len(parts.get("Parts", []))
    return 0


class Reader:
    """Fetches `latest` again and again; whatever it gets must be whole."""

    def __init__(self, uri: str, folder: Path) -> None:
        self.uri, self.folder = uri, folder
        self.runs: list[str] = []
        self.away = 0
        self.errors: list[Exception] = []
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._work, daemon=True)

    def __enter__(self) -> "Reader":
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._over.set()
        self._thread.join(60)

    def _work(self) -> None:
        settings = Settings(patience_seconds=0.1)
        while not self._over.is_set():
            output = self.folder / f"read{len(self.runs) + self.away}"
            try:
                fetch(self.uri, "latest", output, settings=settings)
                self.runs.append(json.loads((output / "manifest.json").read_text())["run"])
            except StorageError:  # the gateway is down
                self.away += 1
            except Exception as error:
                self.errors.append(error)
            time.sleep(0.02)


@pytest.fixture
def killable(ceph: Any) -> Iterator[Any]:
    """A Ceph whose gateway runs again at the end, whatever a test did to it."""
    yield ceph
    ceph.call("start-gateway")


def test_a_publish_outlives_its_gateway(killable, slow, bucket, make: Make, verb: Verb, wait_until, tmp_path):
    uri = f"s3://{bucket}/deep/cards"
    publish(make("old"), uri)
    with Reader(uri, tmp_path) as reader:
        publisher = verb("publish", uri, make("new", mebibytes=MEBIBYTES), "--part-size", 5, AWS_ENDPOINT_URL=slow)
        wait_until("four parts", lambda: arrived(killable.client, bucket) >= 4, 60)
        killable.call("kill-gateway")
        time.sleep(1)
        killable.call("start-gateway")
        line = done(publisher)
        wait_until("the reader to see it", lambda: "new" in reader.runs or reader.errors, 60)
    print(line, f"{len(reader.runs)} whole versions were read, and the store was away {reader.away} times")
    assert not reader.errors
    assert set(reader.runs) == {"old", "new"}
    assert sorted(reader.runs, key=["old", "new"].index) == reader.runs
    assert re.match(r"v2 of .*tries failed", line)
    assert sent(line) == (PARTS, 0)


@pytest.mark.parametrize("killed", ["gateway", "publisher"])
def test_the_same_command_goes_on_and_sends_what_is_missing(
    killed: str, killable, slow, bucket, make: Make, verb: Verb, wait_until, tmp_path
):
    uri, folder = f"s3://{bucket}/cards", make("new", mebibytes=MEBIBYTES)
    publish(make("old"), uri)
    words = ("publish", uri, folder, "--part-size", 5, "--patience-seconds", 0.5)
    with Reader(uri, tmp_path) as reader:
        first = verb(*words, AWS_ENDPOINT_URL=slow)
        wait_until("four parts", lambda: arrived(killable.client, bucket) >= 4, 60)
        if killed == "gateway":
            killable.call("kill-gateway")
            assert re.search(r"s3://.* cannot be used now, at http://.*Start again when", done(first, 6))
            killable.call("start-gateway")
        else:
            first.kill()
            first.wait()
        there = arrived(killable.client, bucket)
        line = done(verb(*words))
        wait_until("the reader to see it", lambda: "new" in reader.runs or reader.errors, 60)
    print(f"{there} of {PARTS} parts had arrived; {line}; {len(reader.runs)} whole versions were read")
    assert not reader.errors
    assert 4 <= there < PARTS
    new, kept = sent(line)
    assert new + kept == PARTS
    # Parts that were under way may have arrived after their publisher was killed.
    assert kept == there if killed == "gateway" else there <= kept <= there + 4
    assert set(reader.runs) == {"old", "new"}
    assert "Uploads" not in killable.client.list_multipart_uploads(Bucket=bucket)
    assert done(verb(*words)).startswith("v2 "), "it is the latest version already, and becomes no other"


def test_sixteen_publishers_at_once_make_sixteen_whole_versions(ceph, bucket, make: Make, verb: Verb, tmp_path):
    uri, runs = f"s3://{bucket}/cards", [f"run{number}" for number in range(16)]
    folders = [make(run, mebibytes=1) for run in runs]
    with Reader(uri, tmp_path) as reader:
        lines = [done(process) for process in [verb("publish", uri, folder) for folder in folders]]
    names = [f"v{number}" for number in range(1, 17)]
    assert sorted((line.split()[0] for line in lines), key=names.index) == names
    found = [fetch(uri, name, tmp_path / name) for name in names]
    assert sorted(json.loads((path / "manifest.json").read_text())["run"] for path in found) == sorted(runs)
    assert fetch(uri, "latest", tmp_path / "v16") == tmp_path / "v16"
    assert done(verb("verify", uri)).count("good") == 16
    # Before the first: nothing there, or v1 a moment before `latest` points at it.
    early = [error for error in reader.errors if isinstance(error, ConfigError) and "has no latest" in str(error)]
    assert early == reader.errors


def test_only_one_writer_creates_and_only_one_replaces(ceph, bucket):
    objects = open_objects(f"s3://{bucket}/race", Settings(parallel=16))
    with ThreadPoolExecutor(16) as pool:
        assert sum(pool.map(lambda number: objects.create("one", b"%d" % number), range(16))) == 1
        found = objects.read("one")
        assert found is not None
        assert sum(pool.map(lambda number: objects.replace("one", b"x%d" % number, tag=found[1]), range(16))) == 1
    assert not objects.replace("none", b"", tag=found[1])
    assert objects.read("none") is None


def test_a_store_that_forgets_conditions_is_refused_before_anything_is_published(
    ceph, bucket, make: Make, verb: Verb, tmp_path
):
    uri = f"s3://{bucket}/cards"
    publish(make("one"), uri)
    publish(make("two"), uri)
    # Ceph 16 takes every If-None-Match, and no If-Match, in such a bucket.
    ceph.client.put_bucket_versioning(Bucket=bucket, VersioningConfiguration={"Status": "Enabled"})
    with pytest.raises(ConfigError, match="takes a second object under a name that may be put only once"):
        publish(make("three"), uri)
    done(verb("promote", uri, "v1"))
    assert "cannot be changed by comparing (If-Match)" in done(verb("promote", uri, "v2"), 2)
    rows = done(verb("list", uri)).splitlines()[1:]
    assert [row.split()[0] for row in rows] == ["v1", "v2"]
    assert (rows[0].split()[-1], rows[1].split()[-1]) == ("production", "latest")
    fetch(uri, "latest", tmp_path / "out")


def test_a_bucket_with_versions_keeps_what_a_pointer_was(moto, make: Make, verb: Verb):
    moto.client.create_bucket(Bucket="kept")
    moto.client.put_bucket_versioning(Bucket="kept", VersioningConfiguration={"Status": "Enabled"})
    uri = "s3://kept/cards"
    assert [publish(make(run), uri) for run in ("one", "two")] == ["v1", "v2"]
    for words in (("promote", uri, "v1"), ("promote", uri, "v2"), ("rollback", uri)):
        done(verb(*words))
    listed = moto.client.list_object_versions(Bucket="kept")["Versions"]
    kept = [entry["Key"].removeprefix("cards/") for entry in listed]
    assert kept.count("production.json") == 3
    assert kept.count("v1/manifest.json") == 1
    assert done(verb("list", uri)).splitlines()[1].endswith("production")


@pytest.mark.parametrize(
    ("change", "words", "message"),
    [
        ({"AWS_SECRET_ACCESS_KEY": "wrong"}, "", r"refuses our credentials \(GetObject: SignatureDoesNotMatch\)"),
        ({"AWS_ACCESS_KEY_ID": "nobody"}, "", r"refuses our credentials \(GetObject: InvalidAccessKeyId\)"),
        ({"AWS_ACCESS_KEY_ID": "", "AWS_SECRET_ACCESS_KEY": ""}, "", "no credentials for s3://"),
        ({"AWS_ACCESS_KEY_ID": "guest", "AWS_SECRET_ACCESS_KEY": "guest-secret"}, "", r"\(GetObject: AccessDenied\)"),
        ({}, "--sse aws:kms", "does not take the request"),
    ],
)
def test_who_may_not_publish_is_told_so_and_nothing_is_published(
    change, words: str, message: str, ceph, bucket, make: Make, verb: Verb
):
    if change.get("AWS_ACCESS_KEY_ID") == "guest":
        ceph.call("user", "guest")
    errors = done(verb("publish", f"s3://{bucket}/cards", make("one"), *words.split(), **change), 2)
    assert re.search(message, errors)
    assert len(errors.splitlines()) <= 2, "a sentence, and how to see more"
    assert not [entry for entry in open_objects(f"s3://{bucket}").entries("cards/v")]


def test_what_is_not_there_is_said(ceph, bucket, make: Make, tmp_path):
    with pytest.raises(ConfigError, match="there is no bucket 'nowhere' for s3://nowhere/cards: make it"):
        publish(make("one"), "s3://nowhere/cards")
    with pytest.raises(ConfigError, match="has no latest: nothing is published there"):
        fetch(f"s3://{bucket}/cards", "latest", tmp_path / "out")
    publish(tmp_path / "bundles" / "one", f"s3://{bucket}/cards")
    with pytest.raises(ConfigError, match="unknown version v7 in s3://.*: it has v1"):
        fetch(f"s3://{bucket}/cards", "v7", tmp_path / "out")


def test_a_changed_file_is_refused_and_sent_again(ceph, bucket, make: Make, tmp_path):
    uri, folder = f"s3://{bucket}/cards", make("one")
    publish(folder, uri)
    objects = open_objects(uri)
    largest = max(objects.entries("blobs/"), key=lambda entry: entry.size)
    for content in (b"x" * largest.size, b"x" * (largest.size + 1), b""):
        ceph.client.put_object(Bucket=bucket, Key=f"cards/{largest.name}", Body=content)
        with pytest.raises(TrustError, match="model.onnx of v1 in s3://.* was changed"):
            fetch(uri, "latest", tmp_path / "out")
    objects.delete(largest.name)
    with pytest.raises(TrustError, match="model.onnx of v1 in s3://.* is not there: the version is not whole"):
        fetch(uri, "latest", tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert publish(folder, uri) == "v1"
    fetch(uri, "latest", tmp_path / "out")


def test_a_full_disk_is_told_and_leaves_nothing(ceph, bucket, make: Make, verb: Verb, tmp_path):
    uri, small = f"s3://{bucket}/cards", tmp_path / "small"
    publish(make("one", mebibytes=3), uri)
    small.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(small)]
    if subprocess.run(mount, capture_output=True).returncode != 0:
        pytest.skip("may not mount a small disk here")
    try:
        errors = done(verb("fetch", uri, "--output", small / "out"), 6)
        assert re.search("could not write .*No space left on device.*Make room", errors)
        assert not list(small.iterdir())
    finally:
        subprocess.run(["umount", str(small)], check=True)


def test_unfinished_uploads_and_forgotten_files_are_collected(ceph, slow, bucket, make: Make, verb: Verb, wait_until):
    uri = f"s3://{bucket}/cards"
    first = verb("publish", uri, make("lost", mebibytes=MEBIBYTES), "--part-size", 5, AWS_ENDPOINT_URL=slow)
    wait_until("four parts", lambda: arrived(ceph.client, bucket) >= 4, 60)
    first.kill()
    first.wait()
    publish(make("one"), uri)
    open_objects(uri).create("blobs/" + "0" * 64, b"forgotten")
    assert "0 objects were deleted" in done(verb("gc", uri))
    assert "2 objects would be deleted" in done(verb("gc", uri, "--older-than", "0s", "--dry-run"))
    assert "unfinished upload" in done(verb("gc", uri, "--older-than", "0s"))
    assert "0 objects were deleted" in done(verb("gc", uri, "--older-than", "0s"))
    assert arrived(ceph.client, bucket) == 0
    assert "v1  good" in done(verb("verify", uri))


@pytest.mark.parametrize("mebibytes", [0.01, 12])
def test_encryption_by_the_server_is_asked_for_and_seen(moto, mebibytes: float, make: Make, tmp_path):
    name = f"kms-{int(mebibytes)}"
    moto.client.create_bucket(Bucket=name)
    settings = Settings(part_size=5 * MEBIBYTE, sse="aws:kms", sse_kms_key_id="alias/models")
    publish(make("one", mebibytes=mebibytes), f"s3://{name}/cards", settings=settings)
    heads = [
        moto.client.head_object(Bucket=name, Key=entry["Key"])
        for entry in moto.client.list_objects_v2(Bucket=name)["Contents"]
    ]
    assert len(heads) == 5
    assert {head["ServerSideEncryption"] for head in heads} == {"aws:kms"}
    assert all(head["SSEKMSKeyId"].endswith("models") for head in heads)
    fetch(f"s3://{name}/cards", "latest", tmp_path / "out")


def test_a_file_that_lies_there_in_the_clear_is_sent_again_where_encryption_is_asked_for(moto, make: Make):
    moto.client.create_bucket(Bucket="clear")
    folder = make("one")
    publish(folder, "s3://clear/cards")
    lines: list[str] = []
    publish(folder, "s3://clear/cards", settings=Settings(sse="AES256"), tell=lines.append)
    assert "sent 2 files" in lines[0]
    publish(folder, "s3://clear/cards", settings=Settings(sse="AES256", checksums="when_required"), tell=lines.append)
    assert "sent 0 files" in lines[1]
