import gzip

import pytest

from datamodules import json_lines
from datamodules.sources import iter_batches, read_table

LINES = '{"text": "a", "label": 1}\n\n{"text": "b", "label": 2, "more": ["x", "y"]}\n{"label": 0.5}\n'
EXPECTED = {"text": ["a", "b", None], "label": [1.0, 2.0, 0.5], "more": [None, ["x", "y"], None]}


@pytest.mark.parametrize("name", ["t.jsonl", "t.ndjson", "t.jsonl.gz"])
@pytest.mark.parametrize("block_bytes", [1, 7, 30, 1 << 20])
def test_lines_are_read_whole_and_in_pieces_whatever_the_blocks(tmp_path, monkeypatch, name, block_bytes):
    monkeypatch.setattr(json_lines, "BLOCK_BYTES", block_bytes)
    body = LINES.encode()
    (tmp_path / name).write_bytes(gzip.compress(body) if name.endswith(".gz") else body)
    assert read_table(str(tmp_path / name)).to_pydict() == EXPECTED
    batches = list(iter_batches(str(tmp_path / name), batch_rows=2))
    assert {column: [v for b in batches for v in b[column].to_pylist()] for column in EXPECTED} == EXPECTED
    assert len({str(batch.schema) for batch in batches}) == 1


def test_columns_are_picked(tmp_path):
    (tmp_path / "t.jsonl").write_text(LINES)
    assert read_table(str(tmp_path / "t.jsonl"), columns=["label"]).to_pydict() == {"label": [1.0, 2.0, 0.5]}
    assert next(iter_batches(str(tmp_path / "t.jsonl"), columns=["nothing"])).schema.names == ["nothing"]


def test_broken_lines_are_named(tmp_path):
    path = tmp_path / "t.jsonl"
    for body, told in [
        ('{"a": 1}\n{"a": "x"}\n', "changed from number to string in line 2"),
        ('{"a": 1}\n\n\n{"a": "x"}\n', "changed from number to string in line 4"),
        ('{"a": 1}\n{"a": \n', "line 2"),
        ('{"a": "x"}\n{"a": "oops\n{"a": "y"}\n', "line 2 is no JSON: Unterminated string starting at at character 7"),
        ('{"a": "x"},\n{"a": "y"}\n', "line 1 is no JSON: Extra data at character 11"),
        ("", "Empty JSON file"),
        ('[{"a": 1}]', "changed from object to array in line 1"),
    ]:
        path.write_text(body)
        with pytest.raises(ValueError, match=f"cannot read .*t.jsonl.*{told}"):
            read_table(str(path))
        with pytest.raises(ValueError, match=f"cannot read .*t.jsonl.*{told}"):
            list(iter_batches(str(path)))


def test_a_folder_of_lines_is_one_table(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"a": 1}\n')
    (tmp_path / "b.jsonl").write_text('{"b": "x"}\n')
    assert read_table(str(tmp_path)).to_pydict() == {"a": [1, None], "b": [None, "x"]}


@pytest.mark.parametrize("block_bytes", [1, 1 << 20])
def test_texts_that_look_like_times_stay_as_they_are_where_texts_are_asked_for(tmp_path, monkeypatch, block_bytes):
    monkeypatch.setattr(json_lines, "BLOCK_BYTES", block_bytes)
    times = ["2020-01-01", "2020-01-01 10:00:00", "at noon"]
    (tmp_path / "t.jsonl").write_text("".join(f'{{"when": "{time}"}}\n' for time in times))
    assert read_table(str(tmp_path / "t.jsonl"), as_text=True)["when"].to_pylist() == times
    batches = iter_batches(str(tmp_path / "t.jsonl"), as_text=True)
    assert [value for batch in batches for value in batch["when"].to_pylist()] == times
