"""All the graphs that could ship, measured side by side: each variant of the model, each way to make it smaller."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import onnx
import torch
from numpy.typing import NDArray
from omegaconf import DictConfig

from train import errors
from train.export import gate, graph, timing
from train.export.quantize import Candidate, candidate
from train.export.sensitivity import sensitivity
from train.export.session import open_session
from train.export.source import Arrays, Source, arrays

FLOAT32 = "float32"
PARITY_ROWS = 1_000
SAME = 2e-3  # of a metric through another runtime: rounding makes and breaks ties


@dataclass(frozen=True)
class Variant:
    """A model to export: the run's own, or a pruned one.

    Attributes:
        name: "float32", or the pruned ones' own.
        model: the LightningModule.
        graph: what it offers for export.
        core: the graph's file, ahead of which the graph's front belongs.
        difference: the largest from torch, over real and extreme rows.
    """

    name: str
    model: Any
    graph: Any
    core: Path
    difference: float


@dataclass
class Entry:
    """One graph of the contest.

    Attributes:
        candidate: with the whole graph's file, front included; without one where there is none.
        variant: what it was made of.
        core: the graph without its front, which is what is scored; None where there is none.
        score: on the validation rows; None without such rows or without a file.
        latencies: by setting.
        memory: peak bytes that it adds to a process.
        verdict: the gate's; None for float32 itself.
    """

    candidate: Candidate
    variant: Variant
    core: Path | None
    score: gate.Score | None = None
    latencies: dict[str, timing.Latency] = field(default_factory=dict)
    memory: int = 0
    verdict: gate.Verdict | None = None

    @property
    def size(self) -> int:
        """Bytes of the file; 0 without one."""
        return self.candidate.path.stat().st_size if self.candidate.path else 0


@dataclass(frozen=True)
class Outcome:
    """The contest's end.

    Attributes:
        entries: by name, float32 first.
        winner: name of the one that ships.
        reason: why.
        torch_latencies: of the run's network itself, by setting.
    """

    entries: dict[str, Entry]
    winner: str
    reason: str
    torch_latencies: dict[str, timing.Latency]


def make_variant(source: Source, name: str, model: Any, folder: Path) -> Variant:
    """Write a model's graph and hold it against torch.

    Raises:
        GateError: the graph is not sound, or differs from torch by more than rounding.
    """
    graphs = model.export_graphs()
    if len(graphs) != 1:
        raise errors.ConfigError(f"{type(model).__name__} offers {len(graphs)} graphs; one is what is exported now")
    offered, core, whole = graphs[0], folder / f"{name}.core.onnx", folder / f"{name}.onnx"
    graph.write(offered, core)
    graph.save(graph.with_front(onnx.load(core), offered.front), whole)
    reference = partial(in_torch, source.datamodule, offered)
    difference = graph.largest_difference(open_session(whole), reference, source.raw(PARITY_ROWS))
    if not difference <= offered.tolerance:
        raise errors.GateError(
            f"the exported graph {name!r} differs from torch by {difference:.2g}, more than {offered.tolerance:g}: "
            "nothing is exported"
        )
    return Variant(name, model, offered, core, difference)


def in_torch(datamodule: Any, offered: Any, raw: Mapping[str, NDArray[Any]]) -> tuple[NDArray[Any], ...]:
    """Return the outputs of a graph's module for raw rows."""
    encoded = datamodule.encode_raw(raw)
    with torch.inference_mode():
        return tuple(output.numpy() for output in offered.module(**{name: encoded[name] for name in offered.inputs}))


def hold(source: Source, variants: list[Variant], cfg: DictConfig, folder: Path, tell: Callable[[str], Any]) -> Outcome:
    """Make all candidates of all variants, measure them, and choose.

    Args:
        source: the run.
        variants: its own model first.
        cfg: the verb's config.
        folder: for the files.
        tell: is told what is done.
    """
    rule = gate.Rule(source.metric, source.cfg.mode, cfg.gate.max_drop, cfg.gate.prefer)
    entries: dict[str, Entry] = {}
    for variant in variants:
        tell(f"scoring {variant.name}")
        whole = Candidate(variant.name, folder / f"{variant.name}.onnx", "as exported")
        entries[variant.name] = Entry(whole, variant, variant.core, scored(source, variant, variant.core))
        for method in cfg.quantize:
            tell(f"{variant.name}: {method}")
            entry = _smaller(source, variant, method, entries[FLOAT32], rule, cfg, folder)
            entries[entry.candidate.name] = entry
    _check_run(source, entries[FLOAT32])
    tell("timing")
    in_time = _time(source, entries, cfg.gate.rounds)
    return _decided(source, entries, in_time, rule)


