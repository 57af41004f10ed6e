"""Docstrings of the standard library and of installed packages, to be told apart: real texts that need no download.

Names of the packages are replaced by one word, in all texts alike.
"""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Unpack

import numpy as np
import pyarrow as pa
from annotated_types import Gt

from datamodules.cache import cached_table
from datamodules.columns import stable_hash
from datamodules.docstrings import Files, docstrings_in, root_of, source_files
from datamodules.text.datamodule import Options, TextDataModule
from datamodules.texts import hashes

VERSION = 1  # of the method: a new one makes old cache files stale
MASK = "package"
ANYWHERE = 5  # names of so many letters are replaced inside words, too
FEWEST_CHARACTERS, MOST_CHARACTERS = 60, 2_000

Names = dict[str, list[str]]  # what else a package is called, by package


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
    """`docstrings`, kept as a file in the cache folder."""
    determined = {"version": VERSION, "files": files, "names": names, "most": most}
    return cached_table("docstrings", determined, lambda: docstrings(files, names, most))


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
    for text in docstrings_in(path):
        if len(text) >= FEWEST_CHARACTERS:
            yield text[:MOST_CHARACTERS]


def pattern(names: Names) -> re.Pattern[str]:
    """Matches the names of all packages, in any case; short ones as words, others also inside words."""
    every = {word for package, others in names.items() for word in (package, *others)}
    longest_first = sorted(every, key=lambda word: (-len(word), word))
    alone = r"(?<![a-z0-9]){}(?![a-z0-9])"
    words = [(r"{}" if len(word) >= ANYWHERE else alone).format(re.escape(word)) for word in longest_first]
    return re.compile("|".join(words) or r"(?!)", re.IGNORECASE)
