"""Images/s of training from JPEG files: decoded once, and in every epoch, against torchvision's usual loader.

python scripts/bench/vision_jpeg.py                               # drawn photographs of 256 to 500 pixels
python scripts/bench/vision_jpeg.py --folder FOLDER --side 96     # one's own class folders

Ours are whole runs of `experiment=vision data=image_folder` with TensorBoard, checkpoints and averaged weights; theirs
is a plain loop: ImageFolder, transforms.v2 (resize, flip, crop of the padded picture) for each picture in a DataLoader
of 2 workers that persist, the same network, fused AdamW, clipping and averaging. Nobody validates. Rounds are
interleaved. Printed are images a second of wall-clock time, which is what a user waits for, and of CPU time, children's
included, for which other work on the machine counts less; the one pass at setup is told apart from training.
"""

import argparse
import copy
import logging
import os
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hydra import compose, initialize_config_module
from hydra.utils import instantiate
from omegaconf import DictConfig
from PIL import Image, ImageDraw
from pytorch_lightning import Callback, LightningModule, Trainer
from rich.console import Console
from torch import nn
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

from models.optim import learning_rate, parameter_groups
from train import run as run_module
from train import screen

CLASSES = 10
WORKERS = 2
Measured = tuple[float, float]  # images a second of wall-clock time, and of CPU time


