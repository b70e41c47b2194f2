"""The figure of the measure: a toy in the plane (Fig. 1)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import matplotlib.pyplot as plt
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Circle

from bslib.entropy import plug_in
from bslib.plotting import BLUE, MEAN, YELLOW, signed, words
from bslib.specs import ToySpec
from bslib.store import Record

if TYPE_CHECKING:
    from IPython.display import Markdown

__all__ = ["toy"]


_LABEL = {"boxstyle": "circle,pad=0.15", "facecolor": "white", "edgecolor": "#333333"}


def toy(record: Record | str) -> Figure | Markdown:
    """Fig. 1: four points in the plane, their noise balls, the class histograms and W.

    Parameters
    ----------
    record : Record or str
        Of a :class:`~bslib.specs.others.ToySpec`; or what to say instead.
    """
    if isinstance(record, str):
        return words(record)
    assert isinstance(record.spec, ToySpec)
    arrays, colours = record.arrays, (YELLOW, BLUE, "#dfe3e8")
    points, counts = arrays["points"], arrays["counts"][0]
    figure = plt.figure(figsize=(7.2, 5), layout="constrained")
    grid = figure.add_gridspec(1, 2, width_ratios=(1.35, 1))
    plane, bars = figure.add_subfigure(grid[0]), figure.add_subfigure(grid[1])
    axis = plane.subplots()
    axis.imshow(arrays["grid"], origin="lower", extent=(-1, 1, -1, 1), cmap=ListedColormap(colours), alpha=0.45, vmin=0, vmax=2)
    (x, y), labels, poisoned = arrays["train"].T, arrays["train_labels"], arrays["poisoned"]
    for c, colour in enumerate(colours):
        own = (labels == c) & ~poisoned
        axis.scatter(x[own], y[own], s=7, color=colour, edgecolors="#444444", linewidths=0.3)
    axis.scatter(x[poisoned], y[poisoned], s=26, color=YELLOW, edgecolors=MEAN, linewidths=1.4, label="poisoned")
    for p, (point, cloud) in enumerate(zip(points, arrays["noisy"], strict=True)):
        axis.scatter(cloud[:, 0], cloud[:, 1], s=2, color="#333333", alpha=0.35, linewidths=0)
        axis.add_patch(Circle(point, 2 * record.spec.sigma, fill=False, color="#333333", linestyle=":"))
        axis.annotate("ABCD"[p], point, ha="center", va="center", weight="bold", fontsize=11, bbox=_LABEL)
    axis.set(xlim=(-1, 1), ylim=(-1, 1), aspect="equal", xticks=[], yticks=[])
    axis.legend(loc="upper right", framealpha=0.9)
    for p, panel in enumerate(bars.subplots(4, 1, sharex=True)):
        panel.barh(range(3), counts[p] / counts[p].sum(), color=colours, edgecolor="#444444", linewidth=0.6)
        panel.set(xlim=(0, 1), yticks=[], ylabel="ABCD"[p])
        panel.set_title(f"W = {plug_in(counts[p]):.2f}", fontsize=11, loc="right", pad=3)
    panel.set_xlabel("fraction of the noisy copies in each class")
    return signed(figure, f"drawn points, a network trained for this figure; n = {record.spec.n}; record {record.spec.key[:6]}")
