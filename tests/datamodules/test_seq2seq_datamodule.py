"""Sources and targets of any table: read, split, tokenized, batched; bad ones are handled or named."""

import json
import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
import pytest
import torch
from omegaconf import OmegaConf
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from datamodules import tokenized
from datamodules.seq2seq.table import Seq2SeqTable

CONFIG = Path(__file__).parents[2] / "configs/data/seq2seq_table.yaml"
DATA = Path(os.environ.get("FULLCYCLE_DATA") or Path(__file__).parents[3] / "shared/data")
ENGLISH = ["one", "two", "three", "dog", "cat", "house", "sees", "the", "red", "old"]
GERMAN = ["eins", "zwei", "drei", "Hund", "Katze", "Haus", "sieht", "das", "rote", "alte"]
NUM_ROWS = 300


def make(path, **changes):
    options = OmegaConf.to_container(OmegaConf.load(CONFIG), resolve=False)
    options = {name: value for name, value in options.items() if name != "_target_"}
    options |= {"path": path, "source": "en", "target": "de", "seed": 0, "vocab_size": 500, **changes}
    return Seq2SeqTable(**{name: str(value) if isinstance(value, Path) else value for name, value in options.items()})


def ready(path, **changes):
    module = make(path, **changes)
    module.setup("fit")
    return module


