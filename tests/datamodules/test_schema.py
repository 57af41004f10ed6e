import json
import subprocess
import sys
from collections import Counter

import numpy as np
import pyarrow as pa
import pytest

from datamodules.columns import MISSING_SECONDS, entities, kind_of, seconds, stable_hash
from datamodules.schema import check, encode, encode_raw, encode_target, infer, raw

NUM_ROWS = 40
DAYS = [f"2025-01-{1 + i % 28:02d}" for i in range(NUM_ROWS)]


def quantile_bins(values, labels):
    present = values[~np.isnan(values)]
    return [float(edge) for edge in np.unique(np.quantile(present, [0, 0.5, 1]))]


def infer_from(table, target="fraud", **options):
    options = {"positive": None, "max_categories": 10, "fit_bins": quantile_bins} | options
    return infer(table, target=target, **options)


def cycle(*values):
    return [values[i % len(values)] for i in range(NUM_ROWS)]


def table_of(**columns):
    return pa.table({"fraud": [i % 4 == 0 for i in range(NUM_ROWS)], **columns})


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        (cycle(1, 2, 3), "numeric"),
        (cycle(1.5, None), "numeric"),
        (pa.array(cycle(1, 2)).cast(pa.decimal128(21, 2)), "numeric"),
        (cycle("1.5", "?", " 2 ", "NA", ""), "numeric"),
        (cycle("-", "1e3"), "numeric"),
        (cycle("00701", "12345"), "categorical"),
        (cycle(True, False, None), "boolean"),
        (cycle("Yes", "no", None), "boolean"),
        (cycle("T", "f"), "boolean"),
        (cycle("red", "green", None), "categorical"),
        (pa.array(cycle("red", "green")).dictionary_encode(), "categorical"),
        (cycle("1", "one"), "categorical"),
        (pa.array(cycle(1, 2), pa.timestamp("ns")), "timestamp"),
        (pa.array(cycle(1, 2), pa.date32()), "timestamp"),
        (DAYS, "timestamp"),
        (cycle("2025-01-01T10:00:00Z", "2025-01-02 10:00:00.5+02:00", "2025-01-03", None), "timestamp"),
        (cycle(b"x", b"y"), None),
    ],
)
def test_kind_is_found(values, kind):
    column = values if isinstance(values, pa.Array) else pa.array(values)
    assert kind_of(column) == kind
    assert kind_of(pa.chunked_array([column.slice(0, 7), column.slice(7)])) == kind


def test_schema_is_plain_and_holds_the_statistics():
    schema = infer_from(table_of(amount=cycle(1.0, 2.0, 3.0, None), city=cycle("b", "a"), ok=cycle(True, None)))
    assert json.loads(json.dumps(schema)) == schema
    amount, city, ok = schema["columns"]
    assert amount["missing"] == 0.25
    assert (amount["median"], amount["iqr"], amount["bins"]) == (2.0, 2.0, [1.0, 2.0, 3.0])
    assert (city["categories"], city["hash_buckets"]) == (["a", "b"], 0)
    assert (ok["kind"], ok["missing"], ok["iqr"]) == ("boolean", 0.5, 1.0)
    assert schema["target"] == {"name": "fraud", "positive": "1", "negative": "0", "rate": 0.25}


def test_scale_is_never_zero():
    mostly_zero = [0.0] * (NUM_ROWS - 1) + [5.0]
    first, second = infer_from(table_of(rare=mostly_zero, one=cycle(1.0, None)))["columns"]
    assert first["iqr"] == pytest.approx(1.349 * np.std(mostly_zero))
    assert second["iqr"] == 1.0


