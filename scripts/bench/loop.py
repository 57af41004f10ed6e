"""Steps per second of a whole run against a plain PyTorch loop and a naive Lightning set-up, in one process.

python scripts/bench/loop.py                      # batch 256 and 4,096, MLP and TabM, 5 rounds
python scripts/bench/loop.py --rounds 1 --rows 40000

`mlp` is the smallest step, 30 floats through 128 and 128 units without dropout or bins; `tabm` is the default recipe.
Ours is `train.run.run` with TensorBoard, progress bar and checkpoints on. The plain loop has the same network, the same
rows on the same device, index batches, fused AdamW and nothing else. Naive is what a tutorial shows: DataLoader,
automatic optimization, self.log, Lightning's own bar, logger and checkpoint. Averaged weights and clipping are off in
all three, so that a step is as short as it gets and the cost of the framework weighs most. Nobody validates. Rounds are
interleaved; a figure is the median of the rounds' ratios, with the lowest and highest.
"""

import argparse
import contextlib
import logging
import os
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytorch_lightning as pl
import torch
from hydra import compose, initialize_config_module
from hydra.utils import instantiate
from omegaconf import DictConfig
from pytorch_lightning.callbacks import Callback
from rich.console import Console
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from train import run as run_module
from train import screen

COLUMNS = ("numeric", "categorical", "timestamp", "target")
FAMILIES = {
    "mlp": ["model=mlp", "model.width=128", "model.dropout=0", "data.num_thresholds=0"],
    "tabm": ["model=tabm"],
}


def configure(folder: Path, family: str, batch_size: int, epochs: int) -> DictConfig:
    """Compose the fraud experiment on the made-up table, stripped to the shortest step."""
    return compose(
        "train",
        [
            "experiment=fraud",
            "data=fraud_table",
            f"data.path={folder / 'table.parquet'}",
            "data.target=Class",
            "data.cost_false_negative=1.0",
            f"data.batch_size={batch_size}",
            *FAMILIES[family],
            "model.ema_decay=null",
            "model.gradient_clip=null",
            "model.schedule=constant",
            "baselines=none",
            "patience=null",
            "trainer=cpu",
            f"trainer.max_epochs={epochs}",
            "+trainer.limit_val_batches=0",
            f"output_dir={folder / 'runs'}",
        ],
    )


def make_table(path: Path, rows: int) -> None:
    """Write a table of the shape of the ULB card data: 30 floats and a rare class."""
    generator = np.random.default_rng(0)
    x = generator.standard_normal((rows, 30)).astype(np.float32)
    y = (x[:, 0] + x[:, 1] * x[:, 2] + generator.standard_normal(rows) > 3.5).astype(np.int8)
    columns = {f"V{index}": x[:, index] for index in range(30)}
    pa.parquet.write_table(pa.table({**columns, "Class": y}), path)


class Stopwatch(Callback):
    """Seconds between the start and the end of training, checkpoints and logging included."""

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self.clock = clock

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start."""
        self.start = self.clock()

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Stop."""
        self.steps = trainer.global_step
        self.steps_per_second = self.steps / (self.clock() - self.start)


def ours(cfg: DictConfig, clock: Callable[[], float] = time.perf_counter) -> float:
    """Steps per second of our run's training."""
    watch = Stopwatch(clock)
    make_trainer = run_module.make_trainer

    def with_watch(*arguments: object) -> object:
        trainer, parts = make_trainer(*arguments)
        trainer.callbacks.insert(0, watch)
        return trainer, parts

    class Timed(Exception):
        """Training is over; the test that follows is not what is timed."""

    def stop(*_: object, **__: object) -> None:
        raise Timed

    tested, run_module.make_trainer, run_module.test = run_module.test, with_watch, stop
    try:
        with contextlib.suppress(Timed):
            run_module.run(cfg)
    finally:
        run_module.make_trainer, run_module.test = make_trainer, tested
    return watch.steps_per_second


