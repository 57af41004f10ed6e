"""Weights in fewer bytes, computed with as floats: int8 by channel, 4 bits by block, and float16."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from train.export import layers

SMALLEST_BYTES = 1024  # what is smaller gains less than the added nodes weigh
BIG_ELEMENTS = 128 * 128  # of a layer that 4 bits are worth it
BLOCK = 32  # elements of a column that share a scale in 4 bits


def storable(model: ModelProto) -> list[str]:
    """Names of the float32 initializers that int8 may hold: of two dimensions or more and over 1 KiB.

    What only nodes ahead of the first layer read stays as it is (edges of bins and the like, in units of the raw
    columns), but for tables that rows are looked up in. So do vectors: an error in a bias is an error in each row.
    """
    raw = layers.ahead(model)
    readers: dict[str, list[NodeProto]] = {}
    for node in model.graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    return [
        name
        for name, tensor in layers.floats(model).items()
        if len(tensor.dims) >= 2
        and 4 * np.prod(layers.shape_of(tensor)) > SMALLEST_BYTES
        and any(node.name not in raw or _is_lookup(node, name) for node in readers.get(name, []))
    ]


def _is_lookup(node: NodeProto, name: str) -> bool:
    return node.op_type == "Gather" and node.input[0] == name


def to_int8(model: ModelProto, names: Collection[str]) -> ModelProto:
    """Store initializers as int8 with a float32 scale per output channel, and Cast and Mul ahead of their use.

    ONNX Runtime folds the two when it loads the file: it computes as fast as with float32. DequantizeLinear would say
    the same in one node, but is never folded.
    """
    transposed = {node.input[1] for node in model.graph.node if node.op_type == "Gemm" and _is_transposed(node)}
    columns = {node.input[1] for node in model.graph.node if node.op_type in ("MatMul", "Gemm")} - transposed
    chosen = {name: tensor for name, tensor in layers.floats(model).items() if name in names}
    added: list[NodeProto] = []
    for name, tensor in chosen.items():
        values = layers.array_of(tensor)
        integers, scale = rounded(values, axis=values.ndim - 1 if name in columns else 0)
        model.graph.initializer.remove(tensor)
        model.graph.initializer.append(numpy_helper.from_array(integers, f"{name}_int8"))
        model.graph.initializer.append(numpy_helper.from_array(scale, f"{name}_scale"))
        added.append(
            helper.make_node("Cast", [f"{name}_int8"], [f"{name}_cast"], name=f"{name}_cast", to=TensorProto.FLOAT)
        )
        added.append(helper.make_node("Mul", [f"{name}_cast", f"{name}_scale"], [name], name=f"{name}_scaled"))
    nodes = [*added, *model.graph.node]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    return model


def rounded(values: NDArray[np.float32], *, axis: int) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Return int8 values and the scale of each index of `axis`, so that their product is nearest to the values."""
    others = tuple(index for index in range(values.ndim) if index != axis)
    largest = np.abs(values).max(axis=others, keepdims=True)
    scale = np.where(largest > 0, largest / 127, 1).astype(np.float32)
    return np.clip(np.rint(values / scale), -127, 127).astype(np.int8), scale


def _is_transposed(gemm: NodeProto) -> bool:
    return any(attribute.name == "transB" and attribute.i for attribute in gemm.attribute)


def big_layers(model: ModelProto) -> list[str]:
    """Names of the MatMul nodes that 4 bits are worth it; `layers.split_gemm` goes first."""
    return [node.name for node in layers.linear_nodes(model, kinds=frozenset({"MatMul"}), at_least=BIG_ELEMENTS)]


def to_int4(model: ModelProto, names: Collection[str]) -> ModelProto:
    """Store the matrices of MatMul nodes in 4 bits, blocks of `BLOCK` sharing a scale: ONNX Runtime's MatMulNBits."""
    from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

    others = {node.name for node in model.graph.node} - set(names)  # a list of what to take would only add to them
    quantizer = MatMulNBitsQuantizer(
        model,
        bits=4,
        block_size=BLOCK,
        is_symmetric=False,
        accuracy_level=4,  # products in int8
        nodes_to_exclude=sorted(others),
        op_types_to_quantize=("MatMul",),
    )
    quantizer.process()
    quantized: ModelProto = quantizer.model.model
    return quantized


