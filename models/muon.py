"""Muon: momentum whose kernels are made orthogonal before each step, so that all directions are learned alike."""

from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from models.optim import Recipe, adamw, parameter_groups

OptimizerName = Literal["adamw", "muon"]

MOMENTUM = 0.9
KERNELS = 6.0  # their rate, to that of all else
SIZE = 0.2  # root mean square of an update of AdamW's, to which that of a kernel is brought (arXiv 2502.16982)
ITERATIONS = 5
POLYNOMIAL = 3.4445, -4.7750, 2.0315  # of x, x^3 and x^5: it lifts small values fast and keeps all between 0.7 and 1.2
LEAST_NORM = 1e-7
LEAST_WARMUP = 100  # steps: full ones throw a network that knows nothing far away


class Muon(torch.optim.AdamW):
    """Orthogonalized momentum for groups with `momentum`, AdamW for the others (Jordan et al., 2024).

    The momentum of a kernel [outputs, inputs, height, width], a matrix of outputs by all else, is replaced by the
    nearest matrix whose singular values are about one: directions with small gradients move as far as those with large
    ones. Updates are brought to the size of AdamW's.

    `torch.optim.Muon` takes matrices alone, and in bfloat16, in which processes that share a batch would not agree.

    Args:
        groups: of parameters; those with a `momentum` are orthogonalized.
        lr: of all groups without their own.
    """

    least_warmup = LEAST_WARMUP

    def __init__(self, groups: list[dict[str, Any]], *, lr: float) -> None:
        super().__init__(groups, lr=lr, fused=True)

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Update the parameters by their gradients; those of orthogonalized ones are used up."""
        for group in self.param_groups:
            if "momentum" in group:
                for parameter in group["params"]:
                    self._turn(parameter, group)
        super().step(closure)

    def _turn(self, parameter: Tensor, group: dict[str, Any]) -> None:
        gradient, parameter.grad = parameter.grad, None
        if gradient is None:
            return
        state = self.state[parameter]
        if not state:
            state["momentum"] = torch.zeros_like(parameter)
            state["step"] = torch.zeros((), device=parameter.device)  # AdamW looks for it in what is loaded
        state["step"] += 1
        state["momentum"].lerp_(gradient, 1 - group["momentum"])
        ahead = gradient.lerp(state["momentum"], group["momentum"])  # Nesterov's
        parameter.mul_(1 - group["lr"] * group["weight_decay"]).add_(_update(ahead), alpha=-group["lr"])


def _update(momentum: Tensor) -> Tensor:
    """The step of a kernel by its momentum, whole or sharded as that is."""
    if isinstance(momentum, DTensor):
        whole = _update(momentum.full_tensor())
        # Every rank has computed the same: nothing is sent.
        return distribute_tensor(whole, momentum.device_mesh, momentum.placements, src_data_rank=None)
    matrix = momentum.flatten(1)
    return orthogonalized(matrix).mul_(SIZE * max(matrix.shape) ** 0.5).view_as(momentum)


def orthogonalized(matrix: Tensor) -> Tensor:
    """Return the matrix [m, n] with singular values of about one instead of its own, by Newton and Schulz's iteration.

    Those below a thousandth of the matrix's norm become less than one. Each step multiplies by a polynomial of the Gram
    matrix, so the steps are put together there, where the long side does not cost; in float64, because the Gram matrix
    holds the squares of the singular values.
    """
    is_high = matrix.shape[0] > matrix.shape[1]
    found = matrix.mT if is_high else matrix
    found = found / found.norm().clamp_min(LEAST_NORM)
    first, third, fifth = POLYNOMIAL
    exact = found.double()
    gram = exact @ exact.mT
    steps = torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
    for _ in range(ITERATIONS):
        step = torch.addmm(gram, gram, gram, beta=third, alpha=fifth)
        step.diagonal().add_(first)
        gram, steps = step @ gram @ step, step @ steps
    result: Tensor = steps.to(found.dtype) @ found
    return result.mT if is_high else result


def optimizer_of(name: OptimizerName, network: nn.Module, options: Recipe) -> torch.optim.Optimizer:
    """Return AdamW over a network, or Muon over kernels of more than one pixel and AdamW over all else."""
    if name == "adamw":
        return adamw(network, options)
    groups: list[dict[str, Any]] = []
    for group in parameter_groups(network, options["weight_decay"]):
        params: Any = group["params"]
        kernels = [p for p in params if p.ndim == 4 and p.shape[2] * p.shape[3] > 1]
        others = [p for p in params if p.ndim != 4 or p.shape[2] * p.shape[3] == 1]
        groups += [{**group, "params": kernels, "momentum": MOMENTUM, "lr_scale": KERNELS}] if kernels else []
        groups += [{**group, "params": others}] if others else []
    return Muon(groups, lr=options["lr"])
