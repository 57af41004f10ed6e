"""A pruned network is the network without the units taken out, and those are the ones that matter least.

Where each architecture keeps its units is written out here once more, by plain views and not by `Slice`.
"""

from copy import deepcopy

import pytest
import torch
from torch.nn import functional

from models.fraud.module import FraudModule
from models.pruning import Slice, Units, importances, num_kept, prune
from models.tabular import MLP, FTTransformer, TabM

SCHEMA = {
    "columns": [
        {"name": "amount", "kind": "numeric", "missing": 0.1, "median": 30.0, "iqr": 20.0, "bins": [0.0, 10.0, 300.0]},
        {"name": "city", "kind": "categorical", "categories": ["a", "b"], "hash_buckets": 0},
        {"name": "when", "kind": "timestamp"},
    ],
    "target": {"name": "fraud", "positive": "1", "negative": "0", "rate": 0.2},
    "cost": {"false_negative": 10.0, "false_positive": 1.0, "alert_budget": 0.1},
    "weight": None,
}
SIZES = {"num_blocks": 2, "dropout": 0.1}
CLASSES = {"mlp": MLP, "tabm": TabM, "ft_transformer": FTTransformer}
OPTIONS = {
    "mlp": {"width": 16, "category_size": 3, **SIZES},
    "tabm": {"width": 16, "embedding_size": 12, "num_members": 4, "category_size": 3, **SIZES},
    "ft_transformer": {"width": 24, "num_heads": 4, **SIZES},
}
HALF = {
    "mlp": {"width": 8},
    "tabm": {"width": 8, "embedding_size": 6},
    "ft_transformer": {"num_heads": 2, "head_size": 6, "feed_size": 24},
}
TRAINING = {
    "lr": 1e-3,
    "weight_decay": 0.0,
    "warmup_share": 0.0,
    "schedule": "constant",
    "gradient_clip": None,
    "loss": "bce",
    "focal_gamma": 0.0,
    "positive_weight": 1.0,
    "calibration": "platt",
    "compile": False,
}
each_network = pytest.mark.parametrize("name", CLASSES)


def build(name, **options):
    torch.manual_seed(0)
    network = CLASSES[name](SCHEMA, **OPTIONS[name] | options).eval()
    with torch.no_grad():  # no two units alike, no bias of zero
        for parameter in network.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return network


def rows_of(number, seed):
    generator = torch.Generator().manual_seed(seed)
    amount = 300 * torch.rand(number, 1, generator=generator)
    return {
        "numeric": torch.where(torch.rand(number, 1, generator=generator) < 0.1, torch.nan, amount),
        "categorical": torch.randint(0, 3, (number, 1), generator=generator),
        "timestamp": torch.randint(0, 10**9, (number, 1), generator=generator),
        "target": (amount[:, 0] > 200).float(),
        "weight": torch.ones(number),
    }


def logits_of(network, rows):
    with torch.no_grad():
        return network(rows["numeric"], rows["categorical"], rows["timestamp"])


def layers(network):
    """Per layer, views [units, ...]: of the parameters that compute its units, and of those that use them."""
    if isinstance(network, MLP):
        linear = [*network.blocks, network.head]
        return [([own.weight, own.bias], [next_.weight.T]) for own, next_ in zip(linear, linear[1:], strict=False)]
    if isinstance(network, TabM):
        linear, first = [*network.blocks, network.head], network.embedding
        made = [[first.weight, first.bias], *([own.weight.T, own.output_scale.T, own.bias.T] for own in linear)]
        used = [[own.weight, own.input_scale.T] for own in linear]
        return list(zip(made, used, strict=False))
    found = []
    for block in network.blocks:
        width, heads, size, feed = 24, block.num_heads, block.head_size, block.feed_out.in_features
        qkv = [block.qkv.weight.view(3, heads, size, width), block.qkv.bias.view(3, heads, size)]
        gated = [block.feed_in.weight.view(2, feed, width), block.feed_in.bias.view(2, feed)]
        found.append(
            ([part.transpose(0, 1) for part in qkv], [block.out.weight.view(width, heads, size).movedim(1, 0)])
        )
        found.append(([part.transpose(0, 1) for part in gated], [block.feed_out.weight.T]))
    return found


@torch.no_grad()
def scale(network, doomed, *, computed, used):
    """Multiply what computes and what uses the doomed units of every layer."""
    for (made, users), units in zip(layers(network), doomed, strict=True):
        for view in made:
            view[units] *= computed
        for view in users:
            view[units] *= used


