"""Classical baselines on pictures, through scikit-learn: their pixels, or histograms of their gradients.

A picture of more pixels than `SIDE` squared is made smaller first: these methods know no more of it by more pixels.
"""

import warnings
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.decomposition import PCA
from sklearn.dummy import DummyClassifier
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import FunctionTransformer, StandardScaler
from sklearn.svm import LinearSVC
from torch import Tensor
from torch.nn import functional

from models.classification import Classified, scored_by

SIDE = 32  # most pixels of a side
AT_A_TIME = 256  # pictures that are made smaller together
MOST_ROWS = 10_000  # of a fit, evenly spread: minutes more would say little of a baseline
CELLS = 4  # of a side of a picture, each with a histogram
ORIENTATIONS = 9
COMPONENTS = 64


def majority() -> Pipeline:
    """The commonest class, whatever the picture."""
    return make_pipeline(FunctionTransformer(_pixels), DummyClassifier(strategy="prior"))


def nearest_neighbours(*, n_neighbors: int = 3) -> Pipeline:
    """The classes of the nearest training pictures, by the distance of their pixels' principal components."""
    return make_pipeline(
        FunctionTransformer(_pixels),
        PCA(COMPONENTS, random_state=0, svd_solver="randomized"),
        KNeighborsClassifier(n_neighbors, weights="distance"),
    )


def logistic_regression(*, C: float = 0.1) -> Pipeline:  # noqa: N803 - scikit-learn's name
    """Logistic regression on pixels."""
    return make_pipeline(FunctionTransformer(_pixels), StandardScaler(), LogisticRegression(C=C, max_iter=200))


def hog_linear_svm(*, C: float = 0.1) -> Pipeline:  # noqa: N803 - scikit-learn's name
    """Linear support vector machine on histograms of oriented gradients (Dalal and Triggs, 2005) and small pixels."""
    return make_pipeline(FunctionTransformer(histograms), StandardScaler(), LinearSVC(C=C, random_state=0))


def fit(baseline: Pipeline, images: Tensor, target: Tensor) -> Pipeline:
    """Fit to pictures uint8 [N, H, W, 3] and their classes."""
    chosen = torch.linspace(0, len(images) - 1, min(len(images), MOST_ROWS)).long()
    small, truth = shrunk(images, chosen), target[chosen].cpu().numpy()
    for step in baseline.steps:
        if isinstance(step[1], PCA):  # fewer pictures or pixels than it would take
            step[1].set_params(n_components=min(COMPONENTS, len(small), int(np.prod(small.shape[1:]))))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter(
                "ignore", ConvergenceWarning
            )  # the next digit of a baseline's weights decides nothing
            return baseline.fit(small, truth)
    except ValueError as error:
        raise ValueError(f"the baseline {type(baseline.steps[-1][1]).__name__} cannot be fitted: {error}") from error


def scored(baseline: Pipeline, images: Tensor, target: Tensor, *, num_classes: int) -> Classified:
    """Score pictures by a fitted baseline."""
    return scored_by(baseline, shrunk(images), target.cpu().numpy(), num_classes=num_classes)


def shrunk(images: Tensor, rows: Tensor | None = None) -> NDArray[np.float32]:
    """Pictures, or some rows of them, as shares of 255, [N, H, W, 3], no side longer than `SIDE`."""
    height, width = images.shape[1:3]
    parts = []
    for some in torch.split(torch.arange(len(images)) if rows is None else rows, AT_A_TIME):
        pixels = images[some].permute(0, 3, 1, 2).float() / 255
        if max(height, width) > SIDE:
            size = (min(height, SIDE), min(width, SIDE))
            pixels = functional.interpolate(pixels, size, mode="bilinear", antialias=True)
        parts.append(pixels.permute(0, 2, 3, 1).cpu())
    return torch.cat(parts).numpy()


def histograms(images: NDArray[np.float32]) -> NDArray[np.float32]:
    """Histograms of gradients by orientation in a grid of cells, each cell normalized, [N, cells * orientations]."""
    grey = images.mean(axis=3)
    padded = np.pad(grey, ((0, 0), (1, 1), (1, 1)), mode="edge")
    down, right = padded[:, 2:, 1:-1] - padded[:, :-2, 1:-1], padded[:, 1:-1, 2:] - padded[:, 1:-1, :-2]
    size = np.hypot(down, right)
    place = np.arctan2(down, right) / np.pi % 1.0 * ORIENTATIONS
    lower = np.floor(place).astype(np.int64) % ORIENTATIONS
    share = (place - np.floor(place)).astype(np.float32)
    rows, columns = (np.array_split(np.arange(length), min(CELLS, length)) for length in grey.shape[1:])
    found = []
    for orientation in range(ORIENTATIONS):
        weight = np.where(
            lower == orientation, 1 - share, np.where((lower + 1) % ORIENTATIONS == orientation, share, 0)
        )
        votes = size * weight
        by_row = np.stack([votes[:, part].sum(axis=1) for part in rows], axis=1)
        found.append(np.stack([by_row[:, :, part].sum(axis=2) for part in columns], axis=2))
    cells = np.stack(found, axis=3)  # [N, cells, cells, orientations]
    cells /= np.sqrt(np.sum(cells**2, axis=3, keepdims=True)) + 0.05
    return np.asarray(cells.reshape(len(images), -1), np.float32)


def _pixels(images: NDArray[Any]) -> NDArray[Any]:
    """All numbers of a picture in a row; of grey pictures, one of the three equal channels."""
    is_grey = bool((images[..., :1] == images).all())
    return images[..., :1].reshape(len(images), -1) if is_grey else images.reshape(len(images), -1)
