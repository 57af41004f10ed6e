"""The ULB credit card subset, split by time: our default recipe against XGBoost and LightGBM over 5 seeds.

FULLCYCLE_DATA=DIR python scripts/bench/fraud_ulb.py
FULLCYCLE_DATA=DIR python scripts/bench/fraud_ulb.py --split val        # what a recipe may be chosen on

The subset holds every fraud and a sample of the other rows: each negative weighs 8.816 in metrics (and in our loss),
which restores the base rate of the full set (0.173 %). Never compare its average precision with the full set's. Ours
goes through `train.run.run` with `experiment=fraud data=creditcard`; the trees have the same columns of the same rows,
each of several settings with and without the weights, and of these the best **on the test rows** is the one to beat.
Twice: all models fitted to the oldest 64 % (ours keeps its best epoch on the next 16 %), and all fitted to the oldest
80 % (ours for its fixed number of epochs). Intervals (95 %) are bootstrapped over the test rows; gaps under 0.03 are
noise here.
"""

import argparse
import json
import os
import statistics
import tempfile
import warnings
from pathlib import Path
from typing import Any

import lightgbm
import numpy as np
import pyarrow as pa
import pyarrow.parquet
import torch
import xgboost
from hydra import compose, initialize_config_module
from hydra.utils import instantiate

from models import baselines, metrics
from train import screen
from train.run import run

NEGATIVE_WEIGHT = 8.816
SLOW: dict[str, Any] = {"n_estimators": 300, "learning_rate": 0.05}
SAMPLED: dict[str, Any] = {"subsample": 0.8, "colsample_bytree": 0.8}
TREES = {
    "XGBoost, its defaults": (xgboost.XGBClassifier, {}),
    "XGBoost 300 x 0.05": (xgboost.XGBClassifier, SLOW),
    "XGBoost 300 x 0.05, depth 4, 80 %": (xgboost.XGBClassifier, {**SLOW, **SAMPLED, "max_depth": 4}),
    "XGBoost as beside a run": (None, {}),
    "LightGBM, its defaults": (lightgbm.LGBMClassifier, {"verbose": -1}),
    "LightGBM 300 x 0.05": (lightgbm.LGBMClassifier, {"verbose": -1, **SLOW}),
    "LightGBM 300 x 0.05, 15 leaves, 80 %": (
        lightgbm.LGBMClassifier,
        {"verbose": -1, **SLOW, **SAMPLED, "num_leaves": 15, "subsample_freq": 1},
    ),
}


def write_weighted(folder: Path, *, with_test: bool) -> tuple[Path, int]:
    """Write the subset with weights, without its newest fifth where that may not be seen; also when that begins."""
    data = Path(os.environ.get("FULLCYCLE_DATA", "../shared/data"))
    source = data / "fraud_creditcard_ulb_subset" / "creditcard_subset.parquet"
    if not source.exists():
        raise SystemExit(f"{source} is not there: set FULLCYCLE_DATA to the folder that holds the subset")
    table = pa.parquet.read_table(source).sort_by("Time")
    weight = np.where(table["Class"].to_numpy().astype(int) == 1, 1.0, NEGATIVE_WEIGHT)
    table = table.append_column("weight", pa.array(weight))
    table = table if with_test else table.slice(0, int(0.8 * len(table)))
    path = folder / "weighted.parquet"
    pa.parquet.write_table(table, path)
    return path, int(table["Time"][int(0.8 * len(table))].as_py())


def average_precision(model: Any, train: Any, test: Any, *, weighted: bool) -> float:
    """Fit a tree ensemble to one split and return its weighted average precision on another."""
    baselines.fit(model, train, weighted=weighted)
    rows = baselines.scored(model, test)
    return metrics.average_precision(metrics.Ranked.of(rows.score, rows.target, rows.weight))


def compare(title: str, data: list[str], options: argparse.Namespace, folder: str) -> None:
    """Print ours and every tree ensemble on one way of splitting."""
    ours, intervals = [], []
    trees: dict[str, list[float]] = {}
    for seed in range(options.seeds):
        cfg = compose(
            "train",
            ["experiment=fraud", "data=creditcard", "data.weight=weight", *data, "baselines=none", f"seed={seed}"]
            + ["trainer=cpu", f"output_dir={folder}", *options.override],
        )
        result = run(cfg)
        ours.append(result.metrics["test/average_precision"])
        content = json.loads((result.folder / "result.json").read_text())
        intervals.append(content["intervals_95"]["test/average_precision"])
        datamodule = instantiate(cfg.data, _convert_="all")
        datamodule.setup()
        train, test = datamodule.tensors["train"], datamodule.tensors["test"]
        for name, (kind, settings) in TREES.items():
            for weighted in (False, True):
                own = {"random_state": seed, "n_jobs": options.threads, **settings}
                model = baselines.xgboost(seed=seed) if kind is None else kind(**own)
                found = average_precision(model, train, test, weighted=weighted)
                trees.setdefault(f"{name}{', weighted' if weighted else ''}", []).append(found)
    best = max(trees, key=lambda name: statistics.mean(trees[name]))
    low, high = (statistics.mean(bound) for bound in zip(*intervals, strict=True))
    gap = statistics.mean(ours) - statistics.mean(trees[best])
    print(f"\n{title}: mean and range of average precision over {options.seeds} seeds")
    for name, values in {"fullcycle, experiment=fraud": ours, **trees}.items():
        note = f"95 % interval {low:.3f}-{high:.3f}" if values is ours else "the one to beat" if name == best else ""
        print(f"  {name:46} {statistics.mean(values):.4f}   {min(values):.4f}-{max(values):.4f}   {note}")
    print(f"  fullcycle minus the one to beat: {gap:+.4f}", flush=True)


def main() -> None:
    """Compare on both ways of splitting."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--split", choices=("val", "test"), default="test")
    parser.add_argument("override", nargs="*", help="further overrides of the experiment")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    screen.console.quiet = True
    warnings.simplefilter("ignore")
    print(f"{options.threads} thread(s), negatives weighted {NEGATIVE_WEIGHT}")
    with tempfile.TemporaryDirectory() as folder, initialize_config_module("configs", version_base="1.3"):
        path, newest = write_weighted(Path(folder), with_test=options.split == "test")
        data = [f"data.path={path}"]
        compare("fitted to the oldest 64 %", data, options, folder)
        splits = f"data.splits={{train: ['0', '{newest}'], test: ['{newest}', '1000000']}}"
        compare("fitted to the oldest 80 %", [*data, splits], options, folder)


if __name__ == "__main__":
    main()
