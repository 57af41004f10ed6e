"""The order of training rows: a pure function of (seed, epoch, global batch size)."""

import pytest
import torch

from datamodules import loading
from datamodules.loading import TensorLoader, epoch_order


def make_loader(rows: int = 103, **changes) -> TensorLoader:
    tensors = {"numeric": torch.arange(rows).float().unsqueeze(1), "target": (torch.arange(rows) % 10 == 0).float()}
    options = {"batch_size": 8, "shuffle": True, "seed": 3, "batches_per_call": 4}
    return TensorLoader(tensors, **{**options, **changes})


def rows_of(call: list[dict[str, torch.Tensor]]) -> list[list[int]]:
    return [batch["numeric"].flatten().int().tolist() for batch in call]


def batches_of(loader: TensorLoader) -> list[list[int]]:
    return [batch for call in loader for batch in rows_of(call)]


def test_an_epoch_has_each_row_once_and_nothing_is_dropped():
    batches = batches_of(make_loader())
    assert sorted(row for batch in batches for row in batch) == list(range(103))
    assert [len(batch) for batch in batches] == [8] * 12 + [7]


def test_epochs_differ_and_come_back_with_seed_and_epoch():
    loader = make_loader()
    first = batches_of(loader)
    loader.set_epoch(1)
    second = batches_of(loader)
    again = make_loader()
    again.set_epoch(1)
    assert first != second
    assert batches_of(again) == second
    assert batches_of(make_loader(seed=4)) != first


@pytest.mark.parametrize("batches_per_call", [1, 3, 100])
def test_the_mini_batches_do_not_depend_on_how_many_are_handed_out_at_once(batches_per_call):
    assert batches_of(make_loader(batches_per_call=batches_per_call)) == batches_of(make_loader())


@pytest.mark.parametrize("world_size", [2, 3, 5])
@pytest.mark.parametrize("shuffle", [True, False])
def test_ranks_together_see_the_global_batches_of_one_process(monkeypatch, world_size, shuffle):
    whole = batches_of(make_loader(shuffle=shuffle))
    parts = []
    for rank in range(world_size):
        monkeypatch.setattr(loading, "rank_and_world_size", lambda rank=rank: (rank, world_size))
        parts.append(batches_of(make_loader(shuffle=shuffle)))
    for index, batch in enumerate(whole):
        assert sorted(row for part in parts for row in part[index]) == sorted(batch)


@pytest.mark.parametrize("handed_out", [1, 2, 3, 4])
def test_a_restored_loader_goes_on_where_it_was(handed_out):
    loader = make_loader()
    loader.set_epoch(2)
    iterator = iter(loader)
    for _ in range(handed_out):
        next(iterator)
    state = loader.state_dict()
    rest = [rows_of(call) for call in iterator]

    other = make_loader()
    other.load_state_dict(state)
    other.set_epoch(2)
    if rest:
        assert [rows_of(call) for call in other] == rest
    other.set_epoch(3)
    loader.set_epoch(3)
    assert batches_of(other) == batches_of(loader)


def test_evaluation_keeps_the_order_and_gives_single_batches():
    batches = list(make_loader(shuffle=False, batches_per_call=None))
    assert torch.cat([batch["numeric"] for batch in batches]).flatten().tolist() == list(range(103))


def test_evaluation_has_each_row_also_after_one_that_was_cut_short():
    loader = make_loader(shuffle=False, batches_per_call=None)
    iterator = iter(loader)
    next(iterator), next(iterator)  # as Lightning's sanity check does
    for _ in range(2):
        assert torch.cat([batch["numeric"] for batch in loader]).flatten().tolist() == list(range(103))


def test_balanced_sampling_draws_about_the_share_of_positives():
    positives = torch.arange(0, 1000, 50)
    order = epoch_order(10_000, seed=0, epoch=0, positives=positives, share=0.3)
    share = torch.isin(order, positives).float().mean()
    assert len(order) == 10_000
    assert 0.27 < share < 0.33


def test_rows_and_waiting_time_are_counted():
    loader = make_loader()
    batches_of(loader)
    assert loader.rows_seen == 103
    assert loader.seconds_waiting > 0


def test_tensors_of_different_lengths_are_refused():
    with pytest.raises(ValueError, match="one length"):
        TensorLoader({"a": torch.zeros(3), "b": torch.zeros(4)}, batch_size=2, shuffle=False)
