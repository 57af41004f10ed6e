"""Texts and labels of any table: read, split, tokenized, batched; bad ones are handled or named."""

import gzip
import json
import logging
import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
import pytest
import torch
from omegaconf import OmegaConf
from tokenizers import Tokenizer

from datamodules import tokenized
from datamodules.text.table import TextTable
from datamodules.texts import hashes

CONFIG = Path(__file__).parents[2] / "configs/data/text_table.yaml"
DATA = Path(os.environ.get("FULLCYCLE_DATA") or Path(__file__).parents[3] / "shared/data")
WORDS = {
    "sport": ["goal", "match", "team", "coach", "league", "striker", "stadium"],
    "money": ["bank", "shares", "profit", "market", "loan", "dollar", "tax"],
    "food": ["soup", "bread", "oven", "salt", "butter", "recipe", "onion"],
}
NUM_ROWS = 300


def make(path, **changes):
    options = OmegaConf.to_container(OmegaConf.load(CONFIG), resolve=False)
    options = {name: value for name, value in options.items() if name != "_target_"}
    options |= {"path": path, "text": "text", "label": "label", "seed": 0, "vocab_size": 400, **changes}
    return TextTable(**{name: str(value) if isinstance(value, Path) else value for name, value in options.items()})


def ready(path, **changes):
    module = make(path, **changes)
    module.setup("fit")
    return module


def news(num_rows=NUM_ROWS, seed=0):
    generator = np.random.default_rng(seed)
    labels = generator.choice(list(WORDS), num_rows)
    texts = [" ".join(generator.choice(WORDS[label], generator.integers(3, 12))) for label in labels]
    return pa.table({"text": [f"{text} no {i}x{chr(97 + i % 26)}" for i, text in enumerate(texts)], "label": labels})


def saved(table, path):
    if path.suffix == ".parquet":
        pa.parquet.write_table(table, path)
    elif path.name.endswith((".jsonl", ".jsonl.gz")):
        body = "\n".join(json.dumps(row) for row in table.to_pylist()).encode()
        path.write_bytes(gzip.compress(body) if path.suffix == ".gz" else body)
    else:
        delimiter = "\t" if path.suffix == ".tsv" else ","
        pa.csv.write_csv(table, path, pa.csv.WriteOptions(delimiter=delimiter))
    return path


@pytest.fixture
def path(tmp_path):
    return saved(news(), tmp_path / "news.parquet")


def rows_of(module):
    return {split: len(tensors["target"]) for split, tensors in module.tensors.items()}


def noted(module, text):
    return [note for note in module.notes if text in note]


def equal(first, second):
    assert first.schema == second.schema
    assert first.fingerprint == second.fingerprint
    for split in first.tensors:
        for name in ("target", "row"):
            assert torch.equal(first.tensors[split][name], second.tensors[split][name])
        a, b = first.tensors[split]["tokens"], second.tensors[split]["tokens"]
        rows = torch.arange(len(a))
        assert torch.equal(a.padded(rows, 0), b.padded(rows, 0))


def test_table_that_nobody_tuned_for(path):
    module = ready(path)
    sizes = rows_of(module)
    assert sum(sizes.values()) == NUM_ROWS
    assert sizes["train"] > sizes["test"] > sizes["val"] > 10
    assert module.summary.startswith("news.parquet: 300 texts, ")
    assert module.schema["classes"] == ["food", "money", "sport"]
    assert module.schema["counts"] == torch.bincount(module.tensors["train"]["target"]).tolist()
    assert not module.schema["multi_label"]
    assert json.loads(json.dumps(module.schema)) == module.schema
    assert next(iter(module.tensors["train"])) == "tokens"
    for split, tensors in module.tensors.items():
        assert len(module.texts[split]) == len(tensors["tokens"]) == len(tensors["target"])
        for text, target in zip(module.texts[split], tensors["target"], strict=True):
            assert text.split()[0] in WORDS[module.schema["classes"][target]]


@pytest.mark.parametrize("name", ["t.csv", "t.tsv", "t.jsonl", "t.jsonl.gz"])
def test_formats_give_the_same(tmp_path, path, name):
    equal(ready(saved(news(), tmp_path / name)), ready(path))


def test_setup_is_done_once(path):
    module = ready(path)
    tensors, notes = module.tensors, list(module.notes)
    module.setup("test")
    assert module.tensors is tensors
    assert module.notes == notes