def half_of_each_layer(network):
    generator = torch.Generator().manual_seed(3)
    sizes = [len(made[0]) for made, _ in layers(network)]
    return [torch.randperm(size, generator=generator)[: size // 2] for size in sizes]


def gradients(network, rows):
    network = deepcopy(network)
    logits = network(rows["numeric"], rows["categorical"], rows["timestamp"])
    target = rows["target"].unsqueeze(1).expand_as(logits)
    functional.binary_cross_entropy_with_logits(logits, target).backward()
    return {name: p.detach() * p.grad for name, p in network.named_parameters()}


def pruned(name, network, ratio, how, rows=None):
    values = dict(network.named_parameters()) if how == "magnitude" else gradients(network, rows)
    options, state = prune(network.state_dict(), network.units(), values, ratio, how)
    smaller = CLASSES[name](SCHEMA, **OPTIONS[name] | options).eval()
    smaller.load_state_dict(state)
    return options, smaller


@each_network
def test_the_network_without_its_smallest_units_is_the_network_with_them_silenced(name):
    network, rows = build(name), rows_of(50, seed=1)
    doomed = half_of_each_layer(network)
    scale(network, doomed, computed=0.1, used=0.1)
    options, smaller = pruned(name, network, 0.5, "magnitude")
    assert options == HALF[name]
    whole = logits_of(network, rows)
    scale(network, doomed, computed=1.0, used=0.0)
    silenced = logits_of(network, rows)
    assert not torch.allclose(whole, silenced, atol=1e-4)
    torch.testing.assert_close(logits_of(smaller, rows), silenced, atol=1e-6, rtol=1e-5)


@each_network
def test_taylor_takes_out_units_that_nothing_uses_however_large_they_are(name):
    network, rows = build(name), rows_of(256, seed=1)
    scale(network, half_of_each_layer(network), computed=5.0, used=0.0)
    expected = logits_of(network, rows)
    options, smaller = pruned(name, network, 0.5, "taylor", rows)
    assert options == HALF[name]
    torch.testing.assert_close(logits_of(smaller, rows), expected, atol=1e-6, rtol=1e-5)
    by_size = pruned(name, network, 0.5, "magnitude")[1]
    assert not torch.allclose(logits_of(by_size, rows), expected, atol=1e-2)


@each_network
def test_nothing_is_lost_at_ratio_zero_and_one_unit_a_layer_is_kept_near_one(name):
    network, rows = build(name), rows_of(20, seed=1)
    whole, smallest = pruned(name, network, 0.0, "magnitude")[1], pruned(name, network, 0.99, "magnitude")
    assert torch.equal(logits_of(whole, rows), logits_of(network, rows))
    assert smallest[0] == {option: size if option == "head_size" else 1 for option, size in HALF[name].items()}
    assert torch.isfinite(logits_of(smallest[1], rows)).all()
    assert {len(made[0]) for made, _ in layers(smallest[1])} == {1}


@pytest.mark.parametrize(
    ("size", "ratio", "kept"),
    [
        (256, 0.5, 128),
        (256, 0.3, 176),  # 179.2: the nearest of 176 and 184
        (256, 0.28, 184),  # 184.32
        (100, 0.1, 88),  # 90
        (20, 0.5, 8),  # 10
        (12, 0.5, 6),  # under one lane: to the unit
        (4, 0.4, 2),  # 2.4
        (12, 0.0, 12),  # never more than there are
        (256, 0.999, 1),  # never none
        (1, 0.9, 1),
    ],
)
def test_sizes_are_whole_lanes_or_units(size, ratio, kept):
    assert num_kept(size, ratio) == kept


def test_importance_is_of_all_elements_of_a_unit_wherever_they_lie():
    units = Units("width", 2, (Slice("qkv", 0, outer=2, inner=2), Slice("out", 1)))
    values = {
        "qkv": torch.tensor([1.0, 2, 10, 20, 3, 4, 30, -40]),  # [outer, units, inner]
        "out": torch.tensor([[5.0, 50], [-6, 60]]),
    }
    first, second = [1, 2, 3, 4, 5, -6], [10, 20, 30, -40, 50, 60]
    assert importances(units, values, "magnitude").tolist() == [sum(x * x for x in own) for own in (first, second)]
    assert importances(units, values, "taylor").tolist() == [sum(own) ** 2 for own in (first, second)]


@each_network
@pytest.mark.parametrize("how", ["magnitude", "taylor"])
@pytest.mark.parametrize("decay", [None, 0.99])
def test_a_pruned_module_keeps_what_it_decides_by_and_leaves_the_first_as_it_was(name, how, decay):
    module = FraudModule(SCHEMA, build(name), **TRAINING, ema_decay=decay).eval()
    scale(module.scorer, half_of_each_layer(module.scorer), computed=0.0, used=0.0)
    module.threshold_cost.fill_(0.3)
    module.calibration.offset.fill_(-0.7)
    before = {key: value.clone() for key, value in module.state_dict().items()}
    rows = rows_of(256, seed=1)

    options, state = module.pruned(0.5, how=how, batches=[rows])

    assert options == HALF[name]
    smaller = FraudModule(SCHEMA, build(name, **options), **TRAINING, ema_decay=decay).eval()
    smaller.load_state_dict(state)
    inputs = [rows[key] for key in ("numeric", "categorical", "timestamp")]
    with torch.no_grad():
        torch.testing.assert_close(smaller(*inputs), module(*inputs), atol=1e-6, rtol=1e-5)
        assert torch.equal(smaller.network(*inputs), smaller.scorer(*inputs))
    assert (smaller.threshold_cost, smaller.calibration.offset) == (torch.tensor(0.3), torch.tensor(-0.7))
    assert all(torch.equal(value, before[key]) for key, value in module.state_dict().items())
    assert all(parameter.grad is None for parameter in module.parameters())
