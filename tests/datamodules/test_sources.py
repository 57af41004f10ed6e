import gzip
import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
import pytest

from datamodules.sources import fingerprint, iter_batches, read_table

TABLE = pa.table({"amount": [1.5, None, 3.0], "city": ["Rome", "Oslo", None], "count": [1, 2, 3]})


def write(table: pa.Table, path: Path) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        pa.parquet.write_table(table, path)
    else:
        pa.csv.write_csv(table, path)
    return str(path)


@pytest.mark.parametrize("name", ["t.csv", "t.parquet"])
def test_file_is_read_whole_and_in_batches(tmp_path, name):
    uri = write(TABLE, tmp_path / name)
    assert read_table(uri).to_pydict() == TABLE.to_pydict()
    batches = list(iter_batches(uri, batch_rows=2))
    assert [len(batch) for batch in batches] == [2, 1]
    assert pa.Table.from_batches(batches).to_pydict() == TABLE.to_pydict()
    assert read_table(uri, columns=["count"]).column_names == ["count"]
    assert next(iter_batches(uri, columns=["city"])).schema.names == ["city"]


def test_tsv_gz_and_file_uri(tmp_path):
    path = tmp_path / "T.TSV.gz"
    path.write_bytes(gzip.compress(b"a\tb\n1\tx\n2\ty\n"))
    assert read_table(f"file://{path}").to_pydict() == {"a": [1, 2], "b": ["x", "y"]}
    assert next(iter_batches(str(path))).to_pydict() == {"a": [1, 2], "b": ["x", "y"]}


def test_folder_of_parquet_promotes_types_and_reads_partitions(tmp_path):
    write(pa.table({"x": pa.array([1], pa.int32())}), tmp_path / "day=1" / "a.parquet")
    write(pa.table({"x": pa.array([2.5]), "new": ["n"]}), tmp_path / "day=2" / "b.parquet")
    (tmp_path / "_SUCCESS").touch()
    table = read_table(str(tmp_path))
    assert table.select(["x", "new", "day"]).to_pydict() == {"x": [1.0, 2.5], "new": [None, "n"], "day": [1, 2]}
    assert sum(len(batch) for batch in iter_batches(str(tmp_path))) == 2


def test_folder_of_csv_promotes_types(tmp_path):
    (tmp_path / "a.csv").write_text("x,y\n1,\n")
    (tmp_path / "b.csv").write_text("x,y\n2.5,no\n")
    expected = {"x": [1.0, 2.5], "y": [None, "no"]}
    assert read_table(str(tmp_path)).to_pydict() == expected
    assert pa.Table.from_batches(iter_batches(str(tmp_path))).to_pydict() == expected


def test_csv_batches_have_the_types_of_the_whole_file(tmp_path):
    path = tmp_path / "t.csv"
    rows = [f"{i},7,2025-01-01,{i}" for i in range(300_000)]
    path.write_text("\n".join(["a,b,c,d", *rows, "0.5,,2025-01-02 10:00:00,later a text"]) + "\n")
    schema = next(iter_batches(str(path))).schema
    assert [str(type_) for type_ in schema.types] == ["double", "int64", "timestamp[s]", "string"]
    assert sum(len(batch) for batch in iter_batches(str(path))) == 300_001


def test_empty_table_gives_one_batch_with_its_columns(tmp_path):
    for name in ("t.csv", "t.parquet"):
        batches = list(iter_batches(write(TABLE.slice(0, 0), tmp_path / name)))
        assert [(len(batch), batch.schema.names) for batch in batches] == [(0, TABLE.column_names)]


def test_missing_unknown_and_broken_files_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere\.csv.*\.parquet"):
        read_table(str(tmp_path / "nowhere.csv"))
    with pytest.raises(FileNotFoundError, match="holds no data files"):
        read_table(str(tmp_path))
    for name, rule in [("t.xlsx", "extension '.xlsx'"), ("t", "none"), ("t.gz", "'.gz'")]:
        (tmp_path / name).write_text("x")
        with pytest.raises(ValueError, match=rule):
            read_table(str(tmp_path / name))
    for name in ("broken.parquet", "broken.csv", "empty.csv", "broken.csv.gz"):
        (tmp_path / name).write_text("" if name == "empty.csv" else "a,b\n1,2\n1,2,3\n")
        with pytest.raises(ValueError, match=f"cannot read .*{name}.*must be a .csv"):
            read_table(str(tmp_path / name))
        with pytest.raises(ValueError, match=f"cannot read .*{name}"):
            list(iter_batches(str(tmp_path / name)))
    with pytest.raises(ValueError, match="http://x/t.csv"):
        read_table("http://x/t.csv")


