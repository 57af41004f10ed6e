"""Classical baselines pixel by pixel, through scikit-learn: by a pixel's colour and that of what is around it."""

import warnings
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.dummy import DummyClassifier
from sklearn.ensemble import RandomForestClassifier
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor
from torch.nn import functional

from models.segmentation.losses import IGNORED

MOST_PICTURES = 200  # of a fit, evenly spread: more would say little of a baseline
MOST_PIXELS = 40_000
AROUND = (3, 9)  # pixels of a side of the squares whose mean colour is looked at


def majority() -> Pipeline:
    """The commonest class, whatever the pixel."""
    return make_pipeline(DummyClassifier(strategy="prior"))


def logistic_regression(*, C: float = 1.0) -> Pipeline:  # noqa: N803 - scikit-learn's name
    """Logistic regression on colours and place."""
    return make_pipeline(StandardScaler(), LogisticRegression(C=C, max_iter=100))


def random_forest(*, n_estimators: int = 10, max_depth: int = 12) -> Pipeline:
    """A small random forest on colours and place."""
    return make_pipeline(RandomForestClassifier(n_estimators, max_depth=max_depth, random_state=0))


def fit(baseline: Pipeline, images: Tensor, target: Tensor) -> None:
    """Fit to some of the pixels of pictures uint8 [N, H, W, 3] and their classes [N, H, W]."""
    chosen = torch.linspace(0, len(images) - 1, min(len(images), MOST_PICTURES)).long()
    values, truth = features(images[chosen]), target[chosen].cpu().numpy().ravel()
    places = np.flatnonzero(truth != IGNORED)
    drawn = np.random.default_rng(0).permutation(places)[:MOST_PIXELS]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter(
                "ignore", ConvergenceWarning
            )  # the next digit of a baseline's weights decides nothing
            baseline.fit(values[drawn], truth[drawn])
    except ValueError as error:
        raise ValueError(f"the baseline {type(baseline.steps[-1][1]).__name__} cannot be fitted: {error}") from error


def found(baseline: Pipeline, images: Tensor) -> Tensor:
    """Classes of the pixels of pictures by a fitted baseline, int64 [N, H, W]."""
    classes = np.asarray(baseline.predict(features(images)), np.int64)
    return torch.from_numpy(classes).view(images.shape[:3])


def features(images: Tensor) -> NDArray[np.float32]:
    """What is known of each pixel: colours and place, [N * H * W, 11]."""
    pixels = images.permute(0, 3, 1, 2).float().cpu() / 255
    size, _, height, width = pixels.shape
    options: Any = {"stride": 1, "count_include_pad": False}
    around = [functional.avg_pool2d(pixels, side, padding=side // 2, **options) for side in AROUND]
    down = torch.linspace(0, 1, height).view(1, 1, -1, 1).expand(size, 1, height, width)
    right = torch.linspace(0, 1, width).view(1, 1, 1, -1).expand(size, 1, height, width)
    columns = torch.cat([pixels, *around, down, right], dim=1)
    found: NDArray[np.float32] = columns.permute(0, 2, 3, 1).reshape(-1, columns.shape[1]).numpy()
    return found
