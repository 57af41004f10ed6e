"""Smaller versions of a float32 graph: near it, smaller by the share they promise, and the same bytes each time."""

import os
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

from train.export import layers, quantize, session
from train.export.quantize import Candidate, Method, candidate, candidates, quantizable, recut
from train.export.sensitivity import fewest, sensitivity

METHODS = get_args(Method)
WIDTH, NUM_COLUMNS, NUM_EDGES, NUM_CODES = 256, 8, 64, 40
SPARSE = {"sparse_50": 0.98, "sparse_2_4": 0.98}
LARGEST_ERROR = {"float16": 1e-3, "int4_weights": 0.03, "sparse_50": 0.3, "sparse_2_4": 0.3}  # of a probability
LEAST_SHRINKING = {"float16": 1.9, "int4_weights": 5.0, **SPARSE}


class Table(nn.Module):
    """Raw columns and codes to a probability: a table of edges in raw units, an embedding, layers, one for members."""

    edges: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("edges", torch.linspace(-2e3, 2e3, NUM_COLUMNS * NUM_EDGES).reshape(NUM_COLUMNS, -1) / 7)
        self.codes = nn.Embedding(NUM_CODES, 16)
        self.first = nn.Linear(NUM_COLUMNS * (NUM_EDGES + 2) + 16, WIDTH)
        self.second = nn.Linear(WIDTH, WIDTH)
        self.scale = nn.Parameter(torch.randn(4, WIDTH))
        self.shared = nn.Parameter(torch.randn(WIDTH, WIDTH) * WIDTH**-0.5 * torch.logspace(-2, 0, WIDTH))
        self.head = nn.Linear(WIDTH, 1)

    def forward(self, numeric: Tensor, categorical: Tensor) -> Tensor:
        """[B] of [B, F] and [B]."""
        steps = (numeric.unsqueeze(2) > self.edges).float().flatten(1)
        scaled = (torch.nan_to_num(numeric) / 100).clamp(-4, 4)
        sizes = torch.log1p(torch.nan_to_num(numeric).abs()) / 20  # tells 1e30 from what float16 makes of it
        hidden = torch.cat([scaled, sizes, steps, self.codes(categorical)], dim=1)
        hidden = torch.relu(self.second(torch.relu(self.first(hidden))))
        members = torch.relu((hidden.unsqueeze(0) * self.scale.unsqueeze(1)) @ self.shared)  # [K, B, W]
        return torch.sigmoid(self.head(members).mean(dim=0)).squeeze(1)


def rows_of(number: int, seed: int) -> dict[str, NDArray[Any]]:
    generator = np.random.default_rng(seed)
    numeric = (100 * generator.standard_normal((number, NUM_COLUMNS))).astype(np.float32)
    return {"numeric": numeric, "categorical": generator.integers(0, NUM_CODES, number)}


def calibration() -> Iterator[dict[str, NDArray[Any]]]:
    """1,000 rows in batches that do not divide it."""
    rows = rows_of(1_000, seed=1)
    for start in range(0, 1_000, 300):
        yield {name: values[start : start + 300] for name, values in rows.items()}


