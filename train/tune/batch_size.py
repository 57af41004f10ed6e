"""The largest batch that fits, and the size from which on training is no faster.

All sizes are tried in this process: a process of its own for each would import for seconds and would hold no more
safely, since memory is foreseen on a CPU, where running out of it may end a process without a word, and since the
kernel lets a process begin its peak anew (/proc/self/clear_refs). Where it does not, sizes that grow make peaks that
grow.
"""

import logging
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from omegaconf import DictConfig
from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.callbacks import Callback

from train import screen
from train.errors import ConfigError, DivergedError
from train.folder import RunFolder, write_picture
from train.tune import memory, plots
from train.tune.rehearsal import introduce, make_training_data, one_of, rehearse

log = logging.getLogger(__name__)

HALVINGS = 3  # of the interval between what fits and what does not
FASTER = 1.05
MANY_STEPS = 10**6  # never reached: seconds end a trial


@dataclass(frozen=True)
class Trial:
    """What training at one batch size took.

    Attributes:
        batch_size: rows per optimizer step.
        rows_per_second: of training, data loading included and validation not.
        start_bytes: memory held before the model and the trainer were made.
        peak_bytes: most memory held.
    """

    batch_size: int
    rows_per_second: float
    start_bytes: int
    peak_bytes: int

    def foreseen(self, batch_size: int) -> float:
        """Return the peak at a larger size: what was added grows with the rows, though some of it may not."""
        return self.start_bytes + (self.peak_bytes - self.start_bytes) * batch_size / self.batch_size


Measure = Callable[[int], Trial | None]


def search(measure: Measure, *, start: int, most: int) -> tuple[list[Trial], int | None]:
    """Double the size while it fits, then halve the interval; where not even `start` fits, halve it first.

    Args:
        measure: trains at a size; None where that does not fit.
        start: the first size.
        most: the largest size.

    Returns:
        The trials in the order in which they were made, and the smallest size that did not fit.
    """
    trials: list[Trial] = []
    size, too_large = start, None
    while (trial := measure(size)) is not None:
        trials.append(trial)
        if size >= most:
            return trials, None
        size = min(2 * size, most)
    too_large = size
    while not trials and too_large > 1:
        size = too_large // 2
        trial = measure(size)
        trials, too_large = ([trial], too_large) if trial is not None else ([], size)
    fitting = trials[-1].batch_size if trials else 0
    for _ in range(HALVINGS if trials else 0):
        middle = (fitting + too_large) // 2
        if middle == fitting:
            break
        trial = measure(middle)
        if trial is None:
            too_large = middle
        else:
            trials.append(trial)
            fitting = middle
    return trials, too_large


def no_faster_beyond(trials: Sequence[Trial]) -> int:
    """Return the smallest size that no larger one beats by more than 5 % in rows per second."""
    ordered = sorted(trials, key=lambda trial: trial.batch_size)
    for place, trial in enumerate(ordered):
        if all(later.rows_per_second <= FASTER * trial.rows_per_second for later in ordered[place:]):
            return trial.batch_size
    raise AssertionError("the largest size is beaten by none")


class Stopwatch(Callback):
    """Times the training calls after the first, which loads what is loaded once, and stops after some seconds.

    Needs `rows_seen` of the training loader: rows handed out so far.
    """

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.start: tuple[float, int] | None = None
        self.rows_per_second = math.nan

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Start after the first call, stop after the one that fills the time."""
        if pl_module.device.type == "cuda":
            torch.cuda.synchronize(pl_module.device)
        now, loader = time.perf_counter(), trainer.train_dataloader
        assert loader is not None
        if self.start is None:
            if not torch.isfinite(outputs["loss"]).all():
                raise DivergedError(
                    "the loss was not finite in the first training steps. Look for infinities in the data."
                )
            self.start = (now, loader.rows_seen)
        elif now - self.start[0] >= self.seconds:
            self.rows_per_second = (loader.rows_seen - self.start[1]) / (now - self.start[0])
            trainer.should_stop = True


class Trials:
    """Trains at a batch size and measures; `notes` say what did not fit and why.

    Args:
        cfg: the config, whose `data.batch_size` is replaced.
        device: where training takes place.
    """

    def __init__(self, cfg: DictConfig, device: torch.device) -> None:
        self.cfg, self.device = cfg, device
        self.last: Trial | None = None
        self.notes: list[str] = []

    def __call__(self, size: int) -> Trial | None:
        """Return the trial at a size, and None where memory is, or is foreseen to be, too small."""
        if self._is_foreseen_too_large(size):
            return None
        with screen.console.status(f"batch size {size:,}"):
            trial = self._measured(size)
        if trial is None:
            self._note(f"{size:,} rows: out of memory")
            memory.start_peak(self.device)
            return None
        self.last = trial
        line = f"{size:>12,}  {trial.rows_per_second:>12,.0f} rows/s  {trial.peak_bytes / 1e9:>8.2f} GB"
        screen.console.print(line, soft_wrap=True)
        log.info(line)
        return trial

    def _measured(self, size: int) -> Trial | None:
        cfg = self.cfg.copy()
        cfg.data.batch_size = size
        watch = Stopwatch(cfg.batch_size.seconds)
        try:
            datamodule, _ = make_training_data(cfg)
            start = memory.start_peak(self.device)
            rehearse(cfg, datamodule, [watch], max_steps=MANY_STEPS)
        except Exception as error:
            if not memory.is_out_of_memory(error):
                raise
            return None
        return Trial(size, watch.rows_per_second, start, memory.peak(self.device))

    def _is_foreseen_too_large(self, size: int) -> bool:
        """On a CPU nothing may be tried that could end the process, or another's."""
        free = memory.available() if self.device.type == "cpu" else None
        if free is None or self.last is None:
            return False
        peak = self.last.foreseen(size)
        held = memory.start_peak(self.device)
        room = held + self.cfg.batch_size.memory_share * free
        if peak <= room:
            return False
        self._note(
            f"{size:,} rows: would take about {peak / 1e9:.1f} GB, and {room / 1e9:.1f} GB is "
            "what this process may have (batch_size.memory_share)"
        )
        return True

    def _note(self, note: str) -> None:
        self.notes.append(note)
        screen.console.print(f"[dim]{note}[/]", soft_wrap=True)
        log.info(note)


