"""The gate passes what keeps the metric and the speed, refuses the rest in words, and falls back to float32."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper, save
from pytorch_lightning import LightningModule
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from train.export import gate, session, timing
from train.export.contest import repeated
from train.export.gate import Decision, Measured, Rule, decide
from train.export.quantize import Candidate, candidates
from train.export.timing import Latency, Setting

RULE = Rule(metric="ranking", mode="max")
NUM_ROWS, NUM_COLUMNS, WIDTH = 2_000, 8, 64
STATIC, STORED = "int8_static_minmax", "int8_weights"


@dataclass(frozen=True)
class Rows:
    """Scores and targets, [rows]."""

    score: NDArray[np.float64]
    target: NDArray[np.float64]


def ranking(rows: Rows) -> float:
    """Share of pairs of a positive and a negative row that are in the right order."""
    values, place, counts = np.unique(rows.score, return_inverse=True, return_counts=True)
    rank = (np.cumsum(counts) - (counts - 1) / 2)[place]
    positives = rows.target.sum()
    above = rank[rows.target > 0].sum() - positives * (positives + 1) / 2
    return float(above / (positives * (len(rank) - positives)))


class Ranker(LightningModule):
    """A perceptron whose test logs one metric of all rows."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Linear(NUM_COLUMNS, WIDTH), nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 1)
        self.kept: list[tuple[Tensor, Tensor]] = []
        self.scored: Rows | None = None

    def forward(self, columns: Tensor, unused: Tensor) -> Tensor:
        """[B] of [B, F] and an empty [B, 0]."""
        hidden = torch.relu(self.second(torch.relu(self.first(columns))))
        return torch.sigmoid(self.head(hidden)).squeeze(1)

    def test_step(self, batch: list[Tensor], batch_idx: int) -> None:
        """Keep the scores."""
        columns, unused, target = batch
        self.kept.append((self(columns, unused), target))

    def on_test_epoch_end(self) -> None:
        """Log the metric."""
        score, target = (torch.cat(parts).double().numpy() for parts in zip(*self.kept, strict=True))
        self.kept.clear()
        self.scored = Rows(score, target)
        self.log("test/ranking", ranking(self.scored))


@pytest.fixture(scope="module")
def model() -> Ranker:
    torch.manual_seed(0)
    return Ranker().eval()


