"""Two processes of which one is not like the other: every check says so, on both, with the host and the rank.

The file is also what the two processes run; one pair goes through all cases, for most of the time is its start.
"""

import json
import os
import platform
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from pytorch_lightning import Trainer
from pytorch_lightning.demos.boring_classes import BoringModel

from train import hardware, preflight, probe, ranks
from train.errors import PreflightError
from train.folder import RunFolder
from train.preflight import Preflight

TIMEOUT_SECONDS = 90


class Case:
    """What one rank brings to the checks; the cases below change it, most of them on rank 1 only."""

    def __init__(self, folder: Path, name: str, rank: int) -> None:
        self.folder, self.name, self.rank = folder, name, rank
        self.is_second = rank == 1
        self.cfg = OmegaConf.create(
            {
                "data": {"_target_": "datamodules.sources.any", "path": "table.csv"},
                "model": {"_target_": "models.tabular.any", "width": 16},
                "checkpoint": {"keep": 2},
                "trainer": {"accelerator": "cpu"},
            }
        )
        self.model: Any = BoringModel()
        self.root = folder
        self.fingerprint: Any = "628cd82d30e0"
        self.spoil: Callable[[RunFolder], object] = lambda place: None


def alike(case: Case) -> None:
    pass


def other_disk(case: Case) -> None:
    case.root = case.folder / f"disk{case.rank}"


def folder_gone(case: Case) -> None:
    def spoil(place: RunFolder) -> None:
        if case.rank == 0:
            shutil.rmtree(place.path)
            place.path.write_text("not a folder")

    case.root, case.spoil = case.folder / f"gone{case.rank}", spoil


def other_data(case: Case) -> None:
    case.fingerprint = f"fingerprint{case.rank}"


def other_config(case: Case) -> None:
    case.cfg.model.width += case.rank
    if case.is_second:
        case.cfg.model.more = {"depth": 3}


def other_code(case: Case) -> None:
    home = case.folder / f"code{case.rank}"
    (home / "pack").mkdir(parents=True)
    (home / "pack" / "__init__.py").write_text("")
    (home / "pack" / "net.py").write_text(f"width = {case.rank}")
    sys.path.insert(0, str(home))
    case.cfg.model._target_ = "pack.net.Net"


def late_clock(case: Case) -> None:
    if case.is_second:
        real = time.time
        probe.time.time = lambda: real() - 60  # type: ignore[attr-defined]


def full_disk(case: Case) -> None:
    case.model.huge = torch.nn.Parameter(torch.zeros(1).expand(10**14))  # one number in memory, many to count


def slow_network(case: Case) -> None:
    hardware.MOST_ROUND_TRIP_SECONDS = 0.0


def broken_check(case: Case) -> None:
    if case.is_second:
        case.fingerprint = None


CASES = {
    case.__name__: case
    for case in (
        alike,
        other_disk,
        folder_gone,
        other_data,
        other_config,
        other_code,
        full_disk,
        broken_check,
        slow_network,
        late_clock,  # last: the clock stays wrong
    )
}


def outcome(case: Case) -> dict[str, Any]:
    """Fit with the callback; return what it came to."""
    place = RunFolder(case.root, case.name, "1")
    case.spoil(place)
    callback = Timed(case.cfg, place, case.fingerprint)
    trainer = Trainer(
        accelerator="cpu",
        devices=2,
        strategy="ddp",
        max_steps=1,
        limit_val_batches=0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[callback],
    )
    try:
        trainer.fit(case.model)
    except PreflightError as error:
        return {"error": str(error), "steps": trainer.global_step, "seconds": callback.seconds}
    finally:
        place.release()
    left = [path.name for path in place.path.glob(".preflight*")]
    return {"error": "", "steps": trainer.global_step, "seconds": callback.seconds, "left": left}


class Timed(Preflight):
    """The callback and how long it took."""

    seconds = -1.0

    def setup(self, *arguments: Any, **keywords: Any) -> None:
        start = time.perf_counter()
        try:
            super().setup(*arguments, **keywords)
        finally:
            self.seconds = time.perf_counter() - start


def main(folder: Path, rank: int) -> None:
    told = {}
    for name, change in CASES.items():
        case = Case(folder, name, rank)
        change(case)
        told[name] = outcome(case)
        hardware.MOST_ROUND_TRIP_SECONDS = 10.0
    (folder / f"told{rank}.json").write_text(json.dumps(told))
    ranks.leave()


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """By rank and case, what the run came to."""
    folder = tmp_path_factory.mktemp("preflight")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "NODE_RANK": "0"}
    commands = [[sys.executable, "-W", "ignore", __file__, str(folder), str(rank)] for rank in (0, 1)]
    started = [
        subprocess.Popen(command, env={**os.environ, **shared, "RANK": str(rank), "LOCAL_RANK": str(rank)})
        for rank, command in enumerate(commands)
    ]
    try:
        assert [process.wait(TIMEOUT_SECONDS) for process in started] == [0, 0]
    finally:
        for process in started:
            process.kill()
            process.wait()
    return [json.loads((folder / f"told{rank}.json").read_text()) for rank in (0, 1)]


@pytest.mark.slow
def test_alike_ranks_train_after_less_than_a_second_and_leave_nothing(told: list[dict[str, Any]]) -> None:
    for of_rank in told:
        assert of_rank["alike"]["error"] == ""
        assert of_rank["alike"]["steps"] == 1
        assert of_rank["alike"]["left"] == []
        assert of_rank["alike"]["seconds"] < 1.0


