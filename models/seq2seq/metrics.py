"""Metrics of written texts, all from 0 to 100: sacreBLEU, chrF and ROUGE.

BLEU: Post, 2018, https://aclanthology.org/W18-6319. chrF: Popović, 2015, https://aclanthology.org/W15-3049. ROUGE: Lin,
2004, https://aclanthology.org/W04-1013, by Google's rouge-score. N rows.

Languages that put no spaces between words are counted by characters; see `Words` and `NO_SPACES`.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rouge_score.rouge_scorer import RougeScorer
from sacrebleu.metrics.bleu import BLEU
from sacrebleu.metrics.chrf import CHRF

RESAMPLES = 1_000
NO_SPACES = {"zh": "zh"} | dict.fromkeys(("ja", "th", "lo", "km", "my", "bo"), "char")  # sacreBLEU's tokenizers of them
# Han with kana, Thai, Lao, Tibetan, Burmese, Khmer: one by one; of other scripts whole words.
ALONE = r"\u0e00-\u0fff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
WORD = re.compile(rf"[{ALONE}]|[^\W_{ALONE}]+")
ROUGE = {"rouge_1": "rouge1", "rouge_2": "rouge2", "rouge_l": "rougeL"}
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Written:
    """What was written for N rows, as far as metrics need it.

    Attributes:
        bleu: counts of matching n-grams, of all (4 each), length of the output and of the reference, [N, 10].
        rouge: F1 of ROUGE-1, ROUGE-2 and ROUGE-L, [N, 3].
        nll: negative log-likelihood of the reference, in nats, [N].
        tokens: of the reference, with its end, [N].
        size: tokens of the source, [N].
    """

    bleu: Floats
    rouge: Floats
    nll: Floats
    tokens: Floats
    size: Floats


class Words:
    """Cuts texts for ROUGE. Of ASCII they are rouge-score's own words, which drops all other letters."""

    def tokenize(self, text: str) -> list[str]:
        """Lower-case words, and characters of scripts that put no spaces between them."""
        return WORD.findall(text.lower())


@cache
def _bleu(language: str | None, *, of_sentences: bool) -> Any:
    tokenizer = NO_SPACES.get((language or "").partition("_")[0], "13a")
    return BLEU(effective_order=of_sentences, tokenize=tokenizer)  # on which the counts do not depend


@cache
def _rouge() -> Any:
    return RougeScorer(list(ROUGE.values()), tokenizer=Words())


def signature(language: str | None) -> str:
    """SacreBLEU's own description of how it counts texts of a language, None for one not known, for reports."""
    counted = _bleu(language, of_sentences=False)
    counted.corpus_score(["a"], [["a"]])  # it knows only afterwards how many references there are
    return str(counted.get_signature())


def statistics(outputs: Sequence[str], references: Sequence[str], language: str | None) -> tuple[Floats, Floats]:
    """Return each row's counts for BLEU [N, 10] and its ROUGE [N, 3]; the language is the references'."""
    counts, rouge = np.zeros((len(outputs), 10)), np.zeros((len(outputs), len(ROUGE)))
    for row, (output, reference) in enumerate(zip(outputs, references, strict=True)):
        found = _bleu(language, of_sentences=True).sentence_score(output, [reference])
        counts[row] = [*found.counts, *found.totals, found.sys_len, found.ref_len]
        scores = _rouge().score(reference, output)
        rouge[row] = [100 * scores[name].fmeasure for name in ROUGE.values()]
    return counts, rouge


def bleu(rows: Written) -> float:
    """Corpus BLEU of rows."""
    total = rows.bleu.sum(axis=0).astype(int)
    found = BLEU.compute_bleu(list(total[:4]), list(total[4:8]), int(total[8]), int(total[9]), smooth_method="exp")
    return float(found.score)


def metric_of(rows: Written, name: str) -> float:
    """One metric of rows; cheap enough for a bootstrap.

    Raises:
        KeyError: it cannot be had from rows.
    """
    if name == "bleu":
        return bleu(rows)
    if name in ROUGE:
        return float(rows.rouge[:, list(ROUGE).index(name)].mean())
    if name == "loss":
        return float(rows.nll.sum() / max(1.0, rows.tokens.sum()))
    raise KeyError(name)


def metrics_of(rows: Written, outputs: Sequence[str], references: Sequence[str]) -> dict[str, float]:
    """All metrics; the likelihood only where it was asked for."""
    found = {name: metric_of(rows, name) for name in ("bleu", *ROUGE)}
    found["chrf"] = float(CHRF().corpus_score(list(outputs), [list(references)]).score)
    total = rows.bleu.sum(axis=0)
    found["length_ratio"] = float(total[8] / max(1.0, total[9]))
    if not np.isnan(rows.nll).any():
        found["loss"] = metric_of(rows, "loss")
    return found


def bootstrap_intervals(rows: Written, *, seed: int = 0) -> dict[str, tuple[float, float]]:
    """95 % percentile intervals over resampled rows (Koehn, 2004, https://aclanthology.org/W04-3250)."""
    generator = np.random.default_rng(seed)
    size = len(rows.bleu)
    drawn: dict[str, list[float]] = {name: [] for name in ("bleu", *ROUGE)}
    for _ in range(RESAMPLES if size else 0):
        index = generator.integers(size, size=size)
        taken = Written(*(getattr(rows, field)[index] for field in Written.__dataclass_fields__))
        for name, values in drawn.items():
            values.append(metric_of(taken, name))
    return {
        name: (float(np.percentile(values, 2.5)), float(np.percentile(values, 97.5)))
        for name, values in drawn.items()
        if values
    }
