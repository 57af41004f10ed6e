"""From a run to a signed bundle in a real object store, and its decisions in a process without our packages."""

import csv
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

pytestmark = pytest.mark.services

ROWS = 10_000

# What a server without this project does with a bundle: raw rows by Python's own CSV reader, as texts and numbers.
ELSEWHERE = """
import csv, json, sys
import numpy as np, onnxruntime
bundle, rows, answer = sys.argv[1:]
columns = json.load(open(bundle + "/schema.json"))["columns"]
named = lambda *kinds: [column["name"] for column in columns if column["kind"] in kinds]
rows = list(csv.DictReader(open(rows, newline="")))
session = onnxruntime.InferenceSession(bundle + "/model.onnx", providers=["CPUExecutionProvider"])
probability, decision = session.run(["probability", "decision"], {
    "numeric": np.array([[float(row[n] or "nan") for n in named("numeric", "boolean")] for row in rows], np.float32),
    "categorical": np.array([[row[n] for n in named("categorical")] for row in rows], object),
    "timestamp": np.array([[np.datetime64(row[n], "s").astype(np.int64) for n in named("timestamp")] for row in rows]),
})
np.savez(answer, probability=probability, decision=decision)
assert not any(name.split(".")[0] in ("train", "models", "datamodules", "torch") for name in sys.modules)
"""


def write_table(path: Path) -> None:
    """Rows with numbers, texts, a text column too varied for a list of its values, moments and holes."""
    generator = np.random.default_rng(0)
    amount, city = generator.lognormal(3, 1, ROWS), generator.choice(["ulm", "bern", "graz", ""], ROWS)
    shop = generator.integers(900, size=ROWS)
    risk = np.log(amount) + 2 * (city == "graz") + (shop % 7 == 0) + generator.standard_normal(ROWS)
    frauds = risk > np.quantile(risk, 0.95)
    moments = np.datetime64("2025-01-01T00:00:00") + np.arange(ROWS) * np.timedelta64(600, "s")
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["when", "amount", "city", "shop", "night", "fraud"])
        for index in range(ROWS):
            value = "" if generator.random() < 0.05 else f"{amount[index]:.2f}"
            label = "yes" if frauds[index] else "no"
            writer.writerow([moments[index], value, city[index], f"shop é{shop[index]}", index % 2, label])


def command(*words: object, **environment: str) -> str:
    """What a command prints; it must succeed."""
    done = subprocess.run(
        [sys.executable, *map(str, words)],
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_one_command_from_a_run_to_a_bundle_in_the_store_that_decides_as_torch(bucket: str, tmp_path: Path) -> None:
    table, runs, home = tmp_path / "table.csv", tmp_path / "runs", tmp_path / "home"
    write_table(table)
    home.mkdir()
    uri = f"s3://{bucket}/models/fraud"
    command("-m", "train.keys", "new", HOME=str(home))
    command(
        *("-m", "train", "experiment=fraud", "data=fraud_table", f"data.path={table}", "data.target=fraud"),
        *("data.time=when", "data.max_categories=64", "model.width=16", "trainer=cpu", "trainer.max_epochs=2"),
        *("baselines=none", f"output_dir={runs}"),
        HOME=str(home),
    )
    run = runs / "fraud" / "latest"
    told = command("-m", "train.export", f"run={run}", f"publish={uri}", "quantize=[]", HOME=str(home))
    assert "v1 of" in told
    fetched = tmp_path / "fetched"
    command("-m", "train.registry", "fetch", uri, "--output", fetched, HOME=str(home))
    command("-I", "-c", ELSEWHERE, fetched, table, tmp_path / "answer.npz")
    scored = tmp_path / "scored.csv"
    command("-m", "train.predict", f"run={run}", f"input={table}", f"output={scored}", HOME=str(home))
    with scored.open(newline="") as file:
        rows = list(csv.DictReader(file))
    torch_score = np.array([float(row["score"]) for row in rows])
    torch_decision = np.array([int(row["decision"]) for row in rows])
    answer = np.load(tmp_path / "answer.npz")
    assert len(rows) == ROWS
    np.testing.assert_allclose(answer["probability"], torch_score, atol=1e-4)
    differ = int(np.sum(answer["decision"][:, 0] != torch_decision))
    print(f"{ROWS:,} rows, {torch_decision.sum():,} alerts, {differ} decisions differ")
    assert torch_decision.sum() > 10
    assert differ == 0
