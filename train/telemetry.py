"""What a run tells while it trains: loss, learning rate, rows/s, time spent waiting; and that the loss is finite."""

import time
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.callbacks import Callback
from pytorch_lightning.loggers import TensorBoardLogger
from torch import Tensor

from train import checkpoint
from train.errors import DivergedError

LOOK_EVERY_N_STEPS = 50


class Telemetry(Callback):
    """Collects the losses of training calls on the device and looks at them every `LOOK_EVERY_N_STEPS` steps.

    Looking is what waits for the device, so nothing else does. Totals are kept for the run's result.

    Args:
        checkpoints: where the run's checkpoints are, named when the loss diverges.
    """

    def __init__(self, checkpoints: Path) -> None:
        self.checkpoints = checkpoints
        self.pending: list[Tensor] = []
        self.first_pending = 0
        self.loss = float("nan")
        self.rows_per_second = 0.0
        self.rows, self.seconds, self.seconds_waiting = 0, 0.0, 0.0
        self._mark = (0.0, 0, 0.0)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin counting from the step that the run is at."""
        self.first_pending = trainer.global_step

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock; validation between epochs is not training time."""
        self._mark = self._now(trainer)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Look at the losses when enough steps have passed."""
        self.pending.append(outputs["loss"])
        if trainer.global_step - self.first_pending >= LOOK_EVERY_N_STEPS:
            self._look(trainer)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Look at the rest before weights are scored whose loss may not be finite."""
        self._look(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the validation's metrics at the optimizer step; Lightning would at the number of calls."""
        if trainer.sanity_checking or trainer.state.fn != "fit" or not isinstance(trainer.logger, TensorBoardLogger):
            return
        for name, value in trainer.callback_metrics.items():
            trainer.logger.experiment.add_scalar(name, float(value), trainer.global_step)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Look at the rest before the epoch is saved."""
        self._look(trainer)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Never let weights be saved whose loss was not looked at."""
        self._look(trainer)

    def _now(self, trainer: Trainer) -> tuple[float, int, float]:
        loader = trainer.train_dataloader
        return time.perf_counter(), getattr(loader, "rows_seen", 0), getattr(loader, "seconds_waiting", 0.0)

    def _look(self, trainer: Trainer) -> None:
        if not self.pending:
            return
        losses = torch.cat([loss.reshape(-1) for loss in self.pending]).float().cpu()
        rate = trainer.optimizers[0].param_groups[0]["lr"]
        if not torch.isfinite(losses).all():
            self._diverged(int((~torch.isfinite(losses)).nonzero()[0]), rate)
        self.loss = float(losses.mean())
        now = self._now(trainer)
        seconds, rows, waiting = (new - old for new, old in zip(now, self._mark, strict=True))
        self._mark = now
        self.rows, self.seconds, self.seconds_waiting = (
            self.rows + int(rows),
            self.seconds + seconds,
            self.seconds_waiting + waiting,
        )
        self.rows_per_second = rows / max(seconds, 1e-9)
        self.pending, self.first_pending = [], trainer.global_step
        if isinstance(trainer.logger, TensorBoardLogger):
            write, step = trainer.logger.experiment.add_scalar, trainer.global_step
            write("train/loss", self.loss, step)
            write("train/learning_rate", rate, step)
            write("speed/rows_per_second", self.rows_per_second, step)
            write("speed/share_waiting_for_data", waiting / max(seconds, 1e-9), step)

    def _diverged(self, offset: int, rate: float) -> None:
        good = checkpoint.newest_whole(self.checkpoints)
        advice = f"The last good checkpoint is {good}." if good else "No checkpoint had been saved."
        raise DivergedError(
            f"the loss was not finite at step {self.first_pending + offset} (learning rate {rate:.3g}). {advice} "
            "Lower model.lr or model.gradient_clip, or look for infinities in the data."
        )
