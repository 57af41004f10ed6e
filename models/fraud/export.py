"""The fraud model as a graph that takes a table's raw columns, texts included.

Shapes: B rows, F numeric and boolean columns, C categorical, T timestamps.
"""

from collections.abc import Mapping
from typing import Any

import torch
from onnx import GraphProto, NodeProto, TensorProto, helper
from torch import Tensor, nn

from models.calibration import Calibration
from models.graph import Graph
from models.preprocessing import MISSING_TIME, columns_by_kind

ROWS = 4  # of the example
STEEP = 0.02  # an isotonic table rises in steps, which multiply rounding; its rows change, their order does not
CODES = "categorical"  # name of the module's input and of the graph's


class Detector(nn.Module):
    """Columns to the calibrated probability [B] and whether it reaches the thresholds of cost and of budget, [B, 2]."""

    thresholds: Tensor

    def __init__(self, scorer: nn.Module, calibration: nn.Module, thresholds: Tensor) -> None:
        super().__init__()
        self.scorer, self.calibration = scorer, calibration
        self.register_buffer("thresholds", thresholds)

    def forward(
        self, numeric: Tensor | None = None, categorical: Tensor | None = None, timestamp: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Score numeric [B, F], categorical codes [B, C] and timestamp [B, T]; kinds without columns are left out."""
        given = next(columns for columns in (numeric, categorical, timestamp) if columns is not None)
        rows, device = given.shape[0], given.device
        logits = self.scorer(
            torch.empty((rows, 0), device=device) if numeric is None else numeric,
            torch.empty((rows, 0), dtype=torch.int64, device=device) if categorical is None else categorical,
            torch.empty((rows, 0), dtype=torch.int64, device=device) if timestamp is None else timestamp,
        )
        probability = self.calibration(torch.sigmoid(logits).mean(dim=1))
        return probability, probability.unsqueeze(1) >= self.thresholds


def graph_of(detector: Detector, schema: Mapping[str, Any]) -> Graph:
    """The detector as a graph over a schema's columns, in its order of kinds."""
    numeric, categorical, timestamp = columns_by_kind(schema)
    examples = {
        "numeric": (len(numeric), torch.float32, 0),
        "categorical": (len(categorical), torch.int64, 0),
        "timestamp": (len(timestamp), torch.int64, MISSING_TIME),
    }
    inputs = {
        name: torch.full((ROWS, count), fill, dtype=dtype) for name, (count, dtype, fill) in examples.items() if count
    }
    return Graph(
        name="model",
        module=detector.eval(),
        inputs=inputs,
        outputs=("probability", "decision"),
        dynamic={name: {0: "rows"} for name in inputs},
        tolerance=STEEP if any(_is_steep(part) for part in detector.modules()) else 1e-4,
        front=category_lookup(categorical) if categorical else None,
    )


def _is_steep(part: nn.Module) -> bool:
    return isinstance(part, Calibration) and part.method == "isotonic"


def category_lookup(columns: list[Mapping[str, Any]]) -> GraphProto:
    """Texts [B, C] to codes [B, C], as `datamodules.columns.codes` makes them: 0 where empty or unknown."""
    parts = [f"text_{index}" for index in range(len(columns))]
    nodes = [helper.make_node("Split", [CODES], parts, name="split_columns", axis=1, num_outputs=len(columns))]
    codes = []
    for index, column in enumerate(columns):
        nodes += _lookup(index, column)
        codes.append(f"code_{index}")
    nodes.append(helper.make_node("Concat", codes, ["codes"], name="join_columns", axis=1))
    shape: list[str | int | None] = ["rows", len(columns)]
    return helper.make_graph(
        nodes,
        "category_lookup",
        [helper.make_tensor_value_info(CODES, TensorProto.STRING, shape)],
        [helper.make_tensor_value_info("codes", TensorProto.INT64, shape)],
        [
            helper.make_tensor(f"buckets_{i}", TensorProto.INT64, [], [int(c["hash_buckets"])])
            for i, c in _hashed(columns)
        ]
        + [helper.make_tensor("one", TensorProto.INT64, [], [1])] * bool(_hashed(columns)),
    )


def _hashed(columns: list[Mapping[str, Any]]) -> list[tuple[int, Mapping[str, Any]]]:
    return [(index, column) for index, column in enumerate(columns) if column["hash_buckets"]]


def _lookup(index: int, column: Mapping[str, Any]) -> list[NodeProto]:
    text, code = f"text_{index}", f"code_{index}"
    if not column["hash_buckets"]:
        categories = list(column["categories"])
        return [_encoder(text, code, categories, list(range(1, len(categories) + 1)), default=0)]
    hashed, wide, bucket, one_up, known = (f"{code}_{step}" for step in ("hash", "wide", "bucket", "one_up", "known"))
    return [
        helper.make_node("MurmurHash3", [text], [hashed], name=hashed, domain="com.microsoft", positive=1, seed=0),
        helper.make_node("Cast", [hashed], [wide], name=wide, to=TensorProto.INT64),
        helper.make_node("Mod", [wide, f"buckets_{index}"], [bucket], name=bucket),
        helper.make_node("Add", [bucket, "one"], [one_up], name=one_up),
        _encoder(text, known, [""], [0], default=1),
        helper.make_node("Mul", [one_up, known], [code], name=code),
    ]


def _encoder(source: str, result: str, keys: list[str], values: list[int], *, default: int) -> NodeProto:
    return helper.make_node(
        "LabelEncoder",
        [source],
        [result],
        name=result,
        domain="ai.onnx.ml",
        keys_strings=keys,
        values_int64s=values,
        default_int64=default,
    )
