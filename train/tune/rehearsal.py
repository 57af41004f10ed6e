"""A training as a run would begin it, that leaves nothing: no checkpoint, no validation, no logger, one device."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra.utils import instantiate
from omegaconf import DictConfig, ListConfig
from pytorch_lightning import Trainer, seed_everything
from pytorch_lightning.callbacks import Callback

from train import checkpoint, errors, folder, screen, strategies
from train.folder import RunFolder
from train.run import make_data, make_model

log = logging.getLogger(__name__)

# What the search itself decides, whatever the experiment says.
ALONE: dict[str, Any] = {
    "num_nodes": 1,
    "strategy": "auto",
    "max_epochs": -1,
    "min_epochs": None,
    "min_steps": None,
    "max_time": None,
    "fast_dev_run": False,
    "limit_train_batches": 1.0,
    "limit_val_batches": 0,
    "num_sanity_val_steps": 0,
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
}


def make_training_data(cfg: DictConfig) -> tuple[Any, int]:
    """Return the experiment's data module, set up, and the number of its training rows.

    Its `train_dataloader()` has `num_rows`, and `rows_seen` as `train.meters` reads it.

    Raises:
        DataError: the data cannot be read, break a rule, or have no training rows.
    """
    seed_everything(cfg.seed, workers=True, verbose=False)
    datamodule = make_data(cfg)
    num_rows = int(datamodule.train_dataloader().num_rows)
    if not num_rows:
        raise errors.DataError("there are no training rows: give more data, or another split")
    return datamodule, num_rows


def rehearse(cfg: DictConfig, datamodule: Any, callbacks: Sequence[Callback], *, max_steps: int) -> None:
    """Train fresh weights, or those of `weights`, until `max_steps` or until a callback stops it."""
    seed_everything(cfg.seed, workers=True, verbose=False)
    model = make_model(cfg, datamodule)
    if cfg.weights is not None:
        checkpoint.load_weights(model, Path(cfg.weights))
    settings = {**cfg.trainer, **ALONE, "devices": one_of(cfg.trainer.get("devices")), "max_steps": max_steps}
    trainer: Trainer = instantiate(settings, callbacks=list(callbacks))
    strategies.calm(trainer)
    trainer.fit(model, datamodule=datamodule)


def one_of(devices: Any) -> int | list[int]:
    """Return one device: the first of a list, else any."""
    return [int(devices[0])] if isinstance(devices, ListConfig | list) and devices else 1


def introduce(cfg: DictConfig, place: RunFolder, datamodule: Any, task: str) -> None:
    """Record where the result comes from, and show what is about to be done."""
    place.write_json("provenance.json", folder.provenance(seed=cfg.seed, fingerprint=datamodule.fingerprint))
    choices = {"run": f"{cfg.name}-tune/{place.run_id}", "data": datamodule.summary, "task": task}
    screen.show_choices(choices, [])
    for key, value in choices.items():
        log.info("%s: %s", key, value)
