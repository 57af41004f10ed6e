"""Phrases in two languages."""

from pathlib import Path
from random import Random

import pytest
from babel import Locale
from omegaconf import OmegaConf

from datamodules.seq2seq import phrases
from datamodules.seq2seq.cldr import CldrPhrases

CONFIG = Path(__file__).parents[2] / "configs/data/cldr_phrases.yaml"
ENGLISH, GERMAN = Locale("en"), Locale("de")
NAMES = phrases.Names.of(ENGLISH, GERMAN)


def make(**changes):
    options = OmegaConf.to_container(OmegaConf.load(CONFIG), resolve=False)
    options = {name: value for name, value in options.items() if name != "_target_"}
    return CldrPhrases(**{**options, "seed": 0, "num_pairs": 1500, "vocab_size": 500, **changes})


def ready(**changes):
    module = make(**changes)
    module.setup("fit")
    return module


def texts_of(module):
    return {split: list(zip(own["source"], own["target"], strict=True)) for split, own in module.texts.items()}


def test_no_source_and_no_target_of_test_trains():
    module = ready(val_share=0.2, test_share=0.2)
    assert sum(map(len, texts_of(module).values())) == 1500
    assert min(map(len, texts_of(module).values())) > 200
    for side in ("source", "target"):
        folded = {split: {" ".join(text.lower().split()) for text in own[side]} for split, own in module.texts.items()}
        assert not folded["train"] & (folded["val"] | folded["test"])
        assert not folded["val"] & folded["test"]


def test_numbers_of_test_are_in_phrases_whose_words_train():
    module = ready()
    words = {word for text in module.texts["train"]["source"] for word in text.split() if word.isalpha()}
    asked = [word for text in module.texts["test"]["source"] for word in text.split() if word.isalpha()]
    assert sum(word in words for word in asked) > 0.8 * len(asked)


def test_the_same_seed_gives_the_same_phrases_and_another_gives_others():
    first, *others = (texts_of(ready(**changes)) for changes in ({}, {"seed": 5}, {"phrase_seed": 1}))
    assert others[0] == first
    sources = [{source for pairs in found.values() for source, _ in pairs} for found in (first, others[1])]
    assert len(sources[0] & sources[1]) < 0.4 * 1500


def test_a_source_is_there_once_and_no_text_is_empty_or_oddly_spaced():
    pairs = [pair for found in texts_of(ready()).values() for pair in found]
    assert len({source for source, _ in pairs}) == len(pairs)
    for text in (text for pair in pairs for text in pair):
        assert text == " ".join(text.split())
        assert text


@pytest.mark.parametrize("draw", sorted(set(phrases.DRAWS), key=lambda draw: draw.__name__))
def test_every_kind_says_the_same_in_both_languages(draw):
    random = Random(3)
    drawn = [draw(random, NAMES) for _ in range(300)]
    pairs = {(phrase(ENGLISH), phrase(GERMAN)) for phrase in drawn}
    assert len(pairs) > 60
    assert sum(english != german for english, german in pairs) > 0.5 * len(pairs)
    assert not [pair for pair in pairs for text in pair if "-person" in text or "None" in text]


def test_languages_may_be_turned_and_others():
    there, back = ready(), ready(source_language="de", target_language="en")
    assert there.schema["languages"] == {"source": "en", "target": "de"}
    assert back.schema["languages"] == {"source": "de", "target": "en"}
    pairs = {pair for found in texts_of(there).values() for pair in found}
    turned = {pair[::-1] for found in texts_of(back).values() for pair in found}
    assert len(pairs & turned) > 0.9 * 1500


@pytest.mark.parametrize("name", ["fr", "pt_BR", "pl", "ru", "ar", "hi", "ja", "zh", "mt"])
def test_all_kinds_are_said_in_any_language(name):
    locale, random = Locale.parse(name), Random(1)
    names = phrases.Names.of(ENGLISH, locale)
    assert all(draw(random, names)(locale).strip() for draw in phrases.DRAWS for _ in range(40))


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        (
            {"source_language": "english"},
            "source_language must be a language that Babel knows, as en or pt_BR; got 'engl",
        ),
        ({"target_language": "en"}, "target_language must be another than source_language; both are 'en'"),
    ],
)
def test_languages_that_are_none_are_named(changes, told):
    with pytest.raises(ValueError, match=told):
        make(**changes)


def test_more_phrases_than_there_are_cannot_be_asked_for(monkeypatch):
    monkeypatch.setattr(phrases, "DRAWS", (phrases.draw_name,))
    with pytest.raises(
        ValueError, match=r"num_pairs must be at most about [0-9]{3}, for so many phrases there are; got 10,000"
    ):
        list(phrases.pairs(ENGLISH, GERMAN, num_pairs=10_000, seed=0))


def test_phrases_are_made_once(tmp_path, monkeypatch):
    monkeypatch.setenv("FULLCYCLE_CACHE", str(tmp_path))
    table = make().read()["train"][1]
    monkeypatch.setattr(phrases, "pairs", None)  # making them again would fail
    assert make().read()["train"][1].equals(table)
    with pytest.raises(TypeError):
        make(phrase_seed=1).read()
