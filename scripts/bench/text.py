"""AG News and SST-2: our networks against TF-IDF baselines, on the official test rows.

python scripts/bench/text.py agnews FULLCYCLE_DATA/text_agnews_17k/agnews.parquet
python scripts/bench/text.py sst2 FULLCYCLE_DATA/text_sst2/sst2.parquet
python scripts/bench/text.py sst2 FILE --models ngram --seeds 3 --split val

AG News here has 10,001 training rows (`split=dev` in the file) and the 7,600 official test rows; a tenth of the former,
by a hash of the text, validates. SST-2 has its phrases to train on and its 872 sentences to test on. Ours goes through
`train.run.run` with `experiment=text`, and of our networks the one that is better on the validation rows counts. Each
baseline is fitted to the same training rows with several settings, and of them the best **on the test rows** is the one
to beat; that which the validation rows would choose, as ours is chosen, is named, too. Intervals (95 %) are
bootstrapped over the test rows.
"""

import argparse
import json
import statistics
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import torch
from hydra import compose, initialize_config_module
from hydra.utils import instantiate

from models.text import baselines
from train import screen
from train.run import run

SETS = {
    "agnews": ["data.text=text", "data.splits={train: [dev], test: [test]}"],
    "sst2": ["data.text=sentence", "data.splits={train: [train], val: [dev], test: [test]}", "data.max_length=64"],
}
RECIPES: dict[tuple[str, str], list[str]] = {
    ("agnews", "ngram"): ["trainer.max_epochs=4"],
    ("agnews", "transformer"): ["trainer.max_epochs=6"],
    ("sst2", "ngram"): ["trainer.max_epochs=2", "model.longest=3", "model.linear=2"],
    ("sst2", "transformer"): ["trainer.max_epochs=3"],
}
BASELINES = {
    f"{kind}, {longest} word{'s' * (longest > 1)}, {name}={value:g}": (make, {"longest": longest, name: value})
    for longest in (1, 2)
    for kind, make, name, values in (
        ("TF-IDF + logistic regression", baselines.logistic_regression, "C", (1.0, 10.0)),
        ("TF-IDF + linear SVM", baselines.linear_svm, "C", (0.1, 0.3, 1.0)),
        ("TF-IDF + naive Bayes", baselines.naive_bayes, "smoothing", (0.1, 0.3, 1.0)),
    )
    for value in values
}


def ours(options: argparse.Namespace, model: str, seed: int, data: list[str], folder: str) -> dict[str, Any]:
    """Train one of our networks; return its accuracies, the test's interval and the seconds."""
    recipe = [f"model={model}", *RECIPES[options.name, model], *options.override]
    place = [f"output_dir={folder}", "trainer=cpu", "baselines=none", f"seed={seed}"]
    started = time.perf_counter()
    result = run(compose("train", ["experiment=text", *data, *recipe, *place]), testing=options.split == "test")
    told = json.loads((result.folder / "result.json").read_text())
    return {
        "val": result.metrics["val/accuracy"],
        "test": result.metrics.get("test/accuracy", float("nan")),
        "interval": told["intervals_95"].get("test/accuracy", (float("nan"), float("nan"))),
        "seconds": time.perf_counter() - started,
    }


def theirs(data: list[str], split: str) -> dict[str, float]:
    """Accuracy of every baseline on a split."""
    cfg = compose("train", ["experiment=text", *data])
    datamodule = instantiate(cfg.data, _convert_="all")
    datamodule.setup()
    if split == "val":
        for kept in (datamodule.texts, datamodule.tensors):
            kept["test"] = kept["val"]
    judge = instantiate(cfg.model, _partial_=True, _convert_="all")(schema=datamodule.schema)
    return {
        name: judge.test_baseline(make(**settings), datamodule)["accuracy"]
        for name, (make, settings) in BASELINES.items()
    }


def main() -> None:
    """Compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=SETS)
    parser.add_argument("path", type=Path)
    parser.add_argument("--models", nargs="+", choices=("ngram", "transformer"), default=["ngram", "transformer"])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--split", choices=("val", "test"), default="test")
    parser.add_argument("override", nargs="*", help="further overrides of the experiment")
    options = parser.parse_intermixed_args()
    screen.console.quiet = True
    warnings.simplefilter("ignore")
    data = ["data=text_table", f"data.path={options.path}", "data.label=label", "data.split_column=split"]
    data += SETS[options.name]
    print(f"{options.name}, {torch.get_num_threads()} thread(s), {options.seeds} seed(s)")
    with tempfile.TemporaryDirectory() as folder, initialize_config_module("configs", version_base="1.3"):
        chosen_by = theirs(data, "val")
        tables = chosen_by if options.split == "val" else theirs(data, "test")
        best, ahead = (max(scores, key=lambda name: scores[name]) for scores in (tables, chosen_by))
        for name, value in tables.items():
            told = "   the one to beat" * (name == best) + "   the best on validation rows" * (name == ahead)
            print(f"  {name:56} {value:.4f}{told}", flush=True)
        found = {}
        for model in options.models:
            found[model] = [ours(options, model, seed, data, folder) for seed in range(options.seeds)]
            mean = {key: statistics.mean(one[key] for one in found[model]) for key in ("val", "test", "seconds")}
            low, high = (
                statistics.mean(bound) for bound in zip(*(one["interval"] for one in found[model]), strict=True)
            )
            print(
                f"  fullcycle, model={model}: validation {mean['val']:.4f}, test {mean['test']:.4f} (95 % interval "
                f"{low:.4f}-{high:.4f}), {mean['seconds']:.0f} s",
                flush=True,
            )
    chosen = max(found, key=lambda model: statistics.mean(one["val"] for one in found[model]))
    reached = statistics.mean(one[options.split] for one in found[chosen])
    print(f"  {chosen}, the better one on validation rows, minus the one to beat: {reached - tables[best]:+.4f}")
    print(f"  minus the baseline that is the best on validation rows: {reached - tables[ahead]:+.4f}")


if __name__ == "__main__":
    main()
