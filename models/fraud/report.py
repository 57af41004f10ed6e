"""What a trained fraud module tells beyond its metrics: which columns matter, and TensorBoard's closing entries."""

import warnings
from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from models import markdown, metrics

INPUTS = ("numeric", "categorical", "timestamp")
MOST_ROWS = 4_096


class Detector(Protocol):
    """The part of a `FraudModule` that is asked here."""

    schema: Mapping[str, Any]
    threshold_cost: Tensor

    @property
    def device(self) -> torch.device:
        """Where the weights are."""

    def eval(self) -> Any:
        """Switch dropout off."""

    def raw_probability(self, numeric: Tensor, categorical: Tensor, timestamp: Tensor) -> Tensor:
        """Return the probability before calibration, [B]."""


@torch.no_grad()
def permutation_importance(detector: Detector, tensors: Mapping[str, Tensor]) -> dict[str, float]:
    """Return the fall of average precision when a column is shuffled (Breiman, 2001), by column name.

    On at most `MOST_ROWS` rows, all positives among them while they are under a half.
    """
    generator = torch.Generator().manual_seed(0)
    order = torch.randperm(len(tensors["target"]), generator=generator).to(tensors["target"].device)
    positive = tensors["target"][order] > 0
    chosen = torch.cat([order[positive][: MOST_ROWS // 2], order[~positive]])[:MOST_ROWS]
    rows = {name: tensors[name][chosen].to(detector.device) for name in INPUTS}
    target = tensors["target"][chosen].double().cpu().numpy()
    shuffled = torch.randperm(len(chosen), generator=generator).to(detector.device)
    detector.eval()

    def quality(columns: Mapping[str, Tensor]) -> float:
        score = detector.raw_probability(**columns).double().cpu().numpy()
        return metrics.average_precision(metrics.Ranked.of(score, target, np.ones_like(target)))

    whole, drops, places = quality(rows), {}, dict.fromkeys(rows, 0)
    for column in detector.schema["columns"]:
        kind = "numeric" if column["kind"] == "boolean" else column["kind"]
        changed = rows[kind].clone()
        changed[:, places[kind]] = changed[shuffled, places[kind]]
        drops[column["name"]] = whole - quality({**rows, kind: changed})
        places[kind] += 1
    return drops


def example_inputs(detector: Detector, num_rows: int = 2) -> tuple[Tensor, Tensor, Tensor]:
    """Return rows of zeros in the shapes of `forward`."""
    kinds = [column["kind"] for column in detector.schema["columns"]]
    num_categorical, num_timestamps = kinds.count("categorical"), kinds.count("timestamp")
    num_numeric = len(kinds) - num_categorical - num_timestamps
    return (
        torch.zeros(num_rows, num_numeric, device=detector.device),
        torch.zeros(num_rows, num_categorical, dtype=torch.int64, device=detector.device),
        torch.zeros(num_rows, num_timestamps, dtype=torch.int64, device=detector.device),
    )


def write_summaries(detector: Detector, rows: metrics.Scored, writer: Any, step: int) -> None:
    """Write the model graph, the precision-recall curve and a table of thresholds to TensorBoard."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TensorBoard's graph is torch.jit's, which torch would retire
        writer.add_graph(detector, example_inputs(detector))
    writer.add_pr_curve("test/precision_recall", rows.target, rows.score, step, num_thresholds=127)
    names = ("precision", "recall", "alert_share", "cost_saved", "cost_saved_share")
    lines = []
    for threshold in sorted({*np.linspace(0.05, 0.95, 10).round(3).tolist(), float(detector.threshold_cost)}):
        row = metrics.at_threshold(rows, threshold, detector.schema["cost"]["false_positive"])
        lines.append([f"{threshold:.4f}", *(f"{row[name]:.4f}" for name in names)])
    writer.add_text("test/thresholds", markdown.table(("threshold", *names), lines), step)


def slices(detector: Detector, rows: metrics.Scored) -> dict[str, dict[str, float]]:
    """Return the metrics that matter of parts of the test rows: quarters by cost of a miss, thirds by time."""
    parts: dict[str, NDArray[np.bool_]] = {}
    if len(np.unique(rows.amount)) > 1:
        edges = np.quantile(rows.amount, [0.25, 0.5, 0.75])
        place = np.searchsorted(edges, rows.amount, side="right")
        bounds = [rows.amount.min(), *edges, rows.amount.max()]
        parts |= {f"cost {bounds[i]:,.2f} to {bounds[i + 1]:,.2f}": place == i for i in range(4)}
    if len(np.unique(rows.day)) >= 3:
        place = np.searchsorted(np.quantile(rows.day, [1 / 3, 2 / 3]), rows.day)
        parts |= {f"{name} third of the test days": place == i for i, name in enumerate(("first", "second", "last"))}
    return {name: _of_slice(detector, rows.take(is_in)) for name, is_in in parts.items() if is_in.any()}


def inputs(schema: Mapping[str, Any]) -> dict[str, str]:
    """Return what each input of the exported graph holds: its columns in their order, their units, what is missing."""
    kinds = {"boolean": "numeric"}
    columns: dict[str, list[str]] = {"numeric": [], "categorical": [], "timestamp": []}
    for column in schema["columns"]:
        columns[kinds.get(column["kind"], column["kind"])].append(column["name"])
    said = {
        "numeric": "float32, booleans as 0 and 1, NaN where missing",
        "categorical": "texts without spaces around them, whole numbers without a decimal point, empty where missing",
        "timestamp": f"int64 seconds since 1970 (UTC where a zone is given), {-(2**63)} where missing",
    }
    return {name: f"{said[name]}: {', '.join(found)}" for name, found in columns.items() if found}


def limits(schema: Mapping[str, Any]) -> list[str]:
    """Return what a user should not expect of a detector."""
    cost = schema["cost"]
    said = [
        "Probabilities and thresholds were fitted on the validation rows: where frauds become more or less common, or "
        "change their ways, they are off.",
        f"The threshold of least cost holds for a false alert that costs {cost['false_positive']:g} and a miss that "
        f"costs {'its amount' if cost['false_negative'] == 'amount' else format(cost['false_negative'], 'g')}; the "
        f"other one for alerts on {cost['alert_budget']:.2%} of the rows.",
        "Categories that training did not see count as missing.",
    ]
    hashed = [column["name"] for column in schema["columns"] if column.get("hash_buckets")]
    return said + (
        [f"Values of {', '.join(hashed)} share hash buckets: some are told apart by chance only."] * bool(hashed)
    )


def _of_slice(detector: Detector, rows: metrics.Scored) -> dict[str, float]:
    at_cost = metrics.at_threshold(rows, float(detector.threshold_cost), detector.schema["cost"]["false_positive"])
    ranked = metrics.Ranked.of(rows.score, rows.target, rows.weight)
    return {
        "rows": float(len(rows.score)),
        "positives": float(rows.target.sum()),
        "average_precision": metrics.average_precision(ranked),
        "precision": at_cost["precision"],
        "recall": at_cost["recall"],
    }