def test_batches_hold_tokens_target_and_row(path):
    module = ready(path, batch_tokens=512, batches_per_call=3)
    call = next(iter(module.train_dataloader()))
    assert len(call) == 3
    for batch in call:
        assert batch["tokens"].numel() <= 512
        assert batch["global_rows"] == len(batch["target"])
        assert torch.equal(batch["target"], module.tensors["train"]["target"][batch["row"]])
    (batch,) = list(module.val_dataloader())
    assert sorted(batch["row"].tolist()) == list(range(rows_of(module)["val"]))
    assert module.transfer_batch_to_device(batch, torch.device("cpu"), 0) is batch


def test_near_duplicates_are_in_one_split(tmp_path):
    twins = news().append_column("n", pa.array(range(NUM_ROWS)))
    shouted = twins.set_column(0, "text", [[f"  {text.upper()}\t" for text in twins["text"].to_pylist()]])
    module = ready(saved(pa.concat_tables([twins, shouted]), tmp_path / "t.parquet"))
    folded = {split: {text.strip().lower() for text in texts} for split, texts in module.texts.items()}
    assert sum(map(len, folded.values())) == NUM_ROWS
    once = rows_of(ready(saved(twins, tmp_path / "once.parquet")))
    assert rows_of(module) == {split: 2 * rows for split, rows in once.items()}


def test_case_spaces_digits_and_forms_do_not_tell_texts_apart():
    same = ["On 12 May  the Fine", "on 3 may the fine", "ON 04 MAY\nTHE \N{LATIN SMALL LIGATURE FI}NE "]
    found = hashes(pa.array([*same, "on 3 june the fine"], pa.large_string()))
    assert len(set(found[:3].tolist())) == 1
    assert found[3] != found[0]


def test_a_text_stays_in_its_split_whatever_the_seed_and_the_other_rows(tmp_path, path):
    whole, part = ready(path, seed=5), ready(saved(news().slice(100), tmp_path / "p.parquet"))
    for split in whole.texts:
        assert set(part.texts[split]) <= set(whole.texts[split])


def test_splits_by_a_column(tmp_path):
    table = news().append_column("part", pa.array(["train", "dev", "test"] * 100))
    path = saved(table, tmp_path / "t.parquet")
    assert rows_of(ready(path, split_column="part")) == {"train": 100, "val": 100, "test": 100}
    own = ready(path, split_column="part", splits={"train": ["dev"], "test": ["test"]})
    sizes = rows_of(own)
    assert sizes["test"] == 100
    assert sizes["train"] + sizes["val"] == 100
    assert sizes["val"] > 0
    assert noted(own, "100 rows with part=train are in no split")
    for splits, told in [
        (None, r"'x' \(300\), which do not all name a split"),
        ({"train": ["y"]}, r"data.splits.train has 'y', and column 'part' has 'x' \(300\)"),
        ({"val": ["x"]}, "must name the training rows"),
        ({"trian": ["x"]}, "must map train, val and test"),
    ]:
        other = saved(table.set_column(2, "part", pa.array(["x"] * NUM_ROWS)), tmp_path / "o.parquet")
        with pytest.raises(ValueError, match=told):
            ready(other, split_column="part", splits=splits)
    with pytest.raises(ValueError, match="give data.split_column=COLUMN"):
        make(path, splits={"train": ["x"]})


def test_splits_by_files(tmp_path, path):
    other = saved(news(50, seed=1), tmp_path / "val.csv")
    module = ready(path, val_path=other, test_path=path)
    assert rows_of(module) == {"train": 300, "val": 50, "test": 300}
    assert noted(module, "leakage: 300 of the 300 test texts train, too")
    assert rows_of(ready(path, val_share=0.0, test_path=other))["val"] == 0


def test_splits_without_rows_have_no_loader(path):
    module = ready(path, val_share=0.0, test_share=0.0)
    assert rows_of(module) == {"train": NUM_ROWS, "val": 0, "test": 0}
    assert module.val_dataloader() == module.test_dataloader() == []
    assert noted(module, "there are no val rows")


def test_several_columns_are_joined_by_a_newline(tmp_path):
    table = news().append_column("title", pa.array(["Hot", None, "  "] * 100))
    module = ready(saved(table, tmp_path / "t.parquet"), text=["title", "text"], val_share=0.0, test_share=0.0)
    assert module.texts["train"][:3] == ["Hot\n" + table["text"][0].as_py(), *table["text"].to_pylist()[1:3]]


