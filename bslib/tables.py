"""The numbers that a figure shows, read back from what is drawn, as tables that a reader can take along."""

from __future__ import annotations

import base64
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.collections import PathCollection
from matplotlib.container import ErrorbarContainer
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import PathPatch
from matplotlib.ticker import FixedLocator

if TYPE_CHECKING:
    from IPython.display import HTML

__all__ = ["downloads", "numbers_of"]

COLUMNS = ["panel", "series", "x axis", "y axis", "at", "x", "y", "low", "high"]
Row = dict[str, Any]
#: What is drawn as a level line has one number.
LEVELS = ("median", "whisker")


def numbers_of(figure: Figure) -> pd.DataFrame:
    """What a figure shows: a row for each point, and for each box its quartiles, median, mean, whiskers and outliers.

    Curves, points and boxes are read where they have a label or a ``gid``, which guide lines have not; error bars always.

    Parameters
    ----------
    figure : matplotlib.figure.Figure

    Returns
    -------
    DataFrame
        panel (its place in the figure, from 1), series, x axis and y axis (their labels), at (the label of the tick below, where
        ticks are set one by one), x, y, and low and high: the ends of an interval, or of a box.

    >>> figure = Figure()
    >>> _ = figure.subplots().plot([1, 2], [0.5, 0.25], label="W")
    >>> numbers_of(figure)[["series", "x", "y"]].to_numpy().tolist()
    [['W', 1.0, 0.5], ['W', 2.0, 0.25]]
    """
    rows = [row for place, axis in enumerate(figure.axes, 1) for row in _rows_of(axis, place)]
    return pd.DataFrame(rows, columns=COLUMNS)


def downloads(figures: Mapping[str, object]) -> HTML:
    """A line of links, each to a CSV file with the numbers of one figure; the files are in the links.

    Parameters
    ----------
    figures : mapping of str to object
        Figures by the name of their file. What is no figure, and what shows no numbers, is left out.
    """
    from IPython.display import HTML

    links = []
    for name, figure in figures.items():
        table = numbers_of(figure) if isinstance(figure, Figure) else pd.DataFrame()
        if not table.empty:
            content = base64.b64encode(table.to_csv(index=False, float_format="%.6g").encode()).decode()
            links.append(f'<a download="{name}.csv" href="data:text/csv;base64,{content}">{name}</a>')
    return HTML('<p class="downloads">' + (" · ".join(links) or "No figure of this chapter has numbers yet.") + "</p>")


def _rows_of(axis: Axes, panel: int) -> Iterator[Row]:
    labels = axis.get_xlabel() or axis.get_title(), axis.get_ylabel() or axis.get_title()
    places, names = axis.get_xticks(), None
    if isinstance(axis.xaxis.get_major_locator(), FixedLocator):
        names = axis.xaxis.get_major_formatter().format_ticks(list(places))
    for series, x, y, low, high in _marks_of(axis):
        at = names[int(np.abs(places - x).argmin())] if names else None
        yield dict(zip(COLUMNS, (panel, series, *labels, at, x, y, low, high), strict=True))


def _marks_of(axis: Axes) -> Iterator[tuple[str, float, float | None, float | None, float | None]]:
    """Series, x, y, and the two ends."""
    inside: set[Any] = set()
    for container in axis.containers:
        if isinstance(container, ErrorbarContainer):
            line, caps, bars = container.lines
            inside.update([line, *caps])
            ends = [np.asarray(path.vertices)[:, 1] for path in bars[0].get_paths()]  # get_segments leaves out what is not known
            for (x, y), (low, high) in zip(np.asarray(line.get_xydata()), ends, strict=True):
                yield str(container.get_label() or ""), x, y, low, high
    for artist in axis.get_children():
        series = str(artist.get_gid() or artist.get_label())
        if artist in inside or series.startswith("_") or not series:
            continue
        if isinstance(artist, PathPatch):
            corners = np.asarray(artist.get_path().vertices)[:4]
            yield series, corners[:, 0].mean(), None, corners[:, 1].min(), corners[:, 1].max()
        elif isinstance(artist, Line2D | PathCollection):
            points = np.asarray(artist.get_xydata() if isinstance(artist, Line2D) else artist.get_offsets())
            if str(artist.get_gid()).endswith(LEVELS):
                points = points.mean(0, keepdims=True)
            for x, y in points:
                yield series, x, y, None, None
