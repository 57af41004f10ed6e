"""Classical baselines on the same table, through scikit-learn's interfaces."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.base import BaseEstimator
from sklearn.dummy import DummyClassifier
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor

SECONDS_A_DAY = 86_400


def design_matrix(tensors: Mapping[str, Tensor]) -> NDArray[np.float32]:
    """Return the columns of a split as one float32 matrix [rows, F + C + 2T], NaN where missing.

    Categories stay codes; a timestamp becomes its hour and its weekday.
    """
    seconds = tensors["timestamp"].cpu().numpy()
    hour, weekday = seconds % SECONDS_A_DAY / 3600, (seconds // SECONDS_A_DAY + 3) % 7
    parts = [tensors["numeric"].cpu().numpy(), tensors["categorical"].cpu().numpy(), hour, weekday]
    return np.concatenate([part.astype(np.float32) for part in parts], axis=1)


def base_rate() -> BaseEstimator:
    """The share of positives, whatever the row."""
    return DummyClassifier(strategy="prior")


def logistic_regression(*, C: float = 1.0) -> BaseEstimator:  # noqa: N803 - scikit-learn's name
    """Logistic regression on standardised columns, missing values as the median."""
    return make_pipeline(
        SimpleImputer(strategy="median", keep_empty_features=True),
        StandardScaler(),
        LogisticRegression(C=C, max_iter=300),
    )


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
