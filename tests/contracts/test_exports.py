"""Every experiment of configs/experiment exports: a signed bundle that verifies and answers as torch does."""

from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from hydra import compose, initialize_config_module

from train.bundle import open_bundle
from train.export.contest import in_torch
from train.export.export import export
from train.export.source import open_source
from train.keys import Trusted, new
from train.run import run

FOLDER = Path(__file__).parents[2] / "configs" / "experiment"
EXPERIMENTS = sorted(path.stem for path in FOLDER.glob("*.yaml"))

# Where an experiment's own data take long: the same in small. Any other experiment is run as it is.
SMALL = {
    "fraud": ["data.num_customers=200", "data.num_terminals=400", "data.windows_days=[1,7]"],
    "text": ["data.docstrings_per_package=60"],
}


@pytest.mark.slow
@pytest.mark.parametrize("name", EXPERIMENTS)
@pytest.mark.filterwarnings("ignore")
def test_an_experiment_exports_to_a_bundle_that_answers_as_torch(name: str, tmp_path: Path) -> None:
    key = new(tmp_path / "signing.key")
    with initialize_config_module("configs", version_base="1.3"):
        smoke = ["trainer=smoke", "baselines=none", f"output_dir={tmp_path}", *SMALL.get(name, [])]
        folder = run(compose("train", [f"experiment={name}", *smoke])).folder
        quick = ["quantize=[int8_weights]", "gate.rounds=3", f"key={tmp_path / 'signing.key'}"]
        output = export(compose("export", [f"run={folder}", *quick]))
    bundle = open_bundle(output, trusted=Trusted(key.public))
    assert {"schema.json", "metrics.json", "model_card.md", "config.yaml"} <= set(bundle.names)
    source = open_source(str(folder), {})
    session = onnxruntime.InferenceSession(bundle.read("model.onnx"), providers=["CPUExecutionProvider"])
    raw = source.raw(200)
    found = session.run(None, raw)
    expected = in_torch(source.datamodule, source.model.export_graphs()[0], raw)
    np.testing.assert_allclose(found[0], expected[0], atol=0.02)  # int8 may have been chosen
    assert np.mean(found[1] == expected[1]) > 0.97
