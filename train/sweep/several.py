"""Trials over several processes: torchrun starts them once, rank 0 holds the trials, the others do as it says."""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import optuna
from omegaconf import DictConfig, OmegaConf

from train import ranks
from train.errors import ConfigError, InterruptedRunError, PeerLostError, StoppedError, UserError
from train.sweep.plan import Plan
from train.sweep.study import TakenError

log = logging.getLogger(__name__)

_END = "end"
_POLL_SECONDS = 0.02

Run = Callable[[DictConfig, optuna.Trial | None, threading.Event], Mapping[str, float] | None]


def num_devices(cfg: DictConfig) -> int:
    """Over how many processes a trial is to be, that have not been started yet; 1 where it is to be in this one."""
    devices = cfg.trainer.devices
    return devices if isinstance(devices, int) and ranks.num_processes() == 1 else 1


def check_launcher() -> None:
    """Raise a ConfigError where srun has started several processes for one worker."""
    if ranks.num_processes() > 1 and not ranks.is_under_torchrun():
        raise ConfigError(
            "srun has started several processes for one worker: start one task for each, and have trials over several "
            "devices with trainer.devices=N"
        )


@contextlib.contextmanager
def leading(run: Run) -> Iterator[Run]:
    """Give rank 0 what has all ranks run a trial; at the end they are told that there are no more."""
    if ranks.num_processes() == 1:
        yield run
        return
    store, numbers = ranks.new_store(), iter(range(10**9))

    def say(message: str) -> None:
        store.set(str(next(numbers)), message)

    def run_together(
        cfg: DictConfig, trial: optuna.Trial | None, is_taken: threading.Event
    ) -> Mapping[str, float] | None:
        say(OmegaConf.to_yaml(cfg))
        return run(cfg, trial, is_taken)

    try:
        yield run_together
    finally:
        with contextlib.suppress(RuntimeError):  # the store is gone, and the others with it
            say(_END)


def follow(plan: Plan) -> None:
    """Run the trials that rank 0 names, until it says that there are no more.

    Raises:
        PeerLostError: another process failed, was lost or hung: none of them can go on.
        StoppedError: asked to stop, and saved.
    """
    from train.sweep.trial import Trials

    trials, store, number, never = Trials(plan.reported, ()), ranks.new_store(), 0, threading.Event()
    while (message := _heard(store, str(number))) != _END:
        number += 1
        try:
            cfg = OmegaConf.create(message)
            assert isinstance(cfg, DictConfig)
            trials.run(cfg, None, never)
        except TakenError:
            continue
        except (StoppedError, InterruptedRunError, PeerLostError):
            raise
        except UserError as error:  # which rank 0 has met as well
            log.warning("%s: %s", ranks.name(), error)


def _heard(store: Any, key: str) -> str:
    while not store.check([key]):
        time.sleep(_POLL_SECONDS)
    message: str = store.get(key).decode()
    return message
