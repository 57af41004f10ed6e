"""Classifiers of timm: any name, no batch statistics, weights from a file, checkpoints that need no hub, ONNX."""

import importlib.util
import sys
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from hydra import compose, initialize_config_module
from torch import nn

from models.dropout import RowDropout
from models.vision.architectures import VisionTimm
from models.vision.pretrained import RowDepth
from models.vision.timm import Timm
from train.export.graph import write
from train.run import run

needs_timm = pytest.mark.skipif(
    importlib.util.find_spec("timm") is None, reason="needs timm: pip install 'fullcycle[timm]'"
)
SCHEMA = {
    "classes": ["a", "b", "c"],
    "class_weights": None,
    "image_size": [12, 10],
    "mean": [0.4, 0.5, 0.6],
    "std": [0.2, 0.25, 0.3],
}
OPTIONS = {"pretrained": False, "input_size": 32, "flip_at_test": False, "stochastic_depth": None}
TRAINING = {
    "lr": 1e-3,
    "weight_decay": 0.1,
    "warmup_share": 0.1,
    "schedule": "cosine",
    "gradient_clip": None,
    "ema_decay": None,
    "first_size": 1.0,
    "label_smoothing": 0.0,
    "calibration": "none",
    "compile": False,
}


def images(num=3):
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (num, 12, 10, 3), generator=generator, dtype=torch.uint8)


def network(name, **changed):
    torch.manual_seed(0)
    return Timm(SCHEMA, name=name, config=None, **{**OPTIONS, **changed})


def module(**changed):
    torch.manual_seed(0)
    return VisionTimm(SCHEMA, **{"name": "test_vit", "layer_decay": 1.0, **OPTIONS, **TRAINING, **changed})


def test_without_timm_one_sentence_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ValueError, match=r"needs timm, which is not installed: pip install 'fullcycle\[timm\]'$"):
        network("resnet18")


@needs_timm
@torch.no_grad()
@pytest.mark.parametrize("name", ["test_resnet", "test_efficientnet", "test_convnext", "test_vit", "resnetv2_50"])
def test_classifiers_of_timm_score_a_row_alike_in_any_batch(name):
    made = network(name)
    assert not any(isinstance(layer, nn.modules.batchnorm._BatchNorm) for layer in made.modules())
    whole = made.eval()(images())
    assert whole.shape == (3, 3)
    torch.testing.assert_close(made(images()[1:2]), whole[1:2], rtol=1e-3, atol=1e-4)
    whole = made.train().score(images())
    torch.testing.assert_close(made.score(images()[1:2]), whole[1:2], rtol=1e-3, atol=1e-4)


@needs_timm
def test_activations_within_batch_norm_stay_when_it_is_replaced():
    import timm

    kind = type(timm.create_model("test_efficientnet").bn1.act)
    assert isinstance(network("test_efficientnet").body.bn1[1], kind)


@needs_timm
def test_layers_are_skipped_by_row_and_more_often_towards_the_end():
    made = network("test_vit", stochastic_depth=0.4)
    skipped = [layer.drop.probability for layer in made.modules() if isinstance(layer, RowDepth)]
    assert skipped == sorted(skipped)
    assert skipped[-1] == pytest.approx(0.4)
    assert all(isinstance(layer.drop, RowDropout) for layer in made.modules() if isinstance(layer, RowDepth))
    with pytest.raises(ValueError, match=r"stochastic_depth must be null for vgg11, which .*; got 0\.4"):
        network("vgg11", stochastic_depth=0.4)


@needs_timm
def test_the_rate_falls_from_layer_to_layer():
    made = module(layer_decay=0.5)
    groups = made.configure_optimizers().param_groups
    scale = {id(weight): group["lr_scale"] for group in groups for weight in group["params"]}
    found = {name: scale[id(weight)] for name, weight in made.network.named_parameters()}
    num_blocks = len(made.network.body.blocks)
    assert found["body.head.weight"] == 1.0
    assert found["body.norm.weight"] == found[f"body.blocks.{num_blocks - 1}.mlp.fc1.weight"] == 0.5
    assert found["body.blocks.0.attn.qkv.bias"] == 0.5**num_blocks
    assert found["body.patch_embed.proj.weight"] == found["body.pos_embed"] == 0.5 ** (num_blocks + 1)


@needs_timm
def test_weights_of_a_file_lose_their_head_and_checkpoints_need_the_file_no_more(tmp_path):
    import timm

    published = timm.create_model("test_resnet")
    with torch.no_grad():
        published.bn1.running_mean.fill_(3.0)
    torch.save(published.state_dict(), tmp_path / "weights.pth")
    made = module(name="test_resnet", pretrained=str(tmp_path / "weights.pth"), input_size=None)
    assert made.network.pixels.size == tuple(made.hparams["weights_config"]["input_size"][1:])
    assert torch.equal(made.network.body.conv1[0].weight, published.conv1[0].weight)
    assert made.network.body.fc.out_features == 3
    made.train().network.score(images())
    assert float(made.network.body.bn1.running_mean[0]) == 3.0
    (tmp_path / "weights.pth").unlink()
    again = VisionTimm(**made.hparams)
    again.load_state_dict(made.state_dict())
    torch.testing.assert_close(again.eval()(images()), made.eval()(images()))
    with pytest.raises(ValueError, match=r"the weights of test_resnet cannot be had \(pretrained='.*weights.pth'\): "):
        module(name="test_resnet", pretrained=str(tmp_path / "weights.pth"))


@needs_timm
def test_unknown_names_are_refused_with_those_that_there_are():
    with pytest.raises(ValueError, match="name must be a classifier of timm, such as .*resnet18.*: 'resnet_18'"):
        network("resnet_18")


@needs_timm
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_a_run_is_exported_to_a_graph_that_answers_as_torch(tmp_path: Path):
    with initialize_config_module("configs", version_base="1.3"):
        words = ["experiment=vision", "model=timm", "model.name=test_vit", "model.input_size=32", "trainer=smoke"]
        cfg = compose("train", [*words, "model.layer_decay=0.7", "baselines=none", f"output_dir={tmp_path}"])
    run(cfg)
    made = module().eval()
    (graph,) = made.export_graphs()
    write(graph, tmp_path / "model.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    (found, _) = session.run(None, {"image": images(7).numpy()})
    np.testing.assert_allclose(found, made(images(7)).detach().numpy(), atol=1e-4)
