"""The report of a sweep: of real studies whose trials were finished by hand, and of one real run."""

import io
import itertools
import json
import random
import shlex
import shutil
import subprocess
import sys
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import yaml
from hydra import compose, initialize_config_module
from omegaconf import OmegaConf
from rich.console import Console
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams import metadata, plugin_data_pb2

from train.config.arguments import expanded
from train.errors import ConfigError
from train.sweep import best, board, key_plots, plan, remembered, report, slots, winners
from train.sweep.plan import Plan
from train.sweep.storage import open_storage
from train.sweep.study import Claim, Study

from .conftest import small_run

pytestmark = pytest.mark.slow  # each draws or trains

SPACE = """\
# @package _global_
space:
  model: [tabm, mlp]
  model.lr: {float: [1.0e-4, 1.0e-1], log: true}
  model.width: {choice: [8, 16, 32]}
  model.dropout: {float: [0.0, 0.4], step: 0.1}
  data.windows_days: {choice: [[1, 7], [1, 7, 30]]}
  model.num_members: {int: [2, 8], when: {model: tabm}}
"""
METRIC = "val/average_precision"
Outcome = Callable[[Mapping[str, Any]], list[float] | None]


def score(values: Mapping[str, Any]) -> list[float] | None:
    """The width decides, the rest hardly counts; the widest is pruned, and a large rate fails."""
    if values["model.lr"] > 0.05:
        raise ValueError("too fast")
    return None if values["model.width"] == 32 else [values["model.width"] / 20 + values["model.lr"]]


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., Plan]:
    """Makes the plan of a sweep over the space above."""
    return making(tmp_path)


def making(tmp_path: Path, space: str = SPACE) -> Callable[..., Plan]:
    def make(*overrides: str) -> Plan:
        (tmp_path / "home" / "sweep").mkdir(parents=True, exist_ok=True)
        (tmp_path / "home" / "sweep" / "small.yaml").write_text(space)
        own = [
            f"hydra.searchpath=[file://{tmp_path / 'home'}]",
            "experiment=fraud",
            "sweep=small",
            "seed=3",
            "trials=24",
            "start_with_default=false",
            "trainer.max_epochs=3",
            "+trainer.num_sanity_val_steps=0",
            f"output_dir={tmp_path / 'runs'}",
            *overrides,
        ]
        with initialize_config_module("configs", version_base="1.3"):
            made = plan.make(compose("sweep", own), own)
        made.folder.mkdir(parents=True, exist_ok=True)
        return made

    return make


def opened(made: Plan) -> Study:
    directions = [direction for _, direction in made.objectives]
    storage = open_storage(made.cfg.storage, made.folder)
    return Study(storage, made.study_name, directions, total=made.total, facts=made.facts)


def do(made: Plan, study: Study, outcome: Outcome, *, count: int | None = None) -> None:
    """Finish as many trials, or all, as a worker does."""
    for _ in itertools.count() if count is None else range(count):
        claim = study.claim(lambda slot: setattr(study.optuna, "sampler", made.sampler(slot)))
        if claim is None:
            return
        finish(made, study, claim, outcome)


def finish(made: Plan, study: Study, claim: Claim, outcome: Outcome) -> None:
    values = made.space.suggest(claim.trial, made.known)
    try:
        found = outcome(values)
    except ValueError as error:
        study.fail(claim.trial._trial_id, **{slots.REASON: str(error)})
        return
    for step in (1, 2, 3) if found and len(found) == 1 else ():
        claim.trial.report(found[0] * step / 3, step)
    if found is None:
        claim.trial.report(0.1, 1)
    for name, bound in made.constraints.items():
        claim.trial.set_constraint(name, values["model.width"] - bound)
        claim.trial.set_user_attr(slots.MEASURED, {METRIC: 0.0, name: float(values["model.width"])})
    study.finish(claim, found)


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> tuple[Plan, Study]:
    """A sweep at its end, with its report: complete, pruned and failed trials, one of them after a lost attempt."""
    made = making(tmp_path_factory.mktemp("sweep"))("test=false")
    study = opened(made)
    lost = study.claim()
    assert lost is not None
    study.fail(lost.trial._trial_id)
    do(made, study, score)
    report.remember(made)
    report.write(made, study)
    return made, study


