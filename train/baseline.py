"""Fit and test the classical baselines of an experiment: same rows, same metrics as its network.

python -m train.baseline experiment=NAME                        # those of baselines/grid/NAME.yaml, else its own
python -m train.baseline experiment=NAME baselines=OPTION       # those of configs/baselines/OPTION.yaml
python -m train.baseline experiment=NAME '~baselines.NAME'      # all but one
"""

import sys
import time
from importlib.resources import files
from pathlib import Path
from typing import Any

import hydra
from omegaconf import DictConfig

from train import errors
from train.config import arguments
from train.config.check import check

Account = dict[str, Any]


def baseline(cfg: DictConfig) -> Path:
    """Fit and test each baseline of `cfg.baselines`; return the folder with baselines.json.

    Raises:
        ConfigError: the config names no baselines.
        DataError: the data cannot be read or breaks a rule.
        StorageError: the results cannot be written.
    """
    if not cfg.baselines:
        raise errors.ConfigError("baselines: this experiment has none; choose a file of configs/baselines")

    from pytorch_lightning import seed_everything

    from train import folder, ranks, screen
    from train.run import make_data, make_model

    seed_everything(cfg.seed, workers=True, verbose=False)
    with ranks.run_id_for_all_ranks(cfg.run_id) as run_id:
        place = folder.RunFolder(Path(cfg.output_dir), f"{cfg.name}-baselines", run_id)
        with place.logging_open():
            datamodule = make_data(cfg)
            place.write_config(cfg)
            place.write_json("provenance.json", folder.provenance(seed=cfg.seed, fingerprint=datamodule.fingerprint))
            screen.show_choices({"run": f"{cfg.name}-baselines/{run_id}", "data": datamodule.summary}, datamodule.notes)
            judge = make_model(cfg, datamodule)
            accounts = {name: test(name, node, judge, datamodule) for name, node in cfg.baselines.items()}
    tested = {str(name): account for name, account in accounts.items() if account}
    place.write_json("baselines.json", tested)
    show(tested, monitor=cfg.monitor, mode=cfg.mode)
    screen.console.print(f"[bold]results[/]  {place.path / 'baselines.json'}", soft_wrap=True)
    return place.path


def test(name: Any, node: DictConfig, judge: Any, datamodule: Any) -> Account | None:
    """Fit and test one baseline; None, and a line that says so, where its package is not installed."""
    from hydra.errors import InstantiationException
    from hydra.utils import instantiate

    from train.screen import console

    started = time.perf_counter()
    try:
        estimator = instantiate(node, _convert_="all")
    except (ModuleNotFoundError, InstantiationException) as error:
        package = missing_package(error)
        if package is None:
            raise
        console.print(f"[yellow]{name} skipped: no package {package!r}; pip install 'fullcycle\\[baselines]'[/]")
        return None
    with console.status(f"baseline {name}"), errors.reporting(errors.DataError):
        metrics = judge.test_baseline(estimator, datamodule)
    account = {"test": metrics, "seconds": time.perf_counter() - started, **searched(estimator)}
    console.print(f"{name}: {time.perf_counter() - started:.0f} s  {described(account)}".rstrip(), soft_wrap=True)
    return account


def missing_package(error: BaseException | None) -> str | None:
    """Name of the package whose absence is behind an error; None for any other error."""
    while error is not None and not isinstance(error, ModuleNotFoundError):
        error = error.__cause__
    return error.name if error is not None else None


def searched(estimator: Any) -> Account:
    """What a scikit-learn search chose and how it did over its folds; nothing of what is no search."""
    if not hasattr(estimator, "best_params_"):
        return {}
    chosen = {name.rpartition("__")[2]: value for name, value in estimator.best_params_.items()}
    most_rows = estimator.get_params().get("estimator__most_rows")
    return {"chosen": chosen, "score_over_folds": float(estimator.best_score_), "most_rows": most_rows}


def described(account: Account) -> str:
    """The search in one line."""
    parts = [f"{name}={value}" for name, value in account.get("chosen", {}).items()]
    if account.get("most_rows"):
        parts.append(f"(fitted to at most {account['most_rows']:,} rows)")
    return " ".join(parts)


def show(accounts: dict[str, Account], *, monitor: str, mode: str) -> None:
    """Print the table, the best first."""
    from train import screen

    metric = monitor.partition("/")[2]
    sign = -1 if mode == "max" else 1
    results = {name: account["test"] for name, account in accounts.items()}
    ordered = dict(sorted(results.items(), key=lambda item: sign * item[1].get(metric, float("nan"))))
    screen.show_results(ordered, ours=next(iter(ordered)), monitor=monitor, mode=mode)


def with_grid(words: list[str]) -> list[str]:
    """Name the experiment's grids, baselines=grid/<experiment>, where there are such and no others are asked for."""
    given = {key: value for key, _, value in (word.partition("=") for word in words)}
    experiment = given.get("experiment")
    if "baselines" in given or not files("configs").joinpath("baselines", "grid", f"{experiment}.yaml").is_file():
        return words
    # Beside the experiment, since Hydra's parser wants all overrides in one row.
    place = words.index(f"experiment={experiment}") + 1
    return [*words[:place], f"baselines=grid/{experiment}", *words[place:]]


@hydra.main(version_base="1.3", config_path="pkg://configs", config_name="baseline")
def main(cfg: DictConfig) -> None:
    """Check the composed config, then fit and test the baselines."""
    with errors.job():
        check(cfg)
        baseline(cfg)


if __name__ == "__main__":
    sys.argv[1:] = with_grid(arguments.in_order(sys.argv[1:]))
    sys.exit(errors.guard(main, "baseline"))
