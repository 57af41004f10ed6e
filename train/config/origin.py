"""Where a key of the composed config came from: only errors ask, so the layers are read again then."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.plugins.config_source import ConfigSource
from hydra.types import RunMode
from omegaconf import OmegaConf

from train.config.finding import seen_from_here


@dataclass(frozen=True)
class Layers:
    """The files in the order of their merging, each as plain containers, and the overrides with their keys."""

    files: list[tuple[str, object]] = field(default_factory=list)
    overrides: list[tuple[str, str]] = field(default_factory=list)

    def origin(self, key: str) -> str | None:
        """The last file or override that sets `key`; where none does, the one that names the target of its node."""
        for name, line in reversed(self.overrides):
            if key == name or key.startswith((f"{name}.", f"{name}[")):
                return override_name(line)
        steps = _steps(key)
        for path in (steps, [*steps[:-1], "_target_"]):
            for name, values in reversed(self.files):
                if _has(values, path):
                    return name
        return None


def layers_of_this_job() -> Layers:
    """The layers of the running Hydra job; none outside of one."""
    hydra = GlobalHydra.instance().hydra
    if hydra is None or not HydraConfig.initialized():
        return Layers()
    job = HydraConfig.get()
    lines: Any = OmegaConf.to_container(job.overrides, resolve=False)  # an override may itself be an interpolation
    overrides = [*lines["hydra"], *lines["task"]]
    loader: Any = hydra.config_loader
    merged = loader.compute_defaults_list(config_name=job.job.config_name, overrides=overrides, run_mode=RunMode.RUN)
    files = []
    for layer in merged.defaults:
        source = _holder(loader.get_sources(), layer.config_path)
        if source is not None and not layer.config_path.startswith("hydra/"):
            files.append((file_name(source, layer.config_path), _values(source, layer)))
    return Layers(files, [(override.key_or_group, override.input_line) for override in merged.config_overrides])


def override_name(line: str) -> str:
    """An override as a user knows it."""
    return f"the override '{line}'"


def file_name(source: ConfigSource, config_path: str) -> str:
    """The file as a user knows it: relative to the current folder if it is below it."""
    folder = Path(source.path.replace(".", "/") if source.scheme() == "pkg" else source.path)
    return str(seen_from_here(folder) / f"{config_path}.yaml")


def _holder(sources: Iterable[ConfigSource], config_path: str) -> ConfigSource | None:
    return next((source for source in sources if source.is_config(config_path)), None)


def _values(source: ConfigSource, layer: Any) -> Any:
    """A file's values as plain containers, below its package."""
    values = OmegaConf.to_container(source.load_config(layer.config_path).config, resolve=False)
    for step in reversed(_steps(layer.package or "")):
        values = {step: values}
    return values


def _steps(key: str) -> list[str | int]:
    """`a.b[2]` as ["a", "b", 2]."""
    return [int(step[1:]) if step.startswith("[") else step for step in re.findall(r"\[\d+|[^.\[\]]+", key)]


def _has(values: object, steps: list[str | int]) -> bool:
    """Whether the path is there; a list is replaced as a whole, so its items belong to the file that sets it."""
    for step in steps:
        if isinstance(step, int):
            return isinstance(values, list)
        if not isinstance(values, dict) or step not in values:
            return False
        values = values[step]
    return True
