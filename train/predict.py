"""Add a finished run's predictions to a table, piece by piece, in constant memory.

python -m train.predict run=runs/NAME/latest input=FILE output=FILE.parquet
"""

from __future__ import annotations

import os
import sys
from base64 import b64encode
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypedDict

import hydra
from omegaconf import DictConfig

from train import errors
from train.config import arguments
from train.config.check import check

if TYPE_CHECKING:
    import pyarrow as pa

SUFFIXES = (".csv", ".parquet")


class PredictSettings(TypedDict):
    """The keys of configs/predict.yaml."""

    run: str
    input: str
    output: str
    decision: str
    prefix: str
    data: dict[str, Any]
    accelerator: Literal["auto", "cpu", "gpu"]


def predict(cfg: DictConfig) -> int:
    """Write `input` with the columns that the run's model adds to `output`; return the number of rows.

    Raises:
        ConfigError: there is no such run, or the output's name or columns will not do.
        DataError: the input cannot be read or lacks a column.
        StorageError: the run is not finished, or the output cannot be written.
    """
    from train.finished import open_run, unseen

    output = checked_output(cfg.output, cfg.input)
    run = open_run(cfg.run, cfg.data)

    from train import screen

    model, datamodule = run.model(), run.datamodule()
    device = device_of(cfg.accelerator)
    model.to(device)
    num_rows = 0
    with whole_or_nothing(output) as aside, screen.console.status("reading") as status:
        writer = None
        for batch, inputs in reading(datamodule.iter_other(cfg.input, model.schema)):
            with errors.reporting(errors.ConfigError):
                inputs = {name: tensor.to(device) for name, tensor in inputs.items()}
                columns = model.predict_columns(inputs, decision=cfg.decision)
            table = extended(batch, {cfg.prefix + name: values for name, values in columns.items()})
            table = table if output.suffix == ".parquet" else without_bytes(table)
            with errors.reporting(errors.StorageError):
                writer = writer or open_writer(aside, output.suffix, table.schema)
                writer.write_batch(table)
            num_rows += len(table)
            status.update(f"{num_rows:,} rows")
        if writer is not None:
            with errors.reporting(errors.StorageError):
                writer.close()
    screen.show_notes([*datamodule.notes, *unseen(datamodule)])
    screen.console.print(f"[bold]{num_rows:,} rows[/]  {output}", soft_wrap=True)
    return num_rows


def checked_output(output: str, source: str) -> Path:
    """Return the path to write. Raises ConfigError if nothing can or should be written there."""
    path = Path(output).expanduser()
    if path.suffix not in SUFFIXES or "://" in output:
        raise errors.ConfigError(f"output: {output!r} must be a local file that ends in {' or '.join(SUFFIXES)}")
    if not path.parent.is_dir():
        raise errors.ConfigError(f"output: there is no folder '{path.parent}'")
    if path.exists() and Path(source).expanduser().exists() and path.samefile(Path(source).expanduser()):
        raise errors.ConfigError(f"output: {output!r} is the input; give another name")
    return path


def device_of(accelerator: str) -> str:
    """Return the name of the device. Raises ConfigError for a GPU that is not there."""
    import torch

    if accelerator == "gpu" and not torch.cuda.is_available():
        raise errors.ConfigError("accelerator=gpu: this machine has no GPU that torch can use; take accelerator=cpu")
    return "cuda" if accelerator != "cpu" and torch.cuda.is_available() else "cpu"


@contextmanager
def whole_or_nothing(path: Path) -> Iterator[Path]:
    """Give a temporary name beside `path`, renamed to it if all went well and removed if not."""
    aside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield aside
        with errors.reporting(errors.StorageError):
            os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)


def reading(batches: Iterator[Any]) -> Iterator[Any]:
    """Hand batches on; what goes wrong while reading is the data's."""
    while True:
        with errors.reporting(errors.DataError):
            batch = next(batches, None)
        if batch is None:
            return
        yield batch


def extended(batch: pa.RecordBatch, columns: Mapping[str, Any]) -> pa.RecordBatch:
    """Return the batch with further columns at its end. Raises ConfigError if it has one of that name."""
    import pyarrow as pa

    for name, values in columns.items():
        if name in batch.schema.names:
            raise errors.ConfigError(f"the input has a column {name!r} already: give prefix=TEXT for the added ones")
        batch = batch.append_column(name, pa.array(values))
    return batch


def without_bytes(batch: pa.RecordBatch) -> pa.RecordBatch:
    """Return the batch with bytes, which CSV cannot hold, as texts in base64."""
    import pyarrow as pa

    for place, field in enumerate(batch.schema):
        if pa.types.is_binary(field.type) or pa.types.is_large_binary(field.type):
            told = [None if value is None else b64encode(value).decode() for value in batch.column(place).to_pylist()]
            batch = batch.set_column(place, field.name, pa.array(told, pa.large_string()))
    return batch


def open_writer(path: Path, suffix: str, schema: pa.Schema) -> Any:
    """Open a Parquet or CSV file of these columns. Raises ConfigError for a column of lists in CSV."""
    from pyarrow import csv, parquet, types

    nested = [field.name for field in schema if types.is_nested(field.type)]
    if nested and suffix == ".csv":
        raise errors.ConfigError(f"output: CSV cannot hold the column {nested[0]!r}; write .parquet")
    return parquet.ParquetWriter(path, schema) if suffix == ".parquet" else csv.CSVWriter(path, schema)


@hydra.main(version_base="1.3", config_path="pkg://configs", config_name="predict")
def main(cfg: DictConfig) -> None:
    """Check the composed config, then predict."""
    with errors.job():
        check(cfg, PredictSettings, {})
        predict(cfg)


if __name__ == "__main__":
    sys.argv[1:] = arguments.in_order(sys.argv[1:])
    sys.exit(errors.guard(main, "predict"))
