"""Every experiment of configs/experiment exports: a signed bundle that verifies and answers as torch does."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from hydra import compose, initialize_config_module

from train.bundle import open_bundle
from train.export.contest import in_torch
from train.export.export import export
from train.export.source import Source, open_source
from train.keys import Trusted, new
from train.run import run


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_an_experiment_exports_to_a_bundle_that_answers_as_torch(
    experiment: str, small: Callable[[str], list[str]], tmp_path: Path
) -> None:
    key = new(tmp_path / "signing.key")
    with initialize_config_module("configs", version_base="1.3"):
        smoke = ["trainer=smoke", "baselines=none", f"output_dir={tmp_path}"]
        folder = run(compose("train", [*small(experiment), *smoke])).folder
        quick = ["quantize=[int8_weights]", "gate.rounds=3", f"key={tmp_path / 'signing.key'}"]
        output = export(compose("export", [f"run={folder}", *quick]))
    bundle = open_bundle(output, trusted=Trusted(key.public))
    assert {"schema.json", "metrics.json", "model_card.md", "config.yaml"} <= set(bundle.names)
    source = open_source(str(folder), {})
    graphs, raw = source.model.export_graphs(), source.raw(200)
    rows = {graphs[0].name: raw} if len(graphs) == 1 else graph_rows(source, raw)
    for offered in graphs:
        session = onnxruntime.InferenceSession(bundle.read(f"{offered.name}.onnx"), providers=["CPUExecutionProvider"])
        wanted = {given.name for given in session.get_inputs()}
        assert wanted <= rows[offered.name].keys()
        given = {name: rows[offered.name][name] for name in wanted}
        found, expected = session.run(None, given), in_torch(source.datamodule, offered, rows[offered.name])
        if offered.paired is not None:  # lists in an order that rounding decides: their values, without it
            found, expected = (tuple(np.sort(one, axis=None) for one in part) for part in (found, expected))
        answers(found, expected)


def graph_rows(source: Source, raw: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """What each of several graphs takes, once torch has done what comes before it."""
    given = source.model.graph_inputs(source.datamodule.encode_raw(raw))
    return {name: {part: values.numpy() for part, values in parts.items()} for name, parts in given.items()}


def answers(found: list[Any], expected: tuple[Any, ...]) -> None:
    """Hold a graph against torch; int8 may have been chosen, whose error grows with the values."""
    for one, other in zip(found, expected, strict=True):
        if one.dtype.kind == "f":
            assert np.mean(np.abs(one - other)) < 0.02 * max(1.0, np.mean(np.abs(other)))
        else:
            assert np.mean(one == other) > 0.95  # two steps leave a network with classes that are nearly ties
    if found[0].dtype.kind == "f":
        np.testing.assert_allclose(found[0], expected[0], atol=0.02 * max(1.0, np.abs(expected[0]).max()))
