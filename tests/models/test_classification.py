"""Metrics of classifiers are those of scikit-learn, and what it lacks is right on small cases."""

import numpy as np
import pytest
import torch
from sklearn import metrics as sk

from models import classification
from models.calibration import Temperature, golden_section
from models.classification import Classified


def rows(size=400, classes=5, *, several=False, seed=0):
    generator = np.random.default_rng(seed)
    logits = generator.normal(size=(size, classes))
    if several:
        target = generator.random((size, classes)) < 0.3
        return Classified.of(1 / (1 + np.exp(-logits - target)), target, np.arange(size))
    target = generator.integers(classes - 1, size=size)  # one class is never there, but is predicted
    logits[np.arange(size), target] += 1
    score = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    return Classified.of(score, target, np.arange(size))


def test_metrics_of_one_class_a_row_are_scikit_learns():
    made = rows()
    found = classification.metrics_of(made)
    assert found["accuracy"] == pytest.approx(sk.accuracy_score(made.target, made.found))
    assert found["macro_f1"] == pytest.approx(sk.f1_score(made.target, made.found, average="macro"))
    assert found["nll"] == pytest.approx(sk.log_loss(made.target, made.score, labels=range(5)))
    assert (classification.confusion(made) == sk.confusion_matrix(made.target, made.found, labels=range(5))).all()


def test_metrics_of_several_classes_a_row_are_scikit_learns():
    made = rows(several=True)
    found = classification.metrics_of(made)
    truth, said = made.target.astype(int), made.found.astype(int)
    assert found["accuracy"] == pytest.approx(sk.accuracy_score(truth, said))
    assert found["macro_f1"] == pytest.approx(sk.f1_score(truth, said, average="macro"))
    assert found["micro_f1"] == pytest.approx(sk.f1_score(truth, said, average="micro"))
    assert found["nll"] == pytest.approx(sum(sk.log_loss(truth[:, c], made.score[:, c]) for c in range(5)))


def test_classes_have_precision_recall_and_number():
    made = rows()
    found = classification.per_class(made, list("abcde"))
    precision, recall, f1, number = sk.precision_recall_fscore_support(made.target, made.found, zero_division=0)
    for index, name in enumerate("abcde"):
        expected = [number[index], precision[index], recall[index], f1[index]]
        assert list(found[name].values()) == pytest.approx(expected)


def test_calibration_error_is_the_gap_between_confidence_and_share_that_is_right():
    score = np.tile([0.9, 0.1], (1_000, 1))
    target = (np.arange(1_000) % 2).astype(np.int64)
    assert classification.expected_calibration_error(Classified.of(score, target, np.arange(1_000))) == pytest.approx(
        0.4
    )


def test_rows_come_in_their_own_order_whatever_order_they_are_scored_in():
    made = rows()
    order = np.random.default_rng(1).permutation(400)
    again = Classified.of(made.score[order], made.target[order], made.row[order])
    assert (again.score == made.score).all()
    assert (again.row == made.row).all()


def test_intervals_hold_the_metric():
    made = rows()
    found = classification.bootstrap_intervals(made, resamples=50)
    for name, (low, high) in found.items():
        assert low < classification.metrics_of(made)[name] < high


@pytest.mark.parametrize("several", [False, True])
@pytest.mark.parametrize("factor", [0.2, 1.0, 5.0])
def test_the_temperature_undoes_a_factor(factor, several):
    generator = np.random.default_rng(0)
    logits = generator.normal(size=(20_000, 3)) * 2
    noise = generator.logistic(size=logits.shape) if several else generator.gumbel(size=logits.shape)
    target = logits + noise > 0 if several else (logits + noise).argmax(axis=1)
    temperature = Temperature("temperature")
    temperature.fit(logits * factor, target)
    assert float(temperature.slope) * factor == pytest.approx(1.0, rel=0.05)


def test_the_temperature_stays_finite_on_separable_rows_and_off_where_it_is_off():
    target = np.array([0, 1, 0, 1])
    logits = np.eye(2)[target] * 5
    separable, off = Temperature("temperature"), Temperature("none")
    for one in (separable, off):
        one.fit(logits, target)
    assert 1 < float(separable.slope) < 60
    assert float(off.slope) == 1
    assert torch.equal(off(torch.ones(2, 2)), torch.ones(2, 2))


def test_golden_section_finds_the_bottom():
    assert golden_section(lambda x: (x - 1.25) ** 2, -4, 4) == pytest.approx(1.25, abs=1e-4)
