"""The figures of the chapter on success and W (Fig. 5)."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from bslib.chapters.correlation.pairs import correlations, residuals
from bslib.chapters.correlation.results import Correlation
from bslib.plotting import (
    GREY,
    MEDIAN,
    SETTING_STYLE,
    drawn_from,
    finish,
    panels,
    points_with_intervals,
    scatter_pairs,
    short_labels,
)

__all__ = ["correlation_by_setting", "success_against_w", "success_within"]


def _pairs(correlation: Correlation) -> pd.DataFrame:
    pairs = correlation.pairs().assign(kept=lambda own: own["success"] >= correlation.random_guess)
    return pairs[["network", "trigger", "class", "success", "images", "W", "clean W", "kept"]]


@drawn_from(_pairs)
def success_against_w(correlation: Correlation, table: pd.DataFrame) -> Figure:
    """Fig. 5: success against mean W of triggered images, one point per pair; pairs that are left out are hollow."""
    found, sigma = correlations(correlation.pairs(), correlation.random_guess), correlation.size.sigmas[0]
    figure, axes = panels(1)
    scatter_pairs(axes[0], table, "W", "success", hollow=~table["kept"])
    axes[0].axhline(correlation.random_guess, color=GREY, linewidth=1, linestyle=":")
    axes[0].annotate(
        "random\nguess", (1.01, correlation.random_guess), xycoords=("axes fraction", "data"), va="center", fontsize=8
    )
    axes[0].set(xlabel=rf"mean of W with the trigger (nats), $\sigma$ = {sigma:g}", ylim=(-0.03, 1.03))
    left, right = axes[0].get_xlim()
    axes[0].set_xlim(max(left, -0.03), max(right, 0.2))  # W is not negative, and a single pair needs a scale
    measures = (
        f"{name} = {found[key].value:.2f} (p = {found[f'{key} p']:.1g})" for name, key in ((r"$\tau$", "tau"), ("r", "r"))
    )
    counted = f"{found['pairs']} pair{'s' * (found['pairs'] != 1)}, {found['left out']} left out"
    defined = np.isfinite(found["tau"].value)
    title = f"{', '.join(measures)}; {counted}" if defined else f"{counted}: no correlation"
    axes[0].set_title(title.replace("-", "\N{MINUS SIGN}"), fontsize=10)
    axes[0].legend(frameon=False, fontsize=9, loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=2)
    return finish(figure, axes, correlation.source, y="success of the trigger")


@drawn_from(Correlation.sensitivity)
def correlation_by_setting(correlation: Correlation, table: pd.DataFrame) -> Figure:
    """Kendall's tau and Pearson's r at every noise level, for two numbers of noisy copies and three exclusion rules."""
    figure, axes = panels(2)
    settings = list(table.groupby(["n", "exclude below"], sort=False))
    for k, ((n, below), own) in enumerate(settings):
        places = np.arange(len(own)) + 0.14 * (k - (len(settings) - 1) / 2)
        label = f"n = {n}, {f'below {below:g} left out' if below else 'none left out'}"
        for axis, name in zip(axes, ("tau", "r"), strict=True):
            points_with_intervals(axis, places, own[name], *SETTING_STYLE[k % len(SETTING_STYLE)], label)
    for axis, title in zip(axes, (r"Kendall's $\tau$", "Pearson's r"), strict=True):
        axis.axhline(0, color=MEDIAN, linewidth=1)
        axis.set(xlabel=r"noise level $\sigma$", title=title)
        axis.set_xticks(range(len(correlation.sigmas)), short_labels(correlation.sigmas), fontsize=8)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=2, frameon=False, fontsize=9)
    return finish(figure, axes, correlation.source, y="correlation of success and mean W")


def _left_over(correlation: Correlation) -> pd.DataFrame:
    """The pairs that are kept, with their residuals after trigger, class and W without the trigger."""
    pairs = _pairs(correlation)
    pairs = pairs[pairs["kept"]]
    return pairs if pairs.empty else pairs.join(residuals(pairs).add_suffix(", what is left"))


@drawn_from(_left_over)
def success_within(correlation: Correlation, table: pd.DataFrame) -> Figure:
    """Left: mean W with the trigger against mean W without. Right: their residuals after trigger, class and clean W."""
    figure, axes = panels(2, sharey=False)
    scatter_pairs(axes[0], table, "clean W", "W")
    axes[0].set(xlabel="mean of W without the trigger (nats)", title="smooth when clean, smooth when triggered?")
    scatter_pairs(axes[1], table, "W, what is left", "success, what is left")
    axes[1].axhline(0, color=GREY, linewidth=1)
    axes[1].axvline(0, color=GREY, linewidth=1)
    axes[1].set(xlabel="mean of W, what is left", ylabel="success, what is left", title="trigger, class and clean W taken out")
    for axis in axes:
        axis.title.set_fontsize(10)
        axis.locator_params(axis="x", nbins=5)
        axis.legend(frameon=False, fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.18))
    return finish(figure, axes, correlation.source, y="mean of W with the trigger (nats)")


FIGURES = (success_against_w, correlation_by_setting, success_within)
