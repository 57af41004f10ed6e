"""The README does not promise what is not there."""

import importlib.util
import re
from pathlib import Path

import pytest
from hydra import compose, initialize_config_module

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
FIRST_SCREEN = "\n".join(README.splitlines()[:25])
COMMANDS = sorted(
    {
        line.strip("`")
        for line in re.findall(r"^python -m train .*$|`python -m train [^`]*`", README, re.M)
        if "--config-dir" not in line
    }
)


@pytest.mark.parametrize(
    "line",
    [
        "python3 -m venv .venv && . .venv/bin/activate && pip install -e . && python -m train experiment=fraud",
        'python3 -m venv .venv && . .venv/bin/activate && pip install -e ".[dev]" && pytest',
    ],
)
def test_both_lines_are_on_the_first_screen(line: str) -> None:
    assert f"\n{line}\n" in FIRST_SCREEN


def test_pictures_are_there_and_small() -> None:
    pictures = re.findall(r"!\[[^]]*\]\(([^)]+)\)", README)
    assert pictures
    for name in pictures:
        assert (ROOT / name).stat().st_size < 200_000


def test_verbs_and_scripts_exist() -> None:
    for verb in re.findall(r"python -m (train[\w.]*)", README):
        assert importlib.util.find_spec(verb), verb
    for script in re.findall(r"python (scripts/[\w/]+\.py)", README):
        assert (ROOT / script).exists(), script


@pytest.mark.parametrize("command", COMMANDS)
def test_overrides_compose(command: str) -> None:
    words = [word for word in command.split()[3:] if "=" in word]
    with initialize_config_module("configs", version_base="1.3"):
        compose("train", [word.partition(",")[0] for word in words])
