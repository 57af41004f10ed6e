"""Predictions of a finished run, added to a table piece by piece."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
import pytest
import torch
from hydra import compose, initialize_config_module

from train import predict as predict_module
from train.errors import ConfigError, DataError, StorageError
from train.finished import open_run
from train.predict import predict

MORE_THAN_A_BATCH = 30  # times the 3,000 rows of the table


def run_predict(run: Path | str, source: Path | str, output: Path | str, *overrides: str) -> int:
    keys = [f"run={run}", f"input={source}", f"output={output}", "accelerator=cpu"]
    with initialize_config_module("configs", version_base="1.3"):
        return predict(compose("predict", [*keys, *overrides]))


@pytest.fixture
def long_table(table: Path, tmp_path: Path) -> Path:
    """The table again and again, in an order of its own, without its labels."""
    once = pa.csv.read_csv(table).drop_columns(["fraud"])
    path = tmp_path / "long.parquet"
    order = np.random.default_rng(0).permutation(MORE_THAN_A_BATCH * len(once))
    pa.parquet.write_table(pa.concat_tables([once] * MORE_THAN_A_BATCH).take(order), path)
    return path


def test_rows_and_columns_stay_and_scores_are_the_models(finished: Path, long_table: Path, tmp_path: Path) -> None:
    num_rows = run_predict(finished, long_table, tmp_path / "out.parquet")
    before, after = pa.parquet.read_table(long_table), pa.parquet.read_table(tmp_path / "out.parquet")
    assert num_rows == len(before) == len(after)
    assert after.column_names == [*before.column_names, "score", "decision"]
    assert after.select(before.column_names).equals(before)

    run = open_run(str(finished), {})
    model, datamodule = run.model(), run.datamodule()
    for batch, inputs in datamodule.iter_other(str(long_table), model.schema):
        start = 0 if batch.num_rows == 65_536 else 65_536
        with torch.inference_mode():
            expected = model(**inputs).numpy()
        found = after["score"].to_numpy()[start : start + len(expected)]
        np.testing.assert_allclose(found, expected, atol=1e-6)
    score, decision = after["score"].to_numpy(), after["decision"].to_numpy()
    np.testing.assert_array_equal(decision, score >= float(model.threshold_cost))
    assert 0 < decision.mean() < 1


def test_csv_and_parquet_hold_the_same(finished: Path, table: Path, tmp_path: Path) -> None:
    run_predict(finished, table, tmp_path / "out.csv")
    run_predict(finished, table, tmp_path / "out.parquet")
    text, binary = pa.csv.read_csv(tmp_path / "out.csv"), pa.parquet.read_table(tmp_path / "out.parquet")
    assert text.column_names == binary.column_names
    np.testing.assert_allclose(text["score"].to_numpy(), binary["score"].to_numpy(), rtol=1e-6)
    for name in ("city", "fraud", "decision"):
        assert text[name].cast(pa.string()).to_pylist() == binary[name].cast(pa.string()).to_pylist()
    original = pa.csv.read_csv(table)
    assert text.select(original.column_names).equals(original)


def test_bytes_are_base64_where_csv_cannot_hold_them() -> None:
    columns = {"row": pa.array([1, 2]), "mask": pa.array([b"\x89PNG\xff", None])}
    told = predict_module.without_bytes(pa.RecordBatch.from_pydict(columns))
    assert told.to_pydict() == {"row": [1, 2], "mask": ["iVBOR/8=", None]}


def test_the_budget_decides_if_asked(finished: Path, table: Path, tmp_path: Path) -> None:
    run_predict(finished, table, tmp_path / "out.parquet", "decision=budget")
    found = pa.parquet.read_table(tmp_path / "out.parquet")
    threshold = float(open_run(str(finished), {}).model().threshold_budget)
    np.testing.assert_array_equal(found["decision"].to_numpy(), found["score"].to_numpy() >= threshold)
    with pytest.raises(ConfigError, match="decision must be one of cost, budget; got 'buget'"):
        run_predict(finished, table, tmp_path / "other.csv", "decision=buget")


def test_an_empty_table_gives_an_empty_table(finished: Path, table: Path, tmp_path: Path) -> None:
    pa.parquet.write_table(pa.csv.read_csv(table).slice(0, 0), tmp_path / "empty.parquet")
    assert run_predict(finished, tmp_path / "empty.parquet", tmp_path / "out.parquet") == 0
    assert pa.parquet.read_table(tmp_path / "out.parquet").column_names[-2:] == ["score", "decision"]


def test_unseen_categories_are_counted_and_not_fatal(
    finished: Path, table: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "unseen.csv").write_text(table.read_text().replace('"ulm"', '"paris"'))
    count = table.read_text().count('"ulm"')
    assert run_predict(finished, tmp_path / "unseen.csv", tmp_path / "out.csv") == 3000
    assert f"{count:,} values of city were not seen in training" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('"city"', '"town"', "column 'city' is missing"),
        ('"amount"', '"Amount"', "column 'amount' is missing .did you mean 'Amount'"),
        ("2025-01-01 00:10:00", "tomorrow", "column 'when' should be timestamp: 'tomorrow' is not a date"),
    ],
)
def test_a_missing_or_mistyped_column_is_named_and_nothing_is_written(
    finished: Path, table: Path, tmp_path: Path, old: str, new: str, message: str
) -> None:
    (tmp_path / "other.csv").write_text(table.read_text().replace(old, new))
    with pytest.raises(DataError, match=message):
        run_predict(finished, tmp_path / "other.csv", tmp_path / "out.csv")
    assert [path.name for path in tmp_path.iterdir()] == ["other.csv"]


def test_columns_of_the_input_are_not_overwritten(finished: Path, table: Path, tmp_path: Path) -> None:
    run_predict(finished, table, tmp_path / "first.csv")
    with pytest.raises(ConfigError, match="the input has a column 'score' already: give prefix=TEXT"):
        run_predict(finished, tmp_path / "first.csv", tmp_path / "second.csv")
    run_predict(finished, tmp_path / "first.csv", tmp_path / "second.csv", "prefix=new_")
    columns = pa.csv.read_csv(tmp_path / "second.csv").column_names
    assert columns[-4:] == ["score", "decision", "new_score", "new_decision"]


def test_columns_of_any_type_are_kept_and_what_csv_cannot_hold_is_named(
    finished: Path, table: Path, tmp_path: Path
) -> None:
    source = pa.csv.read_csv(table)
    source = source.set_column(2, "city", source["city"].dictionary_encode())
    pa.parquet.write_table(source.append_column("tags", pa.array([[1, 2]] * len(source))), tmp_path / "in.parquet")
    run_predict(finished, tmp_path / "in.parquet", tmp_path / "out.parquet")
    before, after = pa.parquet.read_table(tmp_path / "in.parquet"), pa.parquet.read_table(tmp_path / "out.parquet")
    assert after.select(before.column_names).equals(before)
    with pytest.raises(ConfigError, match="CSV cannot hold the column 'tags'; write .parquet"):
        run_predict(finished, tmp_path / "in.parquet", tmp_path / "out.csv")


class FullDisk:
    """Takes one batch, then no more."""

    def __init__(self, path: Path, schema: pa.Schema) -> None:
        path.write_text("torn")
        self.batches = 0

    def write_batch(self, batch: pa.RecordBatch) -> None:
        self.batches += 1
        if self.batches > 1:
            raise OSError(28, "No space left on device")

    def close(self) -> None:
        """Nothing to close."""


def test_a_full_disk_leaves_what_was_there(
    finished: Path, long_table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "out.parquet"
    output.write_text("of an earlier day")
    monkeypatch.setattr(predict_module, "open_writer", lambda path, suffix, schema: FullDisk(path, schema))
    with pytest.raises(StorageError, match="No space left"):
        run_predict(finished, long_table, output)
    assert output.read_text() == "of an earlier day"
    assert {path.name for path in tmp_path.iterdir()} == {"long.parquet", "out.parquet"}


@pytest.mark.parametrize(
    ("output", "message"),
    [
        ("{folder}/out.xlsx", "must be a local file that ends in .csv or .parquet"),
        ("s3://bucket/out.csv", "must be a local file"),
        ("{folder}/nowhere/out.csv", "there is no folder"),
        ("{folder}/in.csv", "is the input; give another name"),
    ],
)
def test_an_output_that_cannot_be_is_refused_at_once(tmp_path: Path, output: str, message: str) -> None:
    (tmp_path / "in.csv").write_text("a,b\n1,2\n")
    with pytest.raises(ConfigError, match=message):
        run_predict("nosuch", tmp_path / "in.csv", output.format(folder=tmp_path))


def test_a_wrong_command_line_answers_without_torch() -> None:
    command = [sys.executable, "-X", "importtime", "-m", "train.predict", "run=nosuch", "input=a.csv", "output=b.csv"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == ConfigError.exit_code
    assert "is no run folder" in done.stderr
    assert not [line for line in done.stderr.splitlines() if line.rpartition("|")[2].strip() == "torch"]


PEAK = """
import resource, sys
from train import errors, predict
code = errors.guard(predict.main, "predict")
print(code, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
"""


@pytest.mark.slow
@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_memory_does_not_grow_with_the_table(finished: Path, table: Path, tmp_path: Path, suffix: str) -> None:
    once = pa.csv.read_csv(table)
    peaks = []
    for times in (134, 8 * 134):  # 0.4 and 3.2 million rows: a reader that runs ahead would hold 200 MB more
        source, output = tmp_path / f"in{times}{suffix}", tmp_path / f"out{times}{suffix}"
        many = pa.concat_tables([once] * times)
        if suffix == ".csv":
            pa.csv.write_csv(many, source)
        else:
            pa.parquet.write_table(many, source, row_group_size=100_000)
        del many
        keys = [f"run={finished}", f"input={source}", f"output={output}", "accelerator=cpu"]
        done = subprocess.run([sys.executable, "-c", PEAK, *keys], capture_output=True, text=True)
        code, megabytes = done.stdout.splitlines()[-1].split()
        assert code == "0", done.stderr
        peaks.append(int(megabytes))
    assert peaks[1] < peaks[0] + 100, f"peak memory {peaks} MB"  # Arrow's CSV reader is 67 MB ahead at most
