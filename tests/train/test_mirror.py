"""Checkpoints in an object store: a real server that comes late, hangs or is gone, and what a run notices of it."""

import contextlib
import logging
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from train.checkpoint import recent
from train.errors import ConfigError, StorageError
from train.mirror import Mirror
from train.run import run
from train.store import probe

boto3 = pytest.importorskip("boto3")
pytest.importorskip("moto.server", reason="needs moto[server,s3]")
pytestmark = pytest.mark.services

RUN = "cards/20260131-235959-1a2b"


class Server:
    """moto's S3 as a process of its own, on a port that is known before it runs."""

    def __init__(self) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self, *buckets: str) -> None:
        command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(self.port)]
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        wait_until(self.is_up)
        for bucket in buckets:
            self.client.create_bucket(Bucket=bucket)

    def is_up(self) -> bool:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), timeout=1):
            return True
        return False

    def stop(self) -> None:
        if self.process is not None:
            self.process.send_signal(signal.SIGCONT)
            self.process.kill()
            self.process.wait()

    @contextlib.contextmanager
    def hanging(self) -> Iterator[None]:
        assert self.process is not None
        self.process.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self.process.send_signal(signal.SIGCONT)

    @property
    def client(self) -> Any:
        return boto3.client("s3", endpoint_url=self.url, region_name="us-east-1")

    def names(self, bucket: str, run: str = RUN) -> list[str]:
        found = self.client.list_objects_v2(Bucket=bucket, Prefix=f"deep/er/{run}/checkpoints/")
        return [entry["Key"].rpartition("/")[2] for entry in found.get("Contents", [])]


@pytest.fixture
def later(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """A server that is not started yet."""
    server = Server()
    for name in ("AWS_PROFILE", "AWS_ENDPOINT_URL_S3", "AWS_SESSION_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_ENDPOINT_URL", server.url)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    yield server
    server.stop()


@pytest.fixture
def server(later: Server) -> Server:
    """One that runs and has a bucket `runs`."""
    later.start("runs")
    return later


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Callable[..., Mirror]]:
    """Makes mirrors of a folder of checkpoints, quick to try again."""
    made = []

    def make(folder: Path | None = None, **options: Any) -> Mirror:
        folder = folder or tmp_path / "checkpoints"
        folder.mkdir(parents=True, exist_ok=True)
        options = {"timeout_seconds": 10.0, "longest_pause_seconds": 0.2, **options}
        made.append(Mirror("s3://runs/deep/er/", RUN, folder, **options))
        return made[-1]

    yield make
    for mirror in made:
        mirror.close(0)


def save(mirror: Mirror, name: str, value: float, *, size: int = 100) -> Path:
    aside, path = mirror.folder / "aside", mirror.folder / name
    torch.save({"weights": torch.full((size,), float(value))}, aside)
    return aside.rename(path)


def offer(mirror: Mirror, name: str, value: float, **options: int) -> float:
    """Save and offer; return the seconds that the offer took."""
    path = save(mirror, name, value, **options)
    start = time.perf_counter()
    mirror.offer(path)
    return time.perf_counter() - start


def value_of(path: Path) -> float:
    return float(torch.load(path, weights_only=True)["weights"][0])


def wait_until(is_true: Callable[[], bool], seconds: float = 30) -> None:
    end = time.monotonic() + seconds
    while not is_true():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.05)


def warnings_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    found = [record for record in caplog.records if record.levelno >= logging.WARNING]
    return [record.getMessage() for record in found if record.name.startswith("train")]


def test_an_empty_folder_gets_back_the_best_and_the_newest(server, make, tmp_path, caplog):
    mirror = make()
    for step in (1, 2, 3, 10):
        assert offer(mirror, f"step={step:09d}.ckpt", step) < 0.5
        wait_until(lambda name=f"step={step:09d}.ckpt": name in server.names("runs"))
    offer(mirror, "best.ckpt", 7, size=20_000_000)  # 80 MB: in several parts
    config = mirror.folder.parent / "config.yaml"
    config.write_text("seed: 3")
    mirror.offer(config)
    assert mirror.close(30) == []
    assert server.names("runs") == ["best.ckpt", "config.yaml", "step=000000003.ckpt", "step=000000010.ckpt"]
    assert not list(mirror.folder.glob(".*"))

    elsewhere = make(tmp_path / "other" / "empty")
    assert [path.name for path in elsewhere.fetch()] == ["step=000000010.ckpt", "best.ckpt"]
    assert (tmp_path / "other" / "config.yaml").read_text() == "seed: 3"
    assert {path.name: value_of(path) for path in elsewhere.folder.iterdir()} == {
        "step=000000010.ckpt": 10,
        "best.ckpt": 7,
    }
    assert warnings_of(caplog) == []
    elsewhere.clear()
    assert elsewhere.fetch() == []
    assert server.names("runs") == []


