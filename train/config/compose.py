"""Say in a user's words why Hydra could not compose a config, one finding for each override that is to blame."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]
from hydra import compose, initialize_config_module
from hydra._internal.utils import get_args_parser
from hydra.core.global_hydra import GlobalHydra
from hydra.core.object_type import ObjectType
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from train.config.arguments import key_of
from train.config.finding import Finding, did_you_mean, message, shown
from train.config.origin import override_name
from train.errors import ConfigError

Compose = Callable[[list[str]], DictConfig]
REFUSED = (HydraException, OmegaConfBaseException, yaml.YAMLError)  # what composing raises


def explain(error: BaseException, arguments: list[str], config_name: str = "train") -> ConfigError:
    """The findings behind an error of Hydra's, from trying the overrides of the command line one by one."""
    options = get_args_parser().parse_args(arguments)
    options.config_name = options.config_name or config_name
    findings = [] if options.multirun else _blamed(options)
    failure = ConfigError(message(findings or [_finding(error)]))
    failure.__cause__ = None if findings else error
    return failure


def not_utf8(arguments: list[str]) -> ConfigError | None:
    """The first file below --config-dir that is not UTF-8, which neither Python nor Hydra names; None without one."""
    folder = get_args_parser().parse_known_args(arguments)[0].config_dir
    for path in sorted(Path(folder).rglob("*.yaml")) if folder else ():
        try:
            path.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            line = error.object[: error.start].count(b"\n") + 1
            byte = f"{error.object[error.start]:#04x}"
            return ConfigError(message([Finding(f"{path}, line {line}", f"is not UTF-8: byte {byte}")]))
    return None


def _blamed(options: Any) -> list[Finding]:
    """What each override that Hydra refuses does wrong; none if the config is broken without them."""
    more = [] if options.config_dir is None else [f"hydra.searchpath=[file://{os.path.abspath(options.config_dir)}]"]
    with initialize_config_module(config_module="configs", version_base="1.3"):

        def composed(overrides: list[str]) -> DictConfig:
            return compose(config_name=options.config_name, overrides=[*more, *overrides])

        try:
            composed([])
        except REFUSED:
            return []
        groups = _groups(options.config_name, more)
        choices = [line for line in options.overrides if key_of(line) in groups]
        kept, findings = _tried(choices, [], composed, groups)
        # A wrong choice of a file makes its keys look wrong too: tell the choices first.
        return findings or _tried([o for o in options.overrides if o not in choices], kept, composed, groups)[1]


def _groups(config_name: str, search_path: list[str]) -> list[str]:
    loader: Any = GlobalHydra.instance().config_loader()
    names = loader.get_group_options("", ObjectType.GROUP, config_name=config_name, overrides=search_path)
    return [name for name in names if not name.startswith(("hydra", "_"))]


def _tried(
    overrides: list[str], kept: list[str], composed: Compose, groups: list[str]
) -> tuple[list[str], list[Finding]]:
    """The overrides that compose on top of `kept`, and a finding for each that does not."""
    findings = []
    for line in overrides:
        try:
            composed([*kept, line])
        except REFUSED as error:
            findings.append(finding_of_override(error, line, composed(kept), groups))
        else:
            kept = [*kept, line]
    return kept, findings


def finding_of_override(error: Exception, line: str, config: DictConfig, groups: list[str]) -> Finding:
    """What is wrong with an override that Hydra refuses on top of `config`."""
    origin = override_name(line)
    if isinstance(error, OverrideParseException):
        detail = ", ".join(str(error).splitlines()[1:2]).partition(" expecting")[0]
        rule = f"is not KEY=VALUE ({detail}); quote a value that has special characters: KEY='\"VALUE\"'"
        return Finding(line, rule, origin="the command line")
    override = OverridesParser.create().parse_override(line)
    key, value = override.key_or_group, shown(override.value())
    if isinstance(error, yaml.YAMLError):
        return _finding(error)
    if isinstance(error, MissingConfigException):
        found = _finding(error)
        # Another file than the one asked for: it is named in the defaults list of the one asked for.
        return replace(found, origin=origin if found.key == key else f"{key}/{override.value()}.yaml")
    unknown = _unknown_step(key, config, groups)
    if unknown is None:
        return Finding(key, _first_line(error), value, origin)
    may_add = "." in key and not override.is_delete()
    add = f" (a parameter that no yaml file sets: +{line.lstrip('+')})" if may_add else ""
    return Finding(key, unknown + add, value, origin)


def _unknown_step(key: str, config: DictConfig, groups: list[str]) -> str | None:
    """Which part of a dotted key is not in the config; None if all of it is."""
    values: Any = OmegaConf.to_container(config, resolve=False)
    above = ""
    for step in key.split("."):
        if not above and step in groups and values.get(step) is None:
            return f"has no keys before a file is chosen: {step}=NAME or experiment=NAME"
        if not isinstance(values, dict):
            return f"is below '{above}', which is {shown(values)}"
        if step not in values:
            hint = did_you_mean(step, [*values, *(groups if not above else [])])
            return f"no key '{step}' in {above or 'the configuration'}{hint}"
        values, above = values[step], f"{above}.{step}" if above else step
    return None


def _finding(error: BaseException) -> Finding:
    """What can be told of an error without knowing the override that is to blame."""
    if isinstance(error, yaml.YAMLError):
        mark = getattr(error, "problem_mark", None)
        place = f"{mark.name}, line {mark.line + 1}" if mark else "a file"
        return Finding(place, f"is no YAML: {error.problem if mark else error}")
    if not isinstance(error, MissingConfigException) or error.missing_cfg_file is None:
        lines = [line for line in str(error).splitlines() if line.strip()]
        cause = [str(error.__cause__).splitlines()[0]] if isinstance(error.__cause__, OmegaConfBaseException) else []
        return Finding("composition", "\n    ".join([*lines, *cause]))
    group, _, name = error.missing_cfg_file.rpartition("/")
    if not error.options:
        return Finding(error.missing_cfg_file, "there is no such file in configs/ or --config-dir")
    rule = f"must be one of {', '.join(error.options)}{did_you_mean(name, error.options)}"
    return Finding(group, rule, name, _file_in(error))


def _file_in(error: BaseException) -> str | None:
    """The file whose defaults list is to blame, by Hydra's message."""
    found = re.match(r"In '([^']+)'", str(error))
    return f"{found[1]}.yaml" if found else None


def _first_line(error: BaseException) -> str:
    return str(error).splitlines()[0]
