"""Score a finished run on other labelled data: all its metrics with intervals, and its plots.

python -m train.evaluate run=runs/NAME/latest data.path=FILE
"""

import sys
from pathlib import Path
from typing import Any, Literal, TypedDict

import hydra
from omegaconf import DictConfig

from train import errors
from train.config import arguments
from train.config.check import check

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

    path, changes = cfg.data.path, {name: value for name, value in cfg.data.items() if name != "path"}
    run = open_run(cfg.run, changes)

    from pytorch_lightning import Trainer

    from train import folder, screen

    model, datamodule = run.model(), run.datamodule()
    with errors.reporting(errors.DataError), screen.console.status(f"reading {path}"):
        datamodule.tensors["test"] = datamodule.load_other(path, model.schema)
    num_rows = len(next(iter(datamodule.tensors["test"].values())))
    if not num_rows:
        raise errors.DataError(f"{path} has no labelled rows")
    trainer = Trainer(
        accelerator=cfg.accelerator,
        devices=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=run.path,
    )
    with screen.console.status(f"scoring {num_rows:,} rows"):
        (metrics,) = trainer.test(model, dataloaders=datamodule.test_dataloader(), verbose=False)
    result: dict[str, Any] = {
        "run": str(run.path),
        "data": path,
        "rows": num_rows,
        "metrics": metrics,
        "intervals_95": {f"test/{name}": interval for name, interval in model.intervals().items()},
        "unseen": dict(datamodule.unseen),
        "notes": datamodule.notes,
    }
    place = run.path / "evaluations" / folder.new_run_id()
    with errors.reporting(errors.StorageError):
        place.mkdir(parents=True)
        for name, figure in model.figures(datamodule).items():
            figure.savefig(place / f"{name}.png")
    folder.write_json(place / "result.json", result)
    screen.show_metrics(f"{num_rows:,} rows of {path}", metrics, result["intervals_95"])
    screen.show_notes([*datamodule.notes, *unseen(datamodule)])
    screen.console.print(f"[bold]results and plots[/]  {place}", soft_wrap=True)
    return place


@hydra.main(version_base="1.3", config_path="pkg://configs", config_name="evaluate")
def main(cfg: DictConfig) -> None:
    """Check the composed config, then evaluate."""
    with errors.job():
        check(cfg, EvaluateSettings, {})
        evaluate(cfg)


if __name__ == "__main__":
    sys.argv[1:] = arguments.in_order(sys.argv[1:])
    sys.exit(errors.guard(main))
