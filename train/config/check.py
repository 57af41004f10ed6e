"""Check a composed config against the signatures that it names, before data, GPU or process group is touched."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any, get_args, get_origin

from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from train.config import signature
from train.config.finding import Finding, did_you_mean, message, shown
from train.config.origin import layers_of_this_job
from train.config.settings import SUPPLIED, TrainSettings
from train.config.signature import Parameters
from train.config.target import locate
from train.config.values import misfits
from train.errors import ConfigError

OUR_KEYS = frozenset({"_target_", "_partial_", "_recursive_", "_convert_", "_args_"})
BROKEN = object()  # stands for a value that has a finding already


def check(cfg: DictConfig, settings: type = TrainSettings, supplied: Mapping[str, frozenset[str]] = SUPPLIED) -> None:
    """Raise a ConfigError that lists all findings, each with the file or override that it came from."""
    findings = find(cfg, settings, supplied)
    if findings:
        layers = layers_of_this_job()
        raise ConfigError(message(replace(finding, origin=layers.origin(finding.key)) for finding in findings))


def find(cfg: DictConfig, settings: type, supplied: Mapping[str, frozenset[str]]) -> list[Finding]:
    """All findings: of the top level against the TypedDict `settings`, of each `_target_` node against its signature.

    Args:
        cfg: the composed config, interpolations and all.
        settings: the keys of the top level.
        supplied: by the key of a node, the parameters which the verb itself passes to that constructor.
    """
    findings: list[Finding] = []
    plain = _plain(cfg, "", findings)
    if "model" in settings.__annotations__ and plain.get("data") is None and plain.get("model") is None:
        return [Finding("experiment", "is missing: add experiment=NAME; `python -m train` alone lists them")]
    findings += _against(signature.of_typed_dict(settings), plain, "", "the configuration")
    findings += _nodes(plain, "", supplied)
    return findings


def _plain(node: Any, key: str, findings: list[Finding]) -> Any:
    """The node as plain containers, with a finding for each `???` and each interpolation that fails."""
    if not isinstance(node, (DictConfig, ListConfig)):
        return node
    if node._is_none():
        return None
    steps = list(node) if isinstance(node, DictConfig) else range(len(node))
    values = {step: _value(node, step, _below(key, step), findings) for step in steps}
    return values if isinstance(node, DictConfig) else list(values.values())


def _value(node: DictConfig | ListConfig, step: Any, key: str, findings: list[Finding]) -> Any:
    if OmegaConf.is_missing(node, step):
        findings.append(Finding(key, "has no value; give it one in a yaml file or as an override", "???"))
        return BROKEN
    try:
        return _plain(node[step], key, findings)
    except OmegaConfBaseException as error:
        raw = OmegaConf.to_container(node, resolve=False)
        assert isinstance(raw, (dict, list))
        findings.append(Finding(key, f"cannot be resolved: {str(error).splitlines()[0]}", shown(raw[step])))
        return BROKEN


def _nodes(plain: Any, key: str, supplied: Mapping[str, frozenset[str]], complete: bool = True) -> Iterator[Finding]:
    """Findings of every `_target_` node at or below `key`; not `complete` where a constructor adds to the node."""
    if isinstance(plain, dict):
        if "_target_" in plain:
            is_whole = complete and plain.get("_partial_") is not True
            yield from _node(plain, key, supplied.get(key, frozenset()), is_whole)
        below_complete = complete and plain.get("_recursive_") is not False
        for name, value in plain.items():
            yield from _nodes(value, _below(key, name), supplied, below_complete)
    elif isinstance(plain, list):
        for index, value in enumerate(plain):
            yield from _nodes(value, _below(key, index), supplied, complete)


def _node(plain: dict[str, Any], key: str, supplied: frozenset[str], complete: bool) -> Iterator[Finding]:
    name = plain["_target_"]
    if name is BROKEN:
        return
    try:
        target = locate(name)
    except ConfigError as error:
        yield Finding(f"{key}._target_", str(error), shown(name))
        return
    parameters = signature.of_callable(target)
    values = {step: value for step, value in plain.items() if step not in OUR_KEYS}
    for step in sorted(supplied & values.keys()):
        yield Finding(f"{key}.{step}", "is set by the run itself; leave it out", shown(values.pop(step)))
    given = supplied | set(parameters.positional[: len(plain.get("_args_", []))])
    yield from _against(parameters, values, key, name, given if complete else parameters.required)


def _against(
    parameters: Parameters, values: dict[Any, Any], key: str, owner: str, given: frozenset[str] = frozenset()
) -> Iterator[Finding]:
    """Unknown keys, wrong values, missing keys; `given` need not be in `values`."""
    for name, value in values.items():
        place = _below(key, name)
        if name in parameters.annotations:
            yield from _fits(value, parameters.annotations[name], place)
        elif not parameters.takes_any:
            hint = did_you_mean(str(name), parameters.annotations)
            yield Finding(place, f"is not a parameter of {owner}{hint}", shown(value))
    for name in parameters.annotations:
        if name in parameters.required - given and name not in values:
            yield Finding(_below(key, name), f"is missing: {owner} needs it")


def _fits(value: Any, annotation: Any, key: str) -> Iterator[Finding]:
    if _holds(value, BROKEN) or _has_target(value):
        return
    kind = signature.as_typed_dict(annotation)
    if kind and isinstance(value, dict):
        yield from _against(signature.of_typed_dict(kind), value, key, f"'{key}'")
        return
    below = get_args(annotation)[0] if get_origin(annotation) is list else None
    if below and signature.as_typed_dict(below) and isinstance(value, list):  # which pydantic does not read in 3.11
        for index, item in enumerate(value):
            yield from _fits(item, below, f"{key}[{index}]")
        return
    for path, found, rule in misfits(value, dict | None if kind else annotation):
        yield Finding(key + path, rule, shown(found))


def _has_target(value: Any) -> bool:
    if isinstance(value, dict):
        return "_target_" in value or any(_has_target(item) for item in value.values())
    return isinstance(value, list) and any(_has_target(item) for item in value)


def _holds(value: Any, sought: object) -> bool:
    items = value.values() if isinstance(value, dict) else value if isinstance(value, list) else []
    return value is sought or any(_holds(item, sought) for item in items)


def _below(key: str, step: object) -> str:
    if isinstance(step, int):
        return f"{key}[{step}]"
    return f"{key}.{step}" if key else str(step)