def sentences(num_rows=NUM_ROWS, seed=0):
    generator = np.random.default_rng(seed)
    words = [generator.integers(0, len(ENGLISH), generator.integers(2, 15)) for _ in range(num_rows)]
    texts = [[" ".join(vocabulary[word] for word in row) for row in words] for vocabulary in (ENGLISH, GERMAN)]
    # A letter each: rows of the same words, or of words and digits, would count as duplicates.
    ends = ["".join(chr(97 + i // 26**place % 26) for place in range(3)) for i in range(num_rows)]
    return pa.table(
        {
            name: [f"{text} {end}" for text, end in zip(side, ends, strict=True)]
            for name, side in zip(("en", "de"), texts, strict=True)
        }
    )


def saved(table, path):
    if path.suffix == ".parquet":
        pa.parquet.write_table(table, path)
    elif path.suffix == ".jsonl":
        path.write_text("\n".join(json.dumps(row) for row in table.to_pylist()))
    else:
        pa.csv.write_csv(table, path, pa.csv.WriteOptions(delimiter="\t" if path.suffix == ".tsv" else ","))
    return path


@pytest.fixture
def path(tmp_path):
    return saved(sentences(), tmp_path / "pairs.parquet")


def rows_of(module):
    return {split: len(tensors["row"]) for split, tensors in module.tensors.items()}


def noted(module, text):
    return [note for note in module.notes if text in note]


def ids_of(sequences):
    return [sequences.values[a:b].tolist() for a, b in zip(sequences.offsets, sequences.offsets[1:], strict=False)]


def test_table_that_nobody_tuned_for(path):
    module = ready(path)
    sizes = rows_of(module)
    assert sum(sizes.values()) == NUM_ROWS
    assert sizes["train"] > sizes["test"] > sizes["val"] > 10
    assert module.summary.startswith("pairs.parquet: 300 pairs, ")
    assert json.loads(json.dumps(module.schema)) == module.schema
    assert module.schema["languages"] == {"source": "en", "target": "de"}
    assert module.schema["raw"] == {"source": ["en"], "target": "de"}
    lengths = module.tensors["train"]["target"].lengths
    assert module.schema["num_tokens"]["target"] == {
        "all": int(lengths.sum()),
        "median": int(lengths.median()),
        "most": int(lengths.max()),
    }
    assert not module.notes


def test_sources_end_and_targets_start_and_end_with_a_mark_and_come_back_as_they_were(path):
    module = ready(path)
    described = module.schema["tokenizer"]
    assert [described[role] for role in ("pad_id", "unk_id", "cls_id", "eos_id")] == [0, 1, 2, 3]
    tokenizer = Tokenizer.from_str(described["json"])
    for split, tensors in module.tensors.items():
        sources, targets = ids_of(tensors["source"]), ids_of(tensors["target"])
        for row, (source, target) in enumerate(zip(sources, targets, strict=True)):
            assert source[-1] == target[-1] == described["eos_id"]
            assert target[0] == described["cls_id"]
            assert not {described["cls_id"], described["eos_id"]} & {*source[:-1], *target[1:-1]}
            assert tokenizer.decode(source).strip() == module.texts[split]["source"][row]
            assert tokenizer.decode(target).strip() == module.texts[split]["target"][row]


def test_the_tokenizer_in_the_schema_cuts_sources_as_training_did(path):
    module = ready(path, max_source_length=6, max_target_length=20)
    tokenizer = Tokenizer.from_str(module.schema["tokenizer"]["json"])
    ids = [tokenizer.encode(text).ids for text in module.texts["train"]["source"]]
    assert max(map(len, ids)) == 6
    assert ids == ids_of(module.tensors["train"]["source"])


@pytest.mark.parametrize("name", ["t.csv", "t.tsv", "t.jsonl"])
def test_formats_give_the_same(tmp_path, path, name):
    other, module = ready(saved(sentences(), tmp_path / name)), ready(path)
    assert other.schema == module.schema
    assert other.fingerprint == module.fingerprint
    assert other.tensors["val"]["row"].tolist() == module.tensors["val"]["row"].tolist()


def test_batches_hold_sources_targets_rows_and_the_number_of_predicted_tokens(path):
    module = ready(path, batch_tokens=512, batches_per_call=3)
    call = next(iter(module.train_dataloader()))
    assert len(call) == 3
    for batch in call:
        assert batch["source"].numel() + batch["target"].numel() <= 512
        assert batch["global_rows"] == len(batch["row"])
        assert batch["global_tokens"] == int((batch["target"][:, 1:] != 0).sum())
        for side in ("source", "target"):
            own = module.tensors["train"][side]
            assert torch.equal(batch[side], own.padded(batch["row"], 0))
    (batch,) = list(module.val_dataloader())
    assert sorted(batch["row"].tolist()) == list(range(rows_of(module)["val"]))
    assert module.transfer_batch_to_device(batch, torch.device("cpu"), 0) is batch


def test_setup_is_done_once(path):
    module = ready(path)
    tensors = module.tensors
    module.setup("test")
    assert module.tensors is tensors


# Splits


def test_pairs_that_share_a_source_or_a_target_are_in_one_split(tmp_path):
    once = sentences()
    sources = pa.table({"en": [f" {text.upper()}" for text in once["en"].to_pylist()], "de": once["de"]})
    others = [f"anders {text}" for text in once["de"].to_pylist()]
    targets = pa.table({"en": once["en"], "de": others})
    linked = pa.table({"en": [f"other {text}" for text in once["en"].to_pylist()], "de": others})
    module = ready(saved(pa.concat_tables([once, sources, targets, linked]), tmp_path / "t.parquet"))
    assert sum(rows_of(module).values()) == 4 * NUM_ROWS
    splits = list(module.texts)
    for side in ("source", "target"):
        folded = {split: {text.lower() for text in texts[side]} for split, texts in module.texts.items()}
        assert not any(folded[a] & folded[b] for a in splits for b in splits if a < b)
    assert all(rows % 4 == 0 for rows in rows_of(module).values())


def test_a_target_of_very_many_rows_trains(tmp_path):
    table = sentences().set_column(1, "de", [["bitte"] * 200 + [f"x{'y' * i}" for i in range(100)]])
    module = ready(saved(table, tmp_path / "t.parquet"))
    assert sum(text == "bitte" for text in module.texts["train"]["target"]) == 200
    assert min(rows_of(module).values()) > 0


def test_a_pair_stays_in_its_split_whatever_the_seed_and_the_other_rows(tmp_path, path):
    whole, part = ready(path, seed=5), ready(saved(sentences().slice(100), tmp_path / "p.parquet"))
    for split in whole.texts:
        assert set(part.texts[split]["source"]) <= set(whole.texts[split]["source"])


def test_splits_by_a_column_and_by_files(tmp_path, path):
    table = sentences().append_column("part", pa.array(["train", "dev", "test"] * 100))
    by_column = ready(saved(table, tmp_path / "t.parquet"), split_column="part")
    assert rows_of(by_column) == {"train": 100, "val": 100, "test": 100}
    by_files = ready(path, val_path=saved(sentences(50, seed=1), tmp_path / "v.csv"), test_path=path)
    assert rows_of(by_files) == {"train": 300, "val": 50, "test": 300}
    assert noted(by_files, "leakage: 300 of the 300 test sources train, too")
    alone = ready(path, val_share=0.0, test_share=0.0)
    assert alone.val_dataloader() == alone.test_dataloader() == []
    assert noted(alone, "there are no val rows")
    with pytest.raises(ValueError, match="give data.split_column=COLUMN"):
        make(path, splits={"train": ["x"]})


def test_several_columns_make_a_source(tmp_path):
    table = sentences().append_column("title", pa.array(["Hot", None, "  "] * 100))
    module = ready(saved(table, tmp_path / "t.parquet"), source=["title", "en"], val_share=0.0, test_share=0.0)
    assert module.texts["train"]["source"][:2] == ["Hot\n" + table["en"][0].as_py(), table["en"][1].as_py()]
    assert module.schema["languages"] == {"source": None, "target": "de"}


# Other data


def test_other_pairs_are_read_by_the_schema(tmp_path, path):
    run, module = ready(path), make(path)
    more = pa.table({"en": ["x", "", "y"], "de": ["u", "v", None]})
    other = saved(pa.concat_tables([sentences(20, seed=3), more]), tmp_path / "o.csv")
    tensors = module.load_other(str(other), run.schema)
    names = {"source", "target", "row", "source_text", "reference"}
    assert {name: len(values) for name, values in tensors.items()} == dict.fromkeys(names, 21)
    assert len(module.texts["test"]["target"]) == 21
    assert noted(module, "2 rows of ")
    (batch,) = list(module.eval_dataloader(tensors))
    assert torch.equal(batch["target"], tensors["target"].padded(batch["row"], 0))
    whole = ready(path, val_share=0.0, test_share=0.0)
    again = make(path).load_other(str(path), whole.schema)
    for side in ("source", "target"):
        assert ids_of(again[side]) == ids_of(whole.tensors["train"][side])


def test_other_data_stream_in_their_order_with_targets_or_without(tmp_path, path):
    run, module = ready(path), make(path)
    texts = ["the dog", "", None, "🍲", "x" * 100_000]
    other = saved(pa.table({"id": range(5), "en": texts}), tmp_path / "o.parquet")
    ((batch, inputs),) = list(module.iter_other(str(other), run.schema))
    assert batch.schema.names == ["id", "en"]
    assert inputs["source"].shape == (5, run.schema["max_source_length"])
    end, pad = run.schema["tokenizer"]["eos_id"], run.schema["tokenizer"]["pad_id"]
    assert inputs["source"][1].tolist() == inputs["source"][2].tolist() == [end] + [pad] * 255
    assert inputs["source"][4, -1] == end
    wrong = saved(pa.table({"eng": ["a"]}), tmp_path / "w.csv")
    with pytest.raises(ValueError, match=r"w.csv: column 'en' is missing \(did you mean 'eng'\?\)"):
        list(module.iter_other(str(wrong), run.schema))


def test_raw_inputs_are_the_first_sources_of_a_split(path):
    module = ready(path)
    raw = module.raw_inputs("val", 5)
    assert raw["source"].dtype == np.int64
    assert torch.equal(module.encode_raw(raw)["source"], module.tensors["val"]["source"].padded(torch.arange(5), 0))
    assert len(module.raw_inputs("val", 10_000)["source"]) == rows_of(module)["val"]


# Tokenizers and cache


@pytest.mark.parametrize("kind", ["bpe", "unigram"])
def test_too_long_texts_lose_their_end_and_keep_their_marks(tmp_path, kind):
    more = pa.table({"en": ["dog " * 25_000, "x" * 100_000], "de": ["Hund " * 20_000, "y" * 100_000]})
    path = saved(pa.concat_tables([sentences(), more]), tmp_path / "t.csv")
    module = ready(path, tokenizer=kind, max_source_length=16, max_target_length=8, val_share=0.0, test_share=0.0)
    source, target = (ids_of(module.tensors["train"][side]) for side in ("source", "target"))
    marks = module.schema["tokenizer"]
    assert [len(ids) for ids in source[-2:]] == [16, 16]
    assert [len(ids) for ids in target[-2:]] == [8, 8]
    assert {ids[-1] for ids in source + target} == {marks["eos_id"]}
    assert {ids[0] for ids in target} == {marks["cls_id"]}
    assert len(noted(module, "sources longer than 16 tokens lose their end: ")) == 1
    assert len(noted(module, "targets longer than 8 tokens lose their end: ")) == 1


def of_others(path, template, **specials):
    words = {word: number for number, word in enumerate([*ENGLISH, *GERMAN, "[UNK]", *specials])}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    if template:
        marks = [(name, words[name]) for name in template.split() if name in words]
        tokenizer.post_processor = processors.TemplateProcessing(single=template, special_tokens=marks)
    tokenizer.save(str(path))
    return str(path)


@pytest.mark.parametrize(
    ("template", "specials", "source", "target"),
    [
        ("$A </s>", ["<pad>", "</s>"], "$A </s>", "<pad> $A </s>"),  # as T5 and Marian
        ("<s> $A </s>", ["<s>", "<pad>", "</s>"], "<s> $A </s>", "<s> $A </s>"),  # as BART
        ("[CLS] $A [SEP]", ["[PAD]", "[CLS]", "[SEP]"], "[CLS] $A [SEP]", "[CLS] $A [SEP]"),  # as BERT
        (None, ["[PAD]"], "$A </s>", "[PAD] $A </s>"),
    ],
)
def test_a_tokenizer_of_ones_own_gets_the_marks_that_it_lacks(tmp_path, path, template, specials, source, target):
    file = of_others(tmp_path / "t.json", template, **dict.fromkeys(specials))
    module = ready(path, tokenizer=file, val_share=0.0, test_share=0.0)
    tokenizer = Tokenizer.from_str(module.schema["tokenizer"]["json"])
    for side, expected in (("source", source), ("target", target)):
        pieces = [tokenizer.id_to_token(number) for number in ids_of(module.tensors["train"][side])[0]]
        begin, end = expected.split(" $A ") if " $A " in expected else ("", expected.removeprefix("$A "))
        assert pieces[-1] == end
        assert pieces[0] == begin if begin else pieces[0] in [*ENGLISH, "[UNK]"]
        assert pieces.count(end) == 1
    cut = ready(path, tokenizer=file, max_target_length=4)
    end = cut.schema["tokenizer"]["eos_id"]
    assert {ids[-1] for ids in ids_of(cut.tensors["train"]["target"])} == {end}
    assert int(cut.tensors["train"]["target"].lengths.max()) == 4


def test_tokens_of_both_sides_come_from_a_file_that_is_made_once(path, tmp_path, monkeypatch):
    monkeypatch.setenv("FULLCYCLE_CACHE", str(tmp_path / "cache"))
    first = ready(path)
    monkeypatch.setattr(tokenized, "train", None)  # a second training would fail
    again = ready(path)
    assert again.schema == first.schema
    for side in ("source", "target"):
        assert ids_of(again.tensors["test"][side]) == ids_of(first.tensors["test"][side])
    for changes in ({"max_target_length": 9}, {"source": "de", "target": "en"}):
        with pytest.raises(TypeError):
            ready(path, **changes)


def test_the_fingerprint_is_of_sources_and_targets(tmp_path, path):
    first = ready(path).fingerprint
    assert ready(path, vocab_size=400, seed=4).fingerprint == first
    for name in ("en", "de"):
        values = ["changed", *sentences()[name].to_pylist()[1:]]
        table = sentences().set_column(sentences().schema.names.index(name), name, [values])
        assert ready(saved(table, tmp_path / "o.parquet")).fingerprint != first


# Bad input


def test_rows_without_a_source_or_a_target_are_left_out_and_counted(tmp_path):
    more = pa.table({"en": ["", " \n", None, "soup"], "de": ["a", "b", "c", " "]})
    module = ready(saved(pa.concat_tables([sentences(), more]), tmp_path / "t.parquet"))
    assert sum(rows_of(module).values()) == NUM_ROWS
    assert noted(module, "4 rows of ")
    with pytest.raises(ValueError, match="no training rows with a source and a target"):
        ready(saved(more, tmp_path / "e.parquet"))


def test_pairs_that_all_fall_to_other_splits_are_told_of(tmp_path):
    same = pa.table({"en": ["one text"] * 30, "de": ["ein Text"] * 30})
    with pytest.raises(ValueError, match=r"t\.parquet: no row is left to train on: all 30 .* near-duplicates"):
        ready(saved(same, tmp_path / "t.parquet"), test_share=0.89)


def test_other_sources_that_are_empty_or_cut_are_told_of(path, tmp_path):
    run, module = ready(path, max_source_length=8), make(path)
    other = saved(pa.table({"en": ["dog " * 20, "", None, "dog"]}), tmp_path / "o.parquet")
    list(module.iter_other(str(other), run.schema))
    assert module.notes == [
        f"2 rows of {other} without a source are read as the empty text",
        f"sources longer than 8 tokens lose their end: 1 of {other}",
    ]


STRANGE = ["ok \x00 nul", "\x07\x1b[31m x", "שלום עולם", "مرحبا", "👩‍👩‍👧 🍲", "日本語", "\u202eabc", "\U0010fffd"]


@pytest.mark.parametrize("kind", ["bpe", "unigram"])
@pytest.mark.parametrize("name", ["t.parquet", "t.jsonl", "t.csv"])
def test_strange_characters_are_texts(tmp_path, kind, name):
    more = pa.table({"en": STRANGE, "de": STRANGE[::-1]})
    path = saved(pa.concat_tables([sentences(), more]), tmp_path / name)
    module = ready(path, tokenizer=kind, val_share=0.0, test_share=0.0)
    unknown = module.schema["tokenizer"]["unk_id"]
    assert module.texts["train"]["target"][-1] == STRANGE[0]
    assert not any((module.tensors["train"][side].values == unknown).any() for side in ("source", "target"))


def test_texts_that_are_not_utf8_are_named(tmp_path):
    (tmp_path / "t.csv").write_bytes(b"en,de\nfine,a\ncaf\xe9,b\n")
    with pytest.raises(ValueError, match=r"t.csv.*line 3 is not UTF-8: byte 0xe9"):
        ready(tmp_path / "t.csv")


def test_columns_that_are_missing_or_of_no_use_are_named(tmp_path, path):
    table = sentences().append_column("lists", pa.array([["a"]] * NUM_ROWS))
    other = saved(table, tmp_path / "l.parquet")
    for place, changes, told in [
        (path, {"source": "enn"}, r"pairs.parquet: column 'enn' is missing \(did you mean 'en'"),
        (path, {"target": "dee"}, r"pairs.parquet: column 'dee' is missing \(did you mean 'de'"),
        (path, {"source": []}, "source must name a column"),
        (path, {"split_column": "split"}, "column 'split' is missing"),
        (path, {"target": "en"}, "target must be another column than the source; both are 'en'"),
        (path, {"val_share": 0.5, "test_share": 0.5}, "must be below 1"),
        (other, {"target": "lists"}, "column 'lists' must hold texts; it holds list<"),
    ]:
        with pytest.raises(ValueError, match=told):
            ready(place, **changes)


# Real data


@pytest.mark.slow
def test_mails_and_their_subjects():
    path = DATA / "seq2seq_aeslc_email_subject/aeslc.parquet"
    if not path.exists():
        pytest.skip(f"there is no {path}: set FULLCYCLE_DATA")
    module = ready(path, source="body", target="subject", split_column="split", vocab_size=8000)
    assert rows_of(module) == {"train": 14_436, "val": 1_960, "test": 1_906}
    assert module.train_dataloader().padding() < 0.05
