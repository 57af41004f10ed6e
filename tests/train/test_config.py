"""The check of a config against signatures, in process and without Hydra but for the real configs at the end."""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, NotRequired, TypedDict

import pytest
from annotated_types import Gt
from hydra import compose, initialize_config_module
from omegaconf import DictConfig, OmegaConf

from train import errors
from train.config.arguments import in_order
from train.config.check import check, find
from train.config.origin import Layers
from train.config.settings import SUPPLIED, TrainSettings

HOME = Path(__file__).parent / "user_home"
CONFIGS = Path(__file__).parents[2] / "configs"


class Inner(TypedDict):
    every: Annotated[float, Gt(0)]
    keep: NotRequired[int]


class Settings(TypedDict, total=False):
    node: Any
    inner: Inner | None
    mode: Literal["min", "max"]


@pytest.fixture(autouse=True)
def _toy_is_importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(HOME))


def told(node: object = None, supplied: frozenset[str] = frozenset(), **top_level: object) -> dict[str, str]:
    """The rule that is broken at each key."""
    content = {**({} if node is None else {"node": node}), "data": 1, **top_level}
    cfg = OmegaConf.create(content)
    findings = find(cfg, Settings, {"node": supplied})
    return {finding.key: finding.rule for finding in findings if finding.key != "data"}


def model(**values: object) -> dict[str, object]:
    valid = {"_target_": "toy.Model", "width": 8, "dropout": 0.1, "lr": 1e-3, "schedule": "cosine", **values}
    return {name: value for name, value in valid.items() if value != "absent"}


def test_a_node_that_fits_its_signature_has_no_findings() -> None:
    assert told(model(), frozenset({"schema"})) == {}


@pytest.mark.parametrize(
    ("values", "findings"),
    [
        ({"dropuot": 1}, {"node.dropuot": "is not a parameter of toy.Model; did you mean 'dropout'?"}),
        ({"width": "absent"}, {"node.width": "is missing: toy.Model needs it"}),
        ({"lr": "absent"}, {"node.lr": "is missing: toy.Model needs it"}),
        ({"width": "abc"}, {"node.width": "must be a valid integer"}),
        ({"width": "8"}, {"node.width": "must be a valid integer"}),
        ({"width": True}, {"node.width": "must be a valid integer"}),
        ({"width": None}, {"node.width": "must be a valid integer"}),
        ({"compile": 1}, {"node.compile": "must be a valid boolean"}),
        ({"dropout": 1.0}, {"node.dropout": "must be less than 1"}),
        ({"dropout": 0}, {}),
        ({"lr": float("inf")}, {}),
        ({"clip": None}, {}),
        ({"schedule": "cosin"}, {"node.schedule": "must be 'cosine' or 'constant'; did you mean 'cosine'?"}),
        ({"width": "???"}, {"node.width": "has no value; give it one in a yaml file or as an override"}),
        ({"width": "${nope}"}, {"node.width": "cannot be resolved: Interpolation key 'nope' not found"}),
        ({"schema": {}}, {"node.schema": "is set by the run itself; leave it out"}),
        ({"width": {"_target_": "toy.anything"}}, {}),
    ],
)
def test_a_key_that_breaks_the_signature_is_found(values: dict[str, object], findings: dict[str, str]) -> None:
    assert told(model(**values), frozenset({"schema"})) == findings


@pytest.mark.parametrize(
    ("target", "rule"),
    [
        ("toy.Modle", "module toy has no 'Modle'; did you mean 'Model'?"),
        ("modles.fraud.FraudTabM", "no module named 'modles'; did you mean 'models'?"),
        ("train.config.signatur.of", "module train.config has no 'signatur'; did you mean 'signature'?"),
        ("toy.NUMBER", "must be a class or function, not int"),
        ("os.system", "must not be in Python's standard library: 'os'"),
        ("builtins.eval", "must not be in Python's standard library: 'builtins'"),
        (
            "lightning.pytorch.Trainer",
            "must be spelled pytorch_lightning: its classes are not those of lightning.pytorch",
        ),
        ("Model", "must name a class or function as package.module.Name"),
        (3, "must name a class or function as package.module.Name"),
    ],
)
def test_a_target_that_is_not_there_or_not_allowed_is_found(target: object, rule: str) -> None:
    assert told({"_target_": target}) == {"node._target_": rule}


def test_a_module_that_cannot_import_says_what_it_lacks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "lacking.py").write_text("import not_installed_anywhere")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert told({"_target_": "lacking.Model"}) == {
        "node._target_": "cannot be imported: No module named 'not_installed_anywhere'"
    }


def test_nodes_are_found_at_any_depth_and_in_lists() -> None:
    bad = {"_target_": "toy.Trainer", "max_epoch": 1}
    node = {"_target_": "toy.anything", "deep": {"er": [1, bad]}}
    assert told(node) == {"node.deep.er[1].max_epoch": "is not a parameter of toy.Trainer; did you mean 'max_epochs'?"}


