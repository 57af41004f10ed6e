"""The story of one run: seed, data, model, trainer, fit, test on the best checkpoint, record."""

import logging
import re
import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from hydra.utils import instantiate
from matplotlib.figure import Figure
from omegaconf import DictConfig, OmegaConf
from pytorch_lightning import LightningDataModule, Trainer, seed_everything
from pytorch_lightning.callbacks import Callback, EarlyStopping
from pytorch_lightning.loggers import TensorBoardLogger

from train import checkpoint, errors, failures, folder, ranks, resume, screen, strategies
from train.checkpoint import AtomicCheckpointIO, Checkpoints
from train.mirror import Mirror
from train.preflight import Preflight
from train.telemetry import Telemetry
from train.watchdog import Watchdog

log = logging.getLogger(__name__)

Metrics = dict[str, float]


class Reporting(Protocol):
    """What a module tells of its last test, beside what it logs."""

    def intervals(self) -> dict[str, tuple[float, float]]:
        """Return 95 % intervals of test metrics."""

    def figures(self, datamodule: Any) -> dict[str, Figure]:
        """Return plots, by file name."""

    def write_summaries(self, writer: Any, step: int) -> None:
        """Write the domain's own entries to TensorBoard."""

    def test_baseline(self, baseline: Any, datamodule: Any) -> Metrics:
        """Fit a baseline on the training rows; return its test metrics, as the module's own are made."""


@dataclass(frozen=True)
class Result:
    """What a run came to.

    Attributes:
        folder: the run folder.
        metrics: "split/name" to value, of the best checkpoint.
        baselines: name to test metrics.
    """

    folder: Path
    metrics: Metrics
    baselines: dict[str, Metrics]


def run(cfg: DictConfig, *, testing: bool = True, datamodule: Any = None, callbacks: Sequence[Callback] = ()) -> Result:
    """Train and test the experiment that `cfg` describes, in a run folder of its own.

    Args:
        cfg: a checked config.
        testing: whether the test rows are looked at; not by a run whose result others are chosen by.
        datamodule: that of `cfg.data`, set up by an earlier run; None to make it.
        callbacks: further ones.

    Raises:
        ConfigError: the model cannot be made so, or the run folder has checkpoints of another experiment.
        DataError: the data cannot be read or breaks a rule.
        DivergedError: the loss is not finite.
        PeerLostError: another process of the run failed, was lost or hung.
        PreflightError: a check of the machines failed.
        StoppedError: a signal asked it to stop, and it has saved.
        StorageError: a checkpoint or the result cannot be written.
    """
    started = time.perf_counter()
    with ranks.run_id_for_all_ranks(cfg.run_id) as run_id:
        place = folder.RunFolder(Path(cfg.output_dir), cfg.name, run_id)
        with (
            place.logging_open(),
            failures.reported(place),
            errors.reporting_interrupt(f"Interrupted. Go on with:\n  {resume.command(run_id)}"),
            resume.mirror_of(cfg, place) as mirror,
        ):
            seed_everything(cfg.seed, workers=True, verbose=False)
            set_precision()
            datamodule = datamodule or make_data(cfg)
            model = make_model(cfg, datamodule)
            if cfg.weights is not None:
                checkpoint.load_weights(model, Path(cfg.weights))
            trainer, parts = make_trainer(cfg, place, datamodule.fingerprint, mirror, callbacks)
            newest = resume.find_checkpoint(cfg, place, mirror, trainer, model, fingerprint=datamodule.fingerprint)
            if trainer.is_global_zero:
                introduce(cfg, place, datamodule, trainer)
                if mirror is not None:
                    mirror.offer(place.path / "config.yaml")
            fitting = time.perf_counter()
            trainer.fit(model, datamodule=datamodule, ckpt_path=newest, weights_only=True)
            fitted = time.perf_counter()
            best = parts.checkpoints.best_path
            metrics = test(trainer, model, datamodule, best, testing=testing)
            strategies.gather(model)
            if not trainer.is_global_zero:
                return Result(place.path, metrics, {})
            baselines = test_baselines(cfg, model, datamodule)
            seconds = {"setup": fitting - started, "fit": fitted - fitting, "total": time.perf_counter() - started}
            record(cfg, place, trainer, model, datamodule, parts, metrics, baselines, seconds)
            return Result(place.path, metrics, baselines)


