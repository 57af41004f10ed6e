"""Stopping when a signal asks: SIGTERM (a machine is taken away), SIGUSR1 (SLURM warns of the time limit).

While a run trains, a signal only leaves a mark; at the end of a training call all ranks look at their marks together
(`train.ranks.agree`), save once, and stop. Signals reach the ranks at different steps, and a save is a collective: a
handler that saves by itself waits for ranks that are elsewhere.
"""

import os
import signal
import subprocess
import sys
import threading
from types import FrameType

from train import ranks
from train.errors import StoppedError

_NONE, _STOP, _REQUEUE = 0, 1, 2
_asked = _NONE


def listen_early() -> None:
    """Remember SLURM's warning from the first line on: it would kill a process that is still importing."""
    _on(signal.SIGUSR1, _mark)


def listen() -> None:
    """Leave a mark on either signal. Called when training starts, after Lightning has put its own handlers."""
    _on(signal.SIGUSR1, _mark)
    _on(signal.SIGTERM, _mark)


def stop_listening() -> None:
    """After training there is nothing to save: SIGTERM ends the process at once, SLURM's warning requeues it."""
    _on(signal.SIGTERM, signal.SIG_DFL)
    _on(signal.SIGUSR1, _requeue_now)


def ask() -> None:
    """Ask this process to stop, as SIGTERM would."""
    global _asked
    _asked = max(_asked, _STOP)


def asked() -> int:
    """Return how urgently this rank was asked to stop; 0 for not."""
    return _asked


def stop(asked: int, *, saved: str, run_id: str) -> StoppedError:
    """Return the error that ends the run after the save; under SLURM its warning puts the job back into the queue."""
    global _asked
    _asked = _NONE
    job = os.environ.get("SLURM_JOB_ID")
    if asked == _REQUEUE and job:
        return _requeued(job, saved)
    return StoppedError(f"Stopped by a signal. Saved {saved}. The same command with run_id={run_id} goes on.")


def _requeued(job: str, saved: str) -> StoppedError:
    if not ranks.is_rank_zero():
        return StoppedError("requeued")
    try:
        # In a session of its own: srun ends our process group as soon as another rank has exited.
        subprocess.run(
            ["scontrol", "requeue", job], check=True, capture_output=True, text=True, timeout=60, start_new_session=True
        )
    except (OSError, subprocess.SubprocessError) as error:
        reason = getattr(error, "stderr", "") or error
        return StoppedError(
            f"Stopped before the time limit. Saved {saved}. scontrol could not put SLURM job {job} back into the queue "
            f"({str(reason).strip()}): submit it again with run_id={job} to go on."
        )
    return StoppedError(f"Stopped before the time limit. Saved {saved}. SLURM job {job} is back in the queue.")


def _on(signum: signal.Signals, handler: "signal._HANDLER") -> None:
    if threading.current_thread() is threading.main_thread():
        signal.signal(signum, handler)


def _mark(signum: int, frame: FrameType | None) -> None:
    global _asked
    _asked = max(_asked, _REQUEUE if signum == signal.SIGUSR1 else _STOP)


def _requeue_now(signum: int, frame: FrameType | None) -> None:
    job = os.environ.get("SLURM_JOB_ID")
    if job:
        print(f"{ranks.name()}: SLURM warns of the time limit while the results are made", file=sys.stderr)
        raise _requeued(job, "the trained weights before")
