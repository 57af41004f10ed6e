"""`python -m train.launch` prints the line that starts training in each place, and becomes it."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from train import errors
from train import launch as launching

Launch = Callable[..., tuple[int | str | None, str, str]]
HOME = Path(__file__).parent / "user_home"
ROOT = Path(__file__).parents[2]
SCRIPT = "scripts/slurm/train.sbatch"
TOY = ("experiment=toy", "trainer=toy", "--config-dir", str(HOME))
REPORT_TORCH = """
import atexit, runpy, sys
atexit.register(lambda: print("torch imported:", "torch" in sys.modules, file=sys.stderr))
runpy.run_module("train.launch", run_name="__main__")
"""


@pytest.fixture
def launch(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Launch:
    """Calls the verb in this process, from the checkout; gives its exit code, standard output and error."""
    monkeypatch.chdir(ROOT)

    def launch(*arguments: str) -> tuple[int | str | None, str, str]:
        monkeypatch.setattr(sys, "argv", ["launch", *arguments])
        try:
            code: int | str | None = errors.guard(launching.main)
        except SystemExit as end:  # of argparse
            code = end.code
        return code, *capsys.readouterr()

    return launch


def process(*arguments: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Call it as a user does, in a folder that is not the checkout."""
    return subprocess.run(
        [sys.executable, "-c", REPORT_TORCH, *arguments],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(HOME), str(ROOT)]), **environment},
        capture_output=True,
        text=True,
        timeout=120,
    )


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("local", "python -m train experiment=fraud"),
        ("local --nproc-per-node=1", "python -m train experiment=fraud trainer.devices=1"),
        ("local --nproc-per-node=4", "python -m train experiment=fraud trainer=ddp trainer.devices=4"),
        ("local --nproc-per-node=4 trainer=fsdp", "python -m train trainer=fsdp experiment=fraud trainer.devices=4"),
        (
            "torchrun --nproc-per-node=8 run_id=a",
            "torchrun --nnodes=1 --nproc-per-node=8 --standalone --max-restarts=3 "
            "-m train run_id=a experiment=fraud trainer=ddp",
        ),
        (
            "torchrun --nodes=2 --nproc-per-node=8 --rdzv-endpoint=h:1 --max-restarts=0 run_id=a",
            "torchrun --nnodes=2 --nproc-per-node=8 --rdzv-backend=c10d --rdzv-endpoint=h:1 --rdzv-id=a "
            "--max-restarts=0 -m train run_id=a experiment=fraud trainer=ddp",
        ),
        (
            "torchrun --nodes=1:2 --nproc-per-node=1 --rdzv-endpoint=h:1 "
            "--option=--rdzv-conf=last_call_timeout=5 run_id=a",
            "TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 torchrun --nnodes=1:2 --nproc-per-node=1 --rdzv-backend=c10d "
            "--rdzv-endpoint=h:1 --rdzv-id=a --max-restarts=3 --rdzv-conf=last_call_timeout=5 "
            "-m train run_id=a experiment=fraud trainer=ddp",
        ),
        ("slurm", f"sbatch {SCRIPT} experiment=fraud"),
        (
            "slurm --nodes=2 --nproc-per-node=8 --cpus-per-task=4 --time=8:00:00 "
            "--partition=long --option=--account=me",
            "sbatch --nodes=2 --ntasks-per-node=8 --gpus-per-node=8 --cpus-per-task=4 --time=8:00:00 --partition=long "
            f"--account=me {SCRIPT} experiment=fraud trainer=ddp",
        ),
        (
            "slurm --nodes=2 --nproc-per-node=1 trainer=ddp trainer.accelerator=cpu",
            f"sbatch --nodes=2 --ntasks-per-node=1 {SCRIPT} trainer=ddp trainer.accelerator=cpu experiment=fraud",
        ),
    ],
)
def test_each_place_has_its_line(launch: Launch, given: str, expected: str) -> None:
    assert launch(*given.split(), "--dry-run", "experiment=fraud") == (0, f"{expected}\n", "")


def test_words_with_spaces_are_quoted(launch: Launch) -> None:
    container = "apptainer exec --nv image.sif"
    printed = launch("slurm", "--dry-run", "--container", container, "experiment=fraud", "name='a b'")[1]
    assert printed == f"""CONTAINER='{container}' sbatch {SCRIPT} experiment=fraud 'name='"'"'a b'"'"''\n"""


def test_torchrun_shares_its_threads_and_makes_one_id_for_all_restarts(
    launch: Launch, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS")
    words = launch("torchrun", "--dry-run", "--nproc-per-node=2", "experiment=fraud")[1].split()
    assert words[0] == f"OMP_NUM_THREADS={max(1, (os.cpu_count() or 1) // 2)}"
    assert words[-1].startswith("run_id=20")


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ("local experiment=frud", "; did you mean 'fraud'?"),
        ("local", "add experiment=NAME"),
        ("slurm experiment=fraud model.wdith=8", "no key 'wdith' in model; did you mean 'width'?"),
        ("local --nodes=2 experiment=fraud", "--nodes=2: no such flag; see python -m train.launch local --help"),
        ("local --multirun experiment=fraud seed=1,2", "--multirun: several runs are not launched at once"),
        ("local --nproc-per-node=0 experiment=fraud", "must be a whole number from 1 up; got '0'"),
        ("torchrun --nodes=two experiment=fraud", "must be N or MIN:MAX, such as 2 or 1:4; got 'two'"),
        ("torchrun --nodes=2 experiment=fraud", "--rdzv-endpoint is missing: HOST:PORT"),
        ("torchrun --nodes=2 --rdzv-endpoint=h:1 experiment=fraud", "run_id is missing: each node must be given"),
    ],
)
def test_a_mistake_is_told_before_anything_starts(launch: Launch, given: str, told: str) -> None:
    code, printed, complaint = launch(*given.split())
    assert (code, printed) == (2, "")
    assert told in complaint


def test_a_dry_run_imports_no_torch(tmp_path: Path) -> None:
    result = process("local", "--dry-run", "experiment=fraud", cwd=tmp_path)
    assert (result.stdout, result.stderr) == ("python -m train experiment=fraud\n", "torch imported: False\n")


def test_a_place_that_is_not_here_is_named(tmp_path: Path) -> None:
    result = process("slurm", "experiment=fraud", cwd=tmp_path, PATH=str(tmp_path))
    assert result.returncode == 2
    assert result.stderr.startswith("sbatch: no such command on this machine")


def test_a_wrong_value_is_told_before_a_job_waits_for_it(tmp_path: Path) -> None:
    result = process("slurm", *TOY, "model.width=many", cwd=tmp_path, PATH=with_sbatch(tmp_path))
    assert (result.returncode, result.stdout) == (2, "")
    assert "model.width: 'many'\n    must be a valid integer\n    from the override 'model.width=many'" in result.stderr


def test_it_becomes_its_line_and_ends_with_its_exit_code(tmp_path: Path) -> None:
    result = process("slurm", "--container=box", "--nodes=2", *TOY, cwd=tmp_path, PATH=with_sbatch(tmp_path))
    assert result.returncode == 3
    assert result.stdout == f"sbatch in box: --nodes=2 {ROOT / SCRIPT} {' '.join(TOY)}\n"


def with_sbatch(folder: Path) -> str:
    """A PATH with an `sbatch` that shows what it was given."""
    program = folder / "sbatch"
    program.write_text('#!/bin/sh\necho "sbatch in $CONTAINER: $@"\nexit 3\n')
    program.chmod(0o755)
    return f"{folder}{os.pathsep}{os.environ['PATH']}"
