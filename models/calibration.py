"""Calibration of probabilities on the validation rows, as buffers and operations that an exported graph can hold."""

from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

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