@pytest.fixture(scope="module")
def float32(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("float32") / "model.onnx"
    torch.manual_seed(0)
    rows = {name: torch.from_numpy(values) for name, values in rows_of(4, seed=0).items()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the exporter's own making
        torch.onnx.export(
            Table().eval(),
            kwargs=rows,
            f=str(path),
            dynamo=True,
            external_data=False,
            dynamic_shapes={name: {0: torch.export.Dim.DYNAMIC} for name in rows},
            verbose=False,
        )
    return layers.save(layers.load(path), path)


@pytest.fixture(scope="module")
def made(float32: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Candidate]:
    folder = tmp_path_factory.mktemp("candidates")
    return {one.name: one for one in candidates(float32, folder, methods=METHODS, calibration=calibration)}


def outputs(path: Path | None, rows: dict[str, NDArray[Any]]) -> NDArray[np.float32]:
    assert path is not None
    return session.run(session.open_session(path), rows)[0]


@pytest.mark.parametrize("method", METHODS)
def test_a_candidate_is_near_float32_also_on_missing_and_huge_values(
    method: str, made: dict[str, Candidate], float32: Path
) -> None:
    rows = rows_of(500, seed=2)
    rows["numeric"][::7, 0], rows["numeric"][::5, 1], rows["numeric"][::3, 2] = np.nan, 1e30, -1e30
    difference = np.abs(outputs(made[method].path, rows) - outputs(float32, rows))
    assert difference.max() < LARGEST_ERROR.get(method, 0.01), made[method]


@pytest.mark.parametrize("method", METHODS)
def test_a_candidate_is_smaller_by_the_share_that_its_method_promises(
    method: str, made: dict[str, Candidate], float32: Path
) -> None:
    path = made[method].path
    assert path is not None
    assert path.name == f"{method}.onnx"
    assert float32.stat().st_size / path.stat().st_size > LEAST_SHRINKING.get(method, 3.5)


def test_files_hold_no_word_of_where_they_were_made(made: dict[str, Candidate]) -> None:
    for one in made.values():
        assert one.path is not None
        assert not [word for word in (b"stack_trace", b".py", b"/tmp") if word in one.path.read_bytes()], one.name


@pytest.mark.slow
def test_another_process_makes_the_same_bytes(made: dict[str, Candidate], float32: Path, tmp_path: Path) -> None:
    (rows,) = recut(calibration())
    np.savez(tmp_path / "rows.npz", **{f"{i}/{name}": v for i, batch in enumerate(rows) for name, v in batch.items()})
    code = (
        "import sys; from pathlib import Path; import numpy as np; from train.export.quantize import candidates\n"
        "float32, folder, *methods = sys.argv[1:]\n"
        "saved = np.load(Path(folder) / 'rows.npz')\n"
        "count = len({name.split('/')[0] for name in saved})\n"
        "rows = [{n: saved[f'{i}/{n}'] for n in ('numeric', 'categorical')} for i in range(count)]\n"
        "candidates(Path(float32), Path(folder), methods=methods, calibration=lambda: iter(rows))\n"
    )
    command = [sys.executable, "-c", code, str(float32), str(tmp_path), *METHODS]
    subprocess.run(command, check=True, env={**os.environ, "PYTHONHASHSEED": "7"}, timeout=120)
    for name, one in made.items():
        assert one.path is not None
        assert one.path.read_bytes() == (tmp_path / f"{name}.onnx").read_bytes(), name


def test_stored_int8_weights_are_floats_again_once_loaded(made: dict[str, Candidate], tmp_path: Path) -> None:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "loaded.onnx")
    options.log_severity_level = 3
    onnxruntime.InferenceSession(str(made["int8_weights"].path), options, providers=["CPUExecutionProvider"])
    loaded = onnx.load(str(tmp_path / "loaded.onnx")).graph
    assert not [tensor.name for tensor in loaded.initializer if tensor.data_type == TensorProto.INT8]
    assert not [node.name for node in loaded.node if node.name.endswith("_scaled")]


def test_each_output_of_a_layer_has_its_own_scale(made: dict[str, Candidate], float32: Path) -> None:
    weights = {name: layers.array_of(tensor) for name, tensor in layers.floats(layers.load(float32)).items()}
    assert made["int8_weights"].path is not None
    kept = {one.name: numpy_helper.to_array(one) for one in layers.load(made["int8_weights"].path).graph.initializer}
    for name, inputs in (("first.weight", 1), ("second.weight", 1), ("shared", 0)):
        error = np.abs(kept[f"{name}_int8"] * kept[f"{name}_scale"] - weights[name]).max(axis=inputs)
        assert np.all(error <= np.abs(weights[name]).max(axis=inputs) / 127 * 0.501), name


def test_float16_begins_after_the_raw_columns_and_ends_before_the_score(made: dict[str, Candidate]) -> None:
    assert made["float16"].path is not None
    graph = layers.load(made["float16"].path).graph
    maker = {name: node for node in graph.node for name in node.output}
    narrowed = [node for node in graph.node if node.op_type == "Cast" and node.attribute[0].i == TensorProto.FLOAT16]
    assert len(narrowed) == 1
    assert maker[narrowed[0].input[0]].op_type == "Concat"
    (widened,) = (node for node in graph.node if node.op_type == "Cast" and node.name.endswith("_cast_to_fp32_node"))
    assert maker[widened.input[0]].op_type in layers.LINEAR


def test_what_is_in_units_of_raw_columns_is_stored_exactly(made: dict[str, Candidate], float32: Path) -> None:
    before, after = (layers.floats(layers.load(path)) for path in (float32, made["int8_weights"].path) if path)
    (edges,) = (name for name, tensor in before.items() if NUM_EDGES in tensor.dims)
    assert np.array_equal(layers.array_of(before[edges]), layers.array_of(after[edges]))


def test_static_int8_leaves_the_last_layer_since_its_256_values_would_tie_scores(
    made: dict[str, Candidate], float32: Path
) -> None:
    assert len(quantizable(float32, "int8_static_minmax")) == len(quantizable(float32, "int8_dynamic")) - 1
    scores = outputs(made["int8_static_minmax"].path, rows_of(2_000, seed=3))
    assert len(np.unique(scores)) > 1_900


@pytest.mark.parametrize("method", SPARSE)
def test_half_of_each_layers_weights_are_zero_and_they_are_the_smallest(
    method: str, made: dict[str, Candidate], float32: Path
) -> None:
    assert made[method].path is not None
    before, after = layers.floats(layers.load(float32)), layers.floats(layers.load(Path(str(made[method].path))))
    for name in ("first.weight", "second.weight", "shared"):
        old, new = layers.array_of(before[name]), layers.array_of(after[name])
        assert np.mean(new == 0) == pytest.approx(0.5, abs=0.01)
        assert np.abs(old[new == 0]).mean() < np.abs(old[new != 0]).mean()
        inputs_last = new.T if name == "shared" else new  # [outputs, inputs]
        if method == "sparse_2_4":
            fours = inputs_last[:, : inputs_last.shape[1] // 4 * 4].reshape(len(inputs_last), -1, 4)
            assert np.all((fours == 0).sum(axis=2) == 2)


def test_each_calibration_finds_its_own_ranges(made: dict[str, Candidate]) -> None:
    static = [one.path.read_bytes() for name, one in made.items() if "static" in name and one.path]
    assert len(set(static)) == 3


def test_a_graph_without_layers_gives_reasons(tmp_path: Path) -> None:
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        [helper.make_node("Sigmoid", ["x"], ["y"])],
        "no_layers",
        [value("x", TensorProto.FLOAT, ["rows", 3])],
        [value("y", TensorProto.FLOAT, ["rows", 3])],
    )
    path = tmp_path / "model.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), str(path))
    for one in candidates(path, tmp_path, methods=METHODS, calibration=calibration):
        assert one.path is None
        assert one.note.startswith("does not apply: no")


def test_a_method_that_fails_gives_the_reason(float32: Path, tmp_path: Path) -> None:
    torn = tmp_path / "torn.onnx"
    torn.write_bytes(float32.read_bytes()[:1000])
    for one in candidates(torn, tmp_path, methods=METHODS, calibration=calibration):
        assert one.path is None
        assert one.note.startswith("failed: ")
    nothing = candidate(float32, tmp_path, "int8_static_minmax", calibration=lambda: iter([]))
    assert nothing == Candidate("int8_static_minmax", None, "failed: ValueError: there are no rows to calibrate with")


def test_a_layer_is_split_as_it_computes_whether_it_transposes_its_input_or_its_matrix() -> None:
    generator = np.random.default_rng(0)
    matrix, bias = (generator.standard_normal(shape).astype(np.float32) for shape in ((3, 5), (3,)))
    given = generator.standard_normal((5, 7)).astype(np.float32)
    graph = helper.make_graph(
        [helper.make_node("Gemm", ["x", "w", "b"], ["y"], name="layer", transA=1, transB=1)],
        "graph",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [5, "rows"])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["rows", 3])],
        [numpy_helper.from_array(matrix, "w"), numpy_helper.from_array(bias, "b")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    layers.split_gemm(model)
    onnx.checker.check_model(model, full_check=True)
    assert [node.name for node in layers.linear_nodes(model, kinds=frozenset({"MatMul"}))] == ["layer"]
    session_of_it = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    np.testing.assert_allclose(
        session_of_it.run(None, {"x": given})[0], given.T @ matrix.T + bias, rtol=1e-5, atol=1e-6
    )


def test_an_unknown_method_is_told(float32: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="methods must be among int8_weights, .*; got 'int3'"):
        candidates(float32, tmp_path, methods=["int3"], calibration=calibration)


@pytest.mark.parametrize("method", METHODS)
def test_a_layer_that_is_left_stays_float32(method: str, float32: Path, tmp_path: Path) -> None:
    names = quantizable(float32, method)
    one = candidate(float32, tmp_path, method, calibration=calibration, left=names[1:])
    assert one.path is not None
    assert one.left == tuple(names[1:])
    whole = candidate(float32, tmp_path / "whole", method, calibration=calibration)
    assert whole.path is not None
    if method not in SPARSE:
        assert whole.path.stat().st_size < one.path.stat().st_size < float32.stat().st_size + 5_000
    assert candidate(float32, tmp_path, method, calibration=calibration, left=names).path is None


def stored(path: Path) -> set[str]:
    return {tensor.name.removesuffix("_int8") for tensor in onnx.load(str(path)).graph.initializer}


def test_the_search_leaves_the_layer_that_hurts_and_no_other(float32: Path, tmp_path: Path) -> None:
    def drop(path: Path) -> float:
        return 0.3 if "second.weight" in stored(path) - set(layers.floats(layers.load(path))) else 0.001

    found = sensitivity(float32, tmp_path, "int8_weights", calibration=calibration, drop=drop, max_drop=0.005)
    assert found.candidate.left == ("second.weight",)
    assert found.candidate.path == tmp_path / "int8_weights.onnx"
    assert drop(found.candidate.path) <= 0.005
    assert next(iter(found.drops.items())) == ("second.weight", 0.3)


def test_the_search_gives_up_where_any_layer_hurts(float32: Path, tmp_path: Path) -> None:
    spoilt = candidate(float32, tmp_path, "int8_weights", calibration=calibration)
    found = sensitivity(
        float32, tmp_path, "int8_weights", calibration=calibration, drop=lambda path: 1.0, max_drop=0.005
    )
    assert found.candidate.path is None
    assert found.candidate.note == "fails the gate with any layer quantized"
    assert spoilt.path is not None
    assert not spoilt.path.exists()


@pytest.mark.parametrize(("least", "most", "expected"), [(1, 5, 1), (3, 5, 3), (5, 5, 5), (6, 5, None), (1, 0, None)])
def test_fewest_that_pass_are_found(least: int, most: int, expected: int | None) -> None:
    assert fewest(lambda count: count >= least, most=most) == expected


@pytest.mark.parametrize(("rows", "sizes"), [(1_000, [128] * 7), (128, [128]), (5, [5])])
def test_calibration_batches_are_of_one_size(rows: int, sizes: list[int]) -> None:
    (batches,) = recut([rows_of(rows, seed=0)])
    assert [len(batch["numeric"]) for batch in batches] == sizes
    assert quantize.CALIBRATION_BATCH == 128


def test_rows_of_different_lengths_are_cut_among_their_like() -> None:
    texts = [{"tokens": np.ones((rows, length), np.int64)} for rows, length in ((100, 7), (30, 9), (100, 7), (0, 5))]
    found = [[batch["tokens"].shape for batch in batches] for batches in recut(texts)]
    assert found == [[(128, 7)], [(30, 9)]]


class Texts(nn.Module):
    """Token ids of any length to scores."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.first, self.head = nn.Embedding(100, 32), nn.Linear(32, 64), nn.Linear(64, 3)

    def forward(self, tokens: Tensor) -> Tensor:
        """[B, 3] of [B, L]."""
        return self.head(torch.relu(self.first(self.tokens(tokens))).mean(dim=1))


@pytest.mark.parametrize("method", [name for name in METHODS if "static" in name])
def test_static_int8_takes_its_ranges_from_batches_of_different_lengths(method: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    tokens, any_size = torch.randint(0, 100, (4, 5)), torch.export.Dim.DYNAMIC
    path = tmp_path / "model.onnx"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the exporter's own making
        shapes, options = {"tokens": {0: any_size, 1: any_size}}, {"external_data": False, "verbose": False}
        torch.onnx.export(Texts().eval(), (tokens,), str(path), dynamo=True, dynamic_shapes=shapes, **options)
    generator = np.random.default_rng(0)
    texts = [{"tokens": generator.integers(0, 100, (rows, length))} for rows, length in ((50, 3), (20, 9), (9, 40))]
    made = candidate(path, tmp_path, method, calibration=lambda: iter(texts))
    for rows in texts:
        np.testing.assert_allclose(outputs(made.path, rows), outputs(path, rows), atol=0.02)
