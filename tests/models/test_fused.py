"""The fused update is AdamW's own step, bit for bit."""

from copy import deepcopy

import pytest
import torch
from torch import nn

from models.fused import FusedUpdate
from models.optim import parameter_groups


def make(**options: object) -> tuple[nn.Sequential, torch.optim.AdamW]:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(5, 16), nn.ReLU(), nn.Linear(16, 2))
    return network, torch.optim.AdamW(parameter_groups(network, 0.1), lr=0.01, **{"fused": True, **options})


def step(network: nn.Module, optimizer: torch.optim.AdamW, number: int, *, update: object) -> None:
    for group in optimizer.param_groups:
        group["lr"] = 0.01 / (1 + number)
    inputs = torch.randn(8, 5, generator=torch.Generator().manual_seed(number))
    network.zero_grad()
    (network(inputs) ** 2).mean().backward()
    if number == 3:
        network[0].bias.grad = None
    update()


def assert_same(one: nn.Module, other: nn.Module, optimizer: torch.optim.AdamW, peer: torch.optim.AdamW) -> None:
    for p, q in zip(one.parameters(), other.parameters(), strict=True):
        assert torch.equal(p, q)
        assert optimizer.state[p].keys() == peer.state[q].keys()
        assert all(torch.equal(optimizer.state[p][name], peer.state[q][name]) for name in optimizer.state[p])


@pytest.mark.parametrize("options", [{}, {"fused": False}, {"amsgrad": True}, {"maximize": True}])
def test_steps_are_those_of_adamw(options):
    (one, optimizer), (other, peer) = make(**options), make(**options)
    update = FusedUpdate(optimizer)
    for number in range(6):
        step(one, optimizer, number, update=update)
        step(other, peer, number, update=peer.step)
    assert_same(one, other, optimizer, peer)


def test_moments_that_are_loaded_later_are_the_ones_that_count():
    (one, optimizer), (other, peer) = make(), make()
    update = FusedUpdate(optimizer)
    for number in range(2):
        step(one, optimizer, number, update=update)
        step(other, peer, number, update=peer.step)
    step(one, optimizer, 7, update=update)
    one.load_state_dict(other.state_dict())
    optimizer.load_state_dict(deepcopy(peer.state_dict()))
    step(one, optimizer, 8, update=update)
    step(other, peer, 8, update=peer.step)
    assert_same(one, other, optimizer, peer)


def test_state_that_was_dropped_begins_again():
    (one, optimizer), (other, peer) = make(), make()
    update = FusedUpdate(optimizer)
    for number in range(4):
        if number == 2:
            optimizer.state.clear()
            peer.state.clear()
        step(one, optimizer, number, update=update)
        step(other, peer, number, update=peer.step)
    assert_same(one, other, optimizer, peer)


def test_a_plain_step_does_not_go_through_the_optimizer(monkeypatch):
    network, optimizer = make()
    update = FusedUpdate(optimizer)
    step(network, optimizer, 0, update=update)
    monkeypatch.setattr(optimizer, "step", lambda: pytest.fail("AdamW.step was called"))
    step(network, optimizer, 1, update=update)
