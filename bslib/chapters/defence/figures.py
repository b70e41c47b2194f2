"""The figures of the chapter on W as a defence."""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bslib.chapters.beyond import nearest
from bslib.chapters.defence.results import ATTACK, LEVEL, Defence
from bslib.chapters.defence.scores import detection_rate
from bslib.chapters.outcomes import over_seeds
from bslib.plotting import (
    BLUE,
    GREY,
    MEAN,
    MEDIAN,
    TRIGGER_STYLES,
    drawn_from,
    finish,
    panels,
    points_with_intervals,
    short_labels,
)

__all__ = ["batches", "copies", "false_alarms", "halves", "images", "networks", "roc"]

#: Colour, marker and label of each test.
TEST_STYLES = {
    "levene": (MEAN, "v", "Levene, without outliers"),
    "brown-forsythe": ("#d95f02", "s", "Brown–Forsythe"),
    "mann-whitney": (BLUE, "o", "Mann–Whitney"),
    "permutation": ("#1b9e77", "^", "permutation"),
    "two-sided": (MEDIAN, "D", "Mann–Whitney, two-sided"),
}
#: The same of each score, with a noise level where the score has one.
SCORE_STYLES = {
    "STRIP": (MEDIAN, "D", "STRIP"),
    "margin": ("#1b9e77", "^", "margin"),
    "two": (GREY, "s", "STRIP, margin"),
    "three": ("#d95f02", "P", "STRIP, margin, W"),
    "W": (BLUE, "o", "W"),
}


def _over_seeds(table: pd.DataFrame, by: Sequence[str], values: Sequence[str]) -> pd.DataFrame:
    """The estimates over seeds of columns of rates, or of arrays of alarms, for each group of rows."""
    groups = table.set_index("seed").groupby(list(by), sort=False, dropna=False)
    rows = [(*about, *(over_seeds(own[name]) for name in values)) for about, own in groups]
    return pd.DataFrame(rows, columns=[*by, *values])


def _by_attack(axis: Axes, table: pd.DataFrame, value: str, levels: Sequence[tuple[str, float, str, str, str]]) -> None:
    """Draw a rate for each threat model and trigger, by score, noise level (NaN for none), colour, marker and label."""
    attacks = {f"{model}, {trigger:g}": own for (model, trigger), own in table.groupby(ATTACK, sort=False)}
    for j, (score, sigma, *style, label) in enumerate(levels):
        for k, own in enumerate(attacks.values()):
            chosen = own[(own["score"] == score) & (own["sigma"].isna() if np.isnan(sigma) else own["sigma"] == sigma)]
            place = k + 0.6 * ((j + 0.5) / len(levels) - 0.5)
            points_with_intervals(axis, [place], chosen[value], style[0], style[1], None if k else label)
    axis.axhline(LEVEL, color=GREY, linestyle=":")
    axis.set_xticks(range(len(attacks)), list(attacks), fontsize=8)
    axis.set(xlabel="threat model, trigger", ylim=(-0.03, 1.03))


@drawn_from(lambda defence: _over_seeds(defence.images, [*ATTACK, "score", "sigma"], ["auc", "5%", "1%"]))
def images(defence: Defence, table: pd.DataFrame) -> Figure:
    """The area under the ROC curve of W at each noise level (left), and how many images each score finds (right)."""
    figure, axes = panels(2)
    sigma, sigmas = nearest(defence.size.sigmas), defence.size.sigmas
    for k, ((model, trigger), own) in enumerate(table[table["score"] == "W"].groupby(ATTACK, sort=False)):
        colour, marker = [*TRIGGER_STYLES, (MEAN, "X")][k % 7]
        areas = [area.value for area in own["auc"]]
        label = f"{model}, {trigger:g}"
        axes[0].plot(range(len(sigmas)), areas, marker + "-", color=colour, markersize=4, linewidth=1, label=label)
    with_noise = ("W", "three")
    levels = [(score, sigma if score in with_noise else np.nan, *style) for score, style in SCORE_STYLES.items()]
    _by_attack(axes[1], table, "5%", levels)
    axes[0].axhline(0.5, color=GREY, linestyle=":")
    axes[0].set_xticks(range(len(sigmas)), short_labels(sigmas))
    axes[0].set(xlabel=r"noise level $\sigma$", ylim=(-0.03, 1.5), yticks=np.arange(6) / 5)
    axes[0].set_title("area under the ROC curve of W", fontsize=10)
    axes[1].set_title(rf"found at 5% false alarms (W: $\sigma$ = {sigma:g})", fontsize=10)
    for axis, title in zip(axes, ("threat model, trigger", None), strict=True):
        axis.legend(frameon=False, fontsize=8, ncols=2, loc="upper left", title=title, title_fontsize=8, alignment="left")
    return finish(figure, axes, defence.source, y=None)


