"""What a process knows of the others from its launcher."""

import os
import subprocess
import sys

import pytest

from train import ranks

TORCHRUN = {"TORCHELASTIC_RUN_ID": "job7", "RANK": "5", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "4", "WORLD_SIZE": "8"}
SRUN = {"SLURM_JOB_ID": "42", "SLURM_PROCID": "3", "SLURM_STEP_ID": "0", "SLURM_NTASKS": "6", "SLURM_NNODES": "3"}


@pytest.fixture
def launched(monkeypatch):
    """Sets the environment of a launcher, and nothing of another."""
    for name in [*TORCHRUN, *SRUN, "SLURM_ARRAY_JOB_ID", "SLURM_ARRAY_TASK_ID", ranks.RUN_ID_VARIABLE]:
        monkeypatch.delenv(name, raising=False)

    def launched(**environment: str) -> None:
        for name, value in environment.items():
            monkeypatch.setenv(name, value)

    return launched


def run_id(asked: str | None = None) -> str:
    with ranks.run_id_for_all_ranks(asked) as found:
        assert os.environ[ranks.RUN_ID_VARIABLE] == found
    return found


def test_a_process_alone_is_rank_zero_and_leaves_the_number_of_devices_open(launched):
    assert ranks.is_rank_zero()
    assert ranks.processes() == {}


def test_torchrun_says_rank_devices_and_nodes(launched):
    launched(**TORCHRUN)
    assert (ranks.rank(), ranks.processes()) == (5, {"devices": 4, "num_nodes": 2})


def test_srun_says_rank_devices_and_nodes(launched):
    launched(**SRUN)
    assert (ranks.rank(), ranks.processes()) == (3, {"devices": 2, "num_nodes": 3})


def test_torchrun_inside_of_a_slurm_job_has_the_word(launched):
    launched(**SRUN, **TORCHRUN)
    assert (ranks.rank(), ranks.processes()) == (5, {"devices": 4, "num_nodes": 2})


def test_a_shell_in_a_slurm_job_is_no_task(launched):
    launched(**{**SRUN, "SLURM_STEP_ID": "batch"})
    assert ranks.processes() == {}


def test_the_id_asked_for_comes_before_the_launchers_and_the_jobs(launched):
    launched(**SRUN)
    assert run_id() == "42"
    launched(SLURM_ARRAY_JOB_ID="40", SLURM_ARRAY_TASK_ID="2")
    assert run_id() == "40_2"
    launched(**{ranks.RUN_ID_VARIABLE: "handed-on"})
    assert run_id() == "handed-on"
    assert run_id("mine") == "mine"


def test_an_id_that_torchrun_was_given_is_the_runs(launched):
    launched(**TORCHRUN)
    assert run_id() == "job7"


@pytest.mark.slow
def test_restarted_ranks_share_an_id_and_a_process_group_though_torchruns_store_is_the_old_one(tmp_path):
    script = tmp_path / "joins.py"
    script.write_text(
        """
import os, signal, time
from datetime import timedelta
import torch
import torch.distributed as dist
from train import ranks

class Strategy:
    root_device, _timeout = torch.device("cpu"), timedelta(seconds=30)
    def _get_process_group_backend(self): return "gloo"

attempt = int(os.environ["TORCHELASTIC_RESTART_COUNT"])
time.sleep(attempt * ranks.rank())  # rank 0 first, then it last: whoever comes early finds what the others left
time.sleep((2 - attempt) * (1 - ranks.rank()))
with ranks.run_id_for_all_ranks(None) as run_id:
    ranks.join(Strategy())
    total = torch.ones(1)
    dist.all_reduce(total)
    with open(f"{attempt}-{ranks.rank()}", "w") as file:
        file.write(f"{int(total)} {run_id}")
    if attempt < 2 and ranks.rank() == attempt:
        os.kill(os.getpid(), signal.SIGKILL)
    dist.barrier()
    dist.destroy_process_group()
"""
    )
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "--max-restarts=2"]
    done = subprocess.run([*command, str(script)], capture_output=True, text=True, timeout=120, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    found = {path.name: path.read_text() for path in tmp_path.glob("?-?")}
    assert sorted(found) == [f"{attempt}-{rank}" for attempt in (0, 1, 2) for rank in (0, 1)]
    assert len(set(found.values())) == 1
    assert found["0-0"].startswith("2 ")
