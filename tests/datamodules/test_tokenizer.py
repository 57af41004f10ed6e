import json
import subprocess
import sys

import pyarrow as pa
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers

from datamodules.tokenizer import describe, encode, ending, load, train

TEXTS = [
    f"the {color} {animal} sees number {i}" for i in range(60) for color in ("red", "blue") for animal in ("cat", "dog")
]
KINDS = ["bpe", "unigram"]


def trained(kind, **changes):
    return train(TEXTS, **{"kind": kind, "vocab_size": 400, "lowercase": True, **changes})


def ids_of(tokenizer, *texts, max_length=64):
    return encode(tokenizer, pa.array(texts, pa.large_string()), max_length)[0].to_pylist()


@pytest.mark.parametrize("kind", KINDS)
def test_a_trained_tokenizer_is_the_same_in_every_process(kind):
    code = (
        "import sys, json; from datamodules.tokenizer import train;"
        f"print(train(json.load(sys.stdin), kind={kind!r}, vocab_size=400, lowercase=True).to_str())"
    )
    other = subprocess.run(
        [sys.executable, "-c", code], input=json.dumps(TEXTS), capture_output=True, text=True, check=True
    )
    assert other.stdout.strip() == trained(kind).to_str()


@pytest.mark.parametrize("kind", KINDS)
def test_no_character_is_unknown_and_every_text_comes_back(kind):
    tokenizer = trained(kind)
    for text in ("the red cat", "日本語 🍲", "שלום", "a<b>&c"):
        (ids,) = ids_of(tokenizer, text)
        assert ids[0] == describe(tokenizer)["cls_id"]
        assert describe(tokenizer)["unk_id"] not in ids
        assert tokenizer.decode(ids) == text


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("vocab_size", [300, 50_000])
def test_any_number_of_ids_may_be_asked_for(kind, vocab_size):
    tokenizer = train(["the red cat", "日本語のテキスト " * 3], kind=kind, vocab_size=vocab_size, lowercase=True)
    assert 256 < tokenizer.get_vocab_size() <= vocab_size
    assert ids_of(tokenizer, "the red cat 日本語")[0]


@pytest.mark.parametrize("kind", KINDS)
def test_forms_spaces_and_controls_are_folded(kind):
    tokenizer = trained(kind)
    first, *others = ids_of(tokenizer, "the red cat", " The\tRED \x00\ncat ", "the\u00a0red\u3000cat", "ｔｈｅ red cat")
    assert all(other == first for other in others)
    cased = trained(kind, lowercase=False)
    assert len({str(ids) for ids in ids_of(cased, "the red cat", "The red cat")}) == 2


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_too_long_is_cut_and_counted(kind):
    texts = pa.array(["the red cat sees the dog", "x", None, ""], pa.large_string())
    rows, num_cut = encode(trained(kind), texts, 4)
    assert [len(row) for row in rows.to_pylist()] == [4, len(ids_of(trained(kind), "x")[0]), 1, 1]
    assert num_cut == 1


def test_the_description_is_enough_to_make_it_again():
    described = json.loads(json.dumps(describe(trained("bpe"))))
    assert {"pad_id": 0, "unk_id": 1, "cls_id": 2}.items() <= described.items()
    again = Tokenizer.from_str(described["json"])
    assert again.get_vocab_size() == described["vocab_size"] <= 400
    assert ids_of(again, "the red cat") == ids_of(trained("bpe"), "the red cat")


def of_others(path, **specials):
    vocab = {"the": 0, "red": 1, "cat": 2, **specials}
    tokenizer = Tokenizer(models.WordLevel(vocab, unk_token="[UNK]" if "[UNK]" in vocab else None))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.enable_padding(length=9)
    tokenizer.enable_truncation(2)
    tokenizer.save(str(path))
    return str(path)


def test_a_tokenizer_of_ones_own(tmp_path):
    tokenizer = load(of_others(tmp_path / "t.json", **{"[UNK]": 3, "[PAD]": 4, "[CLS]": 5}))
    described = describe(tokenizer)
    assert {"pad_id": 4, "unk_id": 3, "cls_id": 5, "vocab_size": 6}.items() <= described.items()
    assert ids_of(tokenizer, "the red dog", "") == [[0, 1, 3], [3]]  # its own padding and truncation do not count


def test_padding_is_added_where_there_is_none(tmp_path):
    described = describe(load(of_others(tmp_path / "t.json")))
    assert described["pad_id"] == 3
    assert described["vocab_size"] == 4
    assert described["unk_id"] is None
    assert ids_of(load(str(tmp_path / "t.json")), "the", "") == [[0], [0]]
    with pytest.raises(ValueError, match=r"data.tokenizer cannot take these texts: .*\[UNK\]"):
        ids_of(load(str(tmp_path / "t.json")), "the dog")


def test_what_is_no_tokenizer_is_named(tmp_path):
    (tmp_path / "t.json").write_text("{}")
    for path in (tmp_path / "t.json", "wordpeice"):
        with pytest.raises(ValueError, match=r"must be bpe, unigram or the path of a tokenizer.json; '.*' is none"):
            load(str(path))


@pytest.mark.parametrize("kind", KINDS)
def test_texts_that_are_written_end_with_a_mark_and_may_begin_with_one(kind):
    tokenizer = trained(kind, is_written=True)
    described = describe(tokenizer)
    assert {"pad_id": 0, "unk_id": 1, "cls_id": 2, "eos_id": 3}.items() <= described.items()
    assert "eos_id" not in describe(trained(kind))
    texts = pa.array(["the red cat sees", "", None], pa.large_string())
    (whole, *empty), _ = (part if isinstance(part, int) else part.to_pylist() for part in encode(tokenizer, texts, 64))
    begun, num_cut = encode(tokenizer, texts, 4, begin=2)
    assert whole[-1] == 3
    assert empty == [[3], [3]]
    assert begun.to_pylist() == [[2, *whole[:2], 3], [2, 3], [2, 3]]
    assert num_cut == 1


def test_an_end_mark_is_added_where_there_is_none(tmp_path):
    tokenizer = ending(load(of_others(tmp_path / "t.json", **{"[UNK]": 3, "[PAD]": 4})))
    assert describe(tokenizer)["eos_id"] == 5
    assert ids_of(tokenizer, "the cat", "") == [[0, 2, 5], [5]]
    assert ids_of(ending(tokenizer), "the cat", max_length=2) == [[0, 5]]