@pytest.mark.parametrize("how", ["lists", "texts"])
def test_several_labels_a_row(tmp_path, how):
    lists = [["b", "a"], ["a"], []] * 100
    column = lists if how == "lists" else ["| ".join(labels) for labels in lists]
    path = saved(news().set_column(1, "label", pa.array(column)), tmp_path / "t.parquet")
    module = ready(path, label_separator="|" if how == "texts" else None, val_share=0.0, test_share=0.0)
    assert module.schema["classes"] == ["a", "b"]
    assert module.schema["multi_label"]
    assert module.schema["num_rows"] == len(module.tensors["train"]["target"])
    assert module.schema["counts"] == [200, 100]
    assert module.tensors["train"]["target"][:3].tolist() == [[1, 1], [1, 0], [0, 0]]
    assert module.tensors["train"]["target"].dtype == torch.float32


def test_labels_of_numbers_and_truth_values_are_named_as_texts(tmp_path):
    for values, classes in [([0, 1], ["0", "1"]), ([1.0, 2.0], ["1", "2"]), ([True, False], ["0", "1"])]:
        table = news().set_column(1, "label", pa.array(values * 150))
        assert ready(saved(table, tmp_path / "t.parquet")).schema["classes"] == classes
    assert ready(saved(table, tmp_path / "t.csv")).schema["classes"] == ["false", "true"]


def test_words_for_missing_are_texts_in_a_csv_file(tmp_path):
    (tmp_path / "t.csv").write_text("text,label\n" + "null,NA\nNaN,true\n007,NA\n" * 20)
    module = ready(tmp_path / "t.csv", val_share=0.0, test_share=0.0)
    assert module.texts["train"][:3] == ["null", "NaN", "007"]
    assert module.schema["classes"] == ["NA", "true"]


def test_class_weights(path):
    assert ready(path).schema["class_weights"] is None
    module = ready(path, class_weights="balanced")
    weights, counts = module.schema["class_weights"], module.schema["counts"]
    assert sum(w * c for w, c in zip(weights, counts, strict=True)) == pytest.approx(sum(counts))
    assert weights[0] * counts[0] == pytest.approx(weights[1] * counts[1])
    assert ready(path, class_weights={"food": 2.5}).schema["class_weights"] == [2.5, 1.0, 1.0]
    with pytest.raises(ValueError, match="names 'fodo', which is no class; classes are food, money, sport"):
        ready(path, class_weights={"fodo": 2})


# Other data


def test_other_labelled_data_are_read_by_the_schema(tmp_path, path):
    run, module = ready(path), make(path)
    table = pa.concat_tables([news(20, seed=3), pa.table({"text": ["x", "", "y"], "label": ["war", "food", None]})])
    tensors = module.load_other(str(saved(table, tmp_path / "o.csv")), run.schema)
    assert len(tensors["target"]) == len(tensors["tokens"]) == len(module.texts["test"]) == 20
    assert noted(module, "1 rows of ") == [note for note in module.notes if "left out" in note]
    assert noted(module, "have a label that training has not ('war')")
    (batch,) = list(module.eval_dataloader(tensors))
    assert torch.equal(batch["target"], tensors["target"][batch["row"]])
    again = ready(path, val_share=0.0, test_share=0.0)
    assert module.load_other(str(path), run.schema)["target"].tolist() == again.tensors["train"]["target"].tolist()
    lists = saved(news(20).set_column(1, "label", pa.array([["food"]] * 20)), tmp_path / "l.parquet")
    with pytest.raises(ValueError, match="must have one label a row, as in training"):
        module.load_other(str(lists), run.schema)


