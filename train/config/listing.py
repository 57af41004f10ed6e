"""What `python -m train` prints without running: the experiments when it stands alone, and `--help`.

Hydra's own help lists its groups in twice the time that it takes to compose the config, so ours reads the folders.
"""

import argparse
import sys
from collections.abc import Callable, Iterator
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path

from train.errors import ConfigError

USAGE = """\
Run one:          python -m train experiment={name}
Try it first:     python -m train experiment={name} trainer=smoke
See its config:   python -m train experiment={name} --cfg job
Change anything:  python -m train experiment={name} KEY=VALUE ...
All the rest:     python -m train --help"""

HELP = """\
Train an experiment, test its best checkpoint, write a run folder.

  python -m train                                         the experiments, one line each
  python -m train experiment=NAME [GROUP=OPTION] [KEY=VALUE] ...

Groups and their options:

{groups}

Keys (see all of an experiment's: python -m train experiment=NAME --cfg job):

  seed=1  name=mine  resume=never  output_dir=DIR         the run
  run_id=ID                                               go on with an earlier run
  data.KEY=VALUE  model.KEY=VALUE                         the experiment
  trainer.max_epochs=5  +trainer.KEY=VALUE                Lightning's Trainer; + for what no yaml file sets
  +from_sweep=FOLDER                                      the best settings of a sweep; others given with it win

Flags:

  --cfg job [--resolve]                                   print the composed config and stop
  --multirun seed=0,1,2                                   one run after the other
  --config-dir DIR                                        DIR/experiment/mine.yaml is experiment=mine, and so on
  --hydra-help                                            the flags of Hydra

Examples:

  python -m train experiment={name} trainer=smoke
  python -m train experiment={name} trainer=ddp trainer.devices=4
  tensorboard --logdir runs

Before a long run: python -m train.doctor experiment={name} ... checks the machines; python -m train.launch starts many.

Exit codes: 0 done, 2 configuration, 4 data, 5 loss not finite, 6 checkpoint or disk, 7 a check of the machines,
8 another process was lost or hung, 75 stopped by a signal after saving, 130 interrupted, 1 a defect.
HYDRA_FULL_ERROR=1 shows the traceback of an error."""


def answer(arguments: list[str]) -> Callable[[], None] | None:
    """What prints the answer to a command line that asks for no run and no config; None for any other."""
    _, rest = _parsed(arguments)
    if not rest:
        return show_experiments
    return show_help if {"--help", "-h"} & set(rest) else None


def show_experiments() -> None:
    """Print the experiments of the package and of `--config-dir`, with their first comments, and how to run one."""
    found = options("experiment")
    width = max(map(len, found), default=0)
    print("Experiments:")
    for name, summary in sorted(found.items()):
        print(f"  {name:{width}}  {summary}".rstrip())
    print(f"\n{USAGE.format(name=min(found, default='NAME'))}")


def show_help() -> None:
    """Print one screen: groups, keys, flags, examples."""
    groups = sorted({file.name for home in _homes() for file in home.iterdir() if file.is_dir()} - {"__pycache__"})
    rows = [(group, ", ".join(sorted(options(group)))) for group in groups]
    lines = "\n".join(f"  {group:12} {names}" for group, names in rows if names)
    print(HELP.format(groups=lines, name=min(options("experiment"), default="NAME")))


def options(group: str) -> dict[str, str]:
    """Every option of a group with the first comment of its file; the package's own win over `--config-dir`."""
    return {name: summary for home in reversed(_homes()) for name, summary in _in(home / group)}


def _homes() -> list[Traversable]:
    folder, _ = _parsed(sys.argv[1:])
    if folder is not None and not folder.is_dir():
        raise ConfigError(f"--config-dir: no folder '{folder}'")
    return [files("configs"), *([folder] if folder else [])]


def _in(home: Traversable) -> Iterator[tuple[str, str]]:
    for file in home.iterdir() if home.is_dir() else []:
        if file.name.endswith(".yaml"):
            yield file.name.removesuffix(".yaml"), _first_comment(file.read_text(encoding="utf-8"))


def _first_comment(text: str) -> str:
    lines = (line.lstrip("#").strip() for line in text.splitlines() if line.startswith("#"))
    return next((line for line in lines if line and not line.startswith("@package")), "")


def _parsed(arguments: list[str]) -> tuple[Path | None, list[str]]:
    """The folder of `--config-dir`, and all other words."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--config-dir", "-cd", type=Path)
    known, rest = parser.parse_known_args(arguments)
    return known.config_dir, rest