SECOND = f"host {platform.node()} (rank 1)"
FIRST = f"host {platform.node()} (rank 0)"
BOTH = f"host {platform.node()} (ranks 0, 1)"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("case", "texts"),
    [
        (
            "other_disk",
            [f"run folder, {SECOND}: does not see the file that rank 0 wrote in", "disk1", "Set output_dir"],
        ),
        ("folder_gone", [f"run folder, {FIRST}: cannot write in", "folder_gone/1", "Set output_dir"]),
        ("other_data", [f"data, {SECOND}: the fingerprint of the data is fingerprint1 and on rank 0 fingerprint0"]),
        ("other_config", [f"config, {SECOND}: model.width is 17 and on rank 0 16; model.more.depth is 3 and on rank"]),
        ("other_code", [f"code, {SECOND}: pack/net.py is ", "Bring all hosts to the same commit"]),
        ("late_clock", [f"clocks, {SECOND}: its clock is 60.", "s behind rank 0's", "NTP"]),
        ("full_disk", [f"disk, {FIRST}: ", " TB", "checkpoint.keep"]),
        ("slow_network", [f"round trip, {BOTH}: a round trip takes", "NCCL_SOCKET_IFNAME"]),
        ("broken_check", [f"data, {SECOND}: the check itself broke: TypeError"]),
    ],
)
def test_a_failing_check_stops_every_rank_with_host_finding_and_advice(
    told: list[dict[str, Any]], case: str, texts: list[str]
) -> None:
    first, second = told[0][case], told[1][case]
    assert first["error"] == second["error"]
    assert first["steps"] == second["steps"] == 0
    for text in texts:
        assert text in first["error"]
    assert len(first["error"].splitlines()) == 2, "the one check and no other"


def test_ranks_of_a_host_that_find_the_same_share_a_line() -> None:
    sights = [probe.Sight(alike={"torch": version}) for version in ("2", "1", "1", "1")]
    findings = preflight.judge("code", ["a", "b", "b", "c"], sights).findings
    assert [(finding.host, finding.ranks) for finding in findings] == [("b", [1, 2]), ("c", [3])]


def test_a_rank_that_saw_nothing_is_not_compared() -> None:
    sights = [probe.Sight(found="no such file"), probe.Sight(alike={"data": "1"}), probe.Sight(skipped="no data")]
    findings = preflight.judge("data", ["a", "b", "c"], sights).findings
    assert [(finding.host, finding.found) for finding in findings] == [("a", "no such file")]


def test_few_of_many_differences_are_told() -> None:
    sights = [probe.Sight(alike={f"file{index}": str(rank) for index in range(9)}) for rank in (0, 1)]
    (finding,) = preflight.judge("code", ["a", "b"], sights).findings
    assert finding.found.count("and on rank 0") == preflight.MOST_DIFFERENCES
    assert finding.found.endswith("and 6 more")


@pytest.mark.cluster
@pytest.mark.slow
def test_a_host_with_a_disk_of_its_own_is_named(
    hosts: Any, small_run: list[str], tmp_path: Path, wait_until: Callable[..., Any]
) -> None:
    (tmp_path / "disk1").mkdir()
    (tmp_path / "disk2").mkdir()
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nnodes=2", "--nproc-per-node=1"]
    launcher += ["--master-addr=10.77.0.1", "--master-port=29500"]
    started = []
    for number in (1, 2):  # `output_dir` is relative: the same command, but not the same folder
        here = ["env", "--chdir", str(tmp_path / f"disk{number}")]
        command = [*here, *launcher, f"--node-rank={number - 1}", "-m", "train.doctor", *small_run]
        started.append(hosts.start(number, tmp_path / f"{number}.log", *command))
    wait_until("both to end", lambda: all(process.poll() is not None for process in started), 150)
    told = (tmp_path / "1.log").read_text()
    assert f"run folder, host {hosts.names[1]} (rank 1): does not see the file that rank 0 wrote in" in told
    assert "│ round trip │ ok" in told
    assert "not ready" not in (tmp_path / "2.log").read_text()


@pytest.mark.cluster
@pytest.mark.slow
def test_a_job_of_two_nodes_can_be_requeued_if_they_find_each_other(
    slurm: Any, small_run: list[str], tmp_path: Path
) -> None:
    command = ["srun", "--nodes=2", "--ntasks-per-node=1", sys.executable, "-m", "train.doctor", *small_run]

    def srun(**environment: str) -> subprocess.CompletedProcess[str]:
        here = {**slurm.environment, **environment}
        return subprocess.run(command, cwd=tmp_path, env=here, capture_output=True, text=True, timeout=180, check=False)

    done = srun(MASTER_ADDR="127.0.0.1")  # the nodes of the testbed are one host
    assert done.returncode == 0, done.stderr
    assert re.search(r"requeue +│ ok +│ job \d+ can", done.stdout)
    assert re.search(r"round trip +│ ok +│ .* ms", done.stdout)
    done = srun(MASTER_ADDR="nowhere.invalid")
    assert done.returncode == 7, done.stderr
    assert "the host of rank 0, 'nowhere.invalid', has no address here" in done.stderr
    assert "Set MASTER_ADDR" in done.stderr


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
