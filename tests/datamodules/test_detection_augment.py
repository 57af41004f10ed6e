"""Boxes follow what is done to their pictures, which is a function of seed, epoch and sample."""

import pytest
import torch

from datamodules.detection.augment import AugmentedLoader, augmented, mosaic

NONE = {"flip": False, "scale": 0.0, "translate": 0.0, "colour": 0.0, "mosaic": 0.0}
SIDE = 64


def tensors(num=12, most=3):
    """Dark pictures with one bright rectangle, which is the only object."""
    draw = torch.Generator().manual_seed(0)
    corner = torch.randint(4, 28, (num, 2), generator=draw)
    sides = torch.randint(14, 30, (num, 2), generator=draw)
    image = torch.zeros(num, SIDE, SIDE, 3, dtype=torch.uint8)
    boxes = torch.zeros(num, most, 4)
    target = torch.full((num, most), -1)
    for row in range(num):
        (x, y), (width, height) = corner[row].tolist(), sides[row].tolist()
        image[row, y : y + height, x : x + width] = 255
        boxes[row, 0] = torch.tensor([x, y, x + width, y + height])
        target[row, 0] = row % 2
    crowd = torch.zeros(num, most, dtype=torch.bool)
    return {"image": image, "boxes": boxes, "target": target, "crowd": crowd, "row": torch.arange(num)}


def seen(image, threshold=200):
    """The box around what is bright."""
    rows, columns = (image[..., 0] > threshold).nonzero(as_tuple=True)
    return torch.tensor([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]).float()


@pytest.mark.parametrize(
    "how", [{"flip": True}, {"scale": 0.4}, {"translate": 0.2}, {"flip": True, "scale": 0.3, "translate": 0.3}]
)
def test_boxes_are_where_their_objects_are_after_they_were_moved(how):
    given = tensors()
    changed = augmented(given, {**NONE, **how}, seed=1, epoch=2)
    is_there = changed["target"][:, 0] >= 0
    assert is_there.sum() >= 8
    assert not torch.equal(changed["image"], given["image"])
    for row in is_there.nonzero().flatten():
        assert (changed["boxes"][row, 0] - seen(changed["image"][row])).abs().max() <= 1.5


def test_half_of_the_pictures_are_mirrored():
    given = tensors(64)
    changed = augmented(given, {**NONE, "flip": True}, seed=0, epoch=0)
    assert 16 < (changed["boxes"][:, 0] != given["boxes"][:, 0]).any(dim=1).sum() < 48


def test_an_object_that_has_left_the_picture_is_absent():
    given = tensors(2)
    given["boxes"][:, 0] = torch.tensor([0.0, 0.0, 6.0, 6.0])
    found = [augmented(given, {**NONE, "translate": 0.5}, seed=0, epoch=epoch)["target"][:, 0] for epoch in range(8)]
    assert torch.stack(found).min() == -1
    assert torch.stack(found).max() >= 0


def test_colours_change_and_boxes_do_not():
    given = tensors()
    given["image"] = given["image"] // 2 + 50
    changed = augmented(given, {**NONE, "colour": 0.3}, seed=0, epoch=0)
    assert torch.equal(changed["boxes"], given["boxes"])
    means = changed["image"].float().mean(dim=(1, 2))
    assert means.std(dim=0).min() > 3


def test_a_mosaic_has_four_pictures_at_half_their_size_with_their_boxes():
    given = tensors(4)
    whole = mosaic({name: given[name][None] for name in ("image", "boxes", "target", "crowd")})
    assert whole["target"].shape == (1, 12)
    for place in range(4):
        top, left = place // 2 * 32, place % 2 * 32
        quarter = torch.zeros_like(whole["image"][0])
        quarter[top : top + 32, left : left + 32] = whole["image"][0, top : top + 32, left : left + 32]
        assert (whole["boxes"][0, 3 * place] - seen(quarter, 120)).abs().max() <= 1.0


def loader(given, how, batch_size):
    made = AugmentedLoader(given, how, batch_size=batch_size, shuffle=True, seed=3, batches_per_call=1)
    made.set_epoch(1)
    return made


def test_what_is_done_depends_on_the_sample_and_not_on_its_batch():
    given = tensors()
    how = {"flip": True, "scale": 0.3, "translate": 0.2, "colour": 0.2, "mosaic": 0.5}
    by_row = []
    for size in (12, 1):
        parts = [batch for call in loader(given, how, size) for batch in call]
        rows = {int(row): (batch, place) for batch in parts for place, row in enumerate(batch["row"])}
        by_row.append(
            [{name: rows[row][0][name][rows[row][1]] for name in ("image", "boxes", "target")} for row in range(12)]
        )
    for one, other in zip(*by_row, strict=True):
        assert torch.equal(one["image"], other["image"])
        is_there = one["target"] >= 0
        assert torch.equal(one["boxes"][is_there], other["boxes"][other["target"] >= 0])
    again = [batch["image"] for call in loader(given, how, 12) for batch in call]
    assert torch.equal(again[0], next(iter(loader(given, how, 12)))[0]["image"])
