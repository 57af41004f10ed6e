"""Docstrings of the standard library and of installed packages, to be told apart: real texts that need no download.

Source files are parsed, never imported. Names of the packages are replaced by one word, in all texts alike.
"""

import ast
import importlib.util
import logging
import os
import re
import sysconfig
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Unpack

import numpy as np
import pyarrow as pa
import pyarrow.parquet
from annotated_types import Gt

from datamodules.cache import cache_file, one_at_a_time, write_atomically
from datamodules.columns import stable_hash
from datamodules.text.datamodule import Options, TextDataModule
from datamodules.text.texts import hashes

log = logging.getLogger(__name__)

VERSION = 1  # of the method: a new one makes old cache files stale
STANDARD_LIBRARY = "stdlib"
MASK = "package"
ANYWHERE = 5  # names of so many letters are replaced inside words, too
FEWEST_CHARACTERS, MOST_CHARACTERS = 60, 2_000
LARGEST_FILE = 60_000  # bytes: parsing a larger one takes long, and gives many texts of one kind
ELSEWHERE = {"site-packages", "dist-packages", "test", "tests", "testing", "idlelib", "__pycache__"}
OF_OTHERS = {"_vendor", "vendored", "externals", "extern", "third_party", "_lib", "_numpy", "fx_passes"}
SOURCES = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)

Names = dict[str, list[str]]  # what else a package is called, by package
Files = dict[str, list[tuple[str, int]]]  # path and size, by package


class TextDocstrings(TextDataModule):
    """Docstrings of the standard library and of installed packages, labelled by package; made once and cached.

    The same for the same installation. Other data have the columns `text` and `label`.

    Args:
        packages: what else each package is called, by its name; `stdlib` is the standard library.
        docstrings_per_package: at most so many of each, from files in an order that hashes give.
        options: see `Options`.
    """

    name = "text_docstrings"

    def __init__(
        self, *, packages: Names, docstrings_per_package: Annotated[int, Gt(0)], **options: Unpack[Options]
    ) -> None:
        super().__init__(["text"], label="label", label_separator=None, options=options)
        self.packages, self.docstrings_per_package = packages, docstrings_per_package

    def read(self) -> dict[str, tuple[str, pa.Table]]:
        """All docstrings, from the cache where they are."""
        files = source_files(list(self.packages))
        if missing := [name for name in self.packages if not files[name]]:
            self.notes.append(f"not installed: {', '.join(missing)}")
        self.notes.append(f"names of the packages read {MASK!r} in all texts")
        return {"train": (self.name, docstrings_cached(files, self.packages, self.docstrings_per_package))}


def docstrings_cached(files: Files, names: Names, most: int) -> pa.Table:
    """`docstrings`, kept as a Parquet file in the cache folder; a damaged file is made again."""
    path = cache_file("docstrings", {"version": VERSION, "files": files, "names": names, "most": most}, ".parquet")
    found = _read(path)
    if found is None:
        with one_at_a_time(path):
            found = _read(path)
            if found is None:
                found = table = docstrings(files, names, most)
                try:
                    write_atomically(path, lambda file: pa.parquet.write_table(table, file, write_page_checksum=True))
                except OSError as error:
                    log.warning("the docstrings are not cached (%s); set FULLCYCLE_CACHE to a folder", error)
    return found


def _read(path: Path) -> pa.Table | None:
    try:
        return pa.parquet.read_table(path, page_checksum_verification=True)
    except FileNotFoundError:
        return None
    except (OSError, pa.ArrowException) as error:
        log.warning("making the damaged cache file %s again (%s)", path, str(error).splitlines()[0])
        return None


def docstrings(files: Mapping[str, list[tuple[str, int]]], names: Names, most: int) -> pa.Table:
    """Columns `text` and `label`: at most `most` different docstrings of each package, its name masked."""
    masked = pattern(names)
    texts: list[str] = []
    labels: list[str] = []
    for package, found in files.items():
        root = root_of(package)
        own: dict[str, None] = {}
        for relative, _ in sorted(found, key=lambda file: stable_hash(file[0])):
            if root is None or len(own) >= most:
                break
            own |= dict.fromkeys(masked.sub(MASK, text) for text in docstrings_of(root / relative))
        texts += list(own)[:most]
        labels += [package] * min(most, len(own))
    table = pa.table({"text": pa.array(texts, pa.large_string()), "label": pa.array(labels, pa.large_string())})
    _, first = np.unique(hashes(table["text"]), return_index=True)  # one that two packages share goes to the first
    return table.take(pa.array(np.sort(first)))


def docstrings_of(path: Path) -> Iterator[str]:
    """The docstrings of a source file that are neither short nor very long; none if it cannot be parsed."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of invalid escapes: the file is not ours
            tree = ast.parse(path.read_bytes())
    except (OSError, SyntaxError, ValueError, RecursionError):
        return
    for node in ast.walk(tree):
        if isinstance(node, SOURCES) and len(text := ast.get_docstring(node) or "") >= FEWEST_CHARACTERS:
            yield text[:MOST_CHARACTERS].encode(errors="ignore").decode()  # a lone surrogate is no text


def pattern(names: Names) -> re.Pattern[str]:
    """Matches the names of all packages, in any case; short ones as words, others also inside words."""
    every = {word for package, others in names.items() for word in (package, *others)}
    longest_first = sorted(every, key=lambda word: (-len(word), word))
    alone = r"(?<![a-z0-9]){}(?![a-z0-9])"
    words = [(r"{}" if len(word) >= ANYWHERE else alone).format(re.escape(word)) for word in longest_first]
    return re.compile("|".join(words) or r"(?!)", re.IGNORECASE)


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
