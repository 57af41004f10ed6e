"""Training over hosts that have a network of their own between them: whole, and with one of them cut off and back."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

pytestmark = [pytest.mark.cluster, pytest.mark.slow]

STEPS_PER_EPOCH = 20  # 1,280 rows for training, 64 a step


@pytest.fixture
def join(hosts: Any, small_run: list[str], tmp_path: Path) -> Callable[..., subprocess.Popen[str]]:
    """Starts torchrun on host 1 or 2, which meet at host 1; its output goes to host<N>.log."""

    def join(number: int, *arguments: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "train.launch", "torchrun", f"--rdzv-endpoint={hosts.names[0]}:29500"]
        given = [*small_run, f"output_dir={tmp_path / 'runs'}", "run_id=shared", *arguments]
        return hosts.start(number, tmp_path / f"host{number}.log", *command, "--nproc-per-node=1", *given)

    return join


def test_two_hosts_train_to_a_result(join: Callable[..., subprocess.Popen[str]], tmp_path: Path) -> None:
    both = [join(number, "--nodes=2", "trainer.max_epochs=3") for number in (1, 2)]
    assert [torchrun.wait(timeout=120) for torchrun in both] == [0, 0], printed(tmp_path)
    runs = tmp_path / "runs" / "fraud"
    assert {path.name for path in runs.iterdir()} == {"shared", "latest"}
    assert {path.name for path in (runs / "shared").glob("*.log")} == {"train.log", "train-rank1.log"}
    assert json.loads((runs / "shared" / "result.json").read_text())["epochs"] == 3
    assert printed(tmp_path).count("run  fraud/shared") == 1


def test_a_host_that_is_cut_off_is_left_behind_and_may_come_back(
    hosts: Any,
    join: Callable[..., subprocess.Popen[str]],
    small_run: list[str],
    tmp_path: Path,
    state_at: Callable[[Path], dict[str, Any]],
    until_saved: Callable[[Path], None],
    wait_until: Any,
) -> None:
    elastic = ["--nodes=1:2", "--option=--rdzv-conf=last_call_timeout=5", "trainer.strategy.timeout_seconds=15"]
    run = tmp_path / "runs" / "fraud" / "shared"
    survivor, lost = join(1, *elastic, "trainer.max_epochs=200"), join(2, *elastic, "trainer.max_epochs=200")
    until_saved(run)
    wait_until("both hosts", lambda: (run / "train-rank1.log").exists(), 60)
    before = starts(run)
    hosts.link(2, "down")
    wait_until("the survivor alone", lambda: starts(run) > before, 90)
    assert survivor.poll() is None
    told = (tmp_path / "host1.log").read_text()
    assert "another process of the run failed, was lost or hung" in told, told

    hosts.end(2)
    lost.wait(timeout=10)
    hosts.link(2, "up")
    together = (run / "train-rank1.log").stat().st_size
    back = join(2, *elastic, "trainer.max_epochs=200")
    wait_until("both hosts again", lambda: (run / "train-rank1.log").stat().st_size > together, 90)

    assert [torchrun.wait(timeout=180) for torchrun in (survivor, back)] == [0, 0], printed(tmp_path)
    result = json.loads((run / "result.json").read_text())
    assert (result["epochs"], result["steps"]) == (200, 200 * STEPS_PER_EPOCH)

    # Each sample was seen as often as by one process that nobody disturbed: else the weights would differ.
    command = [sys.executable, "-m", "train", *small_run, "trainer=cpu", "trainer.max_epochs=200", "run_id=one"]
    subprocess.run([*command, f"output_dir={tmp_path / 'runs'}"], check=True, capture_output=True, timeout=180)
    alone, found = state_at(run.with_name("one")), state_at(run)
    torch.testing.assert_close(found, alone, rtol=0, atol=1e-5)


def starts(run: Path) -> int:
    """How often a run has begun or gone on."""
    return (run / "train.log").read_text().count("train.run: run: ")


def printed(folder: Path) -> str:
    return "\n".join(path.read_text() for path in sorted(folder.glob("host*.log")))
