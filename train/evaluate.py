"""Score a finished run on other labelled data: all its metrics with intervals, and its plots.

python -m train.evaluate run=runs/NAME/latest data.path=FILE
"""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypedDict

import hydra
from omegaconf import DictConfig

from train import errors
from train.config import arguments
from train.config.check import check

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from pytorch_lightning import Trainer

Accelerator = Literal["auto", "cpu", "gpu"]


class EvaluateSettings(TypedDict):
    """The keys of configs/evaluate.yaml."""

    run: str
    data: dict[str, Any]
    accelerator: Accelerator


def evaluate(cfg: DictConfig) -> Path:
    """Test the best checkpoint of a run on all rows of `data.path`; return the folder of the results.

    Raises:
        ConfigError: there is no such run.
        DataError: the data cannot be read, have no labels, or lack a column.
        StorageError: the run is not finished, or the results cannot be written.
    """
    from train.finished import open_run, unseen

    run = open_run(cfg.run, {name: value for name, value in cfg.data.items() if name != "path"})

    from train import screen

    model, datamodule = run.model(), run.datamodule()
    num_rows = read(datamodule, str(cfg.data.path), model.schema)
    with screen.console.status(f"scoring {num_rows:,} rows"):
        metrics = test(model, datamodule.test_dataloader(), cfg.accelerator)
        result: dict[str, Any] = {
            "run": str(run.path),
            "data": str(cfg.data.path),
            "rows": num_rows,
            "metrics": metrics,
            "intervals_95": {f"test/{name}": interval for name, interval in model.intervals().items()},
            "unseen": dict(datamodule.unseen),
            "notes": datamodule.notes,
        }
        place = record(run.path / "evaluations", result, model.figures(datamodule))
    screen.show_metrics(f"{num_rows:,} rows of {cfg.data.path}", metrics, result["intervals_95"])
    screen.show_notes([*datamodule.notes, *unseen(datamodule)])
    screen.console.print(f"[bold]results and plots[/]  {place}", soft_wrap=True)
    return place


def read(datamodule: Any, path: str, schema: Mapping[str, Any]) -> int:
    """Give the data module the rows of `path` to test on; return how many. Raises DataError."""
    from train.screen import console

    with errors.reporting(errors.DataError), console.status(f"reading {path}"):
        tensors = datamodule.load_other(path, schema)
    num_rows = len(next(iter(tensors.values())))
    if not num_rows:
        raise errors.DataError("; ".join([f"{path} has no labelled rows", *datamodule.notes]))
    datamodule.tensors["test"] = tensors
    return num_rows


def test(model: Any, loader: Any, accelerator: str) -> dict[str, float]:
    """Run Lightning's test over the loader, on one device; return its metrics."""
    with one_device(accelerator) as trainer:
        trainer.test(model, dataloaders=loader, verbose=False)
        return {name: float(value) for name, value in trainer.callback_metrics.items()}


@contextmanager
def one_device(accelerator: str) -> Iterator[Trainer]:
    """A trainer that evaluates on one device, leaves nothing behind and says nothing."""
    from pytorch_lightning import Trainer

    from train.checkpoint import AtomicCheckpointIO

    logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)  # else it lists the hardware that is not there
    with warnings.catch_warnings(action="ignore"):  # Lightning's advice on loaders is for those who write them
        yield Trainer(
            accelerator=accelerator,
            devices=1,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            plugins=[AtomicCheckpointIO()],  # where one is saved by hand
        )


def record(evaluations: Path, result: Mapping[str, Any], figures: Mapping[str, Figure]) -> Path:
    """Write a new folder of plots and, last, result.json; return it. Raises StorageError."""
    from train import folder, ranks

    place = evaluations / ranks.new_run_id()
    with errors.reporting(errors.StorageError):
        place.mkdir(parents=True)
    for name, figure in figures.items():
        folder.write_picture(place / f"{name}.png", figure)
    folder.write_json(place / "result.json", result)
    return place


@hydra.main(version_base="1.3", config_path="pkg://configs", config_name="evaluate")
def main(cfg: DictConfig) -> None:
    """Check the composed config, then evaluate."""
    with errors.job():
        check(cfg, EvaluateSettings, {})
        evaluate(cfg)


if __name__ == "__main__":
    sys.argv[1:] = arguments.in_order(sys.argv[1:])
    sys.exit(errors.guard(main, "evaluate"))
