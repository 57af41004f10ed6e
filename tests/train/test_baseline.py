"""The classical baselines of an experiment, searched and tested."""

import builtins
import json
import math
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from hydra import compose, initialize_config_module
from omegaconf import DictConfig

from train.baseline import baseline, with_grid
from train.config.check import check
from train.errors import ConfigError, DataError
from train.run import run

from .conftest import small_run

FAST = ["base_rate", "decision_tree", "naive_bayes", "nearest_neighbours"]


@pytest.fixture
def composed(table: Path, tmp_path: Path) -> Callable[..., DictConfig]:
    """Composes configs/baseline.yaml on the small table."""

    def composed(*overrides: str) -> DictConfig:
        keys = [key for key in small_run(table, tmp_path) if not key.startswith(("baselines=", "trainer"))]
        with initialize_config_module("configs", version_base="1.3"):
            cfg = compose("baseline", [*keys, *overrides])
        check(cfg)
        return cfg

    return composed


def only(cfg: DictConfig, names: list[str]) -> DictConfig:
    cfg.baselines = {name: cfg.baselines[name] for name in names}
    return cfg


def test_the_command_searches_the_grids_of_an_experiment_that_has_some() -> None:
    assert with_grid(["experiment=fraud", "seed=1"]) == ["experiment=fraud", "baselines=grid/fraud", "seed=1"]
    for words in (["experiment=text"], ["experiment=fraud", "baselines=none"], ["seed=1"]):
        assert with_grid(words) == words


def test_the_short_list_is_an_experiments_own_and_all_baselines_are_its_grid(
    composed: Callable[..., DictConfig],
) -> None:
    few, everything = set(composed().baselines), set(composed("baselines=grid/fraud").baselines)
    assert few == {"base_rate", "logistic_regression", "xgboost"}
    extra = {"lightgbm", "random_forest", "linear_svm", "nearest_neighbours", "naive_bayes", "decision_tree"}
    assert everything == few | extra | {"k_means_distance"}
    assert set(composed("baselines=grid/fraud", "~baselines.xgboost").baselines) == everything - {"xgboost"}


def test_each_is_searched_tested_and_recorded(
    composed: Callable[..., DictConfig], capsys: pytest.CaptureFixture[str]
) -> None:
    cfg = only(composed("baselines=grid/fraud"), FAST)
    cfg.baselines.nearest_neighbours.most_rows = 500
    folder = baseline(cfg)
    found = json.loads((folder / "baselines.json").read_text())
    assert list(found) == FAST
    for name, account in found.items():
        assert 0 < account["test"]["average_precision"] <= 1
        assert "cost_saved_share" in account["test"]
        if name != "base_rate":
            assert account["chosen"].keys() == cfg.baselines[name].grid.keys()
            assert account["score_over_folds"] > 0.1
    assert found["decision_tree"]["test"]["average_precision"] > found["base_rate"]["test"]["average_precision"]
    assert found["nearest_neighbours"]["most_rows"] == 500
    shown = capsys.readouterr().out
    assert "fitted to at most 500 rows" in shown
    assert shown.index("decision_tree  ") < shown.index("base_rate  ")  # the table's best is on top


def test_the_folder_is_a_run_folder_of_its_own(composed: Callable[..., DictConfig], tmp_path: Path) -> None:
    folder = baseline(only(composed("run_id=mine"), ["base_rate"]))
    assert folder == tmp_path / "runs" / "fraud-baselines" / "mine"
    assert {"config.yaml", "provenance.json", "train.log", "baselines.json"} <= {path.name for path in folder.iterdir()}
    assert yaml.safe_load((folder / "config.yaml").read_text())["baselines"].keys() == {"base_rate"}
    assert not (tmp_path / "runs" / "fraud").exists()  # `latest` there is the newest network


def test_a_run_and_this_verb_give_a_baseline_the_same_metrics(
    composed: Callable[..., DictConfig], configure: Callable[..., DictConfig]
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what a run warns of is for the tests of runs
        by_run = run(configure("baselines=fraud", "~baselines.xgboost", "trainer.max_epochs=1")).baselines
    folder = baseline(composed("baselines=fraud", "~baselines.xgboost"))
    here = {name: account["test"] for name, account in json.loads((folder / "baselines.json").read_text()).items()}
    assert by_run.keys() == here.keys()
    for name, metrics in by_run.items():
        # JSON has null for what is undefined, such as card precision without customers
        assert here[name] == pytest.approx(
            {key: None if math.isnan(value) else value for key, value in metrics.items()}
        )


def test_a_baseline_whose_package_is_missing_is_skipped_with_the_extra_named(
    composed: Callable[..., DictConfig], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ordinary = builtins.__import__

    def without_lightgbm(name: str, *rest: Any, **more: Any) -> Any:
        if name == "lightgbm":
            raise ModuleNotFoundError("No module named 'lightgbm'", name="lightgbm")
        return ordinary(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", without_lightgbm)
    folder = baseline(only(composed("baselines=grid/fraud"), ["lightgbm", "base_rate"]))
    assert list(json.loads((folder / "baselines.json").read_text())) == ["base_rate"]
    assert "lightgbm skipped: no package 'lightgbm'; pip install 'fullcycle[baselines]'" in capsys.readouterr().out


def test_what_cannot_be_searched_is_told(composed: Callable[..., DictConfig]) -> None:
    with pytest.raises(ConfigError, match="this experiment has none"):
        baseline(composed("baselines=none"))
    with pytest.raises(ConfigError, match=r"num_foldz(.|\n)*did you mean 'num_folds'"):
        composed("baselines=grid/fraud", "+baselines.xgboost.num_foldz=3")
    with pytest.raises(DataError, match="folds=3001"):
        baseline(only(composed("baselines=grid/fraud", "+baselines.decision_tree.num_folds=3000"), ["decision_tree"]))


def test_without_an_experiment_it_says_so() -> None:
    done = subprocess.run([sys.executable, "-m", "train.baseline"], capture_output=True, text=True)
    assert done.returncode == ConfigError.exit_code
    assert "add experiment=NAME" in done.stderr


@pytest.mark.slow
def test_the_command_tests_all_baselines(table: Path, tmp_path: Path) -> None:
    pytest.importorskip("lightgbm", reason="needs the extra `baselines`")
    keys = [key for key in small_run(table, tmp_path) if not key.startswith(("baselines=", "trainer"))]
    done = subprocess.run([sys.executable, "-m", "train.baseline", *keys], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    (results,) = tmp_path.glob("runs/fraud-baselines/2*/baselines.json")
    assert len(json.loads(results.read_text())) == 10
