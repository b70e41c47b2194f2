"""The figures of the chapter on other domains."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from bslib.chapters.domains.results import Domains
from bslib.plotting import (
    BLUE,
    GREY,
    SETTING_STYLE,
    YELLOW,
    drawn_from,
    finish,
    noise_axis,
    panel_grid,
    panels,
    points_with_intervals,
    short_labels,
)

__all__ = ["ratio", "w_by_sigma"]


@drawn_from(Domains.by_sigma)
def w_by_sigma(results: Domains, table: pd.DataFrame) -> Figure:
    """Mean W without and with the trigger against sigma, a panel for each data set."""
    parts = list(table.groupby("data set", sort=False))
    figure, axes = panel_grid(len(parts), 2, height=3)
    for axis, (name, own) in zip(axes, parts, strict=True):
        for (threat, curve), line in zip(own.groupby("threat model", sort=False), ("-", "--"), strict=True):
            for column, colour in (("clean", BLUE), ("with trigger", YELLOW)):
                axis.plot(curve["sigma"], curve[column], f"o{line}", color=colour, markersize=4, label=f"{column}, {threat}")
        axis.set(title=name, xscale="log", xlabel=r"noise level $\sigma$", ylabel="mean of W (nats)", ylim=(0, None))
        ticks = sorted(set(own["sigma"]))
        axis.set_xticks(ticks, short_labels(ticks), fontsize=7)
        axis.minorticks_off()
    axes[0].legend(frameon=False, fontsize=8)
    return finish(figure, axes, results.source, y=None)


@drawn_from(Domains.by_sigma)
def ratio(results: Domains, table: pd.DataFrame) -> Figure:
    """Mean W with the trigger divided by mean W without, against sigma, a panel for each threat model."""
    threats = list(table.groupby("threat model", sort=False))
    sigmas, ticks = sorted(set(table["sigma"])), (0, 0.5, 1, 2, 5, 10, 30, 100)
    figure, axes = panels(len(threats))
    for axis, (threat, rows) in zip(axes, threats, strict=True):
        for k, (name, own) in enumerate(rows.groupby("data set", sort=False)):
            places = np.searchsorted(sigmas, own["sigma"]) + 0.16 * (k - 1.5)
            points_with_intervals(axis, places, own["ratio"], *SETTING_STYLE[k % len(SETTING_STYLE)], str(name))
        axis.axhline(1, color=GREY, linewidth=1)
        axis.set(title=threat, yscale="symlog")
        axis.set_yticks(ticks, short_labels(ticks))
        noise_axis(axis, sigmas)
        axis.minorticks_off()
    axes[0].legend(frameon=False, fontsize=9)
    return finish(figure, axes, results.source, y="W with the trigger / W without")


FIGURES = (w_by_sigma, ratio)
