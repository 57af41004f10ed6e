"""The ensemble at the end of a sweep: of real trials on a small table, and a run that all verbs take."""

import dataclasses
import json
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import onnxruntime
import pyarrow.parquet as pq
import pytest
import yaml
from hydra import compose, initialize_config_module
from omegaconf import DictConfig, OmegaConf

from train import errors
from train.config.check import check
from train.config.target import locate
from train.evaluate import evaluate
from train.export.contest import in_torch
from train.export.export import export
from train.export.source import open_source
from train.predict import predict
from train.sweep import ensemble, plan
from train.sweep.plan import Plan
from train.sweep.selection import selected
from train.sweep.settings import SweepSettings
from train.sweep.slots import Slot
from train.sweep.sweep import open_study, work

pytestmark = pytest.mark.filterwarnings("ignore")

METRIC = "val/average_precision"
AUTO = Path(__file__).parents[2] / "configs" / "sweep" / "auto"
EXPERIMENTS = sorted(path.stem for path in (AUTO.parents[1] / "experiment").glob("*.yaml"))
SPACE = """\
# @package _global_
space:
  model: [mlp, tabm]
  model.lr: {float: [1.0e-3, 1.0e-2], log: true}
  data.num_thresholds: [4, 16]
  seed: [1, 2, 3, 4]
"""


def made(*overrides: str) -> Plan:
    with initialize_config_module("configs", version_base="1.3"):
        cfg = compose("sweep", list(overrides))
        check(cfg, SweepSettings)
        return plan.make(cfg, overrides)


@pytest.fixture(scope="module")
def searched(table: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Plan, Sequence[Slot]]:
    """A sweep of four trials at its end."""
    folder = tmp_path_factory.mktemp("searched")
    (folder / "home" / "sweep").mkdir(parents=True)
    (folder / "home" / "sweep" / "small.yaml").write_text(SPACE)
    asked = made(
        *("experiment=fraud", "sweep=small", f"hydra.searchpath=[file://{folder / 'home'}]"),
        *("data=fraud_table", f"data.path={table}", "data.target=fraud", "data.time=when"),
        *("data.batch_size=64", "data.batches_per_call=4", "model.width=16", "baselines=none"),
        *("trainer=cpu", "trainer.max_epochs=4", f"output_dir={folder / 'runs'}"),
        *("trials=4", "pruner=none", "sampler=random", "ensemble=4", "test=false"),
    )
    study = open_study(asked)
    work(asked, study)
    return asked, study.slots()


@pytest.fixture
def copied(searched: tuple[Plan, Sequence[Slot]], tmp_path: Path) -> Callable[..., tuple[Plan, Sequence[Slot]]]:
    """The same in a folder of the test's own; takes settings that differ."""

    def copied(**changed: object) -> tuple[Plan, Sequence[Slot]]:
        asked, slots = searched
        folder = tmp_path / "fraud-sweep" / "default"
        shutil.copytree(asked.folder, folder, ignore=shutil.ignore_patterns("ensemble"))
        cfg = asked.cfg.copy()
        for key, value in changed.items():
            cfg[key] = value
        return dataclasses.replace(asked, cfg=cfg, folder=folder), slots

    return copied


@pytest.fixture(scope="module")
def whole(searched: tuple[Plan, Sequence[Slot]]) -> Path:
    """The run folder of an ensemble."""
    ensemble.write(*searched)
    return searched[0].folder / "ensemble"


def told(folder: Path) -> dict[str, object]:
    content: dict[str, object] = json.loads((folder / "result.json").read_text())
    return content


@pytest.mark.slow
def test_it_is_no_worse_on_the_validation_rows_than_the_best_trial_and_saw_no_test_rows(
    searched: tuple[Plan, Sequence[Slot]], whole: Path
) -> None:
    result = json.loads((whole / "result.json").read_text())
    best = max(slot.trial.values[0] for slot in searched[1] if slot.trial)
    assert result["metrics"][METRIC] >= best - 1e-6
    assert result["best_alone"][METRIC] == pytest.approx(best)
    assert result["gain"] == pytest.approx(result["metrics"][METRIC] - best)
    assert sum(member["weight"] for member in result["members"]) == pytest.approx(1)
    assert len(result["members"]) > 1  # else nothing here tests a mean
    assert not [name for name in result["metrics"] if name.startswith("test/")]


