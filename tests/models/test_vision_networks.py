"""Networks for pictures: bytes of any size in, no batch statistics, pruned and folded to the same function."""

import pytest
import torch
from torch import nn

from models.vision.networks import Pixels, ResNet9, ScaledConv2d, Whitening
from models.vision.pretrained import RowDepth, Torchvision, depths_of, weights_of

COVARIANCE = torch.cov(torch.randn(12, 400, generator=torch.Generator().manual_seed(0)).cumsum(dim=0))
SCHEMA = {
    "classes": ["a", "b", "c"],
    "counts": [60, 30, 10],
    "multi_label": False,
    "class_weights": None,
    "image_size": [12, 10],
    "mean": [0.4, 0.5, 0.6],
    "std": [0.2, 0.25, 0.3],
    "patches": {"size": 2, "covariance": COVARIANCE.tolist()},
    "target": {"name": "label"},
}
WIDTHS = {"width_1": 8, "width_2": 16, "width_3": 16, "input_size": None}


def images(num=6, height=12, width=10):
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (num, height, width, 3), generator=generator, dtype=torch.uint8)


def resnet(schema=SCHEMA, *, flip_at_test=False, **changed):
    torch.manual_seed(0)
    network = ResNet9(schema, flip_at_test=flip_at_test, **{**WIDTHS, **changed})
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return network.eval()


def tv(architecture, *, weights=None, input_size=32, flip_at_test=False, stochastic_depth=None):
    torch.manual_seed(0)
    options = {"weights": weights, "input_size": input_size, "flip_at_test": flip_at_test}
    return Torchvision(SCHEMA, architecture=architecture, stochastic_depth=stochastic_depth, **options)


@torch.no_grad()
def test_pixels_are_normalized_and_resized_to_the_size_of_training():
    pixels = Pixels(SCHEMA)
    found = pixels(images())
    expected = (images() / 255 - torch.tensor(SCHEMA["mean"])) / torch.tensor(SCHEMA["std"])
    torch.testing.assert_close(found.permute(0, 2, 3, 1), expected)
    assert found.is_contiguous(memory_format=torch.channels_last)
    flat = torch.full((2, 50, 31, 3), 90, dtype=torch.uint8)
    torch.testing.assert_close(pixels(flat), pixels(torch.full((2, 12, 10, 3), 90, dtype=torch.uint8)))
    assert Pixels(SCHEMA, size=7)(images()).shape == (6, 3, 7, 7)


