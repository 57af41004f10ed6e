"""The search space: its keys are overrides of the command line, its values what they may become.

It is read from yaml such as this.

space:
  model: [tabm, mlp]                                  # a choice of a config group
  model.lr: {float: [1.0e-4, 1.0e-2], log: true}
  model.num_blocks: {int: [1, 4]}
  model.dropout: {float: [0.0, 0.5], step: 0.1}
  model.num_members: {int: [4, 16], when: {model: tabm}}

What a `when` does not allow is not drawn.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from train.config.finding import Finding, did_you_mean, message, shown
from train.errors import ConfigError

Values = dict[str, Any]

_OPTIONS = {"float": {"log", "step", "when"}, "int": {"log", "step", "when"}, "choice": {"when"}}
_PLAIN = re.compile(r"[A-Za-z_][\w./+-]*")
_WORDS = {"null", "true", "false", "nan", "inf"}  # which the command line reads as other than text
ORIGIN = "the search space"


class Suggesting(Protocol):
    """What chooses values: a trial of Optuna's."""

    def suggest_float(self, name: str, low: float, high: float, *, step: float | None, log: bool) -> float:
        """Choose a number."""

    def suggest_int(self, name: str, low: int, high: int, *, step: int, log: bool) -> int:
        """Choose a whole number."""

    def suggest_categorical(self, name: str, choices: Sequence[Any]) -> Any:
        """Choose one."""


@dataclass(frozen=True)
class Parameter:
    """One key of the space.

    Attributes:
        key: a dotted key of the config, or a config group.
        distribution: what Optuna draws from; a choice that is a list or mapping is there as its JSON.
        when: the values that other keys must have for this one to count.
    """

    key: str
    distribution: BaseDistribution
    when: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)

    def suggest(self, trial: Suggesting) -> Any:
        """Let a trial choose."""
        one = self.distribution
        if isinstance(one, FloatDistribution):
            return trial.suggest_float(self.key, one.low, one.high, step=one.step, log=one.log)
        if isinstance(one, IntDistribution):
            return trial.suggest_int(self.key, one.low, one.high, step=one.step, log=one.log)
        assert isinstance(one, CategoricalDistribution)
        return decoded(trial.suggest_categorical(self.key, one.choices))

    def examples(self) -> list[Any]:
        """The ends of a range, or each choice: what is checked before the first trial."""
        one = self.distribution
        if isinstance(one, CategoricalDistribution):
            return [decoded(choice) for choice in one.choices]
        assert isinstance(one, FloatDistribution | IntDistribution)
        return [one.low, one.high]

    def grid(self) -> list[Any]:
        """Every value. Raises ConfigError where a range has no step."""
        one = self.distribution
        if isinstance(one, CategoricalDistribution):
            return self.examples()
        assert isinstance(one, FloatDistribution | IntDistribution)
        if one.step is None or one.log:
            raise ConfigError(
                f"sampler=grid: {self.key} is a range without a step; give it a step, or its values as a list"
            )
        count = round((one.high - one.low) / one.step) + 1
        return [one.low + index * one.step for index in range(count)]

    def contains(self, value: Any) -> bool:
        """Whether a value could have been drawn."""
        try:
            return self.distribution._contains(self.distribution.to_internal_repr(encoded(value)))
        except (ValueError, TypeError):
            return False

    def is_active(self, values: Mapping[str, Any]) -> bool:
        """Whether it counts, given the values of the others."""
        return all(values.get(key) in allowed for key, allowed in self.when.items())


def encoded(value: Any) -> Any:
    """A value as Optuna keeps it."""
    return value if value is None or isinstance(value, bool | int | float | str) else f"json:{json.dumps(value)}"


def decoded(value: Any) -> Any:
    """The value behind `encoded`."""
    return json.loads(value[5:]) if isinstance(value, str) and value.startswith("json:") else value


class Space:
    """The parameters of a search, those with a `when` last.

    Args:
        parameters: in the order of the file.
    """

    def __init__(self, parameters: Iterable[Parameter]) -> None:
        self.parameters = sorted(parameters, key=lambda parameter: bool(parameter.when))

    def suggest(self, trial: Suggesting, known: Mapping[str, Any]) -> Values:
        """Let a trial choose all values that count.

        Args:
            trial: what chooses.
            known: values of keys that are not in the space, for `when`.
        """
        values: Values = {}
        for parameter in self.parameters:
            if parameter.is_active({**known, **values}):
                values[parameter.key] = parameter.suggest(trial)
        return values

    def without(self, keys: Iterable[str]) -> Space:
        """The space in which these keys are no longer searched."""
        dropped = set(keys)
        return Space(parameter for parameter in self.parameters if parameter.key not in dropped)

    def grid(self, known: Mapping[str, Any]) -> list[Values]:
        """Every combination once. Raises ConfigError where a range has no step."""
        found: list[Values] = []
        for values in itertools.product(*(parameter.grid() for parameter in self.parameters)):
            chosen: Values = {}
            for parameter, value in zip(self.parameters, values, strict=True):
                if parameter.is_active({**known, **chosen}):
                    chosen[parameter.key] = value
            if chosen not in found:
                found.append(chosen)
        return found

    def facts(self) -> dict[str, Any]:
        """The space as plain values, to compare with that of an earlier start."""
        return {
            parameter.key: [str(parameter.distribution), {key: list(of) for key, of in parameter.when.items()}]
            for parameter in self.parameters
        }


