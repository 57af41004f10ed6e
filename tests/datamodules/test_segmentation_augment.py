"""Pictures and masks are changed alike, a sample the same in any batch, and another way each epoch."""

import pytest
import torch

from datamodules.segmentation.augment import MaskLoader, augmented, scaled

NOTHING = {"flip": False, "translate": 0, "scale": 0.0, "brightness": 0.0, "colour": 0.0}
WAYS = [{"flip": True}, {"translate": 3}, {"scale": 0.4}, {"brightness": 0.5}, {"colour": 0.5}]


def pictures(num=6, height=12, width=16):
    """Pictures whose red says what the mask says."""
    mask = torch.randint(0, 2, (num, height // 4, width // 4), generator=torch.Generator().manual_seed(0))
    mask = mask.repeat_interleave(4, 1).repeat_interleave(4, 2).to(torch.uint8)
    return torch.stack([mask * 200, mask * 0 + 50, mask * 0 + 99], dim=3), mask


@pytest.mark.parametrize("way", WAYS)
def test_a_sample_is_changed_alike_in_any_batch_and_otherwise_in_another_epoch(way):
    images, masks = pictures()
    how, rows = {**NOTHING, **way}, torch.tensor([3, 8, 1, 40, 7, 12])
    whole = augmented(images, masks, rows, how, seed=1, epoch=2)
    part = augmented(images[2:4], masks[2:4], rows[2:4], how, seed=1, epoch=2)
    assert torch.equal(whole[0][2:4], part[0])
    assert torch.equal(whole[1][2:4], part[1])
    other = augmented(images, masks, rows, how, seed=1, epoch=3)
    assert not torch.equal(whole[0], other[0])
    assert whole[0].dtype == whole[1].dtype == torch.uint8
    none = augmented(images, masks, rows, NOTHING, seed=1, epoch=2)
    assert torch.equal(none[0], images)
    assert torch.equal(none[1], masks)


@pytest.mark.parametrize("way", WAYS[:2])
def test_a_mask_stays_on_what_it_is_of(way):
    images, masks = pictures()
    found, moved = augmented(images, masks, torch.arange(6), {**NOTHING, **way}, seed=0, epoch=0)
    assert torch.equal(found[..., 0], moved * 200)
    assert not torch.equal(moved, masks)


def test_a_scaled_mask_has_no_new_values_and_its_edges_lie_where_the_pictures_are():
    images, masks = pictures()
    found, larger = scaled(images, masks * 7, torch.tensor([1.0, 1.3, 0.8, 2.0, 0.6, 1.1]))
    assert set(larger.unique().tolist()) <= {0, 7}
    assert torch.equal(found[0], images[0])
    assert torch.equal(larger[0], masks[0] * 7)
    agree = (found[..., 0] > 100) == (larger == 7)
    assert agree.float().mean() > 0.97


def test_brightness_and_colour_leave_the_mask_and_stay_within_their_shares():
    images, masks = pictures()
    found, same = augmented(images, masks, torch.arange(6), {**NOTHING, "brightness": 0.2}, seed=0, epoch=0)
    assert torch.equal(same, masks)
    ratio = found[..., 2].float() / 99
    assert ratio.min() > 0.79
    assert ratio.max() < 1.21
    assert (ratio.flatten(1).std(dim=1) < 1e-6).all()


def test_batches_of_the_loader_are_changed_by_epoch():
    images, masks = pictures()
    tensors = {"image": images, "target": masks, "row": torch.arange(6)}
    loader = MaskLoader(tensors, {**NOTHING, "translate": 2}, batch_size=4, shuffle=True, seed=0, batches_per_call=2)
    (first,) = list(loader)
    loader.set_epoch(1)
    (second,) = list(loader)
    assert [len(batch["row"]) for batch in first] == [4, 2]
    one, other = (
        {int(row): mask for b in e for row, mask in zip(b["row"], b["target"], strict=True)} for e in (first, second)
    )
    assert sum(not torch.equal(one[row], other[row]) for row in range(6)) >= 3
    for batch in first:
        assert torch.equal(batch["image"][..., 0], batch["target"] * 200)
