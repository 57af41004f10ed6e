from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf
from sklearn.metrics import average_precision_score
from sklearn.model_selection import GridSearchCV
from torch import Tensor

from models import baselines

Split = dict[str, Tensor]

SINGLE: list[Callable[[], Any]] = [
    baselines.base_rate,
    baselines.logistic_regression,
    baselines.xgboost,
    baselines.random_forest,
    baselines.decision_tree,
    baselines.linear_svm,
    baselines.nearest_neighbours,
    baselines.naive_bayes,
    baselines.k_means_distance,
]
MISSING_TIME = -(2**63)


def made_up(rows: int = 600, *, seed: int = 0, num_categorical: int = 2) -> Split:
    """A split with holes, an empty column, an unknown category and a missing time; three of its columns tell."""
    generator = torch.Generator().manual_seed(seed)
    numeric = torch.randn(rows, 4, generator=generator)
    categorical = torch.randint(0, 5, (rows, num_categorical), generator=generator)
    log_odds = -2 + 1.5 * numeric[:, 0] + 2 * (categorical == 3).any(1) + numeric[:, 1].abs()
    target = (torch.rand(rows, generator=generator) < torch.sigmoid(log_odds)).float()
    numeric[torch.rand(rows, 4, generator=generator) < 0.05] = float("nan")
    numeric[:, 3] = float("nan")
    timestamp = torch.arange(rows).unsqueeze(1) * 3600
    timestamp[5] = MISSING_TIME
    ones = torch.ones(rows)
    return {
        "numeric": numeric,
        "categorical": categorical,
        "timestamp": timestamp,
        "target": target,
        "weight": ones,
        "amount": ones,
        "day": torch.arange(rows) // 24,
        "customer": torch.full((rows,), -1),
    }


def quality(baseline: Any, split: Split) -> float:
    scored = baselines.scored(baseline, split)
    return float(average_precision_score(scored.target, scored.score))


def test_design_matrix_has_numbers_then_times_then_codes() -> None:
    split = made_up(10)
    split["timestamp"][0] = 18 * 3600 + 1800  # Thursday, half past six in the evening
    matrix = baselines.design_matrix(split)
    assert matrix.dtype == np.float32
    assert matrix.shape == (10, 4 + 2 + 2)
    np.testing.assert_array_equal(matrix[:, :4], split["numeric"].numpy())
    np.testing.assert_array_equal(matrix[0, 4:6], [18.5, 3])
    np.testing.assert_array_equal(matrix[5, 4:6], [np.nan, np.nan])
    np.testing.assert_array_equal(matrix[:, 6:], split["categorical"].numpy())


@pytest.mark.parametrize("make", SINGLE)
def test_every_baseline_takes_holes_categories_and_times_and_gives_probabilities(make: Callable[[], Any]) -> None:
    baseline, train, test = make(), made_up(), made_up(seed=1)
    test["categorical"][0] = 99  # never seen
    baselines.fit(baseline, train, weighted=False)
    scored = baselines.scored(baseline, test)
    assert scored.score.shape == (600,)
    assert np.all((scored.score >= 0) & (scored.score <= 1))
    rate = float(test["target"].mean())
    if make is baselines.base_rate:
        assert quality(baseline, test) == pytest.approx(rate)
    elif make is not baselines.k_means_distance:  # which knows no target
        assert quality(baseline, test) > rate + 0.15


@pytest.mark.parametrize("make", SINGLE)
@pytest.mark.parametrize("absent", [("categorical", "timestamp"), ("numeric", "timestamp")])
def test_a_baseline_works_where_a_kind_of_column_is_absent(make: Callable[[], Any], absent: tuple[str, ...]) -> None:
    split = made_up()
    split |= {name: split[name][:, :0] for name in absent}
    baseline = make()
    baselines.fit(baseline, split, weighted=False)
    assert len(baselines.scored(baseline, split).score) == 600


@pytest.mark.parametrize(
    ("make", "name", "value"),
    [
        (baselines.logistic_regression, "C", 1.0),
        (baselines.naive_bayes, "var_smoothing", 1e-3),
        (baselines.xgboost, "max_depth", 3),
    ],
)
@pytest.mark.parametrize("wrap", [False, True])
def test_a_weight_counts_as_so_many_rows(make: Callable[[], Any], name: str, value: float, wrap: bool) -> None:
    """Also through a search and a cap on the rows, which cut the weights as they cut the rows."""
    split, weight = made_up(), torch.randint(1, 4, (600,), generator=torch.Generator().manual_seed(0))
    repeated = {name: column.repeat_interleave(weight, 0) for name, column in split.items()}

    def fitted(rows: Split, weighted: bool) -> Any:
        baseline = make()
        if wrap:
            baseline = baselines.searched(baseline, grid={name: [value]}, num_folds=2, most_rows=10_000)
        baselines.fit(baseline, rows, weighted=weighted)
        return baselines.scored(baseline, split).score

    by_weight, by_rows = fitted({**split, "weight": weight.float()}, True), fitted(repeated, False)
    unweighted = fitted(split, False)
    # Medians and scales of the columns are unweighted, so equal only nearly.
    assert np.abs(by_weight - by_rows).mean() < 0.3 * np.abs(by_weight - unweighted).mean()


def test_methods_without_weights_are_fitted_without() -> None:
    for baseline in (baselines.nearest_neighbours(), baselines.searched(baselines.nearest_neighbours(), grid={})):
        assert baselines.weight_parameter(baseline) is None
        baselines.fit(baseline, made_up(), weighted=True)


