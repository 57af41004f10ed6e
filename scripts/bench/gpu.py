"""Rows per second, MFU, memory and waiting of a whole run on one GPU against a plain compiled loop of the same model.

python scripts/bench/gpu.py                                  # a transformer over columns, batch 8,192, 5 rounds
python scripts/bench/gpu.py model=tabm data.batch_size=65536 # other overrides of the experiment, for both sides
python scripts/bench/gpu.py --device cpu --rows 5000 --rounds 1 data.batch_size=512 model.compile=false

Ours is `train.run.run` in bf16-mixed and compiled, with TensorBoard, progress bar and checkpoints on. The plain loop
has the same network and rows on the same device, index batches, bf16 autocast, torch.compile and fused AdamW. Each
measurement is a process of its own; the first epoch, in which everything is compiled, is timed on neither side. MFU is
the share of the card's dense bf16 peak that the matrix products of forward and backward come to. Rounds are
interleaved; a figure is the median, of the ratio with the lowest and highest.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet

LIMIT = 0.97
COLUMNS = ("numeric", "categorical", "timestamp", "target")
MODEL = ["model=ft_transformer", "model.width=256", "model.num_heads=8", "model.num_blocks=4", "model.compile=true"]


def overrides(folder: Path, options: argparse.Namespace) -> list[str]:
    """The fraud experiment on the made-up table; those of the command line have the last word."""
    return [
        "experiment=fraud",
        "data=fraud_table",
        f"data.path={folder / 'table.parquet'}",
        "data.target=Class",
        "data.cost_false_negative=1.0",
        "data.batch_size=8192",
        *(
            MODEL
            if not any(override.startswith("model=") for override in options.overrides)
            else ["model.compile=true"]
        ),
        "model.ema_decay=null",
        "model.gradient_clip=null",
        "model.schedule=constant",
        "baselines=none",
        "patience=null",
        "trainer=cpu" if options.device == "cpu" else "trainer=auto",
        *([] if options.device == "cpu" else ["trainer.devices=1"]),
        "+trainer.precision=bf16-mixed",
        f"trainer.max_epochs={options.epochs}",
        "+trainer.limit_val_batches=0",
        f"output_dir={folder / 'runs'}",
        *options.overrides,
    ]


def make_table(path: Path, rows: int) -> None:
    """Write a table of the shape of the ULB card data: 30 floats and a rare class."""
    generator = np.random.default_rng(0)
    x = generator.standard_normal((rows, 30)).astype(np.float32)
    y = (x[:, 0] + x[:, 1] * x[:, 2] + generator.standard_normal(rows) > 3.5).astype(np.int8)
    pa.parquet.write_table(pa.table({**{f"V{index}": x[:, index] for index in range(30)}, "Class": y}), path)


def work(options: argparse.Namespace) -> None:
    """Be the process of one measurement."""
    from hydra import compose, initialize_config_module

    warnings.simplefilter("ignore")
    folder = Path(options.folder)
    with initialize_config_module("configs", version_base="1.3"):
        cfg = compose("train", overrides(folder, options))
    (ours if options.side == "ours" else plain)(cfg, options.device, folder / "answer.json")


def now(device: str) -> float:
    """Seconds, once the device has done what it was given."""
    import torch

    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def finish(answer: Path, device: str, **figures: float | str) -> None:
    """Write the figures and end here: what a run does after training is not what is timed."""
    import torch

    from train.meters import peak_flops

    memory = torch.cuda.max_memory_allocated() / 2**30 if device == "cuda" else float("nan")
    card = torch.cuda.get_device_name() if device == "cuda" else "CPU"
    peak = peak_flops(torch.device(device))
    answer.write_text(json.dumps({**figures, "memory": memory, "card": card, "peak": peak}))
    os._exit(0)


def ours(cfg: Any, device: str, answer: Path) -> None:
    """Train with `train.run.run`, with a stopwatch among the callbacks."""
    import pytorch_lightning as pl
    from rich.console import Console

    from train import run as run_module
    from train import screen

    class Stopwatch(pl.Callback):
        """Times the epochs after the first, checkpoints and logging included."""

        def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
            if trainer.current_epoch == 1:
                self.start, loader = now(device), trainer.train_dataloader
                self.rows, self.waiting = loader.rows_seen, loader.seconds_waiting

        def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
            seconds, loader = now(device) - self.start, trainer.train_dataloader
            speed, waiting = (loader.rows_seen - self.rows) / seconds, (loader.seconds_waiting - self.waiting) / seconds
            finish(answer, device, speed=speed, waiting=waiting)

    make_trainer = run_module.make_trainer

    def with_watch(*arguments: object, **named: object) -> object:
        trainer, parts = make_trainer(*arguments, **named)
        trainer.callbacks.append(Stopwatch())  # last: what the others do at the end is timed
        return trainer, parts

    run_module.make_trainer = with_watch
    screen.console = Console(file=open(os.devnull, "w"), force_terminal=True)  # noqa: SIM115
    run_module.run(cfg)


def plain(cfg: Any, device: str, answer: Path) -> None:
    """Train with PyTorch alone; count the operations of a step as well."""
    import torch
    from hydra.utils import instantiate
    from torch.nn.functional import binary_cross_entropy_with_logits
    from torch.utils.flop_counter import FlopCounterMode

    torch.set_float32_matmul_precision("high")
    datamodule = instantiate(cfg.data, _convert_="all")
    datamodule.setup()
    tensors = {name: datamodule.tensors["train"][name].to(device) for name in COLUMNS}
    torch.manual_seed(0)
    model = {**cfg.model, "compile": False}
    network = instantiate(model, _partial_=True, _convert_="all")(schema=datamodule.schema).network.to(device).train()
    optimizer = torch.optim.AdamW(
        network.parameters(), lr=cfg.model.lr, weight_decay=cfg.model.weight_decay, fused=True
    )

    def backward(index: torch.Tensor, forward: Any) -> None:
        numeric, categorical, timestamp, target = (tensors[name][index] for name in COLUMNS)
        with torch.autocast(device, torch.bfloat16):
            logits = forward(numeric, categorical, timestamp)
            loss = binary_cross_entropy_with_logits(logits, target.unsqueeze(1).expand_as(logits))
        loss.backward()

    rows, batch_size = len(tensors["target"]), min(cfg.data.batch_size, len(tensors["target"]))
    with FlopCounterMode(display=False) as counter:
        backward(torch.arange(batch_size, device=device), network)
    optimizer.zero_grad()
    forward, start = torch.compile(network) if cfg.model.compile else network, 0.0
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    for epoch in range(cfg.trainer.max_epochs):
        if epoch == 1:
            start = now(device)
        for index in torch.randperm(rows, device=device).split(batch_size):
            backward(index, forward)
            optimizer.step()
            optimizer.zero_grad()
    speed = rows * (cfg.trainer.max_epochs - 1) / (now(device) - start)
    finish(answer, device, speed=speed, flops=counter.get_total_flops() / batch_size)


def measure(side: str, folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Figures of one side in a fresh process."""
    answer = folder / "answer.json"
    answer.unlink(missing_ok=True)
    command = [sys.executable, __file__, *options.overrides, "--side", side, "--folder", str(folder)]
    command += ["--device", options.device, "--epochs", str(options.epochs)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=options.timeout, check=False)
    if not answer.exists():
        raise SystemExit(f"{side} failed:\n{done.stdout}\n{done.stderr}")
    figures: dict[str, Any] = json.loads(answer.read_text())
    return figures