def plain(module: pl.LightningModule, tensors: dict[str, Tensor], cfg: DictConfig) -> float:
    """Steps per second of a plain loop."""
    network, batch_size = module.network.train(), cfg.data.batch_size
    optimizer = torch.optim.AdamW(
        network.parameters(), lr=cfg.model.lr, weight_decay=cfg.model.weight_decay, fused=True
    )
    rows, steps = len(tensors["target"]), 0
    start = time.perf_counter()
    for _ in range(cfg.trainer.max_epochs):
        for index in torch.randperm(rows).split(batch_size):
            numeric, categorical, timestamp, target = (tensors[name][index] for name in COLUMNS)
            logits = network(numeric, categorical, timestamp)
            loss = nn.functional.binary_cross_entropy_with_logits(logits, target.unsqueeze(1).expand_as(logits))
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            steps += 1
    return steps / (time.perf_counter() - start)


class Naive(pl.LightningModule):
    """The tutorial's module around the same network."""

    def __init__(self, network: nn.Module, lr: float, weight_decay: float) -> None:
        super().__init__()
        self.network, self.lr, self.weight_decay = network, lr, weight_decay

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        """Loss of one batch."""
        numeric, categorical, timestamp, target = batch
        logits = self.network(numeric, categorical, timestamp)
        loss = nn.functional.binary_cross_entropy_with_logits(logits, target.unsqueeze(1).expand_as(logits))
        self.log("train/loss", loss, prog_bar=True)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """AdamW."""
        return torch.optim.AdamW(self.parameters(), lr=self.lr, weight_decay=self.weight_decay)


def naive(module: pl.LightningModule, tensors: dict[str, Tensor], cfg: DictConfig, folder: Path) -> float:
    """Steps per second of the tutorial's set-up, over 600 steps."""
    loader = DataLoader(TensorDataset(*(tensors[name] for name in COLUMNS)), cfg.data.batch_size, shuffle=True)
    watch = Stopwatch()
    trainer = pl.Trainer(
        accelerator="cpu",
        devices=1,
        max_steps=600,
        max_epochs=50,
        callbacks=[watch],
        default_root_dir=folder,
    )
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere):
        trainer.fit(Naive(module.network, cfg.model.lr, cfg.model.weight_decay), loader)
    return watch.steps_per_second


def main() -> None:
    """Print the ratios of every family and batch size."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--rows", type=int, default=284_807)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--families", nargs="+", default=list(FAMILIES), choices=list(FAMILIES))
    parser.add_argument("--batch-sizes", nargs="+", type=int, default=[256, 4096])
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    warnings.simplefilter("ignore")
    print(f"{options.rows:,} rows x 30 floats, 64 % train; {options.threads} thread(s), {options.rounds} rounds")
    print("median of the rounds' ratios of steps/s (lowest-highest)")
    with tempfile.TemporaryDirectory() as temporary, initialize_config_module("configs", version_base="1.3"):
        folder = Path(temporary)
        make_table(folder / "table.parquet", options.rows)
        for family in options.families:
            for batch_size in options.batch_sizes:
                compare(folder, family, batch_size, options.rounds)


def compare(folder: Path, family: str, batch_size: int, rounds: int) -> None:
    """Measure one family at one batch size, rounds interleaved, after a warm-up of each."""
    cfg = configure(folder, family, batch_size, epochs=2 if batch_size < 1000 else 4)
    short = configure(folder, family, batch_size, epochs=1)
    datamodule = instantiate(cfg.data, _convert_="all")
    datamodule.setup()
    tensors = datamodule.tensors["train"]

    def fresh() -> pl.LightningModule:
        torch.manual_seed(0)
        return instantiate(cfg.model, _partial_=True, _convert_="all")(schema=datamodule.schema)

    console, screen.console = screen.console, Console(file=open(os.devnull, "w"), force_terminal=True)  # noqa: SIM115
    try:
        for warm_up in (
            lambda: ours(short),
            lambda: plain(fresh(), tensors, short),
            lambda: naive(fresh(), tensors, short, folder),
        ):
            warm_up()
        found = [(ours(cfg), plain(fresh(), tensors, cfg), naive(fresh(), tensors, cfg, folder)) for _ in range(rounds)]
    finally:
        screen.console = console
    for name, ratios in (("plain", [a / b for a, b, _ in found]), ("naive Lightning", [a / c for a, _, c in found])):
        middle = statistics.median(ratios)
        print(
            f"{family:5} batch {batch_size:5}: {middle:5.2f} of {name:15} ({min(ratios):.2f}-{max(ratios):.2f})"
            f"   ours {statistics.median(a for a, _, _ in found):7.1f} steps/s",
            flush=True,
        )


if __name__ == "__main__":
    main()
