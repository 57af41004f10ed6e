"""Turn a finished run into a bundle that may be trusted: pruned, quantized, measured, proven equal, signed, published.

python -m train.export run=runs/NAME/latest
python -m train.export run=runs/NAME/latest prune.ratio=0.5 publish=s3://bucket/models/NAME
"""

import sys

import hydra
from omegaconf import DictConfig

from train import errors
from train.config import arguments
from train.config.check import check
from train.export.settings import ExportSettings


@hydra.main(version_base="1.3", config_path="pkg://configs", config_name="export")
def main(cfg: DictConfig) -> None:
    """Check the composed config, then export."""
    with errors.job():
        check(cfg, ExportSettings, {})
        from train.export.export import export

        export(cfg)


if __name__ == "__main__":
    sys.argv[1:] = arguments.in_order(sys.argv[1:])
    sys.exit(errors.guard(main, "export"))
