"""Training tokens per second of a text encoder: ours, a plain PyTorch loop, and `transformers`' Trainer, side by side.

python scripts/bench/tokens.py                    # experiment=text model=transformer as it is, 5 rounds
python scripts/bench/tokens.py --rounds 3 model.width=256 model.num_blocks=4 model.num_heads=8
python scripts/bench/tokens.py --clock cpu        # in CPU seconds of the process, where others use the machine, too

Ours is `train.run.run` with TensorBoard, progress bar and checkpoints on. The plain loop has the same network and
optimizer, and the same batches, which lie in memory before its clock starts. The Trainer trains the same network with
fused AdamW on the same token ids, in batches of as many rows as ours have in the mean, padded to their longest: in
random order, which is its default, and grouped by length. It writes nothing to disk. Averaged weights and clipping are
off on all sides, and nobody validates. Tokens are those of the texts: padding does not count. Rounds are interleaved;
a figure is the median of the rounds' ratios, with the lowest and highest.
"""

import argparse
import contextlib
import importlib.util
import logging
import os
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from hydra import compose, initialize_config_module
from hydra.utils import instantiate
from loop import ours
from omegaconf import DictConfig
from rich.console import Console
from tokenizers import Tokenizer
from torch import Tensor, nn

from datamodules.sequences import Sequences
from train import screen

PLAIN, RANDOM, GROUPED = "plain loop", "transformers' Trainer", "the same, grouped by length"
STRIPPED = ["model.ema_decay=null", "model.gradient_clip=null", "model.schedule=constant", "model.warmup_share=0"]
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
Rows = list[dict[str, Any]]
Clock = Callable[[], float]


def configure(folder: Path, overrides: list[str], epochs: int) -> DictConfig:
    """Compose the text experiment, without what the others do not do."""
    quiet = ["baselines=none", "patience=null", "trainer=cpu", "+trainer.limit_val_batches=0"]
    place = [f"trainer.max_epochs={epochs}", f"output_dir={folder / 'runs'}"]
    return compose("train", ["experiment=text", "model=transformer", *STRIPPED, *quiet, *place, *overrides])


def plain(module: pl.LightningModule, datamodule: Any, cfg: DictConfig, clock: Clock) -> float:
    """Steps per second of a plain loop over our batches."""
    network = module.network.train()
    rate, decay = cfg.model.lr, cfg.model.weight_decay
    optimizer = torch.optim.AdamW(network.parameters(), lr=rate, weight_decay=decay, fused=True)
    loader, batches = datamodule.train_dataloader(), []
    for epoch in range(cfg.trainer.max_epochs):
        loader.set_epoch(epoch)
        batches += [(batch["tokens"], batch["target"]) for call in loader for batch in call]
    start = clock()
    for tokens, target in batches:
        loss = nn.functional.cross_entropy(network.score(tokens), target)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return len(batches) / (clock() - start)


class Wrapped(nn.Module):
    """The same network as `transformers`' Trainer wants it."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, input_ids: Tensor, attention_mask: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Loss and logits; the network sees by itself what is padding."""
        logits = self.network.score(input_ids)
        return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}


def trainer(
    module: pl.LightningModule, rows: Rows, cfg: DictConfig, datamodule: Any, clock: Clock, *, order: str
) -> float:
    """Seconds of one epoch of `transformers`' Trainer."""
    from transformers import DataCollatorWithPadding, PreTrainedTokenizerFast, Trainer, TrainerCallback
    from transformers import TrainingArguments as Arguments

    class Watch(TrainerCallback):  # type: ignore[misc]
        """Seconds between the start and the end of training."""

        def on_train_begin(self, *_: object, **__: object) -> None:
            self.seconds = -clock()

        def on_train_end(self, *_: object, **__: object) -> None:
            self.seconds += clock()

    tokenizer = Tokenizer.from_str(datamodule.schema["tokenizer"]["json"])
    pad = tokenizer.id_to_token(datamodule.schema["tokenizer"]["pad_id"])
    arguments = Arguments(
        output_dir=str(Path(cfg.output_dir) / "theirs"),
        per_device_train_batch_size=round(len(rows) / datamodule.train_dataloader().num_batches),
        num_train_epochs=cfg.trainer.max_epochs,
        learning_rate=cfg.model.lr,
        weight_decay=cfg.model.weight_decay,
        lr_scheduler_type="constant",
        max_grad_norm=0.0,
        train_sampling_strategy=order,
        save_strategy="no",
        use_cpu=True,
        dataloader_pin_memory=False,
    )
    watch = Watch()
    made = Trainer(
        Wrapped(module.network.train()),
        arguments,
        train_dataset=rows,
        data_collator=DataCollatorWithPadding(PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token=pad)),
        callbacks=[watch],
    )
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere):
        made.train()
    return watch.seconds / cfg.trainer.max_epochs


