"""Find a learning rate, or a batch size, before training.

python -m train.tune experiment=NAME find=lr              # range test, with its plot and a suggestion
python -m train.tune experiment=NAME find=batch_size      # largest that fits, and from which size on it is no faster
"""

import sys

import hydra
from omegaconf import DictConfig

from train import errors
from train.config import arguments
from train.config.check import check
from train.tune.settings import TuneSettings


@hydra.main(version_base="1.3", config_path="pkg://configs", config_name="tune")
def main(cfg: DictConfig) -> None:
    """Check the composed config, then find what it asks for."""
    with errors.job():
        check(cfg, TuneSettings)
        from train.tune.tune import tune

        tune(cfg)


if __name__ == "__main__":
    sys.argv[1:] = arguments.in_order(sys.argv[1:])
    sys.exit(errors.guard(main, "tune"))
