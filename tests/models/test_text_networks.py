"""Networks for texts: padding changes nothing, words are whole however they are cut, and the graph answers as torch."""

import json

import numpy as np
import onnxruntime
import pytest
import torch

from models.calibration import Temperature
from models.pruning import prune
from models.text.export import graph_of
from models.text.linear import fitted, rows_of
from models.text.naive_bayes import counts_of, informativeness
from models.text.networks import Ngram, Transformer
from models.text.words import Words
from train.export import graph as graphs

PIECES = ["<pad>", "<unk>", "\u2581the", "\u2581The", "\u2581th", "e", "\u2581cat", "s", ".", "\u2581", "T", "he"]
TOKENIZER = {
    "json": json.dumps({"model": {"type": "Unigram", "vocab": [[piece, -1.0] for piece in PIECES]}}),
    "vocab_size": len(PIECES),
    "pad_id": 0,
    "unk_id": 1,
}
SCHEMA = {
    "classes": ["a", "b", "c"],
    "counts": [60, 30, 10],
    "multi_label": False,
    "class_weights": None,
    "tokenizer": TOKENIZER,
    "max_length": 64,
    "target": {"name": "label"},
}
TRANSFORMER = {"width": 16, "num_blocks": 2, "num_heads": 2, "dropout": 0.1, "token_dropout": 0.1}
NGRAM = {
    "width": 16,
    "num_buckets": 64,
    "longest": 3,
    "dropout": 0.1,
    "token_dropout": 0.1,
    "linear": 0.5,
}


def network(kind):
    torch.manual_seed(0)
    made = Transformer(SCHEMA, **TRANSFORMER) if kind == "transformer" else Ngram(SCHEMA, **NGRAM)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    return made.eval()


def tokens(rows=40, longest=9):
    generator = torch.Generator().manual_seed(1)
    drawn = torch.randint(1, len(PIECES), (rows, longest), generator=generator)
    lengths = torch.randint(0, longest + 1, (rows, 1), generator=generator)
    return torch.where(torch.arange(longest) < lengths, drawn, 0)


KINDS = pytest.mark.parametrize("kind", ["transformer", "ngram"])


