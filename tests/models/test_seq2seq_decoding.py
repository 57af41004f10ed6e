"""Beam search against an exhaustive one, and the rules that an output keeps."""

import itertools
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from torch import Tensor

from models.seq2seq import module
from models.seq2seq.architectures import Seq2SeqTransformer
from models.seq2seq.decoding import Search, search
from models.seq2seq.module import Seq2SeqModule

PAD, START, END, SIZE = 0, 1, 2, 6
HOW: Search = {"beams": 4, "length_penalty": 1.0, "no_repeat_ngram": 0, "min_length": 0, "max_length": 4}


class Table:
    """A decoder that looks up the next token by the last two; the state is the tokens up to now."""

    def __init__(self, seed: int, end: float = 0.0) -> None:
        generator = torch.Generator().manual_seed(seed)
        scores = torch.randn(8, SIZE, SIZE, SIZE, generator=generator) * 2
        scores[..., END] += end
        self.scores = scores.log_softmax(dim=3)

    def start(self, source: Tensor) -> Any:
        return source[:, 0], torch.zeros(len(source), 2, dtype=torch.int64)

    def step(self, tokens: Tensor, state: Any) -> tuple[Tensor, Any]:
        kind, last = state
        last = torch.cat([last[:, 1:], tokens], dim=1)
        return self.scores[kind, last[:, 0], last[:, 1]], (kind, last)

    def reorder(self, state: Any, rows: Tensor, sentences: Tensor | None) -> Any:
        kind, last = state
        return kind[rows], last[rows]


def score_of(table: Table, kind: int, said: tuple[int, ...], penalty: float) -> float:
    last, total = (PAD, START), 0.0
    for token in said:
        total += float(table.scores[kind, last[0], last[1], token])
        last = (last[1], token)
    return total / len(said) ** penalty


def best(table: Table, kind: int, how: Search) -> tuple[int, ...]:
    """The best output of all that there are."""
    words = [token for token in range(SIZE) if token not in (PAD, END)]
    every = (
        (*said, END)
        for length in range(how["min_length"], how["max_length"] + 1)
        for said in itertools.product(words, repeat=length)
    )
    return max(every, key=lambda said: score_of(table, kind, said, how["length_penalty"]))


def outputs(table: Table, how: Search, kinds: list[int]) -> list[tuple[int, ...]]:
    found = search(table, torch.tensor(kinds).unsqueeze(1), how, start_id=START, end_id=END, pad_id=PAD)
    return [tuple(token for token in row if token != PAD) for row in found.tolist()]


@pytest.mark.parametrize("penalty", [0.0, 1.0, 10])
@pytest.mark.parametrize("seed", range(4))
def test_enough_beams_find_the_best_of_all_outputs(seed: int, penalty: float) -> None:
    table = Table(seed)
    how: Search = {**HOW, "beams": 300, "length_penalty": penalty}
    assert outputs(table, how, list(range(8))) == [best(table, kind, how) for kind in range(8)]


def test_one_beam_takes_the_likeliest_token_each_time() -> None:
    table = Table(0)
    for kind, found in enumerate(outputs(table, {**HOW, "beams": 1}, list(range(8)))):
        last = (PAD, START)
        for place, token in enumerate(found):
            scores = table.scores[kind, last[0], last[1]].clone()
            scores[PAD] = float("-inf")
            assert token == (END if place == HOW["max_length"] else int(scores.argmax()))
            last = (last[1], token)
        assert found[-1] == END


@pytest.mark.parametrize("beams", [1, 4])
@pytest.mark.parametrize("seed", range(6))
def test_a_batch_writes_what_its_rows_write_alone(seed: int, beams: int) -> None:
    table = Table(seed, end=1.0)  # rows end at different steps and leave the batch, some of them later than they end
    how: Search = {**HOW, "beams": beams, "max_length": 10}
    kinds = [0, 1, 2, 3, 4, 5, 6, 7, 0, 3]
    assert outputs(table, how, kinds) == [outputs(table, how, [kind])[0] for kind in kinds]


@pytest.mark.parametrize("beams", [1, 4])
def test_lengths_are_kept(beams: int) -> None:
    eager, shy = Table(1, end=20.0), Table(1, end=-20.0)
    how: Search = {**HOW, "beams": beams, "min_length": 3, "max_length": 5}
    assert {len(said) for said in outputs(eager, how, list(range(8)))} == {4}  # three and the end
    assert {len(said) for said in outputs(shy, how, list(range(8)))} == {6}


@pytest.mark.parametrize("beams", [1, 4])
def test_no_n_gram_comes_twice(beams: int) -> None:
    table = Table(2, end=-20.0)
    how: Search = {**HOW, "beams": beams, "max_length": 12}
    free, kept = outputs(table, how, list(range(8))), outputs(table, {**how, "no_repeat_ngram": 2}, list(range(8)))

    def repeats(said: tuple[int, ...]) -> bool:
        pairs = list(itertools.pairwise(said))
        return len(set(pairs)) < len(pairs)

    assert any(map(repeats, free))
    assert not any(map(repeats, kept))


def test_no_rows_give_no_outputs() -> None:
    found = search(Table(0), torch.zeros(0, 1, dtype=torch.int64), HOW, start_id=START, end_id=END, pad_id=PAD)
    assert found.shape == (0, 0)


def test_a_shortest_length_beyond_the_longest_is_refused() -> None:
    options: Any = {"min_length": 50, "max_length": 10}
    with pytest.raises(ValueError, match="min_length must be at most max_length, got 50 and 10"):
        Seq2SeqModule({}, None, **options)  # type: ignore[arg-type]


def test_a_baseline_that_writes_nothing_is_told() -> None:
    with pytest.raises(ValueError, match="a baseline must write texts; object does not"):
        Seq2SeqModule.test_baseline(None, object(), None)  # type: ignore[arg-type]


def test_rows_that_are_too_many_for_the_memory_are_taken_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    words = {word: index for index, word in enumerate(["<pad>", "<unk>", "<s>", "</s>", *"abcdef"])}
    known = {"json": Tokenizer(WordLevel(words, unk_token="<unk>")).to_str(), "vocab_size": 10}
    schema = {"tokenizer": {**known, "pad_id": 0, "unk_id": 1, "cls_id": 2, "eos_id": 3}}
    sizes = {"width": 16, "num_encoder_blocks": 1, "num_decoder_blocks": 1, "num_heads": 2, "dropout": 0.0}
    options: Any = {**HOW, "beams": 2, "ema_decay": None, "compile": False, "label_smoothing": 0.0}
    torch.manual_seed(0)
    made = Seq2SeqTransformer(schema, copy=False, **sizes, **options).eval()
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    source, target = torch.randint(3, 10, (7, 5)), torch.randint(3, 10, (7, 4))
    calls: list[int] = []
    score = made.network.score
    monkeypatch.setattr(made.network, "score", lambda *pair: calls.append(len(pair[0])) or score(*pair))
    whole, nll = made(source), made._nll(source, target)
    monkeypatch.setattr(module, "MOST_SCORES", 3 * 4 * 10)
    assert torch.equal(made(source), whole)
    torch.testing.assert_close(made._nll(source, target), nll)
    assert calls == [7, 3, 3, 1]
    assert made(source[:0]).shape == (0, 0)
