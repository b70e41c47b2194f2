"""The figures of the chapter on mitigations."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bslib.chapters.beyond import nearest
from bslib.chapters.mitigation.results import NO_TREATMENT, Mitigation
from bslib.chapters.outcomes import attack_in_words
from bslib.plotting import GREY, MEAN, SETTING_STYLE, TRIGGER_STYLES, drawn_from, finish, panels, reach

__all__ = ["treatments", "warning"]


@drawn_from(Mitigation.after)
def treatments(mitigation: Mitigation, table: pd.DataFrame) -> Figure:
    """Success, clean accuracy, and W without (hollow) and with the trigger (filled), after each treatment."""
    names = list(dict.fromkeys(table["treatment"]))
    figure, axes = panels(3, height=0.36 * len(names) + 1.2)
    groups = list(table.groupby("attack", sort=False))
    for k, (attack, own) in enumerate(groups):
        colour, marker = SETTING_STYLE[k % len(SETTING_STYLE)]
        rows = np.array([names.index(name) for name in own["treatment"]]) + 0.22 * (k - (len(groups) - 1) / 2)
        for axis, name in zip(axes, ("success", "accuracy", "W with"), strict=True):
            _lying(axis, own[name], rows, colour, marker, attack_in_words(str(attack)))
        _lying(axes[2], own["W without"], rows, colour, marker, None, hollow=True)
    sigma = nearest(mitigation.size.sigmas)
    for axis, title in zip(axes, ("success", "clean accuracy", rf"mean of W (nats), $\sigma$ = {sigma:g}"), strict=True):
        axis.set_title(title, fontsize=10)
        axis.axhline(names.index(NO_TREATMENT) + 0.5, color=GREY, linewidth=0.8)
    axes[0].set_yticks(range(len(names)), names, fontsize=9)
    axes[0].set_ylim(len(names) - 0.5, -0.5)
    axes[0].set_xlim(-0.03, 1.03)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=3, frameon=False, fontsize=9)
    return finish(figure, axes, mitigation.source, y=None)


def _lying(
    axis: Axes, estimates: pd.Series[Any], rows: np.ndarray, colour: str, marker: str, label: str | None, hollow: bool = False
) -> None:
    """Points with horizontal intervals."""
    values = [e.value for e in estimates]
    style: dict[str, Any] = {"markerfacecolor": "white" if hollow else colour, "color": colour, "markersize": 4.5, "linewidth": 1}
    axis.errorbar(values, rows, xerr=reach(estimates), fmt=marker, capsize=1.5, label=label, **style)


@drawn_from(Mitigation.paths)
def warning(mitigation: Mitigation, table: pd.DataFrame) -> Figure:
    """Success against mean W with the trigger, one line a network, from no treatment (filled) to the largest learning rate."""
    attacks = list(table.groupby("attack", sort=False))
    figure, axes = panels(len(attacks), height=3.3)
    for axis, (attack, own) in zip(axes, attacks, strict=True):
        for k, (_, path) in enumerate(own.groupby("network", sort=False)):
            colour, marker = TRIGGER_STYLES[k % len(TRIGGER_STYLES)]
            w, success = path["W"], path["success"]
            axis.plot(w, success, marker=marker, markersize=4.5, linewidth=1, color=colour, markerfacecolor="white")
            axis.plot(w.iloc[:1], success.iloc[:1], marker=marker, markersize=6, color=colour)
            axis.plot(w[path["warns"]], success[path["warns"]], "o", markersize=11, fillstyle="none", color=MEAN)
        axis.set_title(attack_in_words(str(attack)), fontsize=10)
        axis.set(xlabel="mean of W (nats)", ylim=(min(0.85, own["success"].min() - 0.01), 1.005))
        axis.tick_params(labelsize=8)
    return finish(figure, axes, mitigation.source, y="success of the trigger")


FIGURES = (treatments, warning)
