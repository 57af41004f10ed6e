"""The story of one export: open the run, prune, write graphs, quantize, hold the contest, bundle, sign, publish."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig

from train import errors, screen
from train.bundle import digest, write
from train.export import card, contest, gate, greedy, prune, report
from train.export.contest import FLOAT32, Outcome, Variant
from train.export.session import described
from train.export.source import Source, open_source
from train.folder import write_json, write_text

if TYPE_CHECKING:
    from train.envelope import Envelope
    from train.keys import SigningKey


def export(cfg: DictConfig) -> Path:
    """Turn a finished run into a bundle, and publish it where that is asked for; return the bundle's folder.

    Raises:
        ConfigError: there is no such run, its model cannot do what is asked for, or a key, bucket or credentials are
            missing.
        DataError: the data cannot be read, or are not those of the run.
        GateError: the graph is not sound or differs from torch: nothing is exported.
        StorageError: the run is not finished, or the bundle cannot be written or published.
        TrustError: a key cannot be trusted.
    """
    signer, sealer = keys(cfg)  # first: an hour of measuring is not lost for a missing key
    source = open_source(cfg.run, cfg.data)
    if cfg.greedy:
        greedy.check(source.model)
    place = source.run.path / "export"
    output = Path(cfg.output).expanduser().absolute() if cfg.output else place / "bundle"
    with errors.reporting(errors.StorageError):
        place.mkdir(exist_ok=True)
        check_output(output)
    with tempfile.TemporaryDirectory(prefix=".work-", dir=place) as work, screen.console.status("exporting") as status:
        # Where no spinner turns, in a log, a line each tells that it has not stopped.
        tell = status.update if screen.console.is_terminal else screen.console.print
        outcome = hold(source, cfg, Path(work), place, tell)
        tell(f"testing {outcome.winner}")
        tested = test(source, outcome, Path(work))
        folder = Path(work) / "bundle"
        files(folder, source, outcome, tested, cfg)
        write(folder, about(source, outcome), key=signer, envelope=sealer)
        replace(output, folder)
        told = place / "report.md" if cfg.output is None else output.with_name(f"{output.name}-report.md")
        report.write(told, source, outcome, cfg)
        status.stop()
        report.show(source, outcome, output, told, signed=signer is not None)
    if cfg.publish is not None:
        publish(output, cfg.publish)
    return output


def keys(cfg: DictConfig) -> tuple[SigningKey | None, Envelope | None]:
    """Return what signs and what encrypts, as far as they are asked for; see that the store is there.

    Raises:
        ConfigError: a key, bucket or credentials are not there, or publishing is asked for without signing.
        StorageError: the store is away.
        TrustError: a key can be read by others.
    """
    from train.envelope import envelope_of
    from train.keys import signing_key
    from train.objects.place import open_objects
    from train.registry import pointers

    if cfg.publish is not None and not cfg.sign:
        raise errors.ConfigError("publish: only a signed bundle is published; leave sign=false out")
    if cfg.master_key is not None and not cfg.encrypt:
        raise errors.ConfigError("master_key is given, but nothing is encrypted: add encrypt=true or leave it out")
    if cfg.publish is not None:
        pointers.read(open_objects(cfg.publish), "latest")  # is the store there, and may we read it?
    return signing_key(cfg.key) if cfg.sign else None, envelope_of(cfg.master_key) if cfg.encrypt else None


def check_output(output: Path) -> None:
    """Raise ConfigError where `output` is something else than an earlier bundle or nothing."""
    if (
        output.exists()
        and not (output / "manifest.json").is_file()
        and not (output.is_dir() and not any(output.iterdir()))
    ):
        raise errors.ConfigError(f"output: {str(output)!r} is there and is no bundle; give another folder")
    if not output.parent.is_dir():
        raise errors.ConfigError(f"output: there is no folder {str(output.parent)!r}")


def hold(source: Source, cfg: DictConfig, work: Path, place: Path, tell: Callable[[str], Any]) -> Outcome:
    """Make the variants that the config asks for, and let all candidates of them compete."""
    tell("writing the graph")
    variants = [with_greedy(source, contest.make_variant(source, FLOAT32, source.model, work), cfg, work)]
    ratio = cfg.prune.ratio
    if ratio == "search":
        ratio = largest_ratio(source, variants[0], cfg, work, place, tell)
    if ratio:
        tell(f"pruning {ratio:.0%} of the units")
        variants.append(with_greedy(source, pruned_variant(source, ratio, cfg, work, place), cfg, work))
    return contest.hold(source, variants, cfg, work, tell)


def with_greedy(source: Source, variant: Variant, cfg: DictConfig, work: Path) -> Variant:
    """Return the variant with the graph that writes by itself where that is asked for."""
    if not cfg.greedy:
        return variant
    files = contest.whole_files(variant.graphs, work, variant.name)
    return greedy.beside(source, variant, files, work / f"{variant.name}.{greedy.NAME}.onnx")


def pruned_variant(source: Source, ratio: float, cfg: DictConfig, work: Path, place: Path) -> Variant:
    """Prune, fine-tune and write the graph of what is left."""
    settings = {str(key): value for key, value in cfg.prune.items()}
    model = prune.pruned(source, ratio, settings, place / "pruned")  # type: ignore[arg-type]
    return contest.make_variant(source, f"pruned_{100 * ratio:g}", model, work)


def largest_ratio(
    source: Source, base: Variant, cfg: DictConfig, work: Path, place: Path, tell: Callable[[str], Any]
) -> float:
    """Search the largest share of units that the gate allows to take out; 0 where it allows none."""
    reference = contest.scored(source, base, base.cores)
    if reference is None:
        return 0.0
    name = f"test/{source.metric}"

    def passes(ratio: float) -> bool:
        tell(f"trying without {ratio:.0%} of the units")
        tried = pruned_variant(source, ratio, cfg, work, place)
        found = contest.scored(source, tried, tried.cores)
        assert found is not None
        drop = gate.drop_of(reference.metrics[name], found.metrics[name], source.cfg.mode)
        return drop <= float(cfg.gate.max_drop) * getattr(source.model, "metric_range", 1.0)

    return prune.largest(passes)


def test(source: Source, outcome: Outcome, work: Path) -> dict[str, Any]:
    """Score the winner, and nothing else, on the test rows through ONNX Runtime; return metrics, intervals, card."""
    winner = outcome.entries[outcome.winner]
    model, loader = winner.variant.model, source.datamodule.test_dataloader()
    found: dict[str, Any] = {"metrics": {}, "intervals_95": {}}
    if loader:
        found["metrics"] = gate.score(model, loader, contest.opened(winner.cores)).metrics
        found["intervals_95"] = {f"test/{name}": list(interval) for name, interval in model.intervals().items()}
    return found | {"card": model.card()}


def files(folder: Path, source: Source, outcome: Outcome, tested: dict[str, Any], cfg: DictConfig) -> None:
    """Write what the bundle holds; nothing of it depends on the clock or the machine."""
    winner = outcome.entries[outcome.winner]
    with errors.reporting(errors.StorageError):
        folder.mkdir()
        for name, path in winner.made.files.items():
            shutil.copyfile(path, folder / f"{name}.onnx")
        if winner.variant.greedy is not None:
            shutil.copyfile(winner.variant.greedy.path, folder / f"{greedy.NAME}.onnx")
        shutil.copyfile(source.run.path / "config.yaml", folder / "config.yaml")
    write_json(folder / "schema.json", winner.variant.model.schema)
    write_json(folder / "metrics.json", report.metrics(source, outcome, tested))
    write_text(folder / "model_card.md", card.text(source, outcome, tested, cfg))


def about(source: Source, outcome: Outcome) -> dict[str, Any]:
    """Return what the manifest says beside its files."""
    winner = outcome.entries[outcome.winner]
    graphs = {
        f"{name}.onnx": {"made": outcome.winner, **described(session)}
        for name, session in contest.opened(winner.made.files).items()
    }
    if winner.variant.greedy is not None:
        graphs[f"{greedy.NAME}.onnx"] = {"made": winner.variant.name, **winner.variant.greedy.sizes}
    return {
        "name": str(source.cfg.name),
        "run": source.run.path.name,
        "data_fingerprint": source.provenance["data_fingerprint"],
        "config_sha256": digest((source.run.path / "config.yaml").read_bytes()),
        "graphs": graphs,
    }


def replace(output: Path, folder: Path) -> None:
    """Put a new bundle in its place, whole or not at all; an older one goes when the new one is there.

    Raises:
        StorageError: it cannot be written there; what was there is there still.
    """
    new, old = (output.with_name(f".{output.name}.{os.getpid()}.{which}") for which in ("new", "old"))
    try:
        shutil.copytree(folder, new)  # perhaps onto another disk: only a rename is all or nothing
        if output.exists():
            os.replace(output, old)
        os.replace(new, output)
    except OSError as error:
        # copytree tells of all files at once, as (source, target, reason).
        reason = error.args[0][0][2] if isinstance(error, shutil.Error) else error
        raise errors.StorageError(
            f"could not write the bundle {output}: {reason}. Make room, or give another folder with output=FOLDER"
        ) from error
    finally:
        if old.exists() and not output.exists():
            os.replace(old, output)
        for aside in (new, old):
            shutil.rmtree(aside, ignore_errors=True)


def publish(bundle: Path, uri: str) -> None:
    """Publish the bundle as the next version, and say so; what goes wrong says how to go on."""
    from train.registry.publish import publish as put

    try:
        version = put(
            bundle, uri, tell=lambda line: screen.console.print(f"[bold]published[/]  {line}", soft_wrap=True)
        )
    except errors.UserError as error:
        again = f"python -m train.registry publish {uri} {bundle}"
        raise type(error)(f"{error}\nThe bundle itself is whole. To publish it: {again}") from error
    screen.console.print(f"  python -m train.registry promote {uri} {version}", soft_wrap=True)
