"""ONNX Runtime where the network was: open a graph, run it, and let it stand in for a LightningModule's `forward`."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
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


def open_session(path: Path, *, threads: int = 1, lengths_vary: bool = False, spins: bool = False) -> Any:
    """Load a graph for the CPU with so many threads, one operator after the other.

    Where lengths vary from call to call, no plan of the memory is kept for each: 8 % faster in writing by beams.
    Threads that spin wait for work in a loop, as ONNX Runtime's and torch's own do: not where sessions are measured in
    turn, since they take it from the next one.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    options.enable_mem_pattern = not lengths_vary
    options.log_severity_level = 3  # errors: warnings are of what the optimizer left undone
    options.add_session_config_entry("session.intra_op.allow_spinning", str(int(spins)))
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def feed(session: Any, rows: Arrays) -> dict[str, NDArray[Any]]:
    """Those of the arrays that are inputs of the graph.

    Raises:
        ValueError: an input is not there.
    """
    return {name: np.ascontiguousarray(rows[name]) for name in _wanted(session, rows)}


def _wanted(session: Any, rows: Mapping[str, Any]) -> list[str]:
    wanted = [given.name for given in session.get_inputs()]
    missing = [name for name in wanted if name not in rows]
    if missing:
        raise ValueError(f"the graph has the input {missing[0]!r}; there are only {', '.join(rows)}")
    return wanted


def run(session: Any, rows: Arrays) -> list[NDArray[Any]]:
    """Return the graph's outputs in its own order."""
    outputs: list[NDArray[Any]] = session.run(None, feed(session, rows))
    return outputs


def described(session: Any) -> dict[str, dict[str, list[str]]]:
    """The types and sizes of a graph's inputs and outputs by name."""
    tensors = {"inputs": session.get_inputs(), "outputs": session.get_outputs()}
    return {which: {one.name: [one.type, *map(str, one.shape)] for one in some} for which, some in tensors.items()}


@contextmanager
def standing_in(model: Any, sessions: Mapping[str, Any]) -> Iterator[None]:
    """Let calls of a module be answered by its graphs, computed on the CPU.

    The module itself says what it makes of its graphs (`stand_in`); else there is one, which gives its first output.
    """
    several = {name: partial(outputs, session) for name, session in sessions.items()}
    model.forward = model.stand_in(several) if hasattr(model, "stand_in") else _only(model, *sessions.values())
    try:
        yield
    finally:
        del model.forward  # which hides the class's own


def outputs(session: Any, rows: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the graph's outputs by name, nothing copied; of the tensors, on the CPU, it takes those that it wants.

    Raises:
        ValueError: an input is not there.
    """
    import torch

    names = [made.name for made in session.get_outputs()]
    taken = {name: rows[name].contiguous() for name in _wanted(session, rows)}
    given = {name: onnxruntime.OrtValue.from_dlpack(tensor) for name, tensor in taken.items()}
    found = session.run_with_ort_values(names, given)
    return {name: torch.from_dlpack(value) for name, value in zip(names, found, strict=True)}  # type: ignore[attr-defined]


def _only(model: Any, session: Any) -> Callable[..., Tensor]:
    """A `forward` answered by one graph's first output.

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

    return forward
