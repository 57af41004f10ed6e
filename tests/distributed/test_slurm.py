"""Jobs on a real SLURM of two nodes: from sbatch to result.json, and through what a cluster does to them.

Each disturbed run must end with the weights and the optimizer state of one that nobody disturbed, bit for bit.
"""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

pytestmark = [pytest.mark.cluster, pytest.mark.slow]


@pytest.fixture(scope="module")
def undisturbed(slurm: Any, small_run: list[str], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The working folder and number of a job that trained from sbatch to the end."""
    folder = tmp_path_factory.mktemp("undisturbed")
    number = slurm.submit(folder, small_run)
    slurm.wait_for(number, "COMPLETED|FAILED|CANCELLED")
    return folder, number


@pytest.fixture
def same_end(undisturbed: tuple[Path, str], state_at: Callable[[Path], dict[str, Any]]) -> Callable[[Path], None]:
    """Checks that a run ended as the undisturbed one did."""

    def same_end(run: Path) -> None:
        folder, number = undisturbed
        expected, found = state_at(folder / "runs" / "fraud" / number), state_at(run)
        assert expected.keys() == found.keys()
        assert [name for name in expected if not torch.equal(expected[name], found[name])] == []

    return same_end


@pytest.fixture
def started(
    slurm: Any, small_run: list[str], tmp_path: Path, until_saved: Callable[[Path], None]
) -> Iterator[Callable[..., tuple[str, Path]]]:
    """Starts a job and waits until it trains and has saved twice; gives its number and run folder."""
    numbers = []

    def started(*options: str) -> tuple[str, Path]:
        number = slurm.submit(tmp_path, small_run, *options)
        numbers.append(number)
        run = tmp_path / "runs" / "fraud" / number
        until_saved(run)
        return number, run

    yield started
    slurm.call("scancel", *numbers)


def test_two_nodes_train_from_sbatch_to_result(slurm: Any, undisturbed: tuple[Path, str]) -> None:
    folder, number = undisturbed
    screen = (folder / f"slurm-{number}.out").read_text()
    job = slurm.job(number)
    assert (job["JobState"], job["ExitCode"], job["NumNodes"]) == ("COMPLETED", "0:0", "2"), screen
    runs = folder / "runs" / "fraud"
    assert {path.name for path in runs.iterdir()} == {number, "latest"}
    assert {path.name for path in (runs / number).glob("*.log")} == {"train.log", "train-rank1.log"}
    assert json.loads((runs / number / "result.json").read_text())["epochs"] == 80
    assert screen.count(f"run  fraud/{number}") == 1
    assert len(list((runs / number).glob("events.*"))) <= 2  # of one writer: training, and the final metrics


def test_the_job_ends_with_the_exit_code_of_training_and_runs_in_its_container(slurm: Any, tmp_path: Path) -> None:
    """`python -m train.launch slurm` submits it; the container is a command that sets a variable."""
    missing = ["experiment=fraud", "data=fraud_table", "data.path=nowhere.csv", "data.target=fraud", "data.time=when"]
    options = ["--nodes=1", "--container=env FULLCYCLE_RUN_ID=boxed", "--option=--parsable"]
    command = [sys.executable, "-m", "train.launch", "slurm", *options, *missing, "trainer=cpu"]
    number = slurm.call(*command, cwd=tmp_path).strip()
    slurm.wait_for(number, "FAILED")
    assert slurm.job(number)["ExitCode"] == "4:0"
    assert (tmp_path / "runs" / "fraud" / "boxed").is_dir()
    assert "no such file or folder: 'nowhere.csv'" in (tmp_path / f"slurm-{number}.out").read_text()


@pytest.mark.parametrize(
    ("interrupt", "told"),
    [
        pytest.param(["scontrol", "requeue"], "Stopped by a signal. Saved step", id="scontrol requeue"),
        pytest.param(["scancel", "--signal=USR1"], "Stopped before the time limit. Saved step", id="USR1"),
    ],
)
def test_a_requeued_job_goes_on_in_its_folder_from_the_very_step(
    slurm: Any,
    started: Callable[..., tuple[str, Path]],
    same_end: Callable[[Path], None],
    interrupt: list[str],
    told: str,
) -> None:
    number, run = started()
    slurm.call(*interrupt, number)
    slurm.wait_for(number, "PENDING|COMPLETED")
    assert slurm.job(number)["JobState"] == "PENDING"
    last = steps_of(run)[-1]
    assert slurm.wait_for(number, "COMPLETED")["Restarts"] == "1"
    screen = (run.parents[2] / f"slurm-{number}.out").read_text()
    assert f"{told} {last}" in screen
    assert f"going on from step={last:09}.ckpt" in screen
    assert (run / "result.json").exists()
    same_end(run)


def test_a_job_saves_and_requeues_itself_before_its_time_is_up(
    slurm: Any, started: Callable[..., tuple[str, Path]], same_end: Callable[[Path], None], wait_until: Any
) -> None:
    """SLURM looks at limits every 30 s. The tasks are held until its warning is there, as if they were slow."""
    number, run = started("--time=60", "--signal=USR1@60")
    before = steps_of(run)[-1]
    tasks = trainers(slurm)
    assert len(tasks) == 2
    for task in tasks:
        os.kill(task, signal.SIGSTOP)
    slurm.call("scontrol", "update", f"JobId={number}", f"EndTime={clock(seconds_from_now=90)}")
    wait_until("SLURM's warning", lambda: all(warned(task) for task in tasks), 60)
    for task in tasks:
        with contextlib.suppress(ProcessLookupError):
            os.kill(task, signal.SIGCONT)
    slurm.wait_for(number, "PENDING")
    assert before <= steps_of(run)[-1] <= before + 40
    slurm.call("scontrol", "update", f"JobId={number}", "TimeLimit=60")
    assert slurm.wait_for(number, "COMPLETED")["Restarts"] == "1"
    assert "Stopped before the time limit. Saved step" in (run.parents[2] / f"slurm-{number}.out").read_text()
    same_end(run)


def test_scancel_stops_for_good_and_leaves_a_whole_checkpoint(
    slurm: Any, started: Callable[..., tuple[str, Path]], state_at: Callable[[Path], dict[str, Any]], wait_until: Any
) -> None:
    number, run = started()
    slurm.call("scancel", number)
    wait_until("the end of both ranks", lambda: not trainers(slurm), 30)
    assert slurm.wait_for(number, "CANCELLED")["Restarts"] == "0"
    screen = (run.parents[2] / f"slurm-{number}.out").read_text()
    assert f"Saved step {steps_of(run)[-1]}" in screen
    assert state_at(run)
    assert not (run / "result.json").exists()


def test_a_job_survives_the_death_of_the_node_of_rank_0(
    slurm: Any, started: Callable[..., tuple[str, Path]], same_end: Callable[[Path], None]
) -> None:
    number, run = started()
    first = slurm.job(number)["BatchHost"]
    slurm.kill_node(first)
    slurm.wait_for(number, "PENDING")
    slurm.start_node(first)
    assert slurm.wait_for(number, "COMPLETED")["Restarts"] == "1"
    assert "going on from step=" in (run.parents[2] / f"slurm-{number}.out").read_text()
    same_end(run)


def steps_of(run: Path) -> list[int]:
    return sorted(int(path.stem.partition("=")[2]) for path in run.glob("checkpoints/step=*.ckpt"))


def trainers(slurm: Any) -> list[int]:
    """The ranks' processes on both nodes."""
    pids = [*slurm.tasks("n1"), *slurm.tasks("n2")]
    command = ["ps", "-o", "pid=,args=", "-p", ",".join(map(str, pids or [1]))]
    listed = subprocess.run(command, capture_output=True, text=True, check=False).stdout
    return [int(pid) for pid in re.findall(r"^\s*(\d+) \S*python\S* -m train ", listed, re.M)]


def warned(pid: int) -> bool:
    """Whether SIGUSR1 waits for a process that is held, or SLURM has let it go on and it has ended."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return True
    pending = [int(mask, 16) for mask in re.findall(r"^(?:Sig|Shd)Pnd:\s*(\w+)", status, re.M)]
    return any(mask >> (signal.SIGUSR1 - 1) & 1 for mask in pending)


def clock(*, seconds_from_now: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.localtime(time.time() + seconds_from_now))
