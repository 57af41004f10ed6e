"""What a trial is judged by, beside the metrics of its validation: the size and the speed of its best model."""

from __future__ import annotations

import time
from collections.abc import Iterable
from pathlib import Path
from statistics import median
from typing import Any

import torch

from train.config.finding import did_you_mean
from train.errors import ConfigError
from train.export.prune import num_parameters
from train.finished import open_run

PARAMETERS, LATENCY = "parameters", "latency_ms"
MEASURES = (PARAMETERS, LATENCY)
_CALLS = 50


class UnknownMetricError(ConfigError):
    """No trial has what the trials are to be judged by."""


def measured(names: Iterable[str], metrics: dict[str, float], folder: Path) -> dict[str, float]:
    """Return the named numbers of a finished run.

    Args:
        names: metrics of the run, `parameters` (of what is exported) or `latency_ms` (median of the exported graphs in
            torch on this machine's CPU, for the example inputs of the graph: a few rows).
        metrics: of the run's best checkpoint.
        folder: the run's.

    Raises:
        UnknownMetricError: there is no such metric.
    """
    found = dict(metrics)
    wanted = set(names)
    if wanted & set(MEASURES):
        model = open_run(str(folder), {}).model()
        found[PARAMETERS] = float(num_parameters(model))
        if LATENCY in wanted:
            found[LATENCY] = sum(map(_milliseconds, model.export_graphs()))
    for name in sorted(wanted - found.keys()):
        raise UnknownMetricError(
            f"objectives, constraints: {name!r} is no metric of this experiment's validation"
            f"{did_you_mean(name, found)}; there are {', '.join(sorted({*metrics, *MEASURES}))}"
        )
    return {name: found[name] for name in wanted}


@torch.inference_mode()
def _milliseconds(graph: Any) -> float:
    graph.module(**graph.inputs)
    seconds = []
    for _ in range(_CALLS):
        start = time.perf_counter()
        graph.module(**graph.inputs)
        seconds.append(time.perf_counter() - start)
    return 1000 * median(seconds)