def test_other_data_stream_in_their_order_labelled_or_not(tmp_path, path):
    run, module = ready(path), make(path)
    texts = ["goal match", "", "soup", None, "🍲", "x" * 100_000]
    other = saved(pa.table({"id": range(6), "text": texts}), tmp_path / "o.parquet")
    ((batch, inputs),) = list(module.iter_other(str(other), run.schema))
    assert batch.schema.names == ["id", "text"]
    assert inputs["tokens"].shape[0] == 6
    assert inputs["tokens"].shape[1] == run.schema["max_length"]
    start, pad = run.schema["tokenizer"]["cls_id"], run.schema["tokenizer"]["pad_id"]
    assert inputs["tokens"][:, 0].tolist() == [start] * 6
    assert inputs["tokens"][1, 1:].tolist() == inputs["tokens"][3, 1:].tolist() == [pad] * 255
    empty = saved(pa.table({"text": pa.array([], pa.string())}), tmp_path / "e.parquet")
    ((batch, inputs),) = list(module.iter_other(str(empty), run.schema))
    assert inputs["tokens"].shape == (0, 0)
    wrong = saved(pa.table({"texts": ["a"]}), tmp_path / "w.csv")
    with pytest.raises(ValueError, match=r"w.csv: column 'text' is missing \(did you mean 'texts'\?\)"):
        list(module.iter_other(str(wrong), run.schema))


def test_raw_inputs_are_the_first_rows_of_a_split(path):
    module = ready(path)
    raw = module.raw_inputs("val", 5)
    assert raw["tokens"].dtype == np.int64
    tokens = module.tensors["val"]["tokens"]
    assert raw["tokens"].shape == (5, int(tokens.lengths[:5].max()))
    assert torch.equal(module.encode_raw(raw)["tokens"], tokens.padded(torch.arange(5), 0))
    assert len(module.raw_inputs("val", 10_000)["tokens"]) == rows_of(module)["val"]


# Cache


def test_tokens_come_from_a_mapped_file_that_is_made_once(path, tmp_path, monkeypatch):
    monkeypatch.setenv("FULLCYCLE_CACHE", str(tmp_path / "cache"))
    first = ready(path)
    (file,) = (tmp_path / "cache").glob("tokens-*.arrow")
    monkeypatch.setattr(tokenized, "train", None)  # a second training would fail
    equal(ready(path), first)
    assert any(str(file) in line for line in Path("/proc/self/maps").read_text().splitlines())
    with pytest.raises(TypeError):
        ready(path, vocab_size=401)


