"""Shared style and building blocks of the figures: colours, panels, box plots, intervals and source lines.

A figure is drawn from a table (:func:`drawn_from`), and readers download the same table.
"""

from __future__ import annotations

import functools
import textwrap
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.cbook import boxplot_stats
from matplotlib.figure import Figure
from numpy.typing import NDArray

from bslib.statistics import Estimate
from bslib.store import Record

if TYPE_CHECKING:
    from IPython.display import Markdown

#: The paper's colours of Fig. 1, and matplotlib's for the estimators; all read on white and, on the light panel, in the dark.
YELLOW, BLUE, GREY = "#e8b90c", "#2f6fb7", "#8a8f98"
MEAN, MEDIAN = "#c23b22", "#222222"
#: Colour and marker of each trigger; they repeat if there are more triggers.
TRIGGER_STYLES = ((MEDIAN, "v"), ("#1b9e77", "^"), (BLUE, "o"), ("#7570b3", "D"), (YELLOW, "s"), ("#d95f02", "P"))
SETTING_STYLE = (("#1b9e77", "^"), (MEDIAN, "o"), ("#d95f02", "v"), (BLUE, "s"))
#: Name, colour and marker of each estimator.
ESTIMATOR_STYLE = {
    "plug-in": ("plug-in", BLUE, "o"),
    "miller-madow": ("Miller-Madow", "#d95f02", "s"),
    "grassberger": ("Grassberger", "#1b9e77", "^"),
}


Drawing = Callable[[Any], "Figure | Markdown"]


def drawn_from(table: Callable[[Any], pd.DataFrame]) -> Callable[[Callable[[Any, pd.DataFrame], Figure]], Drawing]:
    """Decorator of functions that draw a figure from a chapter's results and a table.

    Without records, the decorated function returns a message instead of a figure. Its attribute ``table`` maps results to their
    table, which is computed once.

    Parameters
    ----------
    table : callable
        Maps results to a DataFrame, which is empty if the records of this figure are missing.
    """

    def decorate(draw: Callable[[Any, pd.DataFrame], Figure]) -> Drawing:
        @functools.wraps(draw)
        def figure(results: Any) -> Figure | Markdown:
            if results.missing:
                return words(results.missing)
            data = once(results)
            return words(results.not_yet_run()) if data.empty else draw(results, data)

        def once(results: Any) -> pd.DataFrame:
            tables = vars(results).setdefault("_tables", {})  # as cached_property keeps what it computes
            if table not in tables:
                tables[table] = table(results)
            return tables[table].copy()

        figure.table = once  # type: ignore[attr-defined]
        return figure

    return decorate


def images(record: Record | str) -> Figure | Markdown:
    """Test images with their classes, from a record of an :class:`~bslib.specs.others.ImagesSpec`; or what to say instead."""
    if isinstance(record, str):
        return words(record)
    pictures, labels = record.arrays["images"], record.arrays["labels"]
    figure, axes = panel_grid(len(pictures), 6, width=1.4 * 6, height=1.65)
    for axis, picture, label in zip(axes, pictures, labels, strict=True):
        axis.axis("off")
        axis.imshow(picture.transpose(1, 2, 0), cmap="gray", vmin=0, vmax=255)
        axis.set_title(record.result["classes"][label], fontsize=10)
    return signed(figure, f"{record.data['source']}; record {record.spec.key[:6]}")


def panels(count: int, *, height: float = 3.7, sharey: bool = True) -> tuple[Figure, list[Axes]]:
    """A figure with panels side by side, by default with one y axis; the height is in inches."""
    figure, axes = plt.subplots(1, count, figsize=(7.2, height), layout="constrained", sharey=sharey)
    return figure, list(np.atleast_1d(axes))


