"""The config of a trial: the one of the command line, with the trial's values in it."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from hydra.core.global_hydra import GlobalHydra
from hydra.core.object_type import ObjectType
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict

from train.config.check import find
from train.config.compose import REFUSED, finding_of_override
from train.config.finding import Finding, did_you_mean, message, shown
from train.config.settings import SUPPLIED, TrainSettings
from train.errors import ConfigError
from train.sweep.space import ORIGIN, Space, Values, override

MISSING = object()
MOST_PASSES = 64  # of checks: more choices than that are not all tried before the first trial


class Configuration:
    """Composes the configs of trials; what a choice of groups gives is read once.

    Args:
        config_name: the verb's.
        overrides: of the command line.
    """

    def __init__(self, config_name: str, overrides: Iterable[str]) -> None:
        self.config_name, self.overrides = config_name, list(overrides)
        loader: Any = GlobalHydra.instance().config_loader()
        self._loader = loader
        names = loader.get_group_options("", ObjectType.GROUP, config_name=config_name, overrides=[])
        self.groups = [name for name in names if not name.startswith(("hydra", "_"))]
        self._composed: dict[tuple[tuple[str, Any], ...], bytes] = {}
        self._prepared: dict[tuple[tuple[str, Any], ...], bytes] = {}

    def of(self, values: Mapping[str, Any], prepare: Callable[[DictConfig], None] | None = None) -> DictConfig:
        """The config with these values in it, which belongs to the caller.

        Args:
            values: by key.
            prepare: sets what else is to be in it, once for each choice of groups.

        Raises:
            HydraException, OmegaConfBaseException, YAMLError: there is no such option or key, or a file is no YAML.
        """
        choices = tuple((key, value) for key, value in values.items() if key in self.groups)
        kept = self._composed if prepare is None else self._prepared
        if choices not in kept:
            composed = self._compose(choices)
            if prepare is not None:
                prepare(composed)
            kept[choices] = pickle.dumps(composed)
        cfg: DictConfig = pickle.loads(kept[choices])  # in a sixth of the time of OmegaConf's copy
        for key, value in values.items():
            if key not in self.groups:
                OmegaConf.update(cfg, key, value)
        return cfg

    def _compose(self, choices: Iterable[tuple[str, Any]]) -> DictConfig:
        lines = [*self.overrides, *(override(key, value) for key, value in choices)]
        cfg: DictConfig = self._loader.load_configuration(self.config_name, lines, RunMode.RUN)
        with open_dict(cfg):
            for key in cfg.keys() - TrainSettings.__annotations__.keys():
                del cfg[key]
        return cfg

    def value(self, key: str) -> Any:
        """What the command line gives a key; for a group the option that is chosen; None for what is not there."""
        if key in self.groups:
            return self.choices().get(key)
        found = OmegaConf.select(self.of({}), key)
        return OmegaConf.to_container(found) if OmegaConf.is_config(found) else found

    def choices(self) -> dict[str, str]:
        """The option of each group."""
        found = self._loader.load_configuration(self.config_name, self.overrides, RunMode.RUN)
        return {str(name): option for name, option in found.hydra.runtime.choices.items()}

    def check(self, space: Space) -> None:
        """Try the ends of every range and each choice. Raises ConfigError that lists all that does not fit."""
        findings: dict[str, Finding] = {}
        for finding in self._unknown_conditions(space):
            findings.setdefault(str(finding), finding)
        groups = [parameter for parameter in space.parameters if parameter.key in self.groups]
        for chosen in Space(groups).grid({}) if groups else [{}]:
            for values in _passes(space, chosen, self):
                for finding in self._findings(values):
                    findings.setdefault(str(finding), finding)
        if findings:
            raise ConfigError(message(findings.values()))

    def _unknown_conditions(self, space: Space) -> Iterator[Finding]:
        """Keys of a `when` that are neither searched nor in any config that the groups' choices make."""
        searched = {parameter.key for parameter in space.parameters}
        for parameter in space.parameters:
            for key in parameter.when.keys() - searched - set(self.groups):
                if OmegaConf.select(self.of({}), key, default=MISSING) is MISSING:
                    parent = OmegaConf.select(self.of({}), key.rpartition(".")[0]) or {}
                    hint = did_you_mean(key.rpartition(".")[2], [str(name) for name in parent])
                    yield Finding(f"{parameter.key}.when", f"no key {key!r}{hint}", key, ORIGIN)

    def _findings(self, values: Values) -> list[Finding]:
        kept: Values = {}
        findings = []
        for key, value in values.items():
            try:
                self.of({**kept, key: value})
            except REFUSED as error:
                known = self.of(kept)
                found = finding_of_override(error, override(key, value), known, self.groups)
                findings.append(Finding(found.key, found.rule, shown(value), ORIGIN))
            else:
                kept[key] = value
        found_later = find(self.of(kept), TrainSettings, SUPPLIED) if not findings else []
        return findings + [
            Finding(one.key, one.rule, one.value, ORIGIN if one.key in values else None) for one in found_later
        ]


def _passes(space: Space, chosen: Values, configuration: Configuration) -> list[Values]:
    """Values that together have every example of every parameter that counts with these groups chosen."""
    rest = [parameter for parameter in space.parameters if parameter.key not in chosen]
    searched = {parameter.key for parameter in space.parameters}
    known = {key: configuration.value(key) for one in rest for key in one.when if key not in searched} | chosen
    counted = [one for one in rest if all(known[key] in of for key, of in one.when.items() if key in known)]
    examples = {one.key: one.examples() for one in counted}
    count = min(MOST_PASSES, max(map(len, examples.values()), default=1))
    return [
        {**chosen, **{key: values[index % len(values)] for key, values in examples.items()}} for index in range(count)
    ]