def test_useless_columns_are_left_out_with_a_reason():
    generator = np.random.default_rng(0)
    table = table_of(
        row=np.arange(NUM_ROWS),
        shuffled=1000 + generator.permutation(NUM_ROWS),
        name=[f"name {i}" for i in range(NUM_ROWS)],
        same=["x"] * NUM_ROWS,
        zero=[0.0] * NUM_ROWS,
        nothing=pa.nulls(NUM_ROWS),
        holes=cycle("?", ""),
        nan=[float("nan")] * NUM_ROWS,
        code=[b"x"] * NUM_ROWS,
        dropped=cycle(1, 2),
        kept=generator.integers(0, 10**9, NUM_ROWS),
        measured=np.arange(NUM_ROWS) + 0.5,
    )
    schema = infer_from(table, left_out={"dropped": "dropped by data.drop"})
    assert [column["name"] for column in schema["columns"]] == ["kept", "measured"]
    reasons = {column["name"]: column["reason"] for column in schema["left_out"]}
    assert set(reasons) == {*table.column_names} - {"fraud", "kept", "measured"}
    assert "numbers the rows" in reasons["row"]
    assert "identifier" in reasons["shuffled"]
    assert "identifier" in reasons["name"]
    assert reasons["same"] == "every value is x"
    assert reasons["zero"] == "every value is 0"
    assert {reasons[name] for name in ("nothing", "holes", "nan")} == {"it has no values"}
    assert "binary" in reasons["code"]
    assert reasons["dropped"] == "dropped by data.drop"
    with pytest.raises(ValueError, match="no column to learn from"):
        infer_from(table.select(["fraud", "same"]))


def test_rows_are_encoded_in_the_schemas_order_and_kinds():
    train = table_of(when=DAYS, city=cycle("b", "a"), amount=cycle("1", "?", "3"), ok=cycle("yes", "no"))
    schema = infer_from(train)
    other = pa.RecordBatch.from_pylist(
        [
            {"ok": "YES", "city": "a", "when": "1970-01-02", "amount": "7.5", "more": 1},
            {"ok": None, "city": "new", "when": None, "amount": "n/a", "more": 2},
            {"ok": "perhaps", "city": None, "when": "1970-01-01 00:01:00", "amount": None, "more": 3},
        ]
    )
    unseen = Counter()
    rows = encode(other, schema, unseen)
    assert {name: array.dtype.name for name, array in rows.items()} == {
        "numeric": "float32",
        "categorical": "int64",
        "timestamp": "int64",
    }
    nan = np.nan
    np.testing.assert_array_equal(rows["numeric"], np.array([[7.5, 1], [nan, nan], [nan, nan]], np.float32))
    np.testing.assert_array_equal(rows["categorical"], [[1], [0], [0]])
    np.testing.assert_array_equal(rows["timestamp"], [[86_400], [MISSING_SECONDS], [60]])
    assert unseen == {"city": 1, "ok": 1}


def test_the_same_values_are_encoded_alike_however_they_are_stored():
    table = table_of(x=cycle(1, 2, None), city=cycle("b", "a"), ok=cycle(True, False), when=DAYS)
    when = pa.array(DAYS).cast(pa.timestamp("us"))
    schema = infer_from(table)
    expected = encode(table, schema)
    stored = {
        "as texts": pa.table({name: table[name].cast(pa.string()) for name in table.column_names}),
        "as other types": pa.table(
            {
                "when": when.cast(pa.timestamp("ns", tz="UTC")),
                "ok": table["ok"].cast(pa.int8()),
                "city": table["city"].dictionary_encode(),
                "x": table["x"].cast(pa.float64()),
            }
        ),
        "in chunks": pa.concat_tables([table.slice(0, 9), table.slice(9)]),
    }
    for name, other in stored.items():
        check(other.schema, schema)
        for key, array in encode(other, schema).items():
            np.testing.assert_array_equal(array, expected[key], err_msg=name)
    parts = [encode(batch, schema)["numeric"] for batch in table.to_batches(max_chunksize=7)]
    np.testing.assert_array_equal(np.concatenate(parts), expected["numeric"])


def test_zones_of_moments_count():
    texts = ["1970-01-02T10:00:00+02:00", "1970-01-02T08:00:00Z", "1970-01-02 08:00:00.9", "1970-01-02 08:00"]
    np.testing.assert_array_equal(seconds(pa.array(texts)), 86_400 + 8 * 3600)
    assert seconds(pa.array([-1], pa.timestamp("ms"))).tolist() == [-1]


