"""Every experiment trains alike on one process and on several, with copies and with shards, cut short or not."""

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from train.checkpoint import BEST, recent

pytestmark = pytest.mark.slow

FORKED = Path(__file__).with_name("forked.py")
STEPS = 16  # of both epochs
KILLED_AT = 14  # in the middle of the second; what was saved last is step 12
SHORT = [
    *("trainer.max_epochs=2", "+trainer.limit_train_batches=4", "data.batches_per_call=2"),
    *("checkpoint.every_n_steps=4", "checkpoint.keep=9", "baselines=none", "patience=null"),
]
ALONE = ["trainer=cpu"]
COPIES = ["trainer=ddp", "trainer.accelerator=cpu"]
SHARDS = ["trainer=fsdp", "trainer.accelerator=cpu"]
PLAN = [("whole", 1, ALONE, ""), ("copies", 2, COPIES, ""), ("shards", 2, SHARDS, "")]


@dataclass(frozen=True)
class Runs:
    """Runs of one experiment, by name, once they are over."""

    folder: Path

    def path(self, name: str) -> Path:
        (found,) = (self.folder / "runs").glob(f"*/{name}")
        return found

    def records(self, name: str) -> list[dict[str, Any]]:
        """What each rank has recorded."""
        return [torch.load(path) for path in sorted((self.folder / "records" / name).glob("rank*.pt"))]

    def losses(self, name: str) -> dict[int, float]:
        """The loss at each step, which all ranks have alike."""
        found = [record["losses"] for record in self.records(name)]
        assert all(each == found[0] for each in found)
        return found[0]

    def metrics(self, name: str) -> dict[str, float]:
        return json.loads((self.path(name) / "result.json").read_text())["metrics"]


@pytest.fixture(scope="module")
def runs(experiment: str, small: Callable[[str], list[str]], tmp_path_factory: pytest.TempPathFactory) -> Runs:
    plan = [
        *PLAN,
        ("cut", 1, ALONE, f"kill:0:{KILLED_AT}"),
        ("cut", 1, ALONE, ""),
        ("cut_shards", 2, SHARDS, f"kill:1:{KILLED_AT}"),
        ("cut_shards", 2, SHARDS, ""),
    ]
    return done(plan, small(experiment), tmp_path_factory.mktemp("runs"))


def done(plan: list[tuple[str, int, list[str], str]], trained: list[str], folder: Path) -> Runs:
    """Run what is planned: the name, the number of ranks, how, and what befalls it."""
    asked = [
        {"name": name, "ranks": ranks, "overrides": [*trained, *SHORT, *how], "fault": fault}
        for name, ranks, how, fault in plan
    ]
    ended = subprocess.run(
        [sys.executable, str(FORKED), str(folder)], input=json.dumps(asked), capture_output=True, text=True, timeout=600
    )
    assert ended.returncode == 0, ended.stderr[-6000:]
    return Runs(folder)


def assert_near(found: dict[Any, float], expected: dict[Any, float], within: float) -> None:
    assert found.keys() == expected.keys()
    assert {key: value for key, value in found.items() if not abs(value - expected[key]) <= within} == {}


def test_an_experiment_in_small_has_enough_mini_batches_for_these_tests(runs: Runs) -> None:
    assert len(runs.losses("whole")) == STEPS


def test_one_process_trains_and_measures_as_two_do(runs: Runs) -> None:
    assert_copies_are_as_one(runs)


def test_shards_train_and_measure_as_copies_do(runs: Runs) -> None:
    assert_shards_are_as_copies(runs)


def test_a_further_network_trains_alike_on_one_process_and_several(
    network: list[str], tmp_path_factory: pytest.TempPathFactory
) -> None:
    runs = done(PLAN, network, tmp_path_factory.mktemp("runs"))
    assert_copies_are_as_one(runs)
    assert_shards_are_as_copies(runs)


def assert_copies_are_as_one(runs: Runs) -> None:
    assert_near(runs.losses("copies"), runs.losses("whole"), 1e-5)
    assert_near(runs.metrics("copies"), runs.metrics("whole"), 1e-5)
    one, other = (record["weights"] for record in runs.records("copies"))
    assert all(torch.equal(value, other[name]) for name, value in one.items())


def assert_shards_are_as_copies(runs: Runs) -> None:
    assert_near(runs.losses("shards"), runs.losses("copies"), 1e-4)
    assert_near(runs.metrics("shards"), runs.metrics("copies"), 1e-4)


@pytest.mark.parametrize(("cut", "whole"), [("cut", "whole"), ("cut_shards", "shards")])
def test_a_run_that_was_killed_goes_on_to_the_same_end(runs: Runs, cut: str, whole: str) -> None:
    assert "going on from" in (runs.path(cut) / "train.log").read_text()
    assert min(runs.losses(cut)) == KILLED_AT - 2
    for one, other in zip(runs.records(cut), runs.records(whole), strict=True):
        for name, value in other["weights"].items():
            assert torch.equal(one["weights"][name], value), name
    assert runs.metrics(cut) == runs.metrics(whole)
    expected = runs.losses(whole)
    assert all(loss == expected[step] for step, loss in runs.losses(cut).items())


def test_a_checkpoint_of_a_run_that_was_killed_is_that_of_one_that_was_not(runs: Runs) -> None:
    for newest in (False, True):
        cut, whole = (
            torch.load(recent(folder)[0] if newest else folder / BEST, weights_only=True)
            for folder in (runs.path(name) / "checkpoints" for name in ("cut", "whole"))
        )
        assert cut["global_step"] == whole["global_step"]
        assert cut["state_dict"].keys() == whole["state_dict"].keys()
        assert all(torch.equal(value, whole["state_dict"][name]) for name, value in cut["state_dict"].items())
        assert str(cut["optimizer_states"]) == str(whole["optimizer_states"])
