"""Every search space of configs/sweep: it fits its experiment, at each end of each range and with each choice."""

from pathlib import Path

import pytest
from hydra import compose, initialize_config_module

from train.config.check import check
from train.sweep import plan
from train.sweep.__main__ import with_space
from train.sweep.settings import SweepSettings

FOLDER = Path(__file__).parents[2] / "configs" / "sweep"
EXPERIMENTS = {path.stem for path in (FOLDER.parent / "experiment").glob("*.yaml")}
SPACES = sorted(
    str(path.relative_to(FOLDER).with_suffix("")) for path in FOLDER.rglob("*.yaml") if path.stem in EXPERIMENTS
)


def test_every_experiment_has_a_space_and_an_automatic_one() -> None:
    assert {*EXPERIMENTS, *(f"auto/{name}" for name in EXPERIMENTS)} <= set(SPACES)


@pytest.mark.parametrize("space", SPACES)
def test_a_space_fits_its_experiment(space: str, tmp_path: Path) -> None:
    automatic = ["sweep=auto"] if space.startswith("auto/") else []
    overrides = with_space([f"experiment={Path(space).name}", f"output_dir={tmp_path}", *automatic])
    with initialize_config_module("configs", version_base="1.3"):
        cfg = compose("sweep", overrides)
        check(cfg, SweepSettings)
        made = plan.make(cfg, overrides)
    searched = {parameter.key for parameter in made.space.parameters if not parameter.when}
    assert made.first[0].keys() >= searched - {"model"}, "the default lies outside of the space"


def test_the_space_is_named_beside_the_experiment_since_flags_may_follow() -> None:
    assert with_space(["experiment=a", "--config-dir", "d"]) == ["experiment=a", "sweep=a", "--config-dir", "d"]
    assert with_space(["sweep=auto", "experiment=a"]) == ["experiment=a", "sweep=auto/a"]
    assert with_space(["experiment=a", "sweep=mine"]) == ["experiment=a", "sweep=mine"]