def parse(space: Mapping[str, Any]) -> Space:
    """Read the `space` of a config. Raises ConfigError with all that is wrong with it."""
    findings: list[Finding] = []
    parameters = []
    for key, node in space.items():
        try:
            parameters.append(_parameter(str(key), node))
        except ValueError as error:
            findings.append(Finding(str(key), str(error), shown(node), ORIGIN))
    keys = {parameter.key for parameter in parameters}
    for parameter in parameters:
        findings += [
            Finding(f"{parameter.key}.when", "must not depend on a key that itself has a `when`", other, ORIGIN)
            for other in parameter.when
            if other in keys and next(one for one in parameters if one.key == other).when
        ]
    if not space:
        findings.append(Finding("space", "is empty: name at least one key and the values that it may have"))
    if findings:
        raise ConfigError(message(findings))
    return Space(parameters)


def _parameter(key: str, node: Any) -> Parameter:
    if isinstance(node, list):
        node = {"choice": node}
    if not isinstance(node, Mapping):
        raise ValueError("must be a list of choices, or {float: [low, high]}, {int: [low, high]} or {choice: [...]}")
    kinds = [kind for kind in _OPTIONS if kind in node]
    if len(kinds) != 1:
        hint = "".join(did_you_mean(str(name), _OPTIONS) for name in node)
        raise ValueError(f"must have one of {', '.join(_OPTIONS)}{hint}")
    (kind,) = kinds
    for name in node.keys() - {kind, *_OPTIONS[kind]}:
        raise ValueError(f"{kind} has no option {name!r}{did_you_mean(str(name), _OPTIONS[kind])}")
    return Parameter(key, _distribution(kind, node), _conditions(node.get("when", {})))


def _distribution(kind: str, node: Mapping[str, Any]) -> BaseDistribution:
    values = node[kind]
    if kind == "choice":
        if not isinstance(values, list) or not values:
            raise ValueError("must list the choices")
        choices = [encoded(value) for value in values]
        if twice := [value for value in choices if choices.count(value) > 1]:
            raise ValueError(f"must list each choice once; {twice[0]!r} is there {choices.count(twice[0])} times")
        return CategoricalDistribution(choices)
    types: Any = int if kind == "int" else (int, float)
    if not isinstance(values, list) or len(values) != 2 or not all(_is_number(value, types) for value in values):
        raise ValueError(f"must be two {'whole ' if kind == 'int' else ''}numbers, [low, high]")
    low, high = values
    log, step = node.get("log", False), node.get("step")
    if not isinstance(log, bool):
        raise ValueError(f"log must be true or false; got {log!r}")
    if step is not None and not (_is_number(step, types) and step > 0):
        raise ValueError(f"step must be a {'whole ' if kind == 'int' else ''}number above 0; got {step!r}")
    if step is not None and abs((high - low) / step - round((high - low) / step)) > 1e-6:
        raise ValueError(f"high must be a whole number of steps above low; {low} to {high} by {step} is not")
    if kind == "float":
        return FloatDistribution(float(low), float(high), log=log, step=step)
    return IntDistribution(low, high, log=log, step=1 if step is None else step)


def _is_number(value: Any, types: Any) -> bool:
    return isinstance(value, types) and not isinstance(value, bool)


def _conditions(when: Any) -> dict[str, tuple[Any, ...]]:
    if not isinstance(when, Mapping):
        raise ValueError("when must be {KEY: VALUE} or {KEY: [VALUE, ...]}")
    return {str(key): tuple(value) if isinstance(value, list) else (value,) for key, value in when.items()}


def override(key: str, value: Any) -> str:
    """The override of the command line that gives a key this value."""
    return f"{key}={_text(value)}"


def _text(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    if isinstance(value, list):
        return f"[{','.join(_text(item) for item in value)}]"
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{name}:{_text(item)}" for name, item in value.items()) + "}"
    if isinstance(value, str) and (not _PLAIN.fullmatch(value) or value.lower() in _WORDS):
        return json.dumps(value)
    return str(value)
