"""A SLURM and separate hosts on this machine, made by scripts/testbed, and a run that is long enough to disturb."""

import contextlib
import itertools
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

ROOT = Path(__file__).parents[2]
TESTBED = ROOT / "scripts" / "testbed"


@pytest.fixture(scope="session")
def small_run(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """A small network on 2,000 rows: seconds of training, in which it saves every few steps."""
    generator = np.random.default_rng(0)
    amount = generator.lognormal(3, 1, 2_000)
    frauds = amount * generator.lognormal(0, 1, 2_000) > 80
    hours = np.datetime_as_string(np.datetime64("2025-01-01T00") + np.arange(2_000))
    path = tmp_path_factory.mktemp("table") / "table.csv"
    rows = (
        f"{hour}:00:00,{value:.2f},{int(fraud)}\n" for hour, value, fraud in zip(hours, amount, frauds, strict=True)
    )
    path.write_text("when,amount,fraud\n" + "".join(rows))
    return [
        *("experiment=fraud", "data=fraud_table", f"data.path={path}", "data.target=fraud", "data.time=when"),
        *("data.batch_size=64", "data.batches_per_call=4", "model=mlp", "model.width=16", "baselines=none"),
        *("trainer=ddp", "trainer.accelerator=cpu", "trainer.max_epochs=80", "checkpoint.every_n_steps=20"),
    ]


def wait(for_what: str, happened: Callable[[], object], seconds: float) -> Any:
    """Return what `happened` returns as soon as it is true."""
    deadline = time.monotonic() + seconds
    while not (found := happened()):
        assert time.monotonic() < deadline, f"waited {seconds} s in vain for: {for_what}"
        time.sleep(0.1)
    return found


def _free_ports(count: int) -> int:
    """The first of so many consecutive free ports, below those that connections are given."""
    for first in range(20_000, 30_000, count):
        with contextlib.ExitStack() as held:
            try:
                for port in range(first, first + count):
                    held.enter_context(socket.socket()).bind(("127.0.0.1", port))
            except OSError:
                continue
            return first
    raise RuntimeError("no free ports")


class Slurm:
    """A SLURM of two nodes, n1 and n2, each with one CPU."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._script("slurm_up.sh", "2", SLURM_PORT=str(_free_ports(3)))
        # As after activating the environment in which the tests run.
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        self.environment = {**os.environ, "SLURM_CONF": str(folder / "slurm.conf"), "PATH": path}

    def close(self) -> None:
        self._script("slurm_down.sh")

    def _script(self, name: str, *arguments: str, **environment: str) -> None:
        command = [TESTBED / name, self.folder, *arguments]
        # Into a file: the daemons would hold a pipe open.
        with (self.folder.with_suffix(".log")).open("w+") as log:
            done = subprocess.run(command, env={**os.environ, **environment}, stdout=log, stderr=log, timeout=60)
            log.seek(0)
            assert done.returncode == 0, log.read()

    def call(self, *command: str, cwd: Path = ROOT) -> str:
        done = subprocess.run(command, cwd=cwd, env=self.environment, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def submit(self, folder: Path, overrides: list[str], *options: str) -> str:
        """Submit a job of two nodes with `folder` as its working folder; return its number."""
        script = str(ROOT / "scripts" / "slurm" / "train.sbatch")
        return self.call("sbatch", "--parsable", "--nodes=2", *options, script, *overrides, cwd=folder).strip()

    def job(self, number: str) -> dict[str, str]:
        """What `scontrol show job` says."""
        return dict(re.findall(r"(\w+)=(\S*)", self.call("scontrol", "show", "job", number)))

    def wait_for(self, number: str, state: str, seconds: float = 300) -> dict[str, str]:
        """Wait until the job is in a state that the pattern matches."""
        wait(f"job {number} {state}", lambda: re.fullmatch(state, self.job(number)["JobState"]), seconds)
        return self.job(number)

    def tasks(self, node: str) -> list[int]:
        """The processes of jobs on a node."""
        ours = {f"SLURM_CONF={self.folder / 'slurm.conf'}", f"SLURMD_NODENAME={node}"}
        return [pid for pid, environment in _environments() if ours <= environment]

    def kill_node(self, node: str) -> None:
        """End everything on a node at once, as a power cut does."""
        tasks = self.tasks(node)
        steps = {_parent(pid) for pid in tasks} - {1, *tasks}
        daemon = int((self.folder / "run" / f"slurmd.{node}.pid").read_text())
        for pid in [daemon, *steps, *tasks]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def start_node(self, node: str) -> None:
        subprocess.run(["slurmd", "-N", node], env=self.environment, check=True, timeout=30)


def _environments() -> Iterator[tuple[int, set[str]]]:
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            yield int(folder.name), set((folder / "environ").read_text(errors="replace").split("\0"))


def _parent(pid: int) -> int:
    status = (Path("/proc") / str(pid) / "status").read_text()
    return int(re.findall(r"^PPid:\s*(\d+)", status, re.M)[0])


class Hosts:
    """Two hosts with a network of their own between them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.prefix = f"t{os.getpid()}h"
        self.names = [f"{self.prefix}{number}" for number in (1, 2)]
        self.processes: list[subprocess.Popen[str]] = []
        environment = {**os.environ, "HOSTS": self.prefix}
        subprocess.run([TESTBED / "hosts_up.sh", folder], env=environment, check=True, timeout=30)

    def close(self) -> None:
        subprocess.run([TESTBED / "hosts_down.sh", self.folder], check=True, timeout=30)
        for process in self.processes:
            process.wait(timeout=10)

    def start(self, number: int, log: Path, *command: str, **environment: str) -> subprocess.Popen[str]:
        """Start a command on host 1 or 2, its output to a file; gloo learns which network to use."""
        host = self.names[number - 1]
        with log.open("a") as output:
            process = subprocess.Popen(
                [TESTBED / "on.sh", self.folder, host, *command],
                env={**os.environ, "GLOO_SOCKET_IFNAME": "eth0", **environment},
                stdout=output,
                stderr=output,
                text=True,
                start_new_session=True,
            )
        self.processes.append(process)
        return process

    def link(self, number: int, state: str) -> None:
        """Cut a host off the network ("down"), or join it again ("up")."""
        command = ["ip", "-n", f"{self.prefix}-hub", "link", "set", f"port{number}", state]
        subprocess.run(command, check=True, timeout=10)

    def end(self, number: int) -> None:
        """End everything on a host at once, as a power cut does."""
        listed = subprocess.run(
            ["ip", "netns", "pids", self.names[number - 1]], check=True, capture_output=True, text=True, timeout=10
        )
        for pid in map(int, listed.stdout.split()):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def _require(*programs: str) -> None:
    path = f"{os.environ['PATH']}{os.pathsep}/usr/sbin{os.pathsep}/sbin"
    missing = [program for program in programs if shutil.which(program, path=path) is None]
    if missing:
        pytest.skip(f"not installed: {', '.join(missing)}")
    if os.geteuid() != 0:
        pytest.skip("needs root")


@pytest.fixture
def wait_until() -> Callable[[str, Callable[[], object], float], Any]:
    """Waits until something is true, and gives it."""
    return wait


@pytest.fixture
def until_saved() -> Callable[[Path], None]:
    """Waits until a run trains and has saved twice."""

    def until_saved(run: Path) -> None:
        wait(f"two checkpoints in {run}", lambda: len(list(run.glob("checkpoints/step=*.ckpt"))) > 1, 90)

    return until_saved


@pytest.fixture
def state_at() -> Callable[[Path], dict[str, Any]]:
    """Loads the weights and the optimizer's state of a run's newest checkpoint, flat."""

    def state_at(run: Path) -> dict[str, Any]:
        content = torch.load(max(run.glob("checkpoints/step=*.ckpt")), weights_only=True)
        optimizer = content["optimizer_states"][0]["state"]
        flat = {f"optimizer.{i}.{name}": value for i, each in optimizer.items() for name, value in each.items()}
        return {**content["state_dict"], **flat, "step": torch.tensor(content["global_step"])}

    return state_at


@pytest.fixture(scope="session")
def short_folder() -> Iterator[Callable[[], Path]]:
    """Makes folders with short names, for sockets."""
    with tempfile.TemporaryDirectory(prefix="fc-", dir="/tmp") as name:
        os.chmod(name, 0o755)  # munged wants it to be open to all
        numbers = itertools.count()
        yield lambda: Path(name) / str(next(numbers))


@pytest.fixture(scope="module")
def slurm(short_folder: Callable[[], Path]) -> Iterator[Slurm]:
    """A SLURM of two nodes, taken down with all its jobs at the end."""
    _require("slurmctld", "slurmd", "sbatch", "munged")
    cluster = Slurm(short_folder())
    try:
        yield cluster
    finally:
        cluster.close()


@pytest.fixture
def hosts(short_folder: Callable[[], Path]) -> Iterator[Hosts]:
    """Two hosts, taken down with all that runs on them at the end."""
    _require("ip", "nsenter", "unshare")
    probe = subprocess.run(["unshare", "--net", "--mount", "--uts", "true"], capture_output=True, text=True)
    if probe.returncode != 0:
        pytest.skip(f"no network namespaces here: {probe.stderr.strip()}")
    both = Hosts(short_folder())
    try:
        yield both
    finally:
        both.close()
