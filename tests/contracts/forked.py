"""Recorded runs on numbers of ranks, as torchrun starts them, but forked: what is slow to import is imported once.

echo '[{"name": "two", "ranks": 2, "fault": "", "overrides": ["experiment=..."]}]' | python forked.py FOLDER

Each run leaves FOLDER/runs/<experiment>/NAME, and in FOLDER/records/NAME what tests/distributed/recorded.py records.
With a fault it must fail, and without it must not.
"""

import json
import os
import runpy
import sys
import uuid
from pathlib import Path
from typing import Any

import matplotlib.pyplot
import pyarrow.dataset
import pytorch_lightning
import sklearn.feature_extraction.text
import tensorboard.plugins.hparams.summary_v2
import tokenizers
import torch._dynamo
import torch.distributed.checkpoint
import torch.distributed.fsdp
import torch.utils.tensorboard
from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, Std
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

IMPORTED = (matplotlib, pyarrow, pytorch_lightning, sklearn, tensorboard, tokenizers, torch)
RECORDED = Path(__file__).parents[1] / "distributed" / "recorded.py"


def rank(folder: str, name: str, overrides: list[str], fault: str) -> None:
    """What each rank does, in a process of its own."""
    os.environ |= {"RECORD": str(Path(folder) / "records" / name), "FAULT": fault}
    os.chdir(folder)
    sys.argv = [str(RECORDED), *overrides, f"run_id={name}", f"output_dir={folder}/runs"]
    try:
        runpy.run_path(str(RECORDED), run_name="__main__")
    except SystemExit as end:
        if end.code:
            raise RuntimeError(f"rank {os.environ['RANK']} ended with {end.code}") from end


def start(folder: Path, *, name: str, ranks: int, overrides: list[str], fault: str) -> None:
    """Run to the end; raise ChildFailedError with what the ranks have printed where they fail without a fault."""
    logs = folder / "logs" / name
    logs.mkdir(parents=True, exist_ok=True)
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=ranks,
        run_id=str(uuid.uuid4()),
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        max_restarts=0,
        start_method="fork",
        monitor_interval=0.1,
        logs_specs=DefaultLogsSpecs(log_dir=str(logs), redirects=Std.ALL),
    )
    try:
        elastic_launch(config, rank)(str(folder), name, overrides, fault)
    except ChildFailedError:
        if not fault:
            for log in sorted(logs.rglob("std*.log")):
                print(f"--- {log}\n{log.read_text()[-3000:]}", file=sys.stderr)
            raise
    else:
        assert not fault, f"{name} was to fail"


def main() -> None:
    """Run the plan that comes in."""
    assert IMPORTED
    runs: list[dict[str, Any]] = json.load(sys.stdin)
    for run in runs:
        start(Path(sys.argv[1]), **run)


if __name__ == "__main__":
    main()