@pytest.fixture(scope="module")
def columns() -> Tensor:
    return torch.randn(NUM_ROWS, NUM_COLUMNS, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def loader(model: Ranker, columns: Tensor) -> DataLoader:
    """Rows whose targets follow the model's own score, with noise."""
    with torch.no_grad():
        score = model(columns, columns[:, :0])
    noise = torch.randn(NUM_ROWS, generator=torch.Generator().manual_seed(2))
    target = (score + 0.5 * score.std() * noise > score.quantile(0.8)).float()
    return DataLoader(TensorDataset(columns, columns[:, :0], target), batch_size=256)


@pytest.fixture(scope="module")
def float32(model: Ranker, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model as a graph of three Gemm."""
    nodes, weights, last = [], [], "columns"
    for name, layer in (("first", model.first), ("second", model.second), ("head", model.head)):
        for part in ("weight", "bias"):
            weights.append(numpy_helper.from_array(getattr(layer, part).detach().numpy(), f"{name}.{part}"))
        nodes.append(helper.make_node("Gemm", [last, f"{name}.weight", f"{name}.bias"], [name], name=name, transB=1))
        last = name
        if name != "head":
            last = f"{name}_relu"
            nodes.append(helper.make_node("Relu", [name], [last], name=last))
    nodes.append(helper.make_node("Sigmoid", [last], ["probability"], name="sigmoid"))
    nodes.append(helper.make_node("Squeeze", ["probability", "axis"], ["score"], name="squeeze"))
    weights.append(numpy_helper.from_array(np.array([1]), "axis"))
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes,
        "ranker",
        [value("columns", TensorProto.FLOAT, ["rows", NUM_COLUMNS])],
        [value("score", TensorProto.FLOAT, ["rows"])],
        weights,
    )
    path = tmp_path_factory.mktemp("ranker") / "float32.onnx"
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), str(path))
    return path


def judged(float32: Path, model: Ranker, loader: DataLoader, folder: Path, calibration: Tensor) -> Decision:
    """The decision over two candidates, without their speeds."""
    made = candidates(
        float32, folder, methods=[STATIC, STORED], calibration=lambda: iter([{"columns": calibration.numpy()}])
    )
    paths = {"float32": float32, **{one.name: one.path for one in made if one.path}}
    measured = {}
    for name, path in paths.items():
        score = gate.score(model, loader, {"model": session.open_session(path)})
        draws = gate.draws(score.rows, ranking, resamples=50)
        measured[name] = Measured(name, path.stat().st_size, score.metrics["test/ranking"], draws, {})
    return decide(measured["float32"], made, measured, RULE)


def test_a_session_gives_the_tests_metrics_of_the_network(model: Ranker, loader: DataLoader, float32: Path) -> None:
    expected, found = gate.score(model, loader), gate.score(model, loader, {"model": session.open_session(float32)})
    assert found.metrics == pytest.approx(expected.metrics, abs=1e-6)
    assert 0.8 < found.metrics["test/ranking"] < 1
    assert np.allclose(found.rows.score, expected.rows.score, atol=1e-6)
    assert "forward" not in vars(model)


def test_a_graph_with_an_input_that_the_model_has_not_is_told(
    model: Ranker, loader: DataLoader, float32: Path, tmp_path: Path
) -> None:
    import onnx

    other = onnx.load(str(float32))
    other.graph.input[0].name = other.graph.node[0].input[0] = "pixels"
    save(other, str(tmp_path / "other.onnx"))
    with pytest.raises(ValueError, match="the graph has the input 'pixels'; there are only columns, unused"):
        gate.score(model, loader, {"model": session.open_session(tmp_path / "other.onnx")})
    assert "forward" not in vars(model)


def test_a_sound_calibration_passes(
    float32: Path, model: Ranker, loader: DataLoader, columns: Tensor, tmp_path: Path
) -> None:
    decision = judged(float32, model, loader, tmp_path, columns[:512])
    assert [verdict.passed for verdict in decision.verdicts] == [True, True], decision
    assert decision.winner in (STATIC, STORED)


def test_a_broken_calibration_fails_and_another_candidate_ships(
    float32: Path, model: Ranker, loader: DataLoader, columns: Tensor, tmp_path: Path
) -> None:
    decision = judged(float32, model, loader, tmp_path, torch.zeros_like(columns[:512]))
    static, stored = decision.verdicts
    assert not static.passed
    assert static.drop is not None
    assert static.drop > 0.05
    assert static.interval is not None
    assert static.interval[0] < static.drop < static.interval[1]
    assert static.reason.startswith("ranking falls by 0.")
    assert static.reason.endswith("more than gate.max_drop=0.005")
    assert stored.passed
    assert decision.winner == STORED
    assert decision.reason.startswith("int8_weights is the smallest of 1 that passed the gate")


def measured(name: str, metric: float, *, size: int = 100, times: tuple[float, float] = (1.0, 1.0)) -> Measured:
    return Measured(name, size, metric, None, {"batch 1 on 1 thread": times[0], "batch 64 on 2 threads": times[1]})


def decided(*graphs: Measured, rule: Rule = RULE, reference: Measured | None = None) -> Decision:
    listed = [Candidate(one.name, Path(one.name), "made") for one in graphs]
    reference = reference or measured("float32", 0.9, size=400)
    return decide(reference, listed, {one.name: one for one in graphs}, rule)


def test_float32_ships_with_the_reasons_where_none_passes() -> None:
    decision = decided(measured("a", 0.89), measured("b", 0.9, times=(1.2, 0.5)))
    assert decision.winner == "float32"
    assert decision.reason == (
        "no candidate passed the gate: float32 ships (a: ranking falls by 0.0100: more than gate.max_drop=0.005; "
        "b: slower: its time is 1.20 times float32's at batch 1 on 1 thread)"
    )


def test_a_candidate_that_was_not_made_is_refused_with_its_note() -> None:
    decision = decide(measured("float32", 0.9), [Candidate("a", None, "failed: no kernel")], {}, RULE)
    assert decision.verdicts[0].reason == "failed: no kernel"
    assert decision.winner == "float32"


@pytest.mark.parametrize(("metric", "passed"), [(0.8951, True), (0.8949, False), (0.95, True), (float("nan"), False)])
def test_the_drop_may_be_as_large_as_the_rule_says(metric: float, passed: bool) -> None:
    assert decided(measured("a", metric)).verdicts[0].passed is passed


@pytest.mark.parametrize(("metric", "passed"), [(0.904, True), (0.906, False), (0.1, True)])
def test_a_metric_of_which_less_is_better_may_not_rise(metric: float, passed: bool) -> None:
    verdict = decided(measured("a", metric), rule=Rule(metric="loss", mode="min")).verdicts[0]
    assert verdict.passed is passed
    assert verdict.drop == pytest.approx(metric - 0.9)
    assert verdict.reason.startswith("loss rises by" if metric > 0.9 else "loss falls by")


def test_without_a_metric_of_float32_nothing_can_pass() -> None:
    decision = decided(measured("a", 0.9), reference=measured("float32", float("nan")))
    assert decision.verdicts[0].reason == "ranking is 0.9 and nan in float32: it cannot be judged"
    assert decision.winner == "float32"


@pytest.mark.parametrize(("slowest", "passed"), [(1.02, True), (1.04, False), (float("nan"), False)])
def test_what_seems_slower_passes_within_the_slack(slowest: float, passed: bool) -> None:
    assert decided(measured("a", 0.9, times=(0.5, slowest))).verdicts[0].passed is passed


def test_the_preferred_of_those_that_pass_ships() -> None:
    small, fast = measured("small", 0.9, size=90), measured("fast", 0.9, size=110, times=(0.5, 0.5))
    close = measured("close", 0.9, size=105, times=(0.51, 0.5))
    assert decided(fast, small, close).winner == "small"
    fastest = Rule(metric="ranking", mode="max", prefer="fastest")
    assert decided(fast, small, rule=fastest).winner == "fast"
    assert decided(fast, small, close, rule=fastest).winner == "close"  # no timing tells it from the fastest


def test_float32_ships_where_it_is_the_smallest_itself() -> None:
    decision = decided(measured("large", 0.9, size=401))
    assert decision.winner == "float32"
    assert decision.reason == "float32 is the smallest, also beside the 1 that passed the gate"


def test_draws_of_two_graphs_are_paired() -> None:
    generator = np.random.default_rng(0)
    target = (generator.random(500) < 0.3).astype(np.float64)
    rows = Rows(target + generator.standard_normal(500), target)
    first, again = gate.draws(rows, ranking, resamples=40), gate.draws(rows, ranking, resamples=40)
    assert np.array_equal(first, again)
    worse = Rows(rows.score + 0.1 * generator.standard_normal(500), target)
    drop = ranking(rows) - ranking(worse)
    low, high = gate.drop_interval(first, gate.draws(worse, ranking, resamples=40), "max") or (0.0, 0.0)
    assert low < drop < high
    assert high - low < np.ptp(first) / 2  # the rows' own luck is in both, and is gone from the difference


def test_graphs_and_torch_are_timed_in_turns(float32: Path, model: Ranker, columns: Tensor) -> None:
    rows = {"columns": columns.numpy(), "unused": columns[:, :0].numpy()}
    asked = [Setting(1, 1), Setting(64, 2)]
    found = timing.measure({"a": (float32, rows), "b": (float32, rows)}, asked=asked, model=(model, rows), rounds=4)
    assert list(found) == asked
    assert [str(setting) for setting in found] == ["batch 1 on 1 thread", "batch 64 on 2 threads"]
    for latencies in found.values():
        assert set(latencies) == {"a", "b", timing.TORCH}
        assert all(0 < one.p50 <= one.p99 and len(one.rounds) == 4 for one in latencies.values())
        assert 0.2 < timing.ratio(latencies["b"], latencies["a"]) < 5


def test_a_ratio_is_of_the_same_rounds() -> None:
    slow_machine_once = Latency(1, 1, (1.0, 9.0, 1.0)), Latency(1, 1, (2.0, 18.0, 2.0))
    assert timing.ratio(slow_machine_once[1], slow_machine_once[0]) == 2


@pytest.mark.parametrize(("slower", "expected"), [(24, 1.05), (16, 1.0)])
def test_what_the_rounds_do_not_tell_apart_is_as_fast(slower: int, expected: float) -> None:
    one = Latency(1, 1, (1.05,) * slower + (0.95,) * (30 - slower))
    assert timing.ratio(one, Latency(1, 1, (1.0,) * 30)) == pytest.approx(expected)


def test_peak_memory_is_that_of_the_graph_and_not_of_this_process(tmp_path: Path) -> None:
    value = helper.make_tensor_value_info
    matrix = numpy_helper.from_array(np.ones((2_000, 2_000), np.float32), "matrix")
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "matrix"], ["y"])],
        "big",
        [value("x", TensorProto.FLOAT, ["rows", 2_000])],
        [value("y", TensorProto.FLOAT, ["rows", 2_000])],
        [matrix],
    )
    path = tmp_path / "big.onnx"
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), str(path))
    peak = timing.peak_memory({"big": (path, {"x": np.ones((64, 2_000), np.float32)})})["big"]
    assert 16e6 < peak < 120e6  # the matrix is 16 MB, this process some hundred


def test_a_graph_that_does_not_run_is_told(tmp_path: Path) -> None:
    torn = tmp_path / "torn.onnx"
    torn.write_bytes(b"torn")
    with pytest.raises(RuntimeError, match="a process that runs .*torn.onnx failed"):
        timing.peak_memory({"torn": (torn, {"x": np.ones((64, 2), np.float32)})})


def test_texts_reach_the_measuring_process(tmp_path: Path) -> None:
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        [
            helper.make_node(
                "LabelEncoder",
                ["x"],
                ["y"],
                domain="ai.onnx.ml",
                keys_strings=["a"],
                values_int64s=[1],
                default_int64=0,
            )
        ],
        "texts",
        [value("x", TensorProto.STRING, ["rows"])],
        [value("y", TensorProto.INT64, ["rows"])],
    )
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("ai.onnx.ml", 4)]
    save(helper.make_model(graph, opset_imports=opsets, ir_version=10), str(tmp_path / "texts.onnx"))
    rows: dict[str, NDArray[Any]] = {"x": np.array(["a", "é", ""] * 30, dtype=object)}
    assert timing.peak_memory({"texts": (tmp_path / "texts.onnx", rows)})["texts"] >= 0


def test_where_there_are_fewer_rows_than_a_batch_has_they_are_taken_again():
    found = repeated({"image": np.arange(6).reshape(3, 2)}, 7)
    assert found["image"][:, 0].tolist() == [0, 2, 4, 0, 2, 4, 0]
