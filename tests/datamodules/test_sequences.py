"""Batches of token ids: filled by a budget, in an order that is a pure function of (seed, epoch, batch_tokens)."""

import numpy as np
import pyarrow as pa
import pytest
import torch

from datamodules import sequences
from datamodules.sequences import SequenceLoader, Sequences, bucket_lengths, by_length, cut

PAD = 0


def lengths_of(rows):
    return np.clip(np.random.default_rng(7).lognormal(3.5, 0.5, rows).astype(int), 1, 200).tolist()


def make_loader(rows=1003, *, lengths=None, **changes):
    lengths = lengths or lengths_of(rows)
    # Row i holds i + 1 as often as it is long: a batch tells by itself what is in it.
    tokens = Sequences.of_lists([[row + 1] * length for row, length in enumerate(lengths)])
    tensors = {"tokens": tokens, "target": torch.arange(len(lengths)) % 3, "row": torch.arange(len(lengths))}
    options = {"pad": PAD, "batch_tokens": 2048, "max_rows": 256, "shuffle": True, "seed": 3, "batches_per_call": 4}
    return SequenceLoader(tensors, **{**options, **changes})


def flat(loader):
    return [batch for call in loader for batch in (call if isinstance(call, list) else [call])]


def rows_of(loader):
    return [batch["row"].tolist() for batch in flat(loader)]


def test_padded_rows_are_as_long_as_the_longest_of_them():
    sequences = Sequences.of_lists([[5, 6, 7], [8], [], [9, 9]])
    assert sequences.lengths.tolist() == [3, 1, 0, 2]
    assert sequences.padded(torch.tensor([3, 1, 2]), 0).tolist() == [[9, 9], [8, 0], [0, 0]]
    assert sequences.padded(torch.tensor([1]), -1, length=3).tolist() == [[8, -1, -1]]
    assert sequences.padded(torch.tensor([0]), 0).dtype == torch.int64
    assert sequences.padded(torch.tensor([], dtype=torch.int64), 0).shape == (0, 0)
    assert Sequences.of_lists([[]]).padded(torch.tensor([0, 0]), 0, length=2).tolist() == [[0, 0], [0, 0]]


def test_a_slice_of_a_column_is_read_without_a_copy():
    column = pa.array([[1], [2, 3], [4, 5, 6], [7]], pa.large_list(pa.int32()))
    part = Sequences.of(column.slice(1, 2))
    assert part.padded(torch.arange(2), 0).tolist() == [[2, 3, 0], [4, 5, 6]]
    assert part.values.data_ptr() == column.values.buffers()[1].address


def test_an_epoch_has_each_row_once_padded_and_with_its_columns():
    lengths = lengths_of(1003)
    batches = flat(make_loader())
    assert sorted(row for batch in batches for row in batch["row"].tolist()) == list(range(1003))
    for batch in batches:
        assert batch["tokens"].shape[1] == max(lengths[row] for row in batch["row"])
        assert batch["global_rows"] == len(batch["row"])
        for row, ids, target in zip(batch["row"].tolist(), batch["tokens"].tolist(), batch["target"], strict=True):
            assert ids == [row + 1] * lengths[row] + [PAD] * (len(ids) - lengths[row])
            assert target == row % 3


@pytest.mark.parametrize(("batch_tokens", "max_rows"), [(256, 1000), (2048, 1000), (2048, 16), (1, 1000)])
def test_batches_keep_to_their_budget(batch_tokens, max_rows):
    for batch in flat(make_loader(batch_tokens=batch_tokens, max_rows=max_rows)):
        assert batch["tokens"].numel() <= batch_tokens or len(batch["row"]) == 1
        assert len(batch["row"]) <= max_rows


def test_batches_are_full_but_for_one_a_length():
    sizes = [batch["tokens"].numel() for batch in flat(make_loader(rows=5000))]
    assert np.median(sizes) > 0.93 * 2048


def test_less_than_5_percent_is_padding():
    assert make_loader(rows=5000).padding() < 0.05
    ids = sum(batch["tokens"].numel() for batch in flat(make_loader(rows=5000)))
    assert make_loader(rows=5000).padding() == pytest.approx(1 - sum(lengths_of(5000)) / ids)


def test_buckets_are_never_below_the_length_and_at_most_4_percent_above():
    lengths = np.arange(5000)
    buckets = bucket_lengths(lengths)
    assert (buckets >= lengths).all()
    assert (buckets <= np.maximum(lengths * 1.04, lengths)).all()


