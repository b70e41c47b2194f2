"""Numbers to pictures: one function a figure, each returning a matplotlib figure, drawing nothing that is not in a record.

Where a figure has no record yet, its function returns words instead, which say what is missing and how to compute it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Circle, Patch

from bslib.chapters import in_a_clone, not_yet_run
from bslib.chapters.correlation import RANDOM_GUESS, Correlation, residuals
from bslib.chapters.parameters import ParameterResults
from bslib.chapters.patterns import Patterns, cleanse_of, scored
from bslib.chapters.surface import Surface
from bslib.entropy import plug_in
from bslib.specs import ToySpec
from bslib.statistics import Estimate
from bslib.store import Record

if TYPE_CHECKING:
    from IPython.display import Markdown

__all__ = [
    "clean_and_triggered",
    "correlation_by_setting",
    "difference_to_clean",
    "estimator_bias",
    "images",
    "paired",
    "patterns",
    "reversed_norms",
    "reversed_triggers",
    "roc",
    "roc_by_setting",
    "success_against_w",
    "success_within",
    "toy",
    "universal",
    "w_against_n",
    "w_against_sigma",
]

#: The paper's colours of Fig. 1, and matplotlib's for the estimators; all read on white and, on the light panel, in the dark.
YELLOW, BLUE, GREY = "#e8b90c", "#2f6fb7", "#8a8f98"
MEAN, MEDIAN = "#c23b22", "#222222"
#: Colour and marker of each trigger, in turns where there are more.
TRIGGER_STYLES = ((MEDIAN, "v"), ("#1b9e77", "^"), (BLUE, "o"), ("#7570b3", "D"), (YELLOW, "s"), ("#d95f02", "P"))
SETTING_STYLE = (("#1b9e77", "^"), (MEDIAN, "o"), ("#d95f02", "v"), (BLUE, "s"))
ESTIMATOR_STYLE = {"plug-in": (BLUE, "o"), "miller-madow": ("#d95f02", "s"), "grassberger": ("#1b9e77", "^")}


def w_against_n(half: ParameterResults) -> Figure | Markdown:
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


def w_against_sigma(half: ParameterResults) -> Figure | Markdown:
    """Fig. 2, right: box plots of W against the noise level; drawn as in :func:`w_against_n`."""
    if half.missing:
        return _words(half.missing)
    figure, axes = _panels(1)
    _boxes(axes[0], half.over_sigma(), half.size.sigmas)
    axes[0].set(xlabel=r"noise level $\sigma$", title=f"n = {half.size.n}")
    return _finish(figure, axes, half.source("sigma"))


def estimator_bias(half: ParameterResults) -> Figure | Markdown:
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


def toy(record: Record | str) -> Figure | Markdown:
    """Fig. 1: four points in the plane, their noise balls, the class histograms and W.

    Parameters
    ----------
    record : Record or str
        Of a :class:`~bslib.specs.ToySpec`; or what to say instead.
    """
    if isinstance(record, str):
        return _words(record)
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


def images(record: Record | str, columns: int = 6) -> Figure | Markdown:
    """A few test images with the names of their classes.

    Parameters
    ----------
    record : Record or str
        Of an :class:`~bslib.specs.ImagesSpec`; or what to say instead.
    columns : int
    """
    if isinstance(record, str):
        return _words(record)
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
        option = in_a_clone(surface.profile)
        return _words(
            f"**No pictures of {surface.size.dataset} here**: the store has none, and its images are not part of this book. "
            f"`bslib run surface --profile {surface.profile}{option}` makes them where the data set is at hand."
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
        ends = _reach(estimates)
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
        axis.scatter(w[:, 0, at], w[:, 1, at], s=8, color=BLUE, alpha=0.4, linewidths=0, gid="image")
        axis.axline((0, 0), slope=1, color=GREY, linewidth=1)
        axis.set(xlabel="W of the clean image", title=rf"$\sigma$ = {sigma:g}")
    return _finish(figure, axes, surface.source, y="W with the trigger")


def success_against_w(correlation: Correlation) -> Figure | Markdown:
    """Fig. 5: a point for each pair, its success against the mean of W around triggered images; hollow where it is left out."""
    if correlation.missing:
        return _words(correlation.missing)
    found, sigma = correlation.correlation(), correlation.size.sigmas[0]
    figure, axes = _panels(1)
    pairs = correlation.pairs()
    _pairs(axes[0], pairs, "W", "success", hollow=pairs["success"] < RANDOM_GUESS)
    axes[0].axhline(RANDOM_GUESS, color=GREY, linewidth=1, linestyle=":")
    axes[0].annotate("random\nguess", (1.01, RANDOM_GUESS), xycoords=("axes fraction", "data"), va="center", fontsize=8)
    axes[0].set(xlabel=rf"mean of W with the trigger (nats), $\sigma$ = {sigma:g}", ylim=(-0.03, 1.03))
    left, right = axes[0].get_xlim()
    axes[0].set_xlim(max(left, -0.03), max(right, 0.2))  # W is not negative; a single pair would stand on a scale of its own
    defined = np.isfinite(found["tau"].value)
    measures = (
        f"{name} = {found[key].value:.2f} (p = {found[f'{key} p']:.1g})" for name, key in ((r"$\tau$", "tau"), ("r", "r"))
    )
    counted = f"{found['pairs']} pair{'s' * (found['pairs'] != 1)}, {found['left out']} left out"
    title = f"{', '.join(measures)}; {counted}" if defined else f"{counted}: no correlation"
    axes[0].set_title(title.replace("-", "\N{MINUS SIGN}"), fontsize=10)
    axes[0].legend(frameon=False, fontsize=9)
    return _finish(figure, axes, correlation.source, y="success of the trigger")


def correlation_by_setting(correlation: Correlation) -> Figure | Markdown:
    """Kendall's tau and Pearson's r at every noise level, for two numbers of noisy copies and three exclusion rules."""
    if correlation.missing:
        return _words(correlation.missing)
    table, usual = correlation.sensitivity(), correlation.size.ns[-1]
    figure, axes = _panels(2)
    settings = list(table.groupby(["n", "exclude below"], sort=False))
    for k, ((n, below), own) in enumerate(settings):
        colour, marker = SETTING_STYLE[k]
        places = np.arange(len(own)) + 0.14 * (k - (len(settings) - 1) / 2)
        rule = f"below {below:g} left out" if below else "none left out"
        for axis, name in zip(axes, ("tau", "r"), strict=True):
            value = np.array([e.value for e in own[name]])
            ends = _reach(own[name])
            strong = n == usual and below == RANDOM_GUESS
            axis.errorbar(
                places, value, yerr=ends, fmt=marker, color=colour, capsize=2, markersize=6 if strong else 4,
                linewidth=1.8 if strong else 0.9, label=f"n = {n}, {rule}",
            )  # fmt: skip
    for axis, title in zip(axes, (r"Kendall's $\tau$", "Pearson's r"), strict=True):
        axis.axhline(0, color=MEDIAN, linewidth=1)
        axis.set(xlabel=r"noise level $\sigma$", title=title)
        axis.set_xticks(range(len(correlation.sigmas)), _short(correlation.sigmas), fontsize=8)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=2, frameon=False, fontsize=9)
    return _finish(figure, axes, correlation.source, y="correlation of success and mean W")


def success_within(correlation: Correlation) -> Figure | Markdown:
    """Left: mean W with the trigger against mean W without. Right: what trigger, class and W without do not explain of either."""
    if correlation.missing:
        return _words(correlation.missing)
    pairs = correlation.pairs()
    pairs = pairs[pairs["success"] >= RANDOM_GUESS]
    if pairs.empty:
        return _words("No pair reaches random guess here, so there is nothing to compare.")
    rest = residuals(pairs).assign(trigger=pairs["trigger"])
    figure, axes = plt.subplots(1, 2, figsize=(7.2, 3.7), layout="constrained")
    _pairs(axes[0], pairs, "clean W", "W")
    axes[0].set(xlabel="mean of W without the trigger", title="smooth when clean, smooth when triggered?")
    _pairs(axes[1], rest, "W", "success")
    axes[1].axhline(0, color=GREY, linewidth=1)
    axes[1].axvline(0, color=GREY, linewidth=1)
    axes[1].set(xlabel="mean of W, what is left", ylabel="success, what is left", title="within trigger and class")
    for axis in axes:
        axis.title.set_fontsize(10)
    axes[0].legend(frameon=False, fontsize=9)
    return _finish(figure, list(axes), correlation.source, y="mean of W with the trigger")


def roc(patterns: Patterns) -> Figure | Markdown:
    """Fig. 6: the ROC curve of the detector; left with every own trigger to be found, right with those that work."""
    if patterns.missing:
        return _words(patterns.missing)
    from sklearn.metrics import roc_curve

    figure, axes = _panels(2)
    for axis, effective in zip(axes, (False, True), strict=True):
        tests = scored(patterns.tests(), effective=effective)
        own = tests["carried"] == "own"
        axis.plot([0, 1], [0, 1], linestyle=":", color=GREY)
        if own.any():
            false, true, _ = roc_curve(own, tests["score"])
            area = patterns.area(effective=effective)
            axis.step(false, true, where="post", color=YELLOW, linewidth=2.2, gid="ROC")
            axis.text(0.97, 0.05, f"AUC {area:.2f}\n{own.sum()} positive, {(~own).sum()} negative", ha="right", fontsize=10)
        axis.set(xlabel="false positive rate", aspect="equal", xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
        axis.set_title("own triggers that succeed on 90 %" if effective else "all own triggers", fontsize=11)
    return _finish(figure, axes, f"{patterns.source}; {_detector(patterns)}", y="true positive rate")


def roc_by_setting(patterns: Patterns) -> Figure | Markdown:
    """The area under the ROC curve against sigma: by the size of the batch, and by what the score takes into account."""
    if patterns.missing:
        return _words(patterns.missing)
    table, full = patterns.sensitivity(), patterns.size.points
    usual = (table["center"] == "mean") & table["signed"] & ~table["effective"]
    choices: list[list[tuple[str, pd.Series[bool]]]] = [
        [(f"{size} points", usual & (table["batch"] == size)) for size in sorted(set(table["batch"]))],
        [
            ("mean, signed", usual & (table["batch"] == full)),
            ("median", (table["center"] == "median") & table["signed"] & ~table["effective"] & (table["batch"] == full)),
            ("no sign", (table["center"] == "mean") & ~table["signed"] & ~table["effective"] & (table["batch"] == full)),
            ("90 % success", (table["center"] == "mean") & table["signed"] & table["effective"] & (table["batch"] == full)),
        ],
    ]
    figure, axes = _panels(2)
    sigmas = sorted(set(table["sigma"]))
    for axis, lines in zip(axes, choices, strict=True):
        for k, (label, where) in enumerate(lines):
            own, (colour, marker) = table[where], SETTING_STYLE[k]
            places = [sigmas.index(sigma) + 0.12 * (k - 1.5) for sigma in own["sigma"]]
            _estimates(axis, places, own["area"], colour, marker, label)
        axis.axhline(0.5, color=GREY, linestyle=":")
        axis.set(xlabel=r"noise level $\sigma$", ylim=(-0.03, 1.03))
        axis.set_xticks(range(len(sigmas)), _short(sigmas))
        axis.legend(frameon=False, fontsize=8, loc="lower right")
    axes[0].set_title("by the size of the batch", fontsize=11)
    axes[1].set_title(f"by the score, {full} points", fontsize=11)
    return _finish(figure, axes, patterns.source, y="area under the ROC curve")


def universal(patterns: Patterns) -> Figure | Markdown:
    """Fig. 7 and what is behind it, against the bound: how many are fooled, to how many classes, and the detector's area."""
    table = patterns.universal_areas() if not patterns.missing else pd.DataFrame()
    if table.empty:
        return _words(patterns.missing or _crafted_missing(patterns))
    figure, axes = plt.subplots(1, 3, figsize=(7.2, 3.4), layout="constrained")
    bounds, sigma = sorted(set(table["bound"])), patterns.size.pattern_sigmas[0]
    first = table[table["sigma"] == sigma]
    for axis, name in zip(axes, ("fooled", "classes"), strict=False):
        _estimates(axis, [bounds.index(bound) for bound in first["bound"]], first[name], BLUE, "o", name)
    levels = list(table.groupby("sigma"))
    for k, (level, own) in enumerate(levels):
        colour, marker = SETTING_STYLE[k]
        places = [bounds.index(bound) + 0.14 * (k - (len(levels) - 1) / 2) for bound in own["bound"]]
        _estimates(axes[2], places, own["auc"], colour, marker, rf"$\sigma$ = {level:g}")
    axes[2].axhline(0.5, color=GREY, linestyle=":")
    axes[2].legend(frameon=False, fontsize=8)
    for axis, title in zip(axes, ("predictions changed", "classes they go to", "AUC against clean"), strict=True):
        axis.set_xticks(range(len(bounds)), [str(b) for b in bounds])
        axis.set(xlabel="bound, 255ths", ylim=(0, 1.02 if axis is axes[2] else None))
        axis.set_title(title, fontsize=10)
    return _finish(figure, list(axes), _source_of_crafted(patterns, max(one.networks for one in first["fooled"])), y=None)


