"""Networks for tables read what the schema says, and train."""

import numpy as np
import pytest
import torch
from torch.nn import functional

from models.preprocessing import MISSING_TIME, NumericEncoding, TimestampEncoding
from models.tabular import MLP, FTTransformer, TabM

DAY = 86_400


def numeric(name="amount", *, missing=0.0, bins=(0.0, 10.0, 220.0, 220.01, 500.0)):
    return {"name": name, "kind": "numeric", "missing": missing, "median": 30.0, "iqr": 20.0, "bins": list(bins)}


def category(*categories, hash_buckets=0):
    return {"name": "city", "kind": "categorical", "categories": list(categories), "hash_buckets": hash_buckets}


def schema_of(*columns):
    return {"columns": list(columns), "target": {"rate": 0.01}}


ALL = schema_of(
    numeric(missing=0.1),
    numeric("other", bins=()) | {"kind": "boolean"},
    category("a", "b"),
    category(hash_buckets=5),
    {"name": "when", "kind": "timestamp"},
)
SIZES = {"width": 16, "num_blocks": 2, "dropout": 0.1}
NETWORKS = {
    "tabm": lambda schema: TabM(schema, embedding_size=8, num_members=4, category_size=3, **SIZES),
    "mlp": lambda schema: MLP(schema, category_size=3, **SIZES),
    "ft_transformer": lambda schema: FTTransformer(schema, num_heads=4, **SIZES),
}
each_network = pytest.mark.parametrize("name", NETWORKS)


def make_inputs(schema, num_rows=5):
    kinds = [column["kind"] for column in schema["columns"]]
    values = torch.rand(num_rows, sum(kind in ("numeric", "boolean") for kind in kinds)) * 300
    codes = torch.ones(num_rows, kinds.count("categorical"), dtype=torch.int64)
    times = torch.arange(num_rows * kinds.count("timestamp")).reshape(num_rows, -1) * DAY
    return values, codes, times


@each_network
@pytest.mark.parametrize(
    "schema",
    [ALL, schema_of(numeric()), schema_of(category("a")), schema_of({"name": "when", "kind": "timestamp"})],
    ids=["all kinds", "numeric", "categorical", "timestamp"],
)
def test_logits_have_a_column_per_member(name, schema):
    logits = NETWORKS[name](schema)(*make_inputs(schema))
    assert logits.shape == (5, 4 if name == "tabm" else 1)
    assert torch.isfinite(logits).all()


@each_network
def test_every_parameter_gets_a_gradient(name):
    network = NETWORKS[name](ALL).eval()
    network(*make_inputs(ALL, 64)).square().mean().backward()
    assert [key for key, parameter in network.named_parameters() if parameter.grad is None] == []


@each_network
def test_missing_infinite_and_unknown_values_give_finite_logits(name):
    values, codes, times = make_inputs(ALL)
    values[0], values[1], values[2] = torch.nan, torch.inf, -torch.inf
    codes[0], codes[1] = 0, 99
    times[0] = MISSING_TIME
    assert torch.isfinite(NETWORKS[name](ALL)(values, codes, times)).all()


@each_network
def test_unseen_codes_count_as_unknown(name):
    network = NETWORKS[name](ALL).eval()
    values, codes, times = make_inputs(ALL)
    unknown = network(values, torch.zeros_like(codes), times)
    assert torch.equal(network(values, torch.full_like(codes, 99), times), unknown)
    assert torch.equal(network(values, torch.full_like(codes, -1), times), unknown)
    assert not torch.equal(network(values, codes, times), unknown)


@each_network
def test_rows_do_not_depend_on_each_other(name):
    network = NETWORKS[name](ALL).eval()
    inputs = make_inputs(ALL, 8)
    torch.testing.assert_close(network(*inputs)[2:4], network(*[values[2:4] for values in inputs]))


@each_network
def test_untrained_network_predicts_about_the_rate_of_positives(name):
    torch.manual_seed(0)
    probability = NETWORKS[name](ALL).eval()(*make_inputs(ALL, 200)).sigmoid().mean()
    assert 0.003 < probability.item() < 0.03


@each_network
def test_a_sharp_threshold_is_learned(name):
    torch.manual_seed(0)
    schema = schema_of(numeric(), numeric("noise"))
    network = NETWORKS[name](schema)
    values, codes, times = make_inputs(schema, 500)
    target = (values[:, :1] > 220).float()
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-2)
    for _ in range(60):
        logits = network(values, codes, times)
        loss = functional.binary_cross_entropy_with_logits(logits, target.expand_as(logits))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    network.eval()
    near = network(torch.tensor([[219.9, 5.0], [220.1, 5.0]]), codes[:2], times[:2]).sigmoid().mean(1)
    assert near[0] < 0.3
    assert near[1] > 0.7


def test_tabm_is_its_members_written_out():
    torch.manual_seed(0)
    network = TabM(ALL, embedding_size=8, num_members=3, category_size=3, **SIZES).eval()
    inputs = make_inputs(ALL)
    values, codes, times = inputs
    encoded = network.features(network.encoding(values, times), codes)
    embedded, logits = network.embedding(encoded), network(*inputs)
    for member in range(3):
        hidden = embedded
        for layer in [*network.blocks, network.head]:
            product = (hidden * layer.input_scale[member]) @ layer.weight
            hidden = functional.relu(product * layer.output_scale[member] + layer.bias[member])
            last = product * layer.output_scale[member] + layer.bias[member]
        torch.testing.assert_close(logits[:, member], last[:, 0])


