import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_module
from omegaconf import DictConfig, OmegaConf

from train import stopping
from train.config.check import check
from train.errors import ConfigError, DataError, StoppedError, SweepError
from train.sweep import slots
from train.sweep.settings import SweepSettings
from train.sweep.slots import Slot
from train.sweep.storage import open_storage
from train.sweep.sweep import sweep

SPACE = {"model.lr": {"float": [1e-3, 1e-2], "log": True}, "model.num_blocks": {"int": [1, 2]}}


@pytest.fixture
def run_sweep(command: list[str]) -> Callable[..., None]:
    """Runs a sweep of the small experiment in this process; takes overrides, and keys of the config."""

    def run_sweep(*overrides: str, space: dict[str, Any] | None = None, **keys: Any) -> None:
        lines = [*command, "sweep=none", "test=false", "trials=4", *overrides]
        with initialize_config_module("configs", version_base="1.3"):
            cfg = compose("sweep", lines)
            for key, value in {"space": space or SPACE, **keys}.items():
                OmegaConf.update(cfg, key, value, force_add=True)
            check(cfg, SweepSettings)
            sweep(cfg, lines)

    return run_sweep


def found(folder: Path, total: int, study: str = "default") -> list[Slot]:
    storage = open_storage(None, folder / "runs" / "fraud-sweep" / study)
    return slots.slots(storage.get_all_trials(storage.get_study_id_from_name("fraud")), total)


def states(some: list[Slot]) -> list[str]:
    return [slot.state for slot in some]


def chosen(some: list[Slot]) -> list[Any]:
    return [(slot.state, slot.trial and (slot.trial.params, slot.trial.values)) for slot in some]


def test_each_trial_is_a_run_whose_value_is_that_of_its_best_checkpoint(
    run_sweep: Callable[..., None], tmp_path: Path
) -> None:
    run_sweep("pruner=none")
    for slot in found(tmp_path, 4):
        run = tmp_path / "runs" / "fraud-sweep" / "default" / "fraud" / f"{slot.number:04d}"
        result = json.loads((run / "result.json").read_text())
        assert slot.trial is not None
        assert slot.trial.values == [pytest.approx(result["best"]["value"], abs=1e-6)]
        assert slot.trial.values == [max(slot.trial.intermediate_values.values())]
        assert list(slot.trial.intermediate_values) == [1, 2, 3]
        assert not any(name.startswith("test/") for name in result["metrics"])
        assert OmegaConf.load(run / "config.yaml").model.lr == slot.trial.params["model.lr"]


@pytest.mark.slow
def test_the_same_seed_gives_the_same_trials_also_when_the_study_is_interrupted(
    run_sweep: Callable[..., None], tmp_path: Path
) -> None:
    options = {"sampler_options": {"n_startup_trials": 4}}
    run_sweep("trials=9", **options)
    run_sweep("trials=5", "study=other", **options)
    run_sweep("trials=9", "study=other", **options)
    run_sweep("trials=9", "study=third", "seed=1", **options)
    one, other, third = (found(tmp_path, 9, study) for study in ("default", "other", "third"))
    assert chosen(one) == chosen(other)
    assert chosen(one) != chosen(third)
    assert len({str(slot.trial and slot.trial.params) for slot in one}) == 9


def test_a_trial_that_fails_keeps_its_reason_and_the_sweep_goes_on(
    run_sweep: Callable[..., None], tmp_path: Path
) -> None:
    run_sweep("trials=3", "sampler=grid", space={"model.lr": [1e-2, 1e30, 1e-3]})
    one, diverged, last = found(tmp_path, 3)
    assert states([one, diverged, last]) == ["complete", "failed", "complete"]
    assert diverged.reason is not None
    assert "not finite" in diverged.reason


