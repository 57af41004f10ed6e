import json
from pathlib import Path
from typing import Any

import optuna
import pytest
from hydra import compose, initialize_config_module
from omegaconf import OmegaConf

from train.errors import ConfigError
from train.sweep import plan
from train.sweep.space import Space, override, parse

KINDS = {
    "model": ["tabm", "mlp"],
    "model.lr": {"float": [1e-4, 1e-2], "log": True},
    "model.dropout": {"float": [0.0, 0.5], "step": 0.25},
    "model.num_blocks": {"int": [1, 3]},
    "model.num_members": {"int": [4, 16], "step": 4, "when": {"model": "tabm"}},
}


def drawn(space: Space, count: int) -> list[dict[str, Any]]:
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    return [space.suggest(study.ask(), {}) for _ in range(count)]


def make(*overrides: str, **settings: Any) -> plan.Plan:
    """The plan of a sweep of the fraud experiment with another space."""
    lines = ["experiment=fraud", "sweep=none", *overrides]
    with initialize_config_module("configs", version_base="1.3"):
        cfg = compose("sweep", lines)
        for key, value in settings.items():
            OmegaConf.update(cfg, key, value, force_add=True)
        return plan.make(cfg, lines)


def test_each_kind_of_value_is_drawn_from_its_range() -> None:
    for values in drawn(parse(KINDS), 40):
        assert values["model"] in ("tabm", "mlp")
        assert 1e-4 <= values["model.lr"] <= 1e-2
        assert values["model.dropout"] in (0.0, 0.25, 0.5)
        assert values["model.num_blocks"] in (1, 2, 3)


def test_a_key_counts_only_where_its_condition_holds() -> None:
    for values in drawn(parse(KINDS), 40):
        assert ("model.num_members" in values) == (values["model"] == "tabm")


def test_choices_may_be_lists() -> None:
    space = parse({"data.windows_days": [[1, 7], [1, 7, 30]]})
    assert {json.dumps(values["data.windows_days"]) for values in drawn(space, 20)} == {"[1, 7]", "[1, 7, 30]"}


@pytest.mark.parametrize(
    ("node", "rule"),
    [
        ({"flaot": [0, 1]}, "did you mean 'float'"),
        ({"float": [0, 1], "lgo": True}, "did you mean 'log'"),
        ({"float": [1, 0]}, "`low <= high`"),
        ({"float": [0, 1], "log": True}, "`low > 0` must hold"),
        ({"int": [0.5, 2]}, "two whole numbers"),
        ({"float": [0, 1, 2]}, "two numbers"),
        ({"choice": []}, "list the choices"),
        ([0.1, 0.1], "list each choice once"),
        ({"float": [0, 0.4], "step": "abc"}, "step must be a number above 0"),
        ({"float": [0, 0.4], "step": 0.3}, "whole number of steps"),
        ({"int": [1, 4], "step": 0.5}, "step must be a whole number"),
        ({"float": [0.1, 0.4], "log": "nope"}, "log must be true or false"),
        (3, "a list of choices"),
        ({"int": [1, 2], "when": "tabm"}, "{KEY: VALUE}"),
    ],
)
def test_a_space_that_breaks_a_rule_is_refused_in_words(node: Any, rule: str) -> None:
    with pytest.raises(ConfigError, match="(?s)model.lr.*" + rule.replace("{", r"\{").replace("}", r"\}")):
        parse({"model.lr": node})


def test_all_that_is_wrong_is_told_at_once() -> None:
    with pytest.raises(ConfigError, match=r"(?s)2 errors.*model\.lr.*model\.dropout"):
        parse({"model.lr": 3, "model.dropout": {"float": [0]}})


