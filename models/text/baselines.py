"""Classical baselines on raw texts, through scikit-learn: a vectorizer and a classifier, or what ignores the text."""

from collections.abc import Iterable

import numpy as np
from sklearn.dummy import DummyClassifier
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.multiclass import OneVsRestClassifier
from sklearn.naive_bayes import ComplementNB
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.svm import LinearSVC
from torch import Tensor

from models.classification import Classified, scored_by


def majority() -> Pipeline:
    """The commonest class, whatever the text."""
    return make_pipeline(_vectorizer(longest=1, min_rows=1), DummyClassifier(strategy="prior"))


def logistic_regression(*, C: float = 10.0, longest: int = 2, min_rows: int = 1) -> Pipeline:  # noqa: N803 - scikit-learn's name
    """Logistic regression of TF-IDF weights of words and their n-grams."""
    return make_pipeline(_vectorizer(longest, min_rows), LogisticRegression(C=C, max_iter=300))


def linear_svm(*, C: float = 0.3, longest: int = 2, min_rows: int = 1) -> Pipeline:  # noqa: N803 - scikit-learn's name
    """Linear support vector machine on the same weights."""
    return make_pipeline(_vectorizer(longest, min_rows), LinearSVC(C=C, random_state=0))


def naive_bayes(*, smoothing: float = 0.3, longest: int = 2, min_rows: int = 1) -> Pipeline:
    """Complement naive Bayes on the same weights (Rennie et al., 2003)."""
    return make_pipeline(_vectorizer(longest, min_rows), ComplementNB(alpha=smoothing))


def _vectorizer(longest: int, min_rows: int) -> TfidfVectorizer:
    # Any run of letters and digits, so that no language and no one-letter word is left out.
    return TfidfVectorizer(
        sublinear_tf=True, ngram_range=(1, longest), min_df=min_rows, token_pattern=r"(?u)\b\w+\b", dtype=np.float32
    )


def fit(baseline: Pipeline, texts: Iterable[str], target: Tensor) -> Pipeline:
    """Fit to texts and their classes int64 [rows], or, one model a class, to yes and no [rows, classes]."""
    if not isinstance(baseline, Pipeline):
        raise ValueError(f"a baseline must be a Pipeline that takes texts; {type(baseline).__name__} is none")
    truth = target.cpu().numpy()
    if truth.ndim == 2:
        *first, (name, last) = baseline.steps
        baseline = Pipeline([*first, (name, OneVsRestClassifier(last))])
        truth = (truth > 0).astype(np.int64)
    try:
        return baseline.fit(list(texts), truth)
    except ValueError as error:
        raise ValueError(f"{type(baseline.steps[-1][1]).__name__} cannot be fitted: {error}") from error


def scored(baseline: Pipeline, texts: Iterable[str], target: Tensor, *, num_classes: int) -> Classified:
    """Score rows by a fitted baseline: logits, or what it has that comes next to them."""
    return scored_by(baseline, list(texts), target.cpu().numpy(), num_classes=num_classes)
