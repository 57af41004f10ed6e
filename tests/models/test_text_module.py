"""The text module: losses, predictions, baselines, ensembles and what it tells, on hand-made tokens."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from sklearn.dummy import DummyClassifier

from models.classification import Classified
from models.text import baselines
from models.text.architectures import TextNgram, TextTransformer
from models.text.ensemble import TextEnsemble

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
TRAINING = {
    "lr": 1e-3,
    "weight_decay": 0.0,
    "warmup_share": 0.1,
    "schedule": "cosine",
    "gradient_clip": None,
    "ema_decay": 0.9,
    "label_smoothing": 0.0,
    "calibration": "temperature",
    "compile": False,
}
SEVERAL = {**SCHEMA, "multi_label": True, "num_rows": 80}


def tokens(rows=40, longest=9):
    generator = torch.Generator().manual_seed(1)
    drawn = torch.randint(1, len(PIECES), (rows, longest), generator=generator)
    lengths = torch.randint(0, longest + 1, (rows, 1), generator=generator)
    return torch.where(torch.arange(longest) < lengths, drawn, 0)


def made(schema=SCHEMA, kind=TextNgram, **changed):
    torch.manual_seed(len(changed))
    options = NGRAM if kind is TextNgram else TRANSFORMER
    module = kind(schema, **options, **{**TRAINING, **changed})
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    module.calibration.slope.fill_(1.5)
    return module.eval()


@torch.no_grad()
def test_a_class_counts_by_its_weight_and_two_halves_of_a_batch_are_the_whole():
    plain, weighted = made(), made({**SCHEMA, "class_weights": [2.0, 1.0, 0.5]})
    weighted.load_state_dict(plain.state_dict())
    batch = {"tokens": tokens(30), "target": torch.arange(30) % 3}
    parts = [weighted.loss_of({name: value[half::2] for name, value in batch.items()}) for half in (0, 1)]
    torch.testing.assert_close(torch.stack(parts).mean(), weighted.loss_of(batch))
    by_class = [plain.loss_of({name: value[index::3] for name, value in batch.items()}) for index in range(3)]
    expected = (2.0 * by_class[0] + by_class[1] + 0.5 * by_class[2]) / 3
    torch.testing.assert_close(weighted.loss_of(batch), expected)


@torch.no_grad()
def test_probabilities_are_calibrated_and_add_up_to_one_or_stand_alone():
    module, several, rows = made(), made(SEVERAL), tokens()
    torch.testing.assert_close(module(rows), torch.softmax(1.5 * module.scorer(rows), dim=1))
    torch.testing.assert_close(several(rows), torch.sigmoid(1.5 * several.scorer(rows)))
    target = (torch.rand(40, 3) < 0.5).float()
    expected = torch.nn.functional.binary_cross_entropy_with_logits(several.network(rows), target) * 3
    torch.testing.assert_close(several.loss_of({"tokens": rows, "target": target}), expected)


@torch.no_grad()
@pytest.mark.parametrize("kind", [TextNgram, TextTransformer])
def test_predictions_are_labels_with_their_probability_in_the_order_of_the_rows(kind):
    module, rows = made(kind=kind), tokens(300, 30)
    found, expected = module.predict_columns({"tokens": rows}, decision="cost"), module(rows)
    assert found["label"].tolist() == [SCHEMA["classes"][index] for index in expected.argmax(dim=1)]
    np.testing.assert_allclose(found["score"], expected.amax(dim=1), atol=1e-5)
    assert module.predict_columns({"tokens": rows[:0]}, decision="cost")["label"].shape == (0,)
    with pytest.raises(ValueError, match="leave it out"):
        module.predict_columns({"tokens": rows}, decision="budget")


@torch.no_grad()
def test_of_several_classes_those_of_a_half_are_named():
    module, rows = made(SEVERAL), tokens()
    module.scorer.head.bias.zero_()
    found = module.predict_columns({"tokens": rows}, decision="cost")["label"]
    expected = [",".join(np.array(["a", "b", "c"])[row]) for row in (module(rows) >= 0.5).numpy()]
    assert found.tolist() == expected
    assert len(set(expected)) > 2


TEXTS = ["the cat sat", "a dog ran far", "The cats sit", "dogs run", "no cat here", "my dog", "the cat ran", "dog, dog"]


def data(target):
    parts = {"train": 8, "val": 6, "test": 7}
    return SimpleNamespace(
        texts={name: TEXTS[:size] for name, size in parts.items()},
        tensors={name: {"target": target[:size]} for name, size in parts.items()},
    )


BASELINES = [baselines.majority, baselines.logistic_regression, baselines.linear_svm, baselines.naive_bayes]


@pytest.mark.parametrize("baseline", BASELINES)
@pytest.mark.parametrize("num_classes", [2, 3])
def test_baselines_give_the_metrics_of_the_module(baseline, num_classes):
    schema = {**SCHEMA, "classes": ["a", "b", "c"][:num_classes], "counts": [4] * num_classes}
    target = torch.tensor([0, 1, 0, 1, 0, 1, 0, 1]) if num_classes == 2 else torch.tensor([0, 1, 0, 1, 2, 1, 0, 2])
    found = made(schema).test_baseline(baseline(), data(target))
    assert {"accuracy", "macro_f1", "nll", "expected_calibration_error"} <= set(found)
    if baseline is baselines.logistic_regression and num_classes == 2:
        assert found["accuracy"] == 1


@pytest.mark.parametrize("baseline", BASELINES[1:])
def test_baselines_know_rows_of_several_classes(baseline):
    target = torch.tensor([[1, 0, 0], [0, 1, 1]] * 4).float()
    found = made(SEVERAL).test_baseline(baseline(), data(target))
    assert 0 <= found["micro_f1"] <= 1
    assert found["accuracy"] > 0.5


def test_a_class_that_training_lacks_gets_no_score_of_a_baseline():
    fitted = baselines.fit(baselines.naive_bayes(), TEXTS, torch.tensor([0, 2] * 4))
    rows = baselines.scored(fitted, TEXTS, torch.tensor([0, 1] * 4), num_classes=3)
    assert set(rows.found.tolist()) == {0, 2}


@torch.no_grad()
@pytest.mark.parametrize("schema", [SCHEMA, SEVERAL], ids=["one", "several"])
def test_an_ensemble_is_the_weighted_mean_and_is_made_again_from_its_hyperparameters(schema):
    members, rows = [made(schema), made(schema, TextTransformer, label_smoothing=0.1)], tokens()
    blend = TextEnsemble.of(members, [2, 1])
    expected = (2 * members[0](rows) + members[1](rows)) / 3
    torch.testing.assert_close(blend.probability(blend.scorer(rows)), expected, atol=1e-5, rtol=1e-4)
    again = TextEnsemble(**blend.hparams)
    again.load_state_dict(blend.state_dict())
    assert torch.equal(again.eval()(rows), blend(rows))
    size = sum(parameter.numel() for parameter in blend.parameters())
    assert size == sum(parameter.numel() for member in members for parameter in member.scorer.parameters())


def test_an_ensemble_refuses_other_inputs_other_kinds_training_and_pruning():
    blend = TextEnsemble.of([made()], [1])
    with pytest.raises(ValueError, match="trained with other classes$"):
        TextEnsemble.of([made(), made({**SCHEMA, "classes": ["a", "b", "d"]})], [1, 1])
    options = {"schema": SCHEMA, "members": [{"model": {"_target_": "subprocess.run"}, "weight": 1.0}]}
    with pytest.raises(ValueError, match=r"subprocess\.run is no TextModule"):
        TextEnsemble(**options)
    with pytest.raises(ValueError, match="not trained"):
        blend.configure_optimizers()
    with pytest.raises(ValueError, match=r"prune\.ratio"):
        blend.pruned(0.5, how="magnitude", batches=[])


@pytest.mark.parametrize("how", ["magnitude", "taylor"])
@pytest.mark.parametrize("kind", [TextNgram, TextTransformer])
def test_a_pruned_state_fits_the_smaller_module(kind, how):
    module = made(kind=kind)
    batches = [{"tokens": tokens(30), "target": torch.arange(30) % 3}]
    options, state = module.pruned(0.5, how=how, batches=batches)
    sizes = {**(NGRAM if kind is TextNgram else TRANSFORMER), **options}
    smaller = kind(SCHEMA, **sizes, **TRAINING)
    smaller.load_state_dict(state)
    assert sum(p.numel() for p in smaller.parameters()) < sum(p.numel() for p in module.parameters())
    assert float(smaller.calibration.slope) == 1.5


def test_it_tells_of_its_classes_mistakes_and_limits():
    module = made()
    score = np.tile([0.7, 0.2, 0.1], (7, 1))
    module.scored = Classified.of(score, np.array([0, 0, 0, 0, 1, 1, 2]), np.arange(7))
    figures = module.figures(data(torch.zeros(8)))
    assert set(figures) == {"reliability", "classes", "confusion"}
    assert module.mistakes[0][:3] == ("b", "a", 0.7)
    assert module.mistakes[0][3] == TEXTS[4]
    card = module.card()
    assert card["slices"]["a"]["recall"] == 1
    assert str(len(PIECES)) in card["inputs"]["tokens"]
    written = []
    writer = SimpleNamespace(add_text=lambda name, text, step: written.append((name, text)))
    module.write_summaries(writer, 3)
    assert [name for name, _ in written] == ["test/classes", "test/worst_mistakes"]
    assert TEXTS[4] in written[1][1]


def test_a_baseline_that_takes_no_texts_is_told():
    with pytest.raises(ValueError, match="must be a Pipeline that takes texts; DummyClassifier is none"):
        baselines.fit(DummyClassifier(), ["a"], torch.tensor([0]))
