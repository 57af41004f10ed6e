"""Sweeps by real processes: killed workers, several for one trial, a database that goes away, a SLURM array."""

import contextlib
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from optuna.trial import FrozenTrial, TrialState

from train.errors import StorageError
from train.sweep import slots
from train.sweep.slots import Slot
from train.sweep.storage import open_storage

ROOT = Path(__file__).parents[2]
Wait = Callable[[str, Callable[[], object], float], Any]


@pytest.fixture
def small_sweep(small_run: list[str]) -> list[str]:
    """A sweep of trials of less than a second."""
    changed = ("trainer=", "trainer.", "checkpoint.", "model.width=")
    kept = [line for line in small_run if not line.startswith(changed)]
    return [*kept, "model.width=16", "trainer=cpu", "trainer.max_epochs=3", "heartbeat_seconds=1", "test=false"]


class Sweep:
    """The workers of one study in a folder of their own."""

    def __init__(self, folder: Path, overrides: list[str]) -> None:
        self.folder, self.overrides = folder, overrides
        self.workers: list[subprocess.Popen[str]] = []
        self.opened: dict[str | None, Any] = {}

    def start(self, *more: str, launcher: tuple[str, ...] = ()) -> subprocess.Popen[str]:
        command = [*(launcher or (sys.executable,)), "-m", "train.sweep", *self.overrides, *more]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        with (self.folder / f"{len(self.workers)}.out").open("w") as output:
            process = subprocess.Popen(
                command, cwd=self.folder, env=environment, stdout=output, stderr=output, text=True
            )
        self.workers.append(process)
        return process

    def close(self) -> None:
        """End the workers that are left, and the connections to a database."""
        for process in self.workers:
            if process.poll() is None:
                process.kill()
                process.wait()
        for uri, opened in self.opened.items():
            if uri is not None:
                opened.remove_session()
                opened._backend.engine.dispose()

    def finish(self, seconds: float = 240) -> None:
        """Wait for the workers that are left; each must end well."""
        for number, process in enumerate(self.workers):
            code = process.wait(timeout=seconds)
            assert code in (0, -signal.SIGKILL), (self.folder / f"{number}.out").read_text()

    def trials(self, storage: str | None = None, study: str = "fraud") -> list[FrozenTrial]:
        if storage not in self.opened:
            self.opened[storage] = open_storage(storage, self.folder / "runs" / "fraud-sweep" / "default")
        opened = self.opened[storage]
        return opened.get_all_trials(opened.get_study_id_from_name(study))

    def slots(self, total: int, **where: str) -> list[Slot]:
        with contextlib.suppress(KeyError, StorageError):  # no study yet
            return slots.slots(self.trials(**where), total)
        return [Slot(number) for number in range(total)]


@pytest.fixture
def sweep(tmp_path: Path, small_sweep: list[str]) -> Iterator[Sweep]:
    """Starts workers, and ends those that are left."""
    made = Sweep(tmp_path, small_sweep)
    try:
        yield made
    finally:
        made.close()


def done(found: list[Slot]) -> int:
    return sum(slot.is_done for slot in found)


def num_finished(trials: list[FrozenTrial]) -> int:
    return sum(trial.state in (TrialState.COMPLETE, TrialState.PRUNED) for trial in trials)


def check_each_done_once(found: list[Slot], trials: list[FrozenTrial], total: int) -> None:
    assert len(found) == total
    others = [slot for slot in found if slot.state not in ("complete", "pruned")]
    assert [(slot.number, slot.state, slot.attempts[-1].user_attrs.get(slots.REASON)) for slot in others] == []
    assert num_finished(trials) == total


@pytest.mark.slow
def test_forty_trials_are_each_done_once_however_often_workers_are_killed(sweep: Sweep) -> None:
    total, kills, choose = 40, 0, random.Random(0)
    for _ in range(3):
        sweep.start(f"trials={total}")
    while done(sweep.slots(total)) < total:
        alive = [process for process in sweep.workers if process.poll() is None]
        time.sleep(choose.uniform(0.5, 4.0))
        if kills < 8 and done(sweep.slots(total)) > 0:
            choose.choice(alive).kill()
            kills += 1
        if sum(process.poll() is None for process in sweep.workers) < 3 and len(sweep.workers) < 30:
            sweep.start(f"trials={total}")
    sweep.finish()
    check_each_done_once(sweep.slots(total), sweep.trials(), total)
    assert kills >= 3
    assert any(len(slot.attempts) > 1 for slot in sweep.slots(total)), "no kill hit a trial"


@pytest.mark.slow
def test_a_killed_trial_goes_on_from_its_checkpoint_and_ends_as_if_nothing_had_been(
    sweep: Sweep, wait_until: Wait
) -> None:
    long = ("trials=1", "trainer.max_epochs=40", "checkpoint.every_n_steps=20", "pruner=none")
    first = sweep.start(*long)
    run = sweep.folder / "runs" / "fraud-sweep" / "default" / "fraud" / "0000"
    wait_until("a checkpoint", lambda: len(list(run.glob("checkpoints/step=*.ckpt"))) > 1, 90)
    first.kill()
    first.wait()
    assert sweep.slots(1)[0].state == "running"
    second = sweep.start(*long)
    assert second.wait(timeout=120) == 0
    assert "going on from" in (run / "train.log").read_text()
    (slot,) = sweep.slots(1)
    assert slot.state == "complete"
    assert len(slot.attempts) == 2
    undisturbed = Sweep(sweep.folder / "again", sweep.overrides)
    undisturbed.folder.mkdir()
    assert undisturbed.start(*long).wait(timeout=120) == 0
    (expected,) = undisturbed.slots(1)
    assert slot.trial is not None
    assert expected.trial is not None
    assert slot.trial.values == expected.trial.values
    assert slot.trial.intermediate_values == expected.trial.intermediate_values


