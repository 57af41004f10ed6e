"""Plots of the keys of a search: which of them matter, and which of their values are good."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from optuna.distributions import CategoricalDistribution
from optuna.importance import FanovaImportanceEvaluator, get_param_importances
from optuna.trial import FrozenTrial

from train.sweep import best, winners
from train.sweep.canvas import BLUE, GREY, RED, SHADES, Scale, grid, short_key
from train.sweep.plan import Plan
from train.sweep.slots import Slot
from train.sweep.space import Parameter

log = logging.getLogger(__name__)

FEWEST = 4  # complete trials that an importance can be told from
_ABSENT = -0.12  # where a key that did not count is drawn


def importance(plan: Plan, slots: Sequence[Slot]) -> Figure | None:
    """How much of what the trials came to each key explains, by functional ANOVA (Hutter et al., ICML 2014).

    Not Optuna's default, PED-ANOVA: of the 30 trials of an ordinary sweep that named keys that did nothing.
    """
    found = {metric: importances(plan, slots, index) for index, (metric, _) in enumerate(plan.objectives)}
    found = {metric: shares for metric, shares in found.items() if shares}
    if not found:
        return None
    num_trials = sum(slot.state == "complete" for slot in slots)
    height = 1.3 + 0.28 * max(map(len, found.values()))
    figure, panels = grid(len(found), columns=2, width=5.6, height=height)
    for axes, (metric, shares) in zip(panels, found.items(), strict=True):
        keys = list(shares)[::-1]
        bars = axes.barh(keys, [shares[key] for key in keys], color=BLUE, height=0.65)
        axes.bar_label(bars, [f"{shares[key]:.2f}" for key in keys], padding=3, fontsize=8)
        title = f"importance for {metric}, by {num_trials} trials"
        axes.set(title=title, xlabel="share", xlim=(0, max(shares.values()) * 1.15))
        axes.grid(visible=False, axis="y")
    return figure


def importances(plan: Plan, slots: Sequence[Slot], objective: int) -> dict[str, float]:
    """The share of each key in the variance that the keys explain, largest first; empty where none can be told.

    A key that counts only with some values of others explains a part of the variance among the trials that have it.
    """
    complete = [slot.trial for slot in slots if slot.state == "complete" and slot.trial is not None]
    found: dict[str, float] = {}
    total = _variation(complete, objective)
    always = [key for key in _keys(plan, complete) if all(key in trial.params for trial in complete)]
    for keys in [always, *([*always, key] for key in _keys(plan, complete) if key not in always)]:
        own = [trial for trial in complete if all(key in trial.params for key in keys)]
        if keys and len(own) >= FEWEST and _variation(own, objective) > 0:
            part = _variation(own, objective) / total
            shares = _fanova(plan, own, keys, objective)
            found |= {key: part * share for key, share in shares.items() if key not in found}
    if sum(found.values()) == 0:
        log.info("no plot of importance: it needs %d complete trials that differ, there are %d", FEWEST, len(complete))
        return {}
    return {key: found[key] / sum(found.values()) for key in sorted(found, key=found.__getitem__, reverse=True)}


def _keys(plan: Plan, trials: Sequence[FrozenTrial]) -> list[str]:
    return [one.key for one in plan.space.parameters if any(one.key in trial.params for trial in trials)]


def _variation(trials: Sequence[FrozenTrial], objective: int) -> float:
    values = np.array([trial.values[objective] for trial in trials])
    return float(((values - values.mean()) ** 2).sum()) if len(values) else 0.0


def _fanova(plan: Plan, trials: Sequence[FrozenTrial], keys: list[str], objective: int) -> dict[str, float]:
    study = best.as_optuna(plan, [Slot(number, (trial,)) for number, trial in enumerate(trials)])
    evaluator = FanovaImportanceEvaluator(seed=0)
    with warnings.catch_warnings(action="ignore"):
        return dict(
            get_param_importances(
                study, evaluator=evaluator, params=keys, target=lambda trial: float(trial.values[objective])
            )
        )


def parallel_coordinates(plan: Plan, slots: Sequence[Slot]) -> Figure | None:
    """One line a complete trial across all keys, coloured by the first objective."""
    shown = best.leading(plan, slots)[::-1]
    if not shown:
        return None
    parameters, (metric, direction) = plan.space.parameters, plan.objectives[0]
    scales = [Scale(parameter.distribution) for parameter in parameters]
    values = [slot.results[0] for slot in shown]
    shade = Normalize(min(values), max(values) if max(values) > min(values) else min(values) + 1e-9)
    shades = colormaps[f"{SHADES}_r" if direction == "maximize" else SHADES]  # the better the darker
    figure, (axes,) = grid(1, width=max(6.4, 1.3 * len(parameters) + 1.5), height=4.4)
    for slot, value in zip(shown, values, strict=True):
        chosen = winners.values(slot)
        y = [
            scale.place(chosen[one.key]) if one.key in chosen else _ABSENT
            for one, scale in zip(parameters, scales, strict=True)
        ]
        style: dict[str, Any] = (
            {"color": RED, "lw": 2.4} if slot is shown[-1] else {"color": shades(shade(value)), "lw": 1}
        )
        axes.plot(
            range(len(y)), y, marker="." if len(y) > 1 else "o", alpha=0.95 if slot is shown[-1] else 0.6, **style
        )
    _name_axes(axes, parameters, scales)
    axes.set_title(f"complete trials; the best, {shown[-1].number}, in red", fontsize=10)
    figure.colorbar(ScalarMappable(shade, shades), ax=axes, label=metric, pad=0.01)
    return figure


def _name_axes(axes: Axes, parameters: Sequence[Parameter], scales: Sequence[Scale]) -> None:
    """Draw one upright line a key, its values beside it."""
    axes.grid(visible=False)
    axes.spines[["left", "bottom"]].set_visible(False)
    axes.set_yticks([])
    has_absent = any(parameter.when for parameter in parameters)
    axes.set(xlim=(-0.3, len(parameters) - 0.4), ylim=(_ABSENT - 0.05 if has_absent else -0.04, 1.04))
    axes.set_xticks(
        range(len(parameters)), [parameter.key.replace(".", ".\n", 1) for parameter in parameters], fontsize=8
    )
    for x, scale in enumerate(scales):
        axes.axvline(x, ymin=0.02, color=GREY, lw=0.8, zorder=0)
        for place, text in zip(*scale.ticks(), strict=True):
            box = {"facecolor": "white", "alpha": 0.75, "edgecolor": "none", "pad": 0.6}
            axes.text(x + 0.04, place, text, fontsize=7, va="center", zorder=5, bbox=box)
        if parameters[x].when:
            axes.text(x + 0.04, _ABSENT, "not used", fontsize=7, va="center", color=GREY, zorder=5)


def slices(plan: Plan, slots: Sequence[Slot]) -> Figure | None:
    """Each objective against the values of each key."""
    complete = [slot for slot in slots if slot.state == "complete"]
    leader = best.best(plan, slots)
    if not complete:
        return None
    pairs = [(index, parameter) for index in range(len(plan.objectives)) for parameter in plan.space.parameters]
    figure, panels = grid(len(pairs), columns=4, width=3.1, height=2.7)
    for axes, (index, parameter) in zip(panels, pairs, strict=True):
        _slice(axes, parameter, complete, [slot.results[index] for slot in complete])
        if leader is not None and parameter.key in winners.values(leader):
            place = Scale(parameter.distribution).place(winners.values(leader)[parameter.key])
            axes.plot(place, leader.results[index], "*", color=RED, ms=11, zorder=4)
        axes.set_xlabel(short_key(parameter.key), fontsize=9)
        axes.set_ylabel(plan.objectives[index][0].rpartition("/")[2].replace("_", " "), fontsize=8)
    figure.suptitle("complete trials, the later the darker; the best is the star", fontsize=10)
    return figure


def _slice(axes: Axes, parameter: Parameter, slots: Sequence[Slot], values: Sequence[float]) -> None:
    scale = Scale(parameter.distribution)
    own = [(slot, value) for slot, value in zip(slots, values, strict=True) if parameter.key in winners.values(slot)]
    x = np.array([scale.place(winners.values(slot)[parameter.key]) for slot, _ in own])
    if isinstance(parameter.distribution, CategoricalDistribution):  # else the points of a choice hide each other
        x = x + 0.03 * np.cos(2.4 * np.arange(len(own)))
    order = [slot.number for slot, _ in own]
    lightest = -0.6 * (slots[-1].number + 1)
    axes.scatter(x, [value for _, value in own], c=order, cmap="Blues", vmin=lightest, s=20, zorder=3)
    places, names = scale.ticks()
    axes.set_xticks(places, names, fontsize=8, rotation=30 if sum(map(len, names)) > 24 else 0)
    axes.tick_params(axis="y", labelsize=8)
    axes.set_xlim(-0.08, 1.08)
