"""A real object store, Ceph, and moto for the fields that need Amazon; bundles, and the verb as a process."""

import contextlib
import itertools
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import pytest

from train.bundle import write
from train.keys import new

ROOT = Path(__file__).parents[2]
TESTBED = ROOT / "scripts" / "testbed"


def wait(for_what: str, happened: Callable[[], object], seconds: float) -> Any:
    """Return what `happened` returns as soon as it is true."""
    deadline = time.monotonic() + seconds
    while not (found := happened()):
        assert time.monotonic() < deadline, f"waited {seconds} s in vain for: {for_what}"
        time.sleep(0.002)
    return found


def _free_port() -> int:
    """One below those that connections are given, with those that Ceph takes besides."""
    for first in range(20_000, 29_000, 100):
        with contextlib.ExitStack() as held, contextlib.suppress(OSError):
            for port in (first, *range(first + 1_000, first + 1_020)):
                held.enter_context(socket.socket()).bind(("127.0.0.1", port))
            return first
    raise RuntimeError("no free ports")


class Server:
    """An object store started by a script of the testbed, and its environment."""

    def __init__(self, script: str, folder: Path) -> None:
        self._script, self.folder = TESTBED / script, folder
        self.call("start", str(_free_port()))
        lines = (folder / "env").read_text().removeprefix("export ").split()
        self.environment = dict(line.split("=", 1) for line in lines)

    def call(self, command: str, *arguments: str) -> None:
        with self.folder.with_suffix(".log").open("w+") as log:  # the daemons would hold a pipe open
            done = subprocess.run(
                [self._script, command, self.folder, *arguments],
                env={**os.environ, "PYTHON": sys.executable},
                stdout=log,
                stderr=log,
                timeout=180,
            )
            log.seek(0)
            assert done.returncode == 0, log.read()

    def last_words(self) -> str:
        """The ends of what the daemons have logged."""
        logs = (self.folder / "log").glob("*")
        return "\n".join(f"--- {log.name}\n{log.read_text(errors='replace')[-1500:]}" for log in sorted(logs))

    @cached_property
    def client(self) -> Any:
        import boto3

        return boto3.client(
            "s3",
            endpoint_url=self.environment["AWS_ENDPOINT_URL"],
            aws_access_key_id=self.environment["AWS_ACCESS_KEY_ID"],
            aws_secret_access_key=self.environment["AWS_SECRET_ACCESS_KEY"],
            region_name="us-east-1",
        )


class SlowLine:
    """A way to a server on which so many bytes a second go up, so that there is time to cut an upload off."""

    def __init__(self, port: int, bytes_per_second: float) -> None:
        self._port, self._pace, self._turn = port, bytes_per_second, threading.Lock()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self._thread = threading.Thread(target=self._accept, daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._listener.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):  # closed
            while True:
                near, _ = self._listener.accept()
                threading.Thread(target=self._serve, args=(near,), daemon=True).start()

    def _serve(self, near: socket.socket) -> None:
        with near, contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self._port)) as far:
            up = threading.Thread(target=self._copy, args=(near, far, self._pace), daemon=True)
            up.start()
            self._copy(far, near, None)
            up.join()

    def _copy(self, source: socket.socket, target: socket.socket, pace: float | None) -> None:
        with contextlib.suppress(OSError):
            while chunk := source.recv(2**16):
                if pace is not None:
                    with self._turn:
                        time.sleep(len(chunk) / pace)
                target.sendall(chunk)
        for each in (source, target):
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)


@pytest.fixture(scope="session")
def _short_folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="fc-", dir="/tmp") as name:  # sockets lie in it
        yield Path(name)


@pytest.fixture(scope="session")
def _ceph(_short_folder: Path) -> Iterator[Server]:
    path = f"{os.environ['PATH']}{os.pathsep}/usr/sbin{os.pathsep}/sbin"
    missing = [name for name in ("radosgw", "ceph-mon", "ceph-osd") if shutil.which(name, path=path) is None]
    if missing:
        pytest.skip(f"not installed: {', '.join(missing)}")
    if os.geteuid() != 0:
        pytest.skip("Ceph's daemons need root")
    server = Server("ceph_rgw.sh", _short_folder / "ceph")
    try:
        yield server
    finally:
        server.call("stop")


@pytest.fixture(scope="session")
def _moto(_short_folder: Path) -> Iterator[Server]:
    pytest.importorskip("moto.server", reason="needs moto[server,s3]")
    server = Server("moto.sh", _short_folder / "moto")
    try:
        yield server
    finally:
        server.call("stop")


_numbers = itertools.count(1)


def _ours(server: Server, monkeypatch: pytest.MonkeyPatch) -> Server:
    for name in ("AWS_PROFILE", "AWS_ENDPOINT_URL_S3", "AWS_SESSION_TOKEN", "AWS_REGION", "AWS_DEFAULT_REGION"):
        monkeypatch.delenv(name, raising=False)
    for name in ("AWS_SHARED_CREDENTIALS_FILE", "AWS_CONFIG_FILE"):
        monkeypatch.setenv(name, os.devnull)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    return server


@pytest.fixture
def ceph(_ceph: Server, monkeypatch: pytest.MonkeyPatch) -> Server:
    """A Ceph whose address and credentials are in the environment."""
    return _ours(_ceph, monkeypatch)


@pytest.fixture
def slow(ceph: Server) -> Iterator[str]:
    """The address of Ceph by a slow line: 120 MB take five seconds."""
    line = SlowLine(int(ceph.environment["AWS_ENDPOINT_URL"].rpartition(":")[2]), 25e6)
    yield line.url
    line.close()


@pytest.fixture
def moto(_moto: Server, monkeypatch: pytest.MonkeyPatch) -> Server:
    """The same for moto."""
    return _ours(_moto, monkeypatch)


@pytest.fixture
def bucket(ceph: Server) -> str:
    """A new bucket in Ceph."""
    from botocore.exceptions import BotoCoreError

    name = f"models-{next(_numbers)}"
    try:
        ceph.client.create_bucket(Bucket=name)
    except BotoCoreError as error:  # of the many that Ceph says, the last words of each daemon tell why
        pytest.fail(f"no bucket: {error}\n{ceph.last_words()}", pytrace=False)
    return name


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Makes bundles of random bytes, signed by a key that is trusted here."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    key = new(tmp_path / "home" / ".config" / "fullcycle" / "signing.key")

    def make(run: str, *, mebibytes: float = 0.01) -> Path:
        folder = tmp_path / "bundles" / run
        folder.mkdir(parents=True)
        (folder / "model.onnx").write_bytes(os.urandom(int(mebibytes * 2**20)))
        (folder / "schema.json").write_text("{}")
        return write(folder, {"name": "cards", "run": run, "graphs": {}}, key=key)

    return make


@pytest.fixture
def verb() -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Starts `python -m train.registry`; what still runs at the end is killed."""
    started = []

    def verb(*words: object, **environment: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "train.registry", *map(str, words)]
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            env={**os.environ, **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        return process

    yield verb
    for process in started:
        process.kill()
        process.communicate()


@pytest.fixture
def wait_until() -> Callable[[str, Callable[[], object], float], Any]:
    """Waits until something is true, and gives it."""
    return wait
