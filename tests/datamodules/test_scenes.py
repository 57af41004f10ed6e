"""Scenes are the same for a seed, and their boxes and masks say what is in the picture."""

import numpy as np
import pytest

from datamodules.scenes import LEAST_VISIBLE, MOST_DIGITS, scenes


@pytest.fixture(scope="module")
def some():
    return scenes("train", 40, size=96, seed=0)


def test_a_scene_is_a_function_of_seed_split_and_place(some):
    again = scenes("train", 5, size=96, seed=0)
    assert all(np.array_equal(one.image, other.image) for one, other in zip(again, some, strict=False))
    others = scenes("train", 5, size=96, seed=1) + scenes("val", 5, size=96, seed=0)
    assert not any(np.array_equal(one.image, other.image) for one in others for other in some)


def test_boxes_are_tight_around_what_the_masks_show(some):
    for scene in some:
        assert 1 <= len(scene.labels) <= MOST_DIGITS
        assert scene.image.shape == (96, 96, 3)
        for number, (left, top, right, bottom) in enumerate(scene.boxes.astype(int), start=1):
            rows, columns = np.nonzero(scene.owner == number)
            assert (left, top, right, bottom) == (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
            assert 0 <= left < right <= 96
            assert 0 <= top < bottom <= 96


def test_a_mask_has_the_class_of_each_digit(some):
    for scene in some:
        for number, label in enumerate(scene.labels, start=1):
            assert set(scene.classes[scene.owner == number]) == {label + 1}
        assert set(scene.classes[scene.owner == 0]) == {0}


def test_digits_overlap_but_stay_visible(some):
    assert any(len(scene.labels) > 2 for scene in some)
    assert LEAST_VISIBLE > 0.5
    assert all((scene.owner == number).sum() > 12 for scene in some for number in range(1, len(scene.labels) + 1))


def test_a_scene_must_have_room():
    with pytest.raises(ValueError, match="at least 32 pixels a side, got 16"):
        scenes("train", 1, size=16, seed=0)
