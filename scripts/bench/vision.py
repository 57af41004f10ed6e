"""Fashion-MNIST and CIFAR-10: a small network from scratch on a CPU; and images/s against a plain PyTorch loop.

python scripts/bench/vision.py fashion FULLCYCLE_DATA/vision_fashion_mnist
python scripts/bench/vision.py cifar10 FULLCYCLE_DATA/vision_cifar10_jpg
python scripts/bench/vision.py cifar10 FOLDER --split val --rows 12000   # recipes are chosen so: reads no test row
python scripts/bench/vision.py speed                                     # one thread, 5 rounds

Training goes through `train.run.run` with `experiment=vision`; a tenth of the training rows, by a hash of their pixels,
validates and chooses the epoch. The official test rows are read once, at the end, by the chosen weights; the interval
(95 %) is bootstrapped over them. Minutes are those of the whole training, validation after each epoch and checkpoints
included, without decoding and test.

`speed` is of whole runs with TensorBoard, bar, checkpoints, averaged weights and augmentation on; the plain loop has
the same network, the same rows in memory, index batches, the same augmentation by the same functions, fused AdamW,
clipping and averaging, and nothing else. Nobody validates. Rounds are interleaved, in CPU seconds of the process: other
work on the machine counts for neither.
"""

import argparse
import copy
import json
import logging
import os
import statistics
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import torch
from hydra import compose, initialize_config_module
from hydra.utils import instantiate
from omegaconf import DictConfig
from pytorch_lightning import Callback, LightningModule, Trainer
from rich.console import Console
from torch import nn

from datamodules.augment import augmented
from models.optim import learning_rate, parameter_groups
from train import run as run_module
from train import screen

SETS = {
    "fashion": ["data=torchvision_set", "data.name=FashionMNIST", "data.path={folder}"],
    "cifar10": [
        *("data=image_table", "data.path={folder}/train.parquet", "data.test_path={folder}/test.parquet"),
        *("data.image=image", "data.label=label"),
    ],
}
RECIPES = {
    "fashion": ["trainer.max_epochs=9", "data.batch_size=64", "data.translate=1"],
    "cifar10": ["trainer.max_epochs=14", "data.batch_size=64"],
}


def accuracy(options: argparse.Namespace) -> None:
    """Train by the set's recipe; print validation, test, interval and minutes."""
    data = [one.format(folder=options.folder) for one in SETS[options.name]]
    with tempfile.TemporaryDirectory() as folder:
        place = [f"output_dir={folder}", "trainer=cpu", "baselines=none", f"seed={options.seed}"]
        cfg = compose("train", ["experiment=vision", *data, *RECIPES[options.name], *place, *options.override])
        datamodule = instantiate(cfg.data, _convert_="all")
        datamodule.prepare_data()
        datamodule.setup()
        if options.rows:
            datamodule.tensors["train"] = {
                name: values[: options.rows] for name, values in datamodule.tensors["train"].items()
            }
        print(f"{datamodule.summary}; {torch.get_num_threads()} thread(s)", flush=True)
        is_test = options.split == "test"
        result = run_module.run(cfg, testing=is_test, datamodule=datamodule, callbacks=[Told()])
        told = json.loads((result.folder / "result.json").read_text())
    print(
        f"{options.name}: validation {result.metrics['val/accuracy']:.4f}, {told['epochs']} epochs, "
        f"{told['seconds']['fit'] / 60:.1f} minutes ({time.process_time() / 60:.1f} CPU minutes in all)"
    )
    if is_test:
        low, high = told["intervals_95"]["test/accuracy"]
        print(f"{options.name}: test {result.metrics['test/accuracy']:.4f} (95 % interval {low:.4f}-{high:.4f})")


class Told(Callback):
    """Prints each validation."""

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Print."""
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            found = float(trainer.callback_metrics["val/accuracy"])
            print(f"  epoch {trainer.current_epoch + 1}: {found:.4f}, {time.process_time():.0f} CPU s", flush=True)


class Stopwatch(Callback):
    """CPU seconds between the start and the end of training."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start."""
        self.start = time.process_time()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop."""
        self.seconds = time.process_time() - self.start


def ours(cfg: DictConfig, datamodule: Any) -> float:
    """CPU seconds of our run's training."""
    watch = Stopwatch()
    run_module.run(cfg, testing=False, datamodule=datamodule, callbacks=[watch])
    return watch.seconds