@pytest.mark.slow
def test_evaluate_and_predict_take_it_as_any_run(whole: Path, table: Path, tmp_path: Path) -> None:
    with initialize_config_module("configs", version_base="1.3"):
        asked = compose("evaluate", [f"run={whole}", f"data.path={table}", "accelerator=cpu"])
        output = [f"input={table}", f"output={tmp_path / 'out.parquet'}", "accelerator=cpu"]
        scoring = compose("predict", [f"run={whole}", *output])
    found = json.loads((evaluate(asked) / "result.json").read_text())
    assert found["metrics"]["test/average_precision"] > 0.5
    assert found["intervals_95"]["test/average_precision"]
    assert predict(scoring) == 3_000
    assert 0 < sum(pq.read_table(tmp_path / "out.parquet")["decision"].to_pylist()) < 3_000


@pytest.fixture
def exporting(whole: Path, tmp_path: Path) -> Callable[..., DictConfig]:
    """Composes an export of the ensemble."""

    def exporting(*overrides: str) -> DictConfig:
        with initialize_config_module("configs", version_base="1.3"):
            quick = ["quantize=[int8_weights]", "gate.rounds=3", "sign=false", f"output={tmp_path / 'bundle'}"]
            return compose("export", [f"run={whole}", *quick, *overrides])

    return exporting


@pytest.mark.slow
def test_it_exports_to_one_graph_that_answers_as_torch(whole: Path, exporting: Callable[..., DictConfig]) -> None:
    bundle = export(exporting())
    assert [path.name for path in bundle.glob("*.onnx")] == ["model.onnx"]
    session = onnxruntime.InferenceSession(str(bundle / "model.onnx"), providers=["CPUExecutionProvider"])
    source = open_source(str(whole), {})
    raw = source.raw(300)
    expected = in_torch(source.datamodule, source.model.export_graphs()[0], raw)
    np.testing.assert_allclose(session.run(None, raw)[0], expected[0], atol=0.02)  # int8 may have been chosen
    assert json.loads((bundle / "metrics.json").read_text())["largest_difference_from_torch"] < 1e-4
    assert "FraudEnsemble" in (bundle / "model_card.md").read_text()


@pytest.mark.slow
def test_pruning_it_is_refused_in_words(exporting: Callable[..., DictConfig]) -> None:
    with pytest.raises(errors.ConfigError, match="cannot be pruned as a whole"):
        export(exporting("prune.ratio=0.5"))


@pytest.mark.slow
def test_its_config_fits_the_signatures_and_trains_nothing(whole: Path) -> None:
    cfg = OmegaConf.load(whole / "config.yaml")
    assert isinstance(cfg, DictConfig)
    del cfg["defaults"]
    check(cfg)
    assert {member.model._target_.rpartition(".")[2] for member in cfg.model.members} <= {"FraudMLP", "FraudTabM"}


@pytest.mark.slow
def test_test_rows_are_read_where_they_are_asked_for_and_only_once(
    copied: Callable[..., tuple[Plan, Sequence[Slot]]], capsys: pytest.CaptureFixture[str]
) -> None:
    asked, slots = copied(test=True)
    ensemble.write(asked, slots)
    folder, shown = asked.folder / "ensemble", capsys.readouterr().out
    assert 0 < told(folder)["metrics"]["test/average_precision"] <= 1  # type: ignore[index]
    assert list(folder.glob("*.png"))
    assert "python -m train.export run=" in shown
    written = (folder / "result.json").stat().st_mtime_ns
    ensemble.write(asked, slots)
    assert (folder / "result.json").stat().st_mtime_ns == written
    assert capsys.readouterr().out == shown


@pytest.mark.slow
def test_trials_on_other_rows_or_on_another_disk_are_left_out_and_said(
    copied: Callable[..., tuple[Plan, Sequence[Slot]]], capsys: pytest.CaptureFixture[str]
) -> None:
    asked, slots = copied()
    ranked = sorted(slots, key=lambda slot: -slot.trial.values[0] if slot.trial else 0)
    first, on_other_rows, elsewhere, other = (slot.run_id for slot in ranked)
    config = asked.folder / "fraud" / on_other_rows / "config.yaml"
    content = yaml.safe_load(config.read_text())
    content["data"]["val_share"] = 0.2
    config.write_text(yaml.safe_dump(content))
    shutil.rmtree(asked.folder / "fraud" / elsewhere)
    ensemble.write(asked, slots)
    result = json.loads((asked.folder / "ensemble" / "result.json").read_text())
    shown = capsys.readouterr().out
    assert result["left_out"][str(int(on_other_rows))] == "its validation rows are others"
    assert "no run folder" in result["left_out"][str(int(elsewhere))]
    assert f"left out: trial {int(on_other_rows)}: its validation rows are others" in shown
    assert {member["run"] for member in result["members"]} <= {first, other}


