"""The figures of the chapter on patterns that smooth (Figs. 6 and 7)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from bslib.chapters.patterns.candidates import candidates
from bslib.chapters.patterns.detector import EFFECTIVE, by_trigger, sensitivity, working
from bslib.chapters.patterns.plan import cleanse_of, trained_trigger, universals_of
from bslib.chapters.patterns.results import Patterns
from bslib.chapters.patterns.universal import universal_areas
from bslib.plotting import (
    BLUE,
    GREY,
    MEAN,
    MEDIAN,
    SETTING_STYLE,
    YELLOW,
    drawn_from,
    finish,
    panels,
    points_with_intervals,
    short_labels,
    signed,
    trigger_style,
    words,
)

if TYPE_CHECKING:
    from IPython.display import Markdown

__all__ = ["found_by_success", "reversed_norms", "reversed_triggers", "roc", "roc_by_setting", "universal"]


def _roc(patterns: Patterns) -> pd.DataFrame:
    from sklearn.metrics import roc_curve

    tables = []
    for positives, triggers in _positives(patterns).items():
        tests = patterns.trained_on(patterns.tests(), triggers)
        own = tests["carried"] == "own"
        if own.any():
            false, true, _ = roc_curve(own, tests["score"])
            counts = {"positives": positives, "positive": own.sum(), "negative": (~own).sum()}
            tables.append(pd.DataFrame({"false positive rate": false, "true positive rate": true} | counts))
    return pd.concat(tables) if tables else pd.DataFrame()


def _positives(patterns: Patterns) -> dict[str, list[int] | None]:
    """The own triggers to be found, in words: all, and those that work."""
    works = working(patterns)
    return {"all own triggers": None, f"own triggers that work ({', '.join(map(str, works)) or 'none'})": works}


@drawn_from(_roc)
def roc(patterns: Patterns, table: pd.DataFrame) -> Figure:
    """Fig. 6: the ROC curve of the W detector. Positives on the left are all own triggers, on the right those that work."""
    figure, axes = panels(2)
    for axis, (positives, triggers) in zip(axes, _positives(patterns).items(), strict=True):
        own = table[table["positives"] == positives]
        axis.plot([0, 1], [0, 1], linestyle=":", color=GREY)
        if len(own):
            axis.step(own["false positive rate"], own["true positive rate"], where="post", color=YELLOW, linewidth=2.2)
            counts = f"{own['positive'].iloc[0]} positive, {own['negative'].iloc[0]} negative"
            axis.text(0.97, 0.05, f"AUC {patterns.area(triggers=triggers):.2f}\n{counts}", ha="right", fontsize=10)
        axis.set(xlabel="false positive rate", aspect="equal", xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
        axis.set_title(positives, fontsize=11)
    return finish(figure, axes, f"{patterns.source}; {_detector(patterns)}", y="true positive rate")


@drawn_from(sensitivity)
def roc_by_setting(patterns: Patterns, table: pd.DataFrame) -> Figure:
    """The area under the ROC curve against sigma: by batch size, by the form of the test, and for triggers that work."""
    full = patterns.size.points
    # Batch, form of the test, and the triggers to be found, by label.
    by_batch = {f"{size} points": (size, "paper", "all") for size in sorted(set(table["batch"]))}
    forms = {"the paper's": "paper", "calibrated": "calibrated", "median": "median", "no direction": "no direction"}
    by_form = {label: (full, form, "all") for label, form in forms.items()}
    that_work = {label: (full, forms[label], "working") for label in ("the paper's", "calibrated")}
    figure, axes = panels(3, height=3.9)
    sigmas, settings = sorted(set(table["sigma"])), table.groupby(["batch", "form", "triggers"])
    for axis, lines in zip(axes, (by_batch, by_form, that_work), strict=True):
        for k, (label, setting) in enumerate(lines.items()):
            own = settings.get_group(setting) if setting in settings.groups else table[:0]
            places = [sigmas.index(sigma) + 0.12 * (k - 1.5) for sigma in own["sigma"]]
            points_with_intervals(axis, places, own["area"], *SETTING_STYLE[k % len(SETTING_STYLE)], label)
        axis.axhline(0.5, color=GREY, linestyle=":")
        axis.set(xlabel=r"noise level $\sigma$", ylim=(-0.03, 1.03))
        axis.set_xticks(range(len(sigmas)), short_labels(sigmas))
        if axis.get_legend_handles_labels()[0]:  # some trigger works
            axis.legend(frameon=False, fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.18), ncols=2)
    for axis, title in zip(axes, ("by the size of the batch", f"by the test, {full} points", "triggers that work"), strict=True):
        axis.set_title(title, fontsize=10)
    return finish(figure, axes, patterns.source, y="area under the ROC curve")


@drawn_from(universal_areas)
def universal(patterns: Patterns, table: pd.DataFrame) -> Figure:
    """Fig. 7, against the bound: the fraction of fooled images, their classes, and the area under the ROC curve."""
    figure, axes = panels(3, height=3.4, sharey=False)
    bounds, sigma = sorted(set(table["bound"])), patterns.size.pattern_sigmas[0]
    by_bound = zip(*(universals_of(patterns.size, network) for network in patterns.listed), strict=True)
    crafted = [number for specs in by_bound if (number := sum(spec in patterns.records for spec in specs))]
    first = table[table["sigma"] == sigma]
    for axis, name in zip(axes[:2], ("fooled", "classes"), strict=True):
        points_with_intervals(axis, [bounds.index(bound) for bound in first["bound"]], first[name], BLUE, "o", name)
    levels = list(table.groupby("sigma"))
    for k, (level, own) in enumerate(levels):
        places = [bounds.index(bound) + 0.14 * (k - (len(levels) - 1) / 2) for bound in own["bound"]]
        points_with_intervals(axes[2], places, own["auc"], *SETTING_STYLE[k % len(SETTING_STYLE)], rf"$\sigma$ = {level:g}")
    axes[2].axhline(0.5, color=GREY, linestyle=":")
    axes[2].legend(frameon=False, fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.2))
    for axis, title in zip(axes, ("predictions changed", "classes they go to", "AUC against clean"), strict=True):
        axis.set_xticks(range(len(bounds)), [str(b) for b in bounds])
        axis.set(xlabel="bound (255 is white)", ylim=(-0.05, 1.05) if axis is axes[2] else (0, None))
        axis.set_title(title, fontsize=10)
    return finish(figure, axes, _source_of_crafted(patterns, *crafted), y=None)


def reversed_triggers(patterns: Patterns) -> Figure | Markdown:
    """Neural Cleanse's candidates for a clean network and a network with each trigger, beside the true trigger."""
    crafted = [network for network in reversed(patterns.networks) if cleanse_of(patterns.size, network) in patterns.records]
    shown = {trained_trigger(network): network for network in crafted}
    if not shown:
        return words(patterns.missing or patterns.not_yet_run())
    records = {trigger: patterns.records[cleanse_of(patterns.size, shown[trigger])] for trigger in sorted(shown)}
    columns = 6
    rows = -(-(1 + len(next(iter(records.values())).arrays["masks"])) // columns)
    figure = plt.figure(figsize=(7.2, 1.35 * rows * len(records)), layout="constrained")
    parts = figure.subfigures(len(records), 1, squeeze=False)[:, 0]
    for part, (trigger, record) in zip(parts, records.items(), strict=True):
        masks, colours = record.arrays["masks"], record.arrays["patterns"]
        attack = shown[trigger].attack
        true, *axes = part.subplots(rows, columns).flat
        part.suptitle(f"network with trigger {trigger}" if trigger else "clean network", fontsize=9, x=0.01, ha="left")
        if trigger and patterns.pictures is not None:
            plain, stamped = (patterns.pictures.arrays[name][trigger - 1] for name in ("images", "stamped"))
            true.imshow(np.where(stamped != plain, stamped, 0).transpose(1, 2, 0), cmap="gray", vmin=0, vmax=255)
            true.set_title("true trigger", fontsize=8)
        else:
            true.axis("off")
        for k, axis in enumerate(axes[: len(masks)]):
            axis.imshow((masks[k] * colours[k]).transpose(1, 2, 0), cmap="gray", vmin=0, vmax=1)
            own = attack is not None and attack.target == k
            style = {"color": MEAN, "weight": "bold"} if own else {"color": MEDIAN}
            axis.set_title(f"class {k}: {masks[k].sum():.0f}", fontsize=8, **style)
        for axis in axes[len(masks) :]:
            axis.axis("off")
        for axis in (true, *axes):
            axis.set(xticks=[], yticks=[])
    data = patterns.records[patterns.networks[0]].data["source"]
    keys = ", ".join(shown[trigger].key[:6] for trigger in records)
    return signed(figure, f"{data}; one network of each kind: {keys}; profile {patterns.profile}")


def _candidates(patterns: Patterns) -> pd.DataFrame:
    """The candidates at the first noise level, with the network's trigger and the score in powers of ten."""
    table = candidates(patterns)
    table = table[table["sigma"] == patterns.size.pattern_sigmas[0]]
    return table.assign(trigger=patterns.triggers(table), score10=table["score"] / np.log(10))


@drawn_from(_candidates)
def reversed_norms(patterns: Patterns, table: pd.DataFrame) -> Figure:
    """Left: the norm of every candidate's mask; the target class is marked. Right: the signed score of W against clean images."""
    searched = table.drop_duplicates("network")
    places = table["network"].map(searched["network"].to_list().index)  # the W detector is measured on more networks
    kinds = {t: np.flatnonzero(searched["trigger"] == t) for t in searched["trigger"].unique()}
    figure, axes = plt.subplots(1, 2, figsize=(7.2, 3.6), layout="constrained", sharex=True)
    for axis, values in zip(axes, (table["norm"], table["score10"]), strict=True):
        for own, colour, marker, label in ((False, BLUE, "o", "other classes"), (True, MEAN, "D", "the backdoor's class")):
            where = table["own"] == own
            axis.scatter(places[where], values[where], s=20, color=colour, marker=marker, label=label, alpha=0.8)
        axis.set_xticks([of.mean() for of in kinds.values()], [str(t) if t else "none" for t in kinds], fontsize=8)
        for of in list(kinds.values())[1:]:
            axis.axvline(of.min() - 0.5, color=GREY, linewidth=0.8)
        axis.set(xlabel="networks, by their trained-in trigger")
    axes[0].set(title="size of the mask (L1)", ylim=(0, None))
    axes[1].set(title=r"signed score: $-\log_{10}$ p")
    axes[1].axhline(0, color=MEDIAN, linewidth=1)
    axes[1].axhline(-np.log10(0.05), color=GREY, linestyle=":")
    for place, text in ((0.97, "found: W varies less than on clean images"), (0.03, "not found: W varies more")):
        axes[1].text(0.03, place, text, transform=axes[1].transAxes, fontsize=7.5, va="top" if place > 0.5 else "bottom")
    axes[1].margins(y=0.12)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=2, frameon=False, fontsize=8)
    return finish(figure, list(axes), _source_of_crafted(patterns, len(searched)), y=None)


