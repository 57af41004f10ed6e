"""Default scenes, and Penn-Fudan from scratch beside torchvision's own model trained by a plain loop for the same time.

python scripts/bench/detection.py scenes
python scripts/bench/detection.py pennfudan FULLCYCLE_DATA/vision_pennfudan
python scripts/bench/detection.py pennfudan FOLDER --split val   # recipes are chosen so: reads no test image

Training goes through `train.run.run` with `experiment=detection`; validation images choose the epoch, the test images
are read once, at the end. Intervals (95 %) are bootstrapped over them. The plain loop has the same training images,
augmented by the same functions, AdamW and half a cosine of its learning rate over the time that ours took (CPU seconds
of the process: other work on the machine counts for neither), and no validation.
"""

import argparse
import json
import logging
import math
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchvision
from hydra import compose, initialize_config_module
from hydra.utils import instantiate
from pytorch_lightning import Callback, LightningModule, Trainer
from torch import Tensor

from models.detection import metrics
from models.detection.matching import Detected
from train import run as run_module
from train import screen

DATA: dict[str, list[str]] = {
    "scenes": [],
    "pennfudan": [
        *("data=penn_fudan", "data.path={folder}", "data.image_size=[192,256]", "trainer.max_epochs=150"),
        *("data.batch_size=8", "+trainer.check_val_every_n_epoch=10", "model.optimizer=adamw", "model.lr=3e-3"),
    ],
}
MOST = 100  # detections of an image


class Told(Callback):
    """Prints each validation, and keeps the CPU seconds of training."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock."""
        self.start = time.process_time()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Print."""
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            found = trainer.callback_metrics
            told = f"map {float(found['val/map']):.4f}, map_50 {float(found['val/map_50']):.4f}"
            print(
                f"  epoch {trainer.current_epoch + 1}: {told}, {time.process_time() - self.start:.0f} CPU s", flush=True
            )

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop the clock."""
        self.seconds = time.process_time() - self.start


def ours(options: argparse.Namespace) -> tuple[Any, float]:
    """Train by the experiment's recipe and print what it came to; return the data and the CPU seconds of training."""
    data = [one.format(folder=options.folder) for one in DATA[options.name]]
    with tempfile.TemporaryDirectory() as folder:
        place = [f"output_dir={folder}", "trainer=cpu", "baselines=none", f"seed={options.seed}"]
        cfg = compose("train", ["experiment=detection", *data, *place, *options.override])
        datamodule = instantiate(cfg.data, _convert_="all")
        datamodule.prepare_data()
        datamodule.setup()
        print(f"{datamodule.summary}; {torch.get_num_threads()} thread(s)", flush=True)
        told = Told()
        is_test = options.split == "test"
        result = run_module.run(cfg, testing=is_test, datamodule=datamodule, callbacks=[told])
        account = json.loads((result.folder / "result.json").read_text())
    minutes = f"{account['seconds']['fit'] / 60:.1f} minutes, {told.seconds / 60:.1f} CPU minutes"
    print(f"ours: validation map {result.metrics['val/map']:.4f}, {account['epochs']} epochs, {minutes}")
    for name in ("map", "map_50") if is_test else ():
        low, high = account["intervals_95"][f"test/{name}"]
        print(f"ours: test {name} {result.metrics[f'test/{name}']:.4f} (95 % interval {low:.4f}-{high:.4f})")
    return datamodule, told.seconds


def theirs(options: argparse.Namespace, datamodule: Any, seconds: float) -> None:
    """Train torchvision's model for so many CPU seconds, and print what it came to."""
    size = max(datamodule.schema["image_size"])
    classes = datamodule.schema["classes"]
    more = {} if options.architecture.startswith("ssdlite") else {"min_size": size, "max_size": size}
    model = torchvision.models.get_model(
        options.architecture, weights=None, weights_backbone=None, num_classes=len(classes) + 1, **more
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=options.lr, weight_decay=0.05)
    loader, start, epoch, steps = datamodule.train_dataloader(), time.process_time(), 0, 0
    model.train()
    while (spent := time.process_time() - start) < seconds:
        loader.set_epoch(epoch)
        for batch in (one for call in loader for one in call):
            spent = time.process_time() - start
            if spent >= seconds:
                break
            for group in optimizer.param_groups:
                group["lr"] = options.lr * 0.5 * (1 + math.cos(math.pi * min(1.0, spent / seconds)))
            losses = model([picture / 255 for picture in batch["image"].permute(0, 3, 1, 2)], wanted(batch))
            torch.autograd.backward(sum(losses.values(), torch.zeros(())))
            torch.nn.utils.clip_grad_norm_(model.parameters(), 5.0)
            optimizer.step()
            optimizer.zero_grad()
            steps += 1
        epoch += 1
    told, _ = metrics.metrics_of(
        scored(model, datamodule.tensors[options.split]), datamodule.schema["image_size"], len(classes)
    )
    found = f"{options.split} map {told['map']:.4f}, map_50 {told['map_50']:.4f}"
    cost = f"{epoch} epochs, {steps:,} steps, {spent / 60:.1f} CPU minutes"
    print(f"torchvision's {options.architecture}: {found} after {cost}")


def wanted(batch: dict[str, Tensor]) -> list[dict[str, Tensor]]:
    """Targets as torchvision wants them: its class 0 is the background."""
    return [
        {"boxes": boxes[target >= 0], "labels": target[target >= 0] + 1}
        for boxes, target in zip(batch["boxes"], batch["target"], strict=True)
    ]


@torch.inference_mode()
def scored(model: torch.nn.Module, rows: dict[str, Tensor]) -> Detected:
    """What a model of torchvision finds in the pictures of a split."""
    model.eval()
    found = np.zeros((len(rows["row"]), MOST, 6), np.float32)
    found[..., 5] = -1
    for row, picture in enumerate(rows["image"]):
        (one,) = model([picture.permute(2, 0, 1) / 255])
        num = min(MOST, len(one["scores"]))
        columns = one["boxes"], one["scores"].unsqueeze(1), one["labels"].unsqueeze(1) - 1
        found[row, :num] = torch.cat(columns, dim=1)[:num].numpy()
    return Detected(found, *(rows[name].numpy() for name in ("boxes", "target", "crowd", "size", "row")))


def main() -> None:
    """Measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=[*DATA])
    parser.add_argument("folder", type=Path, nargs="?")
    parser.add_argument("--threads", type=int, help="of torch; all cores without it")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--split", choices=("val", "test"), default="test")
    parser.add_argument("--architecture", default="ssdlite320_mobilenet_v3_large", help="torchvision's")
    parser.add_argument("--lr", type=float, default=1e-3, help="of torchvision's")
    parser.add_argument("override", nargs="*", help="further overrides of the experiment")
    options = parser.parse_intermixed_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    if options.name == "pennfudan" and options.folder is None:
        parser.error("give the folder of Penn-Fudan")
    screen.console.quiet = True
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    warnings.simplefilter("ignore")
    with initialize_config_module("configs", version_base="1.3"):
        datamodule, seconds = ours(options)
    if options.name == "pennfudan":
        theirs(options, datamodule, seconds)


if __name__ == "__main__":
    main()
