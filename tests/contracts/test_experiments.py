"""Every experiment of configs/experiment: it composes, fits its signatures, and trains to a complete run folder."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_module
from omegaconf import DictConfig, OmegaConf
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from train.config.check import check
from train.config.target import locate
from train.run import Result, run

FOLDER = Path(__file__).parents[2] / "configs" / "experiment"

PLAIN = (int, float, bool, str, bytes, type(None), torch.Tensor)


def composed(*overrides: str) -> DictConfig:
    with initialize_config_module("configs", version_base="1.3"):
        return compose("train", list(overrides))


@pytest.fixture(scope="module")
def smoke(
    experiment: str, small: Callable[[str], list[str]], tmp_path_factory: pytest.TempPathFactory
) -> tuple[DictConfig, Result]:
    """The config and the result of a smoke run of an experiment."""
    folder = tmp_path_factory.mktemp(experiment)
    cfg = composed(*small(experiment), "trainer=smoke", f"output_dir={folder}")
    return cfg, run(cfg)


def test_composes_and_fits_the_signatures(experiment: str) -> None:
    cfg = composed(f"experiment={experiment}")
    check(cfg)
    assert cfg.name == experiment
    assert cfg.monitor.startswith("val/")


def test_first_line_says_what_it_is(experiment: str) -> None:
    lines = [line for line in (FOLDER / f"{experiment}.yaml").read_text().splitlines() if "@package" not in line]
    assert lines[0].startswith("# ")
    assert len(lines[0]) > 20


def test_a_smoke_run_leaves_a_complete_folder(smoke: tuple[DictConfig, Result]) -> None:
    cfg, result = smoke
    names = {path.name for path in result.folder.iterdir()}
    assert {"config.yaml", "provenance.json", "train.log", "result.json", "checkpoints"} <= names
    assert any(name.startswith("events.out.tfevents") for name in names)
    assert (result.folder.parent / "latest").resolve() == result.folder
    assert list(result.folder.glob("*.png"))
    for picture in result.folder.glob("*.png"):
        assert picture.read_bytes().startswith(b"\x89PNG")
    account = json.loads((result.folder / "result.json").read_text())
    assert account["best"]["monitor"] == cfg.monitor
    assert any(name.startswith("test/") for name in account["metrics"])
    provenance = json.loads((result.folder / "provenance.json").read_text())
    assert provenance["data_fingerprint"]
    assert not [path for path in result.folder.rglob("*") if path.name.endswith(".tmp")]


def test_the_config_of_a_run_is_enough_to_run_it_again(smoke: tuple[DictConfig, Result]) -> None:
    _, result = smoke
    again = OmegaConf.load(result.folder / "config.yaml")
    assert isinstance(again, DictConfig)
    del again["defaults"]  # Hydra's, which takes it out as well
    check(again)
    assert "${" not in (result.folder / "config.yaml").read_text()


def test_checkpoints_hold_plain_containers_and_tensors(smoke: tuple[DictConfig, Result]) -> None:
    _, result = smoke
    found = sorted((result.folder / "checkpoints").glob("*.ckpt"))
    assert found
    for path in found:
        assert not_plain(torch.load(path, map_location="cpu", weights_only=True)) == []


def test_a_checkpoint_alone_gives_the_model_back(smoke: tuple[DictConfig, Result]) -> None:
    cfg, result = smoke
    best = result.folder / "checkpoints" / "best.ckpt"
    model = locate(cfg.model._target_).load_from_checkpoint(best, map_location="cpu", weights_only=True)
    stored = torch.load(best, map_location="cpu", weights_only=True)
    assert stored["hyper_parameters"]["schema"] == model.schema
    for name, value in model.state_dict().items():
        assert torch.equal(value, stored["state_dict"][name]), name


def test_tensorboard_has_scalars_hyperparameters_and_the_config(smoke: tuple[DictConfig, Result]) -> None:
    cfg, result = smoke
    events = EventAccumulator(str(result.folder)).Reload()
    assert {cfg.monitor, "train/loss", "train/learning_rate", "speed/rows_per_second"} <= set(events.Tags()["scalars"])
    assert any(tag.startswith("config") for tag in events.Tags()["tensors"])


def not_plain(value: object, place: str = "checkpoint") -> list[str]:
    """Where something other than plain containers and tensors is."""
    if isinstance(value, dict):
        return [found for key, item in value.items() for found in not_plain(item, f"{place}.{key}")]
    if type(value) in (list, tuple, set):
        return [found for index, item in enumerate(value) for found in not_plain(item, f"{place}[{index}]")]  # type: ignore[arg-type]
    return [] if isinstance(value, PLAIN) else [f"{place}: {type(value)}"]
