"""The figures of the chapter on hiding from W."""

from __future__ import annotations

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bslib.chapters.hiding.results import Hiding
from bslib.chapters.outcomes import attack_in_words
from bslib.plotting import (
    BLUE,
    GREY,
    MEAN,
    MEDIAN,
    SETTING_STYLE,
    YELLOW,
    drawn_from,
    finish,
    noise_axis,
    panel_grid,
    panels,
    points_with_intervals,
)

__all__ = ["covers", "hidden", "reply"]

#: The ratios of W that count as hidden.
HIDDEN = (0.8, 1.25)


def _plain_and_hidden(hiding: Hiding) -> pd.DataFrame:
    table = hiding.by_sigma()
    return table[table["covers"].isin([0, hiding.size.covers[-1]])] if len(table) else table


@drawn_from(_plain_and_hidden)
def hidden(hiding: Hiding, table: pd.DataFrame) -> Figure:
    """The ratio of W with the trigger to W without, against sigma, without covers and with the most; one panel an attack."""
    attacks = list(table.groupby("attack", sort=False))
    (figure, axes), sigmas = panel_grid(len(attacks), 3, height=2.6), hiding.size.sigmas
    for axis, (attack, own) in zip(axes, attacks, strict=True):
        for number, colour, marker, shift in ((0, YELLOW, "s", -0.12), (hiding.size.covers[-1], BLUE, "o", 0.12)):
            some = own[own["covers"] == number]
            label = f"{number:,} covers" if number else "plain attack"
            points_with_intervals(axis, [sigmas.index(s) + shift for s in some["sigma"]], some["ratio"], colour, marker, label)
        _ratio_scale(axis)
        noise_axis(axis, sigmas)
        axis.set_xlim(-0.5, len(sigmas) - 0.5)
        axis.set_title(attack_in_words(str(attack)), fontsize=10)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=2, frameon=False, fontsize=9)
    for axis in axes[::3]:
        axis.set_ylabel("W with / W without")
    return finish(figure, axes, hiding.source, y=None)


def _ratio_scale(axis: Axes) -> None:
    """A logarithmic scale for ratios of W, with those that count as hidden in grey; an interval that reaches 0 leaves it."""
    axis.axhspan(*HIDDEN, color=GREY, alpha=0.25, linewidth=0)
    axis.set_yscale("log", nonpositive="clip")
    axis.set_ylim(0.005, 20)
    axis.set_yticks([0.01, 0.1, 1, 10], ["0.01", "0.1", "1", "10"], fontsize=8)


def _of_the_first(hiding: Hiding) -> pd.DataFrame:
    """Success, accuracy and ratios of the first attack for each number of covers; a row for each noise level of the covers."""
    cost, ratios = hiding.cost(), hiding.by_sigma()
    if cost.empty:
        return cost
    ratios = ratios[ratios["sigma"].isin(hiding.size.cover_sigmas)][["attack", "covers", "sigma", "ratio"]]
    return cost[cost["attack"] == hiding.first].merge(ratios, on=["attack", "covers"])


@drawn_from(_of_the_first)
def covers(hiding: Hiding, table: pd.DataFrame) -> Figure:
    """Success, clean accuracy, and the ratio of W at the attacker's noise levels, against the number of covers."""
    figure, axes = panels(3, height=3.3, sharey=False)
    numbers = sorted(set(table["covers"]))
    once = table[table["sigma"] == table["sigma"].iloc[0]]
    for axis, name in zip(axes, ("success", "accuracy"), strict=False):
        points_with_intervals(axis, [numbers.index(k) for k in once["covers"]], once[name], BLUE, "o", None)
        axis.set_ylim(min(0.85, *(e.low for e in once[name])) - 0.01, 1.005)
    for k, (sigma, own) in enumerate(table.groupby("sigma")):
        places = [numbers.index(number) + 0.14 * (k - 1) for number in own["covers"]]
        points_with_intervals(axes[2], places, own["ratio"], *SETTING_STYLE[k % len(SETTING_STYLE)], rf"$\sigma$ = {sigma:g}")
    _ratio_scale(axes[2])
    axes[2].legend(frameon=False, fontsize=8, loc="lower center")
    for axis, title in zip(axes, ("success", "clean accuracy", "W with / W without"), strict=True):
        axis.set_xticks(range(len(numbers)), [f"{number:,}" for number in numbers], fontsize=8)
        axis.set(xlabel="covers", xlim=(-0.5, len(numbers) - 0.5))
        axis.set_title(title, fontsize=10)
    return finish(figure, axes, hiding.source, y=None)


def _replies(hiding: Hiding) -> pd.DataFrame:
    """The copies that get the attacker's label, and the area of each score, for the first attack."""
    wanted, areas = hiding.by_sigma(), hiding.areas()
    if wanted.empty:
        return wanted
    wanted = wanted[["attack", "covers", "sigma", "wanted"]].rename(columns={"wanted": "value"}).assign(score="wanted")
    both = pd.concat([wanted, areas.rename(columns={"auc": "value"})], ignore_index=True)
    return both[both["attack"] == hiding.first][["attack", "covers", "score", "sigma", "value"]]


@drawn_from(_replies)
def reply(hiding: Hiding, table: pd.DataFrame) -> Figure:
    """Left: noisy copies that get the attacker's label, against sigma. Middle and right: the area of scores, by covers."""
    figure, axes = panels(3)
    sigmas, numbers, least = hiding.size.sigmas, [0, *hiding.size.covers], min(hiding.size.cover_sigmas)
    for k, (number, own) in enumerate(table[table["score"] == "wanted"].groupby("covers")):
        shade = plt.get_cmap("viridis")(k / len(numbers))
        axes[0].plot(
            range(len(own)), [e.value for e in own["value"]], "o-", markersize=4, color=shade, label=f"{number:,} covers"
        )
    for (score, colour, marker), shift in zip(
        (("flips", MEAN, "v"), ("W", BLUE, "o"), ("STRIP", MEDIAN, "D")), (-0.1, 0.1, 0), strict=True
    ):
        own = table[table["score"] == score]
        small, most = own[own["sigma"].isin([0, least])], own[(own["covers"] == numbers[-1]) & (own["sigma"] > 0)]
        points_with_intervals(axes[1], [numbers.index(k) + shift for k in small["covers"]], small["value"], colour, marker, score)
        points_with_intervals(axes[2], [sigmas.index(s) + shift for s in most["sigma"]], most["value"], colour, marker, None)
    for axis in axes[1:]:
        axis.axhline(0.5, color=GREY, linestyle=":")
    axes[1].set_xticks(range(len(numbers)), [f"{number:,}" for number in numbers], fontsize=8)
    axes[1].set(xlabel="covers", xlim=(-0.5, len(numbers) - 0.5))
    for axis in axes[::2]:
        noise_axis(axis, sigmas)
        axis.set_xlim(-0.5, len(sigmas) - 0.5)
    titles = ("copies as the attacker wants", rf"area at $\sigma$ = {least:g}", f"area with {numbers[-1]:,} covers")
    for axis, title in zip(axes, titles, strict=True):
        axis.set_title(title, fontsize=10)
        axis.set_ylim(-0.03, 1.03)
    figure.legend(loc="outside upper center", ncols=4, frameon=False, fontsize=8)
    return finish(figure, axes, hiding.source, y=None)


FIGURES = (hidden, covers, reply)