@pytest.mark.parametrize("flag", [{"_partial_": True}, {}])
def test_a_partial_node_may_lack_parameters(flag: dict[str, bool]) -> None:
    assert bool(told({**model(width="absent"), **flag})) is not bool(flag)


def test_a_node_that_its_owner_instantiates_may_lack_parameters() -> None:
    inner = model(width="absent", dropuot=1)
    found = told({"_target_": "toy.anything", "_recursive_": False, "inner": inner})
    assert list(found) == ["node.inner.dropuot"]


def test_a_list_stands_for_a_tuple_and_its_items_are_checked() -> None:
    data = {"_target_": "toy.Data", "path": "a/b"}
    assert told({**data, "sizes": [1, 2]}) == {}
    assert told({**data, "sizes": [1, "b"]}) == {"node.sizes[1]": "must be a valid integer"}


def test_text_that_yaml_reads_as_a_number_comes_with_the_way_to_write_it() -> None:
    found = told({"_target_": "toy.Data", "path": 2024, "sizes": [1, 2]})
    assert found == {"node.path": "must be a valid string; the text is written '\"2024\"' on a command line"}


@pytest.mark.parametrize(
    ("top_level", "findings"),
    [
        ({"inner": None}, {}),
        ({"inner": {"every": 1, "keep": 2}}, {}),
        ({"inner": {"every": 0}}, {"inner.every": "must be greater than 0"}),
        ({"inner": {"evry": 1}}, {"inner.evry": "", "inner.every": ""}),
        ({"inner": 3}, {"inner": "must be a mapping"}),
        ({"mdoe": "min"}, {"mdoe": "is not a parameter of the configuration; did you mean 'mode'?"}),
    ],
)
def test_the_top_level_is_checked_by_its_typed_dict(top_level: dict[str, Any], findings: dict[str, str]) -> None:
    found = told(**top_level)
    assert found.keys() == findings.keys()
    assert all(rule in found[key] for key, rule in findings.items())


def test_annotations_that_only_type_checkers_resolve_accept_anything(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "typed.py").write_text("def make(a: 'OnlyForMypy', b: 'int') -> None: ...")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert told({"_target_": "typed.make", "a": "x", "b": "x"}) == {"node.b": "must be a valid integer"}


def test_the_origin_of_a_key_is_the_last_that_sets_it() -> None:
    files = [("a.yaml", {"m": {"_target_": "t", "x": 1, "y": [1]}}), ("b.yaml", {"m": {"x": 2}})]
    layers = Layers(files, [("m.y", "m.y=[2]"), ("m.yy", "m.yy=3")])
    origins = {key: layers.origin(key) for key in ("m.x", "m.y[0]", "m.missing", "nowhere.x")}
    assert origins == {"m.x": "b.yaml", "m.y[0]": "the override 'm.y=[2]'", "m.missing": "a.yaml", "nowhere.x": None}


def test_flags_and_overrides_may_be_mixed() -> None:
    assert in_order(["a=1", "--config-dir", "d", "b=2"]) == ["--config-dir", "d", "a=1", "b=2"]
    assert in_order(["a=1", "b=2", "--cfg", "job"]) == ["a=1", "b=2", "--cfg", "job"]
    assert in_order(["--multirun", "a=1,2"]) == ["--multirun", "a=1,2"]


def test_reporting_keeps_text_and_cause_and_lets_defects_through() -> None:
    with pytest.raises(errors.DataError, match="^path: no such file$") as caught, errors.reporting(errors.DataError):
        raise ValueError("path: no such file")
    assert isinstance(caught.value.__cause__, ValueError)
    with pytest.raises(KeyError), errors.reporting(errors.DataError):
        raise KeyError("x")
    with pytest.raises(errors.StorageError), errors.reporting(errors.DataError):
        raise errors.StorageError("full")


def test_exit_codes_are_distinct_and_documented() -> None:
    codes = [kind.exit_code for kind in errors.UserError.__subclasses__()]
    assert sorted(codes) == [2, 3, 4, 5, 6, 7, 8, 9, 10, 75, 130]
    assert errors.__doc__ is not None
    assert all(f"\n    {code} " in errors.__doc__ for code in codes)


@pytest.fixture
def composed() -> Iterator[Any]:
    with initialize_config_module("configs", version_base="1.3"):
        yield lambda *overrides: compose("train", list(overrides))


def options(group: str) -> list[str]:
    return sorted(path.stem for path in (CONFIGS / group).glob("*.yaml"))


@pytest.mark.parametrize("experiment", options("experiment"))
@pytest.mark.parametrize("trainer", options("trainer"))
def test_every_experiment_passes_its_own_check(experiment: str, trainer: str, composed: Any) -> None:
    check(composed(f"experiment={experiment}", f"trainer={trainer}"), TrainSettings, SUPPLIED)


@pytest.mark.parametrize("experiment", options("experiment"))
def test_smoke_has_the_last_word(experiment: str, composed: Any) -> None:
    cfg: DictConfig = composed(f"experiment={experiment}", "trainer=smoke")
    assert (cfg.trainer.max_epochs, cfg.trainer.limit_train_batches, cfg.baselines) == (1, 2, None)
