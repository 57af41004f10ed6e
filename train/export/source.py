"""What an export starts from: a finished run's model, and its data as they were."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from omegaconf import DictConfig, OmegaConf

from train import errors, screen
from train.checkpoint import BEST, is_whole
from train.finished import FinishedRun, open_run

if TYPE_CHECKING:
    from torch import Tensor

Arrays = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class Source:
    """A run that is exported.

    Attributes:
        run: the finished run.
        cfg: its whole config.
        model: of the best checkpoint.
        datamodule: set up on the run's own data.
        result: its result.json.
        provenance: its provenance.json.
    """

    run: FinishedRun
    cfg: DictConfig
    model: Any
    datamodule: Any
    result: Mapping[str, Any]
    provenance: Mapping[str, Any]

    @property
    def metric(self) -> str:
        """The monitored metric, without its split."""
        return str(self.cfg.monitor).partition("/")[2]

    def training_batches(self, num_rows: int) -> list[dict[str, Tensor]]:
        """The first shuffled training batches that together have as many rows."""
        return list(_up_to(num_rows, _flat(self.datamodule.train_dataloader())))

    def raw(self, num_rows: int) -> Arrays:
        """Real rows as a caller has them: of the validation split, or of training where there is none."""
        split = "val" if self.datamodule.val_dataloader() else "train"
        found: Arrays = self.datamodule.raw_inputs(split, num_rows)
        return found


def open_source(folder: str, data: Mapping[str, Any]) -> Source:
    """Open a finished run and read its data again.

    Raises:
        ConfigError: there is no such run.
        DataError: the data cannot be read, or are not those of the run.
        StorageError: the run is not finished, or damaged.
    """
    run = open_run(folder, data)
    read = {name: _read(run.path / f"{name}.json") for name in ("result", "provenance")}
    best = run.path / "checkpoints" / BEST
    if read["result"]["best"]["value"] is not None and not is_whole(best):
        raise errors.StorageError(
            f"the best checkpoint, {best}, is missing or torn: another would not be what was tested"
        )
    model, datamodule = run.model(), run.datamodule()
    with errors.reporting(errors.DataError), screen.console.status("reading the run's data"):
        datamodule.prepare_data()
        datamodule.setup("fit")
    then, now = read["provenance"]["data_fingerprint"], datamodule.fingerprint
    if then != now:
        raise errors.DataError(
            f"the data are not those that {run.path.name} was trained on (fingerprint {now}, then {then}): its metrics "
            "would not be comparable. Give the old data (+data.path=FILE if they have moved), or train again."
        )
    if datamodule.schema != model.schema:
        raise errors.DataError("the checkpoint is of another schema than the data give now: train again")
    cfg = OmegaConf.load(run.path / "config.yaml")
    assert isinstance(cfg, DictConfig)
    del cfg["defaults"]  # Hydra's
    return Source(run, cfg, model, datamodule, read["result"], read["provenance"])


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise errors.StorageError(f"{path} cannot be read ({error}): the run is damaged, train again") from error


def arrays(batch: Mapping[str, Tensor], names: list[str]) -> Arrays:
    """The named tensors of a batch as arrays."""
    return {name: np.ascontiguousarray(batch[name].cpu().numpy()) for name in names}


def _flat(loader: Any) -> Iterator[dict[str, Tensor]]:
    """Mini-batches of a loader, which may hand over several at a time."""
    for given in islice(loader, 10_000):
        yield from given if isinstance(given, list) else [given]


def _up_to(num_rows: int, batches: Iterator[dict[str, Tensor]]) -> Iterator[dict[str, Tensor]]:
    seen = 0
    for batch in batches:
        yield batch
        seen += len(next(iter(batch.values())))
        if seen >= num_rows:
            return
