"""The figures of the chapter on the origin of the smoothness."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib import colormaps
from matplotlib.figure import Figure
from scipy.stats import rankdata

from bslib.chapters.beyond import nearest
from bslib.chapters.correlation.pairs import pearson
from bslib.chapters.origin.plane import HALF_LEARNED
from bslib.chapters.origin.results import Origin
from bslib.chapters.outcomes import attack_in_words, attack_named
from bslib.plotting import (
    BLUE,
    GREY,
    MEAN,
    MEDIAN,
    YELLOW,
    drawn_from,
    finish,
    noise_axis,
    panels,
    points_with_intervals,
    short_labels,
    signed,
    trigger_style,
)

__all__ = ["change_beside", "margin_and_w", "noise_by_place", "path_of_squares", "phase_diagram"]

#: What is drawn for each attack: the pixels that noise falls on, the column with W, colour, line style and label.
LINES = (
    ("all", "clean W", GREY, "--", "no trigger,\nnoise everywhere"),
    ("all", "W", MEDIAN, "-", "trigger,\nnoise everywhere"),
    ("trigger", "W", YELLOW, "-", "trigger,\nnoise on it alone"),
    ("rest", "W", BLUE, "-", "trigger,\nnoise only beside it"),
)
THREAT_COLOURS = {"T1": BLUE, "T2": MEAN, "T3": "#1b9e77"}


@drawn_from(Origin.by_place)
def noise_by_place(origin: Origin, table: pd.DataFrame) -> Figure:
    """W, and the fraction of copies predicted as wanted, against sigma, by the pixels that noise falls on, for each attack."""
    attacks, sigmas = list(table.groupby("attack", sort=False)), table["sigma"].unique()
    columns = min(4, len(attacks) + 1)  # the first free place is for the legend
    rows = -(-(len(attacks) + 1) // columns)
    figure, grid = plt.subplots(
        2 * rows, columns, figsize=(7.2, 3.6 * rows), layout="constrained", sharex=True, sharey="row", squeeze=False
    )
    upper, lower = grid[0::2].ravel(), grid[1::2].ravel()
    for k, (attack, own) in enumerate(attacks):
        for place, column, colour, style, label in LINES:
            of = own[own["noise on"] == place]
            upper[k].plot([e.value for e in of[column]], style, color=colour, marker=".", label=label)
            if column == "W":
                lower[k].plot([e.value for e in of["as wanted"]], style, color=colour, marker=".")
        upper[k].set_title(attack_in_words(str(attack)), fontsize=9)
        lower[k].set(xlabel=r"$\sigma$", ylim=(-0.03, 1.03))
        lower[k].set_xticks(range(len(sigmas)), short_labels(sigmas), fontsize=7)
        lower[k].tick_params(labelbottom=True)  # there may be nothing below
    finish(figure, list(grid.flat), origin.source, y=None)
    for row, axis in enumerate(grid[:, 0]):
        axis.set_ylabel("fraction as wanted" if row % 2 else "mean of W (nats)")
    for axis in (*upper[len(attacks) :], *lower[len(attacks) :]):
        axis.axis("off")
    upper[len(attacks)].legend(*upper[0].get_legend_handles_labels(), loc="upper left", frameon=False, fontsize=8.5)
    return figure


@drawn_from(Origin.by_place)
def change_beside(origin: Origin, table: pd.DataFrame) -> Figure:
    """The change of W when the trigger is added, with noise only beside the trigger and with noise everywhere."""
    sigmas, of_model = list(table["sigma"].unique()), table["attack"].map(lambda name: attack_named(name)[0])
    models = list(of_model.unique())
    figure, axes = panels(len(models))
    for axis, model in zip(axes, models, strict=True):
        for k, (attack, of) in enumerate(table[of_model == model].groupby("attack", sort=False)):
            _, trigger = attack_named(str(attack))
            colour, marker = trigger_style(trigger)
            places = np.arange(len(sigmas)) + 0.12 * (k - 1)
            beside, everywhere = (of[of["noise on"] == place]["change"] for place in ("rest", "all"))
            points_with_intervals(axis, places, beside, colour, f"{marker}-", f"trigger {trigger}")
            axis.plot(places, [e.value for e in everywhere], ":", color=colour, linewidth=1.2)
        axis.axhline(0, color=MEDIAN, linewidth=1)
        axis.set_title(model)
        noise_axis(axis, sigmas)
        axis.legend(frameon=False, fontsize=8, loc="lower left")
    return finish(figure, axes, origin.source, y="change of the mean of W (nats)")


@drawn_from(Origin.margins)
def margin_and_w(origin: Origin, table: pd.DataFrame) -> Figure:
    """The mean W of triggered images against their median logit margin, a point for each network, at two noise levels."""
    shown = sorted({nearest(origin.size.sigmas, sigma) for sigma in (0.05, 0.1)})
    figure, axes = panels(len(shown), sharey=False)
    for axis, sigma in zip(axes, shown, strict=True):
        at = table[table["sigma"] == sigma]
        for attack, own in at.groupby("attack", sort=False):
            model, trigger = attack_named(str(attack))
            colour, marker, label = THREAT_COLOURS[model], trigger_style(trigger)[1], attack_in_words(str(attack))
            axis.scatter(own["margin"], own["W"], s=26, alpha=0.85, color=colour, marker=marker, label=label)
        found = pearson(*(rankdata(at[column]) for column in ("margin", "W")))
        title = rf"$\sigma$ = {sigma:g}" + (f", rank correlation {found:.2f}" if np.isfinite(found) else "")
        axis.set(xlabel="median logit margin", title=title.replace("-", "\N{MINUS SIGN}"))
        axis.set_xlim(left=0)
    axes[-1].legend(frameon=False, fontsize=8)
    return finish(figure, axes, origin.source, y="mean of W with the trigger (nats)")


def _cells(origin: Origin) -> pd.DataFrame:
    return origin.plane.cells


@drawn_from(_cells)
def phase_diagram(origin: Origin, table: pd.DataFrame) -> Figure:
    """Success of squares, and the change of W that they make, by their side and grey and by the number of poisons."""
    size, sigma = origin.size, nearest(origin.size.cell_sigmas)
    at = table[table["sigma"] == sigma].set_index(["poisons", "side", "grey"])
    greys = [grey / 9 for grey in size.greys]
    figure, grid = plt.subplots(
        2, len(size.poisons), figsize=(7.2, 4.9), layout="constrained", sharex=True, sharey=True, squeeze=False
    )
    far = float(at["change"].abs().max()) or 1.0
    rows = (("success", "success", "Blues", 0.0, 1.0), ("change", rf"change of W, $\sigma$ = {sigma:g}", "PuOr_r", -far, far))
    for axes, (column, label, colours, low, high) in zip(grid, rows, strict=True):
        for axis, poisons in zip(axes, size.poisons, strict=True):
            values = [[at[column].get((poisons, side, grey), np.nan) for side in size.sides] for grey in greys]
            drawn = axis.imshow(values, cmap=colours, vmin=low, vmax=high, origin="lower", aspect="auto")
            for (row, place), value in np.ndenumerate(values):
                strong = abs(value) > 0.6 * high
                text = "?" if np.isnan(value) else f"{value:z.2f}".replace("0.", ".").replace("-", "\N{MINUS SIGN}")
                axis.text(place, row, text, ha="center", va="center", fontsize=7, color="white" if strong else MEDIAN)
            axis.set_xticks(range(len(size.sides)), size.sides)
            axis.set_yticks(range(len(greys)), [f"{grey:.2f}" for grey in greys])
        axes[0].set_ylabel("grey")
        figure.colorbar(drawn, ax=list(axes), label=label, aspect=14, pad=0.01)
    for axis, poisons in zip(grid[0], size.poisons, strict=True):
        axis.set_title(f"{poisons:,} poisons", fontsize=9)
    for axis in grid[-1]:
        axis.set_xlabel("side (pixels)", fontsize=9)
    return signed(figure, origin.plane.source)


@drawn_from(_cells)
def path_of_squares(origin: Origin, table: pd.DataFrame) -> Figure:
    """Success against the change of W, a line for each square as the number of poisons grows."""
    size, sigma = origin.size, nearest(origin.size.cell_sigmas)
    at = table[table["sigma"] == sigma]
    figure, axes = panels(len(size.greys))
    for axis, grey in zip(axes, size.greys, strict=True):
        for k, side in enumerate(size.sides):
            colour = colormaps["viridis"](k / len(size.sides))
            own = at[(at["side"] == side) & np.isclose(at["grey"], grey / 9)].sort_values("poisons")
            axis.plot(own["success"], own["change"], "-", color=colour, linewidth=1, label=f"side {side}")
            areas = [10 * (1 + size.poisons.index(poisons)) for poisons in own["poisons"]]
            axis.scatter(own["success"], own["change"], s=areas, color=[colour], alpha=0.85)
        axis.axhline(0, color=MEDIAN, linewidth=1)
        for edge in HALF_LEARNED:
            axis.axvline(edge, color=GREY, linewidth=1, linestyle=":")
        axis.set(xlabel="success", title=f"grey {grey / 9:.2f}", xlim=(-0.05, 1.05))
        axis.set_xticks([0, 0.5, 1], ["0", ".5", "1"])
    figure.legend(
        *axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=len(size.sides), frameon=False, fontsize=9
    )
    return finish(figure, axes, origin.plane.source, y=rf"change of the mean of W (nats), $\sigma$ = {sigma:g}")


FIGURES = (noise_by_place, change_beside, margin_and_w, phase_diagram, path_of_squares)
