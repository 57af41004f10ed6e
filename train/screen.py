"""What a person sees of a run: the choices, a bar with loss and speed, a table of results, what to do next."""

import logging
import math
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from omegaconf import DictConfig
from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.callbacks import Callback
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from train.config.finding import seen_from_here
from train.telemetry import Telemetry

console = Console(highlight=False)
log = logging.getLogger(__name__)

REFRESH_SECONDS = 0.5
MOST_COLUMNS = 5


@contextmanager
def silent() -> Iterator[None]:
    """Keep what is printed here from the screen."""
    before, console.quiet = console.quiet, True
    try:
        yield
    finally:
        console.quiet = before


class Bar(Callback):
    """A bar over the whole training: epoch, loss, the monitored metric, rows/s, time left.

    Off a terminal it prints a line per epoch instead. Either way the line goes to the log.
    """

    def __init__(self, telemetry: Telemetry, monitor: str) -> None:
        self.telemetry, self.monitor = telemetry, monitor
        self.progress: Progress | None = None
        self._drawn = 0.0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Put the bar on the screen of rank 0."""
        if not (trainer.is_global_zero and console.is_terminal):
            return
        columns = (TextColumn("{task.description}"), BarColumn(bar_width=24), TextColumn("{task.fields[status]}"))
        self.progress = Progress(*columns, TimeRemainingColumn(), console=console, auto_refresh=False, transient=True)
        self.progress.start()
        total = int(trainer.num_training_batches) * (trainer.max_epochs or 1)
        self.task = self.progress.add_task("starting", total=total, status="")

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Redraw twice a second."""
        if self.progress is None or time.monotonic() - self._drawn < REFRESH_SECONDS:
            return
        done = trainer.current_epoch * int(trainer.num_training_batches) + batch_idx + 1
        self.progress.update(
            self.task,
            completed=done,
            description=f"epoch {trainer.current_epoch + 1}/{trainer.max_epochs}",
            status=self._status(trainer),
        )
        self.progress.refresh()
        self._drawn = time.monotonic()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log the epoch."""
        if not trainer.is_global_zero:
            return
        line = f"epoch {trainer.current_epoch + 1}/{trainer.max_epochs}  {self._status(trainer)}"
        log.info(line)
        if self.progress is None:
            console.print(line, soft_wrap=True)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take the bar away."""
        self._stop()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Take the bar away before the error is shown."""
        self._stop()

    def _stop(self) -> None:
        if self.progress is not None:
            self.progress.stop()
            self.progress = None

    def _status(self, trainer: Trainer) -> str:
        parts = [f"loss {self.telemetry.loss:.4f}"]
        if self.monitor in trainer.callback_metrics:
            parts.append(f"{self.monitor} {float(trainer.callback_metrics[self.monitor]):.4f}")
        return "  ".join([*parts, *self._speed()])

    def _speed(self) -> list[str]:
        """Say what the machine does: shares of the time that are lost only where they show."""
        rates = self.telemetry.rates
        if not rates:
            return []
        parts = [f"{rates['rows_per_second']:,.0f} rows/s", f"MFU {rates['mfu']:.0%}", f"{rates['memory_gb']:.1f} GB"]
        for name, label in (("share_waiting_for_data", "data"), ("share_communicating", "network")):
            if rates[name] >= 0.005:
                parts.append(f"{label} {rates[name]:.0%}")
        return parts


def show_choices(choices: Mapping[str, str], notes: Sequence[str]) -> None:
    """Print the run's resolved choices and what was noticed in the data."""
    width = max(map(len, choices))
    for key, value in choices.items():
        console.print(f"[bold]{key:>{width}}[/]  {value}", soft_wrap=True)
    for note in notes:
        console.print(f"[dim]{'note':>{width}}  {note}[/]", soft_wrap=True)


def show_results(results: Mapping[str, Mapping[str, float]], *, ours: str, monitor: str, mode: str) -> None:
    """Print test metrics, one row a model, and say so where `ours` loses to a baseline on the monitored metric."""
    if not results[ours]:
        console.print("Nothing was tested: there are no test rows, or they were left alone.")
        return
    metric = monitor.partition("/")[2]
    names = [name for name in results[ours] if any(name in row for row in results.values())]
    if metric in results[ours]:
        names = [metric, *(name for name in names if name != metric)]
    names = names[:MOST_COLUMNS]
    table = Table(title="test", title_justify="left", title_style="bold")
    table.add_column("model", no_wrap=True)
    for name in names:
        table.add_column(name.replace("_", " "), justify="right")
    for model, row in results.items():
        style = "bold" if model == ours else ""
        table.add_row(model, *(_number(row.get(name)) for name in names), style=style)
    console.print(table)
    better = [name for name in results if name != ours and _beats(results[name], results[ours], metric, mode)]
    if better:
        gaps = ", ".join(f"{name} ({_number(results[name][metric])})" for name in better)
        console.print(f"[yellow]On test {metric}, {ours} ({_number(results[ours][metric])}) loses to {gaps}.[/]")


def show_test(cfg: DictConfig, metrics: Mapping[str, float], baselines: Mapping[str, Mapping[str, float]]) -> None:
    """Print those of a run's metrics that are of the test rows, beside its baselines."""
    ours = {name.removeprefix("test/"): value for name, value in metrics.items() if name.startswith("test/")}
    label = str(cfg.model._target_).rpartition(".")[2]
    show_results({label: ours, **baselines}, ours=label, monitor=cfg.monitor, mode=cfg.mode)


def show_metrics(title: str, metrics: Mapping[str, float], intervals: Mapping[str, Sequence[float]]) -> None:
    """Print the metrics of one set of rows, one a line, with their 95 % intervals where there are such."""
    table = Table(title=title, title_justify="left", title_style="bold")
    table.add_column("metric", no_wrap=True)
    table.add_column("value", justify="right")
    table.add_column("95 % interval", justify="right")
    for name, value in metrics.items():
        bounds = " to ".join(_number(bound) for bound in intervals.get(name, ()))
        table.add_row(name.rpartition("/")[2].replace("_", " "), _number(value), bounds)
    console.print(table)


def show_notes(notes: Iterable[str]) -> None:
    """Print what was noticed on the way."""
    for note in notes:
        console.print(f"[dim]note  {note}[/]", soft_wrap=True)


def _beats(one: Mapping[str, float | None], other: Mapping[str, float | None], metric: str, mode: str) -> bool:
    a, b = one.get(metric), other.get(metric)
    if a is None or b is None:  # a metric that is undefined is null in result.json
        return False
    if math.isclose(a, b, rel_tol=1e-6):  # ours has been through float32
        return False
    return a > b if mode == "max" else a < b


def _number(value: float | None) -> str:
    if value is None or math.isnan(value):
        return "-"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4f}"


def show_next(folder: Path) -> None:
    """Print the run folder and the commands that go on from here."""
    place = seen_from_here(folder)
    console.print(f"[bold]run folder[/]  {place}", soft_wrap=True)
    console.print(f"  tensorboard --logdir {place.parent}", soft_wrap=True)
    console.print(f"  python -m train.evaluate run={place} data.path=FILE", soft_wrap=True)
    console.print(f"  python -m train.predict run={place} input=FILE output=FILE", soft_wrap=True)
    console.print(f"  python -m train.export run={place}", soft_wrap=True)
