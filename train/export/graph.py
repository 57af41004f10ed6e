"""A model's graphs as ONNX files: written, checked, and held against torch on real and on extreme rows."""

from __future__ import annotations

import logging
import re
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray

from train import errors

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

OPSET = 20
MOST_FLIPPED = 0.01  # share of decisions: a row whose score is the threshold's neighbour falls by rounding
BATCH_SIZES = (1, 2, 7, 64, 1000)
RANDOM = re.compile("Dropout|Random.*|Multinomial|Bernoulli")

Arrays = Mapping[str, NDArray[Any]]


def write(graph: Any, path: Path) -> None:
    """Write a `models.graph.Graph` as one float32 ONNX file; the same weights give the same bytes.

    Raises:
        GateError: the file that came out breaks a rule.
    """
    dynamic = {name: {d: torch.export.Dim.DYNAMIC for d in graph.dynamic.get(name, ())} for name in graph.flat}
    with warnings.catch_warnings(), _quiet("torch.onnx", "onnxscript", "onnx_ir", "torch.export"):
        warnings.simplefilter("ignore")  # of torch's own making
        program = torch.onnx.export(
            graph.module,
            (),
            kwargs=dict(graph.inputs),
            input_names=list(graph.flat),
            output_names=list(graph.outputs),
            dynamic_shapes=graph.nested(dynamic),
            opset_version=OPSET,
            dynamo=True,
            external_data=False,
            verbose=False,
        )
    assert program is not None
    model = plain(program.model_proto)
    name_sizes(model, graph.dynamic)
    save(model, path)


def plain(model: onnx.ModelProto) -> onnx.ModelProto:
    """Take out what says where and how it was made: the exporter notes source files and stack traces."""
    for holder in (model.graph, *model.graph.node, *model.graph.value_info, *model.graph.initializer, *model.functions):
        holder.ClearField("doc_string")
        holder.ClearField("metadata_props")
    for value in (*model.graph.input, *model.graph.output):
        value.ClearField("doc_string")
        value.ClearField("metadata_props")
    model.ClearField("metadata_props")
    model.ClearField("doc_string")
    del model.graph.value_info[:]  # shape inference makes them again
    return model


def name_sizes(model: onnx.ModelProto, dynamic: Mapping[str, Mapping[int, str]]) -> None:
    """Give the varying sizes of inputs and of outputs' first dimension the names that the model gave them."""
    for value in model.graph.input:
        for dimension, name in dynamic.get(value.name, {}).items():
            value.type.tensor_type.shape.dim[dimension].dim_param = name
    rows = next(iter(next(iter(dynamic.values())).values()))
    for value in model.graph.output:
        first = value.type.tensor_type.shape.dim[0]
        if not first.HasField("dim_value"):
            first.dim_param = rows


def save(model: onnx.ModelProto, path: Path) -> None:
    """Check a model and write it. Raises GateError if it breaks a rule, StorageError if the disk does."""
    check(model)
    with errors.reporting(errors.StorageError):
        path.write_bytes(model.SerializeToString(deterministic=True))


