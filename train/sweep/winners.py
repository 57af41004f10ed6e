"""best.yaml: the leading trials, and the overrides that make the best of them again from nothing but the experiment."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from typing import Any

import yaml  # type: ignore[import-untyped]

from train import folder
from train.config.arguments import BEST, key_of
from train.config.finding import seen_from_here
from train.config.settings import TrainSettings
from train.sweep import best
from train.sweep.plan import Plan
from train.sweep.settings import SweepSettings
from train.sweep.slots import Slot
from train.sweep.space import Values, decoded, override

MOST = 10  # of the leading trials
_OF_ONE_STUDY = {"study", "warm_start"}
_OF_ONE_RUN = {"run_id", "output_dir", "resume", "hydra", "sweep", "report"}


def write(plan: Plan, slots: Sequence[Slot]) -> None:
    """Write best.yaml, whole or not at all. There must be a complete trial that keeps the constraints.

    Raises:
        StorageError: it cannot be written.
    """
    leading = best.leading(plan, slots)
    shown = best.front(plan, slots) if len(plan.objectives) > 1 else leading[:MOST]
    content = {"overrides": overrides(plan, leading[0]), "best": [_entry(plan, slot) for slot in shown]}
    head = "".join(f"# {line}\n" for line in [summary(plan, slots), *commands(plan)])
    body = yaml.safe_dump(content, sort_keys=False, allow_unicode=True, width=1000)
    folder.write_text(plan.folder / BEST, head + body)


def summary(plan: Plan, slots: Sequence[Slot]) -> str:
    """One line: the best trial, of how many, and what the default came to."""
    leader = best.best(plan, slots)
    assert leader is not None
    has_default = plan.cfg.start_with_default and plan.cfg.sampler != "grid"
    is_default, of_default = ", the default" if has_default and leader.number == 0 else "", ""
    if has_default and not is_default and slots[0].state == "complete":
        of_default = f" (trial 0, the default: {_values(plan, slots[0])})"
    among = f" of {len(best.front(plan, slots))} on the Pareto front" if len(plan.objectives) > 1 else ""
    done = sum(slot.is_done for slot in slots)
    return f"trial {leader.number}{is_default}, the best{among} of {done}: {_values(plan, leader)}{of_default}"


def _values(plan: Plan, slot: Slot) -> str:
    return ", ".join(f"{metric} {value:.4f}" for metric, value in objectives(plan, slot).items())


def commands(plan: Plan) -> list[str]:
    """The command lines that use it: a run with the best settings, and another sweep that begins with them."""
    place = seen_from_here(plan.folder)
    chosen = next((line for line in training(plan) if line.startswith("experiment=")), "experiment=NAME")
    again = [folder.masked(line) for line in plan.configuration.overrides if _first_step(line) not in _OF_ONE_STUDY]
    return [
        shlex.join(["python", "-m", "train", *_flags(), chosen, f"+from_sweep={place}"]),
        shlex.join(["python", "-m", "train.sweep", *_flags(), *again, "study=NEXT", f"warm_start=[{place}]"]),
    ]


def _flags() -> list[str]:
    """The folder of configs of one's own, as this command line has it."""
    for index, word in enumerate(sys.argv[:-1]):
        if word in ("--config-dir", "-cd"):
            return [word, sys.argv[index + 1]]
    return [word for word in sys.argv if word.startswith("--config-dir=")]


def overrides(plan: Plan, slot: Slot) -> list[str]:
    """What gives a trial from nothing but the experiment."""
    return [*training(plan), *(override(key, value) for key, value in values(slot).items())]


def training(plan: Plan) -> list[str]:
    """The overrides of the sweep's command line that each of its runs had, where it ran left out."""
    dropped = (SweepSettings.__annotations__.keys() - TrainSettings.__annotations__.keys()) | _OF_ONE_RUN
    return [line for line in plan.configuration.overrides if _first_step(line) not in dropped]


def _first_step(line: str) -> str:
    return key_of(line).partition(".")[0].partition("/")[0]


def values(slot: Slot) -> Values:
    """What a trial chose."""
    return {} if slot.trial is None else {key: decoded(value) for key, value in slot.trial.params.items()}


def objectives(plan: Plan, slot: Slot) -> dict[str, float]:
    """The results of a trial by metric."""
    return {metric: value for (metric, _), value in zip(plan.objectives, slot.results, strict=False)}


def _entry(plan: Plan, slot: Slot) -> dict[str, Any]:
    return {
        "number": slot.number,
        "values": values(slot),
        "objectives": objectives(plan, slot),
        "run": str(plan.run_folder(slot).relative_to(plan.folder)),
    }
