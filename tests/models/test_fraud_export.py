"""The exported fraud graph takes texts, numbers and moments, and answers as torch and as the training codes do."""

from copy import deepcopy
from datetime import UTC, datetime, timedelta

import numpy as np
import onnx
import onnxruntime
import pyarrow as pa
import pytest
import torch
from torch import nn

from datamodules.columns import codes
from datamodules.schema import encode_raw
from models.calibration import Calibration
from models.fraud.export import Detector, category_lookup, graph_of
from models.graph import Graph
from models.preprocessing import MISSING_TIME, TimestampEncoding
from models.tabular import MLP
from train.export import graph as graphs

CITY = ["Zürich", "bern", "東京", "\U0001f600", "e\u0301", "\u00e9", "nan", "0", "a b", "x" * 300]
COLUMNS = [
    {"name": "city", "kind": "categorical", "categories": CITY, "hash_buckets": 0},
    {"name": "shop", "kind": "categorical", "categories": [], "hash_buckets": 7},
    {"name": "device", "kind": "categorical", "categories": [], "hash_buckets": 50_000},
    {"name": "channel", "kind": "categorical", "categories": ["web"], "hash_buckets": 0},
]
TEXTS = ["", *CITY, "BERN", "web", "Web", "unknown", "\u4e16\u754c", "y" * 5_000, "1.0", "-1", *map(str, range(500))]
SCHEMA = {
    "columns": [
        {"name": "amount", "kind": "numeric", "missing": 0.1, "median": 30.0, "iqr": 20.0, "bins": [0.0, 10.0, 300.0]},
        *COLUMNS,
        {"name": "when", "kind": "timestamp"},
    ],
    "target": {"rate": 0.2},
}


def session_of(model):
    return onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])


def looked_up(columns, texts):
    opsets = [onnx.helper.make_opsetid(*pair) for pair in (("", graphs.OPSET), ("ai.onnx.ml", 4), ("com.microsoft", 1))]
    model = onnx.helper.make_model(category_lookup(columns), opset_imports=opsets, ir_version=10)
    onnx.checker.check_model(model, full_check=True)
    return session_of(model).run(None, {"categorical": texts})[0]


@pytest.mark.parametrize("columns", [COLUMNS, COLUMNS[:1], COLUMNS[1:2]], ids=["all", "listed", "hashed"])
def test_texts_get_the_codes_that_training_gave_them(columns):
    generator = np.random.default_rng(0)
    texts = np.stack([generator.permutation(np.array(TEXTS, object)) for _ in columns], axis=1)
    found = looked_up(columns, texts)
    as_trained = [
        codes(pa.array(own, pa.large_string()), column["categories"], column["hash_buckets"])[0]
        for own, column in zip(texts.T, columns, strict=True)
    ]
    assert found.dtype == np.int64
    np.testing.assert_array_equal(found, np.stack(as_trained, axis=1))
    assert (found[texts == ""] == 0).all()


def test_codes_of_known_unknown_empty_and_hashed_texts():
    city, shop, device, _ = looked_up(COLUMNS, np.array([[text] * 4 for text in TEXTS], object)).T
    assert city.tolist() == [0, *range(1, 11), *([0] * (len(TEXTS) - 11 - 500)), 8, *([0] * 499)]  # "0" is known
    assert set(shop[1:].tolist()) == set(range(1, 8))
    assert device[1:].min() >= 1
    assert device.max() <= 50_000
    assert len(set(device.tolist())) > 500
    assert shop[0] == device[0] == 0


class Linear(nn.Module):
    """Logits [B, 2] of the first numeric column."""

    def forward(self, numeric, categorical, timestamp):
        return torch.stack([numeric[:, 0], numeric[:, 0] + 1], dim=1) + 0 * categorical.sum() + 0 * timestamp.sum()


def test_detector_gives_the_members_calibrated_mean_and_is_at_or_above_each_threshold():
    calibration = Calibration("platt")
    calibration.slope.fill_(2.0)
    numeric = torch.tensor([[-3.0], [-0.5], [0.2], [4.0]])
    raw = (torch.sigmoid(numeric[:, 0]) + torch.sigmoid(numeric[:, 0] + 1)) / 2
    expected = raw**2 / (raw**2 + (1 - raw) ** 2)
    detector = Detector(Linear(), calibration, torch.tensor([0.1, 0.9]))
    probability, decision = detector(numeric)
    torch.testing.assert_close(probability, expected)
    assert decision.tolist() == [[p >= 0.1, p >= 0.9] for p in expected.tolist()]
    assert decision.any(dim=0).tolist() == [True, True]
    assert not decision.all(dim=0).any()
    at_threshold = Detector(Linear(), calibration, probability[1:3])(numeric)[1]
    assert at_threshold.tolist() == [[False, False], [True, False], [True, True], [True, True]]


@pytest.fixture(scope="module")
def detector():
    """A network on all kinds of columns with an isotonic calibration that was fitted to steep and flat parts."""
    torch.manual_seed(0)
    calibration, generator = Calibration("isotonic"), np.random.default_rng(0)
    raw = generator.random(3_000) ** 2
    calibration.fit(raw, (generator.random(3_000) < raw**0.5).astype(float), np.ones(3_000))
    network = MLP(SCHEMA, width=16, num_blocks=1, dropout=0.1, category_size=3)
    with torch.no_grad():
        network.head.weight.mul_(20)
    return Detector(network, calibration, torch.tensor([0.6, 0.9])).eval()


@pytest.fixture(scope="module")
def whole(detector, tmp_path_factory):
    """The session of the detector's graph with its front."""
    offered, path = graph_of(detector, SCHEMA), tmp_path_factory.mktemp("graph") / "model.onnx"
    graphs.write(offered, path)
    graphs.save(graphs.with_front(onnx.load(path), offered.front), path)
    return onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])


