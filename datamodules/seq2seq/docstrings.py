"""Docstrings to be summarized: what follows the first line, to the first line. Real texts that need no download."""

from collections.abc import Iterator
from typing import Annotated, Unpack

import numpy as np
import pyarrow as pa
from annotated_types import Gt

from datamodules.cache import cached_table
from datamodules.columns import stable_hash
from datamodules.docstrings import Files, docstrings_in, root_of, source_files
from datamodules.seq2seq.datamodule import Options, Seq2SeqDataModule
from datamodules.texts import hashes

VERSION = 1  # of the method: a new one makes old cache files stale
FEWEST_SUMMARY_WORDS, MOST_SUMMARY_WORDS = 3, 20
MOST_CHARACTERS = 2_000  # of a body

Pair = tuple[str, str]


class DocstringSummaries(Seq2SeqDataModule):
    """Bodies and first lines of docstrings of the standard library and of installed packages; made once and cached.

    Only of docstrings in which the first line stands alone, as PEP 257 has it: elsewhere the body goes on with its
    sentence. The same for the same installation. Other data have the columns `body` and `summary`.

    Args:
        packages: whose docstrings; `stdlib` is the standard library.
        pairs_per_package: at most so many of each, from files in an order that hashes give.
        fewest_words: of a body.
        options: see `Options`.
    """

    name = "docstring_summaries"

    def __init__(
        self,
        *,
        packages: list[str],
        pairs_per_package: Annotated[int, Gt(0)],
        fewest_words: Annotated[int, Gt(0)],
        **options: Unpack[Options],
    ) -> None:
        super().__init__(["body"], target="summary", options=options)
        self.languages = {"source": "en", "target": "en"}
        self.packages, self.pairs_per_package, self.fewest_words = packages, pairs_per_package, fewest_words

    def read(self) -> dict[str, tuple[str, pa.Table]]:
        """All pairs, from the cache where they are."""
        files = source_files(self.packages)
        if missing := [name for name in self.packages if not files[name]]:
            self.notes.append(f"not installed: {', '.join(missing)}")
        limits = {"most": self.pairs_per_package, "fewest_words": self.fewest_words}
        determined = {"version": VERSION, "files": files, **limits}
        return {"train": (self.name, cached_table("summaries", determined, lambda: summaries(files, **limits)))}


def summaries(files: Files, *, most: int, fewest_words: int) -> pa.Table:
    """Columns `body` and `summary`: at most `most` pairs of each package; a body that is there twice, once."""
    pairs: list[Pair] = []
    for package, found in files.items():
        root = root_of(package)
        own: dict[Pair, None] = {}
        for relative, _ in sorted(found, key=lambda file: stable_hash(file[0])):
            if root is None or len(own) >= most:
                break
            own |= dict.fromkeys(pairs_in(docstrings_in(root / relative), fewest_words))
        pairs += list(own)[:most]
    bodies, firsts = (pa.array([pair[side] for pair in pairs], pa.large_string()) for side in (0, 1))
    _, once = np.unique(hashes(bodies), return_index=True)
    return pa.table({"body": bodies, "summary": firsts}).take(pa.array(np.sort(once)))


def pairs_in(docstrings: Iterator[str], fewest_words: int) -> Iterator[Pair]:
    """Body and first line of every docstring that has both, the first line followed by an empty one."""
    for text in docstrings:
        summary, _, rest = text.partition("\n")
        is_alone = rest.startswith("\n")
        is_summary = FEWEST_SUMMARY_WORDS <= len(summary.split()) <= MOST_SUMMARY_WORDS
        body = rest.strip()[:MOST_CHARACTERS]
        if is_alone and is_summary and len(body.split()) >= fewest_words:
            yield body, summary.strip()
