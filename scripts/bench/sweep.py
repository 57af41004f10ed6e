"""What a sweep costs beside bare Optuna, and what Hyperband saves.

python scripts/bench/sweep.py                                  # both; about 20 minutes on 2 cores
python scripts/bench/sweep.py --only overhead                  # 1 minute
python scripts/bench/sweep.py --only overhead --storage postgresql://USER@HOST/DATABASE
python scripts/bench/sweep.py --only hyperband --trials 30 --seeds 0 1

Overhead: an objective that does nothing, TPE, the search space of the fraud experiment. Ours is the worker of
`python -m train.sweep` with its heartbeat, slots and the config of every trial composed; bare is `study.optimize` that
draws the same keys, on the same kind of storage. A figure is the median of the rounds' ratios of seconds per trial,
rounds interleaved, with the lowest and highest.

Hyperband: a real sweep of `experiment=fraud` (simulated transactions of fewer customers, 27 epochs with a validation
each), three times through the command line: TPE without a pruner; the same with Hyperband; and random search that may
take as many optimizer steps as Hyperband took. Compared are the best validation metric and the optimizer steps, as the
run folders record them: those until a sweep's best is within 0.002 of the best without a pruner, and those of all its
trials.
"""

import argparse
import json
import math
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import optuna
import pyarrow.parquet as pq
from hydra import compose, initialize_config_module
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend

from train.sweep import plan as plans
from train.sweep.heartbeat import Heartbeat
from train.sweep.storage import open_storage
from train.sweep.study import Study
from train.sweep.worker import Worker

OVERHEAD_LIMIT, STEPS_LIMIT, GAP_LIMIT = 1.2, 0.4, 0.002
METRIC = "val/average_precision"
# Fewer customers and longer training than the default: the more validations a trial has, the more Hyperband can save.
SMALL = ["data.num_customers=400", "data.num_terminals=800", "trainer.max_epochs=27"]
SHORT = ["experiment=fraud", "trainer=cpu", "test=false", *SMALL]


def ours(folder: Path, trials: int, seed: int, storage: str | None) -> float:
    """Seconds per trial of our worker, on an objective that does nothing."""
    overrides = ["experiment=fraud", "sweep=fraud", f"output_dir={folder}", f"trials={trials}", f"seed={seed}"]
    overrides += ["pruner=none", "start_with_default=false"]
    plan = plans.make(compose("sweep", overrides), overrides)
    plan.folder.mkdir(parents=True)
    study = Study(open_storage(storage, plan.folder), folder.name, ["maximize"], total=trials, facts={})
    with Heartbeat(study, plan.cfg.heartbeat_seconds) as heartbeat:
        worker = Worker(plan, study, lambda cfg, trial, taken: {METRIC: float(cfg.model.lr)}, heartbeat)
        start = time.perf_counter()
        worker.work()
        seconds = time.perf_counter() - start
    assert sum(slot.state == "complete" for slot in study.slots()) == trials
    return seconds / trials


def bare(folder: Path, trials: int, seed: int, storage: str | None) -> float:
    """Seconds per trial of Optuna by itself."""
    overrides = ["experiment=fraud", "sweep=fraud", f"output_dir={folder}", "pruner=none"]
    plan = plans.make(compose("sweep", overrides), overrides)
    opened = open_storage(storage, folder) if storage else JournalStorage(JournalFileBackend(str(folder / "journal")))
    study = optuna.create_study(
        storage=opened,
        study_name=f"bare-{folder.name}",
        direction="maximize",
        sampler=optuna.samplers.TPESampler(seed=seed),
        pruner=optuna.pruners.NopPruner(),
    )
    start = time.perf_counter()
    study.optimize(lambda trial: plan.space.suggest(trial, {})["model.lr"], n_trials=trials)
    return (time.perf_counter() - start) / trials


