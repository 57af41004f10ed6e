"""All the graphs that could ship, measured side by side: each variant of the model, each way to make it smaller."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from omegaconf import DictConfig

from train import errors
from train.export import gate, graph, timing
from train.export.greedy import Greedy
from train.export.quantize import Candidate, candidate
from train.export.sensitivity import sensitivity
from train.export.session import open_session
from train.export.source import Arrays, Source, arrays

FLOAT32 = "float32"
PARITY_ROWS = 1_000
LARGEST_BATCH = 64  # that is timed
SAME = 2e-3  # of a metric through another runtime: rounding makes and breaks ties


Files = dict[str, Path]  # by the name of the graph


@dataclass(frozen=True)
class Variant:
    """A model to export: the run's own, or a pruned one.

    Attributes:
        name: "float32", or the pruned ones' own.
        model: the LightningModule.
        graphs: what it offers for export.
        cores: the graphs' files, ahead of which the graphs' fronts belong.
        difference: the largest from torch, over real and extreme rows.
        greedy: the graph that writes by itself; None where none is asked for.
    """

    name: str
    model: Any
    graphs: list[Any]
    cores: Files
    difference: float
    greedy: Greedy | None = None

    def inputs(self, datamodule: Any, raw: Arrays) -> dict[str, Arrays]:
        """What each graph takes for raw rows: these themselves, or what the graphs before it make of them."""
        if len(self.graphs) == 1:
            return {self.graphs[0].name: raw}
        found = self.model.graph_inputs(datamodule.encode_raw(raw))
        return {name: arrays(given, list(given)) for name, given in found.items()}


@dataclass(frozen=True)
class Made:
    """A method's version of all graphs of a variant.

    Attributes:
        name: the method, after the variant's name where that is not float32.
        files: whole, fronts included; none where the method fails.
        note: what was done, or why there is no file.
        left: names of the layers that stay float32 although the method could take them.
    """

    name: str
    files: Files
    note: str
    left: tuple[str, ...] = ()


@dataclass
class Entry:
    """One version of the graphs in the contest.

    Attributes:
        made: with the whole graphs' files.
        variant: what it was made of.
        cores: the graphs without their fronts, which are what is scored; none where there are none.
        score: on the validation rows; None without such rows or without files.
        latencies: by setting; of several graphs, of one call of each.
        memory: peak bytes that they add to a process.
        verdict: the gate's; None for float32 itself.
    """

    made: Made
    variant: Variant
    cores: Files
    score: gate.Score | None = None
    latencies: dict[str, timing.Latency] = field(default_factory=dict)
    memory: int = 0
    verdict: gate.Verdict | None = None

    @property
    def size(self) -> int:
        """Bytes of the files; 0 without any."""
        return sum(path.stat().st_size for path in self.made.files.values())


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
    """Write a model's graphs and hold them against torch.

    Raises:
        GateError: a graph is not sound, or differs from torch by more than rounding.
    """
    graphs = model.export_graphs()
    cores = {offered.name: folder / f"{name}.{offered.name}.core.onnx" for offered in graphs}
    whole = whole_files(graphs, folder, name)
    for offered in graphs:
        graph.write(offered, cores[offered.name])
        graph.save(graph.with_front(onnx.load(cores[offered.name]), offered.front), whole[offered.name])
    made = Variant(name, model, graphs, cores, 0.0)
    rows = made.inputs(source.datamodule, source.raw(PARITY_ROWS))
    differences = [_difference(source, offered, whole[offered.name], rows[offered.name]) for offered in graphs]
    return replace(made, difference=max(differences))


def whole_files(graphs: list[Any], folder: Path, name: str) -> Files:
    """Where the whole graphs of one version belong, fronts included."""
    return {offered.name: folder / f"{name}.{offered.name}.onnx" for offered in graphs}


def _difference(source: Source, offered: Any, path: Path, rows: Arrays) -> float:
    reference = partial(in_torch, source.datamodule, offered)
    difference = graph.largest_difference(
        open_session(path), reference, rows, extreme=offered.is_first, paired=offered.paired
    )
    if not difference <= offered.tolerance:
        raise errors.GateError(
            f"the exported graph {offered.name!r} differs from torch by {difference:.2g}, more than "
            f"{offered.tolerance:g}: nothing is exported"
        )
    return difference


def in_torch(datamodule: Any, offered: Any, raw: Mapping[str, NDArray[Any]]) -> tuple[NDArray[Any], ...]:
    """Return the outputs of a graph's module for raw rows."""
    with torch.inference_mode():
        found = offered.module(**offered.nested(datamodule.encode_raw(raw)))
    return tuple(output.numpy() for output in (found if isinstance(found, tuple) else (found,)))