@pytest.mark.slow
@pytest.mark.parametrize(
    ("space", "rules"),
    [
        ({"model.lrr": {"float": [1e-4, 1e-2]}}, ("model.lrr", "did you mean 'lr'")),
        ({"model.dropout": {"float": [0.0, 1.5]}}, ("model.dropout: 1.5", "less than")),
        ({"model": ["tabm", "mlpp"]}, ("mlpp", "did you mean 'mlp'")),
        ({"model": ["tabm", "mlp"], "model.num_members": {"int": [2, 4]}}, ("model.num_members", "no key")),
        ({"model.schedule": ["cosine", "cosin"]}, ("model.schedule: 'cosin'", "did you mean 'cosine'")),
        ({"trainer.max_epochs": ["many", 3]}, ("trainer.max_epochs", "many")),
    ],
)
def test_every_key_and_value_is_checked_against_the_config_before_the_first_trial(
    space: dict[str, Any], rules: tuple[str, ...]
) -> None:
    with pytest.raises(ConfigError) as raised:
        make(space=space)
    for rule in rules:
        assert rule in str(raised.value)


def test_a_condition_keeps_a_key_from_models_that_lack_it() -> None:
    made = make(
        space={"model": ["tabm", "mlp"], "model.num_members": {"int": [2, 4], "when": {"model": "tabm"}}},
    )
    assert made.trial_config({"model": "mlp"}, "0").model._target_.endswith("FraudMLP")
    assert made.trial_config({"model": "tabm", "model.num_members": 3}, "0").model.num_members == 3


def test_a_key_on_the_command_line_is_not_searched() -> None:
    space = {"model.width": [8, 16], "model.num_blocks": {"int": [1, 3]}}
    made = make("model.width=32", space=space)
    assert made.pinned == ("model.width",)
    assert [parameter.key for parameter in made.space.parameters] == ["model.num_blocks"]
    assert made.trial_config({"model.num_blocks": 3}, "0").model.width == 32


def test_the_first_trial_has_the_values_of_the_yaml_files() -> None:
    made = make(space=KINDS)
    assert made.first[0] == {
        "model": "tabm",
        "model.lr": 1e-3,
        "model.num_blocks": 2,
        "model.num_members": 8,
    }  # the dropout of 0.1 is none of 0, 0.25 and 0.5


def test_a_grid_has_each_combination_once() -> None:
    space = {**KINDS, "model.lr": [1e-3, 1e-2]}
    made = make("sampler=grid", "trials=1000", space=space)
    assert made.total == len(made.first) == 2 * 3 * 3 * (4 + 1)
    assert len({json.dumps(values) for values in made.first}) == made.total


def test_a_grid_over_a_range_without_a_step_is_refused() -> None:
    with pytest.raises(ConfigError, match="model.lr is a range without a step"):
        make("sampler=grid", space=KINDS)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("overrides", "rule"),
    [
        (["+sampler_options.gama=1"], "gama"),
        (["+pruner_options.reduction_facto=3"], "did you mean 'reduction_factor'"),
        (["+pruner_options.reduction_factor=many"], "pruner_options.reduction_factor"),
        (["pruner=median", "+pruner_options.n_startup_trials=-1"], "pruner_options.*startup"),
        (["objectives=[{metric:a,mode:max},{metric:b,mode:min}]"], "pruner=none"),
        (["warm_start=[nowhere]"], "'nowhere' is no folder of a study"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(overrides: list[str], rule: str) -> None:
    with pytest.raises(ConfigError, match=rule):
        make(*overrides, space=KINDS)


def test_an_earlier_studys_best_are_tried_after_the_default(tmp_path: Path) -> None:
    best = {"best": [{"number": 4, "values": {"model.lr": 0.005, "model.num_blocks": 3, "model.depth": 1}}]}
    (tmp_path / "best.yaml").write_text(json.dumps(best))
    made = make(f"warm_start=[{tmp_path}]", space={key: KINDS[key] for key in ("model.lr", "model.num_blocks")})
    assert made.first[1] == {"model.lr": 0.005, "model.num_blocks": 3}


@pytest.mark.parametrize(
    "value", [1, 0.1, 1e-7, True, None, "tabm", "a b", "null", "it's", [1, 7], ["a", None], {"a": 1}, "s3://b/k", "x,y"]
)
def test_an_override_gives_back_its_value(value: Any) -> None:
    with initialize_config_module("configs", version_base="1.3"):
        cfg = compose("train", ["experiment=fraud", "+" + override("extra", value)])
    assert (OmegaConf.to_container(cfg)["extra"]) == value  # type: ignore[index, call-overload]
