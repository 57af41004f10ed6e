"""A study that any number of workers share: its slots, and the trial that this process holds."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import optuna
from optuna.exceptions import UpdateFinishedTrialError
from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial, TrialState, create_trial

from train.errors import ConfigError, SweepError
from train.sweep import slots
from train.sweep.slots import Slot

FACTS = "facts"  # what the trials of one study must share


@dataclass(frozen=True)
class Claim:
    """A slot that this process holds, and the trial of the storage by which it does."""

    slot: Slot
    trial: optuna.Trial


class TakenError(Exception):
    """Another worker took this process for dead and has the trial now."""


class Study:
    """A study of Optuna's in a storage that others write as well.

    Args:
        storage: where it is.
        name: of the study.
        directions: "maximize" or "minimize", one for each objective.
        total: how many trials there are to be.
        facts: what the trials of one study must share, such as the space; those of a study that is gone on with must be
            the same.

    Raises:
        ConfigError: the study that is there differs from the one asked for.
    """

    def __init__(
        self, storage: BaseStorage, name: str, directions: Sequence[str], *, total: int, facts: Mapping[str, Any]
    ) -> None:
        self.storage, self.total = storage, total
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        chosen: Any = list(directions)
        self.optuna = optuna.create_study(
            storage=storage,
            study_name=name,
            directions=chosen,
            load_if_exists=True,
            sampler=optuna.samplers.RandomSampler(),  # each trial brings its own
            pruner=optuna.pruners.NopPruner(),
        )
        self._id = storage.get_study_id_from_name(name)
        self._check(directions, dict(facts))

    def _check(self, directions: Sequence[str], facts: dict[str, Any]) -> None:
        there = self.optuna.user_attrs.get(FACTS)
        if there is None or all(slot.state == "free" for slot in self.slots()):  # nothing that could be mixed up
            self.optuna.set_user_attr(FACTS, facts)
            there = facts
        found = [direction.name.lower() for direction in self.optuna.directions]
        differences = [f"  {key}: was {there.get(key)!r}, is {facts.get(key)!r}" for key in _differing(there, facts)]
        if found != list(directions):
            differences.append(f"  directions: was {found}, is {list(directions)}")
        if differences:
            raise ConfigError(
                "the study has trials of another search:\n" + "\n".join(differences) + "\n"
                "Give the same settings to go on with it, or another name: study=NAME."
            )

    def trials(self) -> list[FrozenTrial]:
        """All trials of the storage, in the order of their numbers; not to be changed."""
        return self.storage.get_all_trials(self._id, deepcopy=False)

    def slots(self) -> list[Slot]:
        """What became of each trial, as users count them."""
        return slots.slots(self.trials(), self.total)

    def claim(self, prepare: Any = None) -> Claim | None:
        """Take the first free slot for this process; None where there is none.

        Args:
            prepare: called with the slot just before its trial begins, to set the sampler.
        """
        is_contested = False
        while (slot := self._free(at_random=is_contested)) is not None:
            if prepare is not None:
                prepare(slot)
            created = self.storage.create_new_trial(self._id, _template(slot))
            mine = slots.has_claimed(self.trials(), slot)
            if mine is None or mine._trial_id != created:
                self.fail(created)
            if mine is not None:
                return Claim(slot, optuna.Trial(self.optuna, mine._trial_id))
            is_contested = True
        return None

    def _free(self, *, at_random: bool) -> Slot | None:
        free = (slot for slot in self.slots() if slot.state == "free")
        return random.choice(list(free) or [None]) if at_random else next(free, None)

    def fail(self, trial_id: int, **attributes: Any) -> None:
        """Fail a trial that is still running, with attributes that say why."""
        with contextlib.suppress(UpdateFinishedTrialError):
            for name, value in attributes.items():
                self.storage.set_trial_user_attr(trial_id, name, value)
            self.storage.set_trial_state_values(trial_id, TrialState.FAIL)

    def give_up_gone(self) -> None:
        """Free the slots whose workers ran on this host and are no more."""
        for slot in self.slots():
            if slot.state == "running" and slot.trial is not None and slots.is_gone(slot.trial):
                self.fail(slot.trial._trial_id)

    def raise_if_failing(self, most: int) -> None:
        """Raise a SweepError where the last `most` trials to end have all failed."""
        latest = slots.ended(self.slots())[-most:]
        if len(latest) == most and all(slot.state == "failed" for slot in latest):
            raise SweepError(
                f"{most} trials in a row have failed, the last one ({latest[-1].number}) with:\n"
                f"  {latest[-1].reason}\n"
                "Mend that, and start the same command with a greater max_failures to go on: a failed trial is not "
                "tried again."
            )

    def finish(self, claim: Claim, values: Sequence[float] | None) -> None:
        """Record the values of a trial, or with None that it was pruned.

        Raises:
            TakenError: another worker has the trial.
        """
        state = TrialState.PRUNED if values is None else TrialState.COMPLETE
        try:
            self.optuna.tell(claim.trial, values, state)
        except (UpdateFinishedTrialError, ValueError) as error:
            if self.storage.get_trial(claim.trial._trial_id).state == state:
                return  # told before the connection to the storage was lost
            raise TakenError from error


def _template(slot: Slot) -> FrozenTrial:
    """A running trial that claims the slot, with what an earlier attempt has chosen and reported."""
    last = slot.trial
    return create_trial(
        state=TrialState.RUNNING,
        user_attrs=slots.claim_of(slot),
        params={} if last is None else last.params,
        distributions={} if last is None else last.distributions,
        intermediate_values={} if last is None else last.intermediate_values,
    )


def _differing(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    return [key for key in sorted({*one, *other}) if one.get(key) != other.get(key)]
