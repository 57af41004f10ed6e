"""Docstrings of the standard library and of installed packages, whose source files are parsed and never imported."""

import ast
import importlib.util
import os
import sysconfig
import warnings
from collections.abc import Iterator
from pathlib import Path

STANDARD_LIBRARY = "stdlib"
LARGEST_FILE = 60_000  # bytes: parsing a larger one takes long, and gives many texts of one kind
ELSEWHERE = {"site-packages", "dist-packages", "test", "tests", "testing", "idlelib", "__pycache__"}
OF_OTHERS = {"_vendor", "vendored", "externals", "extern", "third_party", "_lib", "_numpy", "fx_passes"}
SOURCES = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)

Files = dict[str, list[tuple[str, int]]]  # path and size, by package


def docstrings_in(path: Path) -> Iterator[str]:
    """The docstrings of a source file; none if it cannot be parsed."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of invalid escapes: the file is not ours
            tree = ast.parse(path.read_bytes())
    except (OSError, SyntaxError, ValueError, RecursionError):
        return
    for node in ast.walk(tree):
        if isinstance(node, SOURCES) and (text := ast.get_docstring(node)):
            yield text.encode(errors="ignore").decode()  # a lone surrogate is no text


def source_files(packages: list[str]) -> Files:
    """Source files of each package without tests and vendored code; none for one that is not installed."""
    return {package: _files(root) if (root := root_of(package)) else [] for package in packages}


def root_of(package: str) -> Path | None:
    """The folder of a package, which is not imported."""
    if package == STANDARD_LIBRARY:
        return Path(sysconfig.get_paths()["stdlib"])
    specification = importlib.util.find_spec(package) if package.isidentifier() else None
    folders = specification.submodule_search_locations if specification else None
    return Path(next(iter(folders))) if folders else None


def _files(root: Path) -> list[tuple[str, int]]:
    found = []
    for folder, subfolders, files in os.walk(root):
        subfolders[:] = sorted(name for name in subfolders if name not in ELSEWHERE | OF_OTHERS)
        for name in sorted(files):
            path = Path(folder) / name
            if name.endswith(".py") and (size := path.stat().st_size) <= LARGEST_FILE:
                found.append((path.relative_to(root).as_posix(), size))
    return found
