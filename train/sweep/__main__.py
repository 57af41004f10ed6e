"""Search for the best settings of an experiment: trials that are pruned, survive their workers and share a cluster.

python -m train.sweep experiment=NAME                                     # 30 trials, one after the other
python -m train.sweep experiment=NAME workers=2 trials=50                 # two at a time
python -m train.sweep experiment=NAME storage=postgresql://USER@HOST/DB   # the same on many machines: one study
python -m train.sweep experiment=NAME trainer=ddp trainer.devices=2       # each trial on two processes
sbatch --array=1-64 scripts/slurm/sweep.sbatch experiment=NAME
python -m train.sweep report=FOLDER                                       # its files again, and nothing else
"""

from train import stopping

stopping.listen_early()

import sys  # noqa: E402

import hydra  # noqa: E402
from hydra.core.hydra_config import HydraConfig  # noqa: E402
from omegaconf import DictConfig  # noqa: E402

from train import errors, ranks  # noqa: E402
from train.config import arguments  # noqa: E402
from train.config.check import check  # noqa: E402
from train.sweep.settings import SweepSettings  # noqa: E402


@hydra.main(version_base="1.3", config_path="pkg://configs", config_name="sweep")
def main(cfg: DictConfig) -> None:
    """Check the composed config, then sweep."""
    with errors.job():
        check(cfg, SweepSettings)
        from train.sweep.sweep import sweep

        sweep(cfg, list(HydraConfig.get().overrides.task))
        ranks.leave()


def report() -> None:
    """Make the report of a study again; the rest of the command line is no config."""
    from train.sweep.report import rebuild

    rebuild(sys.argv[1:])


def with_space(words: list[str]) -> list[str]:
    """Name the experiment's own search space: sweep=<experiment>, and for sweep=auto sweep=auto/<experiment>.

    Hydra's defaults list could, but not in words where there is no such experiment.
    """
    given = {key: value for key, _, value in (word.partition("=") for word in words)}
    experiment = given.get("experiment")
    if not experiment or given.get("sweep", "auto") != "auto":
        return words
    space = f"auto/{experiment}" if "sweep" in given else experiment
    # Beside the experiment, since Hydra's parser wants all overrides in one row.
    named = {f"experiment={experiment}": [f"experiment={experiment}", f"sweep={space}"], "sweep=auto": []}
    return [each for word in words for each in named.get(word, [word])]


if __name__ == "__main__":
    sys.argv[1:] = with_space(arguments.in_order(sys.argv[1:]))
    is_report = any(word.startswith("report=") for word in sys.argv[1:])
    sys.exit(errors.guard(report if is_report else main, "sweep"))
