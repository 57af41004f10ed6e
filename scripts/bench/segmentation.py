"""Scenes and Penn-Fudan's pedestrians from scratch on a CPU, the latter beside a network of torchvision.

python scripts/bench/segmentation.py scenes
python scripts/bench/segmentation.py pennfudan FULLCYCLE_DATA/vision_pennfudan
python scripts/bench/segmentation.py pennfudan FOLDER --split val   # recipes are chosen so: reads no test row

`scenes` is `experiment=segmentation` as it is: validation scenes choose the epoch, test scenes are read once.

`pennfudan` trains on 136 pictures and tests on the other 34, drawn by a fixed seed; nothing is chosen on either, the
last weights count. With `--split val` 27 of the 136 stand for the 34. torchvision's network is as it comes, without
weights, in a plain loop for as many CPU seconds as ours took in training: the same pictures, augmentation and batches,
AdamW with the same schedule over that time, cross-entropy. Both are measured on masks of the size that they are trained
at, by the same counts.
"""

import argparse
import json
import logging
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchvision
from hydra import compose, initialize_config_module
from omegaconf import DictConfig, OmegaConf
from pytorch_lightning import Callback, LightningModule, Trainer
from torch import nn

from datamodules.segmentation.augment import augmented
from datamodules.segmentation.masks import Pairs
from datamodules.segmentation.penn_fudan import PennFudanMasks
from models.optim import learning_rate
from models.segmentation import metrics
from models.segmentation.losses import IGNORED
from models.segmentation.metrics import Segmented
from models.segmentation.module import counted
from train import run as run_module
from train import screen

RECIPE = ["trainer.max_epochs=30", "data.batch_size=8", "data.image_size=96", "data.val_share=0", "data.test_share=0"]
NUM_TEST, NUM_VAL = 34, 27


class Told(Callback):
    """Prints each validation; keeps the CPU seconds of training, and the IoU of each class in the last test."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock."""
        self.start = time.process_time()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop it."""
        self.seconds = time.process_time() - self.start

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Print."""
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            found = float(trainer.callback_metrics["val/mean_iou"])
            seconds = time.process_time() - self.start
            print(f"  epoch {trainer.current_epoch + 1}: {found:.4f}, {seconds:.0f} CPU s", flush=True)

    def on_test_end(self, trainer: Trainer, pl_module: Any) -> None:
        """Keep."""
        self.classes = metrics.per_class(pl_module.scored, pl_module.classes)


def scenes(options: argparse.Namespace) -> None:
    """Train the experiment; print validation, test, interval and CPU minutes."""
    told = Told()
    with tempfile.TemporaryDirectory() as folder:
        place = [f"output_dir={folder}", "trainer=cpu", "baselines=none", f"seed={options.seed}"]
        cfg = compose("train", ["experiment=segmentation", *place, *options.override])
        result = run_module.run(cfg, testing=options.split == "test", callbacks=[told])
        account = json.loads((result.folder / "result.json").read_text())
    print(f"scenes: validation mean IoU {result.metrics['val/mean_iou']:.4f}, {told.seconds / 60:.1f} CPU minutes")
    if options.split == "test":
        low, high = account["intervals_95"]["test/mean_iou"]
        print(f"scenes: test mean IoU {result.metrics['test/mean_iou']:.4f} (95 % interval {low:.4f}-{high:.4f})")
        print("  " + ", ".join(f"{name} {values['iou']:.3f}" for name, values in told.classes.items()))


class Divided(PennFudanMasks):
    """The set, divided by a seed; `split` says what stands for the test pictures."""

    split, divided_by = "test", 0

    def read(self) -> dict[str, Pairs]:
        """Training pictures and those that are measured on."""
        whole = super().read()["train"]
        order = np.random.default_rng(self.divided_by).permutation(len(whole.names))
        train, test = order[NUM_TEST:], order[:NUM_TEST]
        if self.split == "val":
            train, test = train[NUM_VAL:], train[:NUM_VAL]
        return {"train": part(whole, train), "test": part(whole, test)}


