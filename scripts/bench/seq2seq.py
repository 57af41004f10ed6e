"""Translation and summarization from scratch against their baselines, and how fast outputs are written.

python scripts/bench/seq2seq.py multi30k FULLCYCLE_DATA/seq2seq_multi30k_en_de
python scripts/bench/seq2seq.py multi30k FULLCYCLE_DATA/seq2seq_multi30k_en_de --reverse     # German to English
python scripts/bench/seq2seq.py aeslc FULLCYCLE_DATA/seq2seq_aeslc_email_subject/aeslc.parquet
python scripts/bench/seq2seq.py writing runs/translation/latest

`multi30k` and `aeslc` train `experiment=translation` and `experiment=summarization` with RECIPES, which were chosen on
the validation split, and score the best epoch (by greedy outputs for the validation split) once on the official test
split, by beam search. BLEU is sacreBLEU's over detokenized texts (13a, cased), ROUGE is rouge-score's without stemming.
`--folder` keeps the run, which goes on where it was cut off.

`writing` takes a finished run's validation sources: beam search in batches against a sentence at a time, and the
exported graphs in ONNX Runtime against torch, which must write the same tokens. Rounds are interleaved, after one that
is not counted; a figure is the median of the rounds' ratios, with the lowest and highest.
"""

import argparse
import json
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from hydra import compose, initialize_config_module
from torch import Tensor

from train import screen
from train.export import graph
from train.export.session import open_session, standing_in
from train.export.source import open_source
from train.run import run

RECIPES = {
    "multi30k": [
        *("experiment=translation", "data=parallel_text", "data.max_source_length=64", "data.max_target_length=64"),
        *("data.vocab_size=5000", "model.num_encoder_blocks=4", "model.dropout=0.2", "model.ema_decay=0.998"),
        *("model.lr=3e-3", "model.warmup_share=0.1", "trainer.max_epochs=14", "patience=null"),
    ],
    "aeslc": [
        *("experiment=summarization", "data=seq2seq_table", "data.source=body", "data.target=subject"),
        *("data.split_column=split", "data.lowercase=true", "data.vocab_size=6000"),
        *("data.max_source_length=128", "data.max_target_length=24", "data.batch_tokens=2048"),
        *("model.num_encoder_blocks=2", "model.num_decoder_blocks=2", "model.dropout=0.2"),
        *("model.lr=3e-3", "model.warmup_share=0.1", "trainer.max_epochs=5", "patience=null"),
    ],
}
MEASURES = {"multi30k": ("bleu", "chrf"), "aeslc": ("rouge_1", "rouge_2", "rouge_l")}


def multi30k(folder: Path, *, is_reversed: bool) -> list[str]:
    """The overrides that name the files."""
    sides = ("de", "en") if is_reversed else ("en", "de")
    return [
        f"data.{split}{side}={folder / name}.{language}.gz"
        for split, name in (("", "train"), ("val_", "val"), ("test_", "test_2016_flickr"))
        for side, language in zip(("source", "target"), sides, strict=True)
    ]


def quality(options: argparse.Namespace) -> None:
    """Train, test once, and print the result beside the baselines' own."""
    files = (
        multi30k(options.path, is_reversed=options.reverse)
        if options.what == "multi30k"
        else [f"data.path={options.path}"]
    )
    with tempfile.TemporaryDirectory() as temporary:
        place = [f"output_dir={options.folder or temporary}", f"run_id={options.what}", "trainer=cpu"]
        overrides = [*RECIPES[options.what], *files, *place, f"seed={options.seed}", *options.override]
        screen.console.quiet = options.folder is None
        started = time.perf_counter()
        result = run(compose("train", overrides))
        seconds = time.perf_counter() - started
        intervals = json.loads((result.folder / "result.json").read_text())["intervals_95"]
    print(
        f"{options.what}, {torch.get_num_threads()} thread(s), seed {options.seed}, {seconds / 60:.1f} minutes in all"
    )
    for name in MEASURES[options.what]:
        interval = intervals.get(f"test/{name}")  # none of chrF
        others = ", ".join(f"{kind} {values[name]:.2f}" for kind, values in result.baselines.items())
        told = "" if interval is None else f" (95 % interval {interval[0]:.2f}-{interval[1]:.2f})"
        print(f"  test/{name}: {result.metrics[f'test/{name}']:.2f}{told}; {others}")


