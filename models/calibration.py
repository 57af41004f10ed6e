"""Calibration of probabilities on the validation rows, as buffers and operations that an exported graph can hold."""

from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

Method = Literal["none", "temperature", "platt", "isotonic"]

TABLE_SIZE = 128
RIDGE = 1e-3  # rows that speak for the identity: separable data stay finite


def logit(probability: Tensor) -> Tensor:
    """Return the log-odds, kept finite at 0 and 1 by no more than float32 asks: what it tells apart stays apart."""
    return torch.log(probability.clamp_min(1e-30)) - torch.log((1 - probability).clamp_min(5e-8))


class Calibration(nn.Module):
    """Maps raw to calibrated probabilities: sigmoid(slope * logit + offset), or a monotone table.

    `temperature` fits the slope (Guo et al., 2017), `platt` slope and offset (Platt, 1999), `isotonic` a piecewise
    linear table of `TABLE_SIZE` points through the isotonic regression (Zadrozny and Elkan, 2002). The first two keep
    the ranking, as far as float32 tells probabilities near 1 apart; the table makes ties.
    """

    slope: Tensor
    offset: Tensor
    table_x: Tensor
    table_y: Tensor

    def __init__(self, method: Method) -> None:
        super().__init__()
        self.method = method
        self.register_buffer("slope", torch.ones(()))
        self.register_buffer("offset", torch.zeros(()))
        self.register_buffer("table_x", torch.linspace(0, 1, TABLE_SIZE))
        self.register_buffer("table_y", torch.linspace(0, 1, TABLE_SIZE))

    def forward(self, probability: Tensor) -> Tensor:
        """Return calibrated probabilities of the same shape."""
        if self.method == "none":
            return probability
        if self.method == "isotonic":
            right = self._place(probability).clamp(1, TABLE_SIZE - 1)
            x0, x1 = self.table_x[right - 1], self.table_x[right]
            y0, y1 = self.table_y[right - 1], self.table_y[right]
            return y0 + (y1 - y0) * ((probability - x0) / (x1 - x0).clamp_min(1e-12)).clamp(0, 1)
        return torch.sigmoid(self.slope * logit(probability) + self.offset)

    def _place(self, probability: Tensor) -> Tensor:
        """Where each probability belongs in the table; ONNX has no searchsorted."""
        if torch.compiler.is_exporting():
            return (self.table_x < probability.unsqueeze(-1)).sum(dim=-1)
        return torch.searchsorted(self.table_x, probability.contiguous())

    def fit(self, probability: NDArray[np.float64], target: NDArray[np.float64], weight: NDArray[np.float64]) -> None:
        """Fit to raw probabilities [rows], targets of 0 and 1 and weights; the identity if one class is absent."""
        self.load_state_dict(Calibration(self.method).state_dict())
        if self.method == "none" or len(np.unique(target)) < 2:
            return
        if self.method == "isotonic":
            self._fit_table(probability, target, weight)
        else:
            self._fit_logistic(probability, target, weight)

    def _fit_table(
        self, probability: NDArray[np.float64], target: NDArray[np.float64], weight: NDArray[np.float64]
    ) -> None:
        from sklearn.isotonic import IsotonicRegression

        regression = IsotonicRegression(y_min=0.0, y_max=1.0, out_of_bounds="clip").fit(probability, target, weight)
        x, y = np.asarray(regression.X_thresholds_), np.asarray(regression.y_thresholds_)
        if len(x) > TABLE_SIZE:  # keep points at equal steps of the curve's length, both ends included
            length = np.append(0.0, np.cumsum(np.hypot(np.diff(x), np.diff(y))))
            keep = np.searchsorted(length, np.linspace(0, length[-1], TABLE_SIZE)).clip(0, len(x) - 1)
            x, y = x[keep], y[keep]
        filler = TABLE_SIZE - len(x)
        self.table_x.copy_(torch.from_numpy(np.pad(x, (0, filler), constant_values=x[-1])))
        self.table_y.copy_(torch.from_numpy(np.pad(y, (0, filler), constant_values=y[-1])))

    def _fit_logistic(
        self, probability: NDArray[np.float64], target: NDArray[np.float64], weight: NDArray[np.float64]
    ) -> None:
        """Newton's method on the weighted log-loss, its steps halved until they descend."""
        x = logit(torch.from_numpy(probability).double()).numpy()
        design = np.stack([x, np.ones_like(x)], axis=1)[:, : 1 if self.method == "temperature" else 2]
        start = np.array([1.0, 0.0])[: design.shape[1]]
        theta = start.copy()

        def loss(theta: NDArray[np.float64]) -> float:
            log_odds = design @ theta
            ridge = RIDGE / 2 * np.sum((theta - start) ** 2)
            return float(np.sum(weight * (np.logaddexp(0.0, log_odds) - target * log_odds)) + ridge)

        for _ in range(100):
            predicted = 1.0 / (1.0 + np.exp(-np.clip(design @ theta, -30, 30)))
            gradient = design.T @ (weight * (predicted - target)) + RIDGE * (theta - start)
            curvature = (design * (weight * predicted * (1 - predicted))[:, None]).T @ design
            step = np.linalg.solve(curvature + RIDGE * np.eye(len(theta)), gradient)
            while loss(theta - step) > loss(theta) and np.max(np.abs(step)) > 1e-9:
                step /= 2
            theta -= step
            if np.max(np.abs(step)) < 1e-9:
                break
        if theta[0] <= 0:  # scores that rank backwards on validation: calibrating would turn the ranking round
            return
        self.slope.fill_(float(theta[0]))
        if len(theta) == 2:
            self.offset.fill_(float(theta[1]))


