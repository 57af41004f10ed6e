"""One run from config to result.json, and what becomes of it when it is cut short."""

import json
import logging
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from pytorch_lightning.callbacks import Callback

from train import run as run_module
from train.checkpoint import BEST, recent
from train.errors import ConfigError, DataError, DivergedError, StorageError
from train.folder import RunFolder
from train.run import run


class CrashError(Exception):
    """What the machine does in the middle of a run."""


class Crash(Callback):
    """Raises at the n-th call of a hook, before or after the checkpoints are written."""

    def __init__(self, hook: str, count: int) -> None:
        self.hook, self.count = hook, count

    def __getattribute__(self, name: str):
        hook = object.__getattribute__(self, "hook")
        return self._strike if name == hook else object.__getattribute__(self, name)

    def _strike(self, trainer, *_: object) -> None:
        if trainer.sanity_checking:
            return
        self.count -= 1
        if self.count < 0:
            raise CrashError


@pytest.fixture
def crashing(monkeypatch):
    """Puts a Crash into the trainer that `run` makes."""
    make_trainer = run_module.make_trainer

    def arrange(hook: str, count: int, *, after_saving: bool) -> None:
        def with_crash(*arguments):
            trainer, parts = make_trainer(*arguments)
            trainer.callbacks.insert(len(trainer.callbacks) if after_saving else 0, Crash(hook, count))
            return trainer, parts

        monkeypatch.setattr(run_module, "make_trainer", with_crash)

    yield arrange
    monkeypatch.undo()


def newest(folder: Path) -> dict:
    return torch.load(recent(folder / "checkpoints")[0], weights_only=True)


def assert_same_end(one: Path, other: Path) -> None:
    """Weights, averaged weights, optimizer, calibration and thresholds are equal bit by bit; so are the metrics."""
    for name in ("newest", "best"):
        a, b = (newest(each) if name == "newest" else torch.load(each / "checkpoints" / BEST) for each in (one, other))
        assert a["global_step"] == b["global_step"]
        assert a["state_dict"].keys() == b["state_dict"].keys()
        for key, value in a["state_dict"].items():
            assert torch.equal(value, b["state_dict"][key]), key
        assert str(a["optimizer_states"]) == str(b["optimizer_states"])
    metrics = [json.loads((each / "result.json").read_text())["metrics"] for each in (one, other)]
    assert metrics[0] == metrics[1]


def test_a_run_leaves_a_complete_folder(configure, capsys):
    result = run(configure("baselines=fraud", "name=whole", "run_id=first"))
    folder = result.folder
    names = {path.name for path in folder.iterdir()}
    assert {"config.yaml", "provenance.json", "result.json", "train.log", "checkpoints"} <= names
    assert {"precision_recall.png", "roc.png", "calibration.png", "importance.png", "score_histogram.png"} <= names
    assert "cost_against_threshold.png" in names
    assert (folder.parent / "latest").resolve() == folder

    content = json.loads((folder / "result.json").read_text())
    assert content["metrics"]["test/average_precision"] > 0.2  # base rate 0.1
    low, high = content["intervals_95"]["test/average_precision"]
    assert low < content["metrics"]["test/average_precision"] < high
    assert set(content["baselines"]) == {"base_rate", "logistic_regression", "xgboost"}
    assert content["rows_per_second"] > 0
    provenance = json.loads((folder / "provenance.json").read_text())
    assert provenance["seed"] == 0
    assert provenance["data_fingerprint"]
    assert provenance["packages"]["torch"] == torch.__version__.partition("+")[0]

    printed = capsys.readouterr().out
    assert "logistic_regression" in printed
    assert "tensorboard --logdir" in printed


def test_numbers_too_small_for_a_float_cost_no_time():
    """On a processor they are computed many times slower, and every thread must know that they are nothing."""
    script = (
        "import torch; from train.run import set_precision; set_precision(); torch.set_num_threads(2)\n"
        "assert not torch.full((1 << 20,), 1e-40).mul(1.0).any()"
    )
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_same_seed_gives_the_same_run_and_another_seed_another(configure):
    first, again, other = (
        run(configure(f"run_id={name}", f"seed={seed}")) for name, seed in (("a", 1), ("b", 1), ("c", 2))
    )
    assert_same_end(first.folder, again.folder)
    assert other.metrics != first.metrics