def test_tabm_members_differ():
    logits = TabM(ALL, embedding_size=8, num_members=4, category_size=3, **SIZES).eval()(*make_inputs(ALL))
    assert len({round(value, 6) for value in logits[0].tolist()}) == 4


def test_numeric_encoding_is_scaled_value_missing_and_bins():
    encoding = NumericEncoding([numeric(missing=0.1), numeric("other", bins=[0.0, 40.0])])
    encoded = encoding(torch.tensor([[50.0, 10.0], [torch.nan, 50.0], [220.01, -10.0]]))
    assert encoding.column.tolist() == [0, 1, 0, 0, 0, 0, 0, 1]
    scaled = [[np.log(2.0), -np.log(2.0)], [0.0, np.log(2.0)], [np.log1p(190.01 / 20), -np.log(3.0)]]
    rest = [[0, 1, 40 / 210, 0, 0, 0.25], [1, 1, 20 / 210, 0, 0, 1], [0, 1, 1, 1, 0, 0]]
    expected = torch.tensor([a + b for a, b in zip(scaled, rest, strict=True)], dtype=torch.float32)
    torch.testing.assert_close(encoded, expected)


def test_timestamps_are_hour_night_weekday_and_missing():
    noon = 3 * DAY + DAY // 2  # Sunday, 1970-01-04
    encoded = TimestampEncoding()(torch.tensor([[noon], [6 * 3600 + 3599], [7 * 3600], [-1], [MISSING_TIME]]))
    torch.testing.assert_close(encoded[0], torch.tensor([0.0, -1, 0, 0, 0, 0, 0, 0, 0, 1, 0]), atol=1e-6, rtol=0)
    assert encoded[:, 2].tolist() == [0, 1, 0, 0, 0]
    assert encoded[:, 3:10].argmax(1).tolist()[:4] == [6, 3, 3, 2]
    assert encoded[4].tolist() == [0.0] * 10 + [1.0]


def test_numeric_columns_are_encoded_alike_while_exporting():
    encoding = NumericEncoding([numeric(missing=0.1), numeric("other", bins=[]), numeric("third", missing=0.2)])
    values = torch.randn(40, 3) * torch.logspace(-3, 30, 40).unsqueeze(1)
    values[:4], values[4:6, 1], values[6] = torch.nan, torch.inf, -torch.inf
    size = torch.export.Dim("rows")
    program = torch.export.export(encoding, (values,), dynamic_shapes=({0: size},))
    assert torch.equal(program.module()(values), encoding(values))
    assert torch.equal(program.module()(values[:1]), encoding(values[:1]))


def test_tabm_answers_alike_while_exporting():
    torch.manual_seed(0)
    network, size = NETWORKS["tabm"](ALL).eval(), torch.export.Dim("rows")
    with torch.no_grad():
        for parameter in network.parameters():  # no scale of 1
            parameter.add_(0.3 * torch.randn_like(parameter))
    program = torch.export.export(network, make_inputs(ALL), dynamic_shapes=({0: size},) * 3)
    for num_rows in (1, 4, 30):  # 4: as many as members
        inputs = make_inputs(ALL, num_rows)
        torch.testing.assert_close(program.module()(*inputs), network(*inputs))


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # torch.onnx warns of its own insides
@each_network
def test_exported_graph_takes_any_batch_and_agrees(name, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    network = NETWORKS[name](ALL).eval()
    batch = torch.export.Dim("batch")
    path = str(tmp_path / "network.onnx")
    shapes = {"numeric": {0: batch}, "categorical": {0: batch}, "timestamp": {0: batch}}
    torch.onnx.export(network, make_inputs(ALL), path, dynamo=True, dynamic_shapes=shapes, external_data=False)
    session = onnxruntime.InferenceSession(path)
    for num_rows in (1, 17):
        inputs = make_inputs(ALL, num_rows)
        inputs[0][0, 0] = torch.nan
        feed = {node.name: values.numpy() for node, values in zip(session.get_inputs(), inputs, strict=True)}
        torch.testing.assert_close(torch.from_numpy(session.run(None, feed)[0]), network(*inputs), atol=1e-4, rtol=1e-4)


def test_wrong_arguments_are_refused():
    with pytest.raises(ValueError, match="num_members must be at least 1, got 0"):
        TabM(ALL, embedding_size=8, num_members=0, category_size=3, **SIZES)
    with pytest.raises(ValueError, match="width must be a multiple of num_heads, got 16 and 3"):
        FTTransformer(ALL, num_heads=3, **SIZES)
    with pytest.raises(ValueError, match="schema has no columns"):
        MLP(schema_of(), category_size=3, **SIZES)
    with pytest.raises(ValueError, match="column x: kind must be one of"):
        MLP(schema_of({"name": "x", "kind": "text"}), category_size=3, **SIZES)
