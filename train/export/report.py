"""What an export says: a table on the screen, report.md with a picture, and the bundle's metrics.json."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from omegaconf import DictConfig
from rich.table import Table

from train import screen
from train.config.finding import seen_from_here
from train.export.contest import FLOAT32, Entry, Outcome
from train.export.source import Source
from train.export.timing import judged
from train.folder import write_picture, write_text


def metrics(source: Source, outcome: Outcome, tested: Mapping[str, Any]) -> dict[str, Any]:
    """Return metrics before and after each step; no times, so that only the choice of what ships depends on them."""
    name = f"test/{source.metric}"
    return {
        "metric": source.metric,
        "candidates_on_validation": {
            entry.made.name: {
                "value": entry.score.metrics[name],
                "drop": entry.verdict.drop if entry.verdict else 0.0,
                "drop_interval_95": entry.verdict.interval if entry.verdict else None,
                "bytes": entry.size,
                "left_in_float32": list(entry.made.left),
            }
            for entry in outcome.entries.values()
            if entry.score is not None
        },
        "shipped": outcome.winner,
        "torch_on_validation_and_test": source.result["metrics"],
        "metrics": tested["metrics"],
        "intervals_95": tested["intervals_95"],
        "slices": tested["card"]["slices"],
        "largest_difference_from_torch": outcome.entries[outcome.winner].variant.difference,
    }


def show(source: Source, outcome: Outcome, output: Path, told: Path, *, signed: bool) -> None:
    """Print the contest, the winner with its reason, and what to do next."""
    table = Table(title="export", title_justify="left", title_style="bold")
    for name in ("graph", source.metric.replace("_", " "), "drop", "bytes", *(f"µs, {one}" for one in judged())):
        table.add_column(name, justify="left" if name == "graph" else "right", overflow="fold")
    for name, row in _rows(source, outcome):  # without memory and the 99th percentiles, which report.md has
        short = [*row[:4], *(cell.partition(" ")[0] for cell in row[5:])]
        table.add_row(*short, style="bold" if name == outcome.winner else "")
    screen.console.print(table)
    for entry in outcome.entries.values():
        if entry.verdict is not None and not entry.verdict.passed:
            screen.console.print(f"[dim]refused  {entry.made.name}: {entry.verdict.reason}[/]", soft_wrap=True)
    screen.console.print(f"[bold]ships[/]   {outcome.reason}", soft_wrap=True)
    unsigned = "" if signed else "  [yellow](unsigned)[/]"
    screen.console.print(f"[bold]bundle[/]  {seen_from_here(output)}{unsigned}", soft_wrap=True)
    screen.console.print(f"[bold]report[/]  {seen_from_here(told)}", soft_wrap=True)


def write(told: Path, source: Source, outcome: Outcome, cfg: DictConfig) -> None:
    """Write the report, and its picture beside it. Raises StorageError."""
    header, beside = _header(source), outcome.entries[outcome.winner].variant.greedy
    lines = [
        f"# Export of {source.cfg.name}/{source.run.path.name}",
        "",
        f"Ships: **{outcome.winner}**: {outcome.reason}.",
        "",
        *([] if beside is None else [f"{beside}.", ""]),
        f"Metric: {source.metric} on the validation rows through ONNX Runtime, by the model's own test. Times: median "
        f"(99th percentile) in microseconds, {cfg.gate.rounds} interleaved rounds, on this machine. Memory: what the "
        "graph adds to a process at its peak."
        + (
            f" Pruned graphs were trained for {cfg.prune.finetune_steps:,} steps more than float32's "
            f"{source.result['steps']:,}: what they gain is that training's, not the pruning's."
            if any(entry.variant.name != FLOAT32 for entry in outcome.entries.values())
            else ""
        ),
        "",
        "| " + " | ".join(header) + " |",
        "|" + "---|" * len(header),
        *("| " + " | ".join(row) + " |" for _, row in _rows(source, outcome)),
        "",
        f"![metric against time and size]({told.stem}.png)",
        "",
        "## The gate's word on each",
        "",
        *(f"- {entry.made.name}: {_word(entry)}" for entry in outcome.entries.values()),
        "",
    ]
    write_text(told, "\n".join(lines))
    write_picture(told.with_suffix(".png"), _picture(source, outcome))


def _header(source: Source) -> list[str]:
    return ["graph", source.metric.replace("_", " "), "drop", "bytes", "memory", *(f"µs, {one}" for one in judged())]


def _rows(source: Source, outcome: Outcome) -> list[tuple[str, list[str]]]:
    settings = [str(one) for one in judged()]
    torch = ["-"] * 4 + [_micro(outcome.torch_latencies[setting]) for setting in settings]
    rows = [("torch", ["torch eager", *torch])]
    for name, entry in outcome.entries.items():
        if not entry.made.files:
            rows.append((name, [name, *["-"] * (4 + len(settings))]))
            continue
        score = "-" if entry.score is None else f"{entry.score.metrics[f'test/{source.metric}']:.4f}"
        drop = "-" if entry.verdict is None or entry.verdict.drop is None else _signed(entry.verdict.drop)
        sizes = [f"{entry.size:,}", f"{entry.memory / 1e6:.1f} MB"]
        rows.append((name, [name, score, drop, *sizes, *(_micro(entry.latencies[one]) for one in settings)]))
    return rows


def _micro(latency: Any) -> str:
    return f"{1e6 * latency.p50:,.0f} ({1e6 * latency.p99:,.0f})"


def _word(entry: Entry) -> str:
    left = f" Left in float32: {', '.join(entry.made.left)}." if entry.made.left else ""
    made = f" Made: {entry.made.note}." if entry.made.files else ""
    if entry.verdict is None:
        return f"the reference.{made}"
    return f"{'passed' if entry.verdict.passed else 'refused'}: {entry.verdict.reason}.{made}{left}"


def _signed(drop: float) -> str:
    return f"{drop:+.4f}" if abs(drop) >= 5e-5 else "0.0000"


def _picture(source: Source, outcome: Outcome) -> Figure:
    """Metric against the time of one row, the area of a point its bytes."""
    setting = str(judged()[0])
    shown = [entry for entry in outcome.entries.values() if entry.score and entry.latencies]
    figure = Figure(figsize=(7, 4.5), dpi=110, layout="constrained")
    axes = figure.subplots()
    largest = max([entry.size for entry in shown], default=1)
    for entry in shown:
        assert entry.score is not None
        x, y = 1e6 * entry.latencies[setting].p50, entry.score.metrics[f"test/{source.metric}"]
        is_out = entry.verdict is not None and not entry.verdict.passed
        color = "tab:green" if entry.made.name == outcome.winner else "tab:gray" if is_out else "tab:blue"
        axes.scatter(x, y, s=30 + 500 * entry.size / largest, alpha=0.5, color=color)
        axes.annotate(f"{entry.made.name}\n{entry.size / 1000:,.0f} kB", (x, y), fontsize=7, ha="center")
    axes.margins(0.15)
    axes.set_xlabel(f"time of one call in µs ({setting}); area: bytes; green ships, gray is refused")
    axes.set_ylabel(f"{source.metric.replace('_', ' ')}, validation")
    return figure