def overhead(options: argparse.Namespace) -> bool:
    """Print what a trial costs; tell whether it is within the limit."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    found: dict[str, list[float]] = {"ours": [], "bare": []}
    with initialize_config_module("configs", version_base="1.3"):
        for number in range(options.rounds):
            sides = [("ours", ours), ("bare", bare)]
            for name, measure in sides if number % 2 == 0 else sides[::-1]:  # who is first gains nothing by it
                with tempfile.TemporaryDirectory() as temporary:
                    found[name].append(measure(Path(temporary), options.no_op_trials, number, options.storage))
    ratios = [a / b for a, b in zip(found["ours"], found["bare"], strict=True)]
    medians = {name: 1000 * statistics.median(values) for name, values in found.items()}
    kind = options.storage.partition(":")[0] if options.storage else "journal file"
    print(
        f"overhead, {kind}, {options.no_op_trials} trials, {options.rounds} rounds: "
        f"{statistics.median(ratios):.2f} ({min(ratios):.2f}-{max(ratios):.2f}) of bare Optuna "
        f"(limit {OVERHEAD_LIMIT}); ours {medians['ours']:.1f} ms, bare {medians['bare']:.1f} ms a trial",
        flush=True,
    )
    return statistics.median(ratios) <= OVERHEAD_LIMIT


def sweep(folder: Path, *overrides: str) -> list[tuple[int, float]]:
    """Run a sweep by its command; return each trial's optimizer steps and value, -inf where it was pruned or failed."""
    command = [sys.executable, "-m", "train.sweep", *SHORT, f"output_dir={folder}", *overrides]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}\n{done.stdout}\n{done.stderr}")
    place = folder / "fraud-sweep" / "default"
    rows = pq.read_table(place / "trials.parquet").to_pylist()
    results = [place / "fraud" / f"{row['number']:04d}" / "result.json" for row in rows]
    steps = [json.loads(path.read_text())["steps"] if path.exists() else 0 for path in results]
    values = [row[METRIC] if row["state"] == "complete" else -math.inf for row in rows]
    return list(zip(steps, values, strict=True))


def describe(trials: list[tuple[int, float]], goal: float, whole: int) -> tuple[str, float]:
    """A sweep in words, and the share of `whole` steps after which it had reached `goal`."""
    best, steps, reached = max(value for _, value in trials), 0, math.inf
    for own, value in trials:
        steps += own
        if value >= goal and reached == math.inf:
            reached = steps / whole
    says = f"at {goal:.4f} after {reached:.2f}" if reached < math.inf else f"never at {goal:.4f}"
    return f"best {best:.4f}, {says}, all {len(trials)} trials took {steps / whole:.2f}", reached


def hyperband(options: argparse.Namespace) -> bool:
    """Print what Hyperband saves; tell whether it is within the limit for each seed."""
    good = True
    for seed in options.seeds:
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(options.folder or temporary) / f"seed{seed}"
            many = (f"trials={options.trials}", f"seed={seed}")
            full = sweep(folder / "full", *many, "pruner=none")
            pruned = sweep(folder / "pruned", *many, "pruner=hyperband")
            whole, used = (sum(steps for steps, _ in trials) for trials in (full, pruned))
            fewer = max(1, round(options.trials * used / whole))
            drawn = sweep(folder / "random", f"trials={fewer}", f"seed={seed}", "pruner=none", "sampler=random")
        goal = max(value for _, value in full) - GAP_LIMIT
        print(f"seed {seed}; shares are of the {whole:,} optimizer steps of the sweep without a pruner")
        for name, trials in (("no pruner", full), ("Hyperband", pruned), ("random search", drawn)):
            text, reached = describe(trials, goal, whole)
            print(f"  {name:13} {text}" + (f" (limit {STEPS_LIMIT})" if name == "Hyperband" else ""), flush=True)
            good = good and (name != "Hyperband" or reached <= STEPS_LIMIT)
    return good


def main() -> int:
    """Print the figures; 1 if one is beyond its limit."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=["overhead", "hyperband"])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--no-op-trials", type=int, default=100)
    parser.add_argument("--storage", help="a database instead of a journal file")
    parser.add_argument("--trials", type=int, default=30)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--folder", help="keeps the sweeps of --only hyperband, and goes on with those that are there")
    options = parser.parse_args()
    good = options.only == "hyperband" or overhead(options)
    good = (options.only == "overhead" or hyperband(options)) and good
    return int(not good)


if __name__ == "__main__":
    sys.exit(main())