def reversed_triggers(patterns: Patterns) -> Figure | Markdown:
    """Neural Cleanse's candidates of one clean network and one with each trigger, beside the trigger that was trained in."""
    crafted = [network for network in reversed(patterns.networks) if cleanse_of(patterns.size, network) in patterns.records]
    shown = {network.attack.trigger if network.attack else 0: network for network in crafted}
    if not shown:
        return _words(patterns.missing or _crafted_missing(patterns))
    records = {trigger: patterns.records[cleanse_of(patterns.size, shown[trigger])] for trigger in sorted(shown)}
    classes = len(next(iter(records.values())).arrays["masks"])
    height = 0.95 * len(records) + 0.4
    figure, axes = plt.subplots(len(records), classes + 1, figsize=(7.2, height), layout="constrained", squeeze=False)
    for row, (trigger, record) in zip(axes, records.items(), strict=True):
        masks, colours = record.arrays["masks"], record.arrays["patterns"]
        attack = shown[trigger].attack
        if trigger and patterns.pictures is not None:
            plain, stamped = (patterns.pictures.arrays[name][trigger - 1] for name in ("images", "stamped"))
            row[0].imshow(np.where(stamped != plain, stamped, 0).transpose(1, 2, 0), cmap="gray", vmin=0, vmax=255)
        else:
            row[0].set_frame_on(False)
        row[0].set_ylabel(f"trigger {trigger}" if trigger else "clean", fontsize=8)
        for k, axis in enumerate(row[1:]):
            axis.imshow((masks[k] * colours[k]).transpose(1, 2, 0), cmap="gray", vmin=0, vmax=1)
            own = attack is not None and attack.target == k
            axis.set_title(
                f"{k}: {masks[k].sum():.0f}", fontsize=7, color=MEAN if own else MEDIAN, weight="bold" if own else None
            )
        for axis in row:
            axis.set(xticks=[], yticks=[])
    axes[0, 0].set_title("true", fontsize=7)
    return _signed(figure, patterns.source)


