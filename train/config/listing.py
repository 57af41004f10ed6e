"""What a bare `python -m train` prints: the experiments and how to run one."""

import argparse
from collections.abc import Iterator
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path

USAGE = """\
Run one:          python -m train experiment={name}
Try it first:     python -m train experiment={name} trainer=smoke
See its config:   python -m train experiment={name} --cfg job
Change anything:  python -m train experiment={name} KEY=VALUE ...
All the rest:     python -m train --help"""


def has_overrides(arguments: list[str]) -> bool:
    """Whether the command line asks for more than this list: anything but `--config-dir DIR`."""
    return bool(_parsed(arguments)[1])


def show(arguments: list[str]) -> int:
    """Print the experiments of the package and of `--config-dir`, with their first comments; 0, or 2 if DIR is none."""
    folder = _parsed(arguments)[0]
    if folder is not None and not folder.is_dir():
        print(f"--config-dir: no folder '{folder}'")
        return 2
    found = experiments(folder)
    width = max(map(len, found), default=0)
    print("Experiments:")
    for name, summary in sorted(found.items()):
        print(f"  {name:{width}}  {summary}".rstrip())
    print(f"\n{USAGE.format(name=next(iter(sorted(found)), 'NAME'))}")
    return 0


def experiments(folder: Path | None = None) -> dict[str, str]:
    """Every experiment by name, with the first comment of its file; the package's own win over those of `folder`."""
    homes: list[Traversable] = [files("configs"), *([folder] if folder else [])]
    return {name: summary for home in reversed(homes) for name, summary in _in(home / "experiment")}


def _in(home: Traversable) -> Iterator[tuple[str, str]]:
    for file in home.iterdir() if home.is_dir() else []:
        if file.name.endswith(".yaml"):
            yield file.name.removesuffix(".yaml"), _first_comment(file.read_text(encoding="utf-8"))


def _first_comment(text: str) -> str:
    lines = (line.lstrip("#").strip() for line in text.splitlines() if line.startswith("#"))
    return next((line for line in lines if line and not line.startswith("@package")), "")


def _parsed(arguments: list[str]) -> tuple[Path | None, list[str]]:
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--config-dir", "-cd", type=Path)
    known, rest = parser.parse_known_args(arguments)
    return known.config_dir, rest
