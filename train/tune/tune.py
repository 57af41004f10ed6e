"""The folder and the screen around a search: what is shown before it and where its results go."""

import shlex
import sys
from pathlib import Path

from omegaconf import DictConfig

from train import errors, failures, folder, ranks, screen
from train.run import set_precision
from train.tune import batch_size, learning_rate

SEARCHES = {"lr": learning_rate.find, "batch_size": batch_size.find}


def tune(cfg: DictConfig) -> Path:
    """Find what `cfg.find` asks for; return the folder with its JSON and PNG file.

    Raises:
        ConfigError: started as several processes; the model or the data lack what is tuned; nothing could be found.
        DataError: the data cannot be read, break a rule, or have no training rows.
        DivergedError: the loss is not finite from the start.
        InterruptedRunError: Ctrl-C.
        StorageError: the results cannot be written.
    """
    if ranks.num_processes() > 1:
        raise errors.ConfigError(
            f"train.tune runs in one process, but {ranks.num_processes()} were started: "
            "start it without torchrun or srun; what it finds holds for the global batch"
        )
    with ranks.run_id_for_all_ranks(cfg.run_id) as run_id:
        place = folder.RunFolder(Path(cfg.output_dir), f"{cfg.name}-tune", run_id)
        again = f"python -m train.tune {shlex.join(sys.argv[1:])}"
        interrupted = f"Interrupted before there was a result. Start again with:\n  {again}"
        with place.logging_open(), failures.reported(place), errors.reporting_interrupt(interrupted):
            set_precision()
            place.write_config(cfg)
            SEARCHES[cfg.find](cfg, place)
    screen.console.print(f"[bold]results and plot[/]  {place.path}", soft_wrap=True)
    return place.path