@pytest.mark.slow
def test_a_trial_of_two_processes_is_pruned_on_both_at_once(sweep: Sweep, wait_until: Wait) -> None:
    # The first trial is sound and the second one hopeless, which a median of one trial tells at its first validation.
    several = ("trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2", "trainer.max_epochs=6", "trials=2")
    space = "++space={model.lr:[0.01,1.0e-07]}"
    rule = ("sampler=grid", "pruner=median", "+pruner_options.n_startup_trials=1")
    process = sweep.start(*several, "sweep=none", space, *rule)
    assert process.wait(timeout=180) == 0, (sweep.folder / "0.out").read_text()
    first, second = sweep.slots(2)
    assert (first.state, second.state) == ("complete", "pruned")
    assert second.trial is not None
    assert list(second.trial.intermediate_values) == [1]
    runs = sweep.folder / "runs" / "fraud-sweep" / "default" / "fraud"
    assert (runs / "0001" / "train-rank1.log").exists()
    for rank in ("train.log", "train-rank1.log"):
        assert "Traceback" not in (runs / "0001" / rank).read_text()
    assert no_process_is_left(sweep.folder)


def no_process_is_left(folder: Path) -> bool:
    for place in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if str(folder) == os.readlink(place / "cwd"):
                return False
    return True


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_the_trials_in_flight_and_the_study_goes_on(
    sweep: Sweep, wait_until: Wait, number: signal.Signals
) -> None:
    long = ("trials=2", "trainer.max_epochs=60", "checkpoint.every_n_steps=20", "pruner=none", "workers=2")
    process = sweep.start(*long)
    runs = sweep.folder / "runs" / "fraud-sweep" / "default" / "fraud"
    wait_until("both train", lambda: len({path.parts[-3] for path in runs.glob("0*/checkpoints/step=*")}) == 2, 90)
    process.send_signal(number)
    assert process.wait(timeout=30) == 75
    assert {slot.state for slot in sweep.slots(2)} == {"free"}
    assert no_process_is_left(sweep.folder)
    assert sweep.start(*long).wait(timeout=120) == 0
    check_each_done_once(sweep.slots(2), sweep.trials(), 2)
    assert all("going on from" in (runs / name / "train.log").read_text() for name in ("0000", "0001"))


@pytest.mark.services
def test_four_workers_share_a_database_and_wait_for_it_when_it_crashes(sweep: Sweep, postgres: Any) -> None:
    total, where = 24, {"storage": postgres.uri, "study": "fraud/default"}
    process = sweep.start(f"trials={total}", f"storage={postgres.uri}", "workers=4")
    while done(sweep.slots(total, **where)) < 4:
        assert process.poll() is None, (sweep.folder / "0.out").read_text()
        time.sleep(0.2)
    postgres.kill()
    time.sleep(5)
    assert process.poll() is None
    postgres.start()
    sweep.finish()
    check_each_done_once(sweep.slots(total, **where), sweep.trials(**where), total)
    assert "away" in (sweep.folder / "runs" / "fraud-sweep" / "default" / "sweep.log").read_text()


@pytest.mark.cluster
def test_the_four_tasks_of_a_slurm_array_share_one_study(slurm: Any, tmp_path: Path, small_sweep: list[str]) -> None:
    script, total = str(ROOT / "scripts" / "slurm" / "sweep.sbatch"), 12
    options = ("--parsable", "--array=1-4", "--time=10")
    number = slurm.call("sbatch", *options, script, *small_sweep, f"trials={total}", cwd=tmp_path).strip()
    for task in range(1, 5):
        slurm.wait_for(f"{number}_{task}", "COMPLETED", 240)
    study = Sweep(tmp_path, [])
    check_each_done_once(study.slots(total), study.trials(), total)
    workers = {str(slot.trial.user_attrs[slots.OWNER]) for slot in study.slots(total) if slot.trial}
    assert len(workers) > 1


@pytest.fixture
def postgres(short_folder: Callable[[], Path]) -> Iterator[Any]:
    """A PostgreSQL that can be killed."""
    server = Postgres(short_folder())
    try:
        yield server
    finally:
        server.stop()


class Postgres:
    """A server in a folder of its own; skips the test where there is none."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.script = folder, str(ROOT / "scripts" / "testbed" / "postgres.sh")
        if not list(Path("/usr/lib/postgresql").glob("*/bin/initdb")):
            pytest.skip("not installed: postgresql")
        pytest.importorskip("psycopg")
        folder.parent.chmod(0o755)
        self.uri = self._call("start", str(random.SystemRandom().randrange(20_000, 30_000)))

    def start(self) -> None:
        self._call("start")

    def kill(self) -> None:
        self._call("kill")

    def stop(self) -> None:
        self._call("stop")

    def _call(self, verb: str, *more: str) -> str:
        log = self.folder.with_suffix(".out")
        with log.open("w") as output:  # the server would hold a pipe open
            command = [self.script, verb, str(self.folder), *more]
            code = subprocess.run(command, stdout=output, stderr=subprocess.STDOUT, timeout=90).returncode
        assert code == 0, log.read_text()
        return log.read_text().strip().splitlines()[-1] if log.read_text().strip() else ""