@pytest.mark.parametrize("damage", ["torn", "empty", "strange"])
def test_a_damaged_file_is_made_again(path, tmp_path, monkeypatch, caplog, damage):
    monkeypatch.setenv("FULLCYCLE_CACHE", str(tmp_path / "cache"))
    first = ready(path)
    (file,) = (tmp_path / "cache").glob("tokens-*.arrow")
    body = file.read_bytes()
    file.unlink()  # what is mapped stays
    file.write_bytes({"torn": body[: len(body) // 2], "empty": b"", "strange": b"x" * 5000}[damage])
    equal(ready(path), first)
    assert "damaged cache file" in caplog.text
    assert file.read_bytes() == body


def test_without_a_cache_all_works_with_a_warning(path, tmp_path, monkeypatch, caplog):
    first = ready(path)
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("FULLCYCLE_CACHE", str(tmp_path / "file" / "cache"))
    with caplog.at_level(logging.WARNING):
        equal(ready(path), first)
    assert "not cached" in caplog.text


def test_the_fingerprint_is_of_texts_and_labels(tmp_path, path):
    first = ready(path).fingerprint
    assert ready(path, vocab_size=500, seed=4).fingerprint == first
    first_label, *labels = news()["label"].to_pylist()
    flipped = [next(label for label in WORDS if label != first_label), *labels]
    for column, values in [("label", flipped), ("text", ["changed", *news()["text"].to_pylist()[1:]])]:
        table = news().set_column(news().schema.names.index(column), column, pa.array(values))
        assert ready(saved(table, tmp_path / "o.parquet")).fingerprint != first


# Bad input


def test_rows_without_text_or_label_are_left_out_and_counted(tmp_path):
    more = pa.table({"text": ["", "  \n", None, "soup"], "label": ["food", "food", "food", ""]})
    module = ready(saved(pa.concat_tables([news(), more]), tmp_path / "t.parquet"))
    assert sum(rows_of(module).values()) == NUM_ROWS
    assert noted(module, "3 rows of ")
    assert noted(module, "1 rows of ")


def test_the_tokenizer_in_the_schema_cuts_texts_as_training_did(path):
    module = ready(path, max_length=6)
    tokenizer, tokens = Tokenizer.from_str(module.schema["tokenizer"]["json"]), module.tensors["train"]["tokens"]
    ids = [tokenizer.encode(text).ids for text in module.texts["train"]]
    assert max(map(len, ids)) == 6
    assert ids == [tokens.values[a:b].tolist() for a, b in zip(tokens.offsets, tokens.offsets[1:], strict=False)]


def test_a_very_long_text_loses_its_end(tmp_path):
    more = pa.table({"text": ["soup " * 20_000, "x" * 100_000], "label": ["food", "food"]})
    module = ready(saved(pa.concat_tables([news(), more]), tmp_path / "t.csv"), max_length=32)
    assert max(int(tensors["tokens"].lengths.max()) for tensors in module.tensors.values()) == 32
    assert noted(module, "texts longer than 32 tokens lose their end: ")


@pytest.mark.parametrize("name", ["t.csv", "t.jsonl"])
def test_a_text_of_megabytes_is_read(tmp_path, name):
    run = ready(saved(news(), tmp_path / "n.csv"))
    path = saved(pa.table({"text": ["word " * 700_000, "b"], "label": ["food", "money"]}), tmp_path / name)
    assert len(make(path).load_other(str(path), run.schema)["target"]) == 2
    assert sum(len(batch) for batch, _ in make(path).iter_other(str(path), run.schema)) == 2


STRANGE = ["ok \x00 nul", "\x07\x1b[31m", "שלום עולם", "مرحبا", "👩‍👩‍👧 🍲", "日本語", "e\u0301", "\ufeffbom"]
STRANGE += ["\u202eabc", "\U0010fffd"]


@pytest.mark.parametrize("tokenizer", ["bpe", "unigram"])
@pytest.mark.parametrize("name", ["t.parquet", "t.jsonl", "t.csv"])
def test_strange_characters_are_texts(tmp_path, tokenizer, name):
    more = pa.table({"text": STRANGE, "label": ["food"] * len(STRANGE)})
    module = ready(saved(pa.concat_tables([news(), more]), tmp_path / name), tokenizer=tokenizer)
    assert sum(rows_of(module).values()) >= NUM_ROWS + len(STRANGE) - 1
    unknown = module.schema["tokenizer"]["unk_id"]
    assert not any((tensors["tokens"].values == unknown).any() for tensors in module.tensors.values())


def test_texts_that_are_not_utf8_are_named(tmp_path):
    (tmp_path / "t.csv").write_bytes(b"text,label\nfine,a\ncaf\xe9,b\n")
    with pytest.raises(ValueError, match=r"t.csv.*line 3 is not UTF-8: byte 0xe9"):
        ready(tmp_path / "t.csv")
    schema = ready(saved(news(), tmp_path / "n.csv")).schema
    with pytest.raises(ValueError, match=r"t.csv.*line 3 is not UTF-8: byte 0xe9"):
        list(make(tmp_path / "t.csv").iter_other(str(tmp_path / "t.csv"), schema))
    (tmp_path / "t.jsonl").write_bytes(b'{"text": "fine", "label": "a"}\n{"text": "caf\xe9", "label": "b"}\n')
    with pytest.raises(ValueError, match=r"t.jsonl.*line 2 is not UTF-8: byte 0xe9 at place 14"):
        ready(tmp_path / "t.jsonl")
    (tmp_path / "t.jsonl").write_bytes(b'{"text": "fine", "label": "a"}\n{"text": "fine, too", "label": "\xff"}\n')
    with pytest.raises(ValueError, match=r"t.jsonl.*line 2 is not UTF-8: byte 0xff at place 33"):
        ready(tmp_path / "t.jsonl")
    broken = pa.Array.from_buffers(pa.string(), 1, pa.array([b"caf\xe9"]).buffers())
    pa.parquet.write_table(pa.table({"text": broken, "label": ["a"]}), tmp_path / "t.parquet")
    with pytest.raises(ValueError, match=r"t.parquet, row 1, column 'text'"):
        ready(tmp_path / "t.parquet")
    (tmp_path / "u.csv").write_bytes("text,label\nx,y\n".encode("utf-16"))
    with pytest.raises(ValueError, match=r"u.csv.*\(it is UTF-16; save it as UTF-8\)"):
        ready(tmp_path / "u.csv")
    (tmp_path / "u.jsonl").write_bytes('{"text": "x", "label": "a"}\n'.encode("utf-16"))
    with pytest.raises(ValueError, match=r"u.jsonl.*\(it is UTF-16; save it as UTF-8\)"):
        ready(tmp_path / "u.jsonl")
    (tmp_path / "plain.csv.gz").write_bytes(b"text,label\nfine,a\n")
    with pytest.raises(ValueError, match=r"plain.csv.gz.*\(its name ends in .gz, but gzip has not made it\)"):
        ready(tmp_path / "plain.csv.gz")


def test_columns_that_are_missing_or_of_no_use_are_named(tmp_path, path):
    for changes, told in [
        ({"text": "txt"}, r"news.parquet: column 'txt' is missing \(did you mean 'text'"),
        ({"label": "lable"}, r"news.parquet: column 'lable' is missing \(did you mean 'label'"),
        ({"split_column": "split"}, "column 'split' is missing"),
        ({"label": "text"}, "label must be another column than the text"),
        ({"val_share": 0.5, "test_share": 0.5}, "must be below 1"),
    ]:
        with pytest.raises(ValueError, match=told):
            ready(path, **changes)
    values = {"lists": ["a"], "one": "a", "things": {"a": 1}}
    columns = {name: pa.array([value] * NUM_ROWS) for name, value in values.items()} | {"id": pa.array(range(NUM_ROWS))}
    other = saved(
        pa.table({**dict(zip(["text", "label"], news().columns, strict=True)), **columns}), tmp_path / "t.parquet"
    )
    for changes, told in [
        ({"text": "lists"}, "column 'lists' must hold texts; it holds list<"),
        ({"label": "id"}, "t.parquet: label 'id' must be a class; it has .* different values in"),
        ({"label": "one"}, "label 'one' must have at least two different values in the training rows; it has 'a'"),
        ({"label": "things"}, "column 'things': labels must be texts, numbers or lists"),
    ]:
        with pytest.raises(ValueError, match=told):
            ready(other, **changes)


def test_nothing_to_train_on_is_said(tmp_path):
    for table in (news(0), pa.table({"text": ["", " "], "label": ["a", "b"]})):
        with pytest.raises(ValueError, match=r"t\.parquet: there are no training rows with a text and a label"):
            ready(saved(table, tmp_path / "t.parquet"))
    same = pa.table({"text": ["one text", "One  Text"] * 30, "label": ["a", "b"] * 30})
    with pytest.raises(ValueError, match=r"t\.parquet: no row is left to train on: all 60 .* near-duplicates"):
        ready(saved(same, tmp_path / "t.parquet"), test_share=0.89)


def test_other_texts_that_are_empty_or_cut_are_told_of(path, tmp_path):
    run, module = ready(path, max_length=8), make(path, max_length=8)
    long = "goal " * 20
    other = saved(pa.table({"text": [long, "", None, "goal", long]}), tmp_path / "o.parquet")
    list(module.iter_other(str(other), run.schema))
    assert module.notes == [
        f"2 rows of {other} without a text are classified as the empty text",
        f"texts longer than 8 tokens lose their end: 2 of {other}",
    ]


def test_labels_unseen_in_training_are_left_out_and_named(tmp_path):
    table = news().append_column("split", pa.array(["train"] * 250 + ["test"] * 50))
    strange = pa.table({"text": ["a", "b"], "label": ["war", "art"], "split": ["test", "test"]})
    module = ready(saved(pa.concat_tables([table, strange]), tmp_path / "t.parquet"), split_column="split")
    assert rows_of(module)["test"] == 50
    assert noted(module, "2 test rows have a label that training has not ('art', 'war'): left out")


def test_classes_of_few_rows_are_noted(tmp_path):
    table = pa.concat_tables([news(), pa.table({"text": ["the only one"], "label": ["war"]})])
    module = ready(saved(table, tmp_path / "t.parquet"), val_share=0.0, test_share=0.0)
    assert noted(module, "fewer than 5 training rows: war")


# Real data


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "text", "splits", "sizes"),
    [
        ("text_agnews_17k/agnews", "text", {"train": ["dev"], "test": ["test"]}, (10_001, 7_600)),
        ("text_sst2/sst2", "sentence", None, (60_614 + 6_735, 872)),
    ],
)
def test_real_data(name, text, splits, sizes):
    path = DATA / f"{name}.parquet"
    if not path.exists():
        pytest.skip(f"there is no {path}: set FULLCYCLE_DATA")
    module = ready(path, text=text, split_column="split", splits=splits, vocab_size=8000)
    found = rows_of(module)
    assert (found["train"] + found["val"], found["test"]) == sizes
    assert module.train_dataloader().padding() < 0.05
