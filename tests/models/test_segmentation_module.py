"""Segmentation: networks of any size, pruning, baselines, predictions, and what a run tells of itself."""

import io
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from models import pruning
from models.segmentation import baselines, report
from models.segmentation.architectures import SegmentationTorchvision, SegmentationUNet
from models.segmentation.losses import IGNORED
from models.segmentation.metrics import Segmented
from models.segmentation.module import counted

SCHEMA = {
    "classes": ["ground", "b", "c"],
    "counts": [60, 30, 10],
    "class_weights": None,
    "image_size": [20, 24],
    "mean": [0.5, 0.5, 0.5],
    "std": [0.3, 0.3, 0.3],
    "patches": {"size": 2, "covariance": torch.eye(12).tolist()},
}
WIDTHS = {
    "width_0": 6,
    "width_1": 8,
    "width_2": 16,
    "width_3": 16,
    "width_4": 24,
    "depth": 2,
    "input_size": None,
    "flip_at_test": False,
}
TRAINING = {
    "lr": 1e-3,
    "weight_decay": 0.0,
    "warmup_share": 0.1,
    "schedule": "cosine",
    "gradient_clip": None,
    "ema_decay": 0.9,
    "loss": "cross_entropy",
    "compile": False,
}


FIRSTS = ("downs.1.pairs.0.first", "downs.1.pairs.1.first")
SECONDS = ("downs.1.pairs.0.second", "downs.1.pairs.1.second")


def images(num=4, height=20, width=24):
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (num, height, width, 3), generator=generator, dtype=torch.uint8)


def made(schema=SCHEMA, **changed):
    torch.manual_seed(0)
    module = SegmentationUNet(schema, **{**WIDTHS, **TRAINING, **changed})
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    return module.eval()


@torch.no_grad()
@pytest.mark.parametrize("size", [(20, 24), (64, 16), (7, 9), (1, 1)])
def test_pictures_of_any_size_get_class_maps_of_theirs(size):
    module = made()
    assert module(images(2, *size)).shape == (2, *size)
    assert module.scorer(images(2, *size)).shape == (2, 3, *size)


@torch.no_grad()
def test_a_mirrored_picture_gets_the_mirrored_map_where_that_is_asked_for():
    module, picture = made(flip_at_test=True), images()
    flipped = module.scorer(picture.flip(2)).flip(3)
    torch.testing.assert_close(module.scorer(picture), flipped, atol=1e-4, rtol=1e-4)
    assert not torch.allclose(made().scorer(picture), made().scorer(picture.flip(2)).flip(3), atol=1e-2)


