"""Classical baselines on the same table, through scikit-learn's interfaces.

A baseline is a scikit-learn classifier. One that cannot do with missing values, codes of categories and columns of any
scale as they are is a pipeline whose first step, `columns`, `fit` replaces by what the table at hand needs.
"""

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, ClassifierMixin, clone
from sklearn.calibration import CalibratedClassifierCV
from sklearn.cluster import MiniBatchKMeans
from sklearn.compose import ColumnTransformer
from sklearn.dummy import DummyClassifier
from sklearn.ensemble import RandomForestClassifier
from sklearn.exceptions import ConvergenceWarning
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, TimeSeriesSplit
from sklearn.naive_bayes import GaussianNB
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler
from sklearn.svm import LinearSVC
from sklearn.tree import DecisionTreeClassifier
from sklearn.utils.validation import has_fit_parameter
from torch import Tensor

from models.metrics import Scored

Floats = NDArray[np.floating[Any]]

SECONDS_A_DAY = 86_400
EPOCH_WEEKDAY = 3  # 1970-01-01 was a Thursday; Monday is 0
MISSING_TIME = -(2**63)
MOST_ONE_HOT = 64  # categories with a column of their own; the rarer ones share one


def design_matrix(tensors: Mapping[str, Tensor]) -> NDArray[np.float32]:
    """Return the columns of a split as one float32 matrix [rows, F + 2T + C], NaN where missing.

    A timestamp becomes its hour and its weekday; categories stay codes and come last.
    """
    seconds = tensors["timestamp"].cpu().numpy()
    hour, weekday = seconds % SECONDS_A_DAY / 3600, (seconds // SECONDS_A_DAY + EPOCH_WEEKDAY) % 7
    is_missing = seconds == MISSING_TIME
    times = [np.where(is_missing, np.nan, part) for part in (hour, weekday)]
    parts = [tensors["numeric"].cpu().numpy(), *times, tensors["categorical"].cpu().numpy()]
    return np.concatenate([part.astype(np.float32) for part in parts], axis=1)


def fit(baseline: Any, tensors: Mapping[str, Tensor], *, weighted: bool) -> None:
    """Fit `baseline` to a split; with `weighted`, by its row weights if the method has any (neighbours have none)."""
    matrix = design_matrix(tensors)
    columns = columns_of(num_columns=matrix.shape[1], num_categorical=tensors["categorical"].shape[1])
    places = [name for name in baseline.get_params() if name.rpartition("__")[2] == "columns"]
    baseline.set_params(**dict.fromkeys(places, columns))
    name = weight_parameter(baseline) if weighted else None
    weight = {name: tensors["weight"].cpu().numpy()} if name else {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # the next digit of a baseline's weights decides nothing
        baseline.fit(matrix, tensors["target"].cpu().numpy(), **weight)


def scored(baseline: Any, tensors: Mapping[str, Tensor]) -> Scored:
    """Score the rows of a split by a fitted baseline."""
    score = baseline.predict_proba(design_matrix(tensors))[:, 1]
    return Scored.of(score, {name: column.cpu().numpy() for name, column in tensors.items()})


def columns_of(*, num_columns: int, num_categorical: int) -> ColumnTransformer:
    """Columns for methods that weigh sums or measure distances: holes filled, unit variance, categories one-hot."""
    numbers = make_pipeline(SimpleImputer(strategy="median", keep_empty_features=True), StandardScaler())
    one_hot = OneHotEncoder(
        handle_unknown="infrequent_if_exist", max_categories=MOST_ONE_HOT, sparse_output=False, dtype=np.float32
    )
    first = num_columns - num_categorical
    kinds = [("numbers", numbers, slice(0, first)), ("categories", one_hot, slice(first, num_columns))]
    return ColumnTransformer([kind for kind in kinds if kind[2].start < kind[2].stop])


def weight_parameter(baseline: Any) -> str | None:
    """Name under which `baseline.fit` takes row weights; None where the method has none."""
    if isinstance(baseline, Pipeline):
        name, last = baseline.steps[-1]
        return f"{name}__sample_weight" if has_fit_parameter(last, "sample_weight") else None
    if isinstance(baseline, GridSearchCV | Capped):
        return weight_parameter(baseline.estimator)
    return "sample_weight" if has_fit_parameter(baseline, "sample_weight") else None


def on_columns(classifier: Any) -> Pipeline:
    """The classifier behind the step that `fit` makes for the table."""
    return Pipeline([("columns", "passthrough"), ("classifier", classifier)])


class Capped(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """Fits on at most `most_rows` rows: all positives up to a half of them, and evenly spaced negatives."""

    def __init__(self, estimator: Any, *, most_rows: int) -> None:
        self.estimator, self.most_rows = estimator, most_rows

    def fit(self, x: Floats, y: Floats, **weights: Floats) -> "Capped":
        """Fit to rows [N, columns] and targets [N]; weights, if any, are cut as the rows are."""
        rows = capped_rows(y, self.most_rows)
        self.classes_ = np.unique(y)
        self.estimator_ = clone(self.estimator).fit(
            x[rows], y[rows], **{name: weight[rows] for name, weight in weights.items()}
        )
        return self

    def predict_proba(self, x: Floats) -> Floats:
        """Return the classes' probabilities, [N, 2]."""
        probability: Floats = self.estimator_.predict_proba(x)
        return probability


def capped_rows(target: Floats, most: int) -> NDArray[np.int64]:
    """Row numbers, ascending: all, or of each class evenly spaced ones."""
    if len(target) <= most:
        return np.arange(len(target))
    positive, negative = np.flatnonzero(target > 0), np.flatnonzero(target <= 0)
    num_positive = min(len(positive), max(most // 2, most - len(negative)))
    chosen = [_evenly(positive, num_positive), _evenly(negative, most - num_positive)]
    return np.sort(np.concatenate(chosen))


def _evenly(rows: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    return rows[np.linspace(0, len(rows) - 1, min(count, len(rows))).astype(np.int64)] if count else rows[:0]


class TimeFolds(TimeSeriesSplit):  # type: ignore[misc]
    """Folds that train on the past and validate on what follows, those without both classes in both left out."""

    def split(self, X: Any, y: Any = None, groups: Any = None) -> Any:  # noqa: N803 - scikit-learn's name
        """Return pairs of training and validation rows. Raises ValueError if no fold has both classes."""
        folds = [fold for fold in super().split(X) if all(len(np.unique(y[rows])) == 2 for rows in fold)]
        if not folds:
            raise ValueError("no fold in time of the training rows has both classes: lower num_folds, or add rows")
        return folds

    def get_n_splits(self, X: Any = None, y: Any = None, groups: Any = None) -> int:  # noqa: N803 - as above
        """Return how many folds are left, or would be."""
        return self.n_splits if y is None else len(self.split(X, y))


def searched(
    estimator: Any, *, grid: Mapping[str, Sequence[Any]], num_folds: int = 3, most_rows: int | None = None
) -> GridSearchCV:
    """Choose from `grid` by average precision (of unweighted rows) over folds in time, then fit to all rows.

    Args:
        estimator: the baseline.
        grid: parameters of its classifier and the values to try.
        num_folds: folds; each trains on all rows before the ones that it scores.
        most_rows: rows that are fitted to at most (see `Capped`), for methods that cannot take more; None for all.
    """
    prefix = "classifier__" if isinstance(estimator, Pipeline) else ""
    if most_rows is not None:
        estimator, prefix = Capped(estimator, most_rows=most_rows), f"estimator__{prefix}"
    return GridSearchCV(
        estimator,
        {prefix + name: list(values) for name, values in grid.items()},
        scoring="average_precision",
        cv=TimeFolds(num_folds),
        error_score="raise",
    )


# The baselines


def base_rate() -> BaseEstimator:
    """The share of positives, whatever the row."""
    return DummyClassifier(strategy="prior")


def logistic_regression(*, C: float = 1.0) -> Pipeline:  # noqa: N803 - scikit-learn's name
    """Logistic regression."""
    return on_columns(LogisticRegression(C=C, max_iter=300))


def xgboost(*, num_trees: int = 100, learning_rate: float = 0.1, max_depth: int = 3, seed: int = 0) -> Any:
    """XGBoost with exact splits: its default histogram of 256 bins blurs sharp thresholds (an amount above 220)."""
    from xgboost import XGBClassifier

    return XGBClassifier(
        n_estimators=num_trees,
        learning_rate=learning_rate,
        max_depth=max_depth,
        tree_method="exact",
        base_score=0.5,
        random_state=seed,
    )


def lightgbm(*, num_trees: int = 200, learning_rate: float = 0.05, num_leaves: int = 31, seed: int = 0) -> Any:
    """LightGBM, with finer bins than its default of 255. Raises ModuleNotFoundError without the extra `baselines`."""
    from lightgbm import LGBMClassifier

    return LGBMClassifier(
        n_estimators=num_trees,
        learning_rate=learning_rate,
        num_leaves=num_leaves,
        max_bin=1023,
        random_state=seed,
        verbose=-1,
    )


def random_forest(*, num_trees: int = 100, min_rows: int = 5, seed: int = 0) -> BaseEstimator:
    """Random forest, each leaf of at least `min_rows` rows."""
    return RandomForestClassifier(num_trees, min_samples_leaf=min_rows, n_jobs=-1, random_state=seed)


def decision_tree(*, max_depth: int = 6, min_rows: int = 20, seed: int = 0) -> BaseEstimator:
    """One decision tree."""
    return DecisionTreeClassifier(max_depth=max_depth, min_samples_leaf=min_rows, random_state=seed)


def linear_svm(*, C: float = 0.01, seed: int = 0) -> Pipeline:  # noqa: N803 - scikit-learn's name
    """Linear support vector machine, its margin made a probability by Platt's method."""
    machine = LinearSVC(C=C, class_weight="balanced", random_state=seed)
    return on_columns(CalibratedClassifierCV(machine, cv=3, ensemble=False))


def nearest_neighbours(*, num_neighbours: int = 25) -> Pipeline:
    """The share of positives among the nearest rows, the nearer counting more."""
    return on_columns(KNeighborsClassifier(num_neighbours, weights="distance", algorithm="brute", n_jobs=-1))


def naive_bayes(*, smoothing: float = 1e-3) -> Pipeline:
    """Gaussian naive Bayes."""
    return on_columns(GaussianNB(var_smoothing=smoothing))


def k_means_distance(*, num_clusters: int = 16, seed: int = 0) -> Pipeline:
    """How far a row is from the nearest of the clusters of the training rows: an anomaly score that knows no target."""
    return on_columns(KMeansDistance(num_clusters, seed))


class KMeansDistance(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """The distance d to the nearest cluster centre as the probability d / (d + median d of the training rows)."""

    def __init__(self, num_clusters: int, seed: int) -> None:
        self.num_clusters, self.seed = num_clusters, seed

    def fit(self, x: Floats, y: Floats, sample_weight: Floats | None = None) -> "KMeansDistance":
        """Find clusters of rows [N, columns]; the targets tell no more than which classes there are."""
        clusters = MiniBatchKMeans(min(self.num_clusters, len(x)), random_state=self.seed, n_init=3)
        self.clusters_ = clusters.fit(x, sample_weight=sample_weight)
        self.classes_ = np.unique(y)
        self.median_ = max(float(np.median(self._distance(x))), 1e-12)
        return self

    def _distance(self, x: Floats) -> Floats:
        distance: Floats = self.clusters_.transform(x).min(axis=1)
        return distance

    def predict_proba(self, x: Floats) -> Floats:
        """Return the classes' probabilities, [N, 2]."""
        distance = self._distance(x)
        probability = distance / (distance + self.median_)
        return np.stack([1 - probability, probability], axis=1)