def test_cuts_depend_on_lengths_alone():
    ascending = np.array([1, 1, 2, 2, 2, 5, 9, 40])
    assert cut(ascending, 10, 100).tolist() == [0, 5, 6, 7, 8]
    assert cut(ascending, 10, 2).tolist() == [0, 2, 4, 6, 7, 8]
    assert cut(np.array([], np.int64), 10, 2).tolist() == [0]


def test_epochs_differ_in_their_rows_and_not_in_their_number_and_come_back_with_seed_and_epoch():
    loader = make_loader()
    first = rows_of(loader)
    loader.set_epoch(1)
    second = rows_of(loader)
    again = make_loader()
    again.set_epoch(1)
    assert first != second
    assert {frozenset(rows) for rows in first} != {frozenset(rows) for rows in second}
    assert len(first) == len(second) == loader.num_batches
    assert sorted(map(len, first)) == sorted(map(len, second))
    assert rows_of(again) == second
    assert rows_of(make_loader(seed=4)) != first


@pytest.mark.parametrize("batches_per_call", [1, 3, 1000])
def test_the_mini_batches_do_not_depend_on_how_many_are_handed_out_at_once(batches_per_call):
    loader = make_loader(batches_per_call=batches_per_call)
    assert rows_of(loader) == rows_of(make_loader())
    assert len(list(loader)) == len(loader) == -(-loader.num_batches // batches_per_call)


@pytest.mark.parametrize("world_size", [2, 3])
@pytest.mark.parametrize("shuffle", [True, False])
def test_ranks_together_see_the_global_batches_of_one_process(monkeypatch, world_size, shuffle):
    options = {"shuffle": shuffle, "batch_tokens": 300}  # some batches have fewer rows than there are ranks
    whole = flat(make_loader(**options))
    parts = []
    for rank in range(world_size):
        monkeypatch.setattr(sequences, "rank_and_world_size", lambda rank=rank: (rank, world_size))
        parts.append(flat(make_loader(**options)))
    for index, batch in enumerate(whole):
        for rank, part in enumerate(parts):
            assert torch.equal(part[index]["tokens"], batch["tokens"][rank::world_size])
            assert torch.equal(part[index]["row"], batch["row"][rank::world_size])
            assert part[index]["global_rows"] == batch["global_rows"]


@pytest.mark.parametrize("handed_out", [1, 2, 4])
def test_a_restored_loader_goes_on_where_it_was(handed_out):
    loader = make_loader()
    loader.set_epoch(2)
    iterator = iter(loader)
    for _ in range(handed_out):
        next(iterator)
    state = loader.state_dict()
    rest = [[batch["row"].tolist() for batch in call] for call in iterator]
    other = make_loader()
    other.load_state_dict(state)
    other.set_epoch(2)
    assert rest
    assert [[batch["row"].tolist() for batch in call] for call in other] == rest
    for each in (loader, other):
        each.set_epoch(3)
    assert rows_of(other) == rows_of(loader)


def test_evaluation_goes_by_length_and_has_each_row_once_also_after_one_that_was_cut_short():
    loader = make_loader(shuffle=False, batches_per_call=None)
    iterator = iter(loader)
    next(iterator), next(iterator)  # as Lightning's sanity check does
    for _ in range(2):
        rows = [row for rows in rows_of(loader) for row in rows]
        assert sorted(rows) == list(range(1003))
        buckets = bucket_lengths(np.array(lengths_of(1003)))[rows]
        assert (np.diff(buckets) >= 0).all()


def test_rows_tokens_and_waiting_time_are_counted():
    loader = make_loader()
    rows_of(loader)
    assert loader.rows_seen == 1003
    assert loader.tokens_seen == sum(lengths_of(1003))
    assert loader.seconds_waiting > 0


def test_no_rows_give_no_batches():
    tensors = {"tokens": Sequences.of_lists([]), "row": torch.arange(0)}
    loader = SequenceLoader(tensors, pad=0, batch_tokens=10, max_rows=10, shuffle=True)
    assert (loader.num_batches, list(loader)) == (0, [])


def test_columns_of_different_lengths_are_refused():
    tensors = {"tokens": Sequences.of_lists([[1]]), "row": torch.arange(2)}
    with pytest.raises(ValueError, match="one length"):
        SequenceLoader(tensors, pad=0, batch_tokens=10, max_rows=10, shuffle=True)


# Rows with two texts


def pairs_of(rows=4000):
    generator = np.random.default_rng(11)
    source = np.clip(generator.lognormal(3.0, 0.5, rows), 2, 150).astype(int)
    target = np.clip(source * generator.lognormal(0.0, 0.25, rows), 2, 150).astype(int)
    return source.tolist(), target.tolist()


def make_pairs(rows=4000, *, lengths=None, **changes):
    lengths = lengths or pairs_of(rows)
    columns = [Sequences.of_lists([[row + 1] * length for row, length in enumerate(side)]) for side in lengths]
    tensors = {"source": columns[0], "target": columns[1], "row": torch.arange(len(lengths[0]))}
    options = {"pad": PAD, "batch_tokens": 2048, "max_rows": 256, "shuffle": True, "seed": 3, "batches_per_call": 4}
    return SequenceLoader(tensors, predicted="target", **{**options, **changes})


def test_an_epoch_has_each_pair_once_and_each_side_padded_on_its_own():
    source, target = pairs_of()
    batches = flat(make_pairs())
    assert sorted(row for batch in batches for row in batch["row"].tolist()) == list(range(4000))
    for batch in batches:
        rows = batch["row"].tolist()
        for side, lengths in (("source", source), ("target", target)):
            assert batch[side].shape == (len(rows), max(lengths[row] for row in rows))
            assert batch[side].sum(dim=1).tolist() == [(row + 1) * lengths[row] for row in rows]
        assert batch["global_rows"] == len(rows)
        assert batch["global_tokens"] == sum(target[row] - 1 for row in rows)


@pytest.mark.parametrize(("batch_tokens", "max_rows"), [(512, 1000), (4096, 64), (1, 1000)])
def test_batches_of_pairs_keep_to_their_budget(batch_tokens, max_rows):
    for batch in flat(make_pairs(batch_tokens=batch_tokens, max_rows=max_rows)):
        assert batch["source"].numel() + batch["target"].numel() <= batch_tokens or len(batch["row"]) == 1
        assert len(batch["row"]) <= max_rows


def test_less_than_5_percent_of_each_side_is_padding():
    # Of 20,000 pairs: with fewer, a batch has rows of many lengths.
    loader = make_pairs(20_000)
    assert max(loader.padding(), loader.padding("source"), loader.padding("target")) < 0.05
    ids = sum(batch["source"].numel() for batch in flat(loader))
    assert loader.padding("source") == pytest.approx(1 - sum(pairs_of(20_000)[0]) / ids)


def test_pairs_lie_up_and_down_by_the_difference_within_the_longer():
    lengths = np.array([[5, 1], [5, 5], [5, 3], [2, 6], [6, 2], [6, 6], [1, 1]])
    order = np.argsort(by_length(lengths), kind="stable")
    assert lengths[order].tolist() == [[1, 1], [5, 1], [5, 3], [5, 5], [2, 6], [6, 6], [6, 2]]
    assert by_length(np.array([[3], [1], [3], [2]])).tolist() == [2, 0, 2, 1]
    assert by_length(np.zeros((0, 2), np.int64)).tolist() == []


def test_cuts_of_pairs_count_the_longest_of_each_side():
    lengths = np.array([[1, 4], [2, 3], [3, 1], [9, 9]])
    assert cut(lengths, 12, 100).tolist() == [0, 2, 3, 4]
    assert cut(lengths, 21, 100).tolist() == [0, 3, 4]


@pytest.mark.parametrize("world_size", [2, 3])
def test_ranks_together_see_the_global_pairs_of_one_process(monkeypatch, world_size):
    whole = flat(make_pairs(1003))
    parts = []
    for rank in range(world_size):
        monkeypatch.setattr(sequences, "rank_and_world_size", lambda rank=rank: (rank, world_size))
        parts.append(flat(make_pairs(1003)))
    for index, batch in enumerate(whole):
        for rank, part in enumerate(parts):
            for name in ("source", "target", "row"):
                assert torch.equal(part[index][name], batch[name][rank::world_size])
            assert [part[index][name] for name in ("global_rows", "global_tokens")] == [
                batch[name] for name in ("global_rows", "global_tokens")
            ]


def test_a_restored_loader_of_pairs_goes_on_where_it_was():
    loader = make_pairs()
    loader.set_epoch(2)
    iterator = iter(loader)
    next(iterator), next(iterator)
    state = loader.state_dict()
    rest = [[batch["row"].tolist() for batch in call] for call in iterator]
    other = make_pairs()
    other.load_state_dict(state)
    other.set_epoch(2)
    assert rest
    assert [[batch["row"].tolist() for batch in call] for call in other] == rest
    other.set_epoch(3)
    assert rows_of(other) != rows_of(loader)


def test_the_tokens_of_both_sides_are_counted():
    loader = make_pairs()
    rows_of(loader)
    assert loader.tokens_seen == sum(map(sum, pairs_of()))
