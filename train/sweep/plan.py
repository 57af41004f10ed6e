"""All that the workers of a sweep must know alike, out of the composed config."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from optuna.samplers import BaseSampler

from train import ranks
from train.config.arguments import BEST, key_of
from train.config.settings import TrainSettings
from train.errors import ConfigError
from train.folder import is_plain_name
from train.sweep import samplers
from train.sweep.configuration import Configuration
from train.sweep.settings import SweepSettings
from train.sweep.slots import Slot
from train.sweep.space import Space, Values, encoded, parse

MOST_EARLIER = 5  # studies that a new one begins with the best of, where no folders are named
_SHARED = ("data", "model", "seed", "weights", "trainer.max_epochs", "trainer.max_steps")


@dataclass(frozen=True)
class Plan:
    """A sweep.

    Attributes:
        cfg: the composed config.
        configuration: makes the configs of trials.
        space: without the keys that the command line sets.
        pinned: those keys.
        folder: the study's: <output_dir>/<name>-sweep/<study>.
        first: values of the first slots: the default, earlier studies' best, or the points of a grid.
        known: values of keys that are not searched and that a `when` asks for.
        total: how many trials there are to be.
    """

    cfg: DictConfig
    configuration: Configuration
    space: Space
    pinned: tuple[str, ...]
    folder: Path
    first: Sequence[Values]
    known: Values
    total: int

    def run_folder(self, slot: Slot) -> Path:
        """Where a trial ran, or is to run."""
        return self.folder / str(self.cfg.name) / slot.run_id

    @property
    def judged_by(self) -> list[str]:
        """Names of all numbers that a trial is judged by."""
        return list(dict.fromkeys([*(metric for metric, _ in self.objectives), *self.constraints]))

    @property
    def study_name(self) -> str:
        """The study's name in its storage."""
        # Hyperband shares trials out by this name: in a journal of its own each study has that of its experiment.
        return str(self.cfg.name) if self.cfg.storage is None else f"{self.cfg.name}/{self.cfg.study}"

    @property
    def reported(self) -> str:
        """The metric that the pruner sees: the first objective."""
        return self.objectives[0][0]

    @property
    def objectives(self) -> list[tuple[str, str]]:
        """Metric and direction of each."""
        asked = self.cfg.objectives or [{"metric": self.cfg.monitor, "mode": self.cfg.mode}]
        return [(str(one["metric"]), {"max": "maximize", "min": "minimize"}[one["mode"]]) for one in asked]

    @property
    def constraints(self) -> dict[str, float]:
        """The largest value that a number may have, by name."""
        return {str(name): float(bound) for name, bound in self.cfg.constraints.items()}

    @property
    def facts(self) -> dict[str, Any]:
        """What the trials of one study must share: what they are judged by, the space, and the rest of the config."""
        rest = self.configuration.of({})
        plain: Any = OmegaConf.to_container(rest, resolve=False)
        searched = {parameter.key for parameter in self.space.parameters}
        flat = {key: value for key, value in _flat(plain) if key.partition(".")[0] in _SHARED or key in _SHARED}
        groups = tuple(f"{key}." for key in searched if key in self.configuration.groups)
        kept = {key: value for key, value in flat.items() if key not in searched and not key.startswith(groups)}
        return {
            "objectives": [list(one) for one in self.objectives],
            "constraints": self.constraints,
            **{f"space: {key}": value for key, value in self.space.facts().items()},
            **kept,
        }

    def sampler(self, slot: Slot) -> BaseSampler:
        """The sampler of a slot."""
        cfg = self.cfg
        return samplers.sampler(
            cfg.sampler,
            cfg.sampler_options,
            seed=cfg.seed,
            slot=slot.number,
            is_conditional=any(parameter.when for parameter in self.space.parameters),
        )

    def fixed(self, slot: Slot) -> Values:
        """What a slot is to begin with, as Optuna keeps it."""
        first = self.first[slot.number] if slot.number < len(self.first) else {}
        return {key: encoded(value) for key, value in first.items()}

    def pruner(self) -> Any:
        """The pruner."""
        epochs = OmegaConf.select(self.cfg, "trainer.max_epochs")
        return samplers.pruner(self.cfg.pruner, self.cfg.pruner_options, validations=epochs)

    def trial_config(self, values: Mapping[str, Any], run_id: str) -> DictConfig:
        """The config of the run of one trial."""
        cfg = self.configuration.of(values, self._prepare)
        cfg.run_id = run_id
        return cfg

    def _prepare(self, cfg: DictConfig) -> None:
        """Set what all trials share."""
        OmegaConf.set_struct(cfg, False)
        cfg.output_dir, cfg.baselines = str(self.folder), None
        if cfg.trainer.devices == "auto" and ranks.num_processes() == 1:
            cfg.trainer.devices = 1
        if cfg.checkpoint.mirror is not None:
            cfg.checkpoint.mirror = f"{cfg.checkpoint.mirror}/{self.folder.parent.name}/{self.folder.name}"


