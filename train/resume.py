"""Going on with an earlier run: its newest whole checkpoint, from its folder or from its mirror in S3."""

import contextlib
import json
import logging
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from pytorch_lightning import Trainer

from train import checkpoint, ranks, screen
from train.errors import ConfigError
from train.folder import RunFolder
from train.mirror import Mirror
from train.strategies import FullySharded

log = logging.getLogger(__name__)

CLOSING_SECONDS = 15.0  # a machine that is taken away gives 30


def command(run_id: str) -> str:
    """Return the command line that goes on with this run."""
    kept = [argument for argument in sys.argv[1:] if not argument.startswith("run_id=")]
    return " ".join(["python -m train", *map(shlex.quote, kept), f"run_id={run_id}"])


def find_checkpoint(
    cfg: DictConfig, place: RunFolder, mirror: Mirror | None, trainer: Trainer, model: Any, *, fingerprint: str
) -> Path | None:
    """Return the newest whole checkpoint of this run folder, if there is one and `resume` allows: rank 0's choice.

    With resume=never, those of an earlier run are deleted: a later resume must not find them.

    Raises:
        ConfigError: the checkpoints are of another experiment than `cfg` is, or of data with another fingerprint.
    """
    if ranks.processes():  # the others run beside us; where Lightning starts them, it does so later
        ranks.join(trainer.strategy)
        trainer.strategy.connect(model)
        trainer.strategy.setup_environment()
    found = newest_of(cfg, place, mirror) if ranks.is_rank_zero() or not ranks.processes() else None
    if ranks.processes():
        found = trainer.strategy.broadcast(found)
    if found is not None:
        check_same_experiment(cfg, place, fingerprint)
        if found.is_dir() != isinstance(trainer.strategy, FullySharded):
            ours = "with trainer=fsdp" if found.is_dir() else "with the trainer that wrote it, not fsdp"
            raise ConfigError(f"{found}: go on {ours}, on any number of ranks, or give another run_id")
        log.info("going on from %s", found)
        if ranks.is_rank_zero():
            screen.console.print(f"going on from {found.name}")
    return found


def newest_of(cfg: DictConfig, place: RunFolder, mirror: Mirror | None) -> Path | None:
    """Return the newest whole checkpoint; with resume=never none, and none is left."""
    if cfg.resume == "never":
        if ranks.is_rank_zero():
            for path in place.checkpoints.glob("*.ckpt"):
                checkpoint.remove(path)
            if mirror is not None:
                mirror.clear()
        return None
    found = checkpoint.newest_whole(place.checkpoints)
    if mirror is None:
        return found
    if found is None:  # a new machine with an empty disk
        mirror.fetch()
        return checkpoint.newest_whole(place.checkpoints)
    for path in (place.checkpoints / checkpoint.BEST, found):  # a killed process may not have sent them
        if path.exists():
            mirror.offer(path)
    return found


@contextlib.contextmanager
def mirror_of(cfg: DictConfig, place: RunFolder) -> Iterator[Mirror | None]:
    """Give rank 0 the mirror that `checkpoint.mirror` names; at the end wait a little for what is pending."""
    if cfg.checkpoint.mirror is None or not ranks.is_rank_zero():
        yield None
        return
    run = f"{cfg.name}/{place.run_id}"
    mirror = Mirror(cfg.checkpoint.mirror, run, place.checkpoints, keep=cfg.checkpoint.keep)
    try:
        yield mirror
    finally:
        mirror.close(CLOSING_SECONDS)


def check_same_experiment(cfg: DictConfig, place: RunFolder, fingerprint: str) -> None:
    """Refuse to go on with another network, data or seed: it would mix two runs without a word."""
    earlier: Any = OmegaConf.to_container(OmegaConf.load(place.path / "config.yaml"))
    asked: Any = OmegaConf.to_container(cfg, resolve=True)
    differences = [
        f"  {part}.{key}: was {earlier[part].get(key)!r}, is {asked[part].get(key)!r}"
        for part in ("data", "model")
        for key in sorted({*earlier[part], *asked[part]})
        if earlier[part].get(key) != asked[part].get(key)
    ]
    if earlier["seed"] != asked["seed"]:
        differences.append(f"  seed: was {earlier['seed']}, is {asked['seed']}")
    provenance = place.path / "provenance.json"  # not there where the checkpoints come from a mirror
    of_data = json.loads(provenance.read_text())["data_fingerprint"] if provenance.exists() else fingerprint
    if not differences and of_data != fingerprint:
        raise ConfigError(
            f"run {place.run_id} has checkpoints of other data, which have changed since: their fingerprint was "
            f"{of_data}, and is {fingerprint}.\n"
            "Put the data back to go on with it, or give resume=never to start it again, or another run_id."
        )
    if differences:
        raise ConfigError(
            f"run {place.run_id} has checkpoints of another experiment:\n" + "\n".join(differences) + "\n"
            "Give the same overrides to go on with it, or resume=never to start it again, or another run_id."
        )