@pytest.mark.slow
def test_where_no_trial_can_be_opened_there_is_no_ensemble(
    copied: Callable[..., tuple[Plan, Sequence[Slot]]], capsys: pytest.CaptureFixture[str]
) -> None:
    asked, slots = copied()
    shutil.rmtree(asked.folder / "fraud")
    ensemble.write(asked, slots)
    assert not (asked.folder / "ensemble").exists()
    assert "No ensemble: trial" in capsys.readouterr().out


@pytest.mark.parametrize(
    "changed", [{"constraints": {"parameters": 1e9}}, {"objectives": [{"metric": "latency_ms", "mode": "min"}]}]
)
@pytest.mark.slow
def test_none_is_made_where_it_would_break_what_the_trials_keep(
    copied: Callable[..., tuple[Plan, Sequence[Slot]]], capsys: pytest.CaptureFixture[str], changed: dict[str, object]
) -> None:
    asked, slots = copied(**changed)
    ensemble.write(asked, slots)
    assert not (asked.folder / "ensemble").exists()
    assert "No ensemble" in capsys.readouterr().out


def test_greedy_selection_takes_what_mends_the_best_and_nothing_that_does_not() -> None:
    target = np.array([1.0, 1.0, 0.0, 0.0])
    best, mending, noise = (
        np.array([0.9, 0.2, 0.1, 0.1]),
        np.array([0.1, 0.9, 0.1, 0.1]),
        np.array([0.1, 0.1, 0.9, 0.9]),
    )

    def quality(score: np.ndarray) -> float:
        return -float(np.square(score - target).mean())

    counts = selected([best, mending, noise], quality)
    assert counts[0] > 0 < counts[1]
    assert counts[2] == 0
    mean = (counts[0] * best + counts[1] * mending) / sum(counts)
    assert quality(mean) > quality(best) > quality(mending)


def test_greedy_selection_takes_one_more_than_once_where_that_is_best() -> None:
    target, one, other = np.array([1.0]), np.array([0.8]), np.array([1.4])
    counts = selected([one, other], lambda score: -float(np.abs(score - target).sum()))
    assert counts == [2, 1]


def test_greedy_selection_stays_with_the_best_where_no_mean_gains_enough() -> None:
    scores = [np.array([0.50]), np.array([0.4])]
    assert selected(scores, lambda score: float(score[0])) == [1, 0]
    assert selected(scores, lambda score: -float(score[0])) == [0, 1]
    assert selected(scores[::-1], lambda score: float("nan") if score[0] < 0.5 else 1.0) == [0, 1]


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_experiment_has_a_space_that_fits_its_signatures_and_holds_its_default(name: str, tmp_path: Path) -> None:
    found = made(f"experiment={name}", f"sweep=auto/{name}", f"output_dir={tmp_path}")
    assert (found.cfg.ensemble > 1) == hasattr(locate(found.cfg.model._target_), "ensemble")
    counted = {one.key for one in found.space.parameters if one.is_active({**found.known, **found.first[0]})}
    assert found.first[0].keys() == counted


def test_a_key_of_the_command_line_is_not_searched(tmp_path: Path) -> None:
    found = made("experiment=fraud", "sweep=auto/fraud", "model=mlp", f"output_dir={tmp_path}")
    searched = {one.key for one in found.space.parameters if one.is_active({**found.known, **found.first[0]})}
    assert "model" in found.pinned
    assert "model.width" in searched
    assert "model.num_members" not in searched


@pytest.mark.slow
def test_it_begins_with_the_default_and_the_best_of_the_latest_studies(tmp_path: Path) -> None:
    for index in range(7):
        folder = tmp_path / "fraud-sweep" / f"study{index}"
        folder.mkdir(parents=True)
        best = [{"values": {"model.lr": rate / 1000, "model.width": 64, "gone": 1}} for rate in (index + 1, 9)]
        (folder / "best.yaml").write_text(yaml.safe_dump({"overrides": [], "best": best}))
        os.utime(folder / "best.yaml", (index, index))
    found = made("experiment=fraud", "sweep=auto/fraud", "study=study6", f"output_dir={tmp_path}")
    expected = [{"model": "tabm", "model.lr": rate / 1000, "model.width": 64} for rate in (6, 5, 4, 3, 2)]
    assert list(found.first[1:]) == expected
    assert made("experiment=fraud", "sweep=auto/fraud", f"output_dir={tmp_path / 'none'}").first[1:] == []