def reversed_norms(patterns: Patterns) -> Figure | Markdown:
    """Left: the norm of every candidate's mask, the backdoor's class marked. Right: the p-value of its W against clean."""
    table = patterns.candidates() if not patterns.missing else pd.DataFrame()
    if table.empty:
        return _words(patterns.missing or _crafted_missing(patterns))
    first = table[table["sigma"] == patterns.size.pattern_sigmas[0]]
    searched = sorted(set(first["network"]))  # the detector may have been tried on more
    places = first["network"].map(searched.index)
    figure, axes = plt.subplots(1, 2, figsize=(7.2, 3.6), layout="constrained", sharex=True)
    for axis, values in zip(axes, (first["norm"], -first["score"].abs() / np.log(10)), strict=True):
        for own, colour, marker, label in ((False, BLUE, "o", "other classes"), (True, MEAN, "D", "the backdoor's class")):
            where = first["own"] == own
            axis.scatter(places[where], values[where], s=20, color=colour, marker=marker, label=label, alpha=0.8)
        names = ["–" if n.attack is None else str(n.attack.trigger) for n in (patterns.networks[k] for k in searched)]
        axis.set_xticks(range(len(names)), names, fontsize=8)
        axis.set(xlabel="trained-in trigger (–: clean)")
    axes[0].set(title="size of the mask (L1)", ylim=(0, None))
    axes[1].set(title=r"$\log_{10}$ of the p-value of Levene's test")
    axes[1].axhline(np.log10(0.05), color=GREY, linestyle=":")
    axes[0].legend(frameon=False, fontsize=8)
    return _finish(figure, list(axes), _source_of_crafted(patterns, len(searched)), y=None)