def test_the_mini_batches_per_call_change_nothing(configure):
    one = run(configure("run_id=one", "data.batches_per_call=1"))
    many = run(configure("run_id=many", "data.batches_per_call=7"))
    assert_same_end(one.folder, many.folder)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("hook", "count", "after_saving"),
    [
        ("on_train_batch_end", 0, False),
        ("on_train_batch_end", 0, True),
        ("on_train_batch_end", 7, True),
        ("on_train_batch_end", 13, False),
        ("on_validation_batch_end", 1, False),
        ("on_validation_epoch_end", 0, False),
        ("on_train_epoch_end", 1, False),
        ("on_train_epoch_start", 2, True),
    ],
)
def test_a_crashed_run_goes_on_to_the_same_end(configure, crashing, monkeypatch, hook, count, after_saving):
    whole = run(configure("run_id=whole"))
    overrides = ("run_id=cut", "checkpoint.every_n_steps=1")
    crashing(hook, count, after_saving=after_saving)
    with pytest.raises(CrashError):
        run(configure(*overrides))
    monkeypatch.undo()
    cut = run(configure(*overrides))
    assert cut.metrics == whole.metrics
    assert_same_end(whole.folder, cut.folder)


@pytest.mark.slow
@pytest.mark.parametrize("seconds_more", [0.1, 0.6])
def test_a_killed_run_goes_on_to_the_same_end(command, tmp_path, seconds_more):
    arguments = [sys.executable, "-m", "train", *command, "trainer.max_epochs=25", "checkpoint.every_n_steps=5"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}

    def start(run_id: str) -> subprocess.Popen:
        return subprocess.Popen([*arguments, f"run_id={run_id}"], cwd=tmp_path, env=environment)

    whole, killed = start("whole"), start("killed")
    checkpoints = tmp_path / "runs" / "fraud" / "killed" / "checkpoints"
    while len(recent(checkpoints)) < 2:
        assert killed.poll() is None, "it ended before it could be killed"
        time.sleep(0.01)
    time.sleep(seconds_more)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    assert not (checkpoints.parent / "result.json").exists()
    assert whole.wait(120) == 0
    assert start("killed").wait(120) == 0
    assert "going on from" in (checkpoints.parent / "train.log").read_text()
    assert_same_end(checkpoints.parents[1] / "whole", checkpoints.parent)


def test_a_torn_newest_checkpoint_is_passed_over_with_a_warning(configure, caplog):
    overrides = ("run_id=torn", "checkpoint.keep=3")
    whole = run(configure("run_id=whole", *overrides[1:]))
    first = run(configure(*overrides))
    torn = recent(first.folder / "checkpoints")[0]
    torn.write_bytes(torn.read_bytes()[:-100])
    with caplog.at_level(logging.WARNING):
        again = run(configure(*overrides))
    assert f"{torn} is torn" in caplog.text
    assert_same_end(whole.folder, again.folder)


def test_resume_never_starts_again_and_leaves_nothing_of_the_earlier_run(configure):
    first = run(configure("run_id=first", "trainer.max_epochs=1"))
    run(configure("run_id=again"))
    again = run(configure("run_id=again", "trainer.max_epochs=1", "resume=never"))
    assert again.metrics == first.metrics
    assert "going on from" not in (again.folder / "train.log").read_text()
    assert [path.name for path in recent(again.folder / "checkpoints")] == ["step=000000030.ckpt"]


def test_a_run_does_not_go_on_as_another_experiment(configure):
    first = run(configure("run_id=one", "trainer.max_epochs=1"))
    before = (first.folder / "result.json").read_text()
    told = r"data\.batch_size: was 64, is 32\n  data\.seed: .*\n  model\.width: was 16, is 8\n  seed: was 0, is 1"
    with pytest.raises(ConfigError, match=told):
        run(configure("run_id=one", "model.width=8", "data.batch_size=32", "seed=1"))
    assert (first.folder / "result.json").read_text() == before


def test_a_run_does_not_go_on_with_data_that_have_changed(configure, table):
    first = run(configure("run_id=one", "trainer.max_epochs=1"))
    before = (first.folder / "provenance.json").read_text()
    lines = table.read_text().splitlines()
    table.write_text("\n".join(lines[:-1]))
    with pytest.raises(ConfigError, match=r"run one has checkpoints of other data, .*fingerprint was \w+, and is \w+"):
        run(configure("run_id=one"))
    assert (first.folder / "provenance.json").read_text() == before
    table.write_text("\n".join(lines) + "\n")
    run(configure("run_id=one"))


