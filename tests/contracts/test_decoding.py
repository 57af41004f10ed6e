"""A run whose images are decoded in every epoch is the run whose images are decoded once, to the last bit."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_module
from PIL import Image

from train.run import run


@pytest.fixture
def folder(tmp_path):
    drawn = np.random.default_rng(0)
    for number in range(120):
        path = tmp_path / "set" / ("cat", "dog", "eel")[number % 3] / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        coarse = drawn.integers(0, 150, (4, 4, 3)) + 50 * (number % 3)
        Image.fromarray(coarse.astype(np.uint8)).resize((80 + number % 7, 90)).save(path)
    return tmp_path / "set"


def test_a_file_that_goes_away_in_training_is_told_in_a_sentence(folder, tmp_path):
    given = [
        "experiment=vision",
        "data=image_folder",
        f"data.path={folder}",
        "data.image_size=16",
        "data.decode=always",
    ]
    code = (
        "import pathlib, runpy, sys\n"
        "from datamodules.vision.undecoded import Undecoded\n"
        "was = Undecoded._decoded\n"
        "def gone(self, row):\n"
        f"    [path.unlink(missing_ok=True) for path in pathlib.Path({str(folder)!r}).rglob('*.jpg')]\n"
        "    return was(self, row)\n"
        "Undecoded._decoded = gone\n"
        "sys.argv[0] = 'train'\n"
        "runpy.run_module('train', run_name='__main__', alter_sys=True)\n"
    )
    ended = subprocess.run(
        [sys.executable, "-c", code, *given, "trainer=cpu", "baselines=none", f"output_dir={tmp_path}/runs"],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[2],
    )
    assert ended.returncode == 4, ended.stderr[-3000:]
    assert "there is no such file; with data.decode=always images are read in every epoch" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_weights_metrics_and_pictures_of_a_run_are_the_same(folder, tmp_path):
    found = {}
    for decode in ("once", "always"):
        with initialize_config_module("configs", version_base="1.3"):
            cfg = compose(
                "train",
                [
                    *("experiment=vision", "data=image_folder", f"data.path={folder}", "data.image_size=16"),
                    *("data.batch_size=16", "data.batches_per_call=2", "data.mixup=0.5", "data.cutmix=1.0"),
                    "data.policy=trivial",
                    *(
                        "trainer=cpu",
                        "trainer.max_epochs=2",
                        f"output_dir={tmp_path / decode}",
                        f"data.decode={decode}",
                    ),
                ],
            )
        result = run(cfg)
        account = json.loads((result.folder / "result.json").read_text())
        weights = torch.load(result.folder / "checkpoints" / "best.ckpt", weights_only=True)["state_dict"]
        pictures = {path.name: path.read_bytes() for path in result.folder.glob("*.png")}
        found[decode] = weights, account["metrics"], account["baselines"], pictures
    (weights, *told), (others, *theirs) = found.values()
    assert all(torch.equal(value, others[name]) for name, value in weights.items())
    assert told == theirs
    assert "predictions.png" in told[-1]
