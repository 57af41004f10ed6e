"""The one look at the test rows, with the best trial's model: its run goes on from its end and tests its checkpoint."""

from __future__ import annotations

import contextlib
import json
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

from omegaconf import DictConfig
from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.callbacks import Callback

from train import checkpoint, screen
from train.folder import write_json
from train.run import Result, run
from train.sweep import winners
from train.sweep.plan import Plan
from train.sweep.slots import Slot

Run = Callable[[DictConfig], object]
_NEW = {"metrics", "intervals_95", "baselines"}  # of a result.json, by the test


class Ended(Callback):
    """Keeps a run that has ended from training on: one that early stopping ended would do one more epoch."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop before the first step."""
        trainer.should_stop = True


def run_once_more(cfg: DictConfig) -> Result:
    """Test the best checkpoint of a run that has ended; what its training took stays in its result.json."""
    path = Path(cfg.output_dir) / cfg.name / str(cfg.run_id) / "result.json"
    before = _read(path)
    result = run(cfg, testing=True, callbacks=[Ended()])
    after = _read(path)
    write_json(path, {**after, **{key: value for key, value in before.items() if key not in _NEW}})
    return result


def look(plan: Plan, slot: Slot, run: Run) -> None:
    """Show what the best trial's model does on the test rows; they are read only if that is not known yet.

    Args:
        plan: the sweep.
        slot: the best.
        run: runs a config on all ranks.

    Raises:
        UserError: as `train.run.run` does.
    """
    place = plan.run_folder(slot)
    cfg = config(plan, slot)
    known = _read(place / "result.json")
    if any(name.startswith("test/") for name in known.get("metrics", ())):
        screen.show_test(cfg, known["metrics"], known["baselines"])
    elif checkpoint.newest_whole(place / "checkpoints") is None and cfg.checkpoint.mirror is None:
        print(f"The run of trial {slot.number} is not on this machine. This trains it here and tests it:")
        print(f"  {command(plan, slot)}")
    else:
        print(f"\nThe test rows, with the model of trial {slot.number}:")
        run(cfg)


def config(plan: Plan, slot: Slot) -> DictConfig:
    """The config of the best trial's run, with the experiment's own baselines beside it."""
    values = winners.values(slot)
    cfg = plan.trial_config(values, slot.run_id)
    cfg.baselines, cfg.resume = plan.configuration.of(values).baselines, "auto"
    return cfg


def _read(path: Path) -> dict[str, Any]:
    with contextlib.suppress(OSError, json.JSONDecodeError):
        return dict(json.loads(path.read_text()))
    return {}


def command(plan: Plan, slot: Slot) -> str:
    """The command line that goes on with a trial's run, or starts it where it is not, and tests it."""
    lines = [*winners.overrides(plan, slot), f"output_dir={plan.folder}", f"run_id={slot.run_id}"]
    return shlex.join(["python", "-m", "train", *lines])
