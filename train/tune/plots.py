"""The pictures of a search: loss by learning rate, and speed and memory by batch size."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from matplotlib.figure import Figure

if TYPE_CHECKING:
    from train.tune.batch_size import Trial
    from train.tune.curve import Curve


def range_test(curve: Curve, configured: float | None) -> Figure:
    """Losses and their smoothed curve by learning rate, with the suggestion and the config's own rate."""
    figure = Figure(figsize=(7, 4.5), dpi=110, layout="constrained")
    axes = figure.subplots()
    rates = [curve.rate(step) for step in range(len(curve.losses))]
    axes.plot(rates, curve.losses, ".", color="tab:gray", markersize=3, alpha=0.4, label="loss of a step")
    axes.plot(
        [10**x for x, _ in curve.smoothed], [loss for _, loss in curve.smoothed], color="tab:blue", label="smoothed"
    )
    suggestion = curve.suggestion()
    if suggestion is not None:
        axes.axvline(suggestion, color="tab:red", label=f"suggestion {suggestion:.1e}")
    if configured:
        axes.axvline(configured, color="black", linestyle=":", label=f"configured {configured:.1e}")
    smoothed = [loss for _, loss in curve.smoothed]
    if smoothed:  # the losses after the end of learning would press all else to the floor
        room = 0.1 * (max(smoothed[0] - min(smoothed), 0.01 * smoothed[0]))
        axes.set_ylim(min(smoothed) - 2 * room, smoothed[0] + 4 * room)
    axes.set_xscale("log")
    axes.set(xlabel="learning rate", ylabel="training loss")
    axes.grid(alpha=0.25)
    axes.legend(frameon=False)
    return figure


def batch_sizes(trials: Sequence[Trial], *, no_faster_beyond: int, configured: int) -> Figure:
    """Rows per second and peak memory by batch size, one above the other."""
    figure = Figure(figsize=(7, 5.5), dpi=110, layout="constrained")
    speed, memory = figure.subplots(2, sharex=True)
    ordered = sorted(trials, key=lambda trial: trial.batch_size)
    sizes = [trial.batch_size for trial in ordered]
    speed.plot(sizes, [trial.rows_per_second for trial in ordered], "o-", color="tab:blue")
    speed.axvline(no_faster_beyond, color="tab:red", label=f"no faster beyond {no_faster_beyond:,}")
    speed.axvline(configured, color="black", linestyle=":", label=f"configured {configured:,}")
    speed.set(ylabel="rows/s")
    memory.plot(sizes, [trial.peak_bytes / 1e9 for trial in ordered], "o-", color="tab:blue")
    memory.set(xlabel="batch size", ylabel="peak memory in GB")
    memory.set_xscale("log", base=2)
    labelled = [
        size for size, larger in zip(sizes, [*sizes[1:], None], strict=True) if not larger or larger > 1.5 * size
    ]
    memory.set_xticks(labelled, [f"{size:,}" for size in labelled], rotation=45, ha="right")
    memory.minorticks_off()
    for axes in (speed, memory):
        axes.set_ylim(bottom=0)
        axes.grid(alpha=0.25)
    speed.legend(frameon=False)
    return figure
