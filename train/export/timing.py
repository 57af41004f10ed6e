"""How long graphs take beside each other, and the memory that they need.

python -m train.export.timing GRAPH.onnx ROWS.npz   # peak bytes of a process that loads and runs the graph
"""

from __future__ import annotations

import contextlib
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from train.export.session import Arrays, all_threads, feed, open_session

TORCH = "torch"  # name of the network itself among the latencies
ROUNDS = 30
ROUND_SECONDS = 0.02  # of each graph: long enough for a median, short enough that all see the same machine
CALLS = (5, 200)  # fewest and most calls of a round
SETTLE_SECONDS = 0.005  # in which torch's threads stop to wait for work


@dataclass(frozen=True)
class Setting:
    """Rows of a call and threads of the session."""

    batch: int
    threads: int

    def __str__(self) -> str:
        return f"batch {self.batch} on {self.threads} thread{'s' if self.threads > 1 else ''}"


@dataclass(frozen=True)
class Latency:
    """Seconds of a call: the median and the 99th percentile of all calls, and the median of each round."""

    p50: float
    p99: float
    rounds: tuple[float, ...]


def settings() -> list[Setting]:
    """Batches of 1 and 64, on one thread and on all."""
    return [Setting(batch, threads) for batch in (1, 64) for threads in sorted({1, all_threads()})]


def judged() -> list[Setting]:
    """The settings that the gate asks: one row on one thread, and 64 rows on all."""
    return [Setting(1, 1), Setting(64, all_threads())]


def measure(
    graphs: Mapping[str, tuple[Path, Arrays]],
    *,
    asked: Sequence[Setting],
    model: tuple[Any, Arrays] | None = None,
    rounds: int = ROUNDS,
) -> dict[Setting, dict[str, Latency]]:
    """Time graphs in turns, all of them in each round, so that what disturbs the machine disturbs all alike.

    Args:
        graphs: file and inputs, as many rows as the largest batch or more, by the graph's name.
        asked: the settings.
        model: the torch module and the inputs of its `forward`, timed as `TORCH` where it is given.
        rounds: turns of each graph.
    """
    sources: dict[str, tuple[Any, Arrays]] = {**graphs, **({} if model is None else {TORCH: model})}
    return {setting: _at(setting, sources, rounds) for setting in asked}


def ratio(latency: Latency, reference: Latency) -> float:
    """Return the median over rounds of the time as a multiple of the reference's in the same round.

    It is 1 where the rounds do not tell the two apart: where 1 is in the median's 95 % interval (by the sign test).
    On a busy machine one and the same graph, twice in a round, came out 4 % faster or slower.
    """
    ratios = sorted(a / b for a, b in zip(latency.rounds, reference.rounds, strict=True))
    below = int(max(0.0, len(ratios) / 2 - 0.98 * len(ratios) ** 0.5))
    return 1.0 if ratios[below] <= 1 <= ratios[-1 - below] else statistics.median(ratios)


def added(latencies: Sequence[Latency]) -> Latency:
    """Return the time of one call of each, round by round; the 99th percentile is the sum of theirs."""
    rounds = tuple(map(sum, zip(*(one.rounds for one in latencies), strict=True)))
    return Latency(sum(one.p50 for one in latencies), sum(one.p99 for one in latencies), rounds)


def _at(setting: Setting, sources: Mapping[str, tuple[Any, Arrays]], rounds: int) -> dict[str, Latency]:
    with _torch_threads(setting.threads if TORCH in sources else None):
        calls = {
            name: _call_of(
                source, setting.threads, {column: values[: setting.batch] for column, values in rows.items()}
            )
            for name, (source, rows) in sources.items()
        }
        counts = {name: _warm_up(call) for name, call in calls.items()}
        seconds: dict[str, list[list[float]]] = {name: [] for name in calls}
        names = list(calls)
        for turn in range(rounds):
            first = turn % len(names)  # who comes first in a round is not always the same one
            for name in names[first:] + names[:first]:
                if setting.threads > 1:
                    time.sleep(SETTLE_SECONDS)
                seconds[name].append(_timed(calls[name], counts[name]))
    return {name: _latency(taken) for name, taken in seconds.items()}


def _call_of(source: Any, threads: int, batch: Arrays) -> Callable[[], object]:
    """One call of a graph's file or of a torch module."""
    return _graph_call(source, threads, batch) if isinstance(source, Path) else _torch_call(source, batch)


def _graph_call(path: Path, threads: int, batch: Arrays) -> Callable[[], object]:
    session = open_session(path, threads=threads)
    inputs = feed(session, batch)
    return lambda: session.run(None, inputs)


def _torch_call(model: Any, batch: Arrays) -> Callable[[], object]:
    import torch

    inputs = {name: torch.from_numpy(np.ascontiguousarray(values)) for name, values in batch.items()}

    def call() -> object:
        with torch.inference_mode():
            return model(**inputs)

    return call


@contextlib.contextmanager
def _torch_threads(threads: int | None) -> Iterator[None]:
    if threads is None:
        yield
        return
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _warm_up(call: Callable[[], object]) -> int:
    """Call until it is warm; return the calls that fill a round."""
    _timed(call, CALLS[0])
    once = statistics.median(_timed(call, CALLS[0]))
    return int(min(max(ROUND_SECONDS / max(once, 1e-9), CALLS[0]), CALLS[1]))


def _timed(call: Callable[[], object], count: int) -> list[float]:
    call()  # what ran before has left the caches to itself
    seconds = []
    for _ in range(count):
        start = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - start)
    return seconds


def _latency(rounds: list[list[float]]) -> Latency:
    p50, p99 = np.percentile(np.concatenate(rounds), [50, 99])
    return Latency(float(p50), float(p99), tuple(statistics.median(taken) for taken in rounds))


def peak_memory(graphs: Mapping[str, tuple[Path, Arrays]], *, batch: int = 64) -> dict[str, int]:
    """Return the bytes that loading and running each graph adds to a process of its own, at their peak.

    graphs: file and inputs by the graph's name.

    Raises:
        RuntimeError: a graph does not run there.
    """
    found: dict[str, int] = {}
    empty: dict[int, int] = {}  # of a process that loads the inputs alone
    with tempfile.TemporaryDirectory() as folder:
        for name, (graph, rows) in graphs.items():
            path = Path(folder) / f"{id(rows)}.npz"
            if id(rows) not in empty:
                # Texts as objects would need pickle to be read again.
                np.savez(path, **{column: _plain(values[:batch]) for column, values in rows.items()})
                empty[id(rows)] = _peak_of("-", path)
            found[name] = max(0, _peak_of(str(graph), path) - empty[id(rows)])
    return found


def _plain(values: Any) -> Any:
    return values.astype(str) if values.dtype == object else values


def _peak_of(graph: str, rows: Path) -> int:
    command = [sys.executable, "-m", "train.export.timing", graph, str(rows)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"a process that runs {graph} failed:\n{done.stderr.strip()}")
    return int(done.stdout)


def _peak_here() -> int:
    """Peak resident bytes of this process.

    Linux hands `ru_maxrss` on from the process that started this one, which may have been far larger.
    """
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # bytes on macOS


def main(graph: str, rows: str) -> None:
    """Load and run a graph once, or nothing for `-`; print the peak."""
    with np.load(rows) as saved:
        inputs = dict(saved)
    if graph != "-":
        session = open_session(Path(graph), threads=1)
        session.run(None, feed(session, inputs))
    print(_peak_here())


if __name__ == "__main__":
    main(*sys.argv[1:])
