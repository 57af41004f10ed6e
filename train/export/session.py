"""ONNX Runtime where the network was: open a graph, run it, and let it stand in for a LightningModule's `forward`."""

from __future__ import annotations

import inspect
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

if TYPE_CHECKING:
    from torch import Tensor

Arrays = Mapping[str, NDArray[Any]]


def all_threads() -> int:
    """Number of processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def open_session(path: Path, *, threads: int = 1) -> Any:
    """Load a graph for the CPU with so many threads, one operator after the other."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    options.log_severity_level = 3  # errors: warnings are of what the optimizer left undone
    # Threads that wait for work in a loop take it from the next session that is measured.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def feed(session: Any, rows: Arrays) -> dict[str, NDArray[Any]]:
    """Those of the arrays that are inputs of the graph.

    Raises:
        ValueError: an input is not there.
    """
    wanted = [given.name for given in session.get_inputs()]
    missing = [name for name in wanted if name not in rows]
    if missing:
        raise ValueError(f"the graph has the input {missing[0]!r}; there are only {', '.join(rows)}")
    return {name: np.ascontiguousarray(rows[name]) for name in wanted}


def run(session: Any, rows: Arrays) -> list[NDArray[Any]]:
    """Return the graph's outputs in its own order."""
    outputs: list[NDArray[Any]] = session.run(None, feed(session, rows))
    return outputs


@contextmanager
def standing_in(model: Any, session: Any) -> Iterator[None]:
    """Let calls of a module be answered by the graph's first output, computed on the CPU.

    The graph's inputs are those of the parameters of the module's `forward` that are not empty.
    """
    import torch

    signature = inspect.signature(model.forward)
    output = session.get_outputs()[0].name

    def forward(*args: Tensor, **kwargs: Tensor) -> Tensor:
        given: Mapping[str, Tensor] = signature.bind(*args, **kwargs).arguments
        rows = {name: tensor.detach().cpu().numpy() for name, tensor in given.items()}
        (found,) = session.run([output], feed(session, rows))
        return torch.from_numpy(found).to(next(iter(given.values())).device)

    model.forward = forward  # hides the class's own
    try:
        yield
    finally:
        del model.forward
