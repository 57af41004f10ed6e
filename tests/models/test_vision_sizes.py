"""Training pictures grow by epochs, alike in a run that is resumed; scores are of full ones."""

import copy

import pytest
import torch
from pytorch_lightning import Callback, Trainer, seed_everything

from datamodules.vision.digits import Digits
from models.vision.architectures import VisionResNet9, VisionTorchvision
from models.vision.networks import training_size

OPTIONS = {
    "val_share": 0.2,
    "test_share": 0.2,
    "image_size": None,
    "most_pixels": 1_000,
    "unreadable": "error",
    "batch_size": 256,
    "batches_per_call": 2,
    "flip": False,
    "translate": 1,
    "decode": "once",
    "policy": "none",
    "num_ops": 1,
    "magnitude": 0,
    "cutout": 0,
    "mixup": 0.0,
    "cutmix": 0.0,
    "class_weights": "none",
    "seed": 0,
}
TRAINING = {
    "input_size": 16,
    "flip_at_test": False,
    "lr": 1e-3,
    "weight_decay": 0.0,
    "warmup_share": 0.1,
    "schedule": "cosine",
    "gradient_clip": None,
    "ema_decay": None,
    "first_size": 0.5,
    "label_smoothing": 0.0,
    "calibration": "none",
    "compile": False,
}
pytestmark = pytest.mark.filterwarnings("ignore")


def test_sizes_are_multiples_that_grow_and_are_full_in_the_last_fifth():
    sizes = [training_size((96, 64), first=0.5, epoch=epoch, num_epochs=10) for epoch in range(10)]
    assert sizes[0] == (48, 32)
    assert sizes == sorted(sizes)
    assert sizes[7] != sizes[8] == sizes[9] == (96, 64)
    assert all(side % 4 == 0 for size in sizes for side in size)
    assert training_size((30, 5), first=0.1, epoch=0, num_epochs=2) == (4, 4)
    assert training_size((30, 5), first=1.0, epoch=0, num_epochs=2) == (30, 5)


class Sizes(Callback):
    """What sizes a network trained and scored pictures in; saves and stops in the middle of an epoch."""

    def __init__(self, stop=None):
        self.stop, self.seen = stop, []

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        self.seen.append((trainer.current_epoch, module.network.training_size))
        if self.stop and (trainer.current_epoch, batch_idx) == self.stop[:2]:
            trainer.save_checkpoint(self.stop[2])
            raise InterruptedError


def trained(data, folder, *, stop=None, ckpt=None, **options):
    seed_everything(0)
    module = VisionResNet9(data.schema, width_1=8, width_2=8, width_3=8, **{**TRAINING, **options})
    sizes = Sizes(stop)
    quiet = {
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    trainer = Trainer(accelerator="cpu", max_epochs=5, default_root_dir=folder, callbacks=[sizes], **quiet)
    trainer.fit(module, datamodule=data, ckpt_path=ckpt)
    return module, sizes.seen


@pytest.fixture
def data():
    made = Digits(**OPTIONS)
    made.setup()
    return made


def test_a_run_that_is_stopped_within_an_epoch_goes_on_with_the_same_sizes_and_weights(data, tmp_path):
    whole, seen = trained(data, tmp_path)
    assert [dict(seen)[epoch] for epoch in range(5)] == [(8, 8), (8, 8), (12, 12), (16, 16), (16, 16)]
    with pytest.raises(InterruptedError):
        trained(copy.copy(data), tmp_path, stop=(2, 0, tmp_path / "stopped.ckpt"))
    resumed, rest = trained(data, tmp_path, ckpt=tmp_path / "stopped.ckpt")
    assert rest == seen[-len(rest) :]
    assert rest[0] == (2, (12, 12))
    for name, value in whole.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], value), name


@torch.no_grad()
def test_scores_are_of_full_pictures(data):
    module = VisionResNet9(data.schema, width_1=8, width_2=8, width_3=8, **TRAINING).eval()
    image = data.tensors["test"]["image"][:4]
    before = module(image)
    module.network.training_size = (8, 8)
    assert torch.equal(module(image), before)
    assert not torch.equal(module.network.score(image), module.network(image))


def test_a_network_of_one_size_is_told_of(data, tmp_path):
    options = {**TRAINING, "input_size": 224, "stochastic_depth": None, "layer_decay": 1.0}
    module = VisionTorchvision(data.schema, architecture="vit_b_16", weights=None, **options)
    quiet = {
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    options = {"accelerator": "cpu", "default_root_dir": tmp_path, "num_sanity_val_steps": 0, **quiet}
    with pytest.raises(ValueError, match=r"first_size must be 1 for this network, .* \(112, 112\); got 0\.5"):
        Trainer(max_epochs=5, **options).fit(module, datamodule=data)
    small = VisionResNet9(data.schema, width_1=8, width_2=8, width_3=8, **TRAINING)
    with pytest.raises(ValueError, match=r"first_size below 1 needs trainer\.max_epochs, .*; got 0\.5"):
        Trainer(max_epochs=-1, max_steps=3, **options).fit(small, datamodule=data)