def _roc(defence: Defence) -> pd.DataFrame:
    """The mean over networks of the ROC curves of STRIP, of the margin and of W at every noise level."""
    alarms = np.arange(100) / 100
    rows = [
        (network.attack.threat_model, name, sigma, np.array([detection_rate(*pair, alarms=at) for at in alarms]))
        for network in defence.backdoored
        for name, sigma, pair in defence.suspicions(network)
        if network.attack is not None and name not in ("two", "three")
    ]
    table = pd.DataFrame(rows, columns=["threat model", "score", "sigma", "curve"])
    by, curves = ["threat model", "score", "sigma"], []
    for about, own in table.groupby(by, sort=False, dropna=False)["curve"]:
        curve = {"false positive rate": alarms, "true positive rate": np.mean(list(own), axis=0)}
        curves.append(pd.DataFrame(dict(zip(by, about, strict=True)) | curve))
    return pd.concat(curves) if curves else pd.DataFrame()


@drawn_from(_roc)
def roc(defence: Defence, table: pd.DataFrame) -> Figure:
    """The ROC curves of STRIP, of the margin and of W for single images, averaged over the networks of a threat model."""
    models = list(table.groupby("threat model", sort=False))
    figure, axes = panels(len(models))
    shades = plt.get_cmap("Blues")(np.linspace(0.35, 1, len(defence.size.sigmas)))
    for axis, (model, own) in zip(axes, models, strict=True):
        axis.plot([0, 1], [0, 1], linestyle=":", color=GREY)
        for (score, sigma), curve in own.groupby(["score", "sigma"], sort=False, dropna=False):
            noise = score == "W"
            colour = shades[defence.size.sigmas.index(sigma)] if noise else SCORE_STYLES[str(score)][0]
            label = rf"W, $\sigma$ = {sigma:g}" if noise else str(score)
            axis.plot(
                curve["false positive rate"], curve["true positive rate"], color=colour, linewidth=1 if noise else 2, label=label
            )
        axis.set(xlabel="false positive rate", title=str(model), xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), aspect="equal")
    axes[-1].legend(frameon=False, fontsize=7, loc="upper left", bbox_to_anchor=(1, 1))
    return finish(figure, axes, defence.source, y="true positive rate")


def _batches(defence: Defence) -> pd.DataFrame:
    table = defence.batches[defence.batches["carried"] == "trigger"]
    return _over_seeds(table, ["threat model", "points", "sigma", "test"], ["alarms"])


