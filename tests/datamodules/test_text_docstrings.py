import sys
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from datamodules.text import docstrings
from datamodules.text.docstrings import TextDocstrings, docstrings_of, pattern, source_files

CONFIG = Path(__file__).parents[2] / "configs/data/text_docstrings.yaml"
SMALL = {"packages": {"hydra": [], "rich": [], "absent": []}, "docstrings_per_package": 60, "vocab_size": 500}


def make(**changes):
    options = OmegaConf.to_container(OmegaConf.load(CONFIG), resolve=False)
    options = {name: value for name, value in options.items() if name != "_target_"}
    return TextDocstrings(**{**options, "seed": 0, **SMALL, **changes})


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("FULLCYCLE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def package(tmp_path, monkeypatch):
    """An installed package that cannot be imported."""
    folder = tmp_path / "site" / "sillypackage"
    (folder / "tests").mkdir(parents=True)
    (folder / "__init__.py").write_text("raise RuntimeError('imported')\n")
    bodies = {
        "a.py": '"""' + "What the module is for, in one sentence. " * 3 + '"""\n',
        "b.py": f'def f():\n    """{"Like SillyPackage.f and sp.x, but sparing. " * 3}"""\n',
        "broken.py": "def f(:\n",
        "latin.py": '# -*- coding: latin-1 -*-\nx = "\xe9"\n"""short"""\n',
        "tests/t.py": '"""' + "A test that is no text. " * 9 + '"""\n',
    }
    for name, body in bodies.items():
        (folder / name).write_bytes(body.encode("latin-1"))
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    return folder


def test_docstrings_are_labelled_by_package(cache):
    module = make()
    module.setup("fit")
    assert module.schema["classes"] == ["hydra", "rich"]
    assert "not installed: absent" in module.notes
    assert any("names of the packages read 'package'" in note for note in module.notes)
    texts = [text for split in module.texts.values() for text in split]
    assert len(texts) == len(set(texts))
    assert 60 < len(texts) <= 120
    assert not any("hydra" in text.lower() for text in texts)


def test_the_same_installation_gives_the_same(cache):
    first, second = make(), make()
    first.setup("fit")
    for file in cache.iterdir():
        file.unlink()
    second.setup("fit")
    assert second.fingerprint == first.fingerprint
    assert second.schema == first.schema


def test_docstrings_are_made_once_and_a_damaged_file_again(cache, monkeypatch, caplog):
    table = make().read()["train"][1]
    (file,) = cache.glob("docstrings-*.parquet")
    body = file.read_bytes()
    file.write_bytes(body[: len(body) // 2])
    assert make().read()["train"][1].equals(table)
    assert "damaged cache file" in caplog.text
    monkeypatch.setattr(docstrings, "docstrings", None)  # making them again would fail
    assert make().read()["train"][1].equals(table)


def test_without_a_cache_all_works_with_a_warning(tmp_path, monkeypatch, caplog):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("FULLCYCLE_CACHE", str(tmp_path / "file" / "cache"))
    assert len(make().read()["train"][1]) > 60
    assert "not cached" in caplog.text


def test_packages_are_parsed_and_never_imported(package, cache):
    files = source_files(["sillypackage", "nothing_of_that_name", "sys", "not an identifier"])
    assert [name for name, _ in files["sillypackage"]] == ["__init__.py", "a.py", "b.py", "broken.py", "latin.py"]
    assert not files["nothing_of_that_name"] + files["sys"] + files["not an identifier"]
    table = docstrings.docstrings(files, {"sillypackage": ["sp"]}, 10)
    assert sorted(text[:40] for text in table["text"].to_pylist()) == [
        "Like package.f and package.x, but sparin",
        "What the module is for, in one sentence.",
    ]
    assert "sillypackage" not in sys.modules
    assert list(docstrings_of(package / "nowhere.py")) == []


def test_names_are_masked_in_any_case_long_ones_also_inside_words():
    masked = pattern({"torch": ["pytorch"], "numpy": ["np"]})
    text = "PyTorch's torch.nn and torchvision: np.ndarray, _np_, NumPy2, input, snp"
    assert masked.sub("X", text) == "X's X.nn and Xvision: X.ndarray, _X_, X2, input, snp"
    assert pattern({}).sub("X", "as it is") == "as it is"


def test_other_data_are_tables_of_text_and_label(cache, tmp_path):
    run = make()
    run.setup("fit")
    path = tmp_path / "o.csv"
    path.write_text("text,label\nReturn the console.,rich\nCompose a config.,hydra\n")
    assert make().load_other(str(path), run.schema)["target"].tolist() == [1, 0]


def test_packages_of_the_config_are_there():
    config = OmegaConf.load(CONFIG)
    files = source_files(list(config.packages))
    assert min(map(len, files.values())) >= 50, {name: len(found) for name, found in files.items()}
