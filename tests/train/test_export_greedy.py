"""The graph that writes by itself: what is asked of it before it ships, and that it ships."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from hydra import compose, initialize_config_module

from train import errors
from train.bundle import open_bundle
from train.export import greedy
from train.export.contest import Variant
from train.export.export import export
from train.export.source import open_source
from train.keys import Trusted, new
from train.run import run

ROWS = 200
ECHO = """<ir_version: 10, opset_import: ["" : 20]>
echo (int64[rows, source] input_ids) => (int64[rows, output] output_ids) { output_ids = Identity(input_ids) }"""


class Echo:
    """A model that writes what it reads, but in some rows."""

    def __init__(self, num_differing: int, refused: str | None = None) -> None:
        self.num_differing, self.refused = num_differing, refused

    def greedy_graph(self, files: dict[str, Path]) -> onnx.ModelProto:
        if self.refused:
            raise ValueError(self.refused)
        return onnx.parser.parse_model(ECHO)

    def greedy(self, input_ids: torch.Tensor) -> torch.Tensor:
        written = torch.nn.functional.pad(input_ids, (0, 2))  # padding in other places of a batch is no difference
        differs = input_ids[:, 0] < self.num_differing
        written[differs, 1] += 1
        return written


def made(model: Echo, folder: Path) -> Variant:
    raw = {"input_ids": np.stack([np.arange(ROWS), np.ones(ROWS, int)], axis=1)}
    encoded = SimpleNamespace(
        encode_raw=lambda arrays: {name: torch.from_numpy(array) for name, array in arrays.items()}
    )
    source: Any = SimpleNamespace(raw=lambda num_rows: raw, datamodule=encoded)
    variant = Variant("float32", model, [SimpleNamespace(name="echo")], {}, 0.0)
    return greedy.beside(source, variant, {}, folder / "greedy.onnx")


def test_it_ships_where_one_row_in_a_hundred_differs_and_not_where_more_do(tmp_path: Path) -> None:
    found = made(Echo(2), tmp_path).greedy
    assert found is not None
    assert (found.num_rows, found.num_differing) == (ROWS, 2)
    assert "input_ids int64 [rows, source] in, output_ids int64 [rows, output] out" in str(found)
    assert "On 198 of 200 real rows" in str(found)
    with pytest.raises(errors.GateError, match="otherwise than torch on 1.5% of 200 real rows"):
        made(Echo(3), tmp_path)


def test_a_model_that_cannot_offer_it_is_a_config_error(tmp_path: Path) -> None:
    with pytest.raises(errors.ConfigError, match="greedy=true is for models .* Module is none: leave it out"):
        greedy.check(torch.nn.Module())
    greedy.check(Echo(0))
    with pytest.raises(errors.ConfigError, match="greedy=true: no such rule"):
        made(Echo(0, "no such rule"), tmp_path)


SMALL = [
    *("experiment=translation", "data.num_pairs=1000", "data.vocab_size=500", "data.max_target_length=16"),
    *("model.width=32", "model.num_heads=2", "trainer=smoke", "baselines=none"),
]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("copy", [False, True])
def test_the_bundle_holds_one_graph_that_writes_as_torch_does(copy: bool, tmp_path: Path) -> None:
    key = new(tmp_path / "signing.key")
    with initialize_config_module("configs", version_base="1.3"):
        folder = run(compose("train", [*SMALL, f"model.copy={str(copy).lower()}", f"output_dir={tmp_path}"])).folder
        quick = ["quantize=[int8_weights]", "gate.rounds=3", f"key={tmp_path / 'signing.key'}"]
        bundle = open_bundle(
            export(compose("export", [f"run={folder}", "greedy=true", *quick])), trusted=Trusted(key.public)
        )
    content = bundle.read("greedy_model.onnx")
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    source = open_source(str(folder), {})
    raw = source.raw(300)["source"]
    (found,) = session.run(["output_ids"], {"input_ids": raw})
    with torch.inference_mode():
        expected = source.model.greedy(torch.from_numpy(raw)).numpy()
    assert found.shape == expected.shape
    assert (found == expected).all(axis=1).mean() >= 0.99
    told = bundle.manifest["graphs"]["greedy_model.onnx"]
    assert told == {
        "made": "float32",
        "inputs": {"input_ids": ["tensor(int64)", "rows", "source"]},
        "outputs": {"output_ids": ["tensor(int64)", "rows", "output"]},
    }
    assert "greedy_model.onnx needs no search" in bundle.read("model_card.md").decode()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_a_pruned_decoder_competes_although_it_takes_fewer_keys_and_values(tmp_path: Path) -> None:
    with initialize_config_module("configs", version_base="1.3"):
        folder = run(compose("train", [*SMALL, f"output_dir={tmp_path}"])).folder
        quick = ["prune.ratio=0.5", "prune.finetune_steps=0", "quantize=[]", "gate.rounds=3", "sign=false"]
        bundle = export(compose("export", [f"run={folder}", "greedy=true", *quick]))
    found = json.loads((bundle / "metrics.json").read_text())["candidates_on_validation"]
    assert found["pruned_50"]["bytes"] < found["float32"]["bytes"]