def check(model: onnx.ModelProto) -> None:
    """Raise GateError unless it is sound ONNX of our opset with one varying size of rows and nothing random in it."""
    try:
        onnx.checker.check_model(model, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise errors.GateError(f"the exported graph is not sound ONNX: {error}") from error
    opset = {entry.domain: entry.version for entry in model.opset_import}[""]
    if opset < OPSET:
        raise errors.GateError(f"the graph was written with opset {opset}, it must be {OPSET} or newer")
    random = sorted({node.op_type for node in model.graph.node if RANDOM.fullmatch(node.op_type)})
    if random:
        raise errors.GateError(f"the graph holds {', '.join(random)}: the model was not in eval mode")
    for value in model.graph.input:
        if value.type.tensor_type.shape.dim[0].HasField("dim_value"):
            raise errors.GateError(f"input {value.name!r} of the graph is frozen to the example's number of rows")


def with_front(model: onnx.ModelProto, front: onnx.GraphProto | None) -> onnx.ModelProto:
    """Put nodes ahead of a graph: the front's n-th output goes where the input named as its n-th input was."""
    if front is None:
        return model
    taken = {given.name: f"front/{made.name}" for given, made in zip(front.input, front.output, strict=True)}
    inputs = {value.name: value for value in front.input}
    joined = onnx.ModelProto()
    joined.CopyFrom(model)
    graph = joined.graph
    for node in graph.node:
        node.input[:] = [taken.get(name, name) for name in node.input]
    old = list(graph.input)
    del graph.input[:]
    graph.input.extend(inputs.get(value.name, value) for value in old)
    nodes = [*_prefixed(front), *graph.node]
    del graph.node[:]
    graph.node.extend(nodes)
    for tensor in front.initializer:
        graph.initializer.add().CopyFrom(tensor)
        graph.initializer[-1].name = f"front/{tensor.name}"
    present = {entry.domain for entry in joined.opset_import}
    used = {node.domain for node in front.node}
    joined.opset_import.extend(
        onnx.helper.make_opsetid(domain, version)
        for domain, version in (("ai.onnx.ml", 4), ("com.microsoft", 1))
        if domain in used - present
    )
    return joined


def _prefixed(front: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    own = {value.name for value in front.input}
    for node in front.node:
        copy = onnx.NodeProto()
        copy.CopyFrom(node)
        copy.name = f"front/{node.name}"
        copy.input[:] = [name if name in own else f"front/{name}" for name in node.input]
        copy.output[:] = [f"front/{name}" for name in node.output]
        yield copy


def largest_difference(
    session: InferenceSession,
    reference: Callable[[Arrays], tuple[NDArray[Any], ...]],
    raw: Arrays,
    *,
    extreme: bool = True,
    paired: Callable[[Any, Any], tuple[Any, Any]] | None = None,
) -> float:
    """Return how far the graph is from torch: on real rows at several batch sizes, then on extreme ones.

    Args:
        session: of the graph with its front.
        reference: torch's outputs for raw rows.
        raw: real rows, by input name; as many as the largest batch is best.
        extreme: whether rows can be extreme, as those of callers can; not so what another graph makes.
        paired: puts outputs side by side, see `models.graph.Graph`; None where they are.

    Raises:
        GateError: where one gives a number and the other none, or they decide differently beyond rounding.
    """
    worst, flipped = 0.0, []
    rows = len(next(iter(raw.values())))
    batches = [{name: values[:size] for name, values in raw.items()} for size in BATCH_SIZES if size <= rows]
    for batch in [*batches, *(extremes(raw) if extreme else ())]:
        found, expected = session.run(None, dict(batch)), reference(batch)
        if paired is not None:
            found, expected = paired(found, expected)
        worst = max(worst, _difference(found, expected))
        pairs = zip(found, expected, strict=True)
        flipped += [(ours != theirs).ravel() for ours, theirs in pairs if is_decision(theirs)]
    if flipped and (share := float(np.mean(np.concatenate(flipped)))) > MOST_FLIPPED:
        raise errors.GateError(f"{share:.1%} of the graph's decisions are not torch's, more than {MOST_FLIPPED:.0%}")
    return worst


def _difference(found: list[Any], expected: tuple[NDArray[Any], ...]) -> float:
    worst = 0.0
    for ours, theirs in zip(found, expected, strict=True):
        if ours.shape != theirs.shape:
            raise errors.GateError(f"the graph gives {ours.shape} where torch gives {theirs.shape}")
        if is_decision(theirs):
            continue  # `largest_difference` counts them
        if not np.array_equal(np.isnan(ours), np.isnan(theirs)):
            raise errors.GateError("the graph gives a number where torch gives none, or the other way round")
        worst = max(worst, float(np.nanmax(np.abs(ours - theirs), initial=0.0)))
    return worst


def is_decision(output: NDArray[Any]) -> bool:
    """Whether an output is yes or no, or the number of a class: its rounding is another decision, and no distance."""
    return output.dtype.kind in "bi"


def extremes(raw: Arrays) -> Iterator[Arrays]:
    """Rows with what no training set had: missing, infinite and huge numbers, ends of time, odd texts."""
    rows = {name: values[:64].copy() for name, values in raw.items()}
    odd: dict[str, tuple[Any, ...]] = {
        "f": (np.nan, np.inf, -np.inf, 3e38, -3e38, 1e-38, 0.0),
        "i": (np.iinfo(np.int64).min, 0, 2**40, -(2**40)),
        "u": (0, 255),
        "O": ("", "never seen", "é\u4e16\U0001f600", "x" * 1000, "0", "nan"),
    }
    for position in range(max(map(len, odd.values()))):
        batch = {}
        for name, values in rows.items():
            choices = odd[values.dtype.kind]
            batch[name] = np.full_like(values, choices[position % len(choices)])
        yield batch
    generator = np.random.default_rng(0)
    for _ in range(4):  # some cells of each row
        batch = {}
        for name, values in rows.items():
            some = np.array(odd[values.dtype.kind], values.dtype)
            is_hit = generator.random(values.shape) < 0.3
            batch[name] = np.where(is_hit, generator.choice(some, values.shape), values).astype(values.dtype)
        yield batch


class _quiet:
    """Keeps loggers from telling what they do."""

    def __init__(self, *names: str) -> None:
        self.loggers = [logging.getLogger(name) for name in names]

    def __enter__(self) -> None:
        self.levels = [logger.level for logger in self.loggers]
        for logger in self.loggers:
            logger.setLevel(logging.ERROR)

    def __exit__(self, *_: object) -> None:
        for logger, level in zip(self.loggers, self.levels, strict=True):
            logger.setLevel(level)
