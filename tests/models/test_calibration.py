from typing import get_args

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.optimize import minimize
from sklearn.isotonic import IsotonicRegression
from sklearn.linear_model import LogisticRegression

from models.calibration import TABLE_SIZE, Calibration, Method, logit

Floats = NDArray[np.float64]


def made_up(seed: int, *, rows: int = 3000, slope: float = 1.0, offset: float = -2.0) -> tuple[Floats, Floats, Floats]:
    """Raw probabilities whose true log-odds are slope * logit + offset, targets drawn from the truth, weights."""
    generator = np.random.default_rng(seed)
    raw = generator.normal(0, 1.5, rows)
    target = (generator.random(rows) < 1 / (1 + np.exp(-(slope * raw + offset)))).astype(np.float64)
    probability = (1 / (1 + np.exp(-raw))).astype(np.float32).astype(np.float64)  # as a network gives them
    return probability, target, generator.choice([0.5, 1.0, 4.0], rows)


def apply(calibration: Calibration, probability: Floats) -> Floats:
    return calibration(torch.from_numpy(probability).float()).double().numpy()


def fitted(method: Method, probability: Floats, target: Floats, weight: Floats) -> Calibration:
    calibration = Calibration(method)
    calibration.fit(probability, target, weight)
    return calibration


def log_loss(probability: Floats, target: Floats, weight: Floats) -> float:
    probability = probability.clip(1e-12, 1 - 1e-12)
    return float(np.average(-(target * np.log(probability) + (1 - target) * np.log1p(-probability)), weights=weight))


@pytest.mark.parametrize(("slope", "offset"), [(1.0, 0.0), (0.3, -4.0), (3.0, 2.0), (1.0, -6.0), (6.0, -3.0)])
def test_platt_finds_what_scikit_learns_logistic_regression_finds(slope: float, offset: float) -> None:
    rows = made_up(0, slope=slope, offset=offset)
    probability, target, weight = rows
    x = logit(torch.from_numpy(probability)).numpy()
    expected = LogisticRegression(C=1e8, tol=1e-10, max_iter=1000).fit(x[:, None], target, sample_weight=weight)
    calibration = fitted("platt", *rows)
    assert float(calibration.slope) == pytest.approx(expected.coef_[0, 0], rel=2e-3)
    assert float(calibration.offset) == pytest.approx(expected.intercept_[0], rel=2e-3, abs=2e-3)


@pytest.mark.parametrize("slope", [0.2, 1.0, 4.0])
def test_temperature_minimises_the_weighted_log_loss(slope: float) -> None:
    probability, target, weight = made_up(1, slope=slope, offset=0.0)
    x = logit(torch.from_numpy(probability)).numpy()

    def loss(factor: Floats) -> float:
        return log_loss(1 / (1 + np.exp(-factor[0] * x)), target, weight)

    best = minimize(loss, [1.0], method="Nelder-Mead", options={"xatol": 1e-6}).x[0]
    calibration = fitted("temperature", probability, target, weight)
    assert float(calibration.slope) == pytest.approx(best, rel=2e-3)
    assert float(calibration.offset) == 0.0


@pytest.mark.parametrize("offset", [-20.0, -12.0, 12.0])
def test_platt_corrects_far_too_high_or_low_scores(offset: float) -> None:
    """As class weights and the focal loss make them: the mean score is the positive rate afterwards."""
    generator = np.random.default_rng(0)
    truth = generator.beta(0.5, 3, 5000).clip(1e-4, 1 - 1e-4)
    target = (generator.random(5000) < truth).astype(np.float64)
    shifted = 1 / (1 + np.exp(-(np.log(truth / (1 - truth)) + offset / 2)))
    calibration = fitted("platt", shifted, target, np.ones(5000))
    assert apply(calibration, shifted).mean() == pytest.approx(target.mean(), rel=0.02)


def test_isotonic_equals_scikit_learns_where_its_table_has_room() -> None:
    generator = np.random.default_rng(0)
    probability = np.round(generator.random(2000), 2)  # at most 101 distinct scores
    target = (generator.random(2000) < probability**2).astype(np.float64)
    weight = generator.random(2000) + 0.1
    expected = IsotonicRegression(y_min=0, y_max=1, out_of_bounds="clip").fit(probability, target, weight)
    grid = np.linspace(-0.1, 1.1, 997)
    found = apply(fitted("isotonic", probability, target, weight), grid)
    np.testing.assert_allclose(found, expected.predict(grid.astype(np.float32)), atol=1e-5)


def test_isotonic_stays_close_where_the_curve_has_more_points_than_the_table() -> None:
    generator = np.random.default_rng(0)
    probability = generator.random(200_000)
    target = (generator.random(200_000) < probability**2).astype(np.float64)
    regression = IsotonicRegression(y_min=0, y_max=1, out_of_bounds="clip").fit(probability, target)
    assert len(regression.X_thresholds_) > TABLE_SIZE
    found = apply(fitted("isotonic", probability, target, np.ones(200_000)), probability)
    assert np.abs(found - regression.predict(probability)).mean() < 0.005


