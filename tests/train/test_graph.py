"""Graphs as files: the same bytes each time, nothing of this machine in them, and no broken one passes."""

import copy
import getpass
import socket
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

from models.dropout import RowDropout
from models.graph import Graph
from train import errors
from train.export import graph
from train.export.session import open_session

WORDS = ["ulm", "bern", "graz"]


class Table(nn.Module):
    """Numbers [B, 3] and a code [B, 1] to a score [B] and whether it reaches a threshold [B, 1]."""

    threshold: Tensor

    def __init__(self, dropout: nn.Module | None = None) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.register_buffer("threshold", torch.tensor([0.5]))
        self.embedding = nn.Embedding(len(WORDS) + 1, 4)
        self.first, self.dropout, self.last = nn.Linear(7, 8), dropout or nn.Dropout(0.5), nn.Linear(8, 1)

    def forward(self, numeric: Tensor, category: Tensor) -> tuple[Tensor, Tensor]:
        """Score rows."""
        values = torch.nan_to_num(numeric, nan=0.0).clamp(-10, 10)
        hidden = torch.cat([values, self.embedding(category.squeeze(1))], dim=1)
        score = torch.sigmoid(self.last(self.dropout(torch.relu(self.first(hidden)))).squeeze(1))
        return score, score.unsqueeze(1) >= self.threshold


def front() -> onnx.GraphProto:
    """Texts to codes, 0 where unknown."""
    lookup = {"keys_strings": WORDS, "values_int64s": [1, 2, 3], "default_int64": 0}
    return helper.make_graph(
        [helper.make_node("LabelEncoder", ["category"], ["code"], name="look_up", domain="ai.onnx.ml", **lookup)],
        "look_up",
        [helper.make_tensor_value_info("category", TensorProto.STRING, ["rows", 1])],
        [helper.make_tensor_value_info("code", TensorProto.INT64, ["rows", 1])],
    )


def offered(module: nn.Module) -> Any:
    """What a model would offer."""
    inputs = {"numeric": torch.zeros(4, 3), "category": torch.zeros(4, 1, dtype=torch.int64)}
    dynamic = {name: {0: "rows"} for name in inputs}
    return Graph(name="model", module=module, inputs=inputs, outputs=("score", "decision"), dynamic=dynamic)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The table's graph, without its front."""
    path = tmp_path_factory.mktemp("graph") / "model.onnx"
    graph.write(offered(Table().eval()), path)
    return path


@pytest.fixture
def model(written: Path) -> onnx.ModelProto:
    """The same, to be changed."""
    return onnx.load(written)


def raw_rows(number: int) -> dict[str, NDArray[Any]]:
    generator = np.random.default_rng(0)
    numeric = generator.standard_normal((number, 3)).astype(np.float32)
    return {"numeric": numeric, "category": generator.choice(np.array([*WORDS, "", "rome"], object), (number, 1))}


def reference(raw: Mapping[str, NDArray[Any]]) -> tuple[NDArray[Any], ...]:
    """Torch's answer to raw rows."""
    codes = [[WORDS.index(text) + 1 if text in WORDS else 0] for text in raw["category"][:, 0]]
    with torch.inference_mode():
        outputs = Table().eval()(torch.from_numpy(raw["numeric"]), torch.tensor(codes))
    return tuple(output.numpy() for output in outputs)


def difference(model: onnx.ModelProto, folder: Path, answers: Any = reference) -> float:
    """`largest_difference` of a graph without its front."""
    graph.save(graph.with_front(model, front()), folder / "whole.onnx")
    return graph.largest_difference(open_session(folder / "whole.onnx"), answers, raw_rows(1000))


def float_weights(model: onnx.ModelProto) -> dict[str, onnx.TensorProto]:
    return {tensor.name: tensor for tensor in model.graph.initializer if tensor.data_type == TensorProto.FLOAT}


# Writing


def test_the_same_weights_give_the_same_bytes_and_others_give_others(written: Path, tmp_path: Path) -> None:
    module = copy.deepcopy(Table().eval())
    graph.write(offered(module), tmp_path / "again.onnx")
    assert (tmp_path / "again.onnx").read_bytes() == written.read_bytes()
    with torch.no_grad():
        module.last.bias += 1e-3
    graph.write(offered(module), tmp_path / "other.onnx")
    assert (tmp_path / "other.onnx").read_bytes() != written.read_bytes()


def test_nothing_in_the_file_tells_of_the_machine_or_the_source(written: Path) -> None:
    held = written.read_bytes()
    here = {
        *(str(Path(source).parent) for source in (__file__, graph.__file__, torch.__file__, onnx.__file__)),
        *(str(Path.home()), str(Path.cwd()), str(written.parent), sys.prefix, socket.gethostname()),
    }
    traces = {".py", "File ", "line ", "Traceback", "site-packages", "stack_trace", "pkg.torch", "namespace"}
    names = {getpass.getuser()} if len(getpass.getuser()) > 4 else set()
    assert [text for text in here | traces | names if text.encode() in held] == []
    assert b"numeric" in held  # that the file is searched as it is


def test_sizes_and_outputs_have_the_names_that_the_model_gave(model: onnx.ModelProto) -> None:
    sizes = {
        value.name: [size.dim_param or size.dim_value for size in value.type.tensor_type.shape.dim]
        for value in (*model.graph.input, *model.graph.output)
    }
    assert sizes == {"numeric": ["rows", 3], "category": ["rows", 1], "score": ["rows"], "decision": ["rows", 1]}


