"""One worker of a sweep: claims a slot, runs its trial, says what came of it, and so on until all are done."""

from __future__ import annotations

import gc
import logging
import time
from collections.abc import Mapping

from optuna.exceptions import UpdateFinishedTrialError
from optuna.samplers import BaseSampler

from train import folder, ranks, stopping
from train.errors import (
    ConfigError,
    DataError,
    InterruptedRunError,
    PeerLostError,
    StoppedError,
    StorageError,
    UserError,
)
from train.sweep import samplers, slots, trial
from train.sweep.heartbeat import Heartbeat
from train.sweep.measures import UnknownMetricError
from train.sweep.plan import Plan
from train.sweep.several import Run
from train.sweep.slots import Slot
from train.sweep.study import Claim, Study, TakenError

log = logging.getLogger(__name__)

WAIT_SECONDS = 1.0  # between two looks for a slot that may have become free
_MOST_REASON = 500


class Worker:
    """Does trials.

    Args:
        plan: the sweep.
        study: shared with the other workers.
        objective: runs a trial's config; returns what it is judged by, None where it was pruned.
        heartbeat: of this worker, running.
    """

    def __init__(self, plan: Plan, study: Study, objective: Run, heartbeat: Heartbeat) -> None:
        self.plan, self.study, self.objective, self.heartbeat = plan, study, objective, heartbeat
        self.deadline = None if plan.cfg.timeout is None else time.monotonic() + plan.cfg.timeout
        study.optuna.pruner = plan.pruner()
        self._sampler: BaseSampler | None = None

    def work(self) -> None:
        """Do trials until none is left to do and none is in other hands, or the time is up.

        Raises:
            InterruptedRunError: Ctrl-C, twice; the trial in flight is free for another attempt.
            StoppedError: asked to stop; the same, and its run has saved.
            SweepError: too many trials failed in a row.
        """
        self.study.give_up_gone()
        self.study.raise_if_failing(self.plan.cfg.max_failures)
        gc.freeze()  # else each collection goes through all that was imported
        try:
            self._work()
        finally:
            gc.unfreeze()

    def _work(self) -> None:
        while not self._is_time_up():
            self._stop_if_asked()
            claim = self.study.claim(self._prepare)
            if claim is not None:
                self._do(claim)
            elif any(slot.state == "running" for slot in self.study.slots()):
                time.sleep(WAIT_SECONDS)  # its worker may die
            else:
                return

    def _prepare(self, slot: Slot) -> None:
        sampler = self.plan.sampler(slot)
        samplers.keep_search_space(self._sampler, sampler)
        self._sampler = sampler
        self.study.optuna.sampler = samplers.with_fixed(sampler, self.plan.fixed(slot))

    def _do(self, claim: Claim) -> None:
        self.heartbeat.hold(claim.trial._trial_id)
        try:
            outcome = self._run(claim)
            self.heartbeat.hold(None)
            self._finish(claim, outcome)
        except (TakenError, UpdateFinishedTrialError):
            log.warning("trial %d was taken by another worker, which took this one for dead", claim.slot.number)
        except (StoppedError, InterruptedRunError, KeyboardInterrupt) as error:
            self.study.fail(claim.trial._trial_id, **{slots.INTERRUPTED: True})
            raise _stopped(error) from None
        except Exception as error:
            if self._is_for_all(error):
                self.study.fail(claim.trial._trial_id, **{slots.INTERRUPTED: True})
                raise
            log.exception("trial %d failed", claim.slot.number)
            self.study.fail(claim.trial._trial_id, **{slots.REASON: _reason(error)})
            if not _is_own_fault(error):
                raise
            self.study.raise_if_failing(self.plan.cfg.max_failures)
        finally:
            self.heartbeat.hold(None)

    def _run(self, claim: Claim) -> Mapping[str, float] | None:
        values = self.plan.space.suggest(claim.trial, self.plan.known)
        cfg = self.plan.trial_config(values, self._run_id(claim))
        # What has several objectives is neither reported nor pruned.
        reported = claim.trial if len(self.plan.objectives) == 1 else None
        return self.objective(cfg, reported, self.heartbeat.is_taken)

    def _run_id(self, claim: Claim) -> str:
        """The run folder of earlier attempts, unless a process that was taken for dead still trains there."""
        slot = claim.slot
        if slot.attempts and folder.is_held(self.plan.run_folder(slot)):
            run_id = f"{slot.number:04d}-{len(slot.attempts)}"
            claim.trial.set_user_attr(slots.RUN_ID, run_id)
            return run_id
        return slot.run_id

    def _finish(self, claim: Claim, outcome: Mapping[str, float] | None) -> None:
        if outcome is None:
            self.study.finish(claim, None)
            return
        for name, bound in self.plan.constraints.items():
            claim.trial.set_constraint(name, outcome[name] - bound)
        if len(outcome) > 1:
            claim.trial.set_user_attr(slots.MEASURED, dict(outcome))
        self.study.finish(claim, [outcome[metric] for metric, _ in self.plan.objectives])

    def _is_for_all(self, error: Exception) -> bool:
        """Whether every other trial would fail in the same way: no disk, no database, no data, no such metric."""
        if isinstance(error, StorageError | UnknownMetricError):
            return True
        return isinstance(error, DataError | ConfigError) and not trial.can_read(self.plan.trial_config({}, "none"))

    def _is_time_up(self) -> bool:
        return self.deadline is not None and time.monotonic() > self.deadline

    def _stop_if_asked(self) -> None:
        stopping.listen()  # a run that ends puts the handlers back
        if asked := stopping.asked():
            raise stopping.stop(asked, saved="the study", run_id=ranks.name())


def _stopped(error: BaseException) -> UserError:
    """What ends the sweep when a trial was stopped."""
    if isinstance(error, StoppedError):
        is_requeued = "back in the queue" in str(error)
        return error if is_requeued else StoppedError("Stopped; the trial has saved. The same command goes on.")
    return InterruptedRunError("Interrupted. The same command goes on with the study.")


def _is_own_fault(error: Exception) -> bool:
    """Whether a failure is the trial's alone: processes that have lost each other cannot do the next one together."""
    return not isinstance(error, PeerLostError) and (isinstance(error, UserError) or ranks.num_processes() == 1)


def _reason(error: BaseException) -> str:
    text = str(error).strip() or type(error).__name__
    known = text if type(error).__module__.startswith("train.") else f"{type(error).__name__}: {text}"
    return known[:_MOST_REASON]