@pytest.mark.parametrize("method", ["temperature", "platt", "isotonic"])
@pytest.mark.parametrize(("slope", "offset"), [(1.0, 0.0), (0.4, -3.0), (2.5, 1.0)])
def test_calibrating_never_raises_the_log_loss_of_the_rows_it_was_fitted_to(
    method: Method, slope: float, offset: float
) -> None:
    rows = made_up(3, slope=slope, offset=offset)
    after = apply(fitted(method, *rows), rows[0])
    assert log_loss(after, *rows[1:]) <= log_loss(*rows) + 1e-6


@pytest.mark.parametrize("method", get_args(Method))
def test_the_map_is_monotone_and_gives_probabilities(method: Method) -> None:
    calibration = fitted(method, *made_up(4, slope=0.5))
    found = apply(calibration, np.linspace(0, 1, 5001))
    assert np.all(np.diff(found) >= 0)
    assert found.min() >= 0
    assert found.max() <= 1


@pytest.mark.parametrize("method", ["temperature", "platt"])
def test_logistic_methods_keep_the_ranking_of_every_score_that_float32_tells_apart(method: Method) -> None:
    calibration = fitted(method, *made_up(4, slope=0.8))
    scores = np.concatenate([np.geomspace(1e-12, 0.5, 400), 1 - np.geomspace(1e-6, 0.5, 400)])
    assert np.all(np.diff(apply(calibration, np.unique(scores.astype(np.float32)))) > 0)


@pytest.mark.parametrize("method", get_args(Method))
def test_an_unfitted_calibration_is_the_identity(method: Method) -> None:
    probability = np.linspace(0, 1, 1001)
    np.testing.assert_allclose(apply(Calibration(method), probability), probability, atol=1e-6)


@pytest.mark.parametrize("method", get_args(Method))
@pytest.mark.parametrize("target", [0.0, 1.0])
def test_one_class_alone_gives_the_identity_also_after_an_earlier_fit(method: Method, target: float) -> None:
    probability, targets, weight = made_up(5)
    calibration = fitted(method, probability, targets, weight)
    calibration.fit(probability, np.full_like(targets, target), weight)
    np.testing.assert_allclose(apply(calibration, probability), probability, atol=1e-6)


@pytest.mark.parametrize("method", ["temperature", "platt"])
def test_scores_that_rank_backwards_are_left_alone_also_after_an_earlier_fit(method: Method) -> None:
    probability, target, weight = made_up(6)
    calibration = fitted(method, probability, target, weight)
    calibration.fit(1 - probability, target, weight)
    np.testing.assert_allclose(apply(calibration, probability), probability, atol=1e-6)


@pytest.mark.parametrize("method", ["temperature", "platt", "isotonic"])
def test_separable_and_saturated_scores_stay_finite(method: Method) -> None:
    probability = np.array([0.0, 0.0, 1e-9, 0.2, 0.8, 1.0, 1.0])
    target = np.array([0, 0, 0, 0, 1, 1, 1.0])
    found = apply(fitted(method, probability, target, np.ones(7)), probability)
    assert np.all(np.isfinite(found))
    assert found[3] < 0.5 < found[4]


@pytest.mark.parametrize("method", ["temperature", "platt", "isotonic"])
def test_a_constant_score_is_calibrated_to_a_finite_constant(method: Method) -> None:
    probability = np.full(100, 0.3)
    target = np.array([1.0] * 10 + [0.0] * 90)
    found = apply(fitted(method, probability, target, np.ones(100)), probability)
    assert np.ptp(found) == 0
    if method != "temperature":
        assert found[0] == pytest.approx(0.1, abs=1e-3)


@pytest.mark.parametrize("method", get_args(Method))
def test_a_saved_calibration_loads_with_the_same_map(method: Method) -> None:
    calibration, other = fitted(method, *made_up(7)), Calibration(method)
    other.load_state_dict(calibration.state_dict())
    grid = np.linspace(0, 1, 101)
    np.testing.assert_array_equal(apply(calibration, grid), apply(other, grid))


def test_a_weight_counts_as_so_many_rows() -> None:
    probability, target, _ = made_up(8, rows=500)
    counts = np.random.default_rng(0).integers(1, 4, 500)
    by_weight = fitted("platt", probability, target, counts.astype(np.float64))
    by_rows = fitted("platt", np.repeat(probability, counts), np.repeat(target, counts), np.ones(counts.sum()))
    assert float(by_weight.slope) == pytest.approx(float(by_rows.slope), rel=1e-5)
    assert float(by_weight.offset) == pytest.approx(float(by_rows.offset), rel=1e-5)