def rows_of(datamodule: Any) -> Rows:
    """The training rows as lists, as their collator takes them."""
    tokens: Sequences = datamodule.tensors["train"]["tokens"]
    texts = torch.split(tokens.values, tokens.lengths.tolist())
    targets = datamodule.tensors["train"]["target"].tolist()
    return [{"input_ids": text.tolist(), "labels": label} for text, label in zip(texts, targets, strict=True)]


def contestants(cfg: DictConfig, datamodule: Any, clock: Clock) -> dict[str, Callable[[], float]]:
    """Tokens per second by name; each call is a training of its own."""
    rows, num_batches = rows_of(datamodule), datamodule.train_dataloader().num_batches
    tokens = sum(len(row["input_ids"]) for row in rows)

    def fresh() -> pl.LightningModule:
        torch.manual_seed(0)
        return instantiate(cfg.model, _partial_=True, _convert_="all")(schema=datamodule.schema)

    found = {
        "ours": lambda: ours(cfg, clock) * tokens / num_batches,
        PLAIN: lambda: plain(fresh(), datamodule, cfg, clock) * tokens / num_batches,
    }
    if importlib.util.find_spec("transformers") is None:
        print("transformers is not installed: its Trainer is left out")
        return found
    return found | {
        RANDOM: lambda: tokens / trainer(fresh(), rows, cfg, datamodule, clock, order="random"),
        GROUPED: lambda: tokens / trainer(fresh(), rows, cfg, datamodule, clock, order="group_by_length"),
    }


def main() -> None:
    """Print the ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--clock", choices=CLOCKS, default="wall")
    parser.add_argument("overrides", nargs="*", help="further overrides of the experiment, for all sides")
    options = parser.parse_intermixed_args()
    torch.set_num_threads(options.threads)
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    warnings.simplefilter("ignore")
    console, screen.console = screen.console, Console(file=open(os.devnull, "w"), force_terminal=True)  # noqa: SIM115
    with tempfile.TemporaryDirectory() as temporary, initialize_config_module("configs", version_base="1.3"):
        folder = Path(temporary)
        cfg, short = (configure(folder, options.overrides, epochs) for epochs in (options.epochs, 1))
        datamodule = instantiate(cfg.data, _convert_="all")
        datamodule.setup()
        loader = datamodule.train_dataloader()
        print(f"{datamodule.summary}; {loader.num_batches} steps an epoch, {loader.padding():.1%} padding")
        print(
            f"{options.threads} thread(s), {options.rounds} rounds of {options.epochs} epochs, {options.clock} seconds",
            flush=True,
        )
        for warm_up in contestants(short, datamodule, CLOCKS[options.clock]).values():
            warm_up()
        sides = contestants(cfg, datamodule, CLOCKS[options.clock])
        found = [{name: side() for name, side in sides.items()} for _ in range(options.rounds)]
    screen.console = console
    for name in sides:
        speeds, ratios = [one[name] for one in found], [one["ours"] / one[name] for one in found]
        speed, ratio = statistics.median(speeds), statistics.median(ratios)
        print(f"{name:28} {speed:9,.0f} tokens/s; ours {ratio:5.2f} times that ({min(ratios):.2f}-{max(ratios):.2f})")


if __name__ == "__main__":
    main()
