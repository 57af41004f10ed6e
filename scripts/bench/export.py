"""What an export buys on the default fraud model: times and bytes against torch eager and float32, in one process.

python scripts/bench/export.py                                # trains 50 s; some minutes in all
python scripts/bench/export.py --epochs 1 --methods int8_weights int8_dynamic --finetune-steps 200
python scripts/bench/export.py --width 256                    # a network that is worth pruning
python scripts/bench/export.py --run runs/fraud/latest        # a run that is there

Each claim is a line of its own with the figure, what it is held against, and "ok" or "MISSED". All graphs of one model
are timed in turns. The default network is 64 wide; int8's bytes are asked of one 256 wide, which is not trained: bytes
do not depend on it.
"""

import argparse
import logging
import tempfile
import warnings
from pathlib import Path
from typing import Any, get_args

from hydra import compose, initialize_config_module
from hydra.utils import instantiate

from train import screen
from train.export import contest, graph, timing
from train.export.prune import pruned
from train.export.quantize import candidates
from train.export.settings import Method
from train.export.source import Source, arrays, open_source

PRUNED = "half"
BATCH_1, BATCH_64 = (str(setting) for setting in timing.judged())
LEAST = {"torch": 2.5, "pruned": 1.8, "bytes": 3.5, "shipped": 1 / 1.03}


def main() -> None:
    """Print the claims."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", help="folder of a finished run; without one the default experiment is trained")
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--width", type=int, default=64, help="of the network that is trained")
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--finetune-steps", type=int, default=2000)
    parser.add_argument("--methods", nargs="*", default=list(get_args(Method)), choices=get_args(Method))
    options = parser.parse_args()
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        source = open_source(options.run or train(place, options.epochs, options.width), {})
        outcome = exported(source, place, options)
        show(outcome)
        claim(outcome)
        claim_bytes(source, place)


def train(folder: Path, epochs: int, width: int) -> str:
    """Train the default experiment at a width; return its run folder."""
    from train.run import run

    with initialize_config_module("configs", version_base="1.3"):
        overrides = [f"trainer.max_epochs={epochs}", f"output_dir={folder / 'runs'}", "trainer=cpu", "baselines=none"]
        cfg = compose("train", ["experiment=fraud", f"model.width={width}", *overrides])
    with screen.silent():
        return str(run(cfg).folder)


def exported(source: Source, folder: Path, options: argparse.Namespace) -> contest.Outcome:
    """Hold the contest of the run's model and of one of half its width."""
    with initialize_config_module("configs", version_base="1.3"):
        overrides = [f"run={source.run.path}", f"quantize=[{','.join(options.methods)}]"]
        asked = [f"gate.rounds={options.rounds}", f"prune.finetune_steps={options.finetune_steps}"]
        cfg = compose("export", [*overrides, *asked])
    variants = [contest.make_variant(source, contest.FLOAT32, source.model, folder)]
    smaller: Any = pruned(source, 0.5, cfg.prune, folder)
    variants.append(contest.make_variant(source, PRUNED, smaller, folder))
    return contest.hold(source, variants, cfg, folder, lambda text: None)


def show(outcome: contest.Outcome) -> None:
    """Print every graph: bytes, peak memory, the gate's word, and p50 and p99 at each setting in microseconds."""
    settings = list(outcome.torch_latencies)
    print(f"{'':28}{'bytes':>10}{'peak MB':>9}   " + "".join(f"{name:>24}" for name in settings))
    for name, entry in outcome.entries.items():
        if not entry.made.files:
            print(f"{name:28}{entry.made.note}")
            continue
        times = "".join(f"{micro(entry.latencies[at]):>24}" for at in settings)
        print(f"{name:28}{entry.size:>10,}{entry.memory / 1e6:>9.1f}   {times}")
    print(f"{'torch eager':50}" + "".join(f"{micro(outcome.torch_latencies[at]):>24}" for at in settings))
    for name, entry in outcome.entries.items():
        if entry.verdict is not None:
            print(f"{name:28}{'passed' if entry.verdict.passed else 'refused'}: {entry.verdict.reason}")
    print(f"ships: {outcome.reason}\n")


def micro(latency: timing.Latency) -> str:
    """The median and the 99th percentile in microseconds."""
    return f"{1e6 * latency.p50:,.0f} / {1e6 * latency.p99:,.0f}"


def claim(outcome: contest.Outcome) -> None:
    """Print what is claimed of times and of the metric."""
    float32, half, winner = (outcome.entries[name] for name in (contest.FLOAT32, PRUNED, outcome.winner))
    gain = timing.ratio(outcome.torch_latencies[BATCH_1], float32.latencies[BATCH_1])
    line(f"float32 against torch eager, {BATCH_1}", gain, LEAST["torch"])
    for at in float32.latencies:
        gain = timing.ratio(float32.latencies[at], half.latencies[at])
        line(f"half the width against float32, {at}", gain, LEAST["pruned"] if at.startswith("batch 64") else None)
    assert half.verdict is not None
    print(f"{'half the width, the gate':58}{'ok' if half.verdict.passed else 'MISSED'}: {half.verdict.reason}")
    for at in (BATCH_1, BATCH_64):
        gain = timing.ratio(float32.latencies[at], winner.latencies[at])
        line(f"shipped ({outcome.winner}) against float32, {at}", gain, LEAST["shipped"])


def claim_bytes(source: Source, folder: Path) -> None:
    """Print what int8 saves of a network 256 wide."""
    cfg = source.cfg.copy()
    cfg.model.width = 256
    model = instantiate(cfg.model, _partial_=True, _convert_="all")(schema=source.model.schema).eval()
    (offered,) = model.export_graphs()
    path = folder / "wide.onnx"
    graph.write(offered, path)
    names = list(offered.inputs)
    rows = [arrays(batch, names) for batch in source.training_batches(1_000)]
    methods = [name for name in get_args(Method) if name.startswith("int8")]
    for one in candidates(path, folder / "wide", methods=methods, calibration=lambda: iter(rows)):
        gain = path.stat().st_size / one.path.stat().st_size if one.path else 0.0
        line(f"{one.name} of 256 units, bytes", gain, LEAST["bytes"])


def line(text: str, gain: float, least: float | None) -> None:
    """Print one claim."""
    held = "" if least is None else f"{'ok' if gain >= least else 'MISSED'} (at least {least:.2f})"
    print(f"{text:58}{gain:6.2f}x  {held}", flush=True)


if __name__ == "__main__":
    main()