def test_best_yaml_gives_the_best_trial_from_nothing_but_the_experiment(done: tuple[Plan, Study]) -> None:
    made, study = done
    found = expanded([f"+from_sweep={made.folder}"])
    assert not [line for line in found if line.startswith(("hydra", "sweep", "trials", "output_dir", "test"))]
    leader = best.best(made, study.slots())
    assert leader is not None
    with initialize_config_module("configs", version_base="1.3"):
        cfg = compose("train", found)
    ran = made.trial_config(winners.values(leader), "0")
    for key in ("model", "data", "seed", "trainer.max_epochs", "trainer.num_sanity_val_steps"):
        assert OmegaConf.select(cfg, key) == OmegaConf.select(ran, key)


def test_the_best_trials_on_the_screen_show_a_choice_as_it_stands_in_the_space(make: Callable[..., Plan]) -> None:
    made = make("trials=3")
    study = opened(made)
    do(made, study, lambda values: [values["model.lr"]])
    screen = Console(file=io.StringIO(), width=160)
    screen.print(board.Board(made, study, screen).drawn())
    shown = screen.file.getvalue()  # type: ignore[attr-defined]
    assert "[1, 7" in shown
    assert "json:" not in shown


def test_best_yaml_lists_the_leading_trials_as_a_warm_start_reads_them(done: tuple[Plan, Study]) -> None:
    made, study = done
    content = yaml.safe_load((made.folder / "best.yaml").read_text())
    leading = best.leading(made, study.slots())[:10]
    assert [one["number"] for one in content["best"]] == [slot.number for slot in leading]
    assert [one["values"] for one in content["best"]] == plan.best_of(made.folder)
    assert content["best"][0]["objectives"] == {METRIC: leading[0].trial.values[0]}  # type: ignore[union-attr]
    assert content["best"][0]["run"] == f"fraud/{leading[0].run_id}"
    assert content["best"][0]["values"]["data.windows_days"] in ([1, 7], [1, 7, 30])


@pytest.mark.slow
def test_best_yaml_says_what_the_default_came_to(make: Callable[..., Plan]) -> None:
    made = make("test=false", "start_with_default=true", "model.width=16", "data.windows_days=[1,7]")
    study = opened(made)
    do(made, study, lambda values: [0.5 + values["model.lr"]])
    report.write(made, study)
    head = (made.folder / "best.yaml").read_text().splitlines()[0]
    first = study.slots()[0].trial
    assert first is not None
    assert f"of 24: {METRIC} 0." in head
    assert f"(trial 0, the default: {METRIC} {first.values[0]:.4f})" in head


@pytest.mark.slow
def test_the_first_point_of_a_grid_is_not_called_the_default(tmp_path: Path) -> None:
    grid = "# @package _global_\nspace:\n  model.width: [8, 16]\n"
    made = making(tmp_path, grid)("sampler=grid", "start_with_default=true")
    study = opened(made)
    do(made, study, lambda values: [0.5])
    assert winners.summary(made, study.slots()) == f"trial 0, the best of 2: {METRIC} 0.5000"


def test_the_table_has_a_typed_column_for_each_key_and_null_where_it_did_not_count(done: tuple[Plan, Study]) -> None:
    made, study = done
    found = pq.read_table(made.folder / "trials.parquet")
    kinds = {field.name: str(field.type) for field in found.schema}
    assert list(kinds)[:5] == ["number", "state", "attempts", "reason", METRIC]
    assert kinds["model"] == kinds["data.windows_days"] == "string"
    assert kinds["model.lr"] == kinds["model.dropout"] == "double"
    assert kinds["model.width"] == kinds["model.num_members"] == "int64"
    rows = found.to_pylist()
    assert [row["number"] for row in rows] == list(range(24))
    assert {row["state"] for row in rows} == {"complete", "pruned", "failed"}
    assert rows[0]["attempts"] == 2
    for row in rows:
        assert (row["model.num_members"] is None) == (row["model"] == "mlp")
        assert (row[METRIC] is None) == (row["state"] == "failed")
        assert row["reason"] == ("too fast" if row["state"] == "failed" else None)
        assert row["validations"] == {"complete": 3, "pruned": 1, "failed": 0}[row["state"]]
        assert json.loads(row["data.windows_days"])[:2] == [1, 7]


