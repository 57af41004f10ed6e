"""What the quantizers must know of an ONNX graph: its linear layers, what lies around them, and how a file is written.

Names are the contract: a layer is told by the name of its node, which stays the same through every step.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

LINEAR = frozenset({"MatMul", "Gemm", "Conv", "ConvTranspose"})
WEIGHT = 1  # place of the weight among the inputs of each of them


def load(path: Path) -> ModelProto:
    """Read a graph and give a name to each node that has none."""
    model = onnx.load(str(path))
    for index, node in enumerate(model.graph.node):
        node.name = node.name or f"{node.op_type.lower()}_{index}"
    return model


def save(model: ModelProto, path: Path) -> Path:
    """Write a graph so that equal graphs are equal bytes, and without what no session reads; return the path.

    The exporter's metadata hold stack traces, that is, paths of this machine and often more bytes than the weights.
    """
    drop_unused(model)
    graph = model.graph
    for part in (model, graph, *graph.node, *graph.initializer, *graph.input, *graph.output):
        part.ClearField("doc_string")
        part.ClearField("metadata_props")
    graph.ClearField("value_info")  # shape inference makes them again
    initializers = sorted(graph.initializer, key=lambda tensor: tensor.name)
    del graph.initializer[:]
    graph.initializer.extend(initializers)
    used = {node.domain for node in graph.node} | {""}
    opsets = sorted((one for one in model.opset_import if one.domain in used), key=lambda one: one.domain)
    del model.opset_import[:]
    model.opset_import.extend(opsets)
    path.write_bytes(model.SerializeToString(deterministic=True))
    return path


def drop_unused(model: ModelProto) -> None:
    """Remove nodes and initializers that no output needs."""
    graph = model.graph
    needed = {output.name for output in graph.output}
    kept: list[NodeProto] = []
    for node in reversed(graph.node):  # nodes are in topological order
        if needed.intersection(node.output):
            needed.update(node.input)
            needed.update(_captured(node))
            needed.discard("")  # an optional input that is not there
            kept.append(node)
    initializers = [tensor for tensor in graph.initializer if tensor.name in needed]
    del graph.node[:], graph.initializer[:]
    graph.node.extend(reversed(kept))
    graph.initializer.extend(initializers)


def _captured(node: NodeProto) -> Iterator[str]:
    """What the node's subgraphs read, which may be of the graph around them."""
    for attribute in node.attribute:
        for graph in (attribute.g, *attribute.graphs):
            for inner in graph.node:
                yield from inner.input
                yield from _captured(inner)
            yield from (output.name for output in graph.output)


def floats(model: ModelProto) -> dict[str, TensorProto]:
    """The float32 initializers by name."""
    return {tensor.name: tensor for tensor in model.graph.initializer if tensor.data_type == TensorProto.FLOAT}


def shape_of(tensor: TensorProto) -> tuple[int, ...]:
    """Sizes of an initializer."""
    return tuple(tensor.dims)


def array_of(tensor: TensorProto) -> NDArray[np.float32]:
    """Values of a float32 initializer."""
    return np.asarray(numpy_helper.to_array(tensor), dtype=np.float32)


def linear_nodes(model: ModelProto, *, kinds: frozenset[str] = LINEAR, at_least: int = 0) -> list[NodeProto]:
    """The layers with a constant float32 matrix or kernel of at least so many elements, in the graph's order."""
    weights = {name: int(np.prod(shape_of(tensor))) for name, tensor in floats(model).items() if len(tensor.dims) >= 2}
    return [node for node in model.graph.node if node.op_type in kinds and weights.get(_weight(node), -1) >= at_least]


def _weight(node: NodeProto) -> str:
    return str(node.input[WEIGHT]) if len(node.input) > WEIGHT else ""


def ahead(model: ModelProto) -> set[str]:
    """Names of the nodes that no linear layer leads to: they see raw columns, whose sizes reach 1e30."""
    linear = {node.name for node in linear_nodes(model, kinds=LINEAR | {"Einsum"})}
    fed: set[str] = set()
    found: set[str] = set()
    for node in model.graph.node:
        if node.name in linear or fed.intersection(node.input):
            fed.update(name for name in node.output if name)
        else:
            found.add(node.name)
    return found


def behind(model: ModelProto) -> set[str]:
    """Names of the nodes that lead to no linear layer: they make scores of the last layer's outputs."""
    linear = {node.name for node in linear_nodes(model)}
    asked: set[str] = set()
    found: set[str] = set()
    for node in reversed(model.graph.node):
        if node.name in linear or asked.intersection(node.output):
            asked.update(name for name in node.input if name)
        else:
            found.add(node.name)
    return found


def last(model: ModelProto) -> set[str]:
    """Names of the linear layers that lead to no other one."""
    linear = {node.name for node in linear_nodes(model)}
    followed: set[str] = set()  # tensors that lead to one
    found: set[str] = set()
    for node in reversed(model.graph.node):
        is_followed = bool(followed.intersection(node.output))
        if node.name in linear and not is_followed:
            found.add(node.name)
        if node.name in linear or is_followed:
            followed.update(name for name in node.input if name)
    return found


def split_gemm(model: ModelProto) -> None:
    """Turn each plain Gemm of a constant matrix into MatMul and Add, which is what some quantizers know.

    The product keeps the node's name. An input that the Gemm transposes is transposed ahead of it.
    """
    weights, taken = floats(model), set()
    nodes = []
    for node in model.graph.node:
        options = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
        is_plain = options.get("alpha", 1.0) == 1.0 and options.get("beta", 1.0) == 1.0
        if node.op_type != "Gemm" or not is_plain or _weight(node) not in weights:
            nodes.append(node)
            continue
        matrix = array_of(weights[_weight(node)])
        matrix = matrix.T if options.get("transB") else matrix
        name = f"{node.input[WEIGHT]}_kn"
        if name not in taken:  # one matrix may serve two layers
            model.graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(matrix), name))
            taken.add(name)
        if options.get("transA"):
            rows = f"{node.output[0]}_rows"
            nodes.append(helper.make_node("Transpose", [node.input[0]], [rows], name=f"{node.name}_rows", perm=[1, 0]))
            node.input[0] = rows
        nodes += _product_and_sum(node, name)
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    drop_unused(model)


def _product_and_sum(gemm: NodeProto, matrix: str) -> list[NodeProto]:
    if len(gemm.input) < 3 or not gemm.input[2]:
        return [helper.make_node("MatMul", [gemm.input[0], matrix], list(gemm.output), name=gemm.name)]
    product = f"{gemm.output[0]}_product"
    return [
        helper.make_node("MatMul", [gemm.input[0], matrix], [product], name=gemm.name),
        helper.make_node("Add", [product, gemm.input[2]], list(gemm.output), name=f"{gemm.name}_bias"),
    ]


@contextmanager
def quiet() -> Iterator[None]:
    """Silence the quantizers, which give advice that is followed already and print tracebacks of what is caught."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere):
            yield
    finally:
        logging.disable(before)
