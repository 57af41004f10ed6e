"""The story of a sweep: plan, study, trials, report, and one look at the test rows with the best."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Sequence

from omegaconf import DictConfig

from train import errors, ranks, screen
from train.errors import SweepError
from train.sweep import best, board, gpus, interrupt, plan, report, several, supervisor
from train.sweep.heartbeat import Heartbeat
from train.sweep.plan import Plan
from train.sweep.storage import open_storage
from train.sweep.study import Study

log = logging.getLogger(__name__)


def sweep(cfg: DictConfig, overrides: Sequence[str]) -> None:
    """Do the trials that the study lacks, here and in `cfg.workers` processes; then report.

    Args:
        cfg: the checked config.
        overrides: of the command line.

    Raises:
        ConfigError: a setting breaks a rule, or the study that is there is another.
        DataError: the data cannot be read.
        InterruptedRunError, StoppedError: asked to stop; the same command goes on.
        StorageError: the study's folder or database cannot be used.
        SweepError: too many trials failed in a row.
    """
    several.check_launcher()
    made = plan.make(cfg, overrides)
    with interrupt.listening():
        if ranks.is_rank_zero():
            lead(made)
        else:
            several.follow(made)


def lead(made: Plan) -> None:
    """Do what rank 0 does: hold the study, show it, report."""
    study = open_study(made)
    with logging_to_file(made):
        if supervisor.is_child():
            work(made, study)
            return
        report.remember(made)
        with board.shown(made, study):
            if supervisor.is_needed(made.cfg):
                supervisor.supervise(made, study)
            else:
                work(made, study)
        report.write(made, study)
        close(made, study)


def close(made: Plan, study: Study) -> None:
    """Say what was not done. Raises SweepError where all trials are and none of them is good for anything."""
    found = study.slots()
    if left := sum(not slot.is_done for slot in found):
        log.info("%d trials are left", left)
        screen.console.print(f"{left} of {len(found)} trials are left: the same command goes on with them.")
    elif best.best(made, found) is None:
        raise SweepError(
            f"no trial is complete and keeps the constraints: {made.folder / 'trials.parquet'} has why, trial by trial"
        )


def open_study(made: Plan) -> Study:
    """Open the study, or make it."""
    try:
        made.folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise errors.StorageError(
            f"cannot make the study's folder {made.folder}: {error}. Set output_dir to a folder that can be written."
        ) from error
    storage = open_storage(made.cfg.storage, made.folder)
    directions = [direction for _, direction in made.objectives]
    return Study(storage, made.study_name, directions, total=made.total, facts=made.facts)


def work(made: Plan, study: Study) -> None:
    """Do trials in this process, or as rank 0 of several."""
    from train.sweep.trial import Trials
    from train.sweep.worker import Worker

    gpus.share()
    trials = Trials(made.reported, made.judged_by)
    with Heartbeat(study, made.cfg.heartbeat_seconds) as heartbeat, several.leading(trials.run) as run:
        Worker(made, study, run, heartbeat).work()


@contextlib.contextmanager
def logging_to_file(made: Plan) -> Iterator[None]:
    """Send what is noticed about workers and the storage to sweep.log in the study's folder."""
    handler = logging.FileHandler(made.folder / "sweep.log")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(process)d %(message)s"))
    logger = logging.getLogger("train.sweep")
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        handler.close()
