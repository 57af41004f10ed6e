"""Several workers of one sweep on this machine: each a process of its own, with its share of the GPUs and CPUs."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence

from omegaconf import DictConfig

from train import stopping
from train.errors import InterruptedRunError, StoppedError, UserError
from train.launch import Line
from train.sweep import gpus, several, slots
from train.sweep.plan import Plan
from train.sweep.study import Study

CHILD_VARIABLE = "FULLCYCLE_SWEEP_WORKER"
MOST_RESTARTS = 10  # of each worker
_WAIT_SECONDS = 0.2


def is_child() -> bool:
    """Whether this process is a worker that another one looks after."""
    return CHILD_VARIABLE in os.environ


def is_orphan() -> bool:
    """Whether that other one is gone."""
    return is_child() and not slots.exists(int(os.environ[CHILD_VARIABLE]))


def is_needed(cfg: DictConfig) -> bool:
    """Whether the trials are done by other processes than this one."""
    return not is_child() and (cfg.workers > 1 or several.num_devices(cfg) > 1)


def launcher(cfg: DictConfig) -> list[str]:
    """The command that starts a worker: torchrun where a trial is over several devices."""
    count = several.num_devices(cfg)
    if count == 1:
        return [sys.executable]
    return [Line(["torchrun"]).program(), "--standalone", f"--nproc-per-node={count}"]


class Child:
    """One worker.

    Args:
        number: from 0.
        plan, study: of the sweep.
    """

    def __init__(self, number: int, plan: Plan, study: Study) -> None:
        self.number = number
        self.log = plan.folder / f"worker-{number}.log"
        self.attempts_before = _num_attempts(study)
        self.is_torchrun = several.num_devices(plan.cfg) > 1
        threads = max(1, (os.cpu_count() or 1) // plan.cfg.workers)
        environment = {
            **{"OMP_NUM_THREADS": str(threads), **os.environ, CHILD_VARIABLE: str(os.getpid())},
            **gpus.part(number, several.num_devices(plan.cfg), plan.cfg.workers),
        }
        with self.log.open("ab") as output:
            self.process = subprocess.Popen(
                [*launcher(plan.cfg), "-m", "train.sweep", *sys.argv[1:]],
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,  # Ctrl-C reaches it through us
            )

    def end(self) -> None:
        """End it at once; torchrun ends its own processes."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM if self.is_torchrun else signal.SIGKILL)

    def last_words(self) -> str:
        """The end of its log."""
        return self.log.read_text(errors="replace").strip()[-2000:]


def supervise(plan: Plan, study: Study) -> None:
    """Run `plan.cfg.workers` workers until all trials are done; start those again that were killed.

    Raises:
        StoppedError, InterruptedRunError: asked to stop.
        UserError: what a worker ended with.
    """
    stopping.listen()
    children = [Child(number, plan, study) for number in range(plan.cfg.workers)]
    try:
        _watch(children, plan, study)
        _stop(children)
    except KeyboardInterrupt:  # the second one
        for child in children:
            child.end()
        _stop(children)
        study.give_up_gone()
        raise InterruptedRunError("Interrupted. The same command goes on with the study.") from None
    if stopping.asked():
        raise StoppedError("Stopped; the trials that were in flight have saved. The same command goes on.")
    study.raise_if_failing(plan.cfg.max_failures)
    for child in children:
        _raise_for(child)


def _watch(children: list[Child], plan: Plan, study: Study) -> None:
    """Wait until all have ended, or this process is asked to stop."""
    restarts = 0
    while any(child.process.poll() is None for child in children) and not stopping.asked():
        for index, child in enumerate(children):
            if restarts < MOST_RESTARTS * plan.cfg.workers and _must_restart(child, study):
                restarts += 1
                children[index] = Child(child.number, plan, study)
        time.sleep(_WAIT_SECONDS)


def _stop(children: Sequence[Child]) -> None:
    for child in children:
        if child.process.poll() is None:
            child.process.terminate()
    for child in children:
        child.process.wait()


def _num_attempts(study: Study) -> int:
    return sum(len(slot.attempts) for slot in study.slots())


def _must_restart(child: Child, study: Study) -> bool:
    """Whether a worker was ended by what may not happen again: a signal, or a trial that took its processes along."""
    code = child.process.poll()
    if code is None or code == 0:
        return False
    may_go_better = code < 0 or (child.is_torchrun and _num_attempts(study) > child.attempts_before)
    return may_go_better and not all(slot.is_done for slot in study.slots())


def _raise_for(child: Child) -> None:
    """Raise what a worker ended with, in its own words."""
    code = child.process.returncode
    if code in (0, StoppedError.exit_code):
        return
    kinds = {kind.exit_code: kind for kind in UserError.__subclasses__()}
    said = child.last_words()
    if code in kinds:
        raise kinds[code](f"worker {child.number} ended, by its log {child.log}:\n{said}")
    raise RuntimeError(f"worker {child.number} ended with exit code {code}; its log {child.log} ends with:\n{said}")
