"""sweep.yaml: what a study's folder keeps of the sweep: a report needs nothing else but the storage."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hydra import initialize_config_module
from omegaconf import DictConfig, OmegaConf

from train import folder
from train.errors import ConfigError
from train.sweep.configuration import Configuration
from train.sweep.plan import Plan
from train.sweep.space import parse

FILE = "sweep.yaml"
_HEAD = "# What was asked for. Written at each start of the sweep; read by `python -m train.sweep report=FOLDER`.\n"


def write(plan: Plan) -> None:
    """Keep the config and the command line of a sweep, without the password of its storage.

    Raises:
        StorageError: the folder cannot be written.
    """
    cfg: Any = OmegaConf.to_container(plan.cfg, resolve=True)
    if cfg["storage"] is not None:
        cfg["storage"] = folder.masked(cfg["storage"])
    content = {
        "total": plan.total,
        "pinned": list(plan.pinned),
        "overrides": [line for line in plan.configuration.overrides if not line.lstrip("+").startswith("storage=")],
        "cfg": cfg,
    }
    folder.write_text(plan.folder / FILE, _HEAD + OmegaConf.to_yaml(OmegaConf.create(content)))


def read(place: Path, storage: str | None) -> Plan:
    """The plan of the sweep whose folder this is, for a report: its trials' configs cannot be made from it.

    Args:
        place: the study's folder, wherever it is now.
        storage: where the study is; None for where the sweep had it.

    Raises:
        ConfigError: it is no such folder, or the storage's password is needed.
    """
    path = place / FILE
    if not path.is_file():
        raise ConfigError(f"report: {str(place)!r} is no folder of a study{_hint(place)}: it has no {FILE}")
    there = OmegaConf.load(path)
    assert isinstance(there, DictConfig)
    there.cfg.storage = storage or there.cfg.storage
    if there.cfg.storage is not None and "***" in there.cfg.storage:
        raise ConfigError(
            f"report: the study is in {there.cfg.storage}, and no password is kept in files: add storage=URI with it"
        )
    with initialize_config_module("configs", version_base="1.3"):
        configuration = Configuration("sweep", there.overrides)
    plain: Any = OmegaConf.to_container(there)
    space = parse(plain["cfg"]["space"]).without(plain["pinned"])
    return Plan(there.cfg, configuration, space, tuple(plain["pinned"]), place.absolute(), [], {}, plain["total"])


def _hint(place: Path) -> str:
    studies = sorted(path.parent for path in place.glob(f"*/{FILE}"))
    return f"; did you mean '{studies[0]}'?" if studies else ""
