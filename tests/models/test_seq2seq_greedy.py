"""One graph that writes by itself writes what the search writes with one beam."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor

from models.seq2seq.decoding import Search, TorchStepper, search
from models.seq2seq.export import graphs_of
from models.seq2seq.greedy import greedy_model
from models.seq2seq.networks import EncoderDecoder
from train.export import graph

PAD, UNKNOWN, START, END, SIZE = 0, 1, 2, 3, 8
IDS = {"start_id": START, "end_id": END, "pad_id": PAD}
HOW: Search = {"beams": 1, "length_penalty": 1.0, "no_repeat_ngram": 0, "min_length": 0, "max_length": 12}
Write = Callable[[Tensor], Tensor]


def tokenizer(size: int) -> dict[str, int]:
    return {"vocab_size": size, "pad_id": PAD, "unk_id": UNKNOWN, "cls_id": START, "eos_id": END}


def writer(files: dict[str, Path], how: Search, size: int, folder: Path) -> Write:
    """The graph in ONNX Runtime, its file checked as that of an export is."""
    path = folder / "greedy_model.onnx"
    graph.save(greedy_model(files, how, tokenizer(size)), path)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return lambda source: torch.from_numpy(session.run(None, {"input_ids": source.numpy()})[0])


class Table:
    """A decoder that looks the next token up by the source's first token, the last one, and the sum of those before."""

    def __init__(self, end: float) -> None:
        scores = np.random.default_rng(0).standard_normal((SIZE, SIZE, SIZE, SIZE)).astype(np.float32)
        scores[..., END] += end
        self.scores = torch.from_numpy(scores)

    def start(self, source: Tensor) -> Any:
        return source[:, 0], torch.zeros(len(source), dtype=torch.int64)

    def step(self, tokens: Tensor, state: Any) -> tuple[Tensor, Any]:
        kind, total = state
        return self.scores[kind, total % SIZE, tokens[:, 0]].clone(), (kind, total + tokens[:, 0])

    def reorder(self, state: Any, rows: Tensor, sentences: Tensor | None) -> Any:
        return state[0][rows], state[1][rows]

    def graphs(self, folder: Path) -> dict[str, Path]:
        """The same as three graphs; the cache holds the tokens up to now."""
        files = {}
        for name, text in (("encoder_model", ENCODER), ("decoder_model", FIRST), ("decoder_with_past_model", NEXT)):
            model = onnx.parser.parse_model('<ir_version: 10, opset_import: ["" : 20]>\n' + text)
            if name != "encoder_model":
                model.graph.initializer.append(onnx.numpy_helper.from_array(self.scores.numpy(), "table"))
            files[name] = folder / f"{name}.onnx"
            onnx.save(model, files[name])
        return files


ENCODER = """
encoder (int64[rows, source] input_ids, int64[rows, source] attention_mask)
=> (float[rows, source, 1] last_hidden_state)
<int64[1] axes = {2}> { as_float = Cast<to = 1>(input_ids)  last_hidden_state = Unsqueeze(as_float, axes) }
"""
FIRST = """
first (
    int64[rows, 1] input_ids, int64[rows, source] encoder_attention_mask, float[rows, source, 1] encoder_hidden_states
)
=> (float[rows, 1, 8] logits,
    float[rows, 1, P, 1] "present.0.decoder.key", float[rows, 1, S, 1] "present.0.encoder.key")
<int64[1] zero = {0}, int64[1] one = {1}, int64[4] four = {-1, 1, 1, 1}, int64[2] two = {-1, 1}> {
    first = Slice(encoder_hidden_states, zero, one, one)
    flat = Reshape(first, two)
    kind = Cast<to = 7>(flat)
    total = Mul(kind, zero)
    where = Concat<axis = 1>(kind, total, input_ids)
    found = GatherND(table, where)
    logits = Unsqueeze(found, one)
    "present.0.encoder.key" = Unsqueeze(encoder_hidden_states, one)
    as_float = Cast<to = 1>(input_ids)
    "present.0.decoder.key" = Reshape(as_float, four)
}
"""
NEXT = """
further (
    int64[rows, 1] input_ids, int64[rows, source] encoder_attention_mask,
    float[rows, 1, past, 1] "past_key_values.0.decoder.key", float[rows, 1, source, 1] "past_key_values.0.encoder.key"
) => (float[rows, 1, 8] logits, float[rows, 1, P, 1] "present.0.decoder.key")
<int64[1] size = {8}, int64[1] zero = {0}, int64[1] one = {1}, int64[1] axis = {2}, int64[4] four = {-1, 1, 1, 1},
 int64[2] two = {-1, 1}> {
    first = Slice("past_key_values.0.encoder.key", zero, one, axis)
    flat = Reshape(first, two)
    kind = Cast<to = 7>(flat)
    sum = ReduceSum("past_key_values.0.decoder.key", axis)
    sums = Reshape(sum, two)
    before = Cast<to = 7>(sums)
    total = Mod(before, size)
    where = Concat<axis = 1>(kind, total, input_ids)
    found = GatherND(table, where)
    logits = Unsqueeze(found, one)
    as_float = Cast<to = 1>(input_ids)
    token = Reshape(as_float, four)
    "present.0.decoder.key" = Concat<axis = 2>("past_key_values.0.decoder.key", token)
}
"""


