"""The verb that checks the machines: one process and two, all well and not."""

import os
import platform
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from omegaconf import DictConfig

from train import preflight
from train.doctor import doctor, examine
from train.errors import PreflightError

HOST = f"host {platform.node()} (rank 0)"


def told(cfg: DictConfig) -> str:
    """What the doctor finds."""
    with pytest.raises(PreflightError) as raised:
        doctor(cfg)
    assert raised.value.exit_code == 7
    return str(raised.value)


def test_all_checks_pass_on_this_machine_and_leave_nothing(
    configure: Callable[..., DictConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    outcomes = {outcome.check: outcome for outcome in examine(configure())}
    assert list(outcomes) == list(preflight.ALL)
    assert not [outcome for outcome in outcomes.values() if outcome.findings]
    assert outcomes["data"].result == "ok"
    assert outcomes["requeue"].result == outcomes["mirror"].result == outcomes["round trip"].result == "skipped"
    assert " needed" in outcomes["disk"].figure
    assert " parameters" in outcomes["model"].figure
    assert not (tmp_path / "runs").exists()


def test_a_folder_that_cannot_be_written_is_told(configure: Callable[..., DictConfig], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    text = told(configure(f"output_dir={tmp_path / 'file' / 'runs'}"))
    assert f"run folder, {HOST}: cannot write in {tmp_path}/file/runs/fraud: " in text
    assert "Set output_dir" in text


def test_data_that_cannot_be_read_are_told_once(configure: Callable[..., DictConfig], tmp_path: Path) -> None:
    text = told(configure(f"data.path={tmp_path / 'none.csv'}"))
    assert f"data, {HOST}: " in text
    assert text.count("none.csv") == 1


def test_a_model_that_cannot_be_made_is_told(configure: Callable[..., DictConfig]) -> None:
    text = told(configure("model.width=-1"))
    assert f"model, {HOST}: " in text
    assert len(text.splitlines()) == 2, "the disk is not blamed as well"


def test_requeue_needs_scontrol_on_the_path(
    configure: Callable[..., DictConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert f"requeue, {HOST}: no `scontrol`" in told(configure())


def test_a_store_that_nobody_serves_is_told(
    configure: Callable[..., DictConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("boto3", reason="the mirror needs boto3")
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))  # and never listens
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", f"http://127.0.0.1:{unused.getsockname()[1]}")
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "someone")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
        text = told(configure("checkpoint.mirror=s3://bucket/runs"))
    assert f"mirror, {HOST}: s3://bucket/runs" in text


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_a_device_that_is_not_there_is_told(configure: Callable[..., DictConfig]) -> None:
    text = told(configure("trainer.accelerator=gpu"))
    assert f"processes, {HOST}: the trainer that the config asks for cannot be had: " in text
    assert "trainer.accelerator" in text


@pytest.mark.slow
def test_two_processes_of_the_trainers_own_measure_the_network(command: list[str], tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "train.doctor", *command, "trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2"],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    rows = {line.split("│")[1].strip(): line for line in done.stdout.splitlines() if line.startswith("│")}
    assert set(preflight.ALL) <= set(rows)
    assert " ms" in rows["round trip"]
    assert "B/s" in rows["bandwidth"]
    assert done.stdout.count("bandwidth") == 1, "rank 0 alone shows the table"
    assert not (tmp_path / "runs").exists()


@pytest.mark.slow
def test_two_processes_on_two_disks_both_stop_and_one_tells(command: list[str], tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {**os.environ, "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "NODE_RANK": "0"}
    kept = [word for word in command if not word.startswith("output_dir=")]
    line = [sys.executable, "-m", "train.doctor", *kept, "trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2"]
    disks = [tmp_path / "disk0", tmp_path / "disk1"]  # the same relative output_dir lies on both
    for disk in disks:
        disk.mkdir()
    started = [
        subprocess.Popen(
            line,
            cwd=disk,
            env={**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank, disk in enumerate(disks)
    ]
    try:
        (_, first), (_, second) = [process.communicate(timeout=100) for process in started]
    finally:
        for process in started:
            process.kill()
    assert [process.returncode for process in started] == [7, 7]
    finding = f"run folder, host {platform.node()} (rank 1): does not see the file that rank 0 wrote in {disks[1]}"
    assert finding in first
    assert "not ready" not in second
