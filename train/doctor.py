"""Check the machines for a run without training: the config, the folder, the code and data of all ranks, the network.

python -m train.doctor experiment=NAME                                  # on this machine, as `python -m train` would
python -m train.doctor experiment=NAME trainer=ddp trainer.devices=2
torchrun --nnodes=2 --nproc-per-node=8 --rdzv-backend=c10d --rdzv-endpoint=HOST:PORT -m train.doctor experiment=NAME
srun python -m train.doctor experiment=NAME trainer=ddp                 # within a job
"""

from __future__ import annotations

import logging
import sys
import warnings
from functools import cached_property
from typing import TYPE_CHECKING, Any

import hydra
from omegaconf import DictConfig

from train import errors
from train.config import arguments
from train.config.check import check

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lightning_fabric.plugins.environments.cluster_environment import ClusterEnvironment
    from pytorch_lightning import Trainer
    from torch import nn

    from train.preflight import Outcome

SEE_DEVICE = "See `nvidia-smi` here and the CUDA version of torch, or set trainer.accelerator and trainer.devices."
SEE_NAME = "Set MASTER_ADDR to a name or an address of that host which all hosts know."
SEE_NETWORK = "See that every process was started, and that each host can reach MASTER_ADDR and MASTER_PORT."
SECONDS_TO_MEET = 120  # processes import for some seconds, and for longer from a network disk


class Parts:
    """The data and the model of a config, made when a check asks for them."""

    def __init__(self, cfg: DictConfig) -> None:
        self.cfg = cfg

    @cached_property
    def datamodule(self) -> Any:
        """The data module, set up."""
        from train.run import make_data

        return make_data(self.cfg)

    def fingerprint(self) -> str:
        """Return the data's fingerprint."""
        return str(self.datamodule.fingerprint)

    @cached_property
    def made(self) -> nn.Module:
        """The model."""
        from hydra.utils import instantiate

        schema = self.datamodule.schema
        with errors.reporting(errors.ConfigError):
            model: nn.Module = instantiate(self.cfg.model, _partial_=True, _convert_="all")(schema=schema)
            return model

    def model(self) -> nn.Module:
        """Return the model."""
        return self.made


def doctor(cfg: DictConfig) -> None:
    """Run every check on every rank; show them on rank 0's screen.

    Raises:
        PreflightError: a check failed on some rank.
    """
    from train import preflight, ranks

    outcomes = examine(cfg)
    if ranks.is_rank_zero():
        show(outcomes)
    preflight.refuse(outcomes)


def examine(cfg: DictConfig) -> list[Outcome]:
    """Start the processes as a run does, in the trainer's own process group, and look around there.

    Raises:
        PreflightError: this rank has not the device that the trainer asks for, or cannot reach the others.
    """
    from hydra.errors import InstantiationException
    from torch.distributed import DistError

    from train import preflight

    try:
        trainer = make_trainer(cfg)
        if trainer.world_size > 1:
            look_for_first(trainer.strategy.cluster_environment)  # type: ignore[attr-defined]
        trainer.predict(preflight.Nothing())
    except preflight.ExaminedError as examined:
        return examined.outcomes
    except InstantiationException as error:
        if type(error.__cause__).__name__ != "MisconfigurationException":
            raise
        raise alone(f"the trainer that the config asks for cannot be had: {error.__cause__}", SEE_DEVICE) from error
    except DistError as error:
        raise alone(f"the processes did not come together: {error}", SEE_NETWORK) from error
    raise AssertionError("the trainer came back without an examination")


def make_trainer(cfg: DictConfig) -> Trainer:
    """Make the trainer of the config, with the processes that a run would have, for nothing but the checks."""
    from hydra.utils import instantiate

    from train import preflight, ranks

    parts = Parts(cfg)
    for name in ("pytorch_lightning", "lightning_fabric"):  # else they list the hardware that is not there
        logging.getLogger(name).setLevel(logging.WARNING)
    warnings.simplefilter("ignore")  # what they warn of is for the run
    trainer: Trainer = instantiate(
        cfg.trainer,
        callbacks=[preflight.Examination(cfg, parts.fingerprint, parts.model)],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **ranks.processes(),
    )
    return trainer


def look_for_first(launcher: ClusterEnvironment) -> None:
    """See that rank 0's address answers before the process group waits for it, half an hour as it is set.

    Raises:
        PreflightError: no host of that name, or no answer in time.
    """
    import socket
    import time

    name, port = launcher.main_address, launcher.main_port
    until = time.monotonic() + SECONDS_TO_MEET
    while True:
        try:
            socket.getaddrinfo(name, port)
            if launcher.global_rank():  # rank 0 opens the port later, in the trainer
                socket.create_connection((name, port), timeout=5).close()
            return
        except socket.gaierror as error:
            raise alone(f"the host of rank 0, {name!r}, has no address here: {error.strerror}", SEE_NAME) from None
        except OSError as error:
            if time.monotonic() > until:
                found = f"rank 0 does not answer at {name}, port {port}, within {SECONDS_TO_MEET} s: {error}"
                raise alone(found, SEE_NETWORK) from None
            time.sleep(0.2)


def alone(found: str, advice: str) -> errors.PreflightError:
    """Return the error of a rank that the others do not hear, and which it therefore shows itself."""
    import platform

    from train import preflight, ranks

    finding = preflight.Finding(platform.node(), [ranks.rank()], found, advice)
    failure = errors.PreflightError(f"The machines are not ready to train:\n  processes, {finding}")
    failure.on_every_rank = False
    return failure


def show(outcomes: Sequence[Outcome]) -> None:
    """Print a table: check, result, figure."""
    from rich.table import Table

    from train.screen import console

    table = Table()
    for column in ("check", "result", "figure"):
        table.add_column(column, overflow="fold")
    for outcome in outcomes:
        style = {"ok": "green", "failed": "red", "skipped": "dim"}[outcome.result]
        table.add_row(outcome.check, f"[{style}]{outcome.result}[/]", "" if outcome.findings else outcome.figure)
    console.print(table)


@hydra.main(version_base="1.3", config_path="pkg://configs", config_name="doctor")
def main(cfg: DictConfig) -> None:
    """Check the composed config, then the machines."""
    with errors.job():
        check(cfg)
        doctor(cfg)


if __name__ == "__main__":
    sys.argv[1:] = arguments.in_order(sys.argv[1:])
    sys.exit(errors.guard(main, "doctor"))
