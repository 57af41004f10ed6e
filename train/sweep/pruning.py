"""Reports a metric of a trial at each validation and ends the trial where the pruner says so."""

from __future__ import annotations

import math
import threading
from typing import Any

import optuna
from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.callbacks import Callback

from train import ranks
from train.sweep.study import TakenError

_GO_ON, _PRUNE, _TAKEN = 0, 1, 2


class Pruning(Callback):
    """Lightning's side of a trial. Rank 0 holds the trial; what it decides, all ranks do at the same step.

    Args:
        trial: of a study with one objective, on rank 0; None elsewhere, and where nothing is to be reported.
        metric: what is reported.
        is_taken: set when another worker has taken the trial.

    Attributes:
        is_pruned: whether the trial was ended early.
        validations: how many there have been, those before a restart included.
    """

    def __init__(self, trial: optuna.Trial | None, metric: str, is_taken: threading.Event) -> None:
        self.trial, self.metric, self.is_taken = trial, metric, is_taken
        self.is_pruned = False
        self.validations = 0
        self.reported: set[int] = set()

    def state_dict(self) -> dict[str, Any]:
        """Return how many validations there have been."""
        return {"validations": self.validations}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up what `state_dict` returned."""
        self.validations = int(state_dict["validations"])

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Report, and ask all ranks to stop where the trial is pruned."""
        if trainer.sanity_checking or trainer.state.fn != "fit":
            return
        self.validations += 1
        decision = ranks.agree(self._decision(trainer))[0]
        if decision == _TAKEN:
            raise TakenError
        if decision == _PRUNE:
            self.is_pruned = True
            trainer.should_stop = True

    def _decision(self, trainer: Trainer) -> int:
        if self.is_taken.is_set():
            return _TAKEN
        value = float(trainer.callback_metrics.get(self.metric, math.nan))
        if self.trial is None or math.isnan(value):
            return _GO_ON
        try:
            self.trial.report(value, self.validations)
        except optuna.exceptions.UpdateFinishedTrialError:
            return _TAKEN
        is_last = trainer.max_epochs is not None and trainer.current_epoch + 1 >= trainer.max_epochs > 0
        return _PRUNE if not is_last and self.trial.should_prune() else _GO_ON