def _check_run(source: Source, reference: Entry) -> None:
    """Raise StorageError unless the checkpoint does on the validation rows what the run has told of its best."""
    told = source.result["metrics"].get(f"val/{source.metric}")
    if reference.score is None or told is None:
        return
    found = reference.score.metrics[f"test/{source.metric}"]
    if not abs(found - told) <= SAME:
        raise errors.StorageError(
            f"the best checkpoint has {source.metric} {found:.4f} on the validation rows, and result.json tells of "
            f"{told:.4f}: it is not the one that was tested"
        )


def scored(source: Source, variant: Variant, core: Path) -> gate.Score | None:
    """Score a graph, its front left away, on the validation rows; None where there are none."""
    loader = source.datamodule.val_dataloader()
    return gate.score(variant.model, loader, open_session(core)) if loader else None


def _smaller(
    source: Source, variant: Variant, method: str, reference: Entry, rule: gate.Rule, cfg: DictConfig, folder: Path
) -> Entry:
    """Quantize a variant, leaving in float32 the layers that lose too much."""
    names, aside = list(variant.graph.inputs), folder / variant.name
    calibration = partial(_calibration, source, names, cfg.calibration_rows)

    def drop(core: Path) -> float:
        found = scored(source, variant, core)
        if found is None or reference.score is None:
            return 0.0
        return gate.drop_of(reference.score.metrics[rule.test_name], found.metrics[rule.test_name], rule.mode)

    made = candidate(variant.core, aside, method, calibration=calibration)
    found = None if made.path is None else scored(source, variant, made.path)
    if made.path is not None and variant.name == FLOAT32 and drop(made.path) > rule.max_drop:
        mended = sensitivity(variant.core, aside, method, calibration=calibration, drop=drop, max_drop=rule.max_drop)
        if mended.candidate.path is not None:  # else the candidate stays, to be refused with its figure
            made, found = mended.candidate, scored(source, variant, mended.candidate.path)
        else:
            made = candidate(variant.core, aside, method, calibration=calibration)
    name = method if variant.name == FLOAT32 else f"{variant.name}+{method}"
    return Entry(_with_front(replace(made, name=name), variant, folder), variant, made.path, found)


def _with_front(made: Candidate, variant: Variant, folder: Path) -> Candidate:
    if made.path is None:
        return made
    whole = folder / f"{made.name}.onnx"
    try:
        graph.save(graph.with_front(graph.plain(onnx.load(made.path)), variant.graph.front), whole)
    except errors.GateError as error:
        return replace(made, path=None, note=str(error))
    return replace(made, path=whole)


def _calibration(source: Source, names: list[str], num_rows: int) -> Iterator[Arrays]:
    for batch in source.training_batches(num_rows):
        yield arrays(batch, names)


def _time(source: Source, entries: dict[str, Entry], rounds: int) -> dict[str, timing.Latency]:
    """Time all graphs and the run's network in turns; return the network's."""
    offered, raw = entries[FLOAT32].variant.graph, source.raw(64)
    encoded = source.datamodule.encode_raw(raw)
    files = {name: entry.candidate.path for name, entry in entries.items() if entry.candidate.path}
    in_torch = {name: encoded[name].numpy() for name in offered.inputs}
    found = timing.measure(
        files, raw, asked=timing.settings(), model=offered.module, model_rows=in_torch, rounds=rounds
    )
    memory = timing.peak_memory(files, raw)
    for name in files:
        entries[name].latencies = {str(setting): by_name[name] for setting, by_name in found.items()}
        entries[name].memory = memory[name]
    return {str(setting): by_name[timing.TORCH] for setting, by_name in found.items()}


def _decided(
    source: Source, entries: dict[str, Entry], in_torch: dict[str, timing.Latency], rule: gate.Rule
) -> Outcome:
    reference = entries[FLOAT32]
    if reference.score is None:
        reason = "there are no validation rows to judge by: float32 ships"
        return Outcome(entries, FLOAT32, reason, in_torch)
    measured = {name: _measured(entry, reference, rule) for name, entry in entries.items() if entry.score}
    others = [entry.candidate for name, entry in entries.items() if name != FLOAT32]
    decision = gate.decide(measured[FLOAT32], others, measured, rule)
    for verdict in decision.verdicts:
        entries[verdict.name].verdict = verdict
    return Outcome(entries, decision.winner, decision.reason, in_torch)


def _measured(entry: Entry, reference: Entry, rule: gate.Rule) -> gate.Measured:
    assert entry.score is not None
    statistic = partial(entry.variant.model.metric_of, name=rule.metric)
    times = {
        str(setting): timing.ratio(entry.latencies[str(setting)], reference.latencies[str(setting)])
        for setting in timing.judged()
    }
    return gate.Measured(
        name=entry.candidate.name,
        size=entry.size,
        metric=entry.score.metrics[rule.test_name],
        draws=None if entry.score.rows is None else gate.draws(entry.score.rows, statistic),
        times={} if entry is reference else times,
    )
