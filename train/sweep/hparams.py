"""The trials in TensorBoard: a row of HPARAMS each, with what they chose and what they came to, and the plots."""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from tensorboard.compat.proto.summary_pb2 import Summary  # type: ignore[import-untyped]
from tensorboard.plugins.hparams import (  # type: ignore[import-untyped]
    api_pb2,
    metadata,
    plugin_data_pb2,
    summary_v2,
)
from torch.utils.tensorboard import SummaryWriter

from train import errors
from train.sweep import winners
from train.sweep.plan import Plan
from train.sweep.slots import Slot
from train.sweep.space import Parameter, decoded

FOLDER = "tensorboard"
_STATUS = {
    "complete": api_pb2.STATUS_SUCCESS,
    "pruned": api_pb2.STATUS_SUCCESS,
    "failed": api_pb2.STATUS_FAILURE,
    "running": api_pb2.STATUS_RUNNING,
}


def write(plan: Plan, slots: Sequence[Slot], pictures: Mapping[str, np.ndarray]) -> None:
    """Write the folder anew. Raises StorageError."""
    place = plan.folder / FOLDER
    with errors.reporting(errors.StorageError), warnings.catch_warnings(action="ignore"):
        shutil.rmtree(place, ignore_errors=True)
        hparams = [_described(parameter) for parameter in plan.space.parameters]
        metrics = [summary_v2.Metric(metric) for metric, _ in plan.objectives]
        with SummaryWriter(str(place)) as writer:
            writer.file_writer.add_summary(summary_v2.hparams_config_pb(hparams, metrics))
        for slot in slots:
            if slot.state in _STATUS:
                _write_trial(place / f"{slot.number:04d}", plan, slot)
        with SummaryWriter(str(place / "report")) as writer:
            for name, picture in pictures.items():
                writer.add_image(name, picture, len(slots), dataformats="HWC")


def _write_trial(place: Path, plan: Plan, slot: Slot) -> None:
    trial = slot.trial
    assert trial is not None
    begun = None if trial.datetime_start is None else trial.datetime_start.timestamp()
    ended = None if trial.datetime_complete is None else trial.datetime_complete.timestamp()
    parameters = {parameter.key: parameter for parameter in plan.space.parameters}
    chosen = {key: _plain(parameters[key], value) for key, value in winners.values(slot).items() if key in parameters}
    # A trial is a group of its own: two that chose the same are two rows.
    row = summary_v2.hparams_pb(chosen, trial_id=f"{slot.number:04d}", start_time_secs=begun)
    with SummaryWriter(str(place)) as writer:
        writer.file_writer.add_summary(row, walltime=begun)
        for metric, value in winners.objectives(plan, slot).items():
            writer.add_scalar(metric, value, max(slot.reported, default=0), walltime=ended)
        if slot.is_done:
            writer.file_writer.add_summary(_end(_STATUS[slot.state], ended), walltime=ended)


def _end(status: int, seconds: float | None) -> Summary:
    info = plugin_data_pb2.SessionEndInfo(status=status, end_time_secs=seconds)
    content = metadata.create_summary_metadata(plugin_data_pb2.HParamsPluginData(session_end_info=info))
    value = Summary.Value(tag=metadata.SESSION_END_INFO_TAG, metadata=content, tensor=metadata.NULL_TENSOR)
    return Summary(value=[value])


def _described(parameter: Parameter) -> Any:
    one = parameter.distribution
    if isinstance(one, FloatDistribution):
        return summary_v2.HParam(parameter.key, summary_v2.RealInterval(one.low, one.high))
    if isinstance(one, IntDistribution):
        return summary_v2.HParam(parameter.key, summary_v2.IntInterval(one.low, one.high))
    assert isinstance(one, CategoricalDistribution)
    values = [_plain(parameter, decoded(choice)) for choice in one.choices]
    return summary_v2.HParam(parameter.key, summary_v2.Discrete(values))


def _plain(parameter: Parameter, value: Any) -> Any:
    """A value as HPARAMS takes it: the choices of a key are of one kind there, else they are shown as text."""
    one = parameter.distribution
    if not isinstance(one, CategoricalDistribution):
        return value
    kinds = {type(decoded(choice)) for choice in one.choices}
    if len(kinds) == 1 and kinds <= {bool, int, float, str}:
        return value
    return value if isinstance(value, str) else json.dumps(value)