def set_precision() -> None:
    """Let floats be as precise as training needs: TF32 where there is a GPU, and nothing below 1e-38 on a CPU.

    Numbers as small as that come from the far tail of GELU and of softmax, and processors compute with them many times
    slower. Threads take this over from the one that starts them: before the first parallel operation, therefore.
    """
    torch.set_flush_denormal(True)
    torch.set_float32_matmul_precision("high")


def make_data(cfg: DictConfig) -> Any:
    """Make the data module and set it up. Raises ConfigError for its arguments, DataError for what they lead to."""
    with errors.reporting(errors.ConfigError):
        datamodule: LightningDataModule = instantiate(cfg.data, _convert_="all")
    with errors.reporting(errors.DataError):
        datamodule.prepare_data()
        datamodule.setup("fit")
        return datamodule


def make_model(cfg: DictConfig, datamodule: Any) -> Any:
    """Make the model of these data. Raises ConfigError for its arguments, sizes beyond the memory among them."""
    try:
        with errors.reporting(errors.ConfigError):
            return instantiate(cfg.model, _partial_=True, _convert_="all")(schema=datamodule.schema)
    except (RuntimeError, TypeError) as error:
        if re.search("allocate memory|out of memory|overflow", str(error), re.IGNORECASE):
            reason = str(error).splitlines()[0]
            raise errors.ConfigError(f"model: its sizes ask for more memory than there is ({reason})") from error
        raise


@dataclass(frozen=True)
class Parts:
    """The callbacks that the record asks afterwards."""

    telemetry: Telemetry
    checkpoints: Checkpoints


def make_trainer(
    cfg: DictConfig, place: folder.RunFolder, fingerprint: str, mirror: Mirror | None, further: Sequence[Callback]
) -> tuple[Trainer, Parts]:
    """Make Lightning's trainer with our callbacks, logger and checkpoint writer."""
    telemetry = Telemetry(place.checkpoints)
    settings = {**cfg.checkpoint, "mirror": mirror}
    checkpoints = Checkpoints(place.checkpoints, monitor=cfg.monitor, mode=cfg.mode, **settings)
    watchdog = Watchdog(seconds=cfg.watchdog_seconds, log_file=place.log)
    callbacks: list[Callback] = [
        Preflight(cfg, place, fingerprint),
        watchdog,
        telemetry,
        screen.Bar(telemetry, cfg.monitor),
        *further,
    ]
    if cfg.patience is not None:
        callbacks.append(
            EarlyStopping(cfg.monitor, mode=cfg.mode, patience=cfg.patience, strict=False, check_finite=False)
        )
    trainer = instantiate(
        {**cfg.trainer, **launched(cfg)},
        callbacks=[*callbacks, checkpoints],
        logger=TensorBoardLogger(place.path, name="", version="", default_hp_metric=False),
        plugins=[AtomicCheckpointIO()],
        default_root_dir=str(place.path),
        enable_progress_bar=False,
        enable_model_summary=False,
        log_every_n_steps=1,  # epochs' metrics only go through Lightning; steps' are Telemetry's
    )
    strategies.calm(trainer)
    if trainer.world_size > 1 and ranks.multirun_number() is not None:
        raise errors.ConfigError(
            f"--multirun: each job would start {trainer.world_size} processes, and each of those the whole --multirun; "
            "start the jobs one by one, or with trainer.devices=1"
        )
    return trainer, Parts(telemetry, checkpoints)


def launched(cfg: DictConfig) -> dict[str, int]:
    """Return the trainer's devices and nodes as torchrun or srun has started them.

    Raises:
        ConfigError: `trainer.devices` asks for another number.
    """
    found, asked = ranks.processes(), cfg.trainer.devices
    if found and isinstance(asked, int) and asked != found["devices"]:
        raise errors.ConfigError(
            f"trainer.devices is {asked}, but {found['devices']} process(es) were started on each node: leave it out "
            "(trainer=ddp does), or have torchrun or srun start that many"
        )
    return found


