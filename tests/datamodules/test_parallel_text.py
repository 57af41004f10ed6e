"""Two files, line by line."""

import gzip
import os
from pathlib import Path

import pyarrow as pa
import pyarrow.fs
import pytest
from omegaconf import OmegaConf

from datamodules.lines import iter_lines, read_lines
from datamodules.seq2seq.parallel import ParallelText

CONFIG = Path(__file__).parents[2] / "configs/data/parallel_text.yaml"
DATA = Path(os.environ.get("FULLCYCLE_DATA") or Path(__file__).parents[3] / "shared/data")
SOURCES = [f"the {color} {animal}" for color in ("red", "blue", "old", "big") for animal in ("cat", "dog", "cow")]
TARGETS = [f"{color} {animal}" for color in ("rot", "blau", "alt", "groß") for animal in ("Katze", "Hund", "Kuh")]


def make(source, target, **changes):
    options = OmegaConf.to_container(OmegaConf.load(CONFIG), resolve=False)
    options = {name: value for name, value in options.items() if name != "_target_"}
    options |= {"source": source, "target": target, "seed": 0, "vocab_size": 400, "val_share": 0.0, "test_share": 0.0}
    options |= changes
    return ParallelText(**{name: str(value) if isinstance(value, Path) else value for name, value in options.items()})


def ready(source, target, **changes):
    module = make(source, target, **changes)
    module.setup("fit")
    return module


def saved(path, lines, end="\n"):
    body = "".join(line + end for line in lines).encode()
    path.write_bytes(gzip.compress(body) if path.suffix == ".gz" else body)
    return path


@pytest.fixture
def files(tmp_path):
    return saved(tmp_path / "train.en", SOURCES), saved(tmp_path / "train.de.gz", TARGETS)


def test_lines_stand_side_by_side(files):
    module = ready(*files)
    assert list(module.texts["train"]["source"]) == SOURCES
    assert list(module.texts["train"]["target"]) == TARGETS
    assert module.schema["languages"] == {"source": "en", "target": "de"}
    assert module.summary.startswith("train.en: 12 pairs")
    turned = ready(*files[::-1])
    assert list(turned.texts["train"]["source"]) == TARGETS
    assert turned.schema["languages"] == {"source": "de", "target": "en"}


def test_files_of_each_split(tmp_path, files):
    other = saved(tmp_path / "v.en", ["a pig", "x"]), saved(tmp_path / "v.de", ["Schwein", "y"])
    module = ready(*files, val_source=other[0], val_target=other[1], test_source=files[0], test_target=files[1])
    assert [len(module.texts[split]["source"]) for split in ("train", "val", "test")] == [12, 2, 12]
    with pytest.raises(ValueError, match="data.test_source needs data.test_target as well"):
        make(*files, test_source=files[0])


def test_files_of_unequal_length_are_named_with_their_lines(tmp_path, files):
    short = saved(tmp_path / "short.de", TARGETS[:5])
    told = r"must have equally many lines; .*train.en has 12 and .*short.de 5$"
    with pytest.raises(ValueError, match=told):
        ready(files[0], short)
    with pytest.raises(ValueError, match=told):
        make(*files).load_other(f"{files[0]}:{short}", ready(*files).schema)


def test_other_data_are_lines_two_files_or_a_table(tmp_path, files):
    run, module = ready(*files), make(*files)
    assert len(module.load_other(f"{files[0]}:{files[1]}", run.schema)["row"]) == 12
    assert list(module.texts["test"]["target"]) == TARGETS
    table = tmp_path / "t.csv"
    table.write_text("source,target\nthe cat,Katze\n")
    assert len(module.load_other(str(table), run.schema)["row"]) == 1
    with pytest.raises(ValueError, match=r"train.en' has no targets; give two files, SOURCE:TARGET"):
        module.load_other(str(files[0]), run.schema)
    for place, rows in ((files[0], 12), (table, 1)):
        ((batch, inputs),) = list(module.iter_other(str(place), run.schema))
        assert len(batch) == len(inputs["source"]) == rows
        assert batch.schema.names[0] == "source"


