"""Several optimizer steps per call are the steps of a plain loop."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from models.optim import Steps, learning_rate, parameter_groups


def make_module(max_steps: int = -1) -> SimpleNamespace:
    def tracker() -> SimpleNamespace:
        return SimpleNamespace(ready=0, completed=0)

    progress = SimpleNamespace(total=tracker(), current=tracker())
    loops = SimpleNamespace(
        epoch_loop=SimpleNamespace(manual_optimization=SimpleNamespace(optim_step_progress=progress))
    )

    class Trainer:
        fit_loop = loops

        @property
        def global_step(self) -> int:
            return progress.total.completed

    trainer = Trainer()
    trainer.max_steps, trainer.strategy = max_steps, None
    return SimpleNamespace(trainer=trainer)


def make_network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 16), nn.ReLU(), nn.Dropout(0.2), nn.Linear(16, 1))


def make_batches(count: int) -> list[dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(1)
    return [
        {"x": torch.randn(8, 5, generator=generator), "target": torch.rand(8, 1, generator=generator)}
        for _ in range(count)
    ]


def train(
    calls: list[int], *, max_steps: int = -1, clip: float | None = 0.5
) -> tuple[nn.Module, nn.Module, torch.Tensor, int]:
    network, average = make_network(), make_network()
    optimizer = torch.optim.AdamW(network.parameters(), lr=1.0, fused=True)
    module = make_module(max_steps)

    def schedule(step: int) -> float:
        return learning_rate(step, peak=0.01, warmup_steps=3, total_steps=12, schedule="cosine")

    steps = Steps(module, optimizer, network, average=average, decay=0.9, clip=clip, schedule=schedule, seed=7)
    batches, losses = make_batches(sum(calls)), []
    for size in calls:
        call, batches = batches[:size], batches[size:]
        losses.append(steps.take(call, lambda batch: ((network(batch["x"]) - batch["target"]) ** 2).mean()))
    return network, average, torch.cat(losses), module.trainer.global_step


def assert_same(one: nn.Module, other: nn.Module) -> None:
    for a, b in zip(one.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("calls", [[12], [5, 5, 2], [1, 11]])
def test_how_steps_are_cut_into_calls_changes_nothing(calls):
    network, average, losses, num_steps = train([1] * 12)
    other, other_average, other_losses, other_steps = train(calls)
    assert_same(network, other)
    assert_same(average, other_average)
    assert torch.equal(losses, other_losses)
    assert num_steps == other_steps == 12


def test_steps_are_those_of_a_plain_loop_with_clipping_schedule_and_average():
    network = make_network()
    average = AveragedModel(make_network(), multi_avg_fn=get_ema_multi_avg_fn(0.9))
    optimizer = torch.optim.AdamW(network.parameters(), lr=1.0, fused=True)
    for step, batch in enumerate(make_batches(12)):
        torch.manual_seed(7 * 1_000_003 * 1_009 + step * 1_009)
        ((network(batch["x"]) - batch["target"]) ** 2).mean().backward()
        nn.utils.clip_grad_norm_(network.parameters(), 0.5)
        optimizer.param_groups[0]["lr"] = learning_rate(
            step, peak=0.01, warmup_steps=3, total_steps=12, schedule="cosine"
        )
        optimizer.step()
        optimizer.zero_grad()
        average.multi_avg_fn = get_ema_multi_avg_fn(min(0.9, (1 + step) / (10 + step)))
        average.n_averaged.fill_(1)  # torch copies at the first update; ours averages from the start
        average.update_parameters(network)
    ours, our_average, _, _ = train([12])
    assert_same(network, ours)
    for a, b in zip(average.module.parameters(), our_average.parameters(), strict=True):
        torch.testing.assert_close(a, b)


def test_max_steps_is_kept_within_a_call():
    *_, losses, num_steps = train([8, 8], max_steps=10)
    assert num_steps == len(losses) == 10


def test_without_clipping_steps_differ():
    assert not torch.equal(train([12])[2], train([12], clip=None)[2])


def test_groups_have_rates_of_their_own_and_what_is_frozen_is_averaged_with_nothing():
    network, average = make_network(), make_network()
    network[0].requires_grad_(False)
    groups = [{"params": [network[3].weight], "lr_scale": 1.0}, {"params": [network[3].bias], "lr_scale": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=1.0, weight_decay=0.0, fused=True)
    rates = {"average": average, "decay": 0.9, "clip": None, "schedule": lambda step: 0.01, "seed": 7}
    steps = Steps(make_module(), optimizer, network, **rates)
    steps.take(make_batches(5), lambda batch: ((network(batch["x"]) - batch["target"]) ** 2).mean())
    begun = make_network()
    assert torch.equal(network[3].bias, begun[3].bias)
    assert not torch.equal(network[3].weight, begun[3].weight)
    assert torch.equal(average[0].weight, begun[0].weight)
    assert 0 < (average[3].weight - begun[3].weight).abs().max() < (network[3].weight - begun[3].weight).abs().max()


def test_where_there_are_few_steps_the_rate_rises_no_faster_than_it_may():
    rates = [
        learning_rate(step, peak=3.0, warmup_steps=4, total_steps=40, schedule="cosine", least_warmup=300)
        for step in range(40)
    ]
    assert rates[:20] == pytest.approx([0.01 * step for step in range(1, 21)])
    assert max(rates) < 0.35
    assert rates[-1] < 0.01


@pytest.mark.parametrize(
    ("step", "schedule", "expected"),
    [
        (0, "cosine", 0.1),
        (9, "cosine", 1.0),
        (10, "cosine", 1.0),
        (55, "cosine", 0.5),
        (100, "cosine", 0.0),
        (99, "constant", 1.0),
    ],
)
def test_the_rate_warms_up_and_then_follows_its_schedule(step, schedule, expected):
    rate = learning_rate(step, peak=1.0, warmup_steps=10, total_steps=100, schedule=schedule)
    assert rate == pytest.approx(expected)


def test_only_matrices_are_decayed():
    decayed, plain = parameter_groups(make_network(), weight_decay=0.3)
    assert [p.ndim for p in decayed["params"]] == [2, 2]
    assert decayed["weight_decay"] == 0.3
    assert [p.ndim for p in plain["params"]] == [1, 1]
    assert plain["weight_decay"] == 0.0
