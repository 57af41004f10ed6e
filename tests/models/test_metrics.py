from collections.abc import Callable

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, brier_score_loss, precision_score, recall_score, roc_auc_score

from models import metrics
from models.metrics import Ranked, Scored


def scored(
    score: object,
    target: object,
    *,
    weight: object = None,
    amount: object = None,
    day: object = None,
    customer: object = None,
) -> Scored:
    score = np.asarray(score, np.float64)
    ones = np.ones_like(score)
    return Scored(
        score,
        np.asarray(target, np.float64),
        ones if weight is None else np.asarray(weight, np.float64),
        ones if amount is None else np.asarray(amount, np.float64),
        np.zeros(len(score), np.int64) if day is None else np.asarray(day, np.int64),
        np.full(len(score), -1, np.int64) if customer is None else np.asarray(customer, np.int64),
    )


def made_up(seed: int, *, rows: int = 400, digits: int = 2, rate: float = 0.2, weighted: bool = True) -> Scored:
    """Informative scores with many ties (`digits`)."""
    generator = np.random.default_rng(seed)
    target = (generator.random(rows) < rate).astype(np.float64)
    score = np.round(np.clip(generator.normal(0.35 + 0.2 * target, 0.2), 0, 1), digits)
    return scored(
        score,
        target,
        weight=generator.choice([0.5, 1.0, 3.0], rows) if weighted else None,
        amount=generator.exponential(50, rows),
        day=np.sort(generator.integers(0, 5, rows)),
        customer=generator.integers(0, 40, rows),
    )


def ranked(rows: Scored) -> Ranked:
    return Ranked.of(rows.score, rows.target, rows.weight)


@pytest.fixture(params=range(8))
def rows(request: pytest.FixtureRequest) -> Scored:
    seed = request.param
    return made_up(seed, digits=[1, 2, 12][seed % 3], rate=[0.02, 0.5][seed % 2], weighted=seed % 4 != 0)


@pytest.mark.parametrize(
    ("ours", "theirs"), [(metrics.average_precision, average_precision_score), (metrics.roc_auc, roc_auc_score)]
)
def test_ranking_metrics_equal_scikit_learns(rows: Scored, ours: Callable, theirs: Callable) -> None:
    assert ours(ranked(rows)) == pytest.approx(theirs(rows.target, rows.score, sample_weight=rows.weight), abs=1e-12)


def test_brier_equals_scikit_learns(rows: Scored) -> None:
    expected = brier_score_loss(rows.target, rows.score, sample_weight=rows.weight)
    assert metrics.brier(rows) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("threshold", [0.0, 0.3, 0.41, 0.8, 1.1])
def test_decision_metrics_equal_scikit_learns_and_a_loop(rows: Scored, threshold: float) -> None:
    found = metrics.at_threshold(rows, threshold, false_positive=2.5)
    alert = rows.score >= threshold
    weights = {"sample_weight": rows.weight, "zero_division": 0}
    assert found["precision"] == pytest.approx(precision_score(rows.target, alert, **weights))
    assert found["recall"] == pytest.approx(recall_score(rows.target, alert, **weights))
    assert found["alert_share"] == pytest.approx(np.average(alert, weights=rows.weight))
    saved = losses = 0.0
    for is_alert, target, weight, amount in zip(alert, rows.target, rows.weight, rows.amount, strict=True):
        losses += weight * amount * target
        saved += is_alert * weight * (amount if target else -2.5)
    assert found["cost_saved"] == pytest.approx(saved)
    assert found["cost_saved_share"] == pytest.approx(saved / losses)


def test_a_weight_counts_as_so_many_rows() -> None:
    rows = made_up(3, weighted=False)
    counts = np.random.default_rng(0).integers(1, 4, len(rows.score))
    repeated = Scored(**{name: np.repeat(values, counts) for name, values in vars(rows).items()})
    weighted = Scored(**{**vars(rows), "weight": counts.astype(np.float64)})
    by_weight, by_rows = metrics.ranking(weighted), metrics.ranking(repeated)
    for name in ("average_precision", "roc_auc", "recall_at_0.1pct", "recall_at_1pct", "brier"):
        assert by_weight[name] == pytest.approx(by_rows[name]), name
    assert metrics.at_threshold(weighted, 0.5, 1.0) == pytest.approx(metrics.at_threshold(repeated, 0.5, 1.0))


def test_the_order_of_rows_changes_nothing(rows: Scored) -> None:
    order = np.random.default_rng(1).permutation(len(rows.score))
    shuffled = Scored(**{name: values[order] for name, values in vars(rows).items()})
    without_cards = {name: value for name, value in metrics.ranking(rows).items() if not name.startswith("card")}
    assert metrics.ranking(shuffled) | without_cards == pytest.approx(metrics.ranking(shuffled), abs=1e-12)


