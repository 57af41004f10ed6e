"""Smaller models of a run: units taken out, and what is left trained on through the same `train.run`."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf

from train import errors, screen
from train.checkpoint import AtomicCheckpointIO
from train.export.settings import PruneSettings
from train.export.source import Source
from train.finished import open_run
from train.run import run

RATIOS = (0.125, 0.25, 0.375, 0.5, 0.625, 0.75, 0.875)  # of a search
TAYLOR_ROWS = 16_384


def pruned(source: Source, ratio: float, settings: PruneSettings, folder: Path) -> Any:
    """Return the run's model with about `ratio` of every layer's units gone, trained on for some steps.

    Args:
        source: the run.
        ratio: share of units, above 0 and below 1.
        settings: how units are chosen, and the steps of fine-tuning.
        folder: the fine-tuning run is kept there.

    Raises:
        ConfigError: it is no model that can be pruned.
    """
    batches = source.training_batches(TAYLOR_ROWS) if settings["importance"] == "taylor" else []
    with errors.reporting(errors.ConfigError):
        options, state = source.model.pruned(ratio, how=settings["importance"], batches=batches)
    cfg = source.cfg.copy()
    OmegaConf.set_struct(cfg, False)
    cfg.model.update(options)
    if not settings["finetune_steps"]:
        model = instantiate(cfg.model, _partial_=True, _convert_="all")(schema=source.model.schema)
        model.load_state_dict(state)
        return model.eval()
    shutil.rmtree(folder / cfg.name / f"pruned-{ratio:g}", ignore_errors=True)
    start = folder / f"start-{os.getpid()}.ckpt"
    AtomicCheckpointIO().save_checkpoint({"state_dict": state}, start)
    cfg.merge_with(
        {
            "run_id": f"pruned-{ratio:g}",
            "output_dir": str(folder),
            "weights": str(start),
            "resume": "never",
            "baselines": None,
            "patience": None,
            "trainer": {"max_steps": settings["finetune_steps"], "max_epochs": -1},
        }
    )
    cfg.checkpoint.mirror = None
    try:
        with screen.silent():
            finished = run(cfg, testing=False).folder
    finally:
        start.unlink(missing_ok=True)
    return open_run(str(finished), {}).model()


def largest(passes: Any) -> float:
    """Return the largest of `RATIOS` that passes, found by halving: a larger one is taken to lose more; 0 for none."""
    low, high = -1, len(RATIOS)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if passes(RATIOS[middle]) else (low, middle)
    return 0.0 if low < 0 else RATIOS[low]


def num_parameters(model: torch.nn.Module) -> int:
    """Count the parameters that predict."""
    unique = {id(one): one for graph in model.export_graphs() for one in graph.module.parameters()}  # type: ignore[operator]
    return sum(parameter.numel() for parameter in unique.values())
