"""The house's drawing, as a test: what is where, and who may import whom."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
OURS = {"train", "datamodules", "models", "configs", "scripts", "tests"}
TOP_LEVEL = OURS | {"pyproject.toml", "README.md", "LICENSE", "constraints.txt"}
ELSEWHERE = {"runs", "shared", "build", "dist"}  # left by runs and builds, and ignored by git
MAY_IMPORT = {"train": {"train"}, "datamodules": {"datamodules"}, "models": {"models"}}
FORBIDDEN_NAMES = {"utils", "helpers", "common", "base", "misc"}


def sources(*folders: str) -> list[Path]:
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))


def imported(path: Path) -> Iterator[str]:
    """The root package of every import of a file, also of those inside functions."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield (node.module or "").partition(".")[0] if node.level == 0 else f"a relative import in {path.name}"


@pytest.mark.parametrize("package", MAY_IMPORT)
def test_packages_import_only_their_siblings(package: str) -> None:
    for path in sources(package):
        foreign = {name for name in imported(path) if name in OURS or " " in name} - MAY_IMPORT[package]
        assert not foreign, f"{path.relative_to(ROOT)} imports {foreign}"


def test_nothing_imports_scripts() -> None:
    for path in sources("train", "datamodules", "models", "tests"):
        assert "scripts" not in set(imported(path)), path


def test_train_names_no_domain() -> None:
    named = [
        f"{path.relative_to(ROOT)}:{number}"
        for path in sorted((ROOT / "train").rglob("*"))
        if path.is_file() and path.suffix != ".pyc"
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if re.search("fraud|speech|detection", line, re.IGNORECASE)
    ]
    assert not named


def test_top_level_is_the_drawing() -> None:
    found = {path.name for path in ROOT.iterdir() if not path.name.startswith(".") and path.suffix != ".egg-info"}
    assert found - ELSEWHERE <= TOP_LEVEL
    assert found >= OURS


def test_init_files_are_empty() -> None:
    assert not [
        path
        for path in sources("train", "datamodules", "models", "configs")
        if path.name == "__init__.py" and path.stat().st_size
    ]


def test_every_package_folder_has_an_init_file() -> None:
    folders = {path.parent for path in sources("train", "datamodules", "models")}
    assert not [folder for folder in folders if not (folder / "__init__.py").exists()]


def test_files_are_named_for_what_they_are_and_stay_short() -> None:
    for path in sources("train", "datamodules", "models"):
        assert path.stem not in FORBIDDEN_NAMES, path
        assert len(path.read_text(encoding="utf-8").splitlines()) <= 400, path


def test_entry_point_is_one_screen_and_imports_torch_late() -> None:
    entry = ROOT / "train" / "__main__.py"
    assert len(entry.read_text(encoding="utf-8").splitlines()) < 40
    top = ast.parse(entry.read_text(encoding="utf-8")).body
    names = {alias.name for node in top if isinstance(node, ast.Import) for alias in node.names}
    assert not names & {"torch", "pytorch_lightning"}