def sources(datamodule: Any, num_rows: int) -> list[Tensor]:
    """The validation split's token ids, in its batches."""
    found: list[Tensor] = []
    for batch in datamodule.val_dataloader():
        found.append(batch["source"][: num_rows - sum(map(len, found))])
        if sum(map(len, found)) == num_rows:
            break
    return found


@torch.inference_mode()
def outputs(model: Any, batches: list[Tensor], pad_id: int) -> tuple[float, list[list[int]]]:
    """Seconds in which the model writes, and the tokens of each row without padding."""
    started = time.perf_counter()
    tokens = [model(batch) for batch in batches]
    seconds = time.perf_counter() - started
    return seconds, [[token for token in row if token != pad_id] for batch in tokens for row in batch.tolist()]


def alone(batches: list[Tensor], pad_id: int) -> list[Tensor]:
    """Each row as a batch of its own, without padding."""
    return [row[row != pad_id].unsqueeze(0) for batch in batches for row in batch]


def writing(options: argparse.Namespace) -> None:
    """Print how fast a run's model writes, each way, and whether it writes the same."""
    source = open_source(str(options.path), {})
    model, pad_id = source.model, source.model.schema["tokenizer"]["pad_id"]
    batches = sources(source.datamodule, options.rows)
    singles = alone(batches, pad_id)
    rows, how = len(singles), model.training_options
    print(
        f"{rows} validation rows in batches of up to {max(map(len, batches))}, {how['beams']} beams, {options.rounds} "
        f"rounds, {torch.get_num_threads()} thread(s)",
        flush=True,
    )
    with tempfile.TemporaryDirectory() as temporary:
        files = {offered.name: Path(temporary) / f"{offered.name}.onnx" for offered in model.export_graphs()}
        for offered in model.export_graphs():
            graph.write(offered, files[offered.name])
        how_opened: dict[str, Any] = {"threads": torch.get_num_threads(), "lengths_vary": True, "spins": True}
        sessions = {name: open_session(path, **how_opened) for name, path in files.items()}

        def by_graphs(given: list[Tensor]) -> tuple[float, list[list[int]]]:
            with standing_in(model, sessions):
                return outputs(model, given, pad_id)

        ways: dict[str, Callable[[], tuple[float, list[list[int]]]]] = {
            "torch, batches": lambda: outputs(model, batches, pad_id),
            "torch, a sentence at a time": lambda: outputs(model, singles, pad_id),
            "ONNX Runtime, batches": lambda: by_graphs(batches),
            "ONNX Runtime, a sentence at a time": lambda: by_graphs(singles),
        }
        # The first round asks for memory that the later ones have.
        _, *found = [{name: way() for name, way in ways.items()} for _ in range(options.rounds + 1)]
    for over, under in (
        ("torch, a sentence at a time", "torch, batches"),
        ("torch, batches", "ONNX Runtime, batches"),
        ("torch, a sentence at a time", "ONNX Runtime, a sentence at a time"),
    ):
        ratios = [one[over][0] / one[under][0] for one in found]
        same = sum(one == other for one, other in zip(found[0][over][1], found[0][under][1], strict=True))
        print(
            f"  {under}: {rows / statistics.median(one[under][0] for one in found):,.0f} rows/s, "
            f"{statistics.median(ratios):.2f} ({min(ratios):.2f}-{max(ratios):.2f}) times {over}; "
            f"{same} of {rows} outputs are the same"
        )


def main() -> None:
    """Measure what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=(*RECIPES, "writing"))
    parser.add_argument("path", type=Path, help="the folder of Multi30k, the file of AESLC, or a run folder")
    parser.add_argument("--reverse", action="store_true", help="translate the other way")
    parser.add_argument("--folder", help="where the run stays")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rows", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("override", nargs="*", help="further overrides of the experiment")
    options = parser.parse_intermixed_args()
    torch.set_num_threads(options.threads)
    warnings.simplefilter("ignore")
    with initialize_config_module("configs", version_base="1.3"):
        (writing if options.what == "writing" else quality)(options)


if __name__ == "__main__":
    main()
