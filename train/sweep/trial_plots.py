"""Plots of the trials of a sweep: what they came to, in which order, when, and how far each was let go."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from datetime import datetime

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from train.sweep import best, winners
from train.sweep.canvas import BLUE, GREY, LIGHT, ORANGE, RED, STATES, grid
from train.sweep.plan import Plan
from train.sweep.slots import Slot

MOST_NAMED = 40  # trials with a number of their own at the axis


def history(plan: Plan, slots: Sequence[Slot]) -> Figure | None:
    """What each trial came to, and the best so far; of each objective."""
    if not any(slot.state in ("complete", "pruned") for slot in slots):
        return None
    figure, panels = grid(len(plan.objectives))
    for axes, (metric, direction) in zip(panels, plan.objectives, strict=True):
        complete = _points(plan, slots, metric, "complete")
        fit = [(x, y) for x, y in complete if best.keeps_constraints(slots[x])]
        _scatter(axes, fit, "complete", BLUE, "o")
        _scatter(axes, [one for one in complete if one not in fit], "breaks a constraint", GREY, "x")
        _scatter(axes, _points(plan, slots, metric, "pruned"), "pruned, at last", ORANGE, "v")
        failed = [slot.number for slot in slots if slot.state == "failed"]
        if failed:
            bottom = axes.get_xaxis_transform()
            axes.plot(failed, [0.02] * len(failed), "|", color=RED, ms=9, transform=bottom, label="failed")
        if fit:
            numbers, values = zip(*fit, strict=True)
            so_far = (np.maximum if direction == "maximize" else np.minimum).accumulate(values)
            x, y = [*numbers, len(slots) - 1], [*so_far, so_far[-1]]
            axes.step(x, y, where="post", color=RED, lw=1.2, label="best so far")
        axes.set(xlabel="trial", ylabel=metric, xlim=(-0.5, len(slots) - 0.5))
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.legend(frameon=False, fontsize=8)
    is_best = best.best(plan, slots) is not None
    panels[0].set_title(
        winners.summary(plan, slots).replace(": ", ":\n", 1) if is_best else "no best trial", fontsize=9
    )
    return figure


def _scatter(axes: Axes, points: Sequence[tuple[int, float]], label: str, color: str, marker: str) -> None:
    if points:
        x, y = zip(*points, strict=True)
        axes.scatter(x, y, s=22, label=label, color=color, marker=marker, zorder=3)


def _points(plan: Plan, slots: Sequence[Slot], metric: str, state: str) -> list[tuple[int, float]]:
    found = [
        (slot.number, winners.objectives(plan, slot).get(metric, math.nan)) for slot in slots if slot.state == state
    ]
    return [(number, value) for number, value in found if math.isfinite(value)]


def intermediate_values(plan: Plan, slots: Sequence[Slot]) -> Figure | None:
    """The monitored metric at each validation, one line a trial."""
    shown = [slot for slot in slots if slot.is_done and slot.reported]
    if not shown:
        return None
    leader = best.best(plan, slots)
    figure, (axes,) = grid(1)
    # The best is drawn last, over the others.
    for slot in sorted(shown, key=lambda slot: (slot is leader, slot.state == "pruned")):
        steps, values = zip(*sorted(slot.reported.items()), strict=True)
        color = RED if slot is leader else STATES[slot.state]
        width, alpha = (2.0, 1.0) if slot is leader else (1.0, 0.5)
        axes.plot(steps, values, color=color, lw=width, alpha=alpha)
        axes.plot(steps[-1], values[-1], ".", color=color, alpha=max(alpha, 0.7), ms=5)
    states = sorted({slot.state for slot in shown if slot is not leader})
    patches = [Patch(color=STATES[state], label=state) for state in states]
    axes.legend(
        handles=[*([Patch(color=RED, label="best")] if leader in shown else []), *patches], frameon=False, fontsize=8
    )
    axes.set(title="at each validation", xlabel="validation", ylabel=str(plan.cfg.monitor))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    return figure


def pareto_front(plan: Plan, slots: Sequence[Slot]) -> Figure | None:
    """The first objective against each of the others, with the trials that no other one beats."""
    fit = best.leading(plan, slots)
    if len(plan.objectives) < 2 or not fit:
        return None
    front = best.front(plan, slots)
    others = [slot for slot in slots if slot.state == "complete" and slot not in front]
    figure, panels = grid(len(plan.objectives) - 1, columns=2, width=5.2)
    (first, _), *rest = plan.objectives
    for axes, (metric, _) in zip(panels, rest, strict=True):
        for chosen, color, size, label in ((others, GREY, 18, "beaten"), (front, RED, 34, "Pareto front")):
            x, y = ([winners.objectives(plan, slot)[name] for slot in chosen] for name in (metric, first))
            axes.scatter(x, y, s=size, color=color, label=label, zorder=3 if chosen is front else 2)
        for slot in front:
            at = (winners.objectives(plan, slot)[metric], winners.objectives(plan, slot)[first])
            axes.annotate(str(slot.number), at, xytext=(4, 4), textcoords="offset points", fontsize=8)
        axes.set(xlabel=metric, ylabel=first)
        axes.legend(frameon=False, fontsize=8)
    return figure


def timeline(plan: Plan, slots: Sequence[Slot]) -> Figure | None:
    """When each trial ran, with the attempts whose workers were lost."""
    bars = [(slot, state, begin, end) for slot in slots for state, begin, end in _spans(slot)]
    if not bars:
        return None
    start = min(begin for _, _, begin, _ in bars)
    seconds = max(end for *_, end in bars) - start
    unit, name = (3600.0, "hours") if seconds > 7200 else (60.0, "minutes") if seconds > 120 else (1.0, "seconds")
    figure, (axes,) = grid(1, height=min(9.0, max(3.0, 1.2 + 0.16 * len(slots))))
    for slot, state, begin, end in bars:
        axes.barh(slot.number, (end - begin) / unit, left=(begin - start) / unit, color=STATES[state], height=0.75)
    states = [state for state in STATES if any(state == one for _, one, _, _ in bars)]
    above = {"loc": "lower right", "bbox_to_anchor": (1, 1), "ncols": len(states)}
    axes.legend(
        handles=[Patch(color=STATES[state], label=state) for state in states], frameon=False, fontsize=8, **above
    )
    axes.set(xlabel=f"{name} since the start", ylabel="trial", ylim=(len(slots) - 0.4, -0.6))
    if len(slots) <= MOST_NAMED:
        axes.set_yticks(range(len(slots)), [str(slot.number) for slot in slots], fontsize=7)
    axes.grid(visible=False, axis="y")
    axes.spines["left"].set_color(LIGHT)
    return figure


def _spans(slot: Slot) -> list[tuple[str, float, float]]:
    """State, begin and end of each attempt, in seconds since the epoch."""
    spans: list[tuple[str, float, float]] = []
    for attempt in slot.attempts:
        if attempt.datetime_start is not None:
            is_last = attempt is slot.trial and slot.state != "free"
            end: datetime | None = attempt.datetime_complete
            begun, ended = attempt.datetime_start.timestamp(), time.time() if end is None else end.timestamp()
            spans.append((slot.state if is_last else "lost", begun, ended))
    return spans
