import os
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet
import pytest
import torch
from omegaconf import OmegaConf
from sklearn.datasets import load_breast_cancer

from datamodules.fraud.simulator import Simulation, simulate
from datamodules.fraud.table import FraudTable
from datamodules.fraud.transactions import FraudSimulated, FraudTransactions

CONFIGS = Path(__file__).parents[2] / "configs/data"
DATA = Path(os.environ.get("FULLCYCLE_DATA") or Path(__file__).parents[3] / "shared/data")
CLASSES = {"fraud_table": FraudTable, "fraud_transactions": FraudTransactions, "fraud_simulated": FraudSimulated}
NUM_ROWS = 500


def make(config, **changes):
    """The data module of a config, with changes; paths may be given as Path."""
    options = OmegaConf.to_container(OmegaConf.load(CONFIGS / f"{config}.yaml"), resolve=False)
    options = {name: value for name, value in options.items() if name != "_target_"} | {"seed": 0}
    changes = {name: str(value) if isinstance(value, Path) else value for name, value in changes.items()}
    return CLASSES[config](**{**options, **changes})


def ready(config, **changes):
    module = make(config, **changes)
    module.setup("fit")
    return module


def payments(num_rows=NUM_ROWS, seed=0):
    generator = np.random.default_rng(seed)
    return pa.table(
        {
            "when": pa.array(np.sort(generator.integers(0, 30 * 86_400, num_rows))).cast(pa.timestamp("s")),
            "amount": generator.uniform(1, 100, num_rows).round(2),
            "city": generator.choice(["Rome", "Oslo", "Bern"], num_rows),
            "client": generator.integers(0, 40, num_rows),
            "fraud": (generator.random(num_rows) < 0.2).astype(int),
        }
    )


def saved(table, path):
    write = pa.csv.write_csv if path.suffix == ".csv" else pa.parquet.write_table
    write(table, path)
    return path


@pytest.fixture
def path(tmp_path):
    return saved(payments(), tmp_path / "payments.parquet")


TABLE = {"target": "fraud", "time": "when", "amount": "amount", "customer": "client", "cost_false_negative": "amount"}
TRANSACTIONS = {"customer": "customer_id", "terminal": "terminal_id", "amount": "amount", "label": "is_fraud"}


def simulated(**changes):
    sizes = {"num_customers": 60, "num_terminals": 80, "num_days": 50, "radius": 12.0}
    options = {"start_date": "2025-01-01", "terminals_compromised_per_day": 1, "cards_stolen_per_day": 1, "seed": 0}
    return simulate(Simulation(**{**sizes, **options, **changes}))


def equal(first, second):
    assert first.keys() == second.keys()
    for name in first:
        torch.testing.assert_close(first[name], second[name], rtol=0, atol=0, equal_nan=True)


def rows_of(module, split):
    return len(module.tensors[split]["target"])


def test_table_that_nobody_tuned_for(tmp_path):
    data = load_breast_cancer()
    generator = np.random.default_rng(0)
    names = [name.replace(" ", "_") for name in data.feature_names]
    columns = dict(zip(names, data.data.T.astype(object), strict=True))
    for values in list(columns.values())[:5]:
        values[generator.random(len(values)) < 0.1] = "?"
    columns["ward"] = generator.choice(["north", "south", ""], len(data.target))
    columns["smoker"] = generator.choice(["yes", "no", "NA"], len(data.target))
    columns["seen"] = [f"2024-{1 + i % 12:02d}-01" for i in range(len(data.target))]
    columns["patient"] = [f"P{i:05d}" for i in range(len(data.target))]
    columns["hospital"] = ["St Mary"] * len(data.target)
    columns["diagnosis"] = np.array(["malignant", "benign"])[data.target]
    path = tmp_path / "cancer.csv"
    rows = zip(*columns.values(), strict=True)
    path.write_text("\n".join(",".join(map(str, row)) for row in [list(columns), *rows]) + "\n")
    module = ready("fraud_table", path=path, target="diagnosis")
    sizes, kinds = "364 / 91 / 114 by time", "30 numeric, 1 boolean, 1 categorical, 1 timestamp"
    assert module.summary == f"cancer.csv: 569 rows (37 % positive), {sizes}, {kinds}"
    assert module.schema["target"]["positive"] == "malignant"
    assert [column["name"] for column in module.schema["left_out"]] == ["patient", "hospital"]
    assert any("no time column" in note for note in module.notes)
    assert any(note.startswith("left out: patient") for note in module.notes)
    numeric = module.tensors["train"]["numeric"]
    assert numeric.shape == (364, 31)
    assert 0.05 < torch.isnan(numeric[:, 0]).float().mean() < 0.15