class Temperature(nn.Module):
    """Divides logits by one number that is fitted to validation rows (Guo et al., 2017); no decision changes."""

    slope: Tensor
    most_rows = 20_000  # of a fit: more do not move one number

    def __init__(self, method: Literal["none", "temperature"]) -> None:
        super().__init__()
        self.method = method
        self.register_buffer("slope", torch.ones(()))

    def forward(self, logits: Tensor) -> Tensor:
        """Return calibrated logits of the same shape."""
        return logits * self.slope

    def fit(self, logits: NDArray[np.float64], target: NDArray[Any]) -> None:
        """Fit to logits [rows, classes] and classes [rows], or to yes and no [rows, classes] of each.

        By golden section, which needs no curvature and stays within a factor of e^4 where rows are separable.
        """
        self.slope.fill_(1.0)
        if self.method == "none" or not len(logits):
            return
        keep = np.linspace(0, len(logits) - 1, min(len(logits), self.most_rows)).astype(np.int64)
        scores, truth = torch.from_numpy(logits[keep]), torch.from_numpy(target[keep])

        def loss(log_slope: float) -> float:
            scaled = scores * np.exp(log_slope)
            ridge = RIDGE * log_slope**2
            if truth.ndim == 2:
                return float(functional.binary_cross_entropy_with_logits(scaled, truth.double())) + ridge
            return float(functional.cross_entropy(scaled, truth)) + ridge

        self.slope.fill_(float(np.exp(golden_section(loss, -4.0, 4.0))))


def golden_section(function: Callable[[float], float], low: float, high: float, *, steps: int = 32) -> float:
    """Return where a function of one valley is lowest (Kiefer, 1953)."""
    ratio = (5**0.5 - 1) / 2
    left, right = high - ratio * (high - low), low + ratio * (high - low)
    at_left, at_right = function(left), function(right)
    for _ in range(steps):
        if at_left < at_right:
            high, right, at_right = right, left, at_left
            left = high - ratio * (high - low)
            at_left = function(left)
        else:
            low, left, at_left = left, right, at_right
            right = low + ratio * (high - low)
            at_right = function(right)
    return (low + high) / 2
