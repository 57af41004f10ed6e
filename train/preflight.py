"""Checks of the machines before time is spent on them: all ranks look, and all hear what any of them found."""

import itertools
import logging
import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from omegaconf import DictConfig
from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.callbacks import Callback
from torch import nn

from train import hardware, probe, ranks
from train.errors import PreflightError, UserError
from train.folder import RunFolder
from train.probe import Scene, Sight

log = logging.getLogger(__name__)

Look = Callable[[Scene], Sight]

# At the start of every run of several processes: under a second.
QUICK: Mapping[str, Look] = {
    "config": probe.look_at_config,
    "code": probe.look_at_code,
    "data": probe.look_at_data,
    "model": probe.look_at_model,
    "run folder": probe.look_at_folder,
    "disk": hardware.look_at_disk,
    "clocks": probe.look_at_clock,
    "round trip": hardware.look_at_round_trip,
}
ALL: Mapping[str, Look] = {
    **QUICK,
    "bandwidth": hardware.look_at_bandwidth,
    "GPU": hardware.look_at_gpu,
    "requeue": hardware.look_at_requeue,
    "mirror": hardware.look_at_mirror,
}
MOST_DIFFERENCES = 3


@dataclass(frozen=True)
class Finding:
    """What is wrong, where, and what to do."""

    host: str
    ranks: Sequence[int]
    found: str
    advice: str

    def __str__(self) -> str:
        """Return one line."""
        name = "rank" if len(self.ranks) == 1 else "ranks"
        where = f"host {self.host} ({name} {', '.join(map(str, self.ranks))})"
        return f"{where}: {self.found.rstrip('.')}. {self.advice}".rstrip()


@dataclass(frozen=True)
class Outcome:
    """What became of one check on all ranks.

    Attributes:
        figure: a few words of what rank 0 saw, or why nothing was looked at.
    """

    check: str
    figure: str
    findings: Sequence[Finding]
    was_skipped: bool

    @property
    def result(self) -> str:
        """In one word."""
        return "failed" if self.findings else "skipped" if self.was_skipped else "ok"


class Preflight(Callback):
    """Runs the quick checks when a run of several processes starts, before its data reach a GPU.

    Args:
        cfg: the composed config.
        place: the run folder.
        fingerprint: that of the data which this rank has read.
    """

    def __init__(self, cfg: DictConfig, place: RunFolder, fingerprint: str) -> None:
        self.cfg, self.place, self.fingerprint = cfg, place, fingerprint

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Look, and stop the run on every rank if any of them found something.

        Raises:
            PreflightError: a check failed on some rank.
        """
        if stage != "fit" or trainer.world_size == 1:
            return
        seen = scene(trainer, self.cfg, self.place.path, lambda: self.fingerprint, lambda: pl_module)
        outcomes = examine(seen, QUICK)
        for outcome in outcomes:
            log.info("preflight: %s: %s: %s", outcome.check, outcome.result, outcome.figure)
        refuse(outcomes)


class Examination(Callback):
    """Runs all the checks within a trainer that then does nothing else: its process group is the one of a run.

    Args:
        cfg: the composed config.
        fingerprint: gives the data's; may raise a UserError.
        model: gives the model; may raise a UserError.
    """

    def __init__(self, cfg: DictConfig, fingerprint: Callable[[], str], model: Callable[[], nn.Module]) -> None:
        self.cfg, self.fingerprint, self.model = cfg, fingerprint, model

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Look, and leave the trainer with what came of it.

        Raises:
            ExaminedError: always.
        """
        folder = Path(self.cfg.output_dir).absolute() / self.cfg.name
        raise ExaminedError(examine(scene(trainer, self.cfg, folder, self.fingerprint, self.model), ALL))


class ExaminedError(Exception):
    """No error: carries the outcomes out of the trainer."""

    def __init__(self, outcomes: list[Outcome]) -> None:
        super().__init__("examined")
        self.outcomes = outcomes


class Nothing(LightningModule):
    """A module for a trainer that starts its processes and does not train."""

    def forward(self, *args: object) -> None:
        """Do nothing."""


def scene(
    trainer: Trainer, cfg: DictConfig, folder: Path, fingerprint: Callable[[], str], model: Callable[[], nn.Module]
) -> Scene:
    """Return what the looks look at, from within the trainer's process group."""
    words = ranks.control_group() if trainer.world_size > 1 else None
    return Scene(cfg, folder, fingerprint, model, trainer.strategy.root_device, words)


def examine(seen: Scene, looks: Mapping[str, Look]) -> list[Outcome]:
    """Look on this rank, share what was seen, and judge it; all ranks come to the same."""
    sights = {check: _sight(look, seen) for check, look in looks.items()}
    everyone: list[tuple[str, dict[str, Sight]]] = seen.gather((platform.node(), sights))
    hosts = [host for host, _ in everyone]
    return [judge(check, hosts, [of_rank[check] for _, of_rank in everyone]) for check in looks]


def _sight(look: Look, seen: Scene) -> Sight:
    """Look; a look that breaks is a finding as well, for the other ranks wait for what this one saw."""
    try:
        return look(seen)
    except probe.Wrong as wrong:
        return Sight(found=wrong.found, advice=wrong.advice)
    except UserError as error:
        return Sight(found=str(error))
    except Exception as error:
        log.exception("a check broke")
        return Sight(found=f"the check itself broke: {type(error).__name__}: {error}")


def judge(check: str, hosts: Sequence[str], sights: Sequence[Sight]) -> Outcome:
    """Compare what the ranks saw with each other; one finding for the ranks of a host that found the same."""
    first = sights[0]
    found: dict[tuple[str, str, str], list[int]] = {}
    for rank, (host, sight) in enumerate(zip(hosts, sights, strict=True)):
        both_saw = sight.alike and first.alike
        text = sight.found or (_difference(sight.alike, first.alike) if both_saw else "")
        if text:
            found.setdefault((host, text, sight.advice), []).append(rank)
    findings = [Finding(host, numbers, text, advice) for (host, text, advice), numbers in found.items()]
    return Outcome(check, first.figure or first.skipped, findings, bool(first.skipped))


def _difference(mine: Mapping[str, str], first: Mapping[str, str]) -> str:
    """Return how a rank differs from rank 0, the first few things of it; nothing where it does not."""
    differing = (name for name in {**first, **mine} if mine.get(name) != first.get(name))
    texts = [f"{name} is {mine.get(name, 'missing')} and on rank 0 {first.get(name, 'missing')}" for name in differing]
    more = len(texts) - MOST_DIFFERENCES
    return "; ".join(itertools.chain(texts[:MOST_DIFFERENCES], [f"and {more} more"] * (more > 0)))


def refuse(outcomes: Sequence[Outcome]) -> None:
    """Raise one PreflightError with all findings, if there are any."""
    lines = [f"  {outcome.check}, {finding}" for outcome in outcomes for finding in outcome.findings]
    if lines:
        raise PreflightError("The machines are not ready to train:\n" + "\n".join(lines))