@pytest.mark.parametrize(
    ("end", "lengths"),
    [
        (1.0, {}),  # rows end at different steps
        (-20.0, {}),  # none ends by itself
        (-20.0, {"max_length": 1}),
        (20.0, {}),  # all end at once
        (20.0, {"min_length": 1}),
        (20.0, {"min_length": 5}),
        (0.5, {"min_length": 2, "max_length": 3}),
        (20.0, {"min_length": 3, "max_length": 3}),
    ],
)
def test_the_loop_keeps_the_rules_of_the_search(end: float, lengths: Any, tmp_path: Path) -> None:
    table, how = Table(end), HOW | lengths
    source = torch.tensor([[kind, 5] for kind in (4, 5, 6, 7, 1, 2, 4)])
    expected = search(table, source, how, **IDS)
    write = writer(table.graphs(tmp_path), how, 8, tmp_path)
    assert write(source).tolist() == expected.tolist()
    for row in range(len(source)):
        assert torch.equal(write(source[row : row + 1]), search(table, source[row : row + 1], how, **IDS))
    if end == 1.0:
        assert len({int((row != PAD).sum()) for row in expected}) > 2
    assert write(source[:0]).shape[0] == 0


def test_a_rule_that_the_graph_does_not_keep_is_refused() -> None:
    with pytest.raises(ValueError, match="no_repeat_ngram=3: train with model.no_repeat_ngram=0"):
        greedy_model({}, HOW | {"no_repeat_ngram": 3}, tokenizer(8))


VOCABULARY = 30


@pytest.fixture(scope="module", params=[False, True], ids=["generated", "copied"])
def exported(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[EncoderDecoder, dict[str, Path]]:
    """An untrained network of clear opinions, without and with copying, and its graphs."""
    torch.manual_seed(3)
    sizes = {"width": 16, "num_encoder_blocks": 1, "num_decoder_blocks": 2, "num_heads": 2, "dropout": 0.0}
    schema = {"tokenizer": tokenizer(VOCABULARY)}
    network = EncoderDecoder(schema, copy=request.param, **sizes).eval()
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    network.embedding.weight.data[END] *= 3  # else no row ends
    folder = tmp_path_factory.mktemp("graphs")
    files = {offered.name: folder / f"{offered.name}.onnx" for offered in graphs_of(network, schema)}
    for offered in graphs_of(network, schema):
        graph.write(offered, files[offered.name])
    return network, files


def sources() -> Tensor:
    """Rows of 9, 8, ... 1 and 0 tokens."""
    ids = torch.randint(4, VOCABULARY, (40, 9), generator=torch.Generator().manual_seed(1))
    for row, length in enumerate(range(9, -1, -1)):
        ids[row, length:] = PAD
    return ids


@pytest.mark.slow
@pytest.mark.parametrize("lengths", [{}, {"min_length": 4, "max_length": 30}, {"max_length": 2}])
def test_one_graph_writes_the_tokens_that_torch_writes(
    exported: tuple[EncoderDecoder, dict[str, Path]], lengths: Any, tmp_path: Path
) -> None:
    (network, files), how = exported, HOW | lengths
    write, source = writer(files, how, VOCABULARY, tmp_path), sources()
    expected = search(TorchStepper(network), source, how, **IDS)
    ends = (expected == END).int().argmax(dim=1)
    assert len(set(ends.tolist())) > 1  # rows end at different steps
    assert ends.max() == how["max_length"]  # some never end by themselves
    assert torch.equal(write(source), expected)
    wider = torch.nn.functional.pad(source, (0, 4))
    assert torch.equal(write(wider), expected)
    for one in (source[:1], source[8:9, :1], source[:3, :0]):  # the whole of a row, a token, nothing
        assert torch.equal(write(one), search(TorchStepper(network), one, how, **IDS))


@pytest.mark.slow
def test_weights_that_graphs_share_are_there_once(
    exported: tuple[EncoderDecoder, dict[str, Path]], tmp_path: Path
) -> None:
    network, files = exported
    made = greedy_model(files, HOW, tokenizer(VOCABULARY))
    arrays = [onnx.numpy_helper.to_array(tensor) for tensor in made.graph.initializer]
    num_weights = sum(array.size for array in arrays if array.dtype == np.float32)
    unique = {id(one): one.numel() for one in network.parameters()}
    assert num_weights < 1.1 * sum(unique.values()) + 2 * VOCABULARY
    graph.save(made, tmp_path / "one.onnx")
    graph.save(greedy_model(files, HOW, tokenizer(VOCABULARY)), tmp_path / "two.onnx")
    assert (tmp_path / "one.onnx").read_bytes() == (tmp_path / "two.onnx").read_bytes()