def introduce(cfg: DictConfig, place: folder.RunFolder, datamodule: Any, trainer: Trainer) -> None:
    """Write what is known before training, and show the choices."""
    place.point_latest()
    place.write_config(cfg)
    place.write_json("provenance.json", folder.provenance(seed=cfg.seed, fingerprint=datamodule.fingerprint))
    model = {key: value for key, value in cfg.model.items() if key != "_target_"}
    choices = {
        "run": f"{cfg.name}/{place.run_id}",
        "data": datamodule.summary,
        "model": f"{cfg.model._target_.rpartition('.')[2]} " + " ".join(f"{k}={v}" for k, v in model.items()),
        "trainer": f"{trainer.num_devices} {trainer.accelerator.__class__.__name__.removesuffix('Accelerator')}, "
        f"{trainer.max_epochs} epochs at most, seed {cfg.seed}",
    }
    screen.show_choices(choices, datamodule.notes)
    for key, value in choices.items():
        log.info("%s: %s", key, value)


def test(trainer: Trainer, model: Any, datamodule: Any, best: Path | None, *, testing: bool) -> Metrics:
    """Validate and test the best checkpoint; return the metrics of both splits, as far as they have rows."""
    metrics: Metrics = {}
    verbs = [(trainer.validate, datamodule.val_dataloader())]
    verbs += [(trainer.test, datamodule.test_dataloader())] if testing else []
    for evaluate in (verb for verb, loader in verbs if loader):
        evaluate(model, datamodule=datamodule, ckpt_path=best, verbose=False, weights_only=True)
        metrics.update({name: float(value) for name, value in trainer.callback_metrics.items()})
    return metrics


def test_baselines(cfg: DictConfig, model: Reporting, datamodule: Any) -> dict[str, Metrics]:
    """Fit and test each baseline of the config on the same rows; one that cannot be is told, and costs no run."""
    results = {}
    for name, node in (cfg.baselines or {}).items():
        with screen.console.status(f"baseline {name}"):
            try:
                results[name] = model.test_baseline(instantiate(node), datamodule)
            except ValueError as error:
                log.warning("baseline %s is left out: %s", name, error)
    return results


def record(
    cfg: DictConfig,
    place: folder.RunFolder,
    trainer: Trainer,
    model: Reporting,
    datamodule: Any,
    parts: Parts,
    metrics: Metrics,
    baselines: dict[str, Metrics],
    seconds: dict[str, float],
) -> None:
    """Write plots, TensorBoard's closing entries and, last, result.json; show the results."""
    writer = trainer.logger.experiment  # type: ignore[union-attr]
    for name, figure in model.figures(datamodule).items():
        picture = folder.write_picture(place.path / f"{name}.png", figure)
        writer.add_image(f"figures/{name}", picture, trainer.global_step, dataformats="HWC")
    model.write_summaries(writer, trainer.global_step)
    write_summaries(cfg, trainer, metrics)
    result: Mapping[str, Any] = {
        "metrics": metrics,
        "intervals_95": {f"test/{name}": interval for name, interval in model.intervals().items()},
        "baselines": baselines,
        "best": {"monitor": cfg.monitor, "value": parts.checkpoints.best_score, "epoch": parts.checkpoints.best_epoch},
        "epochs": trainer.current_epoch,
        "steps": trainer.global_step,
        "seconds": {**seconds, "checkpoints": parts.checkpoints.seconds_saving},
        **parts.telemetry.meters.rates(),
    }
    place.write_json("result.json", result)
    screen.show_test(cfg, metrics, baselines)
    screen.show_next(place.path)


def write_summaries(cfg: DictConfig, trainer: Trainer, metrics: Metrics) -> None:
    """Close TensorBoard's account: the hyperparameters with the final metrics, and the config as text."""
    assert isinstance(trainer.logger, TensorBoardLogger)
    plain = OmegaConf.to_container(cfg, resolve=True)
    assert isinstance(plain, dict)
    chosen = {key: plain[key] for key in ("model", "data", "trainer", "seed")}
    trainer.logger.log_hyperparams(chosen, metrics, step=trainer.global_step)
    trainer.logger.experiment.add_text("config", f"```yaml\n{OmegaConf.to_yaml(cfg, resolve=True)}```")
    with warnings.catch_warnings(action="ignore"):
        trainer.logger.save()
