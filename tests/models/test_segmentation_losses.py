"""Losses and metrics of class maps: what they are by definition, ignored pixels, rows that add up."""

import numpy as np
import pytest
import torch
from torch.nn import functional

from models.segmentation import metrics
from models.segmentation.losses import IGNORED, LOSSES, dice, loss_of, lovasz
from models.segmentation.metrics import Segmented

CLASSES = 3


def drawn(num=4, side=6, *, seed=0):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(num, CLASSES, side, side, generator=generator)
    return logits, torch.randint(0, CLASSES, (num, side, side), generator=generator).to(torch.uint8)


def segmented(found, target):
    rows = {
        "confusion": metrics.confusions(found, target, CLASSES),
        "boundary": metrics.boundaries(found, target, CLASSES),
        "row": torch.arange(len(found)),
    }
    return Segmented.of(**{name: values.numpy() for name, values in rows.items()})


@pytest.mark.parametrize("name", LOSSES)
def test_ignored_pixels_count_for_nothing(name):
    logits, target = drawn()
    target[:, :2] = IGNORED
    other = logits.clone()
    other[:, :, :2] = 9 * torch.randn(4, CLASSES, 2, 6)
    weights = torch.tensor([1.0, 2.0, 0.5])
    torch.testing.assert_close(loss_of(name, logits, target, weights), loss_of(name, other, target, weights))
    nothing = loss_of(name, logits, torch.full_like(target, IGNORED), weights)
    assert nothing.tolist() == [0.0] * 4


@pytest.mark.parametrize("name", LOSSES)
def test_a_loss_is_a_pictures_own_and_falls_along_its_gradient(name):
    logits, target = drawn()
    logits.requires_grad_(True)
    ones = torch.ones(CLASSES)
    whole = loss_of(name, logits, target, ones)
    torch.testing.assert_close(whole[1::2], loss_of(name, logits[1::2], target[1::2], ones))
    whole.mean().backward()
    assert torch.isfinite(logits.grad).all()
    assert loss_of(name, logits - logits.grad, target, ones).mean() < whole.mean()
    sure = 50 * functional.one_hot(target.long(), CLASSES).permute(0, 3, 1, 2).float()
    assert loss_of(name, sure, target, ones).max() < 0.01


def test_cross_entropy_is_torchs_and_counts_classes_by_their_weights():
    logits, target = drawn()
    weights = torch.tensor([1.0, 2.0, 0.5])
    each = functional.cross_entropy(logits, target.long(), reduction="none", weight=weights)
    torch.testing.assert_close(loss_of("cross_entropy", logits, target, weights), each.mean(dim=(1, 2)))


def test_lovasz_of_sure_predictions_is_one_minus_iou():
    _, target = drawn()
    found = target.clone()
    found[:, 0] = (found[:, 0] + 1) % CLASSES
    shares = functional.one_hot(found.long(), CLASSES).float().flatten(1, 2).transpose(1, 2)
    truth = target.flatten(1).long()
    expected = []
    for ours, theirs in zip(found, target, strict=True):
        ious = [((ours == c) & (theirs == c)).sum() / ((ours == c) | (theirs == c)).sum() for c in range(CLASSES)]
        expected.append(1 - torch.stack(ious).mean())
    is_valid = torch.ones_like(truth, dtype=torch.bool)
    torch.testing.assert_close(lovasz(shares, truth, is_valid), torch.stack(expected))
    assert (dice(shares, truth, is_valid) < lovasz(shares, truth, is_valid)).all()


def test_counts_make_iou_dice_and_accuracy():
    target = torch.zeros(2, 8, 8, dtype=torch.uint8)
    target[0, :, 4:] = 1
    target[1] = IGNORED
    found = torch.zeros(2, 8, 8, dtype=torch.long)
    found[0, :, 5:] = 1
    rows = segmented(found, target)
    np.testing.assert_allclose(metrics.iou(rows), [32 / 40, 24 / 32, np.nan])
    np.testing.assert_allclose(metrics.dice(rows), [64 / 72, 48 / 56, np.nan])
    told = metrics.metrics_of(rows)
    assert told["pixel_accuracy"] == 56 / 64
    assert told["mean_iou"] == pytest.approx((0.8 + 0.75) / 2)
    by_picture = metrics.iou_by_picture(rows)
    assert by_picture[0] == pytest.approx(told["mean_iou"])
    assert np.isnan(by_picture[1])
    assert told["boundary_f"] == 1.0  # off by one pixel, which is within the tolerance


def test_a_boundary_that_is_far_off_is_not_found():
    target = torch.zeros(1, 16, 16, dtype=torch.uint8)
    target[:, :, 8:] = 1
    found = torch.zeros(1, 16, 16, dtype=torch.long)
    found[:, :, 11:] = 1
    rows = segmented(found, target)
    assert metrics.boundary_f(rows)[:2].tolist() == [0.0, 0.0]
    assert metrics.boundary_f(segmented(target.long(), target))[:2].tolist() == [1.0, 1.0]
    target[:, :, 6:13] = IGNORED  # no boundary where nobody knows
    assert np.isnan(metrics.boundary_f(segmented(found, target))).all()


def test_intervals_are_of_resampled_pictures():
    logits, target = drawn(20)
    found = torch.where(torch.rand(20, 6, 6, generator=torch.Generator().manual_seed(1)) < 0.7, target.long(), 0)
    rows = segmented(found, target)
    low, high = metrics.bootstrap_intervals(rows)["mean_iou"]
    assert low < metrics.mean_iou(rows) < high
    assert metrics.mean_iou(rows.take(np.arange(20)[::-1])) == metrics.mean_iou(rows)