def show(found: list[tuple[dict[str, Any], dict[str, Any]]], peak_tflops: float | None) -> float:
    """Print the figures of both sides; return the ratio."""
    card, flops = found[0][1]["card"], found[0][1]["flops"]
    peak = peak_tflops or found[0][1]["peak"] / 1e12
    print(f"{card}, {flops / 1e6:.2f} MFLOP per row, peak {peak:.3g} TFLOP/s")
    for number, side in enumerate(("ours", "plain")):
        speed, memory = (statistics.median(pair[number][key] for pair in found) for key in ("speed", "memory"))
        mfu = speed * flops / peak / 1e12
        print(f"{side:5} {speed:12,.0f} rows/s   MFU {mfu:6.1%}   memory {memory:6.2f} GiB")
    print(f"ours waits for data {statistics.median(pair[0]['waiting'] for pair in found):.2%} of the time")
    ratios = [mine["speed"] / theirs["speed"] for mine, theirs in found]
    middle = statistics.median(ratios)
    print(f"{middle:.2f} ({min(ratios):.2f}-{max(ratios):.2f}) of the plain compiled loop (limit {LIMIT})")
    return middle


def main() -> int:
    """Print the figures of both sides; 1 if the ratio is below the limit."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("overrides", nargs="*", help="of the experiment, for both sides")
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--rows", type=int, default=2_000_000)
    parser.add_argument("--epochs", type=int, default=4, help="the first is not timed")
    parser.add_argument("--peak-tflops", type=float, help="of the card in bf16, if not the data sheet's")
    parser.add_argument("--timeout", type=float, default=1200, help="seconds for one measurement")
    for name in ("side", "folder"):
        parser.add_argument(f"--{name}", help=argparse.SUPPRESS)  # of the process of one measurement
    options = parser.parse_args()
    if options.side:
        work(options)
    if options.epochs < 2:
        parser.error(f"--epochs must be at least 2, since the first is not timed; got {options.epochs}")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        make_table(folder / "table.parquet", options.rows)
        found = [(measure("ours", folder, options), measure("plain", folder, options)) for _ in range(options.rounds)]
    return int(show(found, options.peak_tflops) < LIMIT)


if __name__ == "__main__":
    sys.exit(main())
