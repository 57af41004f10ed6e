"""What a run tells while it trains: loss, learning rate, speed; and that the loss is finite."""

from pathlib import Path
from typing import Any

import torch
from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.callbacks import Callback
from pytorch_lightning.loggers import TensorBoardLogger
from torch import Tensor

from train import checkpoint
from train.errors import DivergedError
from train.meters import Meters

LOOK_EVERY_N_STEPS = 50


class Telemetry(Callback):
    """Collects the losses of training calls on the device and looks at them every `LOOK_EVERY_N_STEPS` steps.

    Looking is what waits for the device, so nothing else does.

    Args:
        checkpoints: where the run's checkpoints are, named when the loss diverges.
    """

    def __init__(self, checkpoints: Path) -> None:
        self.checkpoints = checkpoints
        self.meters = Meters()
        self.rates: dict[str, float] = {}
        self.pending: list[Tensor] = []
        self.first_pending = 0
        self.loss = float("nan")

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin counting from the step that the run is at."""
        self.first_pending = trainer.global_step

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock."""
        self.meters.begin(trainer, pl_module)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Count the first call's operations."""
        self.meters.before_call()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Look at the losses when enough steps have passed."""
        self.meters.after_call(trainer, pl_module)
        self.pending.append(outputs["loss"])
        if trainer.global_step - self.first_pending >= LOOK_EVERY_N_STEPS:
            self._look(trainer, pl_module)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Leave nothing behind in the process."""
        self.meters.stop_counting()

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Look at the rest before weights are scored whose loss may not be finite."""
        self._look(trainer, pl_module)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the validation's metrics at the optimizer step; Lightning would at the number of calls."""
        if trainer.sanity_checking or trainer.state.fn != "fit" or not isinstance(trainer.logger, TensorBoardLogger):
            return
        for name, value in trainer.callback_metrics.items():
            trainer.logger.experiment.add_scalar(name, float(value), trainer.global_step)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Look at the rest before the epoch is saved."""
        self._look(trainer, pl_module)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Never let weights be saved whose loss was not looked at."""
        self._look(trainer, pl_module)

    def _look(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not self.pending:
            return
        losses = torch.cat([loss.reshape(-1) for loss in self.pending]).float().cpu()
        rate = trainer.optimizers[0].param_groups[0]["lr"]
        if not torch.isfinite(losses).all():
            self._diverged(int((~torch.isfinite(losses)).nonzero()[0]), rate)
        self.loss = float(losses.mean())
        self.rates = self.meters.read(trainer, pl_module)
        self.pending, self.first_pending = [], trainer.global_step
        if isinstance(trainer.logger, TensorBoardLogger):
            write, step = trainer.logger.experiment.add_scalar, trainer.global_step
            write("train/loss", self.loss, step)
            write("train/learning_rate", rate, step)
            for name, value in self.rates.items():
                write(f"speed/{name}", value, step)

    def _diverged(self, offset: int, rate: float) -> None:
        good = checkpoint.newest_whole(self.checkpoints)
        advice = f"The last good checkpoint is {good}." if good else "No checkpoint had been saved."
        raise DivergedError(
            f"the loss was not finite at step {self.first_pending + offset} (learning rate {rate:.3g}). {advice} "
            "Lower model.lr or model.gradient_clip, or look for infinities in the data."
        )