def panel_grid(count: int, columns: int, *, width: float = 7.2, height: float) -> tuple[Figure, list[Axes]]:
    """A figure with panels in rows; its width and the height of a row are in inches, and places without a panel stay empty."""
    rows = -(-count // columns)
    figure, axes = plt.subplots(rows, columns, figsize=(width, height * rows), layout="constrained", squeeze=False)
    for axis in axes.flat[count:]:
        axis.axis("off")
    return figure, list(axes.flat[:count])


#: The statistics of a box by matplotlib's names.
BOX = {
    "q1": "first quartile", "med": "median", "mean": "mean", "q3": "third quartile",
    "whislo": "lower whisker", "whishi": "upper whisker", "fliers": "outlier",
}  # fmt: skip


def box_table(batches: Iterable[tuple[Mapping[str, Any], NDArray[np.float64]]]) -> pd.DataFrame:
    """The statistics of box plots. Whiskers follow Eq. 4: the last point within 1.5 interquartile ranges.

    Parameters
    ----------
    batches : iterable of (dict, ndarray of shape (networks, points))
        The settings of each box, and the values that it pools.

    Returns
    -------
    DataFrame
        The settings, ``quantity`` and ``value``. With several networks, also the mean of each network.

    >>> table = box_table([({"n": 10}, np.array([[1.0, 2.0, 3.0]]))])
    >>> table[table["quantity"] == "median"]["value"].item()
    2.0
    """
    rows = []
    for settings, w in batches:
        found = boxplot_stats(w.ravel(), whis=1.5)[0]
        for key, quantity in BOX.items():
            rows += [{**settings, "quantity": quantity, "value": float(value)} for value in np.atleast_1d(found[key])]
        rows += [{**settings, "quantity": "mean of a network", "value": float(v)} for v in w.mean(-1)] if len(w) > 1 else []
    return pd.DataFrame(rows)


def boxes(
    axis: Axes, table: pd.DataFrame, by: str, *, places: Iterable[float], colour: str = "#cfe0f3", width: float = 0.6
) -> None:
    """Draw box plots from a :func:`box_table`, one for each value of the column ``by``."""
    drawn, places = [], list(places)
    for place, (_, rows) in zip(places, table.groupby(by, sort=False), strict=True):
        values = rows.groupby("quantity")["value"].apply(list)
        drawn.append({key: values.get(name, []) if key == "fliers" else values[name][0] for key, name in BOX.items()})
        means = values.get("mean of a network", [])
        axis.plot(np.full(len(means), place + 0.38), means, linestyle="", marker="_", color=MEAN, markersize=6)
    thin = {"color": MEDIAN, "linewidth": 0.7}
    axis.bxp(
        drawn,
        positions=places,
        widths=width,
        showmeans=True,
        patch_artist=True,
        boxprops={"facecolor": colour, "edgecolor": MEDIAN, "linewidth": 0.7},
        whiskerprops=thin,
        capprops=thin,
        medianprops={"color": MEDIAN, "linewidth": 1.5},
        meanprops={"marker": "D", "markerfacecolor": MEAN, "markeredgecolor": "white", "markersize": 5},
        flierprops={"marker": ".", "markersize": 2.5, "markeredgecolor": BLUE, "alpha": 0.35},
    )


def trigger_style(trigger: int) -> tuple[str, str]:
    """The colour and the marker of a trigger."""
    return TRIGGER_STYLES[(trigger - 1) % len(TRIGGER_STYLES)]


def scatter_pairs(axis: Axes, pairs: pd.DataFrame, x: str, y: str, hollow: pd.Series[bool] | None = None) -> None:
    """Scatter plot of two columns, with a colour and a marker for each trigger, and Pearson's r within it."""
    for trigger in sorted(set(pairs["trigger"])):
        own, (colour, marker) = pairs[pairs["trigger"] == trigger], trigger_style(trigger)
        empty = np.zeros(len(own), dtype=bool) if hollow is None else hollow[own.index].to_numpy()
        r = own[x][~empty].corr(own[y][~empty]) if (~empty).sum() > 2 else np.nan
        label = f"trigger {trigger}" + (f" alone: r = {r:.2f}" if np.isfinite(r) else "").replace("-", "\N{MINUS SIGN}")
        axis.scatter(own[x][~empty], own[y][~empty], s=26, color=colour, marker=marker, alpha=0.6, label=label)
        axis.scatter(own[x][empty], own[y][empty], s=26, facecolors="none", edgecolors=colour, marker=marker)


def points_with_intervals(
    axis: Axes, places: Iterable[float], estimates: Iterable[Estimate], colour: str, marker: str, label: str | None
) -> None:
    """Draw points with their intervals."""
    if estimates := list(estimates):
        style: dict[str, Any] = {"fmt": marker, "color": colour, "capsize": 2, "markersize": 5, "linewidth": 1}
        axis.errorbar(list(places), [e.value for e in estimates], yerr=reach(estimates), label=label, **style)


def reach(estimates: Iterable[Estimate]) -> np.ndarray[Any, Any]:
    """The lengths of error bars below and above the values, shape (2, estimates), never negative."""
    return np.array([[e.value - e.low, e.high - e.value] for e in estimates]).T.clip(min=0)


def short_labels(numbers: Iterable[float]) -> list[str]:
    """Numbers as short labels, such as .05 for 0.05."""
    return [f"{number:g}".removeprefix("0") if 0 < number < 1 else f"{number:g}" for number in numbers]


def noise_axis(axis: Axes, sigmas: Iterable[float]) -> None:
    """Label the places 0, 1, ... of an x axis with noise levels."""
    labels = short_labels(sigmas)
    axis.set_xticks(range(len(labels)), labels, fontsize=8)
    axis.set_xlabel(r"noise level $\sigma$")


def finish(figure: Figure, axes: list[Axes], source: str, y: str | None = r"$W_\sigma$ (nats)") -> Figure:
    """Add a y label, light grid lines and the source line to a figure."""
    if y:
        axes[0].set_ylabel(y)
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(axis="y", color="#e3e6ea", linewidth=0.8)
        axis.set_axisbelow(True)
    return signed(figure, source)


def signed(figure: Figure, source: str) -> Figure:
    """Add the source line under a figure."""
    fill = textwrap.TextWrapper(int(18 * figure.get_figwidth()), break_long_words=False, break_on_hyphens=False).fill
    lines = "\n".join(map(fill, source.splitlines()))
    figure.supxlabel(lines, fontsize=7.5, color="#5b616b", x=0.01, ha="left", parse_math=False)
    plt.close(figure)  # otherwise the notebook shows it twice
    return figure


def words(text: str) -> Markdown:
    """A message in place of a figure."""
    from IPython.display import Markdown

    return Markdown(text)
