"""The model card of a bundle (Mitchell et al., 2019): what the model is for, how it was made, how well it does."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from omegaconf import DictConfig

from train.export.contest import Outcome
from train.export.prune import num_parameters
from train.export.source import Source


def text(source: Source, outcome: Outcome, tested: Mapping[str, Any], cfg: DictConfig) -> str:
    """Return the card in Markdown; the same run gives the same card."""
    winner, said = outcome.entries[outcome.winner], tested["card"]
    outputs = "; ".join(", ".join(offered.outputs) for offered in winner.variant.graphs)
    thresholds = [(name, f"{value:.6g}") for name, value in said["thresholds"].items()]
    columns = "; a column of the decision for each threshold below, in their order" if thresholds else ""
    kind = source.cfg.model._target_.rpartition(".")[2]
    parts = [
        f"# {source.cfg.name}: model card",
        f"{kind} with {num_parameters(winner.variant.model):,} parameters. It predicts {said['predicts']}.",
        "## Data",
        f"{source.datamodule.summary}. Fingerprint {source.provenance['data_fingerprint']}. Training rows fit the "
        "weights; validation rows choose the checkpoint, set calibration and thresholds where there are such, and "
        "judge the export; test rows were read once for the run, and once for the graph that ships.",
        *(f"- {note}" for note in source.datamodule.notes),
        "## Inputs and outputs",
        _table(("input [rows, columns]", "what it holds, in this order"), list(said["inputs"].items())),
        f"Outputs: {outputs}{columns}.",
        *([] if winner.variant.greedy is None else [f"{winner.variant.greedy}."]),
        "## Test metrics of what ships",
        _table(("metric", "value", "95 % interval"), _metric_rows(tested)),
        *(["## Thresholds", _table(("threshold", "probability"), thresholds)] if thresholds else []),
        "## Slices of the test rows",
        _slices(said["slices"]),
        "## Baselines on the same rows",
        _baselines(source.result["baselines"], source.metric),
        "## Limits",
        *(f"- {limit}" for limit in said["limits"]),
        "## How it was made",
        *(f"- {line}" for line in _made(source, outcome, cfg)),
    ]
    return _joined(parts)


def _made(source: Source, outcome: Outcome, cfg: DictConfig) -> list[str]:
    winner, provenance = outcome.entries[outcome.winner], source.provenance
    versions = ", ".join(f"{name} {version}" for name, version in sorted(provenance["packages"].items()))
    lines = [
        f"run {source.run.path.name}, seed {source.cfg.seed}, {source.result['steps']:,} steps, commit "
        f"{provenance['git_commit'] or 'unknown'}; its config is config.yaml",
        versions,
        f"exported as {outcome.winner} ({winner.made.note}); within {winner.variant.difference:.1g} of torch "
        "before any quantization, on real and on extreme rows",
        f"{source.metric} may fall by {cfg.gate.max_drop:g} at most against float32 on the validation rows",
    ]
    if winner.variant.name != "float32":
        tuned = cfg.prune.finetune_steps
        lines.append(f"pruned by {cfg.prune.importance} importance, then {tuned:,} steps of training on what was left")
    return lines


def _metric_rows(tested: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    intervals = tested["intervals_95"]
    return [
        (name.partition("/")[2], _number(value), " to ".join(_number(bound) for bound in intervals.get(name, ())))
        for name, value in tested["metrics"].items()
    ]


def _slices(slices: Mapping[str, Mapping[str, float]]) -> str:
    if not slices:
        return "None."
    names = list(next(iter(slices.values())))
    rows = [(part, *(_number(values[name]) for name in names)) for part, values in slices.items()]
    return _table(("slice", *(name.replace("_", " ") for name in names)), rows)


def _baselines(baselines: Mapping[str, Mapping[str, float]], metric: str) -> str:
    if not baselines:
        return "None were trained."
    return _table(("baseline", metric), [(name, _number(row.get(metric))) for name, row in baselines.items()])


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    # Names of classes are the user's own: what would end a cell or a line is escaped or a space.
    cells = [[" ".join(cell.split()).replace("|", r"\|") for cell in row] for row in rows]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in cells)])


def _number(value: float | None) -> str:
    if value is None or value != value:
        return "-"
    return f"{value:,.0f}" if float(value).is_integer() and abs(value) >= 2 else f"{value:.4f}"


def _joined(parts: Sequence[str]) -> str:
    """Paragraphs with empty lines between them, but for the lines of a list."""
    lines: list[str] = []
    for part in parts:
        if lines and not (part.startswith("- ") and lines[-1].startswith("- ")):
            lines.append("")
        lines.append(part)
    return "\n".join(lines) + "\n"
