"""Other versions of a float32 ONNX graph: weights or products in int8, float16, 4 bits, or with zeros.

A method that does not apply to a graph, or fails on it, is a candidate without a file and with the reason. The same
graph and rows give the same bytes.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto

from train.export import layers, weights
from train.export.settings import Method

Rows = Mapping[str, NDArray[Any]]
Calibration = Callable[[], Iterator[Rows]]
CALIBRATION_BATCH = 128  # rows; the calibrators want batches of one size
ENTROPY_BINS = 512  # ONNX Runtime's own 128, of which it keeps 128, leave nothing to choose: it is minmax then
DYNAMIC = frozenset({"MatMul"})
STATIC = frozenset({"MatMul", "Gemm", "Conv"})
SPARSE = frozenset({"sparse_50", "sparse_2_4"})


@dataclass(frozen=True)
class Candidate:
    """A graph that may ship.

    Attributes:
        name: its method.
        path: its file; None where there is none.
        note: what was done, or why there is no file.
        left: names of the layers that stay float32 although the method could take them.
    """

    name: str
    path: Path | None
    note: str
    left: tuple[str, ...] = ()


def candidates(float32: Path, folder: Path, *, methods: Sequence[str], calibration: Calibration) -> list[Candidate]:
    """Write `folder`/METHOD.onnx for each method.

    Args:
        float32: the graph as exported, in one file.
        folder: made where it is not there.
        methods: among `Method`.
        calibration: gives batches of training rows by the graph's input names. Each layer's inputs and outputs
            over all of them lie in memory at once.

    Raises:
        ValueError: there is no such method.
    """
    for method in methods:
        if method not in get_args(Method):
            raise ValueError(f"methods must be among {', '.join(get_args(Method))}; got {method!r}")
    return [candidate(float32, folder, method, calibration=calibration) for method in methods]


def candidate(
    float32: Path, folder: Path, method: str, *, calibration: Calibration, left: Collection[str] = ()
) -> Candidate:
    """Write `folder`/`method`.onnx with all layers quantized that the method can, but for those `left` in float32."""
    try:
        with layers.quiet():
            model, names = prepared(float32, method)
            chosen = [name for name in names if name not in left]
            if not chosen:
                return Candidate(method, None, "no layer is left to it" if names else _nothing(method))
            rest = _rest(model, names) if method.startswith("int8_") else []
            quantized = weights.to_int8(_convert(model, method, chosen, calibration), rest)
        folder.mkdir(parents=True, exist_ok=True)
        path = layers.save(quantized, folder / f"{method}.onnx")
    except OSError:
        raise  # a full disk is no property of the method
    except Exception as error:  # quantizers raise whatever they like on a graph that they do not know
        return Candidate(method, None, f"failed: {type(error).__name__}: {(str(error).splitlines() or [''])[0]}")
    kept = tuple(name for name in names if name in left)
    return Candidate(method, path, _note(method, len(chosen), len(names)), kept)


def _nothing(method: str) -> str:
    missing = {
        "int8_weights": "no matrix is over 1 KiB",
        "int4_weights": f"no linear layer has {weights.BIG_ELEMENTS:,} weights",
    }
    return f"does not apply: {missing.get(method, 'no product with a constant matrix')}"


def _note(method: str, taken: int, of: int) -> str:
    """What was done, and what a reader of the report may not expect of it."""
    parts = "matrices" if method == "int8_weights" else "layers"
    surprise = {
        "int8_dynamic": "; a row's score depends a little on the rows beside it",
        "float16": "; a CPU computes them in float32",
    }
    surprise |= dict.fromkeys(SPARSE, "; zeros are stored and multiplied like other numbers")
    return f"{taken} of {of} {parts}{surprise.get(method, '')}"


def quantizable(float32: Path, method: str) -> list[str]:
    """Names of the layers that the method can take, for `left`; empty where it cannot take the graph at all."""
    try:
        with layers.quiet():
            return prepared(float32, method)[1]
    except OSError:
        raise
    except Exception:  # as in `candidate`, which gives the reason
        return []


def prepared(float32: Path, method: str) -> tuple[ModelProto, list[str]]:
    """Return the graph as the method wants it, and the names of what it can quantize."""
    if method == "int8_weights" or method in SPARSE:
        model = layers.load(float32)
        names = [node.name for node in layers.linear_nodes(model)] if method in SPARSE else weights.storable(model)
        return model, names
    model = pre_processed(float32)
    if method == "float16":
        return model, [node.name for node in layers.linear_nodes(model)]
    if method == "int4_weights":
        layers.split_gemm(model)
        return model, weights.big_layers(model)
    if method == "int8_dynamic":  # which knows no Gemm
        layers.split_gemm(model)
        return model, [node.name for node in layers.linear_nodes(model, kinds=DYNAMIC)]
    last = layers.last(model)
    return model, [node.name for node in layers.linear_nodes(model, kinds=STATIC) if node.name not in last]


def pre_processed(float32: Path) -> ModelProto:
    """Infer shapes and fold constants, which the quantizers ask for."""
    from onnxruntime.quantization.shape_inference import quant_pre_process

    given = str(float32.resolve())
    # Symbolic inference does not know each operator, and leaves what it had in the working folder where it fails.
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        path = Path(folder) / "prepared.onnx"
        try:
            quant_pre_process(given, str(path))
        except Exception:  # the quantizers can do without it
            quant_pre_process(given, str(path), skip_symbolic_shape=True)
        return layers.load(path)


def _rest(model: ModelProto, names: Collection[str]) -> list[str]:
    """The matrices that belong to no layer of the method, such as embeddings: int8 may hold them in any case."""
    taken = {node.input[layers.WEIGHT] for node in layers.linear_nodes(model) if node.name in names}
    return [name for name in weights.storable(model) if name not in taken and name not in names]


def _convert(model: ModelProto, method: str, names: list[str], calibration: Calibration) -> ModelProto:
    if method == "int8_weights":
        return weights.to_int8(model, names)
    if method == "int4_weights":
        return weights.to_int4(model, names)
    if method == "float16":
        return weights.to_float16(model, names)
    if method in SPARSE:
        return weights.to_zeros(model, names, in_fours=method == "sparse_2_4")
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder) / "source.onnx", Path(folder) / "target.onnx"
        source.write_bytes(model.SerializeToString(deterministic=True))
        if method == "int8_dynamic":
            _dynamic(source, target, names)
        else:
            _static(source, target, names, method.rpartition("_")[2], calibration)
        return layers.load(target)


# Weights of 7 bits: a processor without VNNI adds two products of 8 bits in 16 and saturates, and would then give
# other scores than the machine on which the gate has passed.
OPTIONS: Mapping[str, Any] = {"per_channel": True, "reduce_range": True}


def _dynamic(source: Path, target: Path, names: list[str]) -> None:
    """Products in int8, the range of their inputs taken from each batch."""
    from onnxruntime.quantization import quantize_dynamic

    quantize_dynamic(str(source), str(target), op_types_to_quantize=["MatMul"], nodes_to_quantize=names, **OPTIONS)


def _static(source: Path, target: Path, names: list[str], calibrator: str, calibration: Calibration) -> None:
    """Products in int8, the ranges of their inputs and outputs taken from the calibration rows.

    Without the outputs ONNX Runtime fuses nothing and is slower than float32.
    """
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.calibrate import CalibrationMethod, create_calibrator, save_tensors_data

    method = {name.name.lower(): name for name in CalibrationMethod}[calibrator]
    augmented, ranges = source.with_name("augmented.onnx"), source.with_name("ranges.json")
    options = {"num_bins": ENTROPY_BINS} if calibrator == "entropy" else {}
    observer = create_calibrator(source, sorted(STATIC), str(augmented), calibrate_method=method, extra_options=options)
    for batches in recut(calibration()):
        observer.collect_data(Reader(batches))  # which adds to what it has; in one call it wants one shape
    save_tensors_data(observer.compute_data(), ranges)
    quantize_static(
        str(source),
        str(target),
        quant_format=QuantFormat.QDQ,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        op_types_to_quantize=sorted(STATIC),
        nodes_to_quantize=names,
        calibrate_method=method,
        calibration_cache_path=ranges,
        **OPTIONS,
    )


class Reader:
    """Batches as ONNX Runtime's calibrators read them."""

    def __init__(self, batches: Iterable[Rows]) -> None:
        self.batches = iter(batches)

    def get_next(self) -> dict[str, NDArray[Any]] | None:
        """The next batch; None after the last."""
        return next((dict(batch) for batch in self.batches), None)


def recut(batches: Iterable[Rows]) -> list[list[Rows]]:
    """Cut rows anew into batches of one size, without the rest; fewer rows than one batch are one smaller batch.

    Rows that are longer than others, such as texts, are cut among their like: a list of batches for each length.

    Raises:
        ValueError: there are no rows.
    """
    alike: dict[Any, list[Rows]] = {}
    for batch in batches:
        alike.setdefault(tuple((name, values.shape[1:]) for name, values in batch.items()), []).append(batch)
    found = [_recut(taken) for taken in alike.values() if any(len(next(iter(batch.values()))) for batch in taken)]
    if not found:
        raise ValueError("there are no rows to calibrate with")
    return found


def _recut(taken: list[Rows]) -> list[Rows]:
    columns = {name: np.concatenate([batch[name] for batch in taken]) for name in taken[0]}
    rows = len(next(iter(columns.values())))
    size = min(rows, CALIBRATION_BATCH)
    starts = range(0, rows - size + 1, size)
    return [{name: values[start : start + size] for name, values in columns.items()} for start in starts]