def to_zeros(model: ModelProto, names: Collection[str], *, in_fours: bool) -> ModelProto:
    """Set half of each layer's weights to 0, the smallest: of the whole matrix, or of each four inputs of an output.

    The second is the pattern that NVIDIA's sparse tensor cores take (2:4). No kernel of ONNX Runtime on a CPU gains by
    either, and a stored 0 is as long as any number.
    """
    for node in layers.linear_nodes(model):
        if node.name not in names:
            continue
        tensor = layers.floats(model)[node.input[layers.WEIGHT]]
        inputs = _inputs_axis(node, len(tensor.dims))
        values = np.moveaxis(layers.array_of(tensor), inputs, -1)
        kept = _largest_of_four(values) if in_fours else np.abs(values) > np.median(np.abs(values))
        halved = np.moveaxis(np.where(kept, values, np.float32(0)), -1, inputs)
        tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(halved), tensor.name))
    return model


def _inputs_axis(node: NodeProto, num_axes: int) -> int:
    """Which axis of a layer's weight goes over its inputs."""
    if node.op_type == "MatMul":
        return num_axes - 2
    return 1 if node.op_type == "Conv" or _is_transposed(node) else 0


def _largest_of_four(values: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Which two of each four along the last axis are the largest; a rest of one to three counts with zeros."""
    rest = -values.shape[-1] % 4
    padded = np.pad(np.abs(values), [(0, 0)] * (values.ndim - 1) + [(0, rest)])
    fours = padded.reshape(*values.shape[:-1], -1, 4)
    rank = np.argsort(np.argsort(-fours, axis=-1, kind="stable"), axis=-1, kind="stable")
    return (rank < 2).reshape(padded.shape)[..., : values.shape[-1]]


def to_float16(model: ModelProto, names: Collection[str]) -> ModelProto:
    """Compute from the first to the last layer in float16; inputs, outputs, and what lies around stay float32.

    Raw columns overflow float16, and a probability near 1 is rounded to 1. Layers that are not in `names` stay too.
    """
    from onnxruntime.transformers.float16 import convert_float_to_float16

    left = {node.name for node in layers.linear_nodes(model)} - set(names)
    blocked = layers.ahead(model) | layers.behind(model) | left
    converted: ModelProto = convert_float_to_float16(model, keep_io_types=True, node_block_list=sorted(blocked))
    sort_nodes(converted)
    _bypass(converted)
    return converted


def _bypass(model: ModelProto) -> None:
    """Take out each cast from float32 to float16 and back, which the converter puts between any two float32 nodes.

    They would clip a raw 1e30 to infinity before the first node that reads it.
    """
    narrowed = {node.output[0]: node.input[0] for node in model.graph.node if _is_added(node, "graph_input_cast", "16")}
    instead: dict[str, str] = {}
    for node in model.graph.node:
        if _is_added(node, "graph_output_cast", "32") and node.input[0] in narrowed:
            source = narrowed[node.input[0]]
            instead[node.output[0]] = instead.get(source, source)
            node.op_type, node.input[0] = "Identity", instead[node.output[0]]  # kept where it is the graph's output
            del node.attribute[:]
    for node in model.graph.node:
        for index, name in enumerate(node.input):
            node.input[index] = instead.get(name, name)


def _is_added(node: NodeProto, edge: str, bits: str) -> bool:
    """Whether a cast is the converter's, told by how it names them: the graph's own must stay."""
    return node.op_type == "Cast" and (node.name.startswith(edge) or node.name.endswith(f"_cast_to_fp{bits}_node"))


def sort_nodes(model: ModelProto) -> None:
    """Put the nodes into topological order, each as early as it may; the converter appends its casts at the end."""
    pending = {name for node in model.graph.node for name in node.output if name}
    waiting, ordered = list(model.graph.node), []
    while waiting:
        is_ready = [not pending.intersection(node.input) for node in waiting]
        assert any(is_ready), "the graph has a cycle"
        ready = [node for node, now in zip(waiting, is_ready, strict=True) if now]
        waiting = [node for node, now in zip(waiting, is_ready, strict=True) if not now]
        for node in ready:
            pending.difference_update(node.output)
        ordered += ready
    del model.graph.node[:]
    model.graph.node.extend(ordered)