@torch.no_grad()
def test_the_exported_network_is_the_folded_one_and_gives_the_winners_probability():
    module = made()
    (offered,) = module.export_graphs()
    found, probability = offered.module(images())
    shares = torch.softmax(module.scorer(images()), dim=1)
    assert torch.equal(found, module(images()))
    torch.testing.assert_close(probability, shares.amax(dim=1), atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_two_halves_of_a_batch_are_the_whole_whatever_their_masks_ignore():
    module, target = made(loss="cross_entropy+lovasz"), (torch.arange(480) % 3).view(1, 20, 24).repeat(4, 1, 1)
    target[0, :15] = IGNORED
    batch = {"image": images(), "target": target.to(torch.uint8)}
    parts = [module.loss_of({name: value[half::2] for name, value in batch.items()}) for half in (0, 1)]
    torch.testing.assert_close(torch.stack(parts).mean(), module.loss_of(batch))


@torch.no_grad()
@pytest.mark.parametrize("how", ["magnitude", "taylor"])
def test_a_pruned_network_is_smaller_and_takes_the_kept_weights(how):
    module = made()
    batch = {"image": images(), "target": torch.zeros(4, 20, 24, dtype=torch.uint8)}
    with torch.enable_grad():
        options, state = module.pruned(0.5, how=how, batches=[batch])
    smaller = made(**options)
    smaller.load_state_dict(state)
    before, after = (sum(p.numel() for p in one.network.parameters()) for one in (module, smaller))
    assert after < 0.5 * before
    assert smaller(images()).shape == (4, 20, 24)


@torch.no_grad()
def test_a_channel_goes_where_it_is_made_and_where_it_is_read():
    network = made().average
    values = {name: torch.zeros_like(value) for name, value in network.named_parameters()}
    for layer in ("downs.1.enter", *SECONDS):
        values[f"{layer}.gain"][1::2] = 1
    _, state = pruning.prune(network.state_dict(), network.units()[2:3], values, 0.5, "magnitude")
    before = network.state_dict()
    for layer in ("downs.1.enter", *SECONDS):
        assert torch.equal(state[f"{layer}.weight"], before[f"{layer}.weight"][1::2])
    for layer in (*FIRSTS, "downs.2.enter", "ups.1.skip"):
        assert torch.equal(state[f"{layer}.weight"], before[f"{layer}.weight"][:, 1::2])
    changed = {name for name, value in state.items() if value.shape != before[name].shape}
    assert {name.rpartition(".")[0] for name in changed} == {
        *("downs.1.enter", *SECONDS, *FIRSTS, "downs.2.enter", "ups.1.skip"),
    }


@torch.no_grad()
def test_predictions_are_shares_and_the_mask_as_png():
    module, picture = made(), images()
    columns = module.predict_columns({"image": picture}, decision="cost")
    assert list(columns) == ["share_ground", "share_b", "share_c", "mask"]
    np.testing.assert_allclose(sum(columns[f"share_{name}"] for name in SCHEMA["classes"]), 1.0, rtol=1e-5)
    masks = np.stack([np.asarray(Image.open(io.BytesIO(data))) for data in columns["mask"]])
    np.testing.assert_array_equal(masks, module(picture).numpy())
    assert len(module.predict_columns({"image": picture[:0]}, decision="cost")["mask"]) == 0
    with pytest.raises(ValueError, match="leave it out"):
        module.predict_columns({"image": picture}, decision="budget")


def data(num=6):
    target = torch.zeros(num, 20, 24, dtype=torch.uint8)
    target[:, 5:15, 12:] = 1
    target[:, :2] = IGNORED
    picture = images(num) // 4 + (120 * (target == 1)).unsqueeze(3).to(torch.uint8)
    part = {"image": picture, "target": target, "row": torch.arange(num)}
    return SimpleNamespace(tensors={"train": part, "val": part, "test": part}, names={"test": [*"abcdef"]})


def test_baselines_are_measured_as_the_network_is():
    module = made({**SCHEMA, "classes": ["ground", "b"]})
    scores = {
        baseline.__name__: module.test_baseline(baseline(), data())
        for baseline in (baselines.majority, baselines.logistic_regression, baselines.random_forest)
    }
    assert scores["majority"]["mean_iou"] < 0.5
    assert scores["logistic_regression"]["mean_iou"] > 0.9
    assert scores["random_forest"]["mean_iou"] > 0.95
    assert set(scores["majority"]) == {"mean_iou", "dice", "pixel_accuracy", "boundary_f"}


def test_the_worst_picture_comes_first_and_is_drawn():
    module, given = made({**SCHEMA, "classes": ["ground", "b"]}), data()
    found = given.tensors["test"]["target"].clone()
    found[4] = 0
    part = counted(found.clamp_max(1).long(), given.tensors["test"]["target"], torch.arange(6), 2)
    module.scored = Segmented.of(**{name: values.numpy() for name, values in part.items()})
    assert set(module.figures(given)) == {"classes", "confusion", "predictions", "worst"}
    assert report.worst_named(module.scored, given.names["test"])[0][1] == "e"
    card = module.card()
    assert card["slices"]["b"]["recall"] == pytest.approx(5 / 6)


def test_paint_leaves_the_ground_grey_and_ignored_pixels_black():
    picture, mask = np.full((1, 3, 3), 100, np.uint8), np.array([[0, 1, IGNORED]])
    painted = report.painted(picture, mask, report.colours(3))
    assert painted[0, 0].tolist() == [100, 100, 100]
    assert len(set(painted[0, 1].tolist())) > 1
    assert painted[0, 2].tolist() == [0, 0, 0]


def test_networks_of_torchvision_have_no_statistics_of_batches():
    options = {"architecture": "lraspp_mobilenet_v3_large", "weights": None, "input_size": None, "flip_at_test": False}
    module = SegmentationTorchvision({**SCHEMA, "image_size": [32, 32]}, **options, **TRAINING)
    assert not [one for one in module.modules() if isinstance(one, torch.nn.BatchNorm2d)]
    with torch.no_grad():
        assert module.eval()(images(2, 40, 30)).shape == (2, 40, 30)
    with pytest.raises(ValueError, match="architecture must be one of torchvision's"):
        SegmentationTorchvision(SCHEMA, **{**options, "architecture": "resnet18"}, **TRAINING)
    with pytest.raises(ValueError, match="must be null or among DEFAULT"):
        SegmentationTorchvision(SCHEMA, **{**options, "weights": "IMAGENET"}, **TRAINING)