def test_infinities_are_missing():
    schema = infer_from(table_of(x=cycle(1.0, 2.0)))
    rows = encode(pa.table({"x": [np.inf, -np.inf, np.nan, 1.0]}), schema)
    np.testing.assert_array_equal(rows["numeric"][:, 0], np.array([np.nan, np.nan, np.nan, 1], np.float32))


def test_many_categories_are_hashed_alike_in_every_process():
    schema = infer_from(table_of(shop=[f"shop {i % 30}" for i in range(NUM_ROWS)]), max_categories=16)
    assert schema["columns"][0]["hash_buckets"] == 16
    unseen = Counter()
    codes = encode(pa.table({"shop": ["shop 1", "never seen", None, "shop 1"]}), schema, unseen)["categorical"][:, 0]
    assert codes[0] == codes[3]
    assert set(codes[[0, 1]].tolist()) <= set(range(1, 17))
    assert codes[2] == 0
    assert not unseen
    command = "from datamodules.columns import stable_hash; print(stable_hash('shop 1'))"
    other = subprocess.run([sys.executable, "-c", command], capture_output=True, text=True, check=True)
    assert int(other.stdout) == stable_hash("shop 1")


def all_kinds():
    """Numbers, booleans, texts with holes, a hashed column, numbers that name something, and moments, each odd."""
    return table_of(
        amount=cycle(1.5, None, float("nan"), float("inf"), -3e38),
        typed=cycle("1e3", "?", " 2 ", ""),
        ok=cycle("yes", "no", None),
        city=cycle(" ulm", "bern ", "", None, "Zürich", "東京", "  "),
        code=cycle("00701", "7", "x"),
        shop=[None if i % 7 == 0 else f"shop {i % 30}" for i in range(NUM_ROWS)],
        when=[None if i == 3 else day for i, day in enumerate(DAYS)],
        sent=pa.array([None, -1, *range(NUM_ROWS - 2)], pa.timestamp("ms")),
    )


def test_raw_rows_are_encoded_as_the_table_that_they_came_of():
    schema = infer_from(all_kinds())
    kinds = {column["name"]: column["kind"] for column in schema["columns"]}
    assert set(kinds.values()) == {"numeric", "boolean", "categorical", "timestamp"}
    assert [column["name"] for column in schema["columns"] if column.get("hash_buckets")] == ["shop"]
    table = all_kinds()
    others = {
        "as trained": table,
        "in chunks": pa.concat_tables([table.slice(0, 9), table.slice(9)]),
        "as a batch": table.slice(5, 20).combine_chunks().to_batches()[0],
        "as other types": table.set_column(5, "code", pa.array(cycle(7.0, None))).set_column(
            4, "city", table["city"].dictionary_encode()
        ),
        "unseen": table.set_column(4, "city", pa.array(cycle("Ulm", "nan", "0"))),
        "no rows": table.slice(0, 0),
    }
    for name, other in others.items():
        arrays, expected = raw(other, schema), encode(other, schema)
        found = encode_raw(arrays, schema)
        assert list(found) == list(expected)
        for key, values in expected.items():
            np.testing.assert_array_equal(found[key], values, err_msg=f"{name}: {key}")
            assert found[key].dtype == values.dtype
        assert all(isinstance(text, str) for text in arrays["categorical"].flat)
        assert len(arrays["categorical"]) == len(other)
    assert encode(table, schema)["categorical"].max(axis=0).min() > 1


def test_raw_texts_are_what_a_graph_can_look_up_without_trimming_or_reading_numbers():
    schema = infer_from(all_kinds())
    arrays = raw(all_kinds().slice(0, 7).set_column(5, "code", pa.array([7.0, 8.0, None, 7.0, 7.0, 1.0, 2.0])), schema)
    city, code, shop = arrays["categorical"].T
    assert city.tolist() == ["ulm", "bern", "", "", "Zürich", "東京", ""]
    assert code.tolist() == ["7", "8", "", "7", "7", "1", "2"]
    assert shop.tolist() == ["", *(f"shop {i}" for i in range(1, 7))]
    assert arrays["categorical"].dtype == object
    assert (arrays["numeric"].dtype, arrays["timestamp"].dtype) == (np.float32, np.int64)


