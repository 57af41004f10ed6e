"""The command line before Hydra reads it."""

import sys
from pathlib import Path
from typing import Any

from hydra._internal.utils import get_args_parser

from train import errors
from train.errors import ConfigError

FROM_SWEEP = "from_sweep"
BEST = "best.yaml"  # that a sweep leaves in the study's folder


def in_order(arguments: list[str]) -> list[str]:
    """Put the flags before the overrides where the two are mixed, which Hydra's parser does not take.

    Lightning's launcher mixes them too: it appends overrides to the command line of the other ranks. What it starts
    them with is the expanded command line, so that all ranks have read the same file.
    """
    try:
        arguments = expanded(arguments)
    except ConfigError as failure:
        if errors.wants_traceback():
            raise
        errors.report(failure)
        sys.exit(failure.exit_code)
    overrides = _overrides(arguments)
    places = [place for place, word in enumerate(arguments) if word in overrides]
    if not places or places[-1] - places[0] < len(places):
        return arguments
    return [word for word in arguments if word not in overrides] + overrides


def expanded(arguments: list[str]) -> list[str]:
    """Put the overrides of a sweep's best trial in the place of `+from_sweep=FOLDER`, before all others, which win.

    Raises:
        ConfigError: there is no such file, or it has no overrides.
    """
    overrides = _overrides(arguments)
    asked = [word for word in overrides if key_of(word) == FROM_SWEEP]
    if not asked:
        return arguments
    if len(asked) > 1:
        raise ConfigError(f"{FROM_SWEEP}: given {len(asked)} times; give one")
    own = [word for word in overrides if word not in asked]
    # Hydra takes one choice of a group; below a dot a later override just follows the earlier one.
    chosen = {key_of(word) for word in own if "." not in key_of(word)}
    found = [word for word in _best_overrides(Path(asked[0].partition("=")[2])) if key_of(word) not in chosen]
    return [*(word for word in arguments if word not in overrides), *found, *own]


def _best_overrides(place: Path) -> list[str]:
    place = place.expanduser()
    path = place / BEST if place.is_dir() else place
    if not path.is_file():
        hint = "; is the sweep at its end?" if place.is_dir() else ""
        raise ConfigError(f"{FROM_SWEEP}: no file {str(path)!r}{hint}")
    import yaml  # type: ignore[import-untyped]

    try:
        content: Any = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{FROM_SWEEP}: {str(path)!r} is no YAML file: {error}") from error
    lines = content.get("overrides") if isinstance(content, dict) else None
    if not isinstance(lines, list) or not all(isinstance(line, str) for line in lines):
        raise ConfigError(f"{FROM_SWEEP}: {str(path)!r} has no list `overrides`, as a sweep's {BEST} has")
    return lines


def _overrides(arguments: list[str]) -> list[str]:
    found: list[str] = get_args_parser().parse_known_intermixed_args(arguments)[0].overrides
    return found


def key_of(word: str) -> str:
    """The key of an override, or its group."""
    return word.partition("=")[0].lstrip("+~").partition("@")[0]