def test_rows_of_weight_zero_change_nothing() -> None:
    rows = made_up(5)
    padded = Scored(**{name: np.concatenate([values, values[:50]]) for name, values in vars(rows).items()})
    padded.weight[-50:] = 0.0
    padded.score[-25:] = 1.0  # also above every real score
    for metric in (metrics.average_precision, metrics.roc_auc):
        assert metric(ranked(padded)) == pytest.approx(metric(ranked(rows)))


@pytest.mark.parametrize("target", [0.0, 1.0])
def test_with_one_class_what_is_undefined_is_nan(target: float) -> None:
    rows = scored([0.1, 0.5, 0.9], [target] * 3)
    found = metrics.ranking(rows)
    assert np.isnan(found["roc_auc"])
    assert np.isnan(found["average_precision"]) == (target == 0)
    assert np.isnan(found["recall_at_1pct"]) == (target == 0)
    assert np.isnan(metrics.at_threshold(rows, 0.5, 1.0)["recall"]) == (target == 0)


def test_recall_at_an_alert_share_takes_the_highest_scores_and_splits_ties() -> None:
    rows = scored([0.9, 0.8, 0.8, 0.8, 0.8, 0.3, 0.2, 0.1, 0.1, 0.0], [1, 1, 1, 0, 0, 1, 0, 0, 0, 0])
    assert metrics.recall_at_alert_share(ranked(rows), 0.1) == pytest.approx(1 / 4)
    assert metrics.recall_at_alert_share(ranked(rows), 0.3) == pytest.approx((1 + 2 * 2 / 4) / 4)
    assert metrics.recall_at_alert_share(ranked(rows), 1.0) == 1.0


@pytest.mark.parametrize("share", [0.0, 0.003, 0.01, 0.1, 0.5, 1.0])
def test_the_budget_threshold_is_the_lowest_within_the_budget(rows: Scored, share: float) -> None:
    threshold = metrics.threshold_at_alert_share(ranked(rows), share)
    allowed = share * rows.weight.sum() + 1e-9
    assert rows.weight[rows.score >= threshold].sum() <= allowed
    lower = rows.score[rows.score < threshold]
    if len(lower):
        assert rows.weight[rows.score >= lower.max()].sum() > allowed


@pytest.mark.parametrize("share", [0.07, 0.29, 0.57, 0.58])
def test_a_budget_of_whole_rows_is_used_up(share: float) -> None:
    rows = scored(np.arange(100) / 100, [0, 1] * 50)  # 0.29 * 100 is 28.999999999999996
    threshold = metrics.threshold_at_alert_share(ranked(rows), share)
    assert (rows.score >= threshold).sum() == round(100 * share)


def total_cost(rows: Scored, threshold: float, false_positive: float) -> float:
    cost = 0.0
    for score, target, weight, amount in zip(rows.score, rows.target, rows.weight, rows.amount, strict=True):
        cost += weight * (amount * target if score < threshold else false_positive * (1 - target))
    return cost


@pytest.mark.parametrize("false_positive", [0.0, 0.5, 20.0, 1e6])
def test_no_threshold_costs_less_than_the_chosen_one(rows: Scored, false_positive: float) -> None:
    chosen = total_cost(rows, metrics.threshold_of_least_cost(rows, false_positive), false_positive)
    for threshold in [*np.unique(rows.score), 2.0]:
        assert chosen <= total_cost(rows, threshold, false_positive) + 1e-6


def test_cost_at_thresholds_equals_a_loop(rows: Scored) -> None:
    for threshold, cost in zip(*metrics.cost_at_thresholds(rows, 7.0), strict=True):
        assert cost == pytest.approx(total_cost(rows, threshold, 7.0), abs=1e-6)


def test_a_threshold_above_every_score_stays_above_in_single_precision() -> None:
    """Modules keep thresholds as float32 buffers."""
    score = np.float64(np.float32(0.7))
    rows = scored([score, 0.1], [0, 1], amount=[1.0, 0.0])
    for threshold in (metrics.threshold_of_least_cost(rows, 1.0), metrics.threshold_at_alert_share(ranked(rows), 0.0)):
        assert np.float32(threshold) > score


def test_calibration_bins_hold_every_row_once(rows: Scored) -> None:
    score, rate, weight = metrics.calibration_bins(rows)
    assert len(score) <= 15
    assert weight.sum() == pytest.approx(rows.weight.sum())
    assert np.sum(score * weight) == pytest.approx(np.sum(rows.score * rows.weight))
    assert np.sum(rate * weight) == pytest.approx(np.sum(rows.target * rows.weight))
    assert np.all(np.diff(score) > 0)