def test_newest_rows_test_whatever_their_order_in_the_file(tmp_path, path):
    module = ready("fraud_table", path=path, **TABLE)
    assert [rows_of(module, split) for split in module.tensors] == [320, 80, 100]
    days = [module.tensors[split]["day"] for split in ("train", "val", "test")]
    assert days[0].max() <= days[1].min() <= days[1].max() <= days[2].min()
    shuffled = payments().take(np.random.default_rng(1).permutation(NUM_ROWS))
    other = ready("fraud_table", path=saved(shuffled, tmp_path / "other.parquet"), **TABLE)
    for split in module.tensors:
        assert torch.equal(other.tensors[split]["timestamp"], module.tensors[split]["timestamp"])
    assert other.fingerprint != module.fingerprint


def test_rows_of_one_moment_stay_in_one_split(tmp_path):
    table = payments().set_column(0, "when", pa.array(np.arange(NUM_ROWS) // 7 * 60).cast(pa.timestamp("s")))
    module = ready("fraud_table", path=saved(table, tmp_path / "t.parquet"), **TABLE)
    moments = [set(module.tensors[split]["timestamp"].flatten().tolist()) for split in ("train", "val", "test")]
    assert not moments[0] & moments[1]
    assert not moments[1] & moments[2]


def test_tensors_hold_all_that_metrics_need(tmp_path):
    table = payments().append_column("times", pa.array(np.arange(NUM_ROWS) % 3))
    refunds = pc.if_else(pc.equal(table["client"], 4), -5.0, table["amount"])
    table = table.set_column(1, "amount", pc.if_else(pc.equal(table["client"], 3), None, refunds))
    path = saved(table, tmp_path / "t.parquet")
    tensors = ready("fraud_table", path=path, **TABLE, weight="times").tensors["train"]
    given = table.slice(0, 320)
    expected = {"target": given["fraud"], "weight": given["times"], "customer": given["client"]}
    for name, column in expected.items():
        np.testing.assert_array_equal(tensors[name], column)
    cost = pc.fill_null(given["amount"], 0).to_numpy().clip(min=0)
    np.testing.assert_allclose(tensors["amount"], cost, rtol=1e-6)
    np.testing.assert_array_equal(tensors["day"], given["when"].cast(pa.int64()).to_numpy() // 86_400)
    assert {name: str(tensor.dtype) for name, tensor in tensors.items()} == {
        **dict.fromkeys(["numeric", "target", "weight", "amount"], "torch.float32"),
        **dict.fromkeys(["categorical", "timestamp", "day", "customer"], "torch.int64"),
    }
    module = ready("fraud_table", path=path, target="fraud", cost_false_negative=7.5, drop=["times", "client"])
    assert module.tensors["test"]["amount"].unique().tolist() == [7.5]
    assert module.tensors["test"]["customer"].unique().tolist() == [-1]
    assert module.schema["cost"] == {"false_negative": 7.5, "false_positive": 1.0, "alert_budget": 0.01}
    assert "left out: times (dropped by data.drop)" in module.notes


def test_cost_by_amount_needs_the_amount(path):
    with pytest.raises(ValueError, match="give data.amount=COLUMN"):
        make("fraud_table", path=path, target="fraud", cost_false_negative="amount")


def test_misspelt_columns_are_refused(path):
    for changes in ({"target": "fruad"}, {"drop": ["cty"]}, {"time": "wen"}, {"customer": "cliennt"}):
        with pytest.raises(ValueError, match=r"is missing .did you mean"):
            ready("fraud_table", path=path, **{"target": "fraud", **changes})


def test_rows_without_target_or_time_are_left_out_and_counted(tmp_path):
    table = payments()
    label = pc.if_else(pc.less(table["amount"], 5), float("nan"), table["fraud"].cast(pa.float64()))
    label = pc.if_else(pc.and_(pc.less(table["amount"], 10), pc.greater_equal(table["amount"], 5)), None, label)
    table = table.set_column(4, "fraud", label)
    table = table.set_column(0, "when", pc.if_else(pc.greater(table["amount"], 90), None, table["when"]))
    module = ready("fraud_table", path=saved(table, tmp_path / "t.parquet"), **TABLE)
    counts = [int(pc.sum(pc.less(table["amount"], 10)).as_py()), int(pc.sum(pc.greater(table["amount"], 90)).as_py())]
    assert f"{counts[0]} rows without a target (fraud) are left out" in module.notes
    assert f"{counts[1]} rows without a time (when) are left out" in module.notes
    assert sum(rows_of(module, split) for split in module.tensors) == NUM_ROWS - sum(counts)


def test_time_that_counts_up_orders_the_rows_but_is_no_input(tmp_path):
    table = payments().set_column(0, "when", pa.array(np.arange(NUM_ROWS)[::-1] // 2 * 1000.0))
    module = ready("fraud_table", path=saved(table, tmp_path / "t.csv"), **TABLE)
    assert "when" not in [column["name"] for column in module.schema["columns"]]
    assert any(note.startswith("left out: when (it counts up") for note in module.notes)
    assert module.tensors["train"]["day"].max() <= module.tensors["val"]["day"].min()


def test_splits_by_date_leave_out_the_rest(path):
    splits = {"train": ["1970-01-05", "1970-01-12"], "val": None, "test": ["1970-01-19", "1970-01-26T12:00"]}
    module = ready("fraud_table", path=path, **TABLE, splits=splits)
    assert module.tensors["train"]["day"].unique().tolist() == list(range(4, 11))
    assert module.tensors["test"]["day"].unique().tolist() == list(range(18, 26))
    assert module.tensors["test"]["timestamp"].max() < (25 * 24 + 12) * 3600
    assert module.val_dataloader() == []
    assert "by date" in module.summary


@pytest.mark.parametrize(
    ("splits", "rule"),
    [
        ({"test": ["1970-01-05", "1970-01-12"]}, "must map train"),
        ({"train": ["1970-01-05", "1970-01-12"], "tset": None}, "must map train"),
        ({"train": ["1970-01-05"]}, r"splits.train must be \[start, end\]"),
        ({"train": ["1970-01-12", "1970-01-05"]}, "must start before it ends"),
        ({"train": ["monday", "1970-01-12"]}, "ISO dates such as 2018-07-25, got 'monday'"),
        ({"train": ["2001-01-05", "2001-01-12"]}, "holds no rows"),
        ({"train": ["1970-01-05", "1970-01-12"], "val": ["1970-01-10", "1970-01-20"]}, "must not overlap"),
    ],
)
def test_wrong_splits_are_refused(path, splits, rule):
    with pytest.raises(ValueError, match=rule):
        ready("fraud_table", path=path, **TABLE, splits=splits)


def test_random_split_is_stratified_repeatable_and_reports_leakage(path, caplog):
    module = ready("fraud_table", path=path, **TABLE, split="random")
    shares = [float(tensors["target"].mean()) for tensors in module.tensors.values()]
    assert max(shares) - min(shares) < 0.02
    equal(ready("fraud_table", path=path, **TABLE, split="random").tensors["test"], module.tensors["test"])
    other = ready("fraud_table", path=path, **TABLE, split="random", seed=1)
    assert not torch.equal(other.tensors["test"]["timestamp"], module.tensors["test"]["timestamp"])
    assert any(note.startswith("leakage: 3") and "data.split=customer" in note for note in module.notes)
    assert "leakage" in caplog.text


def test_split_by_customer_keeps_customers_apart(path):
    module = ready("fraud_table", path=path, **TABLE, split="customer")
    customers = [set(tensors["customer"].tolist()) for tensors in module.tensors.values()]
    assert [len(part) for part in customers] == [26, 6, 8]
    assert len(set.union(*customers)) == 40
    with pytest.raises(ValueError, match="give data.customer=COLUMN"):
        ready("fraud_table", path=path, target="fraud", split="customer")


def test_schema_is_of_the_training_rows_alone(tmp_path, path):
    table = payments()
    rows = np.arange(NUM_ROWS)
    columns = {name: table[name] for name in table.column_names}
    columns["amount"] = pa.array(np.where(rows < 320, table["amount"].to_numpy(), 1e6))
    columns["city"] = pc.if_else(pa.array(rows < 320), table["city"], "Lima")
    changed = ready("fraud_table", path=saved(pa.table(columns), tmp_path / "t.parquet"), **TABLE)
    assert changed.schema == ready("fraud_table", path=path, **TABLE).schema
    assert changed.unseen == Counter(city=180)


def test_columns_that_tell_the_label_are_reported(tmp_path):
    table = payments()
    scenario = pc.choose(table["fraud"], 0, table["client"])
    table = table.append_column("scenario", pc.add(pc.multiply(scenario, 2), table["fraud"]).cast(pa.float32()))
    table = table.append_column("verdict", pc.if_else(pc.equal(table["fraud"], 1), "caught", "fine"))
    balance = pc.subtract(table["amount"], 50)
    table = table.append_column("closed", pc.if_else(pc.equal(table["fraud"], 1), None, balance))
    module = ready("fraud_table", path=saved(table, tmp_path / "t.parquet"), **TABLE)
    suspects = [note.split()[1] for note in module.notes if note.startswith("leakage?")]
    assert suspects == ["scenario", "closed", "verdict"]


def test_setup_twice_changes_nothing(path):
    module = ready("fraud_table", path=path, **TABLE)
    tensors, notes = module.tensors["train"]["numeric"], list(module.notes)
    module.setup("test")
    assert module.tensors["train"]["numeric"] is tensors
    assert module.notes == notes


def test_loaders(path):
    module = ready("fraud_table", path=path, **TABLE, batch_size=100, batches_per_call=3)
    (first, second) = list(module.train_dataloader())
    assert [len(batch["target"]) for batch in [*first, *second]] == [100, 100, 100, 20]
    assert set(first[0]) == {"numeric", "categorical", "timestamp", "target", "weight", "global_rows"}
    assert [batch["global_rows"] for batch in [*first, *second]] == [100, 100, 100, 20]
    (batch,) = list(module.test_dataloader())
    assert batch.pop("global_rows") == len(module.tensors["test"]["target"])
    equal(batch, module.tensors["test"])


def test_other_data_are_encoded_by_the_schema_given(tmp_path, path):
    schema = ready("fraud_table", path=path, **TABLE).schema
    expected = ready("fraud_table", path=path, **TABLE).tensors["test"]
    newest = payments().slice(400)
    for name in ("newest.csv", "newest.parquet"):
        fresh = make("fraud_table", path="not read", **TABLE)
        equal(fresh.load_other(str(saved(newest, tmp_path / name)), schema), expected)
    cities = newest.set_column(2, "city", pa.array(["Lima"] * 100))
    fresh.load_other(str(saved(cities, tmp_path / "cities.csv")), schema)
    assert fresh.unseen == Counter(city=100)
    for gone in ("fraud", "amount", "city"):
        uri = str(saved(newest.drop_columns([gone]), tmp_path / "t.parquet"))
        with pytest.raises(ValueError, match=f"column '{gone}' is missing"):
            fresh.load_other(uri, schema)


@pytest.mark.parametrize("name", ["newest.csv", "newest.parquet"])
def test_other_data_stream_unlabelled(tmp_path, path, name):
    module = ready("fraud_table", path=path, **TABLE)
    other = make("fraud_table", path="not read", **TABLE)
    uri = str(saved(payments().slice(400).drop_columns(["fraud", "client"]), tmp_path / name))
    pieces = list(other.iter_other(uri, module.schema))
    assert sum(len(batch) for batch, _ in pieces) == 100
    assert pieces[0][0].schema.names == ["when", "amount", "city"]
    for key in ("numeric", "categorical", "timestamp"):
        expected = module.tensors["test"][key]
        torch.testing.assert_close(torch.cat([tensors[key] for _, tensors in pieces]), expected, rtol=0, atol=0)
    uri = str(saved(payments().drop_columns(["amount"]), tmp_path / name))
    with pytest.raises(ValueError, match="column 'amount' is missing"):
        next(other.iter_other(uri, module.schema))


def test_transactions_learn_from_windows_and_not_from_names(tmp_path):
    module = ready("fraud_transactions", path=saved(simulated(), tmp_path / "t.parquet"), **TRANSACTIONS)
    names = [column["name"] for column in module.schema["columns"]]
    assert {"amount", "night", "customer_count_7d", "terminal_risk_30d"} <= set(names)
    assert not {"customer_id", "terminal_id", "transaction_id", "is_fraud", "time"} & set(names)
    assert module.tensors["test"]["customer"].max() < 60
    assert module.tensors["train"]["day"].max() <= module.tensors["val"]["day"].min()


def test_history_gives_other_transactions_their_windows(tmp_path):
    table = simulated()
    whole = ready("fraud_transactions", path=saved(table, tmp_path / "t.parquet"), **TRANSACTIONS)
    num_test = rows_of(whole, "test")
    past = saved(table.slice(0, len(table) - num_test), tmp_path / "past.csv")
    newest = table.slice(len(table) - num_test)
    uri = str(saved(newest, tmp_path / "newest.csv"))
    other = make("fraud_transactions", path="not read", **TRANSACTIONS, history=past)
    equal(other.load_other(uri, whole.schema), whole.tensors["test"])
    alone = make("fraud_transactions", path="not read", **TRANSACTIONS).load_other(uri, whole.schema)
    assert torch.nanmean(alone["numeric"]) < torch.nanmean(whole.tensors["test"]["numeric"])


def test_other_transactions_are_scored_in_their_own_order(tmp_path):
    table = simulated()
    whole = ready("fraud_transactions", path=saved(table, tmp_path / "t.parquet"), **TRANSACTIONS)
    order = np.random.default_rng(0).permutation(rows_of(whole, "test"))
    start = len(table) - len(order)
    past = saved(table.slice(0, start), tmp_path / "past.parquet")
    shuffled = table.slice(start).take(order).drop_columns(["is_fraud"])
    other = make("fraud_transactions", path="not read", **TRANSACTIONS, history=past)
    pieces = list(other.iter_other(str(saved(shuffled, tmp_path / "new.csv")), whole.schema))
    scored = pa.Table.from_batches([batch for batch, _ in pieces])
    assert scored["transaction_id"].to_pylist() == shuffled["transaction_id"].to_pylist()
    numeric = torch.cat([tensors["numeric"] for _, tensors in pieces])
    newest = [name for name, column in enumerate(whole.schema["columns"]) if "customer_count" in column["name"]]
    torch.testing.assert_close(numeric[:, newest], whole.tensors["test"]["numeric"][order][:, newest])


def test_other_data_without_rows_give_one_empty_batch(tmp_path, path):
    transactions = saved(simulated(), tmp_path / "t.parquet")
    modules = {
        path: ready("fraud_table", path=path, **TABLE),
        transactions: ready("fraud_transactions", path=transactions, **TRANSACTIONS),
    }
    for source, module in modules.items():
        table = pa.parquet.read_table(source)
        uri = str(saved(table.slice(0, 0), tmp_path / "empty.csv"))
        ((batch, tensors),) = module.iter_other(uri, module.schema)
        assert batch.schema.names == table.column_names
        assert tensors["numeric"].shape == (0, module.tensors["test"]["numeric"].shape[1])


def test_transactions_that_lack_a_column_or_a_value(tmp_path):
    table = simulated()
    module = ready("fraud_transactions", path=saved(table, tmp_path / "t.parquet"), **TRANSACTIONS)
    for gone in ("amount", "terminal_id"):
        uri = str(saved(table.drop_columns([gone]), tmp_path / "gone.parquet"))
        with pytest.raises(ValueError, match=f"column '{gone}' is missing"):
            next(module.iter_other(uri, module.schema))
    amount = pc.if_else(pc.less(table["transaction_id"], 5), None, table["amount"])
    holes = saved(table.set_column(4, "amount", amount), tmp_path / "holes.parquet")
    with pytest.raises(ValueError, match="cannot score 5 rows of .*5 transactions without customer,"):
        next(module.iter_other(str(holes), module.schema))
    other = ready("fraud_transactions", path=holes, **TRANSACTIONS)
    assert sum(rows_of(other, split) for split in other.tensors) == len(table) - 5


def test_unlabelled_transactions_count_in_windows_only(tmp_path):
    table = simulated()
    label = pc.if_else(pc.equal(pc.bit_wise_and(table["transaction_id"], 1), 1), None, table["is_fraud"])
    half = ready(
        "fraud_transactions",
        path=saved(table.set_column(5, "is_fraud", label), tmp_path / "half.parquet"),
        **TRANSACTIONS,
        windows_days=[1, 7],
    )
    whole = ready("fraud_transactions", path=saved(table, tmp_path / "t.parquet"), **TRANSACTIONS, windows_days=[1, 7])
    assert any("without a target" in note for note in half.notes)
    place = [column["name"] for column in whole.schema["columns"]].index("customer_count_7d")
    counts = [module.tensors["train"]["numeric"][:, place].mean() for module in (half, whole)]
    assert float(counts[0]) == pytest.approx(float(counts[1]), rel=0.1)


def test_simulated_data(tmp_path, monkeypatch):
    monkeypatch.setenv("FULLCYCLE_CACHE", str(tmp_path))
    sizes = {"num_customers": 300, "num_terminals": 400, "num_days": 40}
    module = make("fraud_simulated", **sizes)
    module.prepare_data()
    module.setup("fit")
    assert len(list(tmp_path.iterdir())) == 1
    assert module.summary.startswith("fraud_simulated: ")
    again = ready("fraud_simulated", **sizes, seed=5)
    assert again.fingerprint == module.fingerprint
    equal(again.tensors["test"], module.tensors["test"])
    other = ready("fraud_simulated", **sizes, simulation_seed=1)
    assert other.fingerprint != module.fingerprint


def real(name):
    path = DATA / name
    if not path.exists():
        pytest.skip(f"needs {name} in $FULLCYCLE_DATA or ../shared/data")
    return path


def test_real_card_data_split_by_time():
    path = real("fraud_creditcard_ulb_subset/creditcard_subset.parquet")
    changes = {k: v for k, v in OmegaConf.load(CONFIGS / "creditcard.yaml").items() if k != "defaults"}
    module = ready("fraud_table", path=path, **changes)
    assert [int(tensors["target"].sum()) for tensors in module.tensors.values()] == [260, 121, 111]
    assert module.tensors["train"]["numeric"].shape == (20_954, 29)


@pytest.mark.slow
def test_real_transactions_by_the_handbooks_dates():
    names = {"customer": "CUSTOMER_ID", "terminal": "TERMINAL_ID", "amount": "TX_AMOUNT", "time": "TX_DATETIME"}
    splits = {"train": ["2018-07-25", "2018-08-01"], "test": ["2018-08-08", "2018-08-15"]}
    path = real("fraud_handbook_simulated/transactions.parquet")
    module = ready("fraud_transactions", path=path, **names, label="TX_FRAUD", splits=splits)
    assert [rows_of(module, split) for split in ("train", "val", "test")] == [67_240, 0, 67_080]
    assert len(module.tensors["test"]["day"].unique()) == 7