def make(cfg: DictConfig, overrides: Sequence[str]) -> Plan:
    """Read and check all of a sweep's settings before anything is touched.

    Args:
        cfg: the checked config.
        overrides: of the command line.

    Raises:
        ConfigError: the space, an objective, the sampler's or the pruner's options break a rule.
    """
    if not is_plain_name(cfg.study):
        raise ConfigError(
            f"study must be the name of a folder: letters, digits, '.', '_', '=' and '-'; got {cfg.study!r}"
        )
    if ranks.multirun_number() is not None:
        raise ConfigError("--multirun: start the sweeps one by one, each with a name of its own: study=NAME")
    configuration = Configuration("sweep", overrides)
    space = parse(OmegaConf.to_container(cfg.space, resolve=True))  # type: ignore[arg-type]
    _check_keys(space)
    given = set(map(key_of, overrides))
    pinned = tuple(parameter.key for parameter in space.parameters if parameter.key in given)
    if "run_id" in given:
        raise ConfigError("run_id: each trial of a sweep has its own; study=NAME names the sweep")
    space = space.without(pinned)
    if not space.parameters:
        raise ConfigError(f"space: every key of it is set on the command line ({', '.join(pinned)}): nothing is left")
    configuration.check(space)
    _check_options(cfg)
    asked = {key for parameter in space.parameters for key in parameter.when}
    known = {key: configuration.value(key) for key in asked}
    folder = Path(cfg.output_dir).absolute() / f"{cfg.name}-sweep" / cfg.study
    first = _first(cfg, configuration, space, known, folder)
    total = min(len(first), cfg.trials) if cfg.sampler == "grid" else cfg.trials
    return Plan(cfg, configuration, space, pinned, folder, first, known, total)


def _check_keys(space: Space) -> None:
    """Raise a ConfigError for a key that is no trial's own."""
    own = {key: "the sweep gives each trial its own" for key in ("output_dir", "run_id", "name", "resume", "baselines")}
    others = SweepSettings.__annotations__.keys() - TrainSettings.__annotations__.keys()
    own |= {key: "it is a setting of the sweep, not of a run" for key in others}
    for parameter in space.parameters:
        root = parameter.key.partition(".")[0]
        if root in own:
            raise ConfigError(f"space: {parameter.key} cannot be searched: {own[root]}")


def _check_options(cfg: DictConfig) -> None:
    samplers.check("sampler_options", samplers.SAMPLERS[cfg.sampler], cfg.sampler_options)
    samplers.check("pruner_options", samplers.PRUNERS[cfg.pruner], cfg.pruner_options)
    if len(cfg.objectives) > 1 and cfg.pruner != "none":
        raise ConfigError(f"pruner: {cfg.pruner} has no meaning with several objectives: give pruner=none")
    if cfg.objectives and cfg.pruner != "none" and not str(cfg.objectives[0].metric).startswith("val/"):
        raise ConfigError(
            f"pruner: {cfg.pruner} needs a metric of each validation, which {cfg.objectives[0].metric!r} is not: give "
            "pruner=none"
        )
    if len(cfg.objectives) > 1 and cfg.sampler == "cmaes":
        raise ConfigError(f"sampler: {cfg.sampler} searches for one objective only; take tpe, gp, random, qmc or grid")
    for key, made in (
        ("sampler_options", lambda: samplers.sampler(cfg.sampler, cfg.sampler_options, seed=0, slot=0)),
        ("pruner_options", lambda: samplers.pruner(cfg.pruner, cfg.pruner_options, validations=None)),
    ):
        try:
            made()
        except (ValueError, TypeError, ModuleNotFoundError) as error:
            raise ConfigError(f"{key}: {error}") from error


def _first(cfg: DictConfig, configuration: Configuration, space: Space, known: Values, folder: Path) -> list[Values]:
    """What the first slots begin with."""
    if cfg.sampler == "grid":
        return space.grid(known)
    found = [_default(configuration, space, known)] if cfg.start_with_default else []
    if cfg.warm_start == "auto":
        # What an earlier study did not search it had as the yaml files have it: so much for its model.
        groups = {one.key: configuration.value(one.key) for one in space.parameters if one.key in configuration.groups}
        earlier = [{**groups, **best_of(place)[0]} for place in _earlier(folder)]
    else:
        earlier = [values for place in cfg.warm_start for values in best_of(Path(place))]
    warm = [_inside(values, space) for values in earlier]
    return found + [values for index, values in enumerate(warm) if values not in [*found, *warm[:index]]]


def _earlier(folder: Path) -> list[Path]:
    """The folders of the latest other studies of the same experiment, the latest first."""
    written = [path for path in folder.parent.glob(f"*/{BEST}") if path.parent != folder]
    return [path.parent for path in sorted(written, key=lambda path: path.stat().st_mtime, reverse=True)[:MOST_EARLIER]]


def _default(configuration: Configuration, space: Space, known: Values) -> Values:
    chosen: Values = {}
    for parameter in space.parameters:
        if parameter.is_active({**known, **chosen}):
            chosen[parameter.key] = configuration.value(parameter.key)
    return _inside(chosen, space)


def _inside(values: Mapping[str, Any], space: Space) -> Values:
    """Those values that the space allows; the others are drawn."""
    parameters = {parameter.key: parameter for parameter in space.parameters}
    return {key: value for key, value in values.items() if key in parameters and parameters[key].contains(value)}


def best_of(folder: Path) -> list[Values]:
    """The values of the best trials of an earlier study. Raises ConfigError where there is none."""
    path = folder / BEST
    if not path.is_file():
        raise ConfigError(f"warm_start: {str(folder)!r} is no folder of a study that has ended: it has no {BEST}")
    there: Any = OmegaConf.to_container(OmegaConf.load(path))
    return [dict(one["values"]) for one in there["best"]]


def _flat(plain: Any, prefix: str = "") -> list[tuple[str, Any]]:
    if not isinstance(plain, dict):
        return [(prefix, plain)]
    return [item for name, value in plain.items() for item in _flat(value, f"{prefix}.{name}" if prefix else str(name))]