def test_calibration_bins_of_distinct_scores_are_of_equal_count() -> None:
    _, _, weight = metrics.calibration_bins(scored(np.random.default_rng(0).random(3000), np.zeros(3000)))
    np.testing.assert_allclose(weight, 200, atol=1)


def test_calibration_error_of_few_distinct_scores_is_the_weighted_gap() -> None:
    """As a base rate, a decision tree or an isotonic table gives them."""
    rows = scored([0.1] * 99 + [0.9], [1] * 10 + [0] * 89 + [0])
    assert metrics.expected_calibration_error(rows) == pytest.approx(0.99 * (10 / 99 - 0.1) + 0.01 * 0.9)
    assert metrics.expected_calibration_error(scored([0.25] * 8, [1, 1] + [0] * 6)) == 0


def test_calibration_error_of_calibrated_scores_is_small_and_of_shifted_ones_the_shift() -> None:
    generator = np.random.default_rng(0)
    score = generator.uniform(0.0, 0.8, 200_000)
    target = generator.random(len(score)) < score
    assert metrics.expected_calibration_error(scored(score, target)) < 0.01
    assert metrics.expected_calibration_error(scored(score + 0.2, target)) == pytest.approx(0.2, abs=0.01)


def card_precision_by_hand(rows: Scored, top: int) -> float:
    """The Handbook's card_precision_top_k, row by row."""
    detected: set[int] = set()
    precisions = []
    for day in sorted(set(rows.day.tolist())):
        best: dict[int, tuple[float, float]] = {}
        for score, target, when, customer in zip(rows.score, rows.target, rows.day, rows.customer, strict=True):
            if when == day and customer not in detected and customer != -1:
                before = best.get(int(customer), (-1.0, 0.0))
                best[int(customer)] = (max(before[0], score), max(before[1], target))
        ordered = sorted(best, key=lambda customer: (-best[customer][0], customer))
        found = {customer for customer in ordered[:top] if best[customer][1] == 1}
        precisions.append(len(found) / top)
        detected |= found
    return float(np.mean(precisions))


@pytest.mark.parametrize("top", [1, 5, 100])
def test_card_precision_equals_a_loop(rows: Scored, top: int) -> None:
    assert metrics.card_precision(rows, top) == pytest.approx(card_precision_by_hand(rows, top))


def test_a_detected_card_is_left_out_of_later_days() -> None:
    rows = scored([0.9, 0.8, 0.9, 0.8], [1, 0, 1, 1], day=[0, 0, 1, 1], customer=[7, 8, 7, 8])
    assert metrics.card_precision(rows, 1) == 1.0  # day 1 has only card 8 left
    assert metrics.card_precision(rows, 2) == 0.5


def test_rows_without_a_customer_are_no_card() -> None:
    assert np.isnan(metrics.card_precision(scored([0.9, 0.1], [1, 0])))
    rows = scored([0.9, 0.8, 0.1], [1, 1, 0], customer=[-1, 4, 5])
    assert metrics.card_precision(rows, 1) == 1.0
    assert metrics.card_precision(rows, 2) == 0.5


def test_bootstrap_intervals_are_those_of_a_loop_over_resampled_rows() -> None:
    rows = made_up(2, rows=300)
    found = metrics.bootstrap_intervals(rows, resamples=400, seed=1)
    generator = np.random.default_rng(7)
    values = []
    for _ in range(400):
        drawn = generator.integers(300, size=300)
        values.append(average_precision_score(rows.target[drawn], rows.score[drawn], sample_weight=rows.weight[drawn]))
    np.testing.assert_allclose(found["average_precision"], np.percentile(values, [2.5, 97.5]), atol=0.02)
    assert found == metrics.bootstrap_intervals(rows, resamples=400, seed=1)


def test_bootstrap_intervals_hold_the_metric_and_shrink_with_more_rows() -> None:
    few, many = made_up(0, rows=300, rate=0.3), made_up(0, rows=10_000, rate=0.3)
    for name, metric in metrics.BOOTSTRAPPED.items():
        low, high = metrics.bootstrap_intervals(few)[name]
        assert low < metric(ranked(few)) < high
        narrow_low, narrow_high = metrics.bootstrap_intervals(many)[name]
        assert narrow_high - narrow_low < (high - low) / 3


def test_bootstrap_leaves_out_what_is_undefined() -> None:
    assert metrics.bootstrap_intervals(scored([0.1, 0.9], [0, 0]), resamples=5) == {}
