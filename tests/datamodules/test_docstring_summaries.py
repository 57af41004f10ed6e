"""Docstrings to be summarized."""

from pathlib import Path

import pytest
from omegaconf import OmegaConf

from datamodules.docstrings import docstrings_in, source_files
from datamodules.seq2seq import docstrings
from datamodules.seq2seq.docstrings import DocstringSummaries, pairs_in, summaries

CONFIG = Path(__file__).parents[2] / "configs/data/docstring_summaries.yaml"
SMALL = {"packages": ["hydra", "alembic", "absent"], "pairs_per_package": 60, "vocab_size": 500}
BODY = "It goes on for a while, with reasons and exceptions, and ends when all of that is said, at last."


def make(**changes):
    options = OmegaConf.to_container(OmegaConf.load(CONFIG), resolve=False)
    options = {name: value for name, value in options.items() if name != "_target_"}
    return DocstringSummaries(**{**options, "seed": 0, **SMALL, **changes})


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("FULLCYCLE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_bodies_are_sources_and_first_lines_are_targets(cache):
    module = make()
    module.setup("fit")
    assert "not installed: absent" in module.notes
    pairs = [(a, b) for own in module.texts.values() for a, b in zip(own["source"], own["target"], strict=True)]
    assert 40 < len(pairs) <= 120
    assert len({body for body, _ in pairs}) == len(pairs)
    for body, summary in pairs:
        assert len(body.split()) >= 15
        assert 3 <= len(summary.split()) <= 20
        assert "\n" not in summary
    assert module.schema["languages"] == {"source": "en", "target": "en"}


def test_no_source_and_no_target_of_test_trains(cache):
    module = make(test_share=0.3)
    module.setup("fit")
    assert len(module.texts["test"]["source"]) > 10
    for side in ("source", "target"):
        folded = {split: {text.lower() for text in own[side]} for split, own in module.texts.items()}
        assert not folded["train"] & (folded["val"] | folded["test"])


def test_only_first_lines_that_stand_alone_are_summaries():
    texts = {
        f"Return the answer.\n\n{BODY}": 1,
        f"Return the answer,\nand go on.\n\n{BODY}": 0,
        f"Answer.\n\n{BODY}": 0,
        f"{'very ' * 20}long.\n\n{BODY}": 0,
        "Return the answer.\n\nIt is short.": 0,
        "Return the answer.": 0,
    }
    for text, found in texts.items():
        assert len(list(pairs_in(iter([text]), 15))) == found, text
    ((body, summary),) = pairs_in(iter([f"Return the answer.\n\n{BODY}\n\n" + "x " * 9_000]), 15)
    assert (summary, body[: len(BODY)], len(body)) == ("Return the answer.", BODY, 2_000)


def test_packages_are_parsed_and_never_imported(tmp_path, monkeypatch):
    folder = tmp_path / "sillypackage"
    folder.mkdir()
    (folder / "__init__.py").write_text("raise RuntimeError('imported')\n")
    function = 'def {}():\n    """Return {} of it.\n\n    ' + BODY + '{}\n    """\n'
    (folder / "a.py").write_text(function.format("f", "all", "") + function.format("g", "some", " 1"))
    (folder / "b.py").write_text(function.format("f", "most", " 2"))
    (folder / "broken.py").write_text("def f(:\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    files = source_files(["sillypackage"])
    assert sorted(docstrings_in(folder / "a.py")) == [
        f"Return {of}\n\n{BODY}{e}" for of, e in (("all of it.", ""), ("some of it.", " 1"))
    ]
    table = summaries(files, most=10, fewest_words=15)
    assert len(table) == 2  # two bodies differ in a digit alone: the first counts
    assert len(summaries(files, most=1, fewest_words=15)) == 1


def test_pairs_are_made_once_and_a_damaged_file_again(cache, monkeypatch, caplog):
    table = make().read()["train"][1]
    (file,) = cache.glob("summaries-*.parquet")
    body = file.read_bytes()
    file.write_bytes(body[: len(body) // 2])
    assert make().read()["train"][1].equals(table)
    assert "damaged cache file" in caplog.text
    monkeypatch.setattr(docstrings, "summaries", None)  # making them again would fail
    assert make().read()["train"][1].equals(table)
    with pytest.raises(TypeError):
        make(fewest_words=16).read()


def test_packages_of_the_config_are_there():
    config = OmegaConf.load(CONFIG)
    files = source_files(list(config.packages))
    assert min(map(len, files.values())) >= 30, {name: len(found) for name, found in files.items()}
