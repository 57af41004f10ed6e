"""A rank that dies, raises, hangs or meets a NaN: the others end soon, say why once, and a restart loses nothing."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from train.checkpoint import is_whole, recent

pytestmark = pytest.mark.slow

RECORDED = Path(__file__).with_name("recorded.py")


class Job:
    """`torchrun` of two ranks of the small experiment, in a folder of its own."""

    def __init__(self, folder: Path, overrides: list[str]) -> None:
        self.folder, self.overrides = folder, overrides

    def start(self, name: str, *overrides: str, fault: str = "", max_restarts: int = 0) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
        command += [f"--max-restarts={max_restarts}", str(RECORDED), *self.overrides, *overrides]
        return subprocess.Popen(
            [*command, f"run_id={name}", f"output_dir={self.folder / 'runs'}"],
            env={**os.environ, "RECORD": str(self.records(name)), "FAULT": fault, "OMP_NUM_THREADS": "1"},
            cwd=self.folder,
            stderr=subprocess.STDOUT,
            stdout=subprocess.PIPE,
            text=True,
        )

    def run(self, name: str, *overrides: str, **how: object) -> tuple[int, str]:
        """Return the exit code and all that was printed."""
        process = self.start(name, *overrides, **how)
        printed, _ = process.communicate(timeout=180)
        return process.returncode, printed

    def records(self, name: str) -> Path:
        return self.folder / "records" / name

    def run_folder(self, name: str) -> Path:
        return self.folder / "runs" / "fraud" / name

    def weights(self, name: str) -> dict[str, torch.Tensor]:
        """Return those at the end, which are the same on both ranks."""
        one, other = (torch.load(self.records(name) / f"rank{rank}.pt")["weights"] for rank in (0, 1))
        assert all(torch.equal(one[key], other[key]) for key in one)
        return one


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory, small_run: list[str]) -> Job:
    """One whose undisturbed run, "whole", is there to compare with."""
    made = Job(tmp_path_factory.mktemp("survival"), [*small_run, "trainer.max_epochs=12"])
    code, printed = made.run("whole")
    assert code == 0, printed
    return made


def assert_ends_as_whole(job: Job, name: str) -> None:
    expected, found = job.weights("whole"), job.weights(name)
    assert all(torch.equal(expected[key], found[key]) for key in expected)
    results = [(job.run_folder(each) / "result.json").read_text() for each in ("whole", name)]
    assert re.search(r'"metrics": \{[^}]*\}', results[0])[0] == re.search(r'"metrics": \{[^}]*\}', results[1])[0]


@pytest.mark.parametrize("rank", [0, 1])
def test_a_killed_rank_is_started_again_with_the_others_and_ends_the_same(job: Job, rank: int) -> None:
    code, printed = job.run(f"killed{rank}", fault=f"kill:{rank}:90", max_restarts=2)
    assert code == 0, printed
    assert "going on from step=" in printed
    assert_ends_as_whole(job, f"killed{rank}")


@pytest.mark.parametrize("rank", [0, 1])
def test_when_a_rank_raises_all_end_and_its_traceback_is_shown_once(job: Job, rank: int) -> None:
    process = job.start(f"raised{rank}", fault=f"raise:{rank}:90")
    while not (job.records(f"raised{rank}") / "harmed").exists():
        assert process.poll() is None
        time.sleep(0.2)
    raised = time.monotonic()
    printed, _ = process.communicate(timeout=60)
    assert time.monotonic() - raised < 30
    assert process.returncode != 0
    assert printed.count("ArithmeticError: broken on purpose") == 1
    assert printed.count("Traceback (most recent call last)") <= 2  # its own, and torchrun's of the launch
    assert f"rank {1 - rank} on" in printed
    assert "another process of the run failed" in printed
    own_log = job.run_folder(f"raised{rank}") / ("train.log" if rank == 0 else f"train-rank{rank}.log")
    assert "broken on purpose" in own_log.read_text()


def test_a_rank_that_hangs_ends_the_run_with_the_stack_traces_of_all(job: Job) -> None:
    code, printed = job.run("hung", "watchdog_seconds=8", fault="hang:1:90")
    assert code != 0
    assert "made no progress for 8 s" in printed
    for log in ("train.log", "train-rank1.log"):
        assert "stack traces of all threads" in (job.run_folder("hung") / log).read_text()
    assert "in harm" in (job.run_folder("hung") / "train-rank1.log").read_text()
    code, printed = job.run("hung")
    assert code == 0, printed
    assert_ends_as_whole(job, "hung")


def test_nan_on_one_rank_ends_all_with_one_message(job: Job) -> None:
    code, printed = job.run("nans", fault="nan:1:100")
    assert code != 0
    assert len(re.findall(r"not finite at step 100 ", printed)) == 1
    assert "The last good checkpoint is" in printed
    assert "Traceback" not in printed.partition("not finite")[0]


def test_sigterm_saves_and_the_same_command_goes_on(job: Job) -> None:
    process = job.start("spot")
    checkpoints = job.run_folder("spot") / "checkpoints"
    while not recent(checkpoints):
        assert process.poll() is None
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    asked = time.monotonic()
    printed, _ = process.communicate(timeout=60)
    assert time.monotonic() - asked < 30
    assert "Stopped by a signal. Saved step" in printed
    saved = int(re.search(r"Saved step ([\d,]+)", printed)[1].replace(",", ""))
    assert recent(checkpoints)[0].name == f"step={saved:09d}.ckpt"
    assert is_whole(recent(checkpoints)[0])
    code, printed = job.run("spot")
    assert code == 0, printed
    assert_ends_as_whole(job, "spot")


def test_a_flipped_bit_in_the_newest_checkpoint_is_noticed_and_the_one_before_it_taken(job: Job) -> None:
    code, printed = job.run("flipped", fault="kill:1:90")
    assert code != 0
    newest = recent(job.run_folder("flipped") / "checkpoints")[0]
    content = bytearray(newest.read_bytes())
    content[len(content) // 2] ^= 1
    newest.write_bytes(content)
    code, printed = job.run("flipped")
    assert code == 0, printed
    assert f"{newest} is torn" in printed
    assert_ends_as_whole(job, "flipped")