@pytest.mark.slow
def test_too_many_failures_in_a_row_stop_the_sweep_with_the_reason(
    run_sweep: Callable[..., None], tmp_path: Path
) -> None:
    with pytest.raises(SweepError, match=r"(?s)2 trials in a row have failed.*not finite.*max_failures"):
        run_sweep("sampler=grid", "max_failures=2", space={"model.lr": [1e30, 1e31, 1e-3, 1e-2]})
    assert states(found(tmp_path, 4)) == ["failed", "failed", "free", "free"]


@pytest.mark.slow
def test_a_wish_to_stop_saves_the_trial_and_the_same_command_goes_on(
    run_sweep: Callable[..., None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from train.sweep.pruning import Pruning

    validate = Pruning.on_validation_end

    def validate_and_ask(self: Pruning, *arguments: Any) -> None:
        validate(self, *arguments)
        stopping.ask()

    monkeypatch.setattr(Pruning, "on_validation_end", validate_and_ask)
    with pytest.raises(StoppedError, match="The same command goes on"):
        run_sweep("trials=1", "pruner=none")
    monkeypatch.undo()
    assert states(found(tmp_path, 1)) == ["free"]
    run_sweep("trials=1", "pruner=none")
    (slot,) = found(tmp_path, 1)
    assert slot.state == "complete"
    assert slot.trial is not None
    assert list(slot.trial.intermediate_values) == [1, 2, 3]
    log = tmp_path / "runs" / "fraud-sweep" / "default" / "fraud" / "0000" / "train.log"
    assert "going on from" in log.read_text()


def test_a_hopeless_trial_is_pruned_and_its_run_stops_there(run_sweep: Callable[..., None], tmp_path: Path) -> None:
    run_sweep(
        *("trials=2", "sampler=grid", "pruner=median"),
        space={"model.lr": [1e-2, 1e-7]},
        pruner_options={"n_startup_trials": 1},
    )
    _, hopeless = found(tmp_path, 2)
    assert hopeless.state == "pruned"
    run = tmp_path / "runs" / "fraud-sweep" / "default" / "fraud" / "0001"
    assert json.loads((run / "result.json").read_text())["epochs"] == 1


@pytest.mark.slow
def test_several_objectives_and_constraints_are_measured(run_sweep: Callable[..., None], tmp_path: Path) -> None:
    objectives = [{"metric": "val/average_precision", "mode": "max"}, {"metric": "parameters", "mode": "min"}]
    run_sweep(
        *("sampler=grid", "pruner=none", "trials=3"),
        space={"model.num_blocks": [1, 2, 3]},
        objectives=objectives,
        constraints={"parameters": 1_000, "latency_ms": 1e6},
    )
    some = found(tmp_path, 3)
    sizes = [slot.trial.values[1] for slot in some if slot.trial]
    assert sizes == sorted(sizes)
    assert [slot.trial.constraints["parameters"] <= 0 for slot in some if slot.trial] == [
        size <= 1_000 for size in sizes
    ]
    assert 0 < sum(size <= 1_000 for size in sizes) < 3
    assert all(slot.trial.user_attrs[slots.MEASURED]["latency_ms"] > 0 for slot in some if slot.trial)


def test_no_trial_begins_once_the_time_is_up(run_sweep: Callable[..., None], tmp_path: Path) -> None:
    run_sweep("timeout=0.000001")
    assert states(found(tmp_path, 4)) == ["free"] * 4


def test_data_that_cannot_be_read_end_the_sweep_at_once(run_sweep: Callable[..., None], tmp_path: Path) -> None:
    with pytest.raises(DataError, match="nowhere.csv"):
        run_sweep("data.path=nowhere.csv")
    assert states(found(tmp_path, 4)) == ["free"] * 4


@pytest.mark.slow
def test_an_objective_that_is_no_metric_ends_the_sweep_at_its_first_trial(
    run_sweep: Callable[..., None], tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=r"(?s)'val/average_precison'.*did you mean 'val/average_precision'"):
        run_sweep("pruner=none", objectives=[{"metric": "val/average_precison", "mode": "max"}])
    assert states(found(tmp_path, 4)) == ["free"] * 4


@pytest.mark.slow
def test_another_objective_than_the_monitor_is_what_the_pruner_sees(
    run_sweep: Callable[..., None], tmp_path: Path
) -> None:
    run_sweep(
        *("trials=2", "sampler=grid", "pruner=median"),
        space={"model.lr": [1e-2, 1e-7]},
        objectives=[{"metric": "val/brier", "mode": "min"}],
        pruner_options={"n_startup_trials": 1},
    )
    good, hopeless = found(tmp_path, 2)
    assert (good.state, hopeless.state) == ("complete", "pruned")
    assert good.trial is not None
    assert hopeless.trial is not None
    assert min(good.trial.intermediate_values.values()) < 0.15
    assert hopeless.trial.intermediate_values[1] > good.trial.intermediate_values[1]


@pytest.mark.slow
def test_where_no_trial_keeps_the_constraints_the_sweep_has_failed(
    run_sweep: Callable[..., None], tmp_path: Path
) -> None:
    with pytest.raises(SweepError, match="no trial is complete and keeps the constraints"):
        run_sweep("trials=1", constraints={"parameters": 1})


@pytest.mark.slow
def test_a_study_without_a_trial_may_be_begun_again_with_other_settings(
    run_sweep: Callable[..., None], tmp_path: Path
) -> None:
    run_sweep("timeout=0.000001")
    run_sweep("trials=1", "trainer.max_epochs=1", space={"model.lr": [1e-2, 1e-3]})
    with pytest.raises(ConfigError, match=r"(?s)another search:\n  space: model.lr: was"):
        run_sweep("trials=2", "trainer.max_epochs=1", space={"model.lr": [1e-2]})


@pytest.mark.slow
@pytest.mark.parametrize(
    ("overrides", "keys", "rule"),
    [
        (["run_id=mine"], {}, "run_id: each trial of a sweep has its own"),
        ([], {"space": {"output_dir": ["a", "b"]}}, "output_dir cannot be searched"),
        ([], {"space": {"trials": [1, 2]}}, "trials cannot be searched: it is a setting of the sweep"),
        ([], {"space": {**SPACE, "model.dropout": {"float": [0, 0.1], "when": {"model.widht": 16}}}}, "'width'"),
        ([], {"objectives": [{"metrik": "a", "mode": "max"}]}, r"objectives\[0\].metrik"),
        ([], {"objectives": [{"metric": "a", "mode": "biggest"}]}, r"objectives\[0\].mode"),
        ([], {"objectives": [{"metric": "parameters", "mode": "min"}]}, "pruner=none"),
        (["study=../x"], {}, "study must be the name of a folder"),
    ],
)
def test_what_makes_no_sense_is_refused_before_the_first_trial(
    run_sweep: Callable[..., None], tmp_path: Path, overrides: list[str], keys: dict[str, Any], rule: str
) -> None:
    with pytest.raises(ConfigError, match=rule):
        run_sweep(*overrides, **keys)


@pytest.mark.slow
@pytest.mark.parametrize("sampler", ["tpe", "gp", "cmaes", "random", "qmc"])
def test_every_sampler_draws_conditional_spaces(
    run_sweep: Callable[..., None], tmp_path: Path, sampler: str, configure: Callable[..., DictConfig]
) -> None:
    space = {"model.dropout": [0.0, 0.1], "model.num_blocks": {"int": [1, 2], "when": {"model.dropout": 0.0}}}
    run_sweep(
        *("trials=4", "trainer.max_epochs=1", f"sampler={sampler}", "start_with_default=false"),
        space={**space, "model.lr": {"float": [1e-3, 1e-2]}},
    )
    some = found(tmp_path, 4)
    assert set(states(some)) <= {"complete", "pruned"}
    for slot in some:
        assert slot.trial is not None
        assert ("model.num_blocks" in slot.trial.params) == (slot.trial.params["model.dropout"] == 0.0)
