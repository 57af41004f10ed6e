"""RandAugment and TrivialAugment: torchvision's operations and strengths, by numbers of each picture's own."""

import numpy as np
import pytest
import torch
from torchvision.transforms import InterpolationMode, v2

from datamodules import policies
from datamodules.augment import uniform
from datamodules.policies import DRAWS, OPERATIONS, STRENGTHS, changed, operated, strengths

BLACK = torch.zeros(3, dtype=torch.uint8)
THEIRS = {"rand": v2.RandAugment(), "trivial": v2.TrivialAugmentWide()}


def images(num=62, height=36, width=40):
    """Smooth pictures, for a pixel's place, to the last bit, is a choice between neighbours."""
    generator = torch.Generator().manual_seed(0)
    small = torch.rand((num, 3, 5, 6), generator=generator)
    large = torch.nn.functional.interpolate(small, (height, width), mode="bicubic")
    return (255 * large).clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).contiguous()


def by_torchvision(picture, name, strength, policy):
    pixels = picture.permute(2, 0, 1)
    options = {"interpolation": InterpolationMode.BILINEAR, "fill": {torch.Tensor: None}}
    return THEIRS[policy]._apply_image_or_video_transform(pixels, name, strength, **options).permute(1, 2, 0)


@pytest.mark.parametrize("policy", THEIRS)
@pytest.mark.parametrize("name", OPERATIONS)
def test_operations_and_their_strengths_are_those_of_torchvision(name, policy):
    space, is_signed = THEIRS[policy]._AUGMENTATION_SPACE[name]
    theirs = space(STRENGTHS, 36, 40)
    theirs = torch.zeros(STRENGTHS) if theirs is None else theirs.float()
    ours = torch.from_numpy(strengths(36, 40, is_wide=policy == "trivial"))[OPERATIONS.index(name)]
    torch.testing.assert_close(ours, (theirs + 1e-3).trunc().double() if "Translate" in name else theirs.double())
    assert bool(policies.SIGNED[OPERATIONS.index(name)]) == is_signed
    given = torch.cat([ours, -ours if is_signed else ours])
    found = operated(images(), torch.full((62,), OPERATIONS.index(name)), given, BLACK)
    for place, picture in enumerate(images()):
        expected = by_torchvision(picture, name, float(given[place]), policy)
        difference = (found[place].int() - expected.int()).abs()
        assert int(difference.max()) <= 1, (place, float(given[place]))


def test_each_picture_has_its_own_operation_in_any_batch():
    rows = torch.arange(62)
    for how in ({"policy": "trivial"}, {"policy": "rand", "num_ops": 3, "magnitude": 12}):
        draws = uniform(0, 4, rows, 9, DRAWS * how.get("num_ops", 1))
        whole = changed(images(), draws, BLACK, **how)
        order = torch.randperm(62)
        assert torch.equal(changed(images()[order], draws[order], BLACK, **how), whole[order])
        for place in range(62):
            one = changed(images()[place : place + 1], draws[place : place + 1], BLACK, **how)
            assert torch.equal(one[0], whole[place]), place
        assert whole.is_contiguous()
        is_same = (whole == images()).flatten(1).all(dim=1)
        assert int(is_same.sum()) < 20


def test_operations_and_signs_are_drawn_alike_often(monkeypatch):
    seen = []
    monkeypatch.setattr(policies, "operated", lambda images, kind, strength, fill: seen.append((kind, strength)))
    draws = uniform(0, 0, torch.arange(28_000), 5, DRAWS)
    changed(images(1).expand(28_000, -1, -1, -1), draws, BLACK, policy="trivial")
    kind, strength = seen[0]
    counts = torch.bincount(kind, minlength=len(OPERATIONS))
    assert 1_800 < int(counts.min()) <= int(counts.max()) < 2_200
    rotations = strength[kind == policies.ROTATE]
    assert float(rotations.min()) == -135
    assert float(rotations.max()) == 135
    assert 0.45 < float((rotations < 0).float().mean()) < 0.52
    changed(images(1).expand(28_000, -1, -1, -1), draws, BLACK, policy="rand", magnitude=10)
    assert seen[1][1][kind == policies.ROTATE].abs().unique().tolist() == pytest.approx([10])


def test_what_comes_in_at_the_edges_has_the_colour_that_is_given():
    fill = torch.tensor([7, 8, 9], dtype=torch.uint8)
    moved = torch.tensor([policies.TRANSLATE_X, policies.TRANSLATE_Y])
    found = operated(images(2), moved, torch.tensor([5.0, -3.0]), fill)
    assert (found[0, :, :5] == fill).all()
    assert torch.equal(found[0, :, 5:], images(2)[0, :, :-5])
    assert (found[1, -3:] == fill).all()
    turned = operated(images(1), torch.tensor([policies.ROTATE]), torch.tensor([45.0]), fill)
    assert (turned[0, [0, 0, -1, -1], [0, -1, 0, -1]] == fill).all()


@pytest.mark.parametrize("size", [(1, 1), (2, 5), (8, 8)])
def test_small_pictures_stay_what_they_are_in_size_and_are_not_moved_out_of_sight(size):
    assert strengths(8, 8, is_wide=True)[policies.TRANSLATE_X].max() == 8
    rows = torch.arange(200)
    found = changed(images(200, *size), uniform(0, 0, rows, 5, DRAWS), BLACK, policy="trivial")
    assert found.shape == (200, *size, 3)
    assert found.dtype == torch.uint8
    assert np.unique(found).size > 1
