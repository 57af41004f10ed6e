"""The verb `python -m train.export`, on a small finished run."""

import csv
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from hydra import compose, initialize_config_module
from numpy.typing import NDArray
from omegaconf import DictConfig

from train import errors
from train.bundle import open_bundle
from train.export import card, contest
from train.export.export import export
from train.export.source import open_source
from train.keys import SigningKey, Trusted, new
from train.run import run

pytestmark = pytest.mark.filterwarnings("ignore")

QUICK = ["quantize=[int8_weights]", "gate.rounds=3"]


@pytest.fixture(scope="module")
def trained(table: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of three epochs, with its data still there."""
    folder = tmp_path_factory.mktemp("trained")
    overrides = [
        *("experiment=fraud", "data=fraud_table", f"data.path={table}", "data.target=fraud", "data.time=when"),
        *(
            "data.batch_size=64",
            "data.batches_per_call=4",
            "model=mlp",
            "model.width=64",
            "model.num_blocks=1",
            "baselines=none",
        ),
        *("trainer=cpu", "trainer.max_epochs=6", "run_id=first", f"output_dir={folder}"),
    ]
    with initialize_config_module("configs", version_base="1.3"):
        return run(compose("train", overrides)).folder


@pytest.fixture(scope="module")
def key(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A signing key's file."""
    path = tmp_path_factory.mktemp("keys") / "signing.key"
    new(path)
    return path


@pytest.fixture
def configure(trained: Path, key: Path, tmp_path: Path) -> Callable[..., DictConfig]:
    """Composes an export of the run into a folder of the test's own."""

    def configure(*overrides: str) -> DictConfig:
        with initialize_config_module("configs", version_base="1.3"):
            asked = [f"run={trained}", f"key={key}", f"output={tmp_path / 'bundle'}", *QUICK]
            return compose("export", [*asked, *overrides])

    return configure


def trusted(key: Path) -> Trusted:
    from train.keys import signing_key

    signer: SigningKey = signing_key(key)
    return Trusted(signer.public)


def test_the_bundle_decides_as_torch_on_rows_read_as_texts_and_numbers_from_csv(
    configure: Callable[..., DictConfig], trained: Path, table: Path, key: Path
) -> None:
    bundle = open_bundle(export(configure("quantize=[]")), trusted=trusted(key))
    session = onnxruntime.InferenceSession(bundle.read("model.onnx"), providers=["CPUExecutionProvider"])
    schema = json.loads(bundle.read("schema.json"))
    found, decided = session.run(None, from_csv(table, schema))
    source = open_source(str(trained), {})
    # Through the reader and the encoder of training, which know nothing of the graph.
    batches = [inputs for _, inputs in source.datamodule.iter_other(str(table), source.model.schema)]
    with torch.inference_mode():
        expected = np.concatenate([source.model(**batch).numpy() for batch in batches])
    np.testing.assert_allclose(found, expected, atol=1e-5)
    thresholds = np.array([float(source.model.threshold_cost), float(source.model.threshold_budget)], np.float32)
    clear = np.abs(expected[:, None] - thresholds) > 1e-5
    assert np.array_equal(decided[clear], (expected[:, None] >= thresholds)[clear])
    assert clear.mean() > 0.99
    assert 0 < decided[:, 0].sum() < len(decided)


def from_csv(path: Path, schema: dict[str, Any]) -> dict[str, NDArray[Any]]:
    """The graph's inputs of a CSV, by Python's own reader: what a caller without our code would write."""
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    numbers = [column["name"] for column in schema["columns"] if column["kind"] == "numeric"]
    words = [column["name"] for column in schema["columns"] if column["kind"] == "categorical"]
    times = [column["name"] for column in schema["columns"] if column["kind"] == "timestamp"]
    numeric = [[float(row[name]) if row[name] else float("nan") for name in numbers] for row in rows]
    moments = [[np.datetime64(row[name], "s").astype(np.int64) for name in times] for row in rows]
    return {
        "numeric": np.array(numeric, np.float32),
        "categorical": np.array([[row[name] for name in words] for row in rows], object),
        "timestamp": np.array(moments, np.int64),
    }


@pytest.mark.slow
def test_the_same_run_exports_to_the_same_bytes(
    configure: Callable[..., DictConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Which graph ships depends on their times; on a busy machine these alone would make two exports differ.
    monkeypatch.setattr("train.export.gate._slower", lambda one, rule: {})
    first, second = (export(configure(f"output={tmp_path / name}")) for name in ("one", "two"))
    names = sorted(path.name for path in first.iterdir())
    assert names == sorted(path.name for path in second.iterdir())
    for name in names:
        assert (first / name).read_bytes() == (second / name).read_bytes(), name


def test_report_card_and_metrics_say_what_was_done(configure: Callable[..., DictConfig], trained: Path) -> None:
    folder = export(configure("quantize=[int8_weights,int8_dynamic]"))
    report = folder.with_name("bundle-report.md").read_text()
    for name in ("torch eager", "float32", "int8_weights", "int8_dynamic", "µs, batch 1 on 1 thread"):
        assert name in report
    assert folder.with_name("bundle-report.png").read_bytes().startswith(b"\x89PNG")
    card = (folder / "model_card.md").read_text()
    for heading in ("## Data", "## Thresholds", "## Limits", "## How it was made", "average_precision"):
        assert heading in card
    metrics = json.loads((folder / "metrics.json").read_text())
    assert metrics["shipped"] in metrics["candidates_on_validation"]
    assert 0 < metrics["metrics"]["test/average_precision"] <= 1
    assert not list((trained / "export").glob(".work-*"))


@pytest.mark.slow
def test_pruning_takes_units_out_trains_on_and_ships_what_passes(
    configure: Callable[..., DictConfig], trained: Path, key: Path
) -> None:
    folder = export(configure("prune.ratio=0.5", "prune.finetune_steps=40", "quantize=[]", "gate.max_drop=1"))
    assert open_bundle(folder, trusted=trusted(key)).manifest["graphs"]["model.onnx"]["made"] == "pruned_50"
    result = json.loads((trained / "export" / "pruned" / "fraud" / "pruned-0.5" / "result.json").read_text())
    assert result["steps"] == 40
    assert not any(name.startswith("test/") for name in result["metrics"])  # it was not looked at


@pytest.mark.slow
def test_a_search_finds_the_largest_ratio_that_the_gate_allows(configure: Callable[..., DictConfig]) -> None:
    everything = export(configure("prune.ratio=search", "prune.finetune_steps=0", "quantize=[]", "gate.max_drop=1"))
    assert "pruned_87.5" in json.loads((everything / "metrics.json").read_text())["candidates_on_validation"]


@pytest.mark.slow
def test_calibration_on_wrong_rows_is_stopped_by_the_gate(
    configure: Callable[..., DictConfig], key: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = contest.arrays

    def broken(batch: Any, names: list[str]) -> Any:
        """Rows in which everything is missing: what real rows reach is far outside their ranges."""
        fill = {"numeric": np.nan, "categorical": 0, "timestamp": np.iinfo(np.int64).min}
        return {name: np.full_like(values, fill[name]) for name, values in whole(batch, names).items()}

    monkeypatch.setattr(contest, "arrays", broken)
    folder = export(configure("quantize=[int8_static_minmax]"))
    assert open_bundle(folder, trusted=trusted(key)).manifest["graphs"]["model.onnx"]["made"] == "float32"
    shown = " ".join(capsys.readouterr().out.split())
    assert "refused int8_static_minmax: average_precision falls by" in shown
    assert "more than gate.max_drop=0.005" in shown
    assert "float32 ships" in shown


def test_a_graph_that_differs_from_torch_is_not_exported(
    configure: Callable[..., DictConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(contest.graph, "largest_difference", lambda *_, **__: 0.01)
    with pytest.raises(errors.GateError, match="differs from torch"):
        export(configure())
    assert not (tmp_path / "bundle").exists()


@pytest.mark.slow
def test_encrypted_bundles_open_with_the_master_key_only(
    configure: Callable[..., DictConfig], key: Path, tmp_path: Path
) -> None:
    from train.envelope import envelope_of

    master = tmp_path / "master.key"
    subprocess.run([sys.executable, "-m", "train.keys", "master", "--out", str(master)], check=True)
    folder = export(configure("encrypt=true", f"master_key={master}"))
    assert b"categories" not in (folder / "schema.json").read_bytes()
    opened = open_bundle(folder, trusted=trusted(key), envelope=envelope_of(master))
    assert json.loads(opened.read("schema.json"))["columns"]
    with pytest.raises(errors.ConfigError, match="encrypted"):
        open_bundle(folder, trusted=trusted(key)).read("schema.json")


@pytest.mark.slow
def test_publishing_gives_a_version_that_is_fetched_and_verified(
    configure: Callable[..., DictConfig], key: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from train.registry.fetch import fetch

    monkeypatch.setenv("FULLCYCLE_TRUSTED_KEYS", str(key.with_suffix(".pub")))
    folder = export(configure(f"publish={tmp_path / 'registry'}"))
    fetched = fetch(str(tmp_path / "registry"), "latest", tmp_path / "fetched", trusted(key))
    assert (fetched / "model.onnx").read_bytes() == (folder / "model.onnx").read_bytes()


@pytest.mark.parametrize(
    ("overrides", "kind", "words"),
    [
        (["run=nowhere"], errors.ConfigError, "no run folder"),
        (["key=nowhere.key"], errors.ConfigError, "nowhere.key"),
        (["greedy=true"], errors.ConfigError, "MLP is none: leave it out"),
        (["sign=false", "publish=somewhere"], errors.ConfigError, "only a signed bundle"),
        (["master_key=some.key"], errors.ConfigError, "encrypt=true"),
        (["output=nowhere/bundle"], errors.ConfigError, "there is no folder"),
        (["+data.path=nowhere.csv"], errors.DataError, "nowhere.csv"),
    ],
)
def test_bad_input_is_refused_in_a_sentence(
    configure: Callable[..., DictConfig], overrides: list[str], kind: type[Exception], words: str
) -> None:
    with pytest.raises(kind, match=words):
        export(configure(*overrides))


def test_other_data_than_the_runs_are_refused(
    configure: Callable[..., DictConfig], table: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other.csv"
    other.write_text("\n".join(table.read_text().splitlines()[:-1]))
    with pytest.raises(errors.DataError, match="not those"):
        export(configure(f"+data.path={other}"))


def damaged(trained: Path, tmp_path: Path) -> Path:
    """A copy of the run, to damage."""
    copy = tmp_path / "damaged"
    shutil.copytree(trained, copy, ignore=shutil.ignore_patterns("export"))
    return copy


def test_a_run_whose_best_checkpoint_is_not_the_one_that_was_tested_is_refused(
    configure: Callable[..., DictConfig], trained: Path, tmp_path: Path
) -> None:
    copy = damaged(trained, tmp_path)
    best = copy / "checkpoints" / "best.ckpt"
    content = torch.load(best, weights_only=True)
    for name, value in content["state_dict"].items():
        if value.is_floating_point() and "head" in name:
            content["state_dict"][name] = -value
    torch.save(content, best)
    with pytest.raises(errors.StorageError, match="not the one that was tested"):
        export(configure(f"run={copy}"))
    best.write_bytes(best.read_bytes()[:2000])
    with pytest.raises(errors.StorageError, match="torn"):
        export(configure(f"run={copy}"))


@pytest.mark.parametrize("name", ["result.json", "provenance.json"])
def test_a_damaged_run_is_refused(
    configure: Callable[..., DictConfig], trained: Path, tmp_path: Path, name: str
) -> None:
    copy = damaged(trained, tmp_path)
    (copy / name).write_text("{")
    with pytest.raises(errors.StorageError, match=name):
        export(configure(f"run={copy}"))


def test_a_bundle_that_does_not_fit_on_the_disk_leaves_the_older_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from train.export.export import replace

    new, output = tmp_path / "new", tmp_path / "bundle"
    for folder, text in ((new, "new"), (output, "old")):
        folder.mkdir()
        (folder / "manifest.json").write_text(text)

    def full(*_: object, **__: object) -> None:
        raise shutil.Error([("a", "b", "[Errno 28] No space left on device")])

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "copytree", full)
        with pytest.raises(errors.StorageError, match="No space left on device. Make room"):
            replace(output, new)
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []
    assert (output / "manifest.json").read_text() == "old"
    replace(output, new)
    assert (output / "manifest.json").read_text() == "new"


def test_an_unfinished_run_is_refused(configure: Callable[..., DictConfig], trained: Path, tmp_path: Path) -> None:
    copy = damaged(trained, tmp_path)
    (copy / "result.json").unlink()
    with pytest.raises(errors.StorageError, match="not finished"):
        export(configure(f"run={copy}"))


def test_nothing_that_is_no_bundle_is_overwritten(configure: Callable[..., DictConfig], tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    with pytest.raises(errors.ConfigError, match="no bundle"):
        export(configure(f"output={tmp_path / 'mine'}"))
    assert (tmp_path / "mine" / "thesis.txt").exists()


def test_the_command_line_says_what_is_wrong_with_an_exit_code(trained: Path) -> None:
    command = [sys.executable, "-m", "train.export", f"run={trained}", "gate.max_dorp=1", "quantize=[int9]"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2
    assert "max_drop" in done.stderr


def test_names_of_classes_do_not_break_the_tables_of_a_card() -> None:
    *_, row = card._slices({"a|b\nc": {"rows": 3.0}}).splitlines()
    assert row == r"| a\|b c | 3 |"