@pytest.mark.slow
def test_what_else_a_trial_is_judged_by_is_in_the_table(make: Callable[..., Plan]) -> None:
    made = make("test=false", "+constraints.parameters=10")
    study = opened(made)
    do(made, study, lambda values: [values["model.width"]])
    report.write(made, study)
    rows = pq.read_table(made.folder / "trials.parquet").to_pylist()
    assert {row["parameters"] for row in rows} == {8, 16, 32}
    assert all(row["keeps_constraints"] == (row["parameters"] <= 10) for row in rows)
    content = yaml.safe_load((made.folder / "best.yaml").read_text())
    assert {one["values"]["model.width"] for one in content["best"]} == {8}


PLOTS = {"history", "importance", "parallel_coordinates", "slices", "intermediate_values", "timeline"}


def test_the_plots_of_one_objective_are_there(done: tuple[Plan, Study]) -> None:
    made, study = done
    assert {path.stem for path in made.folder.glob("*.png")} == PLOTS


@pytest.mark.slow
def test_the_key_that_decides_is_the_most_important_and_conditional_keys_are_ranked(make: Callable[..., Plan]) -> None:
    made = make("test=false", "trials=60", "sampler=random")
    study = opened(made)
    do(made, study, lambda values: [values["model.width"] + random.Random(str(values)).random()])
    found = key_plots.importances(made, study.slots(), 0)
    assert next(iter(found)) == "model.width"
    assert found["model.width"] > 0.8
    assert "model.num_members" in found
    assert sum(found.values()) == pytest.approx(1)


@pytest.mark.slow
def test_too_few_trials_leave_a_plot_out_instead_of_failing(make: Callable[..., Plan]) -> None:
    made = make("test=false")
    study = opened(made)
    do(made, study, lambda values: [0.5], count=1)
    report.write(made, study)
    assert {path.stem for path in made.folder.glob("*.png")} == PLOTS - {"importance"}


@pytest.mark.slow
def test_of_several_objectives_the_pareto_front_is_kept(make: Callable[..., Plan]) -> None:
    objectives = "objectives=[{metric: val/average_precision, mode: max}, {metric: parameters, mode: min}]"
    made = make("test=false", objectives, "pruner=none")
    study = opened(made)
    do(made, study, lambda values: [values["model.width"] * (1 + values["model.dropout"]), values["model.width"]])
    report.write(made, study)
    assert {path.stem for path in made.folder.glob("*.png")} == PLOTS - {"intermediate_values"} | {"pareto_front"}
    content = yaml.safe_load((made.folder / "best.yaml").read_text())
    points = [tuple(one["objectives"].values()) for one in content["best"]]
    assert len({size for _, size in points}) == 3
    assert all(not (a >= c and b <= d and (a, b) != (c, d)) for a, b in points for c, d in points)


def test_each_trial_is_a_row_of_hparams(done: tuple[Plan, Study]) -> None:
    made, study = done
    report.write_files(made, study.slots())  # anew: nothing is there twice
    runs = sorted(path.name for path in (made.folder / "tensorboard").iterdir() if path.is_dir())
    assert runs == [f"{number:04d}" for number in range(24)] + ["report"]
    for slot in study.slots():
        events = accumulated(made.folder / "tensorboard" / f"{slot.number:04d}")
        start = hparams_of(events, metadata.SESSION_START_INFO_TAG).session_start_info
        chosen = winners.values(slot)
        assert set(start.hparams) == set(chosen)
        assert start.hparams["model.lr"].number_value == chosen["model.lr"]
        assert start.hparams["model"].string_value == chosen["model"]
        end = hparams_of(events, metadata.SESSION_END_INFO_TAG).session_end_info
        assert (end.status == 2) == (slot.state == "failed")
        scalars = [event.value for tag in events.Tags()["scalars"] for event in events.Scalars(tag)]
        assert scalars == pytest.approx([] if slot.state == "failed" else slot.trial.values)  # type: ignore[union-attr]
    assert set(accumulated(made.folder / "tensorboard" / "report").Tags()["images"]) == PLOTS
    described = hparams_of(accumulated(made.folder / "tensorboard"), metadata.EXPERIMENT_TAG).experiment
    assert {one.name for one in described.hparam_infos} == {one.key for one in made.space.parameters}


