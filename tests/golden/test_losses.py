"""The first losses of each recorded run are the same as ever: numbers change by decision, not by accident.

`python tests/golden/test_losses.py` records them anew, to be looked at before they are committed.
"""

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_module
from pytorch_lightning import Callback

from train.run import run

FILES = sorted(Path(__file__).parent.glob("*.json"))
STEPS = 20
RELATIVE = 1e-3  # in so few steps another machine's rounding grows by less; another order or initial weight by more


class Recorder(Callback):
    def __init__(self) -> None:
        self.losses: list[float] = []

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.losses += outputs["loss"].flatten().tolist()


def losses(overrides: list[str], folder: Path) -> list[float]:
    recorder = Recorder()
    short = ["trainer=cpu", f"+trainer.max_steps={STEPS}", "trainer.max_epochs=1", "baselines=none"]
    with initialize_config_module("configs", version_base="1.3"):
        cfg = compose("train", [*overrides, *short, f"output_dir={folder}"])
    run(cfg, testing=False, callbacks=[recorder])
    return recorder.losses


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_the_first_losses_are_those_recorded(path: Path, tmp_path: Path) -> None:
    golden = json.loads(path.read_text())
    found = losses(golden["overrides"], tmp_path)
    assert len(found) == STEPS
    assert found == pytest.approx(golden["losses"], rel=RELATIVE)


def record() -> None:
    from tempfile import TemporaryDirectory

    for path in FILES:
        golden = json.loads(path.read_text())
        with TemporaryDirectory() as folder, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            golden["losses"] = [float(f"{loss:.6g}") for loss in losses(golden["overrides"], Path(folder))]
        path.write_text(json.dumps(golden, indent=1) + "\n")


if __name__ == "__main__":
    record()
