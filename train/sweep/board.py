"""What a person sees of a sweep: how far it is, the best trials, what was pruned or failed."""

from __future__ import annotations

import contextlib
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, Progress, TextColumn
from rich.table import Table
from rich.text import Text

from train.errors import StorageError
from train.sweep import best, winners
from train.sweep.canvas import short
from train.sweep.plan import Plan
from train.sweep.slots import Slot, ended
from train.sweep.study import Study

REFRESH_SECONDS = 1.0
MOST_ROWS = 5
MOST_COLUMNS = 6


@contextlib.contextmanager
def shown(plan: Plan, study: Study) -> Iterator[None]:
    """Show the sweep while it is open: a table that is redrawn on a terminal, a line for each trial elsewhere."""
    console = Console(highlight=False)
    introduce(console, plan, study)
    board = Board(plan, study, console)
    end = threading.Event()
    live = Live(board.drawn(), console=console, auto_refresh=False) if console.is_terminal else None

    def look() -> None:
        with contextlib.suppress(StorageError):  # the worker meets it too
            while not end.wait(REFRESH_SECONDS):
                board.look(live)

    thread = threading.Thread(target=look, name="board", daemon=True)
    with live or contextlib.nullcontext():
        thread.start()
        try:
            yield
        finally:
            end.set()
            thread.join(timeout=5.0)
            board.look(live)


def introduce(console: Console, plan: Plan, study: Study) -> None:
    """Print what is searched, and how far an earlier start has come."""
    cfg, done = plan.cfg, sum(slot.is_done for slot in study.slots())
    lines = {
        "study": f"{plan.folder}" + (f", {done} of {len(study.slots())} trials done" if done else ""),
        "objectives": ", ".join(f"{direction} {metric}" for metric, direction in plan.objectives),
        "search": f"{len(plan.space.parameters)} keys, {plan.total} trials, {cfg.sampler}, pruner {cfg.pruner}",
        "workers": str(cfg.workers),
    }
    if plan.pinned:
        lines["pinned"] = f"{', '.join(plan.pinned)} (on the command line: not searched)"
    for name, text in lines.items():
        console.print(f"[bold]{name:>10}[/]  {text}", soft_wrap=True)


class Board:
    """Keeps what has been shown.

    Args:
        plan, study: of the sweep.
        console: where.
    """

    def __init__(self, plan: Plan, study: Study, console: Console) -> None:
        self.plan, self.study, self.console = plan, study, console
        self.slots = study.slots()
        self.started, self.done_before = time.monotonic(), sum(slot.is_done for slot in self.slots)
        self._told = {slot.number for slot in self.slots if slot.is_done}

    def look(self, live: Live | None) -> None:
        """Read the study and show what is new."""
        self.slots = self.study.slots()
        if live is not None:
            live.update(self.drawn(), refresh=True)
            return
        for slot in [slot for slot in ended(self.slots) if slot.number not in self._told]:
            self._told.add(slot.number)
            self.console.print(self._line(slot), soft_wrap=True, markup=False)

    def _line(self, slot: Slot) -> str:
        chosen = best.best(self.plan, [one for one in self.slots if one.number in self._told])
        leader = f"  best: {_value(chosen)}, trial {chosen.number}" if chosen else ""
        done = f"{len(self._told)}/{len(self.slots)}"
        return f"{done:>7}  trial {slot.number} {slot.state} {_outcome(slot)}{leader}"

    def drawn(self) -> Group:
        """The table."""
        counts = Counter(slot.state for slot in self.slots)
        done = sum(slot.is_done for slot in self.slots)
        bar = Progress(TextColumn("{task.description}"), BarColumn(bar_width=24), TextColumn("{task.fields[left]}"))
        said = ", ".join(f"{counts[state]} {state}" for state in ("running", "pruned", "failed") if counts[state])
        bar.add_task(
            f"{done}/{len(self.slots)} trials",
            total=len(self.slots),
            completed=done,
            left=f"{said}  {self._time_left(done)}".strip(),
        )
        failed = [slot for slot in self.slots if slot.state == "failed"]
        last = [Text(f"trial {failed[-1].number} failed: {failed[-1].reason}", style="yellow")] if failed else []
        return Group(self._table(best.leading(self.plan, self.slots)[:MOST_ROWS]), bar, *last)

    def _table(self, leading: Sequence[Slot]) -> Table:
        keys = list(dict.fromkeys(key for slot in leading for key in winners.values(slot)))
        keys = sorted(keys, key=lambda key: len({str(winners.values(slot).get(key)) for slot in leading}) == 1)
        table = Table(title="best trials", title_justify="left", title_style="bold")
        table.add_column("trial", justify="right")
        for metric, _ in self.plan.objectives:
            table.add_column(metric.rpartition("/")[2].replace("_", " "), justify="right")
        for key in keys[:MOST_COLUMNS]:
            table.add_column(key.rpartition(".")[2], justify="right")
        for slot in leading:
            values = [f"{value:.4f}" for value in slot.results]
            chosen = [short(winners.values(slot).get(key, "")) for key in keys[:MOST_COLUMNS]]
            table.add_row(str(slot.number), *values, *chosen)
        return table

    def _time_left(self, done: int) -> str:
        new = done - self.done_before
        if new < 1 or done >= len(self.slots):
            return ""
        seconds = (time.monotonic() - self.started) / new * (len(self.slots) - done)
        return f"{seconds // 60:.0f} min {seconds % 60:.0f} s left"


def _outcome(slot: Slot) -> str:
    if slot.state == "failed":
        return f"({slot.reason})"
    reported = slot.reported if slot.state == "pruned" else {}
    return _value(slot) + (f" after {max(reported)} validations" if reported else "")


def _value(slot: Slot) -> str:
    return ", ".join(f"{value:.4f}" for value in slot.results)
