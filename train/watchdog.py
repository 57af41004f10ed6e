"""A rank that hangs: after a time without progress its stack traces go to its log, and the process ends."""

import contextlib
import faulthandler
import os
import sys
import threading
import time
from pathlib import Path
from typing import Any

from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.callbacks import Callback

from train import ranks
from train.errors import PeerLostError

# The ranks that wait for one that hangs stall a little later than it does: time for their traces too.
GRACE_SECONDS = 5.0


class Watchdog(Callback):
    """Ends a process whose loops have not moved for `seconds`; a `torchrun` or SLURM around it then starts it again.

    A collective waits for its peers in C, where no Python exception arrives; hence a thread, and `os._exit`.

    Args:
        seconds: longest time from one batch to the next, of training, validation or test; the first included.
        log_file: the rank's own log, to which the traces are appended.
    """

    def __init__(self, *, seconds: float, log_file: Path) -> None:
        self.seconds, self.log_file = seconds, log_file  # Lightning puts its own `log` on every callback
        self._moved = time.monotonic()
        self._done = threading.Event()
        self._thread: threading.Thread | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Start to watch."""
        self._moved = time.monotonic()
        self._done.clear()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
        self._thread.start()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Stop watching."""
        self._done.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Stop watching: the run ends by itself."""
        self._done.set()

    def _beat(self, *_: Any, **__: Any) -> None:
        self._moved = time.monotonic()

    on_train_batch_start = on_train_batch_end = on_train_epoch_end = _beat
    on_validation_start = on_validation_batch_end = on_validation_end = _beat
    on_test_start = on_test_batch_end = on_test_end = _beat

    def _watch(self) -> None:
        while not self._done.wait(min(1.0, self.seconds / 4)):
            if time.monotonic() - self._moved > self.seconds:
                self._bark()

    def _bark(self) -> None:
        with contextlib.suppress(OSError), self.log_file.open("a") as file:
            file.write(f"{ranks.name()}: no progress for {self.seconds:g} s; stack traces of all threads:\n")
            file.flush()
            faulthandler.dump_traceback(file=file, all_threads=True)
        print(
            f"{ranks.name()} made no progress for {self.seconds:g} s (watchdog_seconds) and ends. Where it hung: "
            f"{self.log_file}. Start again with the same run_id to go on from the newest checkpoint.",
            file=sys.stderr,
            flush=True,
        )
        time.sleep(GRACE_SECONDS)
        os._exit(PeerLostError.exit_code)