def _source_of_crafted(patterns: Patterns, crafted: int) -> str:
    """The source, and how many networks have crafted patterns where not all have."""
    return patterns.source if crafted == len(patterns.networks) else f"{patterns.source}; crafted for {crafted} of them"


def _detector(patterns: Patterns) -> str:
    return rf"$\sigma$ = {patterns.size.sigmas[0]:g}, n = {patterns.size.n}, {patterns.size.points} points"


def _crafted_missing(patterns: Patterns) -> str:
    needs = f"crafted patterns for {len(patterns.networks)} × {patterns.size.network} on {patterns.size.dataset}"
    return not_yet_run("patterns", patterns.profile, needs, seed=patterns.seed)


def _estimates(
    axis: Axes, places: Iterable[float], estimates: Iterable[Estimate], colour: str, marker: str, label: str | None
) -> None:
    """Points with their intervals, if there are any."""
    estimates = list(estimates)
    if not estimates:
        return
    values = np.array([[e.value, e.low, e.high] for e in estimates]).T
    axis.errorbar(
        list(places),
        values[0],
        yerr=_reach(estimates),
        fmt=marker,
        color=colour,
        capsize=2,
        markersize=5,
        linewidth=1,
        label=label,
    )


_LABEL = {"boxstyle": "circle,pad=0.15", "facecolor": "white", "edgecolor": "#333333"}


