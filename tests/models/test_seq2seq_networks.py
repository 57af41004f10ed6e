"""The encoder-decoder: steps are one pass, padding changes nothing, copying copies, graphs write as torch does."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from models.seq2seq.decoding import Search, TorchStepper, search
from models.seq2seq.export import GraphStepper, graphs_of
from models.seq2seq.likelihood import said_and_even
from models.seq2seq.networks import EncoderDecoder

PAD, UNKNOWN, START, END, SIZE = 0, 1, 2, 3, 40
SCHEMA = {"tokenizer": {"vocab_size": SIZE, "pad_id": PAD, "unk_id": UNKNOWN, "cls_id": START, "eos_id": END}}
IDS = {"start_id": START, "end_id": END, "pad_id": PAD}
HOW: Search = {"beams": 3, "length_penalty": 1.0, "no_repeat_ngram": 0, "min_length": 0, "max_length": 12}


def network(*, copy: bool, **options: Any) -> EncoderDecoder:
    """One with large weights, so that it has clear opinions."""
    torch.manual_seed(0)
    sizes = {"width": 16, "num_encoder_blocks": 1, "num_decoder_blocks": 2, "num_heads": 2, "dropout": 0.0}
    made = EncoderDecoder(SCHEMA, copy=copy, **(sizes | options)).eval()
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    return made


def sources(rows: int = 6, length: int = 7) -> Tensor:
    ids = torch.randint(4, SIZE, (rows, length), generator=torch.Generator().manual_seed(1))
    for row in range(1, rows):
        ids[row, max(1, length - row) :] = PAD
    return ids


@pytest.mark.parametrize("copy", [False, True])
def test_steps_with_a_cache_say_what_one_pass_says(copy: bool) -> None:
    made, source = network(copy=copy), sources()
    target = torch.cat([torch.full((6, 1), START), sources(length=5)], dim=1)
    memory = made.encode(source)
    whole = made.log_probabilities(made.decode(target, memory)[0], memory)
    stepper = TorchStepper(made)
    state: Any = stepper.start(source)
    for place in range(target.shape[1]):
        found, state = stepper.step(target[:, place : place + 1], state)
        torch.testing.assert_close(found, whole[:, place], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("copy", [False, True])
def test_the_loss_is_that_of_the_probabilities_and_padding_changes_nothing(copy: bool) -> None:
    made, source = network(copy=copy), sources()
    target = torch.cat([torch.full((6, 1), START), sources(length=5), torch.full((6, 1), PAD)], dim=1)
    memory = made.encode(source)
    found = made.log_probabilities(made.decode(target[:, :-1], memory)[0], memory)
    torch.testing.assert_close(found.exp().sum(dim=2), torch.ones(6, 6))
    said = found.gather(2, target[:, 1:, None]).squeeze(2) * (target[:, 1:] != PAD)
    _, nll = made.score(source, target)
    torch.testing.assert_close(nll, -said.sum(dim=1), atol=1e-4, rtol=1e-4)
    wider = torch.nn.functional.pad(source, (0, 3)), torch.nn.functional.pad(target, (0, 2))
    torch.testing.assert_close(made.score(*wider)[1], nll, atol=1e-4, rtol=1e-4)


def test_the_gradient_of_the_loss_over_the_vocabulary_is_the_true_one() -> None:
    logits = torch.randn(5, 7, dtype=torch.float64, requires_grad=True)
    wanted = torch.tensor([0, 3, 6, 3, 1])
    assert torch.autograd.gradcheck(lambda given: said_and_even(given, wanted), (logits,))
    said, even = said_and_even(logits, wanted)
    expected = logits.log_softmax(dim=1)
    torch.testing.assert_close(said, expected[range(5), wanted])
    torch.testing.assert_close(even, expected.mean(dim=1))


def test_what_is_copied_stands_in_the_source() -> None:
    made = network(copy=True)
    assert made.copying is not None
    torch.nn.init.constant_(made.copying.gate.bias, 50.0)
    torch.nn.init.zeros_(made.copying.gate.weight)
    source = sources()
    memory = made.encode(source)
    found = made.log_probabilities(made.decode(torch.full((6, 1), START), memory)[0], memory)[:, 0].exp()
    is_there = torch.zeros(6, SIZE, dtype=torch.bool).scatter_(1, source, True)
    is_there[:, PAD] = False
    torch.testing.assert_close((found * is_there).sum(dim=1), torch.ones(6))


def test_a_network_trained_to_reverse_reverses() -> None:
    torch.manual_seed(0)
    sizes = {"width": 32, "num_encoder_blocks": 1, "num_decoder_blocks": 1, "num_heads": 4, "dropout": 0.0}
    made = EncoderDecoder(SCHEMA, copy=True, **sizes)
    optimizer = torch.optim.AdamW(made.parameters(), lr=5e-3)
    for step in range(250):
        source = torch.randint(4, SIZE, (64, 4), generator=torch.Generator().manual_seed(step))
        ends = torch.full((64, 1), START), torch.full((64, 1), END)
        target = torch.cat([ends[0], source.flip(1), ends[1]], dim=1)
        made.score(source, target, smoothing=0.1)[0].mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    source = torch.randint(4, SIZE, (50, 4), generator=torch.Generator().manual_seed(10_000))
    found = search(TorchStepper(made.eval()), source, HOW, **IDS)
    assert (found[:, :4] == source.flip(1)).all(dim=1).float().mean() > 0.9


def test_a_width_that_heads_do_not_divide_is_refused() -> None:
    with pytest.raises(ValueError, match="width must be a multiple of 2 \\* num_heads, got width=18 and num_heads=4"):
        network(copy=False, width=18, num_heads=4)


@pytest.mark.slow
@pytest.mark.parametrize("copy", [False, True])
def test_onnx_runtime_writes_the_tokens_that_torch_writes(copy: bool, tmp_path: Path) -> None:
    from functools import partial

    from train.export import graph
    from train.export.session import open_session, outputs

    made = network(copy=copy)
    runs = {}
    for offered in graphs_of(made, SCHEMA):
        graph.write(offered, tmp_path / f"{offered.name}.onnx")
        runs[offered.name] = partial(outputs, open_session(tmp_path / f"{offered.name}.onnx"))
    assert list(runs) == ["encoder_model", "decoder_model", "decoder_with_past_model"]
    for beams in (1, 4):
        how: Search = {**HOW, "beams": beams, "no_repeat_ngram": 2}
        expected = search(TorchStepper(made), sources(20), how, **IDS)
        assert torch.equal(search(GraphStepper(runs, PAD, shares_source=True), sources(20), how, **IDS), expected)
