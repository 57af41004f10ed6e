"""A finished run scores other labelled data, without its training data."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
import pytest
from hydra import compose, initialize_config_module

from train.errors import ConfigError, DataError, StorageError
from train.evaluate import evaluate

TEST_ROWS = slice(2400, 600)  # start and length of the newest fifth of the table
CURVES = {"precision_recall", "roc", "calibration", "score_histogram", "cost_against_threshold", "importance"}


def run_evaluate(run: Path | str, data: Path | str, *overrides: str) -> Path:
    with initialize_config_module("configs", version_base="1.3"):
        return evaluate(compose("evaluate", [f"run={run}", f"data.path={data}", "accelerator=cpu", *overrides]))


def result_in(folder: Path) -> dict:
    return json.loads((folder / "result.json").read_text())


@pytest.fixture
def newest(table: Path, tmp_path: Path) -> Path:
    """The rows that tested the run."""
    path = tmp_path / "newest.parquet"
    pa.parquet.write_table(pa.csv.read_csv(table).slice(TEST_ROWS.start, TEST_ROWS.stop), path)
    return path


@pytest.fixture
def copied(finished: Path, tmp_path: Path) -> Path:
    """A copy of the run to damage."""
    return Path(shutil.copytree(finished, tmp_path / "runs" / "fraud" / "copied"))


def test_the_rows_that_tested_the_run_give_its_test_metrics(finished: Path, newest: Path) -> None:
    expected = {name: value for name, value in result_in(finished)["metrics"].items() if name.startswith("test/")}
    found = result_in(run_evaluate(finished, newest))
    assert found["metrics"] == pytest.approx(expected, rel=1e-5)
    for name, interval in result_in(finished)["intervals_95"].items():
        assert found["intervals_95"][name] == pytest.approx(interval, rel=1e-5)
    assert found["rows"] == 600


def test_results_and_plots_are_in_a_folder_of_their_own(
    finished: Path, newest: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = run_evaluate(finished, newest), run_evaluate(finished, newest)
    assert first != second
    assert first.parent == second.parent == finished / "evaluations"
    assert {path.stem for path in first.glob("*.png")} == CURVES
    shown = capsys.readouterr().out
    assert "average precision" in shown
    assert " to " in shown
    assert str(first) in shown.replace("\n", "")


def test_a_run_is_found_through_the_link_and_from_another_folder(
    copied: Path, newest: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (copied.parent / "latest").symlink_to(copied.name)
    monkeypatch.chdir(copied.parents[1])
    assert run_evaluate("fraud/latest", newest).parent == copied / "evaluations"


def test_unseen_categories_are_counted_and_not_fatal(
    finished: Path, newest: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = pa.parquet.read_table(newest)
    cities = ["paris"] * 7 + table["city"].to_pylist()[7:]
    pa.parquet.write_table(table.set_column(2, "city", pa.array(cities)), tmp_path / "unseen.parquet")
    assert result_in(run_evaluate(finished, tmp_path / "unseen.parquet"))["unseen"] == {"city": 7}
    assert "7 values of city were not seen in training" in capsys.readouterr().out


def without(name: str) -> Callable[[pa.Table], pa.Table]:
    return lambda table: table.drop_columns([name])


def replaced(name: str, values: list) -> Callable[[pa.Table], pa.Table]:
    return lambda table: table.set_column(table.column_names.index(name), name, pa.array(values * 600))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without("fraud"), "column 'fraud' is missing"),
        (without("city"), "column 'city' is missing"),
        (replaced("amount", ["many"]), "column 'amount' should be numeric: 'many' is not a number"),
        (replaced("when", [1.5]), "column 'when' should be timestamp, but is double"),
        (replaced("fraud", ["perhaps"]), "target 'fraud' must be yes or no"),
        (replaced("fraud", [None]), "no labelled rows"),
        (lambda table: table.slice(0, 0), "no labelled rows"),
    ],
)
def test_data_that_do_not_fit_are_named(
    finished: Path, newest: Path, tmp_path: Path, change: Callable[[pa.Table], pa.Table], message: str
) -> None:
    pa.parquet.write_table(change(pa.parquet.read_table(newest)), tmp_path / "other.parquet")
    with pytest.raises(DataError, match=message):
        run_evaluate(finished, tmp_path / "other.parquet")


def test_a_file_that_is_not_there_is_named(finished: Path) -> None:
    with pytest.raises(DataError, match=r"no such file or folder: '/nowhere.csv'"):
        run_evaluate(finished, "/nowhere.csv")


def test_a_run_that_is_not_there_or_not_finished_is_named(copied: Path, newest: Path) -> None:
    with pytest.raises(ConfigError, match="'nosuch' is no run folder.*there is no such folder"):
        run_evaluate("nosuch", newest)
    (copied.parent / "latest").symlink_to(copied.name)
    with pytest.raises(ConfigError, match=r"did you mean '.*/fraud/latest'"):
        run_evaluate(copied.parent, newest)
    (copied / "result.json").unlink()
    with pytest.raises(StorageError, match=r"not finished: it has no result.json"):
        run_evaluate(copied, newest)


def test_a_torn_best_checkpoint_gives_way_to_a_whole_one(copied: Path, newest: Path) -> None:
    best = copied / "checkpoints" / "best.ckpt"
    best.write_bytes(best.read_bytes()[:-100])
    run_evaluate(copied, newest)
    for path in (copied / "checkpoints").glob("*.ckpt"):
        path.write_bytes(b"torn")
    with pytest.raises(StorageError, match="no checkpoint that is whole"):
        run_evaluate(copied, newest)


def test_settings_of_the_data_can_be_changed_and_are_checked(finished: Path, newest: Path) -> None:
    run_evaluate(finished, newest, "+data.max_categories=7")
    with pytest.raises(ConfigError, match=r"data.max_categoriez(.|\n)*did you mean 'max_categories'"):
        run_evaluate(finished, newest, "+data.max_categoriez=7")
    with pytest.raises(ConfigError, match=r"data.max_categories"):
        run_evaluate(finished, newest, "+data.max_categories=many")


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["run=nosuch", "data.path=x.csv"], ConfigError.exit_code, "is no run folder"),
        (["runn=nosuch"], ConfigError.exit_code, "did you mean 'run'?"),
        (["run=nosuch"], ConfigError.exit_code, "data.path"),
        (["run=nosuch", "data.path=x.csv", "accelerator=cuda"], ConfigError.exit_code, "accelerator: 'cuda'"),
        (["--help"], 0, ""),
    ],
)
def test_a_wrong_command_line_answers_without_torch(arguments: list[str], code: int, message: str) -> None:
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "train.evaluate", *arguments], capture_output=True, text=True
    )
    assert done.returncode == code, done.stderr
    answer = [line for line in done.stderr.splitlines() if not line.startswith("import time:")]
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines() if line.startswith("import time:")}
    assert message in "\n".join(answer)
    assert "Traceback" not in done.stderr
    assert not imported & {"torch", "pytorch_lightning"}


@pytest.mark.slow
def test_the_command_evaluates(finished: Path, newest: Path) -> None:
    command = [sys.executable, "-m", "train.evaluate", f"run={finished}", f"data.path={newest}", "accelerator=cpu"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    lacking = subprocess.run([*command[:-2], f"data.path={finished}", command[-1]], capture_output=True, text=True)
    assert lacking.returncode == DataError.exit_code
    assert "Traceback" not in lacking.stderr
