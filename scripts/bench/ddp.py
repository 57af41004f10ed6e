"""Steps per second of a whole run in two processes against a plain PyTorch DDP loop, and what the second process buys.

python scripts/bench/ddp.py                       # TabM and a small transformer, batch 256, 5 rounds
python scripts/bench/ddp.py --rounds 1 --rows 20000 --families tabm

Ours is `train.run.run` under torchrun with TensorBoard, progress bar and checkpoints on. The plain loop has the same
network and rows, index batches, fused AdamW and DistributedDataParallel at its best (gradients as views of its buckets,
buffers not sent). Both use gloo and one thread per process, each measurement in processes of its own. The batch is the
global one, so that a second process halves the rows of each. Averaged weights and clipping are off in both, so that a
step is as short as it gets; nobody validates. The clock of both starts after the same number of steps. Rounds are
interleaved; a figure is the median of the rounds' ratios, with the lowest and highest.
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

import numpy as np
import pyarrow as pa
import pyarrow.parquet

LIMIT = 0.95
WARM_UP_STEPS = 64
FAMILIES = {"tabm": "tabm", "transformer": "ft_transformer"}
COLUMNS = ("numeric", "categorical", "timestamp", "target")


def overrides(folder: Path, options: argparse.Namespace, num_processes: int) -> list[str]:
    """The fraud experiment on the made-up table, stripped to the shortest step."""
    return [
        "experiment=fraud",
        "data=fraud_table",
        f"data.path={folder / 'table.parquet'}",
        "data.target=Class",
        "data.cost_false_negative=1.0",
        f"data.batch_size={options.batch_size}",
        f"model={FAMILIES[options.family]}",
        "model.ema_decay=null",
        "model.gradient_clip=null",
        "model.schedule=constant",
        "baselines=none",
        "patience=null",
        *(["trainer=ddp", "trainer.accelerator=cpu"] if num_processes > 1 else ["trainer=cpu"]),
        f"trainer.max_epochs={options.epochs}",
        "+trainer.limit_val_batches=0",
        f"output_dir={folder / 'runs'}",
    ]


def make_table(path: Path, rows: int) -> None:
    """Write a table of the shape of the ULB card data: 30 floats and a rare class."""
    generator = np.random.default_rng(0)
    x = generator.standard_normal((rows, 30)).astype(np.float32)
    y = (x[:, 0] + x[:, 1] * x[:, 2] + generator.standard_normal(rows) > 3.5).astype(np.int8)
    columns = {f"V{index}": x[:, index] for index in range(30)}
    pa.parquet.write_table(pa.table({**columns, "Class": y}), path)


def work(options: argparse.Namespace) -> None:
    """Be one process of a measurement; rank 0 writes its steps per second."""
    import torch
    from hydra import compose, initialize_config_module

    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    folder, world_size = Path(options.folder), int(os.environ.get("WORLD_SIZE", "1"))
    with initialize_config_module("configs", version_base="1.3"):
        cfg = compose("train", overrides(folder, options, world_size))
    (ours if options.side == "ours" else plain)(cfg, folder / "speed.json")


def finish(steps: int, seconds: float, answer: Path) -> None:
    """Write the figure and end here: what a run does after training is not what is timed."""
    if int(os.environ.get("RANK", "0")) == 0:
        answer.write_text(json.dumps(steps / seconds))
    sys.stdout.flush()
    os._exit(0)


def ours(cfg: object, answer: Path) -> None:
    """Train with `train.run.run`, with a stopwatch among the callbacks."""
    import pytorch_lightning as pl
    from rich.console import Console

    from train import run as run_module
    from train import screen

    class Stopwatch(pl.Callback):
        """Times training from the first call after the warm-up to the end, checkpoints and logging included."""

        start = None

        def on_train_batch_end(self, trainer: pl.Trainer, *_: object) -> None:
            if self.start is None and trainer.global_step >= WARM_UP_STEPS:
                self.start, self.first = time.perf_counter(), trainer.global_step

        def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
            finish(trainer.global_step - self.first, time.perf_counter() - self.start, answer)

    make_trainer = run_module.make_trainer

    def with_watch(*arguments: object, **named: object) -> object:
        trainer, parts = make_trainer(*arguments, **named)
        trainer.callbacks.append(Stopwatch())  # last: what the others do at the end is timed
        return trainer, parts

    run_module.make_trainer = with_watch
    screen.console = Console(file=open(os.devnull, "w"), force_terminal=True)  # noqa: SIM115
    run_module.run(cfg)


def plain(cfg: object, answer: Path) -> None:
    """Train with PyTorch alone."""
    import torch
    from hydra.utils import instantiate
    from torch.nn.functional import binary_cross_entropy_with_logits
    from torch.nn.parallel import DistributedDataParallel

    rank, world_size = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    datamodule = instantiate(cfg.data, _convert_="all")
    datamodule.setup()
    tensors = datamodule.tensors["train"]
    torch.manual_seed(0)
    network = instantiate(cfg.model, _partial_=True, _convert_="all")(schema=datamodule.schema).network.train()
    if world_size > 1:
        torch.distributed.init_process_group("gloo")
        network = DistributedDataParallel(network, gradient_as_bucket_view=True, broadcast_buffers=False)
    optimizer = torch.optim.AdamW(
        network.parameters(), lr=cfg.model.lr, weight_decay=cfg.model.weight_decay, fused=True
    )
    steps, start = 0, 0.0
    order = torch.Generator().manual_seed(0)  # its own, since dropout draws differ between ranks
    for _ in range(cfg.trainer.max_epochs):
        for batch in torch.randperm(len(tensors["target"]), generator=order).split(cfg.data.batch_size):
            index = batch[rank::world_size]
            numeric, categorical, timestamp, target = (tensors[name][index] for name in COLUMNS)
            logits = network(numeric, categorical, timestamp)
            loss = binary_cross_entropy_with_logits(logits, target.unsqueeze(1).expand_as(logits))
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            steps += 1
            if steps == WARM_UP_STEPS:
                start = time.perf_counter()
    finish(steps - WARM_UP_STEPS, time.perf_counter() - start, answer)


def measure(side: str, num_processes: int, folder: Path, options: argparse.Namespace) -> float:
    """Steps per second of one side in fresh processes."""
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={num_processes}"]
    command = [sys.executable, *(launcher if num_processes > 1 else []), __file__, "--side", side]
    for name in ("family", "batch_size", "epochs"):
        command += [f"--{name.replace('_', '-')}", str(getattr(options, name))]
    answer = folder / "speed.json"
    answer.unlink(missing_ok=True)
    done = subprocess.run(
        [*command, "--folder", str(folder)],
        env={**os.environ, "OMP_NUM_THREADS": "1", "TORCH_CPP_LOG_LEVEL": "ERROR"},
        capture_output=True,
        text=True,
        timeout=options.timeout,
        check=False,
    )
    if not answer.exists():
        raise SystemExit(f"{side} in {num_processes} processes failed:\n{done.stdout}\n{done.stderr}")
    return float(json.loads(answer.read_text()))


def compare(folder: Path, options: argparse.Namespace) -> float:
    """Measure one family at one batch size, rounds interleaved; return the ratio to the plain loop."""
    sides = [(side, processes) for processes in (2, 1) for side in ("ours", "plain")]
    found: dict[tuple[str, int], list[float]] = {key: [] for key in sides}
    for number in range(options.rounds):
        for key in sides if number % 2 == 0 else sides[::-1]:  # who is first gains nothing by it
            found[key].append(measure(*key, folder, options))

    def ratios(above: tuple[str, int], below: tuple[str, int]) -> tuple[float, str]:
        values = [a / b for a, b in zip(found[above], found[below], strict=True)]
        return statistics.median(values), f"{statistics.median(values):.2f} ({min(values):.2f}-{max(values):.2f})"

    ratio, text = ratios(("ours", 2), ("plain", 2))
    label = f"{options.family:11} batch {options.batch_size:5}"
    speeds = ", ".join(
        f"{side} x{processes} {statistics.median(found[side, processes]):.1f}" for side, processes in sides
    )
    print(f"{label}: {text} of plain DDP   steps/s: {speeds}")
    for side in ("ours", "plain"):
        print(f"{'':{len(label)}}  {side} from 1 to 2 processes: {ratios((side, 2), (side, 1))[1]}", flush=True)
    return ratio


def main() -> int:
    """Print the ratios of every family and batch size; 1 if one is below the limit."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--families", nargs="+", default=list(FAMILIES), choices=list(FAMILIES))
    parser.add_argument("--batch-sizes", nargs="+", type=int, default=[256])
    parser.add_argument("--timeout", type=float, default=900, help="seconds for one measurement")
    for name, kind in {"side": str, "family": str, "batch-size": int, "folder": str}.items():
        parser.add_argument(f"--{name}", type=kind, help=argparse.SUPPRESS)  # of one process of a measurement
    options = parser.parse_args()
    if options.side:
        work(options)
    if options.rows * 0.64 * options.epochs < 3 * WARM_UP_STEPS * max(options.batch_sizes):
        parser.error(f"too few --rows or --epochs for {3 * WARM_UP_STEPS} steps of batch {max(options.batch_sizes)}")
    print(f"{options.rows:,} rows x 30 floats, 64 % train; one thread per process, {options.rounds} rounds")
    print("median of the rounds' ratios of steps/s (lowest-highest)", flush=True)
    lowest = float("inf")
    with tempfile.TemporaryDirectory() as temporary:
        make_table(Path(temporary) / "table.parquet", options.rows)
        for family in options.families:
            for batch_size in options.batch_sizes:
                options.family, options.batch_size = family, batch_size
                lowest = min(lowest, compare(Path(temporary), options))
    print(f"lowest ratio to the plain loop: {lowest:.2f} (limit {LIMIT})")
    return int(lowest < LIMIT)


if __name__ == "__main__":
    sys.exit(main())
