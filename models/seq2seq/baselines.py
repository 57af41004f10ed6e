"""What a network that writes is held against: the source's first words, the source itself, a dictionary."""

import math
import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from itertools import islice

import numpy as np

WORD = re.compile(r"\w+|[^\w\s]")
ROUNDS = 5  # of expectation and maximisation
MOST_PAIRS = 20_000  # of sentences that a dictionary is made of
MOST_WORDS = 100  # of a sentence, for it
NOTHING = ""


class Copy:
    """Writes the source itself."""

    def fit(self, sources: Sequence[str], targets: Sequence[str]) -> None:
        """There is nothing to learn."""

    def write(self, sources: Sequence[str]) -> list[str]:
        """Return the sources."""
        return list(sources)


class LeadWords:
    """Writes the first words of the source, as many as a target has in the median."""

    def fit(self, sources: Sequence[str], targets: Sequence[str]) -> None:
        """Count the targets' words."""
        self.num_words = max(1, round(float(np.median([len(text.split()) for text in targets]))))

    def write(self, sources: Sequence[str]) -> list[str]:
        """Return the beginnings."""
        return [" ".join(text.split()[: self.num_words]) for text in sources]


class LeadSentence:
    """Writes the first sentence of the source."""

    def fit(self, sources: Sequence[str], targets: Sequence[str]) -> None:
        """There is nothing to learn."""

    def write(self, sources: Sequence[str]) -> list[str]:
        """Return the first sentences."""
        return [re.split(r"(?<=[.!?])\s+", text.strip(), maxsplit=1)[0] for text in sources]


class Dictionary:
    """Writes for each word its likeliest translation, in the source's order.

    The dictionary is IBM model 1 (Brown et al., 1993, https://aclanthology.org/J93-2003) of the training pairs.
    """

    def fit(self, sources: Sequence[str], targets: Sequence[str]) -> None:
        """Align the words of the training pairs."""
        pairs = [
            (_words(source)[:MOST_WORDS], _words(target)[:MOST_WORDS])
            for source, target in islice(zip(sources, targets, strict=True), MOST_PAIRS)
        ]
        share: dict[tuple[str, str], float] = defaultdict(lambda: 1.0)
        for _ in range(ROUNDS):
            share = _expected(pairs, share)
        best: dict[str, tuple[float, str]] = {}
        for (target, source), probability in share.items():
            best[source] = max(best.get(source, (0.0, NOTHING)), (probability, target))
        self.translation = {source: target for source, (_, target) in best.items()}

    def write(self, sources: Sequence[str]) -> list[str]:
        """Return the words' translations; a word that training has not stays."""
        found = []
        for text in sources:
            words = (self.translation.get(word, word) for word in _words(text))
            found.append(re.sub(r"\s+([.,;:!?])", r"\1", " ".join(words)))
        return found


def _words(text: str) -> list[str]:
    return WORD.findall(text)


def _expected(
    pairs: Sequence[tuple[list[str], list[str]]], share: dict[tuple[str, str], float]
) -> dict[tuple[str, str], float]:
    """One round of EM: shares of a source word's translations, of what its targets are likely aligned with."""
    counts: Counter[tuple[str, str]] = Counter()
    totals: Counter[str] = Counter()
    for sources, targets in pairs:
        for target in targets:
            weights = [share[target, source] for source in sources]
            total = math.fsum(weights) or 1.0
            for source, weight in zip(sources, weights, strict=True):
                counts[target, source] += weight / total  # type: ignore[assignment]
                totals[source] += weight / total  # type: ignore[assignment]
    return {pair: count / totals[pair[1]] for pair, count in counts.items()}