def test_a_search_chooses_by_average_precision_over_folds_in_time() -> None:
    baseline = baselines.searched(baselines.decision_tree(min_rows=1), grid={"max_depth": [1, 4, 30]}, num_folds=3)
    train = made_up(1500)
    baselines.fit(baseline, train, weighted=False)
    x, y = baselines.design_matrix(train), train["target"].numpy()
    expected = {}
    for depth in (1, 4, 30):
        scores = []
        for fold in range(1, 4):  # by hand: 4 pieces, each fold trains on all before the one that it scores
            end, stop = len(y) * fold // 4, len(y) * (fold + 1) // 4
            tree = baselines.decision_tree(max_depth=depth, min_rows=1).fit(x[:end], y[:end])
            scores.append(average_precision_score(y[end:stop], tree.predict_proba(x[end:stop])[:, 1]))
        expected[depth] = np.mean(scores)
    found = dict(zip([1, 4, 30], baseline.cv_results_["mean_test_score"], strict=True))
    assert found == pytest.approx(expected)
    assert baseline.best_params_ == {"max_depth": max(expected, key=lambda depth: expected[depth])}
    again = baselines.decision_tree(min_rows=1).set_params(**baseline.best_params_).fit(x, y)
    np.testing.assert_array_equal(baseline.predict_proba(x), again.predict_proba(x))  # refitted to all rows


def test_folds_never_train_on_what_comes_later() -> None:
    target = made_up()["target"].numpy()
    for train, validation in baselines.TimeFolds(4).split(np.zeros((600, 1)), target):
        assert train.max() < validation.min()


def test_folds_without_both_classes_are_left_out() -> None:
    target = np.zeros(400)
    target[[150, 250, 350]] = 1
    folds = baselines.TimeFolds(3).split(np.zeros((400, 1)), target)
    assert [(train[-1], validation[-1]) for train, validation in folds] == [(199, 299), (299, 399)]
    assert baselines.TimeFolds(3).get_n_splits(np.zeros((400, 1)), target) == 2
    with pytest.raises(ValueError, match="no fold in time of the training rows has both classes"):
        baselines.TimeFolds(3).split(np.zeros((400, 1)), np.zeros(400))


def test_capped_rows_hold_the_positives_and_evenly_spaced_negatives() -> None:
    target = np.zeros(10_000)
    target[::100] = 1
    rows = baselines.capped_rows(target, 1000)
    assert len(rows) == len(np.unique(rows)) == 1000
    assert np.all(np.diff(rows) > 0)
    assert target[rows].sum() == 100
    assert np.diff(rows).max() < 25
    np.testing.assert_array_equal(rows, baselines.capped_rows(target, 1000))
    np.testing.assert_array_equal(baselines.capped_rows(target, 10_000), np.arange(10_000))


@pytest.mark.parametrize(("num_positive", "expected"), [(9_000, 500), (9_900, 900), (10_000, 1000), (0, 0)])
def test_capped_rows_are_half_positive_at_most_while_there_are_negatives(num_positive: int, expected: int) -> None:
    target = np.arange(10_000) < num_positive
    rows = baselines.capped_rows(target.astype(float), 1000)
    assert len(rows) == 1000
    assert target[rows].sum() == expected


def test_a_capped_baseline_is_fitted_to_so_many_rows() -> None:
    baseline = baselines.searched(baselines.nearest_neighbours(), grid={"n_neighbors": [5]}, most_rows=100)
    baselines.fit(baseline, made_up(), weighted=False)
    neighbours = baseline.best_estimator_.estimator_[-1]
    assert neighbours.n_samples_fit_ == 100
    assert neighbours.n_neighbors == 5


def test_rare_categories_share_a_column() -> None:
    codes = torch.arange(1000).unsqueeze(1) % 500
    columns = baselines.columns_of(num_columns=1, num_categorical=1).fit(codes.numpy().astype(np.float32))
    assert columns.transform(codes.numpy().astype(np.float32)).shape == (1000, baselines.MOST_ONE_HOT)


def test_k_means_distance_ranks_outliers_first() -> None:
    split = made_up()
    split["numeric"][:10, 0] = 50.0
    baseline = baselines.k_means_distance(num_clusters=2)
    baselines.fit(baseline, split, weighted=False)
    assert set(np.argsort(-baselines.scored(baseline, split).score)[:10]) == set(range(10))


def test_lightgbm_ranks_as_the_others_do() -> None:
    pytest.importorskip("lightgbm", reason="needs the extra `baselines`")
    baseline = baselines.lightgbm(num_trees=30)
    baselines.fit(baseline, made_up(), weighted=True)
    assert quality(baseline, made_up(seed=1)) > float(made_up(seed=1)["target"].mean()) + 0.15


@pytest.mark.parametrize("option", ["fraud", "grid/fraud"])
def test_every_configured_grid_names_parameters_that_exist(option: str) -> None:
    nodes = OmegaConf.load(Path(__file__).parents[2] / "configs" / "baselines" / f"{option}.yaml")
    for name, node in nodes.items():
        if name == "lightgbm":
            pytest.importorskip("lightgbm", reason="needs the extra `baselines`")
        baseline = instantiate(node, _convert_="all")
        if isinstance(baseline, GridSearchCV):
            for parameter, values in baseline.param_grid.items():
                for value in values:
                    baseline.estimator.set_params(**{parameter: value})
