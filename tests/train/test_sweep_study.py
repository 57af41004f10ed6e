import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from optuna.trial import TrialState

from train.errors import ConfigError, StorageError
from train.folder import masked
from train.sweep import gpus, slots
from train.sweep.heartbeat import MOST_LOOKS, Heartbeat
from train.sweep.storage import open_storage
from train.sweep.study import Claim, Study, TakenError

FACTS = {"space": {"x": "0 to 1"}}


def open_study(folder: Path, total: int, facts: dict[str, Any] | None = None) -> Study:
    return Study(open_storage(None, folder), "s", ["maximize"], total=total, facts=FACTS if facts is None else facts)


def claimed(study: Study) -> Claim:
    claim = study.claim()
    assert claim is not None
    return claim


def abandoned(folder: Path, total: int) -> Claim:
    """A trial of a process that is no more, on another host as far as anyone can tell."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(slots, "_host", lambda: "elsewhere")
        claim = claimed(open_study(folder, total))
    claim.trial.suggest_float("x", 0, 1)
    claim.trial.report(0.25, 1)
    return claim


def take_all(folder: str, total: int, all_are_there: Any) -> None:
    study = open_study(Path(folder), total)
    all_are_there.wait(timeout=60)
    claim = study.claim()
    all_are_there.wait(timeout=60)  # each has one: the fastest cannot have done them all
    while claim:
        claim.trial.suggest_float("x", 0, 1)
        study.finish(claim, [1.0])
        claim = study.claim()


def test_processes_that_claim_at_once_do_each_trial_once(tmp_path: Path) -> None:
    total = 24
    context = multiprocessing.get_context("fork")
    together = context.Barrier(4)
    processes = [context.Process(target=take_all, args=(str(tmp_path), total, together)) for _ in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        assert process.exitcode == 0
    study = open_study(tmp_path, total)
    assert [slot.state for slot in study.slots()] == ["complete"] * total
    assert sum(trial.state == TrialState.COMPLETE for trial in study.trials()) == total
    assert len({json.dumps(slot.trial.user_attrs[slots.OWNER]) for slot in study.slots() if slot.trial}) == 4


def test_a_study_goes_on_to_its_total_and_no_further(tmp_path: Path) -> None:
    study = open_study(tmp_path, 2)
    for _ in range(2):
        study.finish(claimed(study), [0.5])
    assert study.claim() is None
    more = open_study(tmp_path, 3)
    assert claimed(more).slot.number == 2
    assert more.claim() is None


def test_a_study_of_another_search_is_refused(tmp_path: Path) -> None:
    study = open_study(tmp_path, 2)
    study.finish(claimed(study), [0.5])
    with pytest.raises(ConfigError, match=r"(?s)another search.*space: was .*0 to 1.*is .*0 to 2.*study=NAME"):
        open_study(tmp_path, 2, {"space": {"x": "0 to 2"}})


@pytest.mark.slow
def test_the_trial_of_a_process_that_died_here_is_free_at_once_with_what_it_had_chosen(tmp_path: Path) -> None:
    script = (
        "import os, signal, sys; from pathlib import Path; sys.path.insert(0, sys.argv[2])\n"
        "from train.sweep.storage import open_storage; from train.sweep.study import Study\n"
        "storage, facts = open_storage(None, Path(sys.argv[1])), {'space': {'x': '0 to 1'}}\n"
        "study = Study(storage, 's', ['maximize'], total=1, facts=facts)\n"
        "claim = study.claim(); claim.trial.suggest_float('x', 0, 1); claim.trial.report(0.25, 1)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    root = str(Path(__file__).parents[2])
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path), root], capture_output=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    study = open_study(tmp_path, 1)
    assert study.slots()[0].state == "running"
    study.give_up_gone()
    (slot,) = study.slots()
    assert slot.state == "free"
    assert slot.trial is not None
    again = claimed(study)
    assert again.trial.suggest_float("x", 0, 1) == slot.trial.params["x"]
    assert study.storage.get_trial(again.trial._trial_id).intermediate_values == {1: 0.25}


def test_a_worker_elsewhere_that_gives_no_sign_of_life_loses_its_trial(tmp_path: Path) -> None:
    abandoned(tmp_path, 1)
    study = open_study(tmp_path, 1)
    study.give_up_gone()
    assert study.slots()[0].state == "running"  # which only its heartbeat can tell
    with Heartbeat(study, 0.05):
        deadline = time.monotonic() + 10
        while study.slots()[0].state == "running":
            assert time.monotonic() < deadline
            time.sleep(0.02)
    assert claimed(study).slot.number == 0


@pytest.mark.slow
def test_a_worker_elsewhere_that_beats_keeps_its_trial(tmp_path: Path) -> None:
    claim = abandoned(tmp_path, 1)
    study = open_study(tmp_path, 1)
    with Heartbeat(study, 0.2):
        for beat in range(1, 4 * MOST_LOOKS):
            study.storage.set_trial_user_attr(claim.trial._trial_id, slots.BEAT, beat)
            time.sleep(0.1)
        assert study.slots()[0].state == "running"


def test_a_worker_that_was_taken_for_dead_does_not_finish_the_trial_a_second_time(tmp_path: Path) -> None:
    mine, other = open_study(tmp_path, 1), open_study(tmp_path, 1)
    claim = claimed(mine)
    with Heartbeat(mine, 0.05) as heartbeat:
        heartbeat.hold(claim.trial._trial_id)
        other.fail(claim.trial._trial_id)
        assert heartbeat.is_taken.wait(timeout=10)
    second = claimed(other)
    with pytest.raises(TakenError):
        mine.finish(claim, [0.1])
    other.finish(second, [0.9])
    (slot,) = other.slots()
    assert slot.trial is not None
    assert slot.trial.values == [0.9]


def test_a_trial_whose_workers_keep_dying_has_failed_with_a_reason(tmp_path: Path) -> None:
    study = open_study(tmp_path, 1)
    for _ in range(slots.MOST_ATTEMPTS):
        study.fail(claimed(study).trial._trial_id)
    (slot,) = study.slots()
    assert slot.state == "failed"
    assert slot.reason is not None
    assert "died 3 times" in slot.reason


def test_interruptions_are_no_deaths(tmp_path: Path) -> None:
    study = open_study(tmp_path, 1)
    for _ in range(2 * slots.MOST_ATTEMPTS):
        study.fail(claimed(study).trial._trial_id, **{slots.INTERRUPTED: True})
    assert study.slots()[0].state == "free"


def test_a_journal_line_that_a_killed_process_has_not_finished_is_cut_off(tmp_path: Path) -> None:
    study = open_study(tmp_path, 2)
    study.finish(claimed(study), [0.5])
    with (tmp_path / "study.journal").open("ab") as file:
        file.write(b'{"op_code":4,"worker_id":"x')
    again = open_study(tmp_path, 2)
    again.finish(claimed(again), [0.75])
    assert [slot.trial and slot.trial.value for slot in open_study(tmp_path, 2).slots()] == [0.5, 0.75]


def test_a_journal_that_is_none_is_refused_in_words(tmp_path: Path) -> None:
    (tmp_path / "study.journal").write_bytes(b"\xff\xfe garbage\n")
    with pytest.raises(StorageError, match=r"study.journal is no journal of a study.*study=NAME"):
        open_study(tmp_path, 2)


def test_the_journal_is_free_as_soon_as_a_process_that_held_it_is_killed(tmp_path: Path) -> None:
    open_study(tmp_path, 2)
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        storage: Any = open_storage(None, tmp_path)
        storage._backend._lock.acquire()
        os.write(writing, b".")
        time.sleep(60)
    os.read(reading, 1)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    start = time.monotonic()
    claimed(open_study(tmp_path, 2))
    assert time.monotonic() - start < 5


@pytest.mark.parametrize(
    ("uri", "kind", "text"),
    [
        ("nowhere://x/y", ConfigError, "no database that can be used here"),
        ("postgresql://u:secret@127.0.0.1:9/x", StorageError, r"postgresql://u:\*\*\*@127.0.0.1:9/x cannot be reached"),
    ],
)
def test_a_storage_that_cannot_be_used_is_named_without_its_password(
    tmp_path: Path, uri: str, kind: type[Exception], text: str
) -> None:
    with pytest.raises(kind, match=text) as raised:
        open_storage(uri, tmp_path)
    assert "secret" not in str(raised.value)


def test_passwords_are_masked() -> None:
    assert masked("postgresql://u:p@h/d") == "postgresql://u:***@h/d"
    assert masked("postgresql://u@h/d") == "postgresql://u@h/d"
    assert masked("storage=postgresql://u:p@ss@h/d") == "storage=postgresql://u:***@h/d"
    assert masked("postgresql://u@h/d?password=secret&x=1") == "postgresql://u@h/d?password=***&x=1"


def test_workers_of_one_machine_share_its_gpus_evenly(tmp_path: Path) -> None:
    held = [gpus.take(["0", "1", "2"], tmp_path) for _ in range(6)]
    assert sorted(held) == ["0", "0", "1", "1", "2", "2"]
    assert sorted(held[:3]) == ["0", "1", "2"]
    for lock in gpus._held:
        lock.close()
    gpus._held.clear()