@torch.no_grad()
def test_whitened_patches_have_unit_variance_and_no_correlation():
    layer = Whitening(SCHEMA)
    half = layer.kernels[: layer.channels // 2].flatten(1).double()
    torch.testing.assert_close(half @ COVARIANCE.double() @ half.T, torch.eye(len(half)).double(), atol=1e-5, rtol=0)
    assert torch.equal(layer.kernels[layer.channels // 2 :], -layer.kernels[: layer.channels // 2])
    grey = torch.ones(3, 3).kron(torch.cov(torch.randn(4, 100)))
    assert Whitening({**SCHEMA, "patches": {"size": 2, "covariance": grey.tolist()}}).channels == 8
    assert "kernels" in layer.state_dict()


@torch.no_grad()
def test_kernels_have_mean_zero_and_one_variance_whatever_their_scale():
    layer = ScaledConv2d(6, 4, 3)
    before = layer.kernels()
    torch.testing.assert_close(before.mean(dim=(1, 2, 3)), torch.zeros(4), atol=1e-6, rtol=0)
    norm = before.square().sum(dim=(1, 2, 3))
    torch.testing.assert_close(norm, norm[:1].expand(4), rtol=1e-3, atol=0)
    layer.weight.mul_(7).add_(3)
    torch.testing.assert_close(layer.kernels(), before, rtol=1e-3, atol=1e-5)


@torch.no_grad()
def test_activations_keep_their_scale_through_the_stages():
    network = ResNet9(SCHEMA, width_1=64, width_2=64, width_3=64, input_size=None, flip_at_test=False)
    hidden = network.whitening(network.pixels(images(64)))
    scales = []
    for block in network.blocks:
        hidden = block(hidden)
        scales.append(float(hidden.std()))
    assert min(scales) > 0.3
    assert max(scales) < 8


@torch.no_grad()
def test_a_row_is_scored_alike_in_any_batch_in_training_too():
    network = resnet().train()
    whole = network.score(images())
    torch.testing.assert_close(network.score(images()[2:3]), whole[2:3], rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_a_mirror_image_scores_the_same_where_both_are_looked_at():
    plain, both = resnet(), resnet(flip_at_test=True)
    torch.testing.assert_close(both(images()), both(images().flip(2)))
    torch.testing.assert_close(both(images()), (plain(images()) + plain(images().flip(2))) / 2)
    assert not torch.allclose(plain(images()), plain(images().flip(2)))


@torch.no_grad()
@pytest.mark.parametrize("size", [(4, 4), (8, 8), (5, 33)])
def test_small_and_narrow_pictures_have_logits(size):
    network = resnet({**SCHEMA, "image_size": list(size)})
    assert network(images(2, *size)).shape == (2, 3)
    assert network(images(2, 20, 20)).shape == (2, 3)
    assert network(images(1, 1, 1)).isfinite().all()


@torch.no_grad()
def test_a_folded_network_is_the_same_function_of_plain_convolutions():
    network = resnet(flip_at_test=True)
    folded = network.folded()
    torch.testing.assert_close(folded(images()), network(images()), rtol=1e-4, atol=1e-5)
    assert not any(isinstance(module, ScaledConv2d) for module in folded.modules())
    assert any(isinstance(module, ScaledConv2d) for module in network.modules())


@torch.no_grad()
@pytest.mark.parametrize("architecture", ["resnet18", "mobilenet_v3_small", "densenet121", "googlenet", "vit_b_16"])
def test_classifiers_of_torchvision_score_a_row_alike_in_any_batch(architecture):
    size = {"vit_b_16": 224}.get(architecture, 32)
    network = tv(architecture, input_size=size).eval()
    whole = network(images(3))
    assert whole.shape == (3, 3)
    torch.testing.assert_close(network(images(3)[1:2]), whole[1:2], rtol=1e-3, atol=1e-4)
    assert not any(isinstance(module, nn.BatchNorm2d | nn.Dropout) for module in network.modules())
    assert network.blocks
    assert network.score(images(3)).shape == (3, 3)


def test_published_weights_keep_their_statistics_and_lose_their_head(monkeypatch):
    import torchvision

    published = torchvision.models.get_model("shufflenet_v2_x0_5", weights=None)
    with torch.no_grad():
        published.conv1[1].running_mean.fill_(3.0)
    kind = torchvision.models.get_model_weights("shufflenet_v2_x0_5")
    monkeypatch.setattr(kind, "get_state_dict", lambda *_, **__: published.state_dict())
    network = tv("shufflenet_v2_x0_5", weights="DEFAULT", input_size=None).train()
    assert network.pixels.size == (224, 224)
    assert network.pixels.mean.flatten().tolist() == pytest.approx([255 * one for one in (0.485, 0.456, 0.406)])
    assert torch.equal(network.body.conv1[0].weight, published.conv1[0].weight)
    assert network.body.fc.out_features == 3
    network.score(images(4))
    assert float(network.body.conv1[1].running_mean[0]) == 3.0
    assert network.body.conv1[1].weight.requires_grad


def test_unknown_names_are_refused_with_those_that_there_are():
    with pytest.raises(ValueError, match="such as resnet18.*: 'resnet-18'"):
        weights_of("resnet-18", None)
    with pytest.raises(
        ValueError, match="weights of resnet18 must be null or among DEFAULT, IMAGENET1K_V1; got 'best'"
    ):
        weights_of("resnet18", "best")
    with pytest.raises(ValueError, match=r"leave prune.ratio out"):
        tv("resnet18").units()


def test_stochastic_depth_drops_whole_rows_in_training_alone():
    torch.manual_seed(0)
    layer = RowDepth(0.5)
    found = layer(torch.ones(64, 3, 2, 2))
    assert set(found.flatten(1).mean(dim=1).tolist()) == {0.0, 2.0}
    assert torch.equal(layer.eval()(torch.ones(4, 3)), torch.ones(4, 3))


def test_stochastic_depth_is_scaled_to_what_is_asked_and_refused_where_there_is_none():
    layers = [layer for layer in tv("swin_t", stochastic_depth=0.4).modules() if isinstance(layer, RowDepth)]
    assert layers[0].drop.probability == 0
    assert layers[-1].drop.probability == pytest.approx(0.4)
    off = [layer for layer in tv("efficientnet_b0", stochastic_depth=0.0).modules() if isinstance(layer, RowDepth)]
    assert {layer.drop.probability for layer in off} == {0.0}
    with pytest.raises(ValueError, match=r"stochastic_depth must be null for resnet18, which .*; got 0\.1"):
        tv("resnet18", stochastic_depth=0.1)


@pytest.mark.parametrize(
    ("architecture", "first", "block", "last", "num_layers"),
    [
        ("resnet18", "bn1", "layer4.1", "fc", 10),
        ("vit_b_16", "conv_proj", "encoder.layers.encoder_layer_11", "heads.head", 14),
        ("mobilenet_v3_small", "features.0", "features.12", "classifier.3", 15),
        ("convnext_tiny", "features.0", "features.7.2", "classifier.2", 23),
    ],
)
def test_layers_are_counted_from_the_head(architecture, first, block, last, num_layers):
    network = tv(architecture, input_size=224 if architecture == "vit_b_16" else 32)
    depths = depths_of(network.body)
    assert depths[last] == network.depth(f"body.{last}.weight") == 0
    assert depths[block] in (1, 2)
    assert depths[first] == num_layers - 1
    assert set(depths.values()) == set(range(num_layers))
    if architecture == "vit_b_16":
        assert network.depth("body.class_token") == network.depth("body.encoder.pos_embedding") == 13
        assert network.depth("body.encoder.ln.weight") == 1
