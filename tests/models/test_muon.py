"""Muon turns a kernel's momentum into its nearest matrix of singular values about one; all else is AdamW's."""

from copy import deepcopy

import pytest
import torch
from torch import Tensor, nn

from models.muon import KERNELS, SIZE, Muon, optimizer_of, orthogonalized
from models.optim import Recipe, adamw

RECIPE: Recipe = {
    "lr": 0.01,
    "weight_decay": 0.1,
    "warmup_share": 0.0,
    "schedule": "constant",
    "gradient_clip": None,
    "ema_decay": None,
    "compile": False,
}


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 16, 3), nn.Conv2d(16, 16, 1))


def step(trained: nn.Module, optimizer: torch.optim.Optimizer, number: int) -> None:
    pictures = torch.randn(8, 3, 7, 7, generator=torch.Generator().manual_seed(number))
    trained.zero_grad()
    (trained(pictures) ** 2).mean().backward()
    optimizer.step()


@pytest.mark.parametrize("shape", [(8, 40), (40, 8), (16, 16), (1, 9)])
def test_singular_values_become_about_one_and_their_directions_stay(shape):
    left, values, right = torch.linalg.svd(torch.randn(*shape, generator=torch.Generator().manual_seed(1)), False)
    values = torch.logspace(0, -2, len(values)) * 37
    found = orthogonalized(left @ torch.diag(values) @ right)
    inner = left.mT @ found @ right.mT
    assert ((inner.diagonal() > 0.6) & (inner.diagonal() < 1.3)).all()
    assert (inner - torch.diag(inner.diagonal())).abs().max() < 1e-4


def test_nothing_moves_nothing():
    assert orthogonalized(torch.zeros(3, 5)).abs().max() == 0


def test_kernels_move_by_their_rate_and_all_else_moves_just_as_by_it():
    trained, peer = network(), network()
    before = deepcopy(trained)
    optimizer = optimizer_of("muon", trained, {**RECIPE, "weight_decay": 0.0})
    for group in optimizer.param_groups:  # as `Steps` does
        group["lr"] *= group.get("lr_scale", 1.0)
    step(trained, optimizer, 0)
    step(peer, adamw(peer, {**RECIPE, "weight_decay": 0.0}), 0)
    for index in (0, 1):
        moved = (trained[index].weight - before[index].weight).detach() / (KERNELS * RECIPE["lr"])
        assert moved.square().mean().sqrt() == pytest.approx(SIZE, rel=0.25)
        assert torch.equal(trained[index].bias, peer[index].bias)
    assert torch.equal(trained[2].weight, peer[2].weight)


def test_weights_decay_at_the_rate():
    trained = network()
    (group,) = [group for group in optimizer_of("muon", trained, RECIPE).param_groups if "momentum" in group]
    before = [p.detach().clone() for p in group["params"]]
    optimizer = Muon([group], lr=0.01)
    for parameter in group["params"]:
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    for parameter, old in zip(group["params"], before, strict=True):
        torch.testing.assert_close(parameter.detach(), old * (1 - 0.01 * 0.1))


def test_it_goes_on_from_a_saved_state_as_if_it_had_not_stopped():
    (one, other), made = (network(), network()), lambda trained: optimizer_of("muon", trained, RECIPE)
    optimizer, peer = made(one), made(other)
    for number in range(3):
        step(one, optimizer, number)
        step(other, peer, number)
    again = made(other)
    again.load_state_dict(deepcopy(peer.state_dict()))
    step(one, optimizer, 3)
    step(other, again, 3)
    pairs: list[tuple[Tensor, Tensor]] = list(zip(one.parameters(), other.parameters(), strict=True))
    assert all(torch.equal(p, q) for p, q in pairs)


def test_adamw_is_one_optimizer_of_all():
    assert type(optimizer_of("adamw", network(), RECIPE)) is torch.optim.AdamW