def part(whole: Pairs, places: Any) -> Pairs:
    """Some of the pairs."""
    return Pairs(
        whole.where,
        [whole.names[place] for place in places],
        lambda place: whole.image(places[place]),
        lambda place, size: whole.mask(places[place], size),
        [whole.version, places.tolist()],
    )


def pennfudan(options: argparse.Namespace) -> None:
    """Train both; print the IoU of pedestrians and the CPU minutes."""
    told = Told()
    with tempfile.TemporaryDirectory() as folder:
        place = [f"output_dir={folder}", "trainer=cpu", "baselines=none", f"seed={options.seed}"]
        data = ["data=penn_fudan_masks", f"data.path={options.folder}"]
        cfg = compose("train", ["experiment=segmentation", *data, *RECIPE, *place, *options.override])
        given: Any = OmegaConf.to_container(cfg.data, resolve=True)
        datamodule = Divided(**{name: value for name, value in given.items() if name != "_target_"})
        datamodule.split = options.split
        datamodule.setup()
        print(f"{datamodule.summary}; {torch.get_num_threads()} thread(s)", flush=True)
        run_module.run(cfg, datamodule=datamodule, callbacks=[told])
    minutes = f"{told.seconds / 60:.1f} CPU minutes of training"
    print(f"ours: IoU of pedestrians {told.classes['pedestrian']['iou']:.4f} ({options.split}), {minutes}", flush=True)
    rows, epochs = plain(options.network, cfg, datamodule, told.seconds)
    iou = metrics.iou(rows)[1]
    print(f"{options.network}: IoU of pedestrians {iou:.4f}, {epochs} epochs in the same time")


def plain(name: str, cfg: DictConfig, datamodule: Any, seconds: float) -> tuple[Segmented, int]:
    """Train a network of torchvision for so many CPU seconds; return the counts of the test rows, and its epochs."""
    torch.manual_seed(cfg.seed)
    network = torchvision.models.get_model(name, weights=None, weights_backbone=None, num_classes=2)
    tensors, options = datamodule.tensors["train"], datamodule.options
    mean, std = (255 * torch.tensor(datamodule.schema[key]).view(3, 1, 1) for key in ("mean", "std"))
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3, weight_decay=cfg.model.weight_decay, fused=True)
    epoch, start = 0, time.process_time()
    while (done := (time.process_time() - start) / seconds) < 1:
        for rows in torch.randperm(len(tensors["target"])).split(cfg.data.batch_size):
            images, masks = augmented(
                tensors["image"][rows], tensors["target"][rows], rows, options, seed=0, epoch=epoch
            )
            pixels = (images.permute(0, 3, 1, 2).float() - mean) / std
            done = min(1.0, (time.process_time() - start) / seconds)
            rate = learning_rate(round(1000 * done), peak=1e-3, warmup_steps=100, total_steps=1000, schedule="cosine")
            for group in optimizer.param_groups:
                group["lr"] = rate
            if len(rows) > 1:  # BatchNorm
                loss = nn.functional.cross_entropy(network(pixels)["out"], masks.long(), ignore_index=IGNORED)
                loss.backward()
                optimizer.step()
                optimizer.zero_grad()
        epoch += 1
    network.eval()
    test = datamodule.tensors["test"]
    with torch.inference_mode():
        found = network((test["image"].permute(0, 3, 1, 2).float() - mean) / std)["out"].argmax(dim=1)
    columns = counted(found, test["target"], test["row"], 2)
    return Segmented.of(**{key: values.numpy() for key, values in columns.items()}), epoch


def main() -> None:
    """Measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=["scenes", "pennfudan"])
    parser.add_argument("folder", type=Path, nargs="?")
    parser.add_argument("--threads", type=int, help="of torch; all cores without it")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--split", choices=("val", "test"), default="test")
    parser.add_argument("--network", default="lraspp_mobilenet_v3_large", help="of torchvision")
    parser.add_argument("override", nargs="*", help="further overrides of the experiment")
    options = parser.parse_intermixed_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    screen.console.quiet = True
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    warnings.simplefilter("ignore")
    with initialize_config_module("configs", version_base="1.3"):
        if options.name == "scenes":
            scenes(options)
        elif options.folder is None:
            parser.error("give the folder of the set")
        else:
            pennfudan(options)


if __name__ == "__main__":
    main()
