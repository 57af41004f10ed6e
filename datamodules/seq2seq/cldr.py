"""Phrases in two languages, drawn from the CLDR data that Babel ships: real words that need no download."""

from typing import Annotated, Unpack

import babel
import pyarrow as pa
from annotated_types import Ge, Gt
from babel import Locale

from datamodules.cache import cached_table
from datamodules.seq2seq import phrases
from datamodules.seq2seq.datamodule import Options, Seq2SeqDataModule, language_of

VERSION = 1  # of the method: a new one makes old cache files stale


class CldrPhrases(Seq2SeqDataModule):
    """Dates, durations, amounts, units, names and lists of them in two languages; made once and cached.

    Digits count: "3 hours" may train where "4 hours" tests, for numbers are what such phrases are made of; but no
    source, and no target, is in two splits. The same for the same Babel. Other data have the columns `source` and
    `target`.

    Args:
        source_language: any that Babel knows, as en or pt_BR.
        target_language: another one.
        num_pairs: how many.
        phrase_seed: which.
        options: see `Options`.
    """

    name = "cldr_phrases"
    digits_differ = True

    def __init__(
        self,
        *,
        source_language: str,
        target_language: str,
        num_pairs: Annotated[int, Gt(0)],
        phrase_seed: Annotated[int, Ge(0)],
        **options: Unpack[Options],
    ) -> None:
        super().__init__(["source"], target="target", options=options)
        given = {"source": source_language, "target": target_language}
        for side, name in given.items():
            if language_of(name) is None:
                raise ValueError(f"{side}_language must be a language that Babel knows, as en or pt_BR; got {name!r}")
        if source_language == target_language:
            raise ValueError(f"target_language must be another than source_language; both are {source_language!r}")
        self.languages = {**given}
        self.num_pairs, self.phrase_seed = num_pairs, phrase_seed

    def read(self) -> dict[str, tuple[str, pa.Table]]:
        """All pairs, from the cache where they are."""
        what = {"num_pairs": self.num_pairs, "seed": self.phrase_seed}
        determined = {"version": VERSION, "babel": babel.__version__, **self.languages, **what}
        return {"train": (self.name, cached_table("phrases", determined, self._draw))}

    def _draw(self) -> pa.Table:
        source, target = (Locale.parse(str(name)) for name in self.languages.values())
        drawn = list(phrases.pairs(source, target, num_pairs=self.num_pairs, seed=self.phrase_seed))
        columns = [pa.array(side, pa.large_string()) for side in zip(*drawn, strict=True)]
        return pa.table(columns, names=["source", "target"])
