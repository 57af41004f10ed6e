"""Structured pruning: the least important units are taken out, and a smaller dense network is what remains.

A unit is one of several alike (a hidden unit, an attention head) and lies in several parameters at once: where it is
computed and where it is used. Importance is its squared magnitude, or the first-order Taylor estimate of what the loss
would change by, squared (Molchanov et al., 2019, arXiv 1906.10771).
"""

from collections.abc import Callable, Iterable, Mapping
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

Importance = Literal["magnitude", "taylor"]

LANES = 8  # sizes are kept multiples of it: what a CPU multiplies at once


@dataclass(frozen=True)
class Slice:
    """Where units lie in a parameter: along `dim`, which is [outer, units, inner] flattened."""

    name: str
    dim: int
    outer: int = 1
    inner: int = 1


@dataclass(frozen=True)
class Units:
    """Units of one layer.

    Attributes:
        option: argument of the network's constructor that counts them; layers that share one lose equally many.
        size: how many there are.
        slices: the parameters that hold them.
        also: further arguments that the smaller network needs.
    """

    option: str
    size: int
    slices: tuple[Slice, ...]
    also: Mapping[str, int] = field(default_factory=dict)


def importances(units: Units, values: Mapping[str, Tensor], how: Importance) -> Tensor:
    """Importance of each unit, [size].

    Args:
        units: of one layer.
        values: parameters, or for `taylor` parameter times gradient, by name.
        how: what `values` are.
    """
    parts = [_by_unit(values[part.name], part, units.size) for part in units.slices]
    together = torch.cat(parts, dim=1).double()
    return together.square().sum(dim=1) if how == "magnitude" else together.sum(dim=1).square()


def num_kept(size: int, ratio: float) -> int:
    """How many of `size` units stay when about `ratio` of them go: at least one, whole lanes where there are such."""
    exact = size * (1 - ratio)
    lanes = LANES if exact >= LANES else 1
    return max(1, min(size, round(exact / lanes) * lanes))


def prune(
    state: Mapping[str, Tensor], layers: Iterable[Units], values: Mapping[str, Tensor], ratio: float, how: Importance
) -> tuple[dict[str, int], dict[str, Tensor]]:
    """Return the constructor's arguments of the smaller network and its parameters.

    Args:
        state: the network's state dict.
        layers: its units.
        values: see `importances`.
        ratio: share of the units of every layer to take out, from 0 to 1.
        how: what `values` are.
    """
    smaller = dict(state)
    options: dict[str, int] = {}
    for units in layers:
        kept = num_kept(units.size, ratio)
        best = importances(units, values, how).topk(kept).indices.sort().values
        options |= {units.option: kept, **units.also}
        for part in units.slices:
            smaller[part.name] = smaller[part.name].index_select(part.dim, _places(best, part, units.size))
    return options, smaller


def pruned(
    module: Any,
    ratio: float,
    *,
    how: Importance,
    batches: Iterable[Mapping[str, Tensor]],
    loss: Callable[[nn.Module, Mapping[str, Tensor]], Tensor],
) -> tuple[dict[str, int], dict[str, Tensor]]:
    """Return the constructor's arguments and the state dict of a module whose network is smaller.

    Args:
        module: a LightningModule; what its `scorer`, the network that predicts, becomes, stands for `network` and
            `average` alike.
        ratio: see `prune`.
        how: what makes a unit important.
        batches: training rows, for `taylor`.
        loss: of a network on a batch, a scalar.
    """
    network = deepcopy(module.scorer).requires_grad_(True).eval()
    values = {name: parameter.detach() for name, parameter in network.named_parameters()}
    if how == "taylor":
        for batch in batches:
            torch.autograd.backward(loss(network, batch))
        values = {name: p.detach() * p.grad for name, p in network.named_parameters() if p.grad is not None}
    options, smaller = prune(network.state_dict(), network.units(), values, ratio, how)
    prefixes = ("network.",) if module.average is None else ("network.", "average.")
    state = {name: value for name, value in module.state_dict().items() if not name.startswith(prefixes)}
    return options, state | {prefix + name: value for prefix in prefixes for name, value in smaller.items()}


def _by_unit(value: Tensor, part: Slice, size: int) -> Tensor:
    """Elements of each unit, [size, elements]."""
    along = value.movedim(part.dim, 0).reshape(part.outer, size, -1)
    return along.transpose(0, 1).reshape(size, -1)


def _places(units: Tensor, part: Slice, size: int) -> Tensor:
    """Indices along the parameter's dimension of the chosen units."""
    outer = torch.arange(part.outer).view(-1, 1, 1) * size * part.inner
    return (outer + units.view(1, -1, 1) * part.inner + torch.arange(part.inner).view(1, 1, -1)).flatten()
