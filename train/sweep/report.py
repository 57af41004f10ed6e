"""What a sweep leaves: best.yaml, trials.parquet, plots, TensorBoard, and one look at the test rows with the best.

python -m train.sweep report=FOLDER                  # make them again, and nothing else
python -m train.sweep report=FOLDER storage=URI      # of a study whose database asks for a password
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import optuna
from matplotlib.figure import Figure
from rich.console import Console

from train import errors, ranks
from train.config.arguments import BEST
from train.config.finding import seen_from_here
from train.errors import ConfigError
from train.folder import write_picture
from train.sweep import best, hparams, key_plots, remembered, slots, table, trial_plots, winners
from train.sweep.plan import Plan
from train.sweep.slots import Slot, State
from train.sweep.storage import JOURNAL, open_storage
from train.sweep.study import Study

log = logging.getLogger(__name__)
console = Console(highlight=False)

LOCK, START_LOCK = ".report.lock", ".start.lock"
NAME = "report"
PLOTS: Mapping[str, Callable[[Plan, Sequence[Slot]], Figure | None]] = {
    "history": trial_plots.history,
    "importance": key_plots.importance,
    "parallel_coordinates": key_plots.parallel_coordinates,
    "slices": key_plots.slices,
    "intermediate_values": trial_plots.intermediate_values,
    "pareto_front": trial_plots.pareto_front,
    "timeline": trial_plots.timeline,
}


def remember(plan: Plan) -> None:
    """Keep in the study's folder what a later report must know. Raises StorageError."""
    with _first(plan.folder / START_LOCK) as is_first:
        if is_first:  # else another worker that starts now writes the same
            remembered.write(plan)


def write(plan: Plan, study: Study) -> None:
    """Report on the trials as they are now, and test the best model if none is running; one process at a time.

    A process that comes while another one reports leaves it to that one, which looks again at the end.

    Raises:
        StorageError: the folder cannot be written.
        UserError: as `train.run.run` does.
    """
    reported: list[State] = []
    while (found := study.slots()) and (states := [slot.state for slot in found]) != reported:
        with _first(plan.folder / LOCK) as is_first:
            if not is_first:
                console.print("Another worker reports on this study.")
                return
            write_files(plan, found)
            leader = best.best(plan, found)
            if leader is not None and plan.cfg.test:
                _test(plan, leader, sum(state == "running" for state in states))
            if plan.cfg.ensemble:
                from train.sweep import ensemble  # with Lightning, which `report=` does without

                ensemble.write(plan, found)
            show(plan, found)
        reported = states


def _test(plan: Plan, leader: Slot, num_running: int) -> None:
    from train.sweep import testing

    if num_running:
        console.print(f"{num_running} trials are still running elsewhere: the test rows are left to the last worker.")
    elif ranks.num_processes() > 1:
        console.print("The test rows are left to one run on all devices:")
        console.print(f"  {testing.command(plan, leader)}", soft_wrap=True, markup=False)
    else:
        testing.look(plan, leader, testing.run_once_more)


def write_files(plan: Plan, found: Sequence[Slot]) -> None:
    """Write all files of the report. Raises StorageError."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    if best.best(plan, found) is not None:
        winners.write(plan, found)
    table.write(plan, found)
    hparams.write(plan, found, draw(plan, found))


def draw(plan: Plan, found: Sequence[Slot]) -> dict[str, np.ndarray]:
    """Draw each plot that has something to show, as a PNG in the study's folder; return the pictures by name."""
    pictures: dict[str, np.ndarray] = {}
    for name, plot in PLOTS.items():
        figure, path = plot(plan, found), plan.folder / f"{name}.png"
        if figure is not None:
            pictures[name] = write_picture(path, figure)
            continue
        with errors.reporting(errors.StorageError):
            path.unlink(missing_ok=True)
    return pictures


def show(plan: Plan, found: Sequence[Slot]) -> None:
    """Print the best, where all is, and the commands that go on from here."""
    place = seen_from_here(plan.folder)
    leader = best.best(plan, found)
    if leader is None:
        complete = sum(slot.state == "complete" for slot in found)
        why = "no trial keeps the constraints" if complete else "no trial is complete"
        console.print(f"There is no best trial: {why}. See {place / table.FILE}.", soft_wrap=True, markup=False)
        return
    console.print(f"\n[bold] best[/]  {winners.summary(plan, found)}", soft_wrap=True)
    console.print(f"[bold]study[/]  {place}: {BEST}, {table.FILE}, plots", soft_wrap=True)
    run = plan.run_folder(leader)
    commands = [
        *winners.commands(plan),
        *([f"python -m train.export run={seen_from_here(run)}"] if run.exists() else []),
        f"tensorboard --logdir {place / hparams.FOLDER}",
    ]
    for command in commands:
        console.print(f"  {command}", soft_wrap=True, markup=False)


def rebuild(arguments: Sequence[str]) -> None:
    """Make the files of the study that `report=FOLDER` names again.

    Raises:
        ConfigError: there is no such study, or another word was given.
        StorageError: the study cannot be read, or its folder written.
    """
    given = {key: value for key, _, value in (word.partition("=") for word in arguments)}
    if further := given.keys() - {NAME, "storage"}:
        raise ConfigError(f"report: goes with storage=URI only, not with {', '.join(sorted(further))}")
    plan = remembered.read(Path(given[NAME]).expanduser(), given.get("storage"))
    found = read_slots(plan)
    with _first(plan.folder / LOCK) as is_first:
        if not is_first:
            raise ConfigError(
                f"report: another process writes the report of {str(plan.folder)!r} now: try again when it has"
            )
        write_files(plan, found)
        show(plan, found)


def read_slots(plan: Plan) -> list[Slot]:
    """What became of the trials of a study that is there. Raises ConfigError where it is not, StorageError."""
    name = plan.study_name
    if plan.cfg.storage is None and not (plan.folder / JOURNAL).is_file():
        raise ConfigError(f"report: {str(plan.folder)!r} has no {JOURNAL}: give storage=URI")
    storage = open_storage(plan.cfg.storage, plan.folder)
    try:
        study_id = storage.get_study_id_from_name(name)
    except KeyError as error:
        raise ConfigError(f"report: there is no study {name!r} in that storage") from error
    return slots.slots(storage.get_all_trials(study_id), plan.total)


@contextlib.contextmanager
def _first(path: Path) -> Iterator[bool]:
    """Hold a lock that the kernel takes away with the process; tell whether this process has got it."""
    with errors.reporting(errors.StorageError):
        lock = path.open("ab")
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True