def find(cfg: DictConfig, place: RunFolder) -> None:
    """Try batch sizes; write batch_size.json and batch_size.png and print what fits and what is fast.

    Raises:
        ConfigError: the data take no batch size, `batch_size.most` is below it, or not even one row fits.
        DataError: there are no training rows.
    """
    configured = cfg.data.get("batch_size")
    if configured is None:
        raise ConfigError("data.batch_size: find=batch_size needs data with this key")
    datamodule, num_rows = make_training_data(cfg)
    most, start = min(cfg.batch_size.most or num_rows, num_rows), min(configured, num_rows)
    if most < start:
        raise ConfigError(f"batch_size.most must be at least data.batch_size ({configured}); got {cfg.batch_size.most}")
    introduce(cfg, place, datamodule, f"batch sizes from {start:,} to {most:,}, {cfg.batch_size.seconds:g} s each")
    if configured > num_rows:
        screen.show_notes([f"data.batch_size is {configured:,}, but there are only {num_rows:,} training rows"])
    del datamodule  # each trial has its own, and two of them may not fit
    trials = Trials(cfg, device_of(cfg))
    found, too_large = search(trials, start=start, most=most)
    if not found:
        raise ConfigError("not even a batch of one row fits into memory: choose a smaller model")
    record(cfg, place, found, too_large, trials)
    limit = "all training rows" if most == num_rows else "batch_size.most"
    show(found, too_large, limit, trials.device)


def device_of(cfg: DictConfig) -> torch.device:
    """Return the device on which `rehearse` trains."""
    if not torch.cuda.is_available() or cfg.trainer.get("accelerator", "auto") not in ("auto", "gpu", "cuda"):
        return torch.device("cpu")
    named = one_of(cfg.trainer.get("devices"))
    return torch.device("cuda", named[0] if isinstance(named, list) else 0)


def record(cfg: DictConfig, place: RunFolder, found: list[Trial], too_large: int | None, trials: Trials) -> None:
    """Write all trials and what they come to."""
    beyond = no_faster_beyond(found)
    figure = plots.batch_sizes(found, no_faster_beyond=beyond, configured=cfg.data.batch_size)
    write_picture(place.path / "batch_size.png", figure)
    result = {
        "configured": cfg.data.batch_size,
        "largest_that_fits": max(trial.batch_size for trial in found),
        "smallest_that_does_not_fit": too_large,
        "no_faster_beyond": beyond,
        "device": trials.device.type,
        "trials": [asdict(trial) for trial in found],
        "notes": trials.notes,
    }
    place.write_json("batch_size.json", result)


def show(found: list[Trial], too_large: int | None, limit: str, device: torch.device) -> None:
    """Print the largest size and the override of the fast one."""
    largest, beyond = max(trial.batch_size for trial in found), no_faster_beyond(found)
    why = f"{too_large:,} does not" if too_large else f"{limit}, and all sizes fit"
    screen.console.print(f"[bold]largest that fits[/]  {largest:,} ({why})", soft_wrap=True)
    said = "the largest one tried is still the fastest" if beyond == largest else "no larger one is 5 % faster"
    screen.console.print(f"[bold]no faster beyond[/]   {beyond:,}: data.batch_size={beyond}; {said}.", soft_wrap=True)
    if device.type == "cuda":
        screen.console.print("On n GPUs the global batch may be n times as large.")
    screen.console.print("Another batch size wants another learning rate: find=lr again.")
