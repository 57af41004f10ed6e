"""BLEU and ROUGE are the libraries' own on English, and count texts of other scripts as well."""

import numpy as np
import pytest
from rouge_score.rouge_scorer import RougeScorer
from sacrebleu import BLEU, corpus_bleu

from models.seq2seq import metrics
from models.seq2seq.metrics import Words, Written

OUTPUTS = ["The cat sat on the mat.", "It's 3.5 %, isn't it?", "", "snake_case -- and-more"]
REFERENCES = ["A cat sat on a mat.", "It is 3.5 %, is it not?", "Something.", "snake case and more, MORE"]


def written(outputs: list[str], references: list[str], language: str | None = None) -> Written:
    counts, rouge = metrics.statistics(outputs, references, language)
    nothing = np.full(len(outputs), np.nan)
    return Written(counts, rouge, nothing, nothing, nothing)


def test_english_is_counted_as_by_the_libraries() -> None:
    found = metrics.metrics_of(written(OUTPUTS, REFERENCES), OUTPUTS, REFERENCES)
    assert found["bleu"] == pytest.approx(corpus_bleu(OUTPUTS, [REFERENCES]).score)
    theirs = RougeScorer(["rougeL"])
    pairs = zip(REFERENCES, OUTPUTS, strict=True)
    expected = np.mean([100 * theirs.score(reference, output)["rougeL"].fmeasure for reference, output in pairs])
    assert found["rouge_l"] == pytest.approx(expected)


def test_the_signature_is_that_of_what_is_computed() -> None:
    short = ["the cat", "a dog"]
    theirs = BLEU()
    assert theirs.corpus_score(short, [short]).score == pytest.approx(metrics.bleu(written(short, short)))
    assert metrics.signature(None) == str(theirs.get_signature())


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Über Äpfel, naïve_Straße!", ["über", "äpfel", "naïve", "straße"]),
        ("Мама мыла раму", ["мама", "мыла", "раму"]),
        ("שלום עולם 42", ["שלום", "עולם", "42"]),
        ("我喜欢BERT模型。", ["我", "喜", "欢", "bert", "模", "型"]),
        ("한국어 단어", ["한국어", "단어"]),
    ],
)
def test_words_of_any_script_count_for_rouge(text: str, words: list[str]) -> None:
    assert Words().tokenize(text) == words
    assert written([text], [text]).rouge.tolist() == [[100.0, 100.0, 100.0]]


@pytest.mark.parametrize(("language", "tokenizer"), [("zh_Hant", "zh"), ("ja", "char"), ("de", "13a"), (None, "13a")])
def test_bleu_is_counted_as_the_language_is_written(language: str | None, tokenizer: str) -> None:
    output, reference = ["我喜欢红色的大房子和小狗"], ["我喜欢红色的大房子和小猫"]
    expected = corpus_bleu(output, [reference], tokenize=tokenizer).score
    found = metrics.bleu(written(output, reference, language))
    assert found == pytest.approx(expected)
    assert (found > 50) == (tokenizer != "13a")
    assert f"tok:{tokenizer}" in metrics.signature(language)
