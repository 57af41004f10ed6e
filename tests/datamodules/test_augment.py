"""Augmentation is a function of (seed, epoch, sample): of no batch, no rank and no generator."""

import numpy as np
import pytest
import torch

from datamodules import augment
from datamodules.augment import AugmentedLoader, augmented, beta, mixed, moved, uniform

NO_POLICY = {"policy": "none", "num_ops": 2, "magnitude": 9}
NONE = {"flip": False, "translate": 0, **NO_POLICY, "cutout": 0, "mixup": 0.0, "cutmix": 0.0}
ALL = {"flip": True, "translate": 2, **NO_POLICY, "policy": "rand", "cutout": 3, "mixup": 0.4, "cutmix": 1.0}
FILL = torch.tensor([1, 2, 3], dtype=torch.uint8)


def images(num=40, height=6, width=8):
    generator = torch.Generator().manual_seed(0)
    return torch.randint(10, 256, (num, height, width, 3), generator=generator, dtype=torch.uint8)


def changed(some, rows, how, *, seed=0, epoch=0):
    return augmented(some, rows, {**NONE, **how}, seed=seed, epoch=epoch, fill=FILL)


def test_numbers_are_uniform_and_independent():
    found = uniform(3, 1, torch.arange(20_000), 0, 2)
    assert found.dtype == torch.float32
    assert 0 <= float(found.min()) < 0.001
    assert 0.999 < float(found.max()) < 1
    assert torch.corrcoef(found.T)[0, 1].abs() < 0.02
    assert (torch.histc(found, 10, 0, 1) / 40_000 - 0.1).abs().max() < 0.01
    for other in (uniform(4, 1, torch.arange(20_000), 0, 2), uniform(3, 2, torch.arange(20_000), 0, 2)):
        assert torch.corrcoef(torch.stack([found[:, 0], other[:, 0]]))[0, 1].abs() < 0.02
    assert torch.equal(uniform(3, 1, torch.tensor([7, 19_999]), 0, 2), found[[7, 19_999]])


def test_a_sample_is_changed_alike_in_any_batch():
    whole, rows = changed(images(), torch.arange(40), ALL, epoch=3), torch.arange(40)
    order = torch.randperm(40)
    assert torch.equal(changed(images()[order], order, ALL, epoch=3), whole[order])
    assert torch.equal(changed(images()[5:6], rows[5:6], ALL, epoch=3), whole[5:6])
    assert not torch.equal(changed(images(), rows, ALL, epoch=4), whole)
    assert not torch.equal(changed(images(), rows, ALL, epoch=3, seed=1), whole)


def test_every_second_epoch_is_the_mirror_image():
    some, rows = images(), torch.arange(40)
    even, odd, third = (changed(some, rows, {"flip": True}, epoch=epoch) for epoch in (0, 1, 2))
    assert torch.equal(even, third)
    assert torch.equal(odd, even.flip(2))
    is_same = (even == some).flatten(1).all(dim=1)
    assert 8 < int(is_same.sum()) < 32
    assert torch.equal(even[~is_same], some[~is_same].flip(2))


def test_moving_reflects_at_the_edges():
    row = torch.arange(5, dtype=torch.uint8).view(1, 1, 5, 1).expand(1, 3, 5, 3)
    assert moved(row, torch.tensor([[0, 2]]))[0, 0, :, 0].tolist() == [2, 1, 0, 1, 2]
    assert moved(row, torch.tensor([[0, -1]]))[0, 0, :, 0].tolist() == [1, 2, 3, 4, 3]
    some = images()
    found = changed(some, torch.arange(40), {"translate": 2})
    assert found.shape == some.shape
    inner = {tuple(found[0, 2 + a, 2 + b].tolist()) for a in range(2) for b in range(4)}
    assert inner <= {tuple(pixel.tolist()) for line in some[0] for pixel in line}
    assert changed(images(4, 1, 1), torch.arange(4), {"translate": 2}).shape == (4, 1, 1, 3)


def test_cutout_fills_a_square_with_the_mean_colour():
    found = changed(images(200), torch.arange(200), {"cutout": 3})
    is_cut = (found == FILL).all(dim=3)
    assert is_cut.flatten(1).sum(dim=1).max() == 9
    assert is_cut.flatten(1).sum(dim=1).min() >= 2
    assert torch.equal(found[~is_cut], images(200)[~is_cut])


@pytest.mark.parametrize("alpha", [0.2, 1.0, 3.0])
def test_shares_are_of_the_beta_distribution(alpha):
    found = beta(uniform(0, 0, torch.arange(20_000), 0, 1)[:, 0], alpha)
    assert float(found.mean()) == pytest.approx(0.5, abs=0.01)
    assert float(found.var()) == pytest.approx(1 / (4 * (2 * alpha + 1)), rel=0.05)


def test_mixup_takes_shares_of_two_pictures_and_cutmix_a_box():
    one, other, rows = torch.full((64, 6, 8, 3), 200.0).byte(), torch.zeros(64, 6, 8, 3).byte(), torch.arange(64)
    found, share = mixed(one, other, rows, {**NONE, "mixup": 0.5}, seed=0, epoch=0)
    torch.testing.assert_close(found[:, 0, 0, 0].float(), 200 * share, atol=0.51, rtol=0)
    assert (found == found[:, :1, :1, :1]).all()
    found, share = mixed(one, other, rows, {**NONE, "cutmix": 1.0}, seed=0, epoch=0)
    assert set(found.unique().tolist()) == {0, 200}
    torch.testing.assert_close((found[..., 0] == 200).float().mean(dim=(1, 2)), share)
    both, shares = mixed(one, other, rows, ALL, seed=0, epoch=0)
    is_box = ((both == 0) | (both == 200)).flatten(1).all(dim=1)
    assert 16 < int(is_box.sum()) < 56
    assert shares.shape == (64,)


def loader(how, **options):
    tensors = {"image": images(), "target": torch.arange(40) % 3, "row": torch.arange(40)}
    settings = {"batch_size": 12, "shuffle": True, "seed": 5, "batches_per_call": 2, **options}
    return AugmentedLoader(tensors, {**NONE, **how}, fill=[1, 2, 3], **settings)


@pytest.mark.parametrize("how", [{}, ALL], ids=["plain", "mixed"])
def test_two_ranks_see_what_one_process_sees(how, monkeypatch):
    def seen(rank, world_size):
        where = lambda: (rank, world_size)  # noqa: E731
        monkeypatch.setattr(augment, "rank_and_world_size", where)
        monkeypatch.setattr("datamodules.loading.rank_and_world_size", where)
        given = loader(how)
        given.set_epoch(2)
        return [batch for call in given for batch in call]

    for whole, one, two in zip(seen(0, 1), seen(0, 2), seen(1, 2), strict=True):
        assert whole["global_rows"] == one["global_rows"] == two["global_rows"]
        for name in whole.keys() - {"global_rows"}:
            joined = torch.empty_like(whole[name])
            joined[0::2], joined[1::2] = one[name], two[name]
            assert torch.equal(joined, whole[name]), name


def test_a_mixed_batch_tells_both_classes():
    given = loader(ALL)
    for call in given:
        for batch in call:
            assert batch["other_target"].tolist() == batch["target"].roll(1).tolist()
            assert batch["share"].shape == batch["target"].shape
    plain = next(iter(loader({})))[0]
    assert plain.keys() == {"image", "target", "row", "global_rows"}
    assert np.array_equal(plain["image"], images()[plain["row"]])