def accumulated(place: Path) -> EventAccumulator:
    (file,) = place.glob("events*")
    events = EventAccumulator(str(file))
    events.Reload()
    return events


def hparams_of(events: EventAccumulator, tag: str) -> Any:
    content = events.SummaryMetadata(tag).plugin_data.content
    return plugin_data_pb2.HParamsPluginData.FromString(content)


def test_report_alone_makes_the_files_of_a_study_again(
    done: tuple[Plan, Study], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    made, study = done
    names = ["best.yaml", "trials.parquet", *(f"{name}.png" for name in PLOTS)]
    before = {name: (made.folder / name).read_bytes() for name in names}
    moved = shutil.copytree(made.folder, tmp_path / "moved")
    for name in names:
        (moved / name).unlink()
    report.rebuild([f"report={moved}"])
    after = {name: (moved / name).read_bytes() for name in names}
    assert after.pop("best.yaml").replace(str(moved).encode(), str(made.folder).encode()) == before.pop("best.yaml")
    assert after == before
    assert "best" in capsys.readouterr().out


def test_the_password_of_a_storage_is_kept_in_no_file_and_asked_for_again(
    make: Callable[..., Plan], tmp_path: Path
) -> None:
    secret = "storage=postgresql://me:hush@nowhere/studies"
    made = make(secret, "test=false")
    report.remember(made)
    assert "hush" not in (made.folder / "sweep.yaml").read_text()
    with pytest.raises(ConfigError, match=r"postgresql://me:\*\*\*@nowhere/studies.*add storage=URI"):
        remembered.read(made.folder, None)
    assert remembered.read(made.folder, "postgresql://me:hush@nowhere/studies").objectives == made.objectives


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["report=nowhere"], "is no folder of a study"),
        (["report={runs}/fraud-sweep"], "did you mean '{runs}/fraud-sweep/default'"),
        (["report={runs}/fraud-sweep/default", "trials=3"], "goes with storage=URI only, not with trials"),
        (
            ["report={runs}/fraud-sweep/default", "storage=sqlite:///{runs}/empty.db"],
            "there is no study 'fraud/default'",
        ),
    ],
)
def test_a_report_of_what_is_no_study_is_refused_in_words(
    done: tuple[Plan, Study], words: list[str], told: str
) -> None:
    runs = done[0].folder.parents[1]
    with pytest.raises(ConfigError) as caught:
        report.rebuild([word.format(runs=runs) for word in words])
    assert told.format(runs=runs) in str(caught.value)


def test_a_study_without_a_complete_trial_says_so(
    make: Callable[..., Plan], capsys: pytest.CaptureFixture[str]
) -> None:
    made = make("trials=3")
    study = opened(made)
    do(made, study, lambda values: None)
    report.write(made, study)
    assert "There is no best trial: no trial is complete." in capsys.readouterr().out
    assert not (made.folder / "best.yaml").exists()
    assert (made.folder / "trials.parquet").exists()


@pytest.mark.slow
def test_one_process_reports_and_another_leaves_it_to_that_one(make: Callable[..., Plan]) -> None:
    made = make("test=false", "trials=2")
    study = opened(made)
    do(made, study, lambda values: [0.5])
    code = f"import fcntl; f = open({str(made.folder / report.LOCK)!r}, 'ab'); fcntl.flock(f, fcntl.LOCK_EX); "
    code += "print(flush=True); input()"
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        holder.stdout.readline()
        report.write(made, study)
        assert not (made.folder / "best.yaml").exists()
        holder.communicate(b"\n")
    report.write(made, study)
    assert (made.folder / "best.yaml").exists()