def hold(source: Source, variants: list[Variant], cfg: DictConfig, folder: Path, tell: Callable[[str], Any]) -> Outcome:
    """Make all candidates of all variants, measure them, and choose.

    Args:
        source: the run.
        variants: its own model first.
        cfg: the verb's config.
        folder: for the files.
        tell: is told what is done.
    """
    # The drop is a share of the metric's range, which is 1, or 100 where papers give hundredths.
    most = cfg.gate.max_drop * getattr(source.model, "metric_range", 1.0)
    rule = gate.Rule(source.metric, source.cfg.mode, most, cfg.gate.prefer)
    entries: dict[str, Entry] = {}
    for variant in variants:
        tell(f"scoring {variant.name}")
        whole = Made(variant.name, whole_files(variant.graphs, folder, variant.name), "as exported")
        entries[variant.name] = Entry(whole, variant, variant.cores, scored(source, variant, variant.cores))
        for method in cfg.quantize:
            tell(f"{variant.name}: {method}")
            entry = _smaller(source, variant, method, entries[FLOAT32], rule, cfg, folder)
            entries[entry.made.name] = entry
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
    if not abs(found - told) <= SAME * getattr(source.model, "metric_range", 1.0):
        raise errors.StorageError(
            f"the best checkpoint has {source.metric} {found:.4f} on the validation rows, and result.json tells of "
            f"{told:.4f}: it is not the one that was tested"
        )


def scored(source: Source, variant: Variant, cores: Files) -> gate.Score | None:
    """Score graphs, their fronts left away, on the validation rows; None where there are none."""
    loader = source.datamodule.val_dataloader()
    return gate.score(variant.model, loader, opened(cores)) if loader else None


def opened(files: Files) -> dict[str, Any]:
    """A session of each graph."""
    return {name: open_session(path, lengths_vary=len(files) > 1) for name, path in files.items()}


def _smaller(
    source: Source, variant: Variant, method: str, reference: Entry, rule: gate.Rule, cfg: DictConfig, folder: Path
) -> Entry:
    """Quantize a variant, leaving in float32 the graphs that the method cannot take, and the layers that lose too much.

    Layers are searched where there is one graph.
    """
    rows = partial(_calibration, source, variant, cfg.calibration_rows)
    asides = {name: folder / variant.name / name for name in variant.cores}
    found = {
        name: candidate(core, asides[name], method, calibration=partial(rows, name))
        for name, core in variant.cores.items()
    }

    def score_of(made: Mapping[str, Candidate]) -> gate.Score | None:
        cores = {name: made[name].path or core for name, core in variant.cores.items()}
        return scored(source, variant, cores) if any(one.path for one in made.values()) else None

    def drop(score: gate.Score | None) -> float:
        if score is None or reference.score is None:
            return 0.0
        return gate.drop_of(reference.score.metrics[rule.test_name], score.metrics[rule.test_name], rule.mode)

    score = score_of(found)
    if variant.name == FLOAT32 and len(found) == 1 and drop(score) > rule.max_drop:
        ((name, one),) = found.items()
        options: Any = {"calibration": partial(rows, name)}
        mended = sensitivity(
            variant.cores[name],
            asides[name],
            method,
            drop=lambda core: drop(score_of({name: replace(one, path=core)})),
            max_drop=rule.max_drop,
            **options,
        )
        # Where leaving layers out does not help, the candidate stays, to be refused with its figure.
        helped = mended.candidate.path is not None
        found = {name: mended.candidate if helped else candidate(variant.cores[name], asides[name], method, **options)}
        score = score_of(found)
    label = method if variant.name == FLOAT32 else f"{variant.name}+{method}"
    made = _whole(label, found, variant, folder)
    cores = {name: one.path or variant.cores[name] for name, one in found.items()} if made.files else {}
    return Entry(made, variant, cores, score if made.files else None)