def draw(folder: Path, num: int) -> None:
    """Write JPEG files in class folders: smooth noise and shapes, 256 to 500 pixels a side."""

    def one(number: int) -> None:
        drawn = np.random.default_rng(number)
        width, height = (int(side) for side in drawn.integers(256, 501, 2))
        coarse = Image.fromarray(drawn.integers(0, 256, (12, 12, 3), dtype=np.uint8))
        image = coarse.resize((width, height), Image.Resampling.BICUBIC)
        pen = ImageDraw.Draw(image)
        for _ in range(8):
            left, top, wide, high = (int(value) for value in drawn.integers(0, 256, 4))
            colour = tuple(int(value) for value in drawn.integers(0, 256, 3))
            (pen.ellipse if number % 2 else pen.rectangle)((left, top, left + wide // 2, top + high // 2), fill=colour)
        grain = drawn.normal(0, 6, (height, width, 3))
        place = folder / f"class{number % CLASSES}" / f"{number}.jpg"
        place.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray((np.asarray(image) + grain).clip(0, 255).astype(np.uint8)).save(place, quality=90)

    with ThreadPoolExecutor(WORKERS) as pool:
        list(pool.map(one, range(num)))


class Stopwatch(Callback):
    """Seconds between the start and the end of training."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start."""
        self.start = now()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop."""
        self.end = now()


def now() -> np.ndarray:
    """Wall-clock and CPU seconds; CPU seconds of children count once they have ended."""
    times = os.times()
    return np.array([time.perf_counter(), times.user + times.system + times.children_user + times.children_system])


def ours(cfg: DictConfig) -> Measured:
    """A run's training."""
    watch = Stopwatch()
    datamodule = instantiate(cfg.data, _convert_="all")
    datamodule.setup()
    run_module.run(cfg, testing=False, datamodule=datamodule, callbacks=[watch])
    wall, cpu = len(datamodule.tensors["train"]["target"]) * cfg.trainer.max_epochs / (watch.end - watch.start)
    return float(wall), float(cpu)


def usual(cfg: DictConfig, module: Any) -> Measured:
    """The same network by a DataLoader of torchvision's ImageFolder."""
    side, options, epochs = cfg.data.image_size, cfg.model, cfg.trainer.max_epochs
    change = v2.Compose(
        [
            *(
                v2.Resize((side, side)),
                v2.RandomHorizontalFlip(),
                v2.RandomCrop(side, padding=2, padding_mode="reflect"),
            ),
            v2.PILToTensor(),
        ]
    )
    files = ImageFolder(cfg.data.path, change)
    start = now()
    loader = DataLoader(files, cfg.data.batch_size, shuffle=True, num_workers=WORKERS, persistent_workers=True)
    network = copy.deepcopy(module.network).train()
    average = copy.deepcopy(network).requires_grad_(False)
    optimizer = torch.optim.AdamW(parameter_groups(network, options.weight_decay), lr=options.lr, fused=True)
    pairs, total, step = (list(average.parameters()), list(network.parameters())), len(loader) * epochs, 0
    for _ in range(epochs):
        for images, target in loader:
            score = network.score(images.permute(0, 2, 3, 1))
            nn.functional.cross_entropy(score, target, label_smoothing=options.label_smoothing).backward()
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
    wall = time.perf_counter() - start[0]
    del loader  # its workers end, and their CPU seconds count
    num = len(files) * epochs
    return num / wall, num / float((now() - start)[1])


def told(name: str, found: list[Measured], theirs: list[Measured] | None = None) -> None:
    for place, kind in enumerate(("a second", "a CPU second")):
        rates = [one[place] for one in found]
        line = f"{name}: {statistics.median(rates):,.0f} images {kind} ({min(rates):,.0f}-{max(rates):,.0f})"
        if theirs:
            ratios = [one[place] / other[place] for one, other in zip(found, theirs, strict=True)]
            line += f", {statistics.median(ratios):.2f} ({min(ratios):.2f}-{max(ratios):.2f}) of the usual loader's"
        print(line)


def measure(options: argparse.Namespace, folder: str, made: Path) -> None:
    """Print the figures."""
    changed = ["experiment=vision", "data=image_folder", f"data.path={made}", f"data.image_size={options.side}"]
    changed += ["data.val_share=0", "data.test_share=0", f"trainer.max_epochs={options.epochs}", "trainer=cpu"]
    changed += [f"output_dir={folder}", "baselines=none", "patience=null", "+trainer.limit_val_batches=0"]
    configs = {
        decode: compose("train", [*changed, *options.override, f"data.decode={decode}"])
        for decode in ("once", "always")
    }
    for decode, cfg in configs.items():
        datamodule, start = instantiate(cfg.data, _convert_="all"), time.perf_counter()
        datamodule.setup()
        print(f"the first pass, decode={decode}: {time.perf_counter() - start:.1f} s; {datamodule.summary}", flush=True)
    module = instantiate(cfg.model, _partial_=True, _convert_="all")(schema=datamodule.schema)
    measures: dict[str, Callable[[], Measured]] = {
        "once": lambda: ours(configs["once"]),
        "always": lambda: ours(configs["always"]),
        "usual": lambda: usual(configs["once"], module),
    }
    found: dict[str, list[Measured]] = {name: [] for name in measures}
    ours(configs["once"])  # the first optimizer step of a process imports for seconds
    for _ in range(options.rounds):
        for name, one in measures.items():
            found[name].append(one())
    print(
        f"{options.side} x {options.side}, batches of {cfg.data.batch_size}, "
        f"torch on {torch.get_num_threads()} threads, {os.cpu_count()} cores, "
        f"{WORKERS} workers of theirs, {options.rounds} rounds"
    )
    told("torchvision's usual loader", found["usual"])
    for decode in configs:
        told(f"data.decode={decode}", found[decode], found["usual"])


def main() -> None:
    """Measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, help="class folders; drawn without")
    parser.add_argument("--rows", type=int, default=2_400, help="pictures that are drawn")
    parser.add_argument("--side", type=int, default=64)
    parser.add_argument("--threads", type=int, default=2, help="of torch")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("override", nargs="*", help="further overrides of the experiment")
    options = parser.parse_intermixed_args()
    torch.set_num_threads(options.threads)
    screen.console = Console(file=open(os.devnull, "w"))  # noqa: SIM115
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as folder, initialize_config_module("configs", version_base="1.3"):
        made = options.folder
        if made is None:
            made = Path(folder) / "photographs"
            draw(made, options.rows)
        measure(options, folder, made)


if __name__ == "__main__":
    main()
