"""Which trials of a sweep are the best, of those that keep the constraints: by the first objective, or the front."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import optuna

from train.sweep.plan import Plan
from train.sweep.slots import Slot


def leading(plan: Plan, slots: Sequence[Slot]) -> list[Slot]:
    """The complete trials that keep the constraints, the best first by the first objective."""
    fit = [slot for slot in slots if slot.state == "complete" and keeps_constraints(slot)]
    sign = -1 if plan.objectives[0][1] == "maximize" else 1
    return sorted(fit, key=lambda slot: (sign * slot.results[0], slot.number))


def best(plan: Plan, slots: Sequence[Slot]) -> Slot | None:
    """The first of them."""
    return next(iter(leading(plan, slots)), None)


def front(plan: Plan, slots: Sequence[Slot]) -> list[Slot]:
    """Those that no other one beats in one objective without losing in another; of one objective, the best."""
    if len(plan.objectives) == 1:
        return leading(plan, slots)[:1]
    fit = leading(plan, slots)
    signs = [-1 if direction == "maximize" else 1 for _, direction in plan.objectives]
    costs = [[s * v for s, v in zip(signs, slot.results, strict=True)] for slot in fit]
    beaten = [any(_dominates(other, own) for other in costs) for own in costs]
    return [slot for slot, is_beaten in zip(fit, beaten, strict=True) if not is_beaten]


def _dominates(one: Sequence[float], other: Sequence[float]) -> bool:
    return list(one) != list(other) and all(a <= b for a, b in zip(one, other, strict=True))


def keeps_constraints(slot: Slot) -> bool:
    """Whether every constraint of a trial holds."""
    return slot.trial is None or all(value <= 0 for value in slot.trial.constraints.values())


def as_optuna(plan: Plan, slots: Sequence[Slot]) -> optuna.Study:
    """A study in memory of what became of each slot, in their order: without lost and void trials."""
    directions: Any = [direction for _, direction in plan.objectives]
    study = optuna.create_study(directions=directions)
    study.add_trials([slot.trial for slot in slots if slot.trial is not None and slot.is_done])
    return study