def test_the_users_overrides_come_after_those_of_the_sweep(tmp_path: Path) -> None:
    path = tmp_path / "best.yaml"
    lines = ["experiment=fraud", "+trainer.num_sanity_val_steps=0", "model=mlp", "model.lr=0.1"]
    path.write_text(yaml.safe_dump({"overrides": lines}))
    for place in (path, tmp_path):
        assert expanded([f"+from_sweep={place}"]) == lines
        assert expanded(["--cfg", "job", "model.lr=1", f"+from_sweep={place}", "seed=2"]) == [
            "--cfg", "job", *lines, "model.lr=1", "seed=2"
        ]  # fmt: skip
        assert expanded(["experiment=mine", f"+from_sweep={place}", "trainer=cpu", "model=tabm"]) == [
            *lines[1:2], "model.lr=0.1", "experiment=mine", "trainer=cpu", "model=tabm"
        ]  # fmt: skip


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (None, "no file '"),
        ("best: []", "has no list `overrides`"),
        ("overrides: [{a: 1}]", "has no list `overrides`"),
        ("overrides: [", "is no YAML file"),
    ],
)
def test_what_no_sweep_has_written_is_refused_with_exit_code_2(tmp_path: Path, content: str | None, told: str) -> None:
    if content is not None:
        (tmp_path / "best.yaml").write_text(content)
    command = [sys.executable, "-m", "train", "experiment=fraud", f"+from_sweep={tmp_path}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2
    assert told in done.stderr
    assert "Traceback" not in done.stderr


def test_a_command_line_is_quoted_as_a_shell_reads_it(done: tuple[Plan, Study]) -> None:
    from train.sweep import testing

    made, study = done
    leader = best.best(made, study.slots())
    assert leader is not None
    words = shlex.split(testing.command(made, leader))
    assert words[:3] == ["python", "-m", "train"]
    assert words[3:-2] == winners.overrides(made, leader)
    assert words[-2:] == [f"output_dir={made.folder}", f"run_id={leader.run_id}"]


@pytest.mark.slow
def test_the_test_rows_are_read_once_by_the_run_of_the_best_trial_as_it_ended(table: Path, tmp_path: Path) -> None:
    from train.run import run
    from train.sweep import testing

    small = [
        line
        for line in small_run(table, tmp_path)
        if not line.startswith(("baselines=", "experiment=", "trainer.max", "output_dir"))
    ]
    # Nothing is learned, so that early stopping ends the run before its last epoch.
    space = "# @package _global_\nspace:\n  model.dropout: [0.0, 0.1]\n"
    more = ["~baselines.xgboost", "model.lr=1e-20", "patience=1", "trainer.max_epochs=9", "trials=1"]
    made = making(tmp_path, space)(*small, *more)
    study = opened(made)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what a run warns of is for the tests of runs
        claim = study.claim(lambda slot: setattr(study.optuna, "sampler", made.sampler(slot)))
        assert claim is not None
        cfg = made.trial_config(made.space.suggest(claim.trial, made.known), claim.slot.run_id)
        trained = run(cfg, testing=False)
        study.finish(claim, [trained.metrics[METRIC]])
        before = json.loads((trained.folder / "result.json").read_text())
        checkpoints = {path.name: path.read_bytes() for path in trained.folder.glob("checkpoints/*")}
        report.write(made, study)
    after = json.loads((trained.folder / "result.json").read_text())
    assert before["epochs"] == after["epochs"] < 9
    assert {path.name: path.read_bytes() for path in trained.folder.glob("checkpoints/*")} == checkpoints
    assert not any(name.startswith("test/") for name in before["metrics"])
    assert {name: after["metrics"][name] for name in before["metrics"]} == before["metrics"]
    assert "test/average_precision" in after["metrics"]
    assert after["baselines"].keys() == {"base_rate", "logistic_regression"}
    assert after["rows_per_second"] == before["rows_per_second"]

    def never(cfg: object) -> None:
        raise AssertionError("the test rows were read again")

    leader = best.best(made, study.slots())
    assert leader is not None
    testing.look(made, leader, never)


def test_a_run_on_another_machine_is_named_with_the_command_that_tests_it(
    done: tuple[Plan, Study], capsys: pytest.CaptureFixture[str]
) -> None:
    from train.sweep import testing

    made, study = done
    leader = best.best(made, study.slots())
    assert leader is not None
    testing.look(made, leader, testing.run_once_more)
    out = capsys.readouterr().out
    assert "is not on this machine" in out
    assert testing.command(made, leader) in out
