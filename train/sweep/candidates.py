"""The trials that an ensemble is chosen among: their best models, with scores of the same validation rows."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from train import errors
from train.evaluate import test
from train.finished import FinishedRun, open_run
from train.run import make_data
from train.sweep.plan import Plan
from train.sweep.slots import Slot
from train.sweep.trial import data_key


@dataclass(frozen=True)
class Candidate:
    """A trial's model.

    Attributes:
        number: of the trial.
        run: its finished run.
        model: of its best checkpoint.
        rows: the validation rows with its scores: what its module keeps of a test, a dataclass of arrays.
    """

    number: int
    run: FinishedRun
    model: Any
    rows: Any

    def result(self) -> dict[str, Any]:
        """Its result.json."""
        found: dict[str, Any] = json.loads((self.run.path / "result.json").read_text())
        return found


def candidates(plan: Plan, leading: Sequence[Slot]) -> tuple[list[Candidate], dict[int, str]]:
    """Those whose models can be joined with the best one's, and by trial why others cannot; the best first.

    Raises:
        DataError: the data cannot be read any more.
    """
    opened, left_out = _opened(plan, leading)
    found: list[Candidate] = []
    for candidate in _scored(opened):
        why = _misfit(found[0] if found else None, candidate)
        if why is None:
            found.append(candidate)
        else:
            left_out[candidate.number] = why
    order = [slot.number for slot in leading]
    return sorted(found, key=lambda one: order.index(one.number)), left_out


def _opened(plan: Plan, leading: Sequence[Slot]) -> tuple[list[tuple[int, FinishedRun]], dict[int, str]]:
    found, left_out = [], {}
    for slot in leading:
        try:
            found.append((slot.number, open_run(str(plan.run_folder(slot)), {})))
        except errors.UserError as error:  # its disk may be another machine's
            left_out[slot.number] = str(error)
    return found, left_out


def _scored(opened: Sequence[tuple[int, FinishedRun]]) -> Iterator[Candidate]:
    """Score the validation rows that each run's own data module gives, the first run's first.

    Data that several runs share are read once, and no two are in memory at once.
    """
    keys = [data_key(run.cfg) for _, run in opened]
    for key in dict.fromkeys(keys):
        datamodule: Any = None
        for (number, run), own in zip(opened, keys, strict=True):
            if own == key:
                datamodule = datamodule or make_data(run.cfg)
                model = run.model()
                test(model, datamodule.val_dataloader(), "cpu")
                yield Candidate(number, run, model, getattr(model, "scored", None))


def _misfit(first: Candidate | None, one: Candidate) -> str | None:
    """Why a model cannot be joined with the first, or be the first."""
    if one.rows is None or not hasattr(one.model, "ensemble"):
        return f"{type(one.model).__name__} has no ensemble"
    if first is None:
        return None
    if not _are_same_rows(first.rows, one.rows):
        return "its validation rows are others"
    try:
        first.model.ensemble([first.model, one.model], [0.5, 0.5])
    except ValueError as error:
        return str(error)
    return None


def _are_same_rows(one: Any, other: Any) -> bool:
    names = [field.name for field in dataclasses.fields(one) if field.name != "score"]
    return type(one) is type(other) and all(np.array_equal(getattr(one, name), getattr(other, name)) for name in names)
