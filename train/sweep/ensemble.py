"""The ensemble at the end of a sweep: the best trials' models, chosen and weighed on the validation rows only.

It is a finished run, <study>/ensemble, which evaluate, predict and export take as any other.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from train import errors, folder, ranks, screen
from train.checkpoint import BEST
from train.config.finding import seen_from_here
from train.evaluate import one_device, test
from train.run import make_data
from train.screen import console
from train.sweep import best
from train.sweep.candidates import Candidate, candidates
from train.sweep.plan import Plan
from train.sweep.selection import selected
from train.sweep.slots import Slot

FOLDER = "ensemble"
VALIDATION = "val/"

Member = tuple[Candidate, float]  # with its weight


def write(plan: Plan, slots: Sequence[Slot]) -> None:
    """Choose an ensemble among the best trials, make a finished run of it and show it; one that is there stays.

    Raises:
        DataError: the data cannot be read any more.
        StorageError: the folder cannot be written.
    """
    leading = best.leading(plan, slots)[: plan.cfg.ensemble]
    if not leading:
        return
    place, why = plan.folder / FOLDER, obstacle(plan, slots)
    if why is None and not is_known(place, leading, is_to_be_tested=plan.cfg.test):
        with console.status("choosing an ensemble"):
            found, left_out = candidates(plan, leading)
            why = None if found else "; ".join(f"trial {number}: {reason}" for number, reason in left_out.items())
            if found:
                make(plan, place, found, left_out)
    if why is None:
        show(plan, place)
    else:
        console.print(f"No ensemble: {why}", soft_wrap=True, markup=False)


def obstacle(plan: Plan, slots: Sequence[Slot]) -> str | None:
    """Why none can be made now; None where it can."""
    if len(plan.objectives) > 1 or plan.constraints or not plan.objectives[0][0].startswith(VALIDATION):
        return "it is made for one metric of the validation rows, and would keep no constraint."
    if any(slot.state == "running" for slot in slots):
        return "trials are still running elsewhere; the last worker makes it."
    if ranks.num_processes() > 1:
        return "one process makes it: start the same command once more, without torchrun."
    return None


def is_known(place: Path, leading: Sequence[Slot], *, is_to_be_tested: bool) -> bool:
    """Whether the ensemble out of these trials is there; test rows are not read twice."""
    try:
        known = json.loads((place / "result.json").read_text())
    except (OSError, ValueError):
        return False
    is_tested = any(name.startswith("test/") for name in known["metrics"])
    same = sorted([*(one["trial"] for one in known["members"]), *known["passed_over"], *map(int, known["left_out"])])
    return same == sorted(slot.number for slot in leading) and (is_tested or not is_to_be_tested)


def make(plan: Plan, place: Path, found: Sequence[Candidate], left_out: dict[int, str]) -> None:
    """Choose among the candidates and write the run folder, result.json last."""
    members = chosen(plan, found)
    first = members[0][0]
    home = folder.RunFolder(place.parent.parent, place.parent.name, place.name)
    try:
        clear(place)
        datamodule = make_data(first.run.cfg)
        model, metrics = joined(members, datamodule, home.checkpoints / BEST)
        home.write_config(config(first, model))
        home.write_json("provenance.json", folder.provenance(seed=plan.cfg.seed, fingerprint=datamodule.fingerprint))
        if plan.cfg.test:
            metrics |= tested(model, datamodule, place)
        home.write_json("result.json", result(plan, members, found, left_out, model, metrics))
    finally:
        home.release()


def clear(place: Path) -> None:
    """Take away what an older ensemble says of itself."""
    with errors.reporting(errors.StorageError):
        for old in (place / "result.json", *place.glob("*.png")):
            old.unlink(missing_ok=True)


def joined(members: Sequence[Member], datamodule: Any, path: Path) -> tuple[Any, dict[str, float]]:
    """Return the ensemble, calibrated on the validation rows and saved, and its metrics on them."""
    model = members[0][0].model.ensemble([one.model for one, _ in members], [weight for _, weight in members])
    with one_device("cpu") as trainer:
        trainer.validate(model, dataloaders=datamodule.val_dataloader(), verbose=False)
        trainer.save_checkpoint(path, weights_only=True)
        return model.eval(), {name: float(value) for name, value in trainer.callback_metrics.items()}


def tested(model: Any, datamodule: Any, place: Path) -> dict[str, float]:
    """Look at the test rows: return the metrics, and leave the plots; nothing where there are no such rows."""
    loader = datamodule.test_dataloader()
    metrics = test(model, loader, "cpu") if loader else {}
    for name, figure in model.figures(datamodule).items():
        folder.write_picture(place / f"{name}.png", figure)
    return metrics


def chosen(plan: Plan, found: Sequence[Candidate]) -> list[Member]:
    """The members with their weights, in the order of the candidates."""
    (objective, direction), first = plan.objectives[0], found[0]
    metric, sign = objective.removeprefix(VALIDATION), -1 if direction == "minimize" else 1

    def quality(score: Any) -> float:
        return sign * float(first.model.metric_of(dataclasses.replace(first.rows, score=score), metric))

    counts = selected([one.rows.score for one in found], quality)
    return [(one, count / sum(counts)) for one, count in zip(found, counts, strict=True) if count]


def config(first: Candidate, model: Any) -> DictConfig:
    """The config of the run: that of the best member, with the ensemble for its model."""
    cfg: Any = OmegaConf.load(first.run.path / "config.yaml")
    del cfg["defaults"]  # Hydra's
    kind, options = type(model), {name: value for name, value in model.hparams.items() if name != "schema"}
    cfg.model = {"_target_": f"{kind.__module__}.{kind.__qualname__}", "_recursive_": False, **options}
    cfg.run_id = FOLDER
    assert isinstance(cfg, DictConfig)
    return cfg


def result(
    plan: Plan,
    members: Sequence[Member],
    found: Sequence[Candidate],
    left_out: dict[int, str],
    model: Any,
    metrics: dict[str, float],
) -> dict[str, Any]:
    """The content of result.json: that of a run, and what the ensemble is made of."""
    objective, sign = plan.objectives[0][0], -1 if plan.objectives[0][1] == "minimize" else 1
    results = {one.number: one.result() for one in found}
    alone = results[found[0].number]["metrics"][objective]
    taken = [one.number for one, _ in members]
    return {
        "metrics": metrics,
        "intervals_95": {f"test/{name}": interval for name, interval in model.intervals().items()},
        "baselines": results[found[0].number]["baselines"],
        "best": {"monitor": plan.cfg.monitor, "value": metrics[plan.cfg.monitor], "epoch": None},
        "epochs": sum(results[number]["epochs"] for number in taken),
        "steps": sum(results[number]["steps"] for number in taken),
        "members": [
            {"trial": one.number, "run": one.run.path.name, "weight": weight}
            | {objective: results[one.number]["metrics"][objective]}
            for one, weight in members
        ],
        "passed_over": [one.number for one in found if one.number not in taken],
        "left_out": left_out,
        "best_alone": {"trial": found[0].number, objective: alone},
        "gain": sign * (metrics[objective] - alone),
    }


def show(plan: Plan, place: Path) -> None:
    """Print the members, what they gain, and the command that makes one graph of them."""
    known, objective = json.loads((place / "result.json").read_text()), plan.objectives[0][0]
    console.print(f"\n[bold]ensemble[/]  {_words(known, objective)}", soft_wrap=True)
    for number, why in known["left_out"].items():
        console.print(f"  left out: trial {number}: {why}", soft_wrap=True, markup=False)
    of_test = {name: value for name, value in known["metrics"].items() if name.startswith("test/")}
    if of_test:
        screen.show_metrics("test, the ensemble", of_test, known["intervals_95"])
    where = seen_from_here(place)
    console.print(f"  python -m train.export run={where}", soft_wrap=True, markup=False)


def _words(known: dict[str, Any], objective: str) -> str:
    alone, members = known["best_alone"], known["members"]
    before = f"{alone[objective]:.4f}"
    if len(members) == 1:
        others = f"no mean with {len(known['passed_over'])} others is better"
        return f"trial {alone['trial']} alone, {objective} {before}: {others}"
    parts = ", ".join(f"{one['trial']} ({one['weight']:.2f})" for one in members)
    return (
        f"of trials {parts}: {objective} {known['metrics'][objective]:.4f}; trial {alone['trial']} alone has {before}"
    )
