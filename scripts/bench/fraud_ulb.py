"""The ULB credit card subset, split by time: our default recipe against XGBoost and LightGBM over 5 seeds.

FULLCYCLE_DATA=DIR python scripts/bench/fraud_ulb.py
FULLCYCLE_DATA=DIR python scripts/bench/fraud_ulb.py --split val        # what a recipe may be chosen on

The subset holds every fraud and a sample of the other rows: each negative weighs 8.816 in the loss and in the metrics,
which restores the base rate of the full set (0.173 %). Never compare its average precision with the full set's.
Everything goes through `train.run.run` with `experiment=fraud data=creditcard`; the baselines have the same columns
of the same rows and the same weights. Intervals (95 %) are bootstrapped over the test rows. Gaps under 0.03 are
noise here.
"""

import argparse
import json
import os
import statistics
import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import torch
from hydra import compose, initialize_config_module

from train import screen
from train.run import run

NEGATIVE_WEIGHT = 8.816
BASELINES = {
    "xgboost": "{_target_: models.baselines.xgboost, num_trees: 100, learning_rate: 0.1, max_depth: 3, seed: %d}",
    "lightgbm": "{_target_: models.baselines.lightgbm, num_trees: 200, learning_rate: 0.05, num_leaves: 31, seed: %d}",
}


def write_weighted(folder: Path, *, with_test: bool) -> Path:
    """Write the subset with a column of weights; without its newest fifth where the test rows may not be seen."""
    data = Path(os.environ.get("FULLCYCLE_DATA", "../shared/data"))
    source = data / "fraud_creditcard_ulb_subset" / "creditcard_subset.parquet"
    if not source.exists():
        raise SystemExit(f"{source} is not there: set FULLCYCLE_DATA to the folder that holds the subset")
    table = pa.parquet.read_table(source).sort_by("Time")
    weight = np.where(table["Class"].to_numpy().astype(int) == 1, 1.0, NEGATIVE_WEIGHT)
    table = table.append_column("weight", pa.array(weight))
    path = folder / "weighted.parquet"
    pa.parquet.write_table(table if with_test else table.slice(0, int(0.8 * len(table))), path)
    return path


def main() -> None:
    """Print the mean over seeds of each model's average precision, and the intervals."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--split", choices=("val", "test"), default="test")
    parser.add_argument("override", nargs="*", help="further overrides of the experiment")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    screen.console.quiet = True
    found: dict[str, list[float]] = {"fullcycle": [], **{name: [] for name in BASELINES}}
    intervals = []
    with tempfile.TemporaryDirectory() as temporary, initialize_config_module("configs", version_base="1.3"):
        path = write_weighted(Path(temporary), with_test=options.split == "test")
        # Without the test rows, the last fifth of what is left stands in for them.
        shares = [] if options.split == "test" else ["data.train_share=0.64", "data.val_share=0.16"]
        for seed in range(options.seeds):
            baselines = [f"+baselines.{name}={node % seed}" for name, node in BASELINES.items()]
            overrides = [
                "experiment=fraud",
                "data=creditcard",
                f"data.path={path}",
                "data.weight=weight",
                "baselines=none",
            ]
            cfg = compose(
                "train",
                [
                    *overrides,
                    *baselines,
                    *shares,
                    f"seed={seed}",
                    "trainer=cpu",
                    f"output_dir={temporary}",
                    *options.override,
                ],
            )
            result = run(cfg)
            found["fullcycle"].append(result.metrics["test/average_precision"])
            for name in BASELINES:
                found[name].append(result.baselines[name]["average_precision"])
            content = json.loads((result.folder / "result.json").read_text())
            intervals.append(content["intervals_95"]["test/average_precision"])
    print(
        f"average precision, {options.seeds} seeds, {options.threads} thread(s), negatives weighted {NEGATIVE_WEIGHT}"
    )
    for name, values in found.items():
        print(f"  {name:10} {statistics.mean(values):.4f}   {min(values):.4f}-{max(values):.4f}")
    best = max(BASELINES, key=lambda name: statistics.mean(found[name]))
    gap = statistics.mean(found["fullcycle"]) - statistics.mean(found[best])
    low, high = (statistics.mean(bound) for bound in zip(*intervals, strict=True))
    print(f"  fullcycle minus {best}: {gap:+.4f}; 95 % bootstrap interval of fullcycle {low:.3f}-{high:.3f}")


if __name__ == "__main__":
    main()