@pytest.mark.parametrize("dropout", [nn.Dropout(0.5), RowDropout(0.5)], ids=["torch's", "ours"])
def test_a_model_in_training_mode_is_not_written(dropout: nn.Module, tmp_path: Path) -> None:
    with pytest.raises(errors.GateError, match=r"the graph holds .*: the model was not in eval mode"):
        graph.write(offered(Table(dropout).train()), tmp_path / "model.onnx")
    assert not list(tmp_path.iterdir())


# Checking


def test_what_was_written_is_sound(model: onnx.ModelProto) -> None:
    graph.check(model)
    graph.check(graph.with_front(model, front()))


@pytest.mark.parametrize("operator", ["Dropout", "RandomNormalLike", "Bernoulli"])
def test_random_nodes_are_refused(operator: str, model: onnx.ModelProto) -> None:
    last = next(node for node in model.graph.node if "score" in node.output)
    last.output[:] = ["certain" if name == "score" else name for name in last.output]
    for node in model.graph.node:
        node.input[:] = ["certain" if name == "score" else name for name in node.input]
    model.graph.node.append(helper.make_node(operator, ["certain"], ["score"], name="added"))
    with pytest.raises(errors.GateError, match=f"the graph holds {operator}: the model was not in eval mode"):
        graph.check(model)


@pytest.mark.parametrize("name", ["numeric", "category"])
def test_a_frozen_number_of_rows_is_refused(name: str, model: onnx.ModelProto) -> None:
    value = next(value for value in model.graph.input if value.name == name)
    value.type.tensor_type.shape.dim[0].dim_value = 4
    with pytest.raises(
        errors.GateError, match=f"input '{name}' of the graph is frozen to the example's number of rows"
    ):
        graph.check(model)


def test_a_model_that_lets_only_another_size_vary_is_not_written(tmp_path: Path) -> None:
    frozen = Graph(
        name="model",
        module=nn.ReLU(),
        inputs={"input": torch.zeros(4, 3)},
        outputs=("output",),
        dynamic={"input": {1: "columns"}},
    )
    with pytest.raises(errors.GateError, match="input 'input' of the graph is frozen"):
        graph.write(frozen, tmp_path / "model.onnx")
    assert not list(tmp_path.iterdir())


def test_an_old_opset_is_refused(model: onnx.ModelProto) -> None:
    next(entry for entry in model.opset_import if not entry.domain).version = 17
    with pytest.raises(errors.GateError, match="written with opset 17, it must be 20 or newer"):
        graph.check(model)


def test_a_graph_that_is_no_onnx_is_refused(model: onnx.ModelProto) -> None:
    model.graph.node[0].input[0] = "nowhere"
    with pytest.raises(errors.GateError, match="not sound ONNX"):
        graph.check(model)


# Against torch


def test_the_graph_is_torch_on_real_and_on_extreme_rows(model: onnx.ModelProto, tmp_path: Path) -> None:
    assert difference(model, tmp_path) < 1e-6


@pytest.mark.parametrize("change", [0.05, -0.05])
def test_one_changed_weight_is_seen(change: float, model: onnx.ModelProto, tmp_path: Path) -> None:
    weights = {name: tensor for name, tensor in float_weights(model).items() if numpy_helper.to_array(tensor).size > 4}
    assert len(weights) >= 4
    for name, tensor in weights.items():
        values = numpy_helper.to_array(tensor).copy()
        values.flat[values.size // 2] += change
        tampered = onnx.ModelProto()
        tampered.CopyFrom(model)
        float_weights(tampered)[name].CopyFrom(numpy_helper.from_array(values, name))
        assert difference(tampered, tmp_path) > 1e-4, name


def test_another_threshold_is_refused(model: onnx.ModelProto, tmp_path: Path) -> None:
    (tensor,) = [tensor for tensor in float_weights(model).values() if numpy_helper.to_array(tensor).tolist() == [0.5]]
    tensor.CopyFrom(numpy_helper.from_array(np.array([0.45], np.float32), tensor.name))
    with pytest.raises(errors.GateError, match=r"% of the graph's decisions are not torch's, more than 1%"):
        difference(model, tmp_path)


def test_a_text_looked_up_as_another_is_refused(model: onnx.ModelProto, tmp_path: Path) -> None:
    wrong = front()
    next(found for found in wrong.node[0].attribute if found.name == "values_int64s").ints[:] = [1, 3, 2]
    graph.save(graph.with_front(model, wrong), tmp_path / "whole.onnx")
    with pytest.raises(errors.GateError, match="decisions are not torch's"):
        graph.largest_difference(open_session(tmp_path / "whole.onnx"), reference, raw_rows(64))


def test_a_missing_number_or_another_shape_is_refused(model: onnx.ModelProto, tmp_path: Path) -> None:
    def without_numbers(raw: Mapping[str, NDArray[Any]]) -> tuple[NDArray[Any], ...]:
        score, decision = reference(raw)
        return np.where(np.isnan(raw["numeric"]).any(axis=1), np.float32(np.nan), score), decision

    def transposed(raw: Mapping[str, NDArray[Any]]) -> tuple[NDArray[Any], ...]:
        score, decision = reference(raw)
        return score[:, None], decision

    with pytest.raises(errors.GateError, match="gives a number where torch gives none"):
        difference(model, tmp_path, without_numbers)  # only rows that no real ones are like
    with pytest.raises(errors.GateError, match=r"gives \(1,\) where torch gives \(1, 1\)"):
        difference(model, tmp_path, transposed)


def test_extreme_rows_of_bytes_are_black_and_white() -> None:
    batches = [batch["image"] for batch in graph.extremes({"image": np.full((3, 2, 2, 3), 7, np.uint8)})]
    assert {batch.dtype for batch in batches} == {np.dtype(np.uint8)}
    assert {int(value) for batch in batches for value in np.unique(batch)} == {0, 7, 255}