def _boxes(axis: Axes, w: np.ndarray[Any, Any], ticks: Sequence[float]) -> None:
    """Box plots of W, shape (networks, settings, points), side by side."""
    pooled = list(w.transpose(1, 0, 2).reshape(w.shape[1], -1))
    drawn = axis.boxplot(
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
    _name_boxes(drawn)
    for k, means in enumerate(w.mean(-1).T, 1):
        axis.plot(
            np.full(len(means), k + 0.38), means, linestyle="", marker="_", color=MEAN, markersize=6, gid="mean of a network"
        )
    axis.set_xticklabels([f"{tick:,g}" for tick in ticks])


def _pair_of_boxes(axis: Axes, clean: np.ndarray[Any, Any], triggered: np.ndarray[Any, Any], ticks: Sequence[float]) -> None:
    """Box plots of two batches, each (settings, points), in pairs."""
    for w, colour, shift, name in ((clean, BLUE, -0.2, "clean"), (triggered, YELLOW, 0.2, "with trigger")):
        drawn = axis.boxplot(
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
        _name_boxes(drawn, f"{name}: ")
    axis.set_xticks(range(len(ticks)), _short(ticks), fontsize=8)


def _name_boxes(drawn: dict[str, list[Any]], before: str = "") -> None:
    """Say what is what, for the table of the figure's numbers."""
    for part, name in (
        ("boxes", "quartiles"),
        ("medians", "median"),
        ("means", "mean"),
        ("caps", "whisker"),
        ("fliers", "outlier"),
    ):
        for artist in drawn[part]:
            artist.set_gid(before + name)


def _pairs(axis: Axes, pairs: pd.DataFrame, x: str, y: str, hollow: pd.Series[bool] | None = None) -> None:
    """Two columns against each other, a colour and a marker for each trigger."""
    for trigger in sorted(set(pairs["trigger"])):
        own, (colour, marker) = pairs[pairs["trigger"] == trigger], TRIGGER_STYLES[(int(trigger) - 1) % len(TRIGGER_STYLES)]
        empty = np.zeros(len(own), dtype=bool) if hollow is None else hollow[own.index].to_numpy()
        axis.scatter(own[x][~empty], own[y][~empty], s=26, color=colour, marker=marker, alpha=0.85, label=f"trigger {trigger}")
        left_out = axis.scatter(own[x][empty], own[y][empty], s=26, facecolors="none", edgecolors=colour, marker=marker)
        left_out.set_gid(f"trigger {trigger}, left out")


def _reach(estimates: Iterable[Estimate]) -> np.ndarray[Any, Any]:
    """How far intervals reach below and above their values, (2, estimates); an interval beside its value ends at it."""
    return np.array([[e.value - e.low, e.high - e.value] for e in estimates]).T.clip(min=0)


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
    figure.supxlabel(source, fontsize=7.5, color="#5b616b", x=0.01, ha="left", parse_math=False)
    plt.close(figure)  # the notebook shows what is returned; pyplot shall not show it once more
    return figure


def _words(text: str) -> Markdown:
    from IPython.display import Markdown

    return Markdown(text)