def test_only_a_line_feed_ends_a_line(tmp_path):
    path = tmp_path / "t.txt"
    path.write_bytes("\ufeffone\r\ntwo\u2028still\x0bstill\r\n\r\n\x00nul\rx\nשלום 🍲".encode())
    assert read_lines(str(path)).to_pylist() == ["one", "two\u2028still\x0bstill", "", "\x00nul\rx", "שלום 🍲"]
    assert read_lines(str(saved(tmp_path / "t.gz", ["a", "b"]))).to_pylist() == ["a", "b"]
    assert list(iter_lines(str(saved(tmp_path / "e.txt", [])))) == [[]]
    assert [len(rows) for rows in iter_lines(str(saved(tmp_path / "n.txt", "abcd")), batch_rows=2)] == [2, 2]


def test_long_lines_and_many_blocks_are_read(tmp_path, monkeypatch):
    monkeypatch.setattr("datamodules.lines.BLOCK_BYTES", 7)
    lines = ["x" * 100_000 if i == 3 else f"line é {i}" for i in range(50)]
    assert read_lines(str(saved(tmp_path / "t.txt", lines))).to_pylist() == lines


def test_pairs_with_an_empty_side_are_left_out_and_strange_ones_are_kept(tmp_path):
    sources = [*SOURCES, "", "one", "ok \x00", "👩‍👩‍👧", "שלום"]
    targets = [*TARGETS, "leer", " ", "\x07", "مرحبا", "日本語"]
    module = ready(saved(tmp_path / "a.en", sources), saved(tmp_path / "a.he", targets))
    assert len(module.texts["train"]["source"]) == 12 + 3
    assert module.texts["train"]["source"][12] == "ok \x00"
    assert any("2 rows of " in note and "without a source or a target" in note for note in module.notes)


@pytest.mark.parametrize(
    ("body", "line", "byte"), [(b"fine\ncaf\xe9\n", 2, "0xe9"), ("fine".encode("utf-16"), 1, "0xff")]
)
def test_what_is_not_utf8_is_named(tmp_path, files, body, line, byte):
    (tmp_path / "b.de").write_bytes(body)
    with pytest.raises(ValueError, match=rf"b.de, line {line}: texts must be UTF-8; byte {byte} at"):
        ready(files[0], tmp_path / "b.de")


def test_a_file_is_no_translation_of_itself(files):
    with pytest.raises(ValueError, match="target must be another file than the source"):
        make(files[0], files[0])


def test_files_that_are_none_are_named(tmp_path, files):
    with pytest.raises(
        FileNotFoundError, match=r"no such file: '.*nowhere.de'; give a text file with one sentence a li"
    ):
        ready(files[0], tmp_path / "nowhere.de")
    with pytest.raises(FileNotFoundError, match="no such file"):
        ready(files[0], tmp_path)
    with pytest.raises(ValueError, match="cannot read 'http://x/y.de'"):
        ready(files[0], "http://x/y.de")
    (tmp_path / "torn.de.gz").write_bytes(files[1].read_bytes()[:20])
    with pytest.raises(ValueError, match=r"torn.de.gz|must have equally many lines"):
        ready(files[0], tmp_path / "torn.de.gz")
    (tmp_path / "no.gz").write_bytes(b"not compressed")
    with pytest.raises(ValueError, match=r"cannot read '.*no.gz'"):
        ready(files[0], tmp_path / "no.gz")


def test_files_on_s3(tmp_path, files, monkeypatch):
    bucket = pa.fs.SubTreeFileSystem(str(tmp_path), pa.fs.LocalFileSystem())
    monkeypatch.setattr("datamodules.sources.s3_filesystem", lambda: bucket)
    module = ready("s3://train.en", "s3://train.de.gz")
    assert list(module.texts["train"]["target"]) == TARGETS
    assert len(module.load_other("s3://train.en:s3://train.de.gz", module.schema)["row"]) == 12


@pytest.mark.slow
@pytest.mark.parametrize(("source", "target"), [("en", "de"), ("de", "en")])
def test_captions_in_two_languages(source, target):
    folder = DATA / "seq2seq_multi30k_en_de"
    if not folder.exists():
        pytest.skip(f"there is no {folder}: set FULLCYCLE_DATA")
    names = {"val": "val", "test": "test_2016_flickr"}
    others = {
        f"{split}_{side}": folder / f"{name}.{language}.gz"
        for split, name in names.items()
        for side, language in (("source", source), ("target", target))
    }
    module = ready(folder / f"train.{source}.gz", folder / f"train.{target}.gz", **others, vocab_size=8000)
    assert [len(module.tensors[split]["row"]) for split in ("train", "val", "test")] == [29_000, 1_014, 1_000]
    loader = module.train_dataloader()
    assert max(loader.padding(), loader.padding("source"), loader.padding("target")) < 0.05