def test_nothing_waits_for_a_store_that_is_down_and_it_has_the_newest_when_it_is_back(later, make, caplog):
    mirror = make()
    for step in range(1, 6):
        assert offer(mirror, f"step={step:09d}.ckpt", step) < 0.5
        assert offer(mirror, "best.ckpt", 10 * step) < 0.5
        (mirror.folder / f"step={step:09d}.ckpt").unlink()  # as a run does with those that it no longer keeps
    save(mirror, "best.ckpt", 99)  # one that is not offered: what was offered is uploaded
    wait_until(lambda: len(warnings_of(caplog)) > 0)
    time.sleep(1)
    assert len(list(mirror.folder.glob(".*.mirror"))) <= 3
    assert len(warnings_of(caplog)) == 1, "several attempts have failed, one warning"

    later.start("runs")
    wait_until(lambda: len(later.names("runs")) == 2)
    offer(mirror, "step=000000006.ckpt", 6)
    assert mirror.close(30) == []
    assert later.names("runs") == ["best.ckpt", "step=000000005.ckpt", "step=000000006.ckpt"]
    assert [value_of(path) for path in mirror.fetch()] == [6, 50]
    failed, worked = warnings_of(caplog)
    assert re.match(r"could not upload checkpoints to s3://runs/deep/er/cards/.*: .*connect.*Training goes on", failed)
    assert re.match(r"s3://runs/deep/er/cards/.* works again after \d+ seconds", worked)
    assert not list(mirror.folder.glob(".*"))


def test_a_store_that_hangs_holds_up_neither_training_nor_the_end(server, make, caplog):
    mirror = make(timeout_seconds=20.0)
    with server.hanging():
        offer(mirror, "step=000000001.ckpt", 1)
        time.sleep(1)  # it is being uploaded now
        assert max(offer(mirror, f"step={step:09d}.ckpt", step) for step in (2, 3)) < 0.5
        offer(mirror, "best.ckpt", 3)
        start = time.perf_counter()
        assert mirror.close(0.5) == ["step=000000001.ckpt", "step=000000003.ckpt", "best.ckpt"]
        assert time.perf_counter() - start < 1.5
    assert not list(mirror.folder.glob(".*"))
    assert len(warnings_of(caplog)) == 1
    assert "within 0.5 seconds: step=000000001.ckpt, step=000000003.ckpt, best.ckpt, which this" in caplog.text


PROCESS = """
import sys, time
from pathlib import Path
from train.mirror import Mirror
from train.run import run
path = Path(sys.argv[1])
mirror = Mirror("s3://runs/deep/er", "cards/1", path.parent)
mirror.offer(path)
time.sleep(2)
assert mirror.close(0.5) == [path.name]
print(time.time())
"""


def test_a_process_ends_at_once_though_its_upload_hangs(server, make):
    path = save(make(), "step=000000001.ckpt", 1)
    with server.hanging():
        done = subprocess.run([sys.executable, "-c", PROCESS, path], stdout=subprocess.PIPE, check=True, timeout=120)
        assert time.time() - float(done.stdout) < 15, "the time-out of a connection is 20 s"


def test_a_hang_in_the_middle_of_a_run_costs_nothing_but_warnings(server, make, caplog):
    mirror = make(timeout_seconds=1.0)
    with server.hanging():
        offer(mirror, "step=000000001.ckpt", 1)
        wait_until(lambda: len(warnings_of(caplog)) > 0)
        assert "timeout" in caplog.text.lower()
        offer(mirror, "step=000000002.ckpt", 2)
    assert mirror.close(30) == []
    assert "step=000000002.ckpt" in server.names("runs")
    assert [text for text in warnings_of(caplog) if "could not upload" in text] == warnings_of(caplog)[:1]


def test_torn_ones_are_passed_over(server, make, tmp_path, caplog):
    mirror = make(keep=3)
    for step in (1, 2, 3):
        offer(mirror, f"step={step:09d}.ckpt", step)
        wait_until(lambda name=f"step={step:09d}.ckpt": name in server.names("runs"))
    offer(mirror, "best.ckpt", 3)
    mirror.close(30)
    content = (mirror.folder / "step=000000002.ckpt").read_bytes()
    flipped = bytearray(content)
    flipped[content.index(torch.full((100,), 2.0).numpy().tobytes())] ^= 1
    bad = {"step=000000003.ckpt": content[:-100], "step=000000002.ckpt": bytes(flipped), "best.ckpt": content[:500]}
    for name, body in bad.items():
        server.client.put_object(Bucket="runs", Key=f"deep/er/{RUN}/checkpoints/{name}", Body=body)
    elsewhere = make(tmp_path / "empty")
    assert [path.name for path in elsewhere.fetch()] == ["step=000000001.ckpt"]
    assert os.listdir(elsewhere.folder) == ["step=000000001.ckpt"]
    assert [re.findall(r"[^/]*\.ckpt is torn", text) for text in warnings_of(caplog)] == [
        ["step=000000003.ckpt is torn"],
        ["step=000000002.ckpt is torn"],
        ["best.ckpt is torn"],
    ]