@pytest.mark.parametrize("name", ["amount", "city", "when"])
def test_raw_rows_leave_out_kinds_without_columns_and_the_model_gets_them_empty(name):
    table = all_kinds().select(["fraud", name])
    schema = infer_from(table)
    arrays, expected = raw(table, schema), encode(table, schema)
    assert list(arrays) == [{"amount": "numeric", "city": "categorical", "when": "timestamp"}[name]]
    for key, values in encode_raw(arrays, schema).items():
        np.testing.assert_array_equal(values, expected[key])
        assert (values.dtype, values.shape) == (expected[key].dtype, expected[key].shape)


def test_missing_and_mistyped_columns_are_named():
    schema = infer_from(table_of(amount=cycle(1.0, 2.0), city=cycle("a", "b"), when=DAYS))
    other = pa.table({"Amount_": [1.0], "city": [1.5], "when": [3]})
    with pytest.raises(ValueError, match=r"column 'amount' is missing .did you mean 'Amount_'\?.") as info:
        check(other.schema, schema)
    assert "column 'city' should be categorical, but is double" in str(info.value)
    assert "column 'when' should be timestamp, but is int64" in str(info.value)
    assert "columns here: Amount_, city, when" in str(info.value)
    for name, value in [("amount", "a lot"), ("when", "yesterday")]:
        good = {"amount": "1", "city": "a", "when": "2025-01-01"}
        with pytest.raises(ValueError, match=f"column '{name}' should be .*'{value}' is not"):
            encode(pa.RecordBatch.from_pylist([good, good | {name: value}]), schema)


@pytest.mark.parametrize(
    ("values", "positive"),
    [
        ((0, 1, 0, 0), "1"),
        ((1, 0, 1, 1), "0"),
        ((True, False, False, False), "1"),
        ((1.0, 0.0, 0.0, None), "1"),
        (("M", "B", "B", "B"), "M"),
        (("no", "yes"), "yes"),
    ],
)
def test_the_rarer_value_is_positive(values, positive):
    table = pa.table({"x": cycle(1.0, 2.0, 3.0), "y": cycle(*values)})
    table = table.filter(table["y"].is_valid())
    schema = infer_from(table, target="y")
    assert schema["target"]["positive"] == positive
    chosen = infer_from(table, target="y", positive=values[1])["target"]
    labels = encode_target(pa.array([values[1], values[0], None]), chosen)
    np.testing.assert_array_equal(labels, np.array([1, 0, np.nan], np.float32))


def test_targets_that_are_not_binary_are_refused():
    with pytest.raises(ValueError, match=r"target 'fraud' must have two different values; it has 3 \(1, 2, 3\)"):
        infer_from(pa.table({"x": cycle(1, 2), "fraud": cycle(1, 2, 3)}))
    with pytest.raises(ValueError, match=r"it has 1 \(0\).*data.split=random"):
        infer_from(pa.table({"x": cycle(1, 2), "fraud": cycle(0)}))
    with pytest.raises(ValueError, match=r"positive must be a value of target 'fraud' \(0, 1\), got 2"):
        infer_from(table_of(x=cycle(1, 2)), positive=2)
    with pytest.raises(ValueError, match=r"'fraud' must be 1 or 0; 2 rows have another value, such as '7'"):
        encode_target(pa.array([0, 7, 1, 8]), infer_from(table_of(x=cycle(1, 2)))["target"])
    with pytest.raises(ValueError, match=r"column 'fruad' is missing .did you mean 'fraud'"):
        infer_from(table_of(x=cycle(1, 2)), target="fruad")
    with pytest.raises(ValueError, match="column 'gone' is missing"):
        infer_from(table_of(x=cycle(1, 2)), left_out={"gone": "dropped"})


def test_entities_have_the_same_code_in_every_table():
    assert entities(pa.array([7, None, 3])).tolist() == [7, -1, 3]
    first, second = entities(pa.array(["b", None, "a"])), entities(pa.array(["a", "c", "b"]))
    assert first[0] == second[2] != second[0] == first[2] >= 0
    assert first[1] == -1
