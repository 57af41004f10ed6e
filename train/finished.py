"""A finished run out of its folder: the config, the model of the best checkpoint, the data module without its data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict

from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from train import errors
from train.config.check import check
from train.config.settings import Node
from train.config.target import locate


class RunNodes(TypedDict):
    """The nodes of a run's config that scoring other data needs."""

    data: Node
    model: Node


@dataclass(frozen=True)
class FinishedRun:
    """A run that came to its end.

    Attributes:
        path: its folder, links resolved.
        cfg: its config, nodes `data` and `model`.
    """

    path: Path
    cfg: DictConfig

    def datamodule(self) -> Any:
        """Return the data module as constructed: nothing is read yet."""
        return instantiate(self.cfg.data, _convert_="all")

    def model(self) -> Any:
        """Return the model of the best checkpoint, on the CPU, ready to predict.

        Raises:
            StorageError: there is no checkpoint that is whole, or it is of another model.
        """
        from train.checkpoint import best_whole

        best = best_whole(self.path / "checkpoints")
        if best is None:
            raise errors.StorageError(f"{self.path / 'checkpoints'} has no checkpoint that is whole: train again")
        kind: Any = locate(self.cfg.model._target_)
        try:
            return kind.load_from_checkpoint(best, map_location="cpu", weights_only=True).eval()
        except RuntimeError as error:  # torch: keys or sizes that do not fit
            raise errors.StorageError(f"{best} is of another model than the run's config: {error}") from error


def open_run(folder: str, data: Mapping[str, Any]) -> FinishedRun:
    """Find a finished run and check its config; imports no torch.

    Args:
        folder: run folder, or a link to one.
        data: parameters of the run's data module that take the place of the run's own.

    Raises:
        ConfigError: there is no run, or its config no longer fits the code.
        StorageError: the run is not finished.
    """
    path = Path(folder).expanduser().resolve()
    if not (path / "config.yaml").is_file():
        raise errors.ConfigError(f"run: {folder!r} is no run folder: it has no config.yaml{_hint(path)}")
    if not (path / "result.json").is_file():
        raise errors.StorageError(
            f"run: {folder!r} is not finished: it has no result.json. Wait for it, or go on with it: "
            f"python -m train experiment={path.parent.name} run_id={path.name}"
        )
    whole = OmegaConf.load(path / "config.yaml")
    cfg = OmegaConf.create({"data": OmegaConf.merge(whole.data, data), "model": whole.model})
    check(cfg, RunNodes)
    return FinishedRun(path, cfg)


def unseen(datamodule: Any) -> list[str]:
    """One line for each column of other data with values that training did not see."""
    return [
        f"{count:,} values of {name} were not seen in training: taken as unknown"
        for name, count in datamodule.unseen.items()
    ]


def _hint(path: Path) -> str:
    if (path / "latest").exists():
        return f"; did you mean '{path / 'latest'}'?"
    return "" if path.exists() else "; there is no such folder"