@pytest.mark.parametrize("num_rows", [1, 2, 300])
def test_the_whole_graph_answers_raw_columns_as_torch_does(detector, whole, num_rows):
    generator = np.random.default_rng(num_rows)
    raw = {
        "numeric": generator.choice(np.array([np.nan, 0, 5, 100, 1e30], np.float32), (num_rows, 1)),
        "categorical": generator.choice(np.array(TEXTS, object), (num_rows, len(COLUMNS))),
        "timestamp": generator.choice([MISSING_TIME, -1, 10**9, 2 * 10**9], (num_rows, 1)),
    }
    encoded = {name: torch.from_numpy(values) for name, values in encode_raw(raw, SCHEMA).items()}
    with torch.inference_mode():
        probability, decision = detector(**encoded)
    found = dict(zip([output.name for output in whole.get_outputs()], whole.run(None, raw), strict=True))
    np.testing.assert_allclose(found["probability"], probability, atol=1e-4, rtol=0)
    is_clear = (probability.unsqueeze(1) - detector.thresholds).abs() > 1e-4
    np.testing.assert_array_equal(found["decision"][is_clear], decision[is_clear])
    assert found["probability"].shape == (num_rows,)
    assert num_rows < 300 or {tuple(row) for row in found["decision"].tolist()} == {(0, 0), (1, 0), (1, 1)}


@pytest.mark.parametrize("kind", ["numeric", "categorical", "timestamp"])
def test_a_graph_takes_only_the_kinds_that_the_schema_has(kind):
    schema = SCHEMA | {"columns": [column for column in SCHEMA["columns"] if column["kind"] == kind]}
    network = MLP(schema, width=8, num_blocks=1, dropout=0.0, category_size=3)
    offered = graph_of(Detector(network, Calibration("none"), torch.tensor([0.3, 0.7])), schema)
    assert list(offered.inputs) == [kind]
    assert (offered.front is not None) == (kind == "categorical")
    assert not offered.module.training
    probability, decision = offered.module(**offered.inputs)
    assert (len(probability), decision.shape) == (4, (4, 2))


def test_isotonic_calibration_is_exported_as_it_is_computed_here(detector):
    calibration = deepcopy(detector.calibration)
    table = calibration.table_x
    table[40] = table[39]  # a step, as thresholds that only float64 tells apart make: its left end counts
    assert calibration.table_y[40] > calibration.table_y[39] + 0.01
    between = (table[1:] + table[:-1]) / 2
    near = [torch.nextafter(table, torch.tensor(end)) for end in (-1.0, 2.0)]
    rows = torch.cat([table, between, *near, torch.tensor([0.0, 1e-30, 1.0]), torch.rand(500)])
    size = torch.export.Dim("rows")
    program = torch.export.export(calibration, (torch.rand(4),), dynamic_shapes=({0: size},))
    assert "searchsorted" not in program.graph_module.code
    assert torch.equal(program.module()(rows), calibration(rows))
    assert torch.equal(program.module()(rows[:1]), calibration(rows[:1]))
    steps = calibration(rows.sort().values).diff()
    assert steps.min() >= -1e-6  # monotone
    assert len(set(calibration(rows).tolist())) > 20


UTC_EPOCH = datetime(1970, 1, 1)
MOMENTS = [
    *(UTC_EPOCH + timedelta(seconds=seconds) for seconds in (-86_401, -86_400, -3_601, -1, 0, 1, 25_199, 25_200)),
    *(datetime(year, 2, 28, 23, 59, 59) for year in (1900, 1967, 1968, 1970, 1972, 2000, 2023, 2024, 2100)),
    *(datetime(year, 2, 29, 6, 59, 59) for year in (1968, 1972, 2000, 2024)),
    *(datetime(year, 3, 1) for year in (1900, 1968, 1970, 2000, 2024, 2100)),
    *(datetime(1969, 12, 22) + timedelta(days=day) for day in range(21)),
    *(datetime(2024, 12, 23) + timedelta(days=day, seconds=-1) for day in range(21)),
    *(datetime(2025, 7, 7) + timedelta(hours=hour, minutes=59, seconds=59) for hour in range(24)),
    datetime(1, 1, 1),
    datetime(9999, 12, 31, 23, 59, 59),
]


def by_hand(moment):
    angle = 2 * np.pi * (moment.hour * 3600 + moment.minute * 60 + moment.second) / 86_400
    weekday = [float(moment.weekday() == day) for day in range(7)]
    return [np.sin(angle), np.cos(angle), float(moment.hour <= 6), *weekday, 0.0]


def test_moments_are_encoded_alike_by_torch_onnx_and_the_calendar(tmp_path):
    seconds = [
        round((moment.replace(tzinfo=UTC) - datetime(1970, 1, 1, tzinfo=UTC)).total_seconds()) for moment in MOMENTS
    ]
    rows = torch.tensor([*seconds, MISSING_TIME]).unsqueeze(1)
    expected = np.array([*map(by_hand, MOMENTS), [0.0] * 10 + [1.0]])
    encoding = TimestampEncoding()
    offered = Graph("moments", encoding, {"timestamp": rows[:4]}, ("features",), {"timestamp": {0: "rows"}})
    graphs.write(offered, tmp_path / "moments.onnx")
    (found,) = session_of(onnx.load(tmp_path / "moments.onnx")).run(None, {"timestamp": rows.numpy()})
    np.testing.assert_allclose(encoding(rows), expected, atol=2e-6)
    np.testing.assert_allclose(found, expected, atol=2e-6)
    np.testing.assert_array_equal(found[:, 2:], encoding(rows)[:, 2:])
