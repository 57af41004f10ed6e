"""Tells the other workers that this one lives, and frees the trials of those that no longer do.

A trial's owner counts up an attribute of it. Whoever sees the same count at `MOST_LOOKS` looks in a row takes the owner
for dead. Looks are counted and not seconds, so that neither clocks that differ nor a database that was away for a
while make a worker look dead.
"""

from __future__ import annotations

import logging
import threading
from types import TracebackType

from optuna.exceptions import UpdateFinishedTrialError

from train import stopping
from train.errors import StorageError
from train.sweep import slots, supervisor
from train.sweep.study import Study

log = logging.getLogger(__name__)

MOST_LOOKS = 4


class Heartbeat:
    """A thread that beats for the trial this worker holds, and looks after those of the others.

    Args:
        study: whose trials.
        seconds: between two beats.

    Attributes:
        is_taken: set once another worker has taken the trial that is held.
    """

    def __init__(self, study: Study, seconds: float) -> None:
        self.study, self.seconds = study, seconds
        self.is_taken = threading.Event()
        self._held: int | None = None
        self._beat = 0
        self._seen: dict[int, tuple[int, int]] = {}
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run, name="heartbeat", daemon=True)

    def __enter__(self) -> Heartbeat:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._end.set()
        self._thread.join(timeout=5.0)  # it may be waiting for a database

    def hold(self, trial_id: int | None) -> None:
        """Beat for this trial from now on; None for none."""
        self._held, self._beat = trial_id, 0
        self.is_taken.clear()

    def _run(self) -> None:
        while not self._end.wait(self.seconds):
            if supervisor.is_orphan():
                stopping.ask()
            try:
                self._tell()
                self._look()
            except StorageError as error:  # the worker meets it too
                log.warning("%s", error)

    def _tell(self) -> None:
        held = self._held
        if held is None:
            return
        self._beat += 1
        try:
            self.study.storage.set_trial_user_attr(held, slots.BEAT, self._beat)
        except UpdateFinishedTrialError:
            if held == self._held:
                self.is_taken.set()

    def _look(self) -> None:
        for slot in self.study.slots():
            trial = slot.trial
            if trial is None or slot.state != "running" or trial._trial_id == self._held:
                continue
            beat, looks = self._seen.get(trial._trial_id, (-1, 0))
            now = int(trial.user_attrs.get(slots.BEAT, 0))
            looks = looks + 1 if beat == now else 0
            self._seen[trial._trial_id] = (now, looks)
            if looks >= MOST_LOOKS or slots.is_gone(trial):
                log.warning("trial %d: its worker is gone; it is free again", slot.number)
                self.study.fail(trial._trial_id)
