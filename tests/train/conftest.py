"""A small table, and runs on it that take seconds."""

import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pytest
from hydra import compose, initialize_config_module
from omegaconf import DictConfig


@pytest.fixture(scope="session")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CSV of 3,000 rows in time order, a tenth of them positive, with a text column and holes."""
    generator = np.random.default_rng(0)
    size = 3_000
    amount, city = generator.lognormal(3, 1, size), generator.choice(["ulm", "bern", "graz"], size)
    risk = np.log(amount) + 2 * (city == "graz") + generator.standard_normal(size)
    columns = {
        "when": np.datetime64("2025-01-01T00:00:00") + np.arange(size) * np.timedelta64(600, "s"),
        "amount": pa.array(amount, mask=generator.random(size) < 0.05),
        "city": city,
        "fraud": np.where(risk > np.quantile(risk, 0.9), "yes", "no"),
    }
    path = tmp_path_factory.mktemp("table") / "table.csv"
    pa.csv.write_csv(pa.table(columns), path)
    return path


@pytest.fixture
def configure(table: Path, tmp_path: Path) -> Callable[..., DictConfig]:
    """Composes the fraud experiment on the small table, with a small network; takes further overrides."""

    def configure(*overrides: str) -> DictConfig:
        with initialize_config_module("configs", version_base="1.3"):
            return compose("train", [*small_run(table, tmp_path), *overrides])

    return configure


@pytest.fixture
def command(table: Path, tmp_path: Path) -> list[str]:
    """The same as command line arguments of `python -m train`."""
    return small_run(table, tmp_path)


def small_run(table: Path, folder: Path) -> list[str]:
    return [
        "experiment=fraud",
        "data=fraud_table",
        f"data.path={table}",
        "data.target=fraud",
        "data.time=when",
        "data.batch_size=64",
        "data.batches_per_call=4",
        "model=mlp",
        "model.width=16",
        "baselines=none",
        "trainer=cpu",
        "trainer.max_epochs=3",
        f"output_dir={folder / 'runs'}",
    ]


@pytest.fixture(scope="session")
def finished(table: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run of one epoch whose training data are gone."""
    from train.run import run

    folder = tmp_path_factory.mktemp("finished")
    copy = folder / "training.csv"
    copy.write_bytes(table.read_bytes())
    overrides = [
        *small_run(copy, folder),
        "trainer.max_epochs=1",
        "data.amount=amount",
        "data.cost_false_negative=amount",
    ]
    with initialize_config_module("configs", version_base="1.3"):
        cfg = compose("train", overrides)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what a run warns of is for the tests of runs
        path = run(cfg).folder
    copy.unlink()
    return path