def _source_of_crafted(patterns: Patterns, *crafted: int) -> str:
    """The source line, with the smallest and the largest number of networks that have a crafted pattern."""
    numbers = " to ".join(str(number) for number in sorted({min(crafted), max(crafted)}))
    every = len({numbers, str(len(patterns.networks)), str(len(patterns.listed))}) == 1
    return patterns.source if every else f"{patterns.source}; crafted for {numbers} networks"


def _detector(patterns: Patterns) -> str:
    return f"σ = {patterns.size.sigmas[0]:g}, n = {patterns.size.n}, {patterns.size.points} points"


@drawn_from(by_trigger)
def found_by_success(patterns: Patterns, table: pd.DataFrame) -> Figure:
    """The area under the ROC curve for each trained-in trigger against its success, at two noise levels."""
    shown = [sigma for sigma in (0.1, 0.25) if sigma in set(table["sigma"])] or sorted(set(table["sigma"]))[:1]
    figure, axes = panels(len(shown))
    for axis, sigma in zip(axes, shown, strict=True):
        own = table[table["sigma"] == sigma].sort_values("trigger")
        axis.axhline(0.5, color=GREY, linestyle=":", linewidth=1)
        axis.axvspan(EFFECTIVE, 1.03, color=GREY, alpha=0.12, linewidth=0)
        for _, row in own.iterrows():
            style = trigger_style(row["trigger"])
            points_with_intervals(axis, [row["success"].value], [row["auc"]], *style, f"trigger {row['trigger']}")
        axis.set(xlabel="success of the trigger", title=rf"$\sigma$ = {sigma:g}", xlim=(-0.03, 1.03), ylim=(-0.03, 1.05))
    axes[0].legend(frameon=False, fontsize=8, loc="upper center")
    return finish(figure, axes, f"{patterns.source}; grey: triggers that work", y="area under the ROC curve (AUC)")


FIGURES = (roc, roc_by_setting, found_by_success, universal, reversed_norms)
