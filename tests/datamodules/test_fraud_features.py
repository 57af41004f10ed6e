"""Features of transactions are right, and know nothing of the future."""

import numpy as np
import pytest

from datamodules.fraud.bins import MAX_ROWS, fit_bins
from datamodules.fraud.features import DAY, LARGE_RATIO, transaction_features

MONDAY = 4 * DAY  # 1970-01-05, a Monday
BINS = {"num_quantiles": 4, "num_thresholds": 4}


def make_columns(num_rows=600, seed=0):
    """Forty days of few customers and terminals, so that windows fill; on a grid of hours, so that times tie."""
    rng = np.random.default_rng(seed)
    return {
        "time_seconds": np.sort(rng.integers(0, 40 * 24, num_rows)) * 3600 + MONDAY,
        "customer": rng.integers(0, 12, num_rows),
        "terminal": rng.choice(["a", "b", "c", "d", "e"], num_rows),
        "amount": np.round(rng.gamma(2.0, 30.0, num_rows), 2),
        "label": (rng.random(num_rows) < 0.3).astype(np.int64),
    }


def one_entity(hours, amounts, labels):
    zeros = np.zeros(len(hours), dtype=np.int64)
    columns = {"time_seconds": np.array(hours) * 3600 + MONDAY, "customer": zeros, "terminal": zeros}
    return columns | {"amount": np.array(amounts, dtype=np.float64), "label": np.array(labels)}


def naive(columns, row, delay_days, days):
    """The Handbook's inputs of one row, by a loop over all rows before it."""
    time, delay = columns["time_seconds"][row], delay_days * DAY
    spent, known = [], []
    for other in range(row + 1):
        age = time - columns["time_seconds"][other]
        if columns["customer"][other] == columns["customer"][row] and age < days * DAY:
            spent.append(columns["amount"][other])
        if columns["terminal"][other] == columns["terminal"][row] and delay <= age < delay + days * DAY:
            known.append(columns["label"][other])
    return {
        f"customer_count_{days}d": len(spent),
        f"customer_mean_amount_{days}d": np.mean(spent),
        f"terminal_count_{days}d": len(known),
        f"terminal_risk_{days}d": np.mean(known) if known else 0.0,
    }


@pytest.mark.parametrize(("delay_days", "windows_days"), [(7, (1, 7, 30)), (2, (3,))])
def test_handbook_inputs_are_those_of_a_loop(delay_days, windows_days):
    columns = make_columns()
    features = transaction_features(columns, label_delay_days=delay_days, windows_days=windows_days)
    for row in range(0, 600, 7):
        for days in windows_days:
            for name, value in naive(columns, row, delay_days, days).items():
                assert features[name][row] == pytest.approx(value, rel=1e-6), (name, row)


def test_weekend_and_night_are_the_handbooks():
    hours = [0, 6, 7, 23, 4 * 24 + 12, 5 * 24, 6 * 24 + 23, 7 * 24]
    features = transaction_features(one_entity(hours, [1.0] * 8, [0] * 8))
    assert features["night"].tolist() == [1, 1, 0, 0, 0, 1, 0, 1]
    assert features["weekend"].tolist() == [0, 0, 0, 0, 0, 1, 1, 0]


def test_all_inputs_of_the_handbook_are_there():
    names = {"amount", "weekend", "night"}
    names |= {f"{entity}_count_{days}d" for entity in ("customer", "terminal") for days in (1, 7, 30)}
    names |= {f"{kind}_{days}d" for kind in ("customer_mean_amount", "terminal_risk") for days in (1, 7, 30)}
    features = transaction_features(make_columns())
    assert names < set(features)
    assert all(values.dtype == np.float32 and values.shape == (600,) for values in features.values())


@pytest.mark.parametrize("delay_days", [0, 1, 7])
def test_the_future_changes_nothing_in_the_past(delay_days):
    columns, rng = make_columns(), np.random.default_rng(1)
    before = transaction_features(columns, label_delay_days=delay_days)
    for now in (150, 301, 450):
        future = {name: values.copy() for name, values in columns.items()}
        for name in ("customer", "terminal", "amount", "label"):
            future[name][now + 1 :] = rng.permutation(future[name][now + 1 :])
        future["time_seconds"][now + 1 :] += 1800
        is_unknown = columns["time_seconds"] > columns["time_seconds"][now] - delay_days * DAY
        is_unknown |= np.arange(600) >= now
        future["label"][is_unknown] = 1 - columns["label"][is_unknown]
        after = transaction_features(future, label_delay_days=delay_days)
        for name, values in after.items():
            np.testing.assert_array_equal(values[now], before[name][now], err_msg=name)


def test_a_label_counts_from_the_day_it_is_known():
    columns = one_entity([0, 7 * 24 - 1, 7 * 24], [10.0] * 3, [1, 0, 0])
    features = transaction_features(columns, label_delay_days=7)
    assert features["terminal_risk_1d"].tolist() == [0, 0, 1]
    assert features["customer_frauds_30d"].tolist() == [0, 0, 1]
    assert features["terminal_fraud_run"].tolist() == [0, 0, 1]