def _whole(name: str, found: Mapping[str, Candidate], variant: Variant, folder: Path) -> Made:
    """Put the fronts ahead of candidates, those of all graphs of a variant."""
    notes = {graph_name: one.note for graph_name, one in found.items()}
    note = next(iter(notes.values())) if len(notes) == 1 else "; ".join(f"{of}: {said}" for of, said in notes.items())
    if not any(one.path for one in found.values()):
        return Made(name, {}, note)
    files = whole_files(variant.graphs, folder, name)
    try:
        for offered in variant.graphs:
            core = found[offered.name].path or variant.cores[offered.name]
            graph.save(graph.with_front(graph.plain(onnx.load(core)), offered.front), files[offered.name])
    except errors.GateError as error:
        return Made(name, {}, str(error))
    return Made(name, files, note, tuple(layer for one in found.values() for layer in one.left))


def _calibration(source: Source, variant: Variant, num_rows: int, name: str) -> Iterator[Arrays]:
    """Training rows as the inputs of one graph, without its front."""
    (offered,) = (one for one in variant.graphs if one.name == name)
    for batch in source.training_batches(num_rows):
        given = batch if len(variant.graphs) == 1 else variant.model.graph_inputs(batch)[name]
        yield arrays(given, list(offered.flat))


def repeated(rows: Arrays, num: int) -> Arrays:
    """So many rows, taken again from the first where there are fewer."""
    return {name: values[np.arange(num) % len(values)] for name, values in rows.items()}


def _time(source: Source, entries: dict[str, Entry], rounds: int) -> dict[str, timing.Latency]:
    """Time all versions and the run's network in turns, graph by graph; return the network's."""
    variants = {entry.variant.name: entry.variant for entry in entries.values()}
    raw = repeated(source.raw(LARGEST_BATCH), LARGEST_BATCH)
    # A pruned decoder takes fewer keys and values than the run's own.
    rows = {name: variant.inputs(source.datamodule, raw) for name, variant in variants.items()}
    in_all: list[dict[str, dict[str, timing.Latency]]] = []
    for offered in variants[FLOAT32].graphs:
        graphs = {
            name: (entry.made.files[offered.name], rows[entry.variant.name][offered.name])
            for name, entry in entries.items()
            if entry.made.files
        }
        encoded = source.datamodule.encode_raw(rows[FLOAT32][offered.name])
        in_torch = {name: encoded[name].numpy() for name in offered.flat}
        found = timing.measure(
            graphs,
            asked=timing.settings(),
            model=(lambda offered=offered, **flat: offered.module(**offered.nested(flat)), in_torch),
            rounds=rounds,
        )
        in_all.append({str(setting): by_name for setting, by_name in found.items()})
        for name, memory in timing.peak_memory(graphs).items():
            entries[name].memory += memory
    together = {
        setting: {name: timing.added([found[setting][name] for found in in_all]) for name in by_name}
        for setting, by_name in in_all[0].items()
    }
    for name, entry in entries.items():
        if entry.made.files:
            entry.latencies = {setting: by_name[name] for setting, by_name in together.items()}
    return {setting: by_name[timing.TORCH] for setting, by_name in together.items()}


def _decided(
    source: Source, entries: dict[str, Entry], in_torch: dict[str, timing.Latency], rule: gate.Rule
) -> Outcome:
    reference = entries[FLOAT32]
    if reference.score is None:
        reason = "there are no validation rows to judge by: float32 ships"
        return Outcome(entries, FLOAT32, reason, in_torch)
    measured = {name: _measured(entry, reference, rule) for name, entry in entries.items() if entry.score}
    others = [entry.made for name, entry in entries.items() if name != FLOAT32]
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
        name=entry.made.name,
        size=entry.size,
        metric=entry.score.metrics[rule.test_name],
        draws=None if entry.score.rows is None else gate.draws(entry.score.rows, statistic),
        times={} if entry is reference else times,
    )