@KINDS
@torch.no_grad()
def test_how_far_a_row_is_padded_changes_nothing(kind):
    made, rows = network(kind), tokens()
    padded = torch.nn.functional.pad(rows, (0, 23))
    torch.testing.assert_close(made(padded), made(rows), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(made(rows[:1]), made(rows)[:1], atol=1e-5, rtol=1e-5)


@KINDS
@torch.no_grad()
def test_the_order_of_tokens_and_the_last_of_them_count(kind):
    made = network(kind)
    one, other, longer = torch.tensor([[2, 6, 8]]), torch.tensor([[6, 2, 8]]), torch.tensor([[2, 6, 8, 6]])
    assert not torch.allclose(made(one), made(other), atol=1e-4)
    assert not torch.allclose(made(one), made(longer), atol=1e-4)


@KINDS
@torch.no_grad()
def test_empty_texts_and_unknown_ids_give_numbers(kind):
    made = network(kind)
    empty = made(torch.zeros(3, 0, dtype=torch.int64))
    assert torch.isfinite(empty).all()
    torch.testing.assert_close(empty, made(torch.zeros(3, 5, dtype=torch.int64)), atol=1e-5, rtol=1e-5)
    odd = torch.tensor([[-(2**63), 2**40, -1, len(PIECES)]])
    torch.testing.assert_close(made(odd), made(torch.ones(1, 4, dtype=torch.int64)))


@KINDS
def test_a_new_network_predicts_the_shares_of_the_training_rows(kind):
    made = (Transformer(SCHEMA, **TRANSFORMER) if kind == "transformer" else Ngram(SCHEMA, **NGRAM)).eval()
    share = torch.softmax(made(tokens()), dim=1)
    torch.testing.assert_close(share, torch.tensor([61.0, 31.0, 11.0]).div(103).expand_as(share))


@KINDS
def test_every_parameter_learns(kind):
    made, rows = network(kind).train(), tokens()
    torch.nn.functional.cross_entropy(made.score(rows), torch.arange(40) % 3).backward()
    assert [name for name, p in made.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0] == []


@pytest.mark.slow
@KINDS
def test_the_graph_answers_as_torch_at_any_size(kind, tmp_path):
    offered = graph_of(network(kind), Temperature("temperature"), SCHEMA)
    graphs.write(offered, tmp_path / "model.onnx")
    session = onnxruntime.InferenceSession(str(tmp_path / "model.onnx"), providers=["CPUExecutionProvider"])
    sizes = [str(size) for size in session.get_inputs()[0].shape]
    assert sizes == ["rows", "length"]
    for rows in (tokens(), tokens(1, 1), tokens(3, 33), torch.zeros(2, 4, dtype=torch.int64), tokens(2, 9) - 5):
        with torch.no_grad():
            probability, label = offered.module(rows)
        found = session.run(None, {"tokens": rows.numpy()})
        torch.testing.assert_close(torch.from_numpy(found[0]), probability, atol=1e-5, rtol=1e-4)
        assert found[1].tolist() == label.tolist()


@KINDS
@torch.no_grad()
def test_pruning_units_that_do_nothing_changes_nothing(kind):
    made, rows = network(kind), tokens()
    layers = made.units()
    state = made.state_dict()
    if kind == "transformer":
        for block in made.blocks:
            block.out.weight[:, 8:] = 0
            block.feed_out.weight[:, 16:] = 0
        expected = made(rows)
        values = {name: (1.0 if ".out." in name or "feed_out" in name else 0.0) * p for name, p in state.items()}
        options, smaller = prune(state, layers, values, 0.5, "magnitude")
        assert options == {"num_heads": 1, "head_size": 8, "feed_size": 16}
        other = Transformer(SCHEMA, **{**TRANSFORMER, **options})
        other.load_state_dict(smaller)
        torch.testing.assert_close(other.eval()(rows), expected, atol=1e-5, rtol=1e-5)
    else:
        options, smaller = prune(state, layers, dict(made.named_parameters()), 0.5, "magnitude")
        assert options == {"width": 8}
        Ngram(SCHEMA, **{**NGRAM, **options}).load_state_dict(smaller)


@pytest.mark.parametrize("change", [{"num_heads": 3}, {"width": 18}, {"num_heads": 16}])
def test_sizes_that_do_not_fit_are_an_error(change):
    with pytest.raises(ValueError, match="multiple"):
        Transformer(SCHEMA, **{**TRANSFORMER, **change})


def words_of(ids):
    rows = torch.tensor([ids])
    words = Words(SCHEMA, num_buckets=64, longest=1)
    hashes, count = words.words(rows, rows != 0, words.is_first(rows, rows != 0))
    return hashes[0, : int(count)].tolist()


def test_a_word_hashes_alike_whatever_its_pieces_and_its_case():
    (the,) = words_of([2])
    assert words_of([3]) == words_of([4, 5]) == words_of([9, 10, 11]) == [the]
    assert words_of([2, 6, 7, 8]) == [the, *words_of([6, 7]), *words_of([8])]
    assert words_of([6]) != words_of([6, 7])


def test_a_sign_ends_a_word_and_padding_is_none():
    assert len(words_of([6, 8, 7, 0, 0])) == 3
    assert words_of([0, 0]) == []


def test_ngrams_are_there_as_far_as_there_are_words():
    rows = torch.tensor([[2, 6, 8, 0], [2, 0, 0, 0]])
    places, is_there = Words(SCHEMA, num_buckets=1_000, longest=3)(rows, rows != 0)
    assert is_there.view(2, 5, 4).sum(dim=2).tolist() == [[3, 2, 1, 3, 3], [1, 0, 0, 1, 1]]
    assert int(places.max()) < 1_000
    assert places[0, 0] == places[1, 0]


def characters_of(ids):
    rows = torch.tensor([ids])
    places, is_there = Words(SCHEMA, num_buckets=2**20, longest=1).characters(rows, rows != 0)
    return sorted(places[is_there].tolist())


def test_ngrams_of_characters_are_those_of_words_however_they_are_cut():
    # " cats " has four of 3 characters, three of 4, two of 5; " the ", three, two and one
    assert len(characters_of([6, 7])) == 9
    assert len(set(characters_of([6, 7]))) == 9
    assert characters_of([2, 0, 0]) == characters_of([4, 5]) == characters_of([9, 10, 11])
    assert characters_of([6, 7, 2]) == sorted(characters_of([6, 7]) + characters_of([2])) == characters_of([4, 5, 6, 7])
    assert len(set(characters_of([6])) & set(characters_of([6, 7]))) == 3  # " ca", "cat" and " cat"
    assert len(characters_of([8])) == 1
    assert characters_of([0, 0]) == []


def test_words_share_the_buckets_of_their_first_characters():
    words = Words(SCHEMA, num_buckets=1_000_003, longest=1)
    rows = torch.tensor([[6, 0, 0], [6, 7, 7], [4, 5, 7], [2, 5, 0]])  # cat, catss, thes, thee
    short = words.spelt(rows, rows != 0, words.is_first(rows, rows != 0), most=3)[:, 0]
    assert short[0] == short[1] != short[2]
    assert short[2] == short[3]
    whole = words.spelt(rows, rows != 0, words.is_first(rows, rows != 0), most=9)[:, 0]
    assert len(set(whole.tolist())) == 4


def batches_of(rows, target):
    return [
        {"tokens": rows[part], "target": target[part], "row": torch.arange(40)[part]}
        for part in (slice(7, 40), slice(0, 7))
    ]


@torch.no_grad()
@pytest.mark.parametrize("kind", ["two", "three", "several"])
def test_the_regression_of_tfidf_weights_is_added_when_it_predicts_and_not_in_training(kind):
    num_classes = 2 if kind == "two" else 3
    schema = {**SCHEMA, "classes": SCHEMA["classes"][:num_classes], "counts": SCHEMA["counts"][:num_classes]}
    made = Ngram(schema, **{**NGRAM, "num_buckets": 5_000, "dropout": 0.0, "token_dropout": 0.0})
    rows, size = tokens(), 5_000 + len(PIECES)
    torch.nn.init.normal_(made.embedding.weight)
    classes = torch.arange(40) % num_classes
    target = torch.nn.functional.one_hot(classes, 3).float() if kind == "several" else classes
    batches = batches_of(rows, target)
    counts = counts_of(made.features, batches, size=size, num_classes=num_classes)
    found = rows_of(made.words_only, batches, size=size)
    assert found.target.tolist() == target.tolist()  # in the order of their numbers, whatever that of the batches
    opinion = fitted(found, num_classes)
    before = made.eval()(rows)
    made.begin(counts, opinion)
    assert made.has_begun
    made.told.fill_(1)
    rarity = opinion.rarity.numpy()
    weights = found.counts.multiply(rarity).toarray()
    weights /= np.sqrt(found.counts @ rarity**2).clip(1e-9)[:, None]
    expected = torch.from_numpy(weights @ opinion.table.numpy() + opinion.bias.numpy()).float()
    torch.testing.assert_close(made(rows) - before, 0.5 * expected, atol=1e-4, rtol=1e-4)
    assert (expected.argmax(dim=1) == classes)[(rows != 0).any(dim=1)].float().mean() > 0.7
    torch.testing.assert_close(made.train().score(rows), before, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_the_regression_is_scikit_learns():
    from sklearn.feature_extraction.text import TfidfTransformer
    from sklearn.linear_model import LogisticRegression

    made, rows = Ngram(SCHEMA, **{**NGRAM, "num_buckets": 5_000}).eval(), tokens()
    target = torch.arange(40) % 3
    found = rows_of(made.words_only, batches_of(rows, target), size=5_000 + len(PIECES))
    distinct = found._replace(counts=(found.counts > 0).astype(np.float32))  # where each occurs once, norms are alike
    opinion = fitted(distinct, 3)
    weights = TfidfTransformer().fit_transform(distinct.counts)
    for number in range(3):
        expected = LogisticRegression(C=10, solver="liblinear", dual=True, random_state=0).fit(
            weights, target == number
        )
        ours = weights @ opinion.table[:, number].numpy() + opinion.bias[number].item()
        assert np.allclose(ours, expected.decision_function(weights), atol=2e-2)


@torch.no_grad()
def test_a_feature_weighs_by_what_it_tells_of_the_classes_and_one_that_tells_nothing_is_silent():
    rows = [[9, 0, 0], [0, 9, 0], [0, 0, 9], [4, 3, 3], [3, 4, 3], [3, 3, 4], [3, 3, 3], [0, 0, 0]]
    counts = torch.tensor(rows).double()
    told = informativeness(counts)
    assert told[0] > 10 * told[3] > 100 * told[6]
    assert told[6] < 1e-4
    assert told[7] == 0
    assert float((told * counts.sum(dim=1)).sum() / counts.sum()) == pytest.approx(1)
    made, rows = Ngram(SCHEMA, **{**NGRAM, "linear": 1e-9}).eval(), tokens()
    torch.nn.init.normal_(made.embedding.weight)
    whole = made(rows)
    made.told[made.words.num_buckets + 6] = 0
    assert not torch.allclose(made(rows), whole, atol=1e-4)
    changed = made(rows)
    made.embedding.weight[made.words.num_buckets + 6] += 1
    torch.testing.assert_close(made(rows), changed)


def test_a_regression_of_too_many_classes_is_an_error_that_says_what_to_do():
    many = {**SCHEMA, "classes": [str(index) for index in range(3_000)], "counts": [1] * 3_000}
    with pytest.raises(ValueError, match=r"num_buckets=100000 and 3000 classes: set linear=0"):
        Ngram(many, **{**NGRAM, "num_buckets": 100_000})
    assert not Ngram(many, **{**NGRAM, "num_buckets": 100, "linear": 0.0}).table.numel()
