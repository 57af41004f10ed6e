"""`python -m train` that writes down what each rank does, and does harm where it is told to.

RECORD=FOLDER python recorded.py experiment=... ; each rank leaves FOLDER/rank<N>.pt
FAULT=KIND:RANK:STEP: that rank raises, hangs, is killed or meets a NaN at that step, once (a file in FOLDER says when).
"""

import os
import signal
import sys
import time
from pathlib import Path

from train import stopping

stopping.listen_early()

import torch  # noqa: E402
from pytorch_lightning.callbacks import Callback  # noqa: E402
from torch.distributed.tensor import DTensor  # noqa: E402

import train.__main__ as command  # noqa: E402
from train import errors  # noqa: E402
from train import run as run_module  # noqa: E402

FOLDER = Path(os.environ["RECORD"])
KIND, RANK, STEP = (os.environ.get("FAULT") or "none:-1:-1").split(":")


class Recorder(Callback):
    """Losses by step, rows by epoch, and the weights at the end."""

    def __init__(self) -> None:
        self.losses: dict[int, float] = {}
        self.rows: dict[int, list[int]] = {}

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx) -> None:
        if KIND != "none" and trainer.global_rank == int(RANK) and trainer.global_step >= int(STEP):
            self.harm(pl_module)

    def harm(self, module) -> None:
        done = FOLDER / "harmed"
        if done.exists():
            return
        done.touch()
        if KIND == "raise":
            raise ArithmeticError("broken on purpose")
        if KIND == "hang":
            time.sleep(10_000)
        if KIND == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if KIND == "nan":
            loss_of = module.loss_of
            module.loss_of = lambda batch: loss_of(batch) * float("nan")

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        losses = outputs["loss"].tolist()
        self.losses.update(enumerate(losses, start=trainer.global_step - len(losses)))
        seen = self.rows.setdefault(trainer.current_epoch, [])
        seen.extend(int(row) for part in batch for row in part["timestamp" if "timestamp" in part else "row"].flatten())

    def on_train_end(self, trainer, pl_module) -> None:
        values = pl_module.state_dict().items()
        weights = {name: value.full_tensor() if isinstance(value, DTensor) else value for name, value in values}
        record = {"losses": self.losses, "rows": self.rows, "weights": weights}
        torch.save(record, FOLDER / f"rank{trainer.global_rank}.pt")


make_trainer = run_module.make_trainer


def with_recorder(*arguments):
    trainer, parts = make_trainer(*arguments)
    trainer.callbacks.insert(0, Recorder())
    return trainer, parts


if __name__ == "__main__":
    FOLDER.mkdir(parents=True, exist_ok=True)
    run_module.make_trainer = with_recorder
    sys.exit(errors.guard(command.main))
