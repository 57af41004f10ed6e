"""Who does which trial: a study has as many slots as trials were asked for, and each is done once, by one worker.

Optuna's storages share no lock, but number the trials of a study in the order in which they were created. A worker
claims slot k by creating a trial that says so; of several such trials the one of the smallest number counts, and the
others are void. A trial whose worker died is failed without a reason, and its slot is free for another attempt.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

from optuna.trial import FrozenTrial, TrialState

State = Literal["free", "running", "complete", "pruned", "failed"]

SLOT, ATTEMPT, OWNER, REASON, BEAT, INTERRUPTED = "slot", "attempt", "owner", "reason", "beat", "interrupted"
RUN_ID, MEASURED = "run_id", "measured"
MOST_ATTEMPTS = 3  # of a trial whose workers die
_STATES: Mapping[TrialState, State] = {
    TrialState.RUNNING: "running",
    TrialState.COMPLETE: "complete",
    TrialState.PRUNED: "pruned",
    TrialState.FAIL: "failed",
}


@dataclass(frozen=True)
class Slot:
    """One trial as a user counts them.

    Attributes:
        number: from 0.
        attempts: the trials of the storage that count, in order; the last one is what became of it.
    """

    number: int
    attempts: tuple[FrozenTrial, ...] = ()

    @property
    def trial(self) -> FrozenTrial | None:
        """The last attempt."""
        return self.attempts[-1] if self.attempts else None

    @property
    def state(self) -> State:
        """What became of it; lost and interrupted trials are free again."""
        trial = self.trial
        if trial is None:
            return "free"
        state = _STATES[trial.state]
        return "free" if state == "failed" and self.reason is None else state

    @property
    def reason(self) -> str | None:
        """Why it failed."""
        trial = self.trial
        if trial is None or trial.state != TrialState.FAIL:
            return None
        if REASON in trial.user_attrs:
            return str(trial.user_attrs[REASON])
        died = sum(INTERRUPTED not in attempt.user_attrs for attempt in self.attempts)
        return f"its worker died {died} times: out of memory?" if died >= MOST_ATTEMPTS else None

    @property
    def results(self) -> Sequence[float]:
        """What it came to in each objective; a pruned one what it had last; empty where there is nothing."""
        return (self.trial.values if self.trial is not None else None) or []

    @property
    def reported(self) -> Mapping[int, float]:
        """What it had at each validation."""
        return {} if self.trial is None else self.trial.intermediate_values

    @property
    def run_id(self) -> str:
        """The name of its run folder."""
        plain = f"{self.number:04d}"
        return plain if self.trial is None else str(self.trial.user_attrs.get(RUN_ID, plain))

    @property
    def is_done(self) -> bool:
        """Whether it will not be tried again."""
        return self.state in ("complete", "pruned", "failed")


def slots(trials: Sequence[FrozenTrial], total: int) -> list[Slot]:
    """The slots of a study, at least `total`: as many as were ever claimed."""
    attempts: dict[int, dict[int, FrozenTrial]] = {}
    for trial in trials:  # in the order of their numbers: the first to claim an attempt has it
        if SLOT in trial.user_attrs:
            own = attempts.setdefault(trial.user_attrs[SLOT], {})
            own.setdefault(trial.user_attrs[ATTEMPT], trial)
    last = max([total - 1, *attempts])
    return [Slot(number, _in_order(attempts.get(number, {}))) for number in range(last + 1)]


def ended(slots: Iterable[Slot]) -> list[Slot]:
    """Those that are done, in the order in which they ended."""
    done = [slot for slot in slots if slot.is_done]
    return sorted(done, key=lambda slot: str(slot.trial and slot.trial.datetime_complete))


def _in_order(attempts: Mapping[int, FrozenTrial]) -> tuple[FrozenTrial, ...]:
    return tuple(attempts[attempt] for attempt in sorted(attempts))


def claim_of(slot: Slot) -> dict[str, Any]:
    """The user attributes of a trial that claims a slot for this process."""
    moved = {RUN_ID: slot.run_id} if slot.run_id != Slot(slot.number).run_id else {}
    return {SLOT: slot.number, ATTEMPT: len(slot.attempts), OWNER: owner(), **moved}


def has_claimed(trials: Iterable[FrozenTrial], slot: Slot) -> FrozenTrial | None:
    """The trial by which this process holds the next attempt at a slot; None where another was first."""
    number, attempt = slot.number, len(slot.attempts)
    for trial in trials:
        held = trial.user_attrs
        if held.get(SLOT) == number and held[ATTEMPT] == attempt:
            return trial if held[OWNER] == owner() else None
    return None


def owner() -> dict[str, Any]:
    """This process: host, number, and when it was started, since numbers come again."""
    return {"host": _host(), "pid": os.getpid(), "started": _started(os.getpid())}


@cache
def _host() -> str:
    """This machine, and in a container its namespace: another's processes have numbers of their own."""
    try:
        return f"{platform.node()} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return platform.node()


def is_gone(trial: FrozenTrial) -> bool:
    """Whether the process that holds a trial ran on this host and is no more."""
    held: Mapping[str, Any] = trial.user_attrs.get(OWNER, {})
    return held.get("host") == _host() and _started(held["pid"]) != held["started"]


def _started(pid: int) -> int | None:
    """When a process was started, in the kernel's ticks; None where there is no such process, or it is a zombie."""
    try:
        fields = (Path("/proc") / str(pid) / "stat").read_text().rpartition(") ")[2].split()
    except OSError:
        return 0 if not Path("/proc/self").exists() and exists(pid) else None
    return None if fields[0] == "Z" else int(fields[19])


def exists(pid: int) -> bool:
    """Whether there is a process of this number."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
