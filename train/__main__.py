"""Train an experiment.

python -m train                                     # lists the experiments
python -m train experiment=NAME                     # every GPU of this machine, else its CPU
python -m train experiment=NAME trainer=smoke       # two batches, to see that all is well
python -m train experiment=NAME --config-dir DIR    # an experiment of one's own: DIR/experiment/NAME.yaml
"""

from train import stopping

stopping.listen_early()

import sys  # noqa: E402

import hydra  # noqa: E402
from omegaconf import DictConfig  # noqa: E402

from train import errors, ranks  # noqa: E402
from train.config import arguments, listing  # noqa: E402


@hydra.main(version_base="1.3", config_path="pkg://configs", config_name="train")
def main(cfg: DictConfig) -> None:
    """Check the composed config, then run it; torch is imported here and not before."""
    with errors.job():
        from train.config.check import check

        check(cfg)
        from train.run import run

        run(cfg)
        ranks.leave()


if __name__ == "__main__":
    sys.argv[1:] = arguments.in_order(sys.argv[1:])
    sys.exit(errors.guard(listing.answer(sys.argv[1:]) or main))