@drawn_from(_batches)
def batches(defence: Defence, table: pd.DataFrame) -> Figure:
    """How many triggered batches each test on W finds, against the number of points, for each threat model."""
    level = nearest(defence.size.sigmas, 0.25)
    models = list(table[table["sigma"] == level].groupby("threat model", sort=False))
    figure, axes = panels(len(models))
    for axis, (model, own) in zip(axes, models, strict=True):
        _by_test(axis, own, "points")
        axis.set(xlabel="points in a batch", title=str(model), ylim=(-0.03, 1.4), yticks=np.arange(6) / 5)
    axes[len(axes) // 2].legend(frameon=False, fontsize=7, loc="upper left")
    return finish(figure, axes, rf"{defence.source}; σ = {level:g}", y="fraction found")


def _false_alarms(defence: Defence) -> pd.DataFrame:
    table = defence.batches[defence.batches["carried"] == "clean"]
    return _over_seeds(table, ["points", "sigma", "test"], ["alarms"])


@drawn_from(_false_alarms)
def false_alarms(defence: Defence, table: pd.DataFrame) -> Figure:
    """How often each test tells two clean batches apart, against the noise level and against the number of points."""
    figure, axes = panels(2)
    level, points = nearest(defence.size.sigmas), nearest(sorted(set(table["points"])), 25)
    _by_test(axes[0], table[table["points"] == points], "sigma")
    _by_test(axes[1], table[table["sigma"] == level], "points")
    axes[0].set(xlabel=r"noise level $\sigma$", title=f"{points:g} points", ylim=(-0.03, 1.03))
    axes[1].set(xlabel="points in a batch", title=rf"$\sigma$ = {level:g}")
    axes[0].legend(frameon=False, fontsize=8)
    return finish(figure, axes, defence.source, y="false alarms")


def _by_test(axis: Axes, table: pd.DataFrame, by: str) -> None:
    """Draw the alarms of each test against a column."""
    places = sorted(set(table[by]))
    for k, (test, (colour, marker, label)) in enumerate(TEST_STYLES.items()):
        own = table[table["test"] == test]
        points_with_intervals(axis, [places.index(v) + 0.13 * (k - 2) for v in own[by]], own["alarms"], colour, marker, label)
    axis.axhline(LEVEL, color=GREY, linestyle=":")
    axis.set_xticks(range(len(places)), short_labels(places))


@drawn_from(lambda defence: _over_seeds(defence.copies, ["threat model", "n"], ["auc", "5%"]))
def copies(defence: Defence, table: pd.DataFrame) -> Figure:
    """The area under the ROC curve of W for single images, and how many it finds, against the number of noisy copies."""
    figure, axes = panels(2)
    for k, (model, own) in enumerate(table.groupby("threat model", sort=False)):
        for axis, value in zip(axes, ("auc", "5%"), strict=True):
            places = [defence.size.ns.index(n) + 0.12 * (k - 1) for n in own["n"]]
            points_with_intervals(axis, places, own[value], *TRIGGER_STYLES[k % 6], str(model))
    for axis, title, chance in zip(axes, ("area under the ROC curve", "found at 5% false alarms"), (0.5, 0.05), strict=True):
        axis.axhline(chance, color=GREY, linestyle=":")
        axis.set_xticks(range(len(defence.size.ns)), [str(n) for n in defence.size.ns])
        axis.set(xlabel="noisy copies of an image", title=title, ylim=(-0.03, 1.03))
    axes[0].legend(frameon=False, fontsize=8)
    return finish(figure, axes, rf"{defence.source}; σ = {nearest(defence.size.sigmas):g}", y=None)


@drawn_from(lambda defence: _over_seeds(defence.halves, [*ATTACK, "score", "sigma", "points"], ["found", "alarms"]))
def halves(defence: Defence, table: pd.DataFrame) -> Figure:
    """How many triggered batches the two-sided test finds with STRIP, with the margin and with W at two noise levels."""
    points, sigmas = nearest(sorted(set(table["points"])), 25), defence.size.sigmas
    small, large = nearest(sigmas), nearest(sigmas, 0.25)
    levels = [(score, np.nan, *SCORE_STYLES[score]) for score in ("STRIP", "margin")]
    levels += [("W", small, BLUE, "o", rf"W, $\sigma$ = {small:g}"), ("W", large, "#7570b3", "X", rf"W, $\sigma$ = {large:g}")]
    figure, axes = panels(2)
    for axis, value, title in zip(axes, ("found", "alarms"), ("with the trigger", "without: false alarms"), strict=True):
        _by_attack(axis, table[table["points"] == points], value, levels)
        axis.set_title(title)
    axes[1].legend(frameon=False, fontsize=8)
    return finish(figure, axes, f"{defence.source}; {points:g} points", y="fraction of batches")


def _networks(defence: Defence) -> pd.DataFrame:
    table = defence.candidates[defence.candidates["sigma"] == nearest(defence.size.candidate_sigmas)]
    pairs = zip(table["threat model"], table["trigger"], strict=True)
    return table.assign(kind=["clean" if pd.isna(trigger) else f"{model}, {trigger:g}" for model, trigger in pairs])


@drawn_from(_networks)
def networks(defence: Defence, table: pd.DataFrame) -> Figure:
    """The anomaly index of each network from its masks (left) and from W around the candidates (right)."""
    figure, axes = panels(2)
    areas = defence.network_areas(nearest(defence.size.candidate_sigmas))
    for axis, name, title in zip(axes, ("mask", "W"), ("size of the masks", "mean W with the candidates"), strict=True):
        kinds = list(table.groupby("kind", sort=False)[name])
        for k, (kind, own) in enumerate(kinds):
            colour = BLUE if kind == "clean" else MEAN
            axis.scatter(k + np.linspace(-0.15, 0.15, len(own)), own, s=24, color=colour, alpha=0.8)
        axis.set_xticks(range(len(kinds)), [str(kind) for kind, _ in kinds])
        axis.set_title(title + (f"\narea {areas[name]:.2f}" if name in areas else ""), fontsize=10)
        axis.set_xlabel(f"threat model, trigger ({len(table)} networks)")
    axes[0].axhline(2, color=GREY, linestyle=":")
    return finish(figure, axes, defence.source, y="anomaly index")


FIGURES = (images, roc, batches, false_alarms, halves, copies, networks)
