"""Dropout of rows falls alike on any number of ranks."""

import pytest
import torch
from torch.nn import functional

from models.dropout import RowDropout


def dropped(values: torch.Tensor, rank: int, world_size: int) -> torch.Tensor:
    layer = RowDropout(0.3).train()
    layer.rows = (rank, world_size, len(values))
    torch.manual_seed(5)
    return layer(values[rank::world_size])


@pytest.mark.parametrize("world_size", [2, 3, 8, 11])
def test_the_rows_of_all_ranks_are_those_of_one_process(world_size):
    values = torch.rand(10, 4, 3) + 1
    whole = dropped(values, 0, 1)
    assert 0.1 < (whole == 0).float().mean() < 0.5
    for rank in range(world_size):
        assert torch.equal(dropped(values, rank, world_size), whole[rank::world_size])


def test_a_process_alone_drops_as_torch_does():
    values = torch.rand(64, 16)
    torch.manual_seed(1)
    expected = functional.dropout(values, 0.3, training=True)
    torch.manual_seed(1)
    assert torch.equal(RowDropout(0.3).train()(values), expected)


def test_nothing_is_dropped_in_evaluation_or_with_probability_zero():
    values = torch.rand(8, 4)
    assert torch.equal(RowDropout(0.3).eval()(values), values)
    assert torch.equal(RowDropout(0.0).train()(values), values)