def test_what_is_offered_is_kept_where_the_file_system_has_no_links(later, make, monkeypatch):
    def refuse(*_: object) -> None:
        raise PermissionError("no links here")

    monkeypatch.setattr(os, "link", refuse)
    mirror = make()
    offer(mirror, "best.ckpt", 1)
    save(mirror, "best.ckpt", 2)
    later.start("runs")
    assert mirror.close(30) == []
    assert [value_of(path) for path in mirror.fetch()] == [1]


def test_an_offer_that_cannot_be_kept_is_a_warning(server, make, caplog):
    mirror = make()
    mirror.offer(mirror.folder / "step=000000001.ckpt")
    assert "step=000000001.ckpt is not mirrored" in warnings_of(caplog)[0]
    offer(mirror, "step=000000002.ckpt", 2)
    assert mirror.close(30) == []


def test_links_of_a_killed_process_are_removed(server, make):
    mirror = make()
    (mirror.folder / ".step=000000001.ckpt.0.mirror").touch()
    offer(mirror, "step=000000002.ckpt", 2)
    mirror.close(30)
    assert os.listdir(mirror.folder) == ["step=000000002.ckpt"]


def test_a_store_that_is_not_there_is_an_error_where_a_run_needs_it(later, make):
    mirror = make()
    with pytest.raises(StorageError, match=rf"s3://runs/.* cannot be used now, at {later.url}"):
        mirror.fetch()
    with pytest.raises(StorageError, match="Start again when the store is there"):
        mirror.clear()


def test_the_probe_tells_what_is_missing(server, monkeypatch):
    probe("s3://runs/deep/er")
    probe("s3://runs")
    assert "Contents" not in server.client.list_objects_v2(Bucket="runs"), "it leaves nothing behind"
    with pytest.raises(ConfigError, match="no bucket 'walks' for s3://walks/deep: make it"):
        probe("s3://walks/deep")
    for address in ("/tmp/runs", "s3://", "s3:///deep"):
        with pytest.raises(ConfigError, match=re.escape(f"s3://BUCKET/PREFIX, got {address!r}")):
            probe(address)
    server.stop()
    with pytest.raises(StorageError, match="cannot be used now"):
        probe("s3://runs/deep/er", timeout_seconds=1)
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", os.devnull)
    monkeypatch.setenv("AWS_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    with pytest.raises(ConfigError, match="no credentials for s3://runs/deep/er .*: set AWS_ACCESS_KEY_ID"):
        probe("s3://runs/deep/er")


def test_a_run_goes_on_from_the_store_on_a_machine_with_an_empty_disk(
    server: Server, configure: Callable[..., Any], tmp_path: Path
) -> None:
    options = ("run_id=moved", "model.schedule=constant", "model.warmup_share=0", "checkpoint.mirror=s3://runs/deep/er")
    whole = run(configure(*options[:-1], f"output_dir={tmp_path / 'whole'}"))
    lost = run(configure(*options, f"output_dir={tmp_path / 'lost'}", "trainer.max_epochs=1"))
    shutil.rmtree(lost.folder)
    moved = run(configure(*options, f"output_dir={tmp_path / 'new'}"))
    assert "going on from" in (moved.folder / "train.log").read_text()
    ends = [torch.load(recent(each.folder / "checkpoints")[0], weights_only=True) for each in (whole, moved)]
    assert ends[0]["global_step"] == ends[1]["global_step"]
    assert all(torch.equal(ends[0]["state_dict"][key], value) for key, value in ends[1]["state_dict"].items())
    assert moved.metrics == whole.metrics
    assert sorted(server.names("runs", "fraud/moved")) == sorted(
        ["best.ckpt", "config.yaml", *(path.name for path in recent(moved.folder / "checkpoints"))]
    )


def test_a_run_whose_store_is_down_trains_as_ever_and_warns(later: Server, configure: Callable[..., Any]) -> None:
    with pytest.raises(StorageError, match="cannot be used now"):  # it may have checkpoints there: not from zero
        run(configure("run_id=down", "checkpoint.mirror=s3://runs/deep/er"))
    run(configure("run_id=down", "trainer.max_epochs=1", "model.schedule=constant", "model.warmup_share=0"))
    result = run(
        configure("run_id=down", "model.schedule=constant", "model.warmup_share=0", "checkpoint.mirror=s3://runs/x")
    )
    assert (result.folder / "result.json").exists()
    assert "Training goes on" in (result.folder / "train.log").read_text()