@pytest.mark.parametrize("run_id", ["..", "latest", "a/b", "/tmp/x", "a b", "x\ny"])
def test_a_run_id_is_a_plain_name(configure, run_id):
    cfg = configure()
    cfg.run_id = run_id
    with pytest.raises(ConfigError, match="run_id must be the name of a folder"):
        run(cfg)


def test_two_processes_do_not_train_in_one_folder(configure, tmp_path):
    place = RunFolder(tmp_path / "runs", "fraud", "busy")
    with pytest.raises(StorageError, match="another process is training"):
        run(configure("run_id=busy"))
    place.release()


def test_latest_points_at_a_run_that_began(configure, tmp_path):
    good = run(configure("trainer.max_epochs=1"))
    with pytest.raises(DataError):
        run(configure("data.target=nothing"))
    assert (tmp_path / "runs" / "fraud" / "latest").resolve() == good.folder


def test_more_epochs_go_on_where_the_run_ended(configure):
    run(configure("run_id=longer", "trainer.max_epochs=1", "model.schedule=constant", "model.warmup_share=0"))
    longer = run(configure("run_id=longer", "model.schedule=constant", "model.warmup_share=0"))
    whole = run(configure("run_id=whole", "model.schedule=constant", "model.warmup_share=0"))
    assert_same_end(whole.folder, longer.folder)


@pytest.mark.parametrize("width", [10**15, 10**25])
def test_a_model_that_no_memory_holds_is_refused(configure, width):
    with pytest.raises(ConfigError, match="its sizes ask for more memory than there is"):
        run(configure(f"model.width={width}"))


def test_a_loss_that_is_not_finite_stops_with_step_rate_and_checkpoint(configure):
    with pytest.raises(DivergedError, match=r"not finite at step \d+ \(learning rate .*\)\. ") as caught:
        run(configure("model.lr=1e36", "model.gradient_clip=null", "model.warmup_share=0"))
    assert caught.value.exit_code == 5


def test_the_last_good_checkpoint_is_named(configure, monkeypatch):
    from models.fraud.module import FraudModule

    loss_of = FraudModule.loss_of

    def broken(self, batch):
        loss = loss_of(self, batch)
        return loss * float("nan") if self.trainer.current_epoch == 1 else loss

    monkeypatch.setattr(FraudModule, "loss_of", broken)
    with pytest.raises(DivergedError, match=r"not finite at step 30 .*last good checkpoint is .*step=000000030\.ckpt"):
        run(configure())


def test_a_baseline_that_cannot_be_fitted_costs_no_run(configure, caplog, monkeypatch):
    from models.fraud.module import FraudModule

    def refuse(self, baseline, datamodule):
        raise ValueError("empty vocabulary")

    monkeypatch.setattr(FraudModule, "test_baseline", refuse)
    result = run(configure("baselines=fraud", "~baselines.xgboost", "trainer.max_epochs=1"))
    assert "baseline base_rate is left out: empty vocabulary" in caplog.messages
    assert json.loads((result.folder / "result.json").read_text())["baselines"] == {}


def test_a_monitored_metric_that_is_not_there_is_told_once(configure, caplog):
    result = run(configure("monitor=val/average_precison"))
    told = [line for line in caplog.messages if line.startswith("monitor=val/average_precison is no metric")]
    assert len(told) == 1
    assert "did you mean 'val/average_precision'?" in told[0]
    assert json.loads((result.folder / "result.json").read_text())["best"]["value"] is None


def test_training_stops_early_when_the_metric_does_not_improve(configure):
    result = run(configure("patience=1", "trainer.max_epochs=30", "model.lr=1e-7"))
    assert json.loads((result.folder / "result.json").read_text())["epochs"] < 30


def test_unreadable_data_is_a_data_error(configure):
    with pytest.raises(DataError, match=r"nowhere\.csv"):
        run(configure("data.path=nowhere.csv"))


def test_arguments_of_data_that_exclude_each_other_are_a_config_error(configure):
    with pytest.raises(ConfigError, match="cost_false_negative=amount needs the column that holds the amount"):
        run(configure("data.cost_false_negative=amount", "data.amount=null"))


def test_a_model_that_cannot_be_made_is_a_config_error(configure):
    with pytest.raises(ConfigError, match="width must be a multiple of num_heads, got 10 and 4"):
        run(configure("model=ft_transformer", "model.width=10", "model.num_heads=4"))