def plain(cfg: DictConfig, datamodule: Any) -> float:
    """CPU seconds of the same in a plain loop."""
    options, tensors = cfg.model, datamodule.tensors["train"]
    images, target = tensors["image"], tensors["target"]
    module = instantiate(cfg.model, _partial_=True, _convert_="all")(schema=datamodule.schema)
    network = module.network.train()
    average = copy.deepcopy(network).requires_grad_(False)
    optimizer = torch.optim.AdamW(parameter_groups(network, options.weight_decay), lr=options.lr, fused=True)
    total = -(-len(target) // cfg.data.batch_size) * cfg.trainer.max_epochs
    fill = torch.tensor([round(255 * channel) for channel in datamodule.schema["mean"]], dtype=torch.uint8)
    pairs = list(average.parameters()), list(network.parameters())
    step, start = 0, time.process_time()
    for epoch in range(cfg.trainer.max_epochs):
        for rows in torch.randperm(len(target)).split(cfg.data.batch_size):
            changed = augmented(images[rows], rows, datamodule.options, seed=0, epoch=epoch, fill=fill)
            loss = nn.functional.cross_entropy(
                network.score(changed), target[rows], label_smoothing=options.label_smoothing
            )
            loss.backward()
            nn.utils.clip_grad_norm_(pairs[1], options.gradient_clip)
            rate = learning_rate(
                step, peak=options.lr, warmup_steps=total // 10, total_steps=total, schedule=options.schedule
            )
            for group in optimizer.param_groups:
                group["lr"] = rate
            optimizer.step()
            optimizer.zero_grad()
            with torch.no_grad():
                torch._foreach_lerp_(*pairs, 1.0 - min(options.ema_decay, (1 + step) / (10 + step)))
            step += 1
    return time.process_time() - start


def speed(options: argparse.Namespace) -> None:
    """Print images/s of a run as a multiple of a plain loop's, on random pictures of 32 x 32."""
    with tempfile.TemporaryDirectory() as folder:
        place = [f"output_dir={folder}", "trainer=cpu", "baselines=none", "patience=null", "data.flip=true"]
        short = ["trainer.max_epochs=2", "+trainer.limit_val_batches=0", *options.override]
        cfg = compose("train", ["experiment=vision", *place, *short])
        datamodule = instantiate(cfg.data, _convert_="all")
        datamodule.setup()
        side, target = options.side, torch.arange(options.rows or 4_000) % 10
        images = torch.randint(0, 256, (len(target), side, side, 3), dtype=torch.uint8)
        datamodule.tensors["train"] = {"image": images, "target": target, "row": torch.arange(len(target))}
        datamodule.schema["image_size"] = [side, side]
        console, screen.console = screen.console, Console(file=open(os.devnull, "w"), force_terminal=True)  # noqa: SIM115
        try:
            ours(cfg, datamodule), plain(cfg, datamodule)
            found = [(ours(cfg, datamodule), plain(cfg, datamodule)) for _ in range(options.rounds)]
        finally:
            screen.console = console
    ratios = [theirs / own for own, theirs in found]
    rate = len(target) * cfg.trainer.max_epochs / statistics.median(own for own, _ in found)
    print(
        f"images/s of a plain loop, {side} x {side}, {torch.get_num_threads()} thread(s): "
        f"{statistics.median(ratios):.2f} ({min(ratios):.2f}-{max(ratios):.2f}); ours {rate:,.0f} images a CPU second"
    )


def main() -> None:
    """Measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=[*SETS, "speed"])
    parser.add_argument("folder", type=Path, nargs="?")
    parser.add_argument("--threads", type=int, help="of torch; all cores without it, one for speed")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--split", choices=("val", "test"), default="test")
    parser.add_argument("--rows", type=int, help="train on so many of the training rows")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--side", type=int, default=32)
    parser.add_argument("override", nargs="*", help="further overrides of the experiment")
    options = parser.parse_intermixed_args()
    threads = options.threads or (1 if options.name == "speed" else None)
    if threads:
        torch.set_num_threads(threads)
    screen.console.quiet = True
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    warnings.simplefilter("ignore")
    with initialize_config_module("configs", version_base="1.3"):
        if options.name == "speed":
            speed(options)
        elif options.folder is None:
            parser.error("give the folder of the set")
        else:
            accuracy(options)


if __name__ == "__main__":
    main()
