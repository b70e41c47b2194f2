"""Numbers to pictures: one function a figure, each returning a matplotlib figure, drawing nothing that is not in a record.

Where a figure has no record yet, its function returns words instead, which say what is missing and how to compute it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Circle, Patch

from bslib.chapters.parameters import Half
from bslib.chapters.surface import Surface
from bslib.entropy import plug_in
from bslib.specs import ToySpec
from bslib.store import Record

if TYPE_CHECKING:
    from IPython.display import Markdown

__all__ = [
    "clean_and_triggered",
    "difference_to_clean",
    "estimator_bias",
    "images",
    "paired",
    "patterns",
    "toy",
    "w_against_n",
    "w_against_sigma",
]

#: The paper's colours of Fig. 1, and matplotlib's for the estimators; all read on white and, on the light panel, in the dark.
YELLOW, BLUE, GREY = "#e8b90c", "#2f6fb7", "#8a8f98"
MEAN, MEDIAN = "#c23b22", "#222222"
ESTIMATOR_STYLE = {"plug-in": (BLUE, "o"), "miller-madow": ("#d95f02", "s"), "grassberger": ("#1b9e77", "^")}


def w_against_n(half: Half) -> Figure | Markdown:
    """Fig. 2, left: box plots of W against the number of noisy copies, one panel for each noise level of the sweep.

    A box pools the points of all networks; the whiskers follow Eq. 4 (the last point within 1.5 interquartile ranges), the line
    is the median, the diamond the mean, and the small marks are the means of single networks.
    """
    if half.missing:
        return _words(half.missing)
    w = half.over_n()
    figure, axes = _panels(len(half.size.n_sigmas))
    for s, (axis, sigma) in enumerate(zip(axes, half.size.n_sigmas, strict=True)):
        _boxes(axis, w[:, s], half.size.ns)
        axis.set(xlabel="noisy copies n", title=rf"$\sigma$ = {sigma:g}")
    return _finish(figure, axes, half.source("n"))


def w_against_sigma(half: Half) -> Figure | Markdown:
    """Fig. 2, right: box plots of W against the noise level; drawn as in :func:`w_against_n`."""
    if half.missing:
        return _words(half.missing)
    figure, axes = _panels(1)
    _boxes(axes[0], half.over_sigma(), half.size.sigmas)
    axes[0].set(xlabel=r"noise level $\sigma$", title=f"n = {half.size.n}")
    return _finish(figure, axes, half.source("sigma"))


def estimator_bias(half: Half) -> Figure | Markdown:
    """How far three estimators of W are off at each n, for points without rare classes and for points with.

    The error is taken against Grassberger's estimate at the largest n, averaged over points and networks.
    """
    if half.missing:
        return _words(half.missing)
    bias, ns, sigma = half.bias(), half.size.ns, half.size.n_sigmas[-1]
    figure, axes = _panels(2)
    for axis, column, title in zip(axes, (0, 1), ("no rare class", "with a rare class"), strict=True):
        for name, parts in bias.items():
            colour, marker = ESTIMATOR_STYLE[name]
            axis.plot(ns, parts[column][-1], color=colour, marker=marker, label=name, markersize=5)
        axis.axhline(0, color=GREY, linewidth=1)
        axis.set(xscale="log", xlabel="noisy copies n", title=f"{title}, " + rf"$\sigma$ = {sigma:g}")
        axis.set_xticks(ns, [f"{n:,}" for n in ns])
        axis.minorticks_off()
    axes[0].set_ylabel("error of W (nats)")
    axes[0].legend(frameon=False)
    return _finish(figure, axes, half.source("n"), y=None)


def toy(record: Record) -> Figure:
    """Fig. 1: four points in the plane, their noise balls, the class histograms and W.

    Parameters
    ----------
    record : Record
        Of a :class:`~bslib.specs.ToySpec`.
    """
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
        panel.text(0.98, 0.5, f"W = {plug_in(counts[p]):.2f}", transform=panel.transAxes, ha="right", va="center", fontsize=12)
    panel.set_xlabel("share of the noisy copies in each class")
    return _signed(figure, f"drawn points, a network trained for this figure; n = {record.spec.n}; record {record.spec.key[:6]}")


def images(record: Record, columns: int = 6) -> Figure:
    """A few test images with the names of their classes.

    Parameters
    ----------
    record : Record
        Of an :class:`~bslib.specs.ImagesSpec`.
    columns : int
    """
    pictures, labels = record.arrays["images"], record.arrays["labels"]
    rows = -(-len(pictures) // columns)
    figure, axes = plt.subplots(rows, columns, figsize=(1.4 * columns, 1.65 * rows), layout="constrained", squeeze=False)
    for axis in axes.flat:
        axis.axis("off")
    for axis, picture, label in zip(axes.flat, pictures, labels, strict=False):
        axis.imshow(picture.transpose(1, 2, 0), cmap="gray", vmin=0, vmax=255)
        axis.set_title(record.result["classes"][label], fontsize=10)
    return _signed(figure, f"{record.data['source']}; record {record.spec.key[:6]}")


def patterns(surface: Surface) -> Figure | Markdown:
    """Fig. 3: the six trigger patterns, each on a test image of its own, and below it the lower right corner enlarged."""
    if surface.pictures is None:
        return _words(
            f"**No pictures of {surface.size.dataset} here**: the store has none, and its images are not part of this book. "
            f"`bslib run surface --profile {surface.profile}` makes them where the data set is at hand."
        )
    record = surface.pictures
    stamped = record.arrays["stamped"].transpose(0, 2, 3, 1)
    figure, axes = plt.subplots(2, len(stamped), figsize=(7.2, 2.9), layout="constrained")
    for column, picture in enumerate(stamped):
        for axis, shown in zip(axes[:, column], (picture, picture[-11:, -11:]), strict=True):
            axis.imshow(shown, cmap="gray", vmin=0, vmax=255)
            axis.set(xticks=[], yticks=[])
        axes[0, column].set_title(f"trigger {column + 1}", fontsize=9)
    return _signed(figure, f"{record.data['source']}; record {record.spec.key[:6]}")


def clean_and_triggered(surface: Surface) -> Figure | Markdown:
    """Fig. 4: W of clean images and of images with the active trigger (left) or an inactive one (right), against sigma.

    As in the paper, one network and four batches of images that are all different.
    """
    if surface.missing:
        return _words(surface.missing)
    figure, axes = _panels(2)
    for axis, (clean, triggered), title in zip(axes, surface.plots(), ("active trigger", "inactive trigger"), strict=True):
        _pair_of_boxes(axis, clean, triggered, surface.size.sigmas)
        axis.set(xlabel=r"noise level $\sigma$", title=title)
    axes[0].legend(handles=[Patch(color=BLUE, label="clean"), Patch(color=YELLOW, label="with trigger")], frameon=False)
    return _finish(figure, axes, surface.source)


def difference_to_clean(surface: Surface) -> Figure | Markdown:
    """How much W changes when a trigger is added, against sigma: means over all networks and images, with 95 % intervals."""
    if surface.missing:
        return _words(surface.missing)
    table = surface.by_sigma()
    figure, axes = _panels(2)
    places = np.arange(len(table))
    for kind, colour, shift in (("active", YELLOW, -0.12), ("inactive", GREY, 0.12)):
        estimates = table[f"{kind} less clean"]
        value = np.array([e.value for e in estimates])
        ends = np.abs(np.array([[e.low, e.high] for e in estimates]).T - value)
        axes[1].errorbar(places + shift, value, yerr=ends, fmt="o", color=colour, capsize=3, label=f"{kind} less clean")
    for kind, colour in (("clean", BLUE), ("active", YELLOW), ("inactive", GREY)):
        axes[0].plot(places, table[kind], "o-", color=colour, label=kind)
    axes[1].axhline(0, color=MEDIAN, linewidth=1)
    for axis, title in zip(axes, ("mean of W", "change of the mean of W"), strict=True):
        axis.set(xlabel=r"noise level $\sigma$", title=title)
        axis.set_xticks(places, _short(table["sigma"]), fontsize=8)
        axis.tick_params(labelleft=True)
        axis.legend(frameon=False, fontsize=9)
    return _finish(figure, axes, surface.source)


def paired(surface: Surface) -> Figure | Markdown:
    """W of each image with the active trigger against W of the same image without, under the same noise, at two noise levels."""
    if surface.missing:
        return _words(surface.missing)
    w, sigmas = surface.w(), surface.size.sigmas
    figure, axes = _panels(2)
    for axis, sigma in zip(axes, (min(sigmas, key=lambda s: abs(s - 0.1)), min(sigmas, key=lambda s: abs(s - 0.5))), strict=True):
        at = sigmas.index(sigma)
        axis.scatter(w[:, 0, at], w[:, 1, at], s=8, color=BLUE, alpha=0.4, linewidths=0)
        axis.axline((0, 0), slope=1, color=GREY, linewidth=1)
        axis.set(xlabel="W of the clean image", title=rf"$\sigma$ = {sigma:g}")
    return _finish(figure, axes, surface.source, y="W with the trigger")


_LABEL = {"boxstyle": "circle,pad=0.15", "facecolor": "white", "edgecolor": "#333333"}


def _boxes(axis: Axes, w: np.ndarray[Any, Any], ticks: Sequence[float]) -> None:
    """Box plots of W, shape (networks, settings, points), side by side."""
    pooled = list(w.transpose(1, 0, 2).reshape(w.shape[1], -1))
    axis.boxplot(
        pooled,
        whis=1.5,
        widths=0.6,
        showmeans=True,
        patch_artist=True,
        boxprops={"facecolor": "#cfe0f3", "edgecolor": BLUE},
        whiskerprops={"color": BLUE},
        capprops={"color": BLUE},
        medianprops={"color": MEDIAN, "linewidth": 1.6},
        meanprops={"marker": "D", "markerfacecolor": MEAN, "markeredgecolor": "white", "markersize": 6},
        flierprops={"marker": ".", "markersize": 2.5, "markeredgecolor": BLUE, "alpha": 0.35},
    )
    for k, means in enumerate(w.mean(-1).T, 1):
        axis.plot(np.full(len(means), k + 0.38), means, linestyle="", marker="_", color=MEAN, markersize=6)
    axis.set_xticklabels([f"{tick:,g}" for tick in ticks])


def _pair_of_boxes(axis: Axes, clean: np.ndarray[Any, Any], triggered: np.ndarray[Any, Any], ticks: Sequence[float]) -> None:
    """Box plots of two batches, each (settings, points), in pairs."""
    for w, colour, shift in ((clean, BLUE, -0.2), (triggered, YELLOW, 0.2)):
        axis.boxplot(
            list(w),
            positions=np.arange(len(w)) + shift,
            widths=0.34,
            whis=1.5,
            showmeans=True,
            patch_artist=True,
            boxprops={"facecolor": colour, "edgecolor": MEDIAN, "linewidth": 0.7},
            whiskerprops={"color": MEDIAN, "linewidth": 0.7},
            capprops={"color": MEDIAN, "linewidth": 0.7},
            medianprops={"color": MEDIAN, "linewidth": 1.4},
            meanprops={"marker": "D", "markerfacecolor": MEAN, "markeredgecolor": "white", "markersize": 4.5},
            flierprops={"marker": ".", "markersize": 3, "markeredgecolor": colour},
        )
    axis.set_xticks(range(len(ticks)), _short(ticks), fontsize=8)


def _short(numbers: Iterable[float]) -> list[str]:
    """Numbers as narrow labels: .05 for 0.05."""
    return [f"{number:g}".removeprefix("0") if 0 < number < 1 else f"{number:g}" for number in numbers]


def _panels(count: int) -> tuple[Figure, list[Axes]]:
    figure, axes = plt.subplots(1, count, figsize=(7.2, 3.7), layout="constrained", sharey=True)
    return figure, list(np.atleast_1d(axes))


def _finish(figure: Figure, axes: list[Axes], source: str, y: str | None = r"$W_\sigma$ (nats)") -> Figure:
    if y:
        axes[0].set_ylabel(y)
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(axis="y", color="#e3e6ea", linewidth=0.8)
        axis.set_axisbelow(True)
    return _signed(figure, source)


def _signed(figure: Figure, source: str) -> Figure:
    """The figure with a line under it that says where its numbers come from."""
    figure.supxlabel(source, fontsize=7.5, color="#5b616b", x=0.01, ha="left")
    plt.close(figure)  # the notebook shows what is returned; pyplot shall not show it once more
    return figure


def _words(text: str) -> Markdown:
    from IPython.display import Markdown

    return Markdown(text)
