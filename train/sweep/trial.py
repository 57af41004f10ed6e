"""One trial: one run of `train.run` in a run folder of its own, in this process."""

from __future__ import annotations

import gc
import json
import sys
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import optuna
from omegaconf import DictConfig, OmegaConf

from train import screen
from train.errors import ConfigError, DataError
from train.run import make_data, run
from train.sweep import measures
from train.sweep.pruning import Pruning


@dataclass
class Trials:
    """Runs trials one after the other; the data stay in memory from one to the next where they are the same.

    Args:
        reported: metric that is reported at each validation.
        judged_by: names of all numbers that a trial is judged by.
    """

    reported: str
    judged_by: Sequence[str]
    _data: Any = None
    _data_key: str = ""

    def run(self, cfg: DictConfig, trial: optuna.Trial | None, is_taken: threading.Event) -> dict[str, float] | None:
        """Train; return what the trial is judged by, of its best checkpoint, or None if it was pruned.

        Args:
            cfg: of the run.
            trial: what is reported to; None on ranks but 0, and where there are several objectives.
            is_taken: set when another worker has the trial.

        Raises:
            TakenError: another worker has the trial.
            UserError: as `train.run.run` does.
        """
        pruning = Pruning(trial, self.reported, is_taken)
        try:
            with screen.silent():
                result = run(cfg, testing=False, datamodule=self._datamodule(cfg), callbacks=[pruning])
            if pruning.is_pruned:
                return None
            return measures.measured(self.judged_by, result.metrics, result.folder)
        finally:
            _free_memory()

    def _datamodule(self, cfg: DictConfig) -> Any:
        key = data_key(cfg)
        if key != self._data_key:
            self._data, self._data_key = None, ""  # not both in memory
            self._data, self._data_key = make_data(cfg), key
        return self._data


def data_key(cfg: DictConfig) -> str:
    """The same for configs of the same data."""
    return json.dumps(OmegaConf.to_container(cfg.data, resolve=True), sort_keys=True)


def can_read(cfg: DictConfig) -> bool:
    """Whether the data of a config are there and break no rule."""
    try:
        make_data(cfg)
    except (DataError, ConfigError):
        return False
    return True


def _free_memory() -> None:
    """Give back what a failed trial has left on the device: the next one shall have all of it."""
    torch = sys.modules["torch"]
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        gc.collect()
        torch.cuda.empty_cache()