def test_semicolons_of_european_spreadsheets(tmp_path):
    (tmp_path / "t.csv").write_text("a;b,c\n1,x\n")
    assert read_table(str(tmp_path / "t.csv")).column_names == ["a;b", "c"]
    (tmp_path / "t.csv").write_text("a;b\n1;x,y\n")
    assert read_table(str(tmp_path / "t.csv")).to_pydict() == {"a": [1], "b": ["x,y"]}
    assert next(iter_batches(str(tmp_path / "t.csv"))).to_pydict() == {"a": [1], "b": ["x,y"]}


def test_columns_of_one_name_are_refused(tmp_path):
    (tmp_path / "t.csv").write_text("a,a\n1,2\n")
    with pytest.raises(ValueError, match=r"t.csv' must have different names .* twice: \['a'\]"):
        read_table(str(tmp_path / "t.csv"))


def test_folder_of_two_formats_is_refused(tmp_path):
    write(TABLE, tmp_path / "a.csv")
    write(TABLE, tmp_path / "b.parquet")
    with pytest.raises(ValueError, match="both CSV and Parquet"):
        read_table(str(tmp_path))


def test_missing_column_is_named(tmp_path):
    with pytest.raises(ValueError, match="nothing"):
        read_table(write(TABLE, tmp_path / "t.parquet"), columns=["nothing"])


def test_fingerprint_is_of_the_content_alone():
    table = TABLE.append_column("when", pa.array([0, 1, None], pa.timestamp("s")))
    chunks = pa.concat_tables([table.slice(0, 1), table.slice(1)])
    encoded = table.set_column(1, "city", table["city"].dictionary_encode())
    assert fingerprint(table) == fingerprint(chunks) == fingerprint(encoded)
    changes = {
        "a value": table.set_column(2, "count", pa.array([1, 2, 4])),
        "a null": table.set_column(0, "amount", pa.array([1.5, 0.0, 3.0])),
        "a name": table.rename_columns(["amount", "town", "count", "when"]),
        "the order of rows": table.take([1, 0, 2]),
        "where texts end": table.set_column(1, "city", pa.array(["RomeO", "slo", None])),
        "a time": table.set_column(3, "when", pa.array([0, 2, None], pa.timestamp("s"))),
    }
    prints = {name: fingerprint(changed) for name, changed in changes.items()}
    assert len({*prints.values(), fingerprint(table)}) == len(changes) + 1, prints


@pytest.mark.slow
def test_batches_take_constant_memory(tmp_path):
    path = tmp_path / "t.csv"
    write(pa.table({f"c{i}": np.random.default_rng(i).random(100_000) for i in range(10)}), path)
    body = path.read_bytes().split(b"\n", 1)[1]
    with path.open("ab") as file:
        for _ in range(19):
            file.write(body)
    before = pa.total_allocated_bytes()
    peak = max(pa.total_allocated_bytes() - before for _ in iter_batches(str(path)))
    assert peak < 0.25 * os.path.getsize(path)


@pytest.mark.services
def test_s3_objects_and_prefixes(tmp_path, monkeypatch):
    server_module = pytest.importorskip("moto.server", reason="needs moto[server,s3]")
    boto3 = pytest.importorskip("boto3")
    server = server_module.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        for name, value in [("AWS_ENDPOINT_URL", f"http://{host}:{port}"), ("AWS_ACCESS_KEY_ID", "test")]:
            monkeypatch.setenv(name, value)
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
        client = boto3.client("s3", region_name="us-east-1")
        client.create_bucket(Bucket="tables")
        for name in ("one.csv", "many/a.parquet", "many/b.parquet"):
            client.upload_file(write(TABLE, tmp_path / name), "tables", name)
        assert read_table("s3://tables/one.csv").to_pydict() == TABLE.to_pydict()
        assert len(read_table("s3://tables/many")) == 2 * len(TABLE)
        assert sum(len(batch) for batch in iter_batches("s3://tables/many/")) == 2 * len(TABLE)
        for uri in ("s3://tables/two.csv", "s3://nothing/here.csv"):
            with pytest.raises(FileNotFoundError, match=uri):
                read_table(uri)
    finally:
        server.stop()
