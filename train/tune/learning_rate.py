"""The learning-rate range test (Smith, 2017): the rate rises until the loss does."""

import logging
import math
from collections.abc import Callable
from typing import Any

from omegaconf import DictConfig
from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.callbacks import Callback

from train import screen
from train.errors import ConfigError, DivergedError
from train.folder import RunFolder, write_picture
from train.tune import plots
from train.tune.curve import Curve
from train.tune.rehearsal import introduce, make_training_data, rehearse

log = logging.getLogger(__name__)

SEARCHED = (1, 3, 10)  # times the suggestion; the rate of least loss is chance where the curve is flat


class Scheduled(Callback):
    """Gives every optimizer step its rate and hands on every loss.

    The contract with a module: `models.optim.Steps` takes its optimizer steps as `self.steps` and asks
    `self.steps.schedule(step)` for the rate of each; `training_step` returns {"loss": losses [steps]}. The schedule is
    replaced as a whole, so that no warm-up or decay of the module's own is left.

    Args:
        rate: step (from 0) to learning rate.
        take: is given each loss, in order, and returns whether to stop; after that it is given no more.
    """

    def __init__(self, rate: Callable[[int], float], take: Callable[[float], bool]) -> None:
        self.rate, self.take = rate, take

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Replace the schedule; the module makes its steps after the callbacks' `on_train_start`."""
        steps: Any = getattr(pl_module, "steps", None)
        if not hasattr(steps, "schedule"):
            raise ConfigError(
                "model: find=lr needs a module whose `self.steps` takes its optimizer steps by a `schedule` from step "
                f"to rate; {type(pl_module).__name__} has none"
            )
        steps.schedule = self.rate

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Hand on the losses of the call."""
        trainer.should_stop = any(self.take(loss) for loss in outputs["loss"].reshape(-1).float().tolist())


def find(cfg: DictConfig, place: RunFolder) -> None:
    """Test a range of learning rates; write lr.json and lr.png and print the suggestion.

    Raises:
        ConfigError: the range is empty, the module keeps no schedule, or the loss falls nowhere.
        DivergedError: the untrained weights' loss is not finite.
    """
    low, high, num_steps = cfg.lr.low, cfg.lr.high, cfg.lr.steps
    if low >= high:
        raise ConfigError(f"lr.low must be below lr.high; got {low:g} and {high:g}")
    datamodule, _ = make_training_data(cfg)
    introduce(cfg, place, datamodule, f"learning-rate range test, {low:g} to {high:g} in {num_steps} steps")
    with screen.console.status("losses of the untrained weights"):
        references = losses_untrained(cfg, datamodule)
    curve = Curve(low, high, references)
    with screen.console.status("range test"):
        rehearse(cfg, datamodule, [Scheduled(curve.rate, curve.add)], max_steps=num_steps)
    configured = cfg.model.get("lr")
    record(curve, configured, place)
    show(curve, configured)


def losses_untrained(cfg: DictConfig, datamodule: Any) -> list[float]:
    """Return the loss in each step of a training whose learning rate is 0: the mini-batches, and dropout, of the test.

    Raises:
        DivergedError: one is not finite.
    """
    losses: list[float] = []

    def take(loss: float) -> bool:
        if not math.isfinite(loss):
            raise DivergedError(
                f"the loss was not finite at step {len(losses)}, before anything was learned (learning rate 0). "
                "Look for infinities in the data."
            )
        losses.append(loss)
        return False

    rehearse(cfg, datamodule, [Scheduled(lambda step: 0.0, take)], max_steps=cfg.lr.steps)
    return losses


def record(curve: Curve, configured: float | None, place: RunFolder) -> None:
    """Write the curve and what was read off it."""
    write_picture(place.path / "lr.png", plots.range_test(curve, configured))
    steps = range(len(curve.losses))
    result = {
        "suggestion": curve.suggestion(),
        "configured": configured,
        "rate_of_least_loss": curve.lowest(),
        "stopped_early": len(steps) < curve.num_steps,
        "rates": [curve.rate(step) for step in steps],
        "losses": curve.losses,
        "losses_untrained": curve.references,
        "smoothed": [{"rate": 10**x, "loss": loss} for x, loss in curve.smoothed],
    }
    place.write_json("lr.json", result)


def show(curve: Curve, configured: float | None) -> None:
    """Print the suggestion as an override, beside the config's own value. Raises ConfigError where there is none."""
    suggestion = curve.suggestion()
    if suggestion is None:
        raise ConfigError(
            f"lr: the loss fell nowhere between {curve.low:g} and {curve.high:g} in {curve.num_steps} steps: "
            "lower lr.low, raise lr.high or lr.steps"
        )
    line = f"model.lr={suggestion:.1e}"
    if configured:
        line += f"  (the config has {configured:.1e}: this is {suggestion / configured:.2g} times that)"
    screen.console.print(f"[bold]suggestion[/]  {line}", soft_wrap=True)
    worth_trying = ",".join(f"{factor * suggestion:.1e}" for factor in SEARCHED)
    screen.console.print(
        "The loss falls fastest there, while the rate rises in few steps; a whole training often wants a few times as "
        f"much. Compare: --multirun model.lr={worth_trying}",
        soft_wrap=True,
    )
    log.info("suggestion: %s", line)