def test_a_run_of_frauds_lasts_from_the_first_to_a_legitimate_one():
    columns = one_entity([24 * day for day in (0, 1, 2, 3, 4, 9, 20)], [10.0] * 7, [0, 1, 1, 0, 1, 0, 0])
    features = transaction_features(columns, label_delay_days=7)
    assert features["terminal_fraud_run"].tolist() == [0, 0, 0, 0, 0, 2, 0]
    np.testing.assert_array_equal(features["terminal_fraud_run_days"], [np.nan] * 5 + [8, np.nan])
    assert features["terminal_days_since_fraud"][5:].tolist() == [7, 16]
    assert features["terminal_days_since_legitimate"][5:].tolist() == [9, 11]


def test_a_fraud_of_a_large_amount_says_nothing_of_the_terminal():
    amounts = [10.0, 10.0, LARGE_RATIO * 10 + 1, 10.0]
    features = transaction_features(one_entity([0, 24, 48, 240], amounts, [0, 0, 1, 0]), label_delay_days=0)
    assert features["customer_large_30d"].tolist() == [0, 0, 0, 1]
    assert features["terminal_risk_30d"][3] == pytest.approx(1 / 3)
    assert features["terminal_ordinary_frauds_30d"][3] == 0
    assert np.isnan(features["terminal_fraud_run_days"][3])


def test_known_frauds_do_not_raise_the_usual_amount():
    features = transaction_features(one_entity([0, 24, 48], [10.0, 90.0, 20.0], [0, 1, 0]), label_delay_days=1)
    assert features["amount_to_usual"][2] == 2.0
    assert features["amount_to_recent"][2] == pytest.approx(0.4)


def test_what_does_not_exist_is_missing():
    features = transaction_features(one_entity([0], [10.0], [0]))
    missing = {name for name, values in features.items() if np.isnan(values[0])}
    assert missing == {
        "amount_to_usual",
        "amount_to_recent",
        "customer_days_since_large",
        "customer_days_since_last",
        "terminal_fraud_run_days",
        "terminal_days_since_fraud",
        "terminal_days_since_legitimate",
    }


def test_no_rows_have_no_features():
    empty = {name: values[:0] for name, values in make_columns().items()}
    assert all(values.shape == (0,) for values in transaction_features(empty).values())


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        ({"time_seconds": np.array([DAY, 0])}, {}, "time_seconds must ascend, but row 1"),
        ({"amount": np.array([1.0, np.nan])}, {}, "amount must be finite"),
        ({"label": np.array([0, 2])}, {}, "label must be 0 or 1"),
        ({}, {"label_delay_days": -1}, "label_delay_days must be 0 or more, got -1"),
        ({}, {"windows_days": ()}, "windows_days must be"),
        ({}, {"windows_days": (7, 0)}, "windows_days must be"),
    ],
)
def test_wrong_inputs_are_refused(change, options, message):
    columns = one_entity([0, 1], [1.0, 1.0], [0, 0]) | change
    with pytest.raises(ValueError, match=message):
        transaction_features(columns, **options)


def test_a_missing_column_is_named():
    columns = make_columns()
    del columns["amount"]
    with pytest.raises(ValueError, match="add amount"):
        transaction_features(columns)


def test_bins_have_a_narrow_one_at_a_sharp_threshold():
    x = np.random.default_rng(0).uniform(0, 300, 5000)
    edges = np.array(fit_bins(x, (x > 220).astype(int), **BINS))
    present = np.sort(x.astype(np.float32))
    below, above = present[present <= 220].max(), present[present > 220].min()
    at = int(np.searchsorted(edges, below))
    assert edges[at] == below
    assert edges[at + 1] == above
    assert edges[0] == present[0]
    assert edges[-1] == present[-1]
    assert np.all(np.diff(edges) > 0)


def test_noise_gets_no_thresholds():
    rng = np.random.default_rng(0)
    edges = fit_bins(rng.normal(size=5000), rng.integers(0, 2, 5000), num_quantiles=4, num_thresholds=16)
    assert len(edges) == 5


@pytest.mark.parametrize(
    ("x", "edges"),
    [
        ([], []),
        ([np.nan, np.nan], []),
        ([3.0, 3.0, np.nan], []),
        ([1.0, np.inf, 2.0], [1.0, 2.0]),
        ([1.0, 1.0 + 1e-12], []),  # the same number in float32
    ],
)
def test_bins_of_columns_with_little_in_them(x, edges):
    assert fit_bins(np.array(x), np.zeros(len(x)), **BINS) == edges


def test_bins_of_many_rows_see_all_rare_positives():
    x = np.arange(3 * MAX_ROWS, dtype=np.float64)
    y = np.zeros(len(x))
    y[100_000:100_050] = 1
    edges = fit_bins(x, y, num_quantiles=1, num_thresholds=4)
    assert any(99_990 <= edge <= 100_000 for edge in edges)
    assert any(100_049 <= edge <= 100_060 for edge in edges)


def test_bins_refuse_vectors_of_different_lengths():
    with pytest.raises(ValueError, match="one length"):
        fit_bins(np.zeros(3), np.zeros(4), **BINS)
