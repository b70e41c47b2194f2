"""The figures of the Parameters chapter (Fig. 2)."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from bslib.chapters.parameters.results import ParameterResults
from bslib.plotting import ESTIMATOR_STYLE, GREY, box_table, boxes, drawn_from, finish, panels

__all__ = ["estimator_bias", "w_against_n", "w_against_sigma"]


def _over_n(results: ParameterResults) -> pd.DataFrame:
    size = results.size
    w = results.over_n()[..., : size.batch]
    settings = [({"sigma": sigma, "n": n}, w[:, s, k]) for s, sigma in enumerate(size.n_sigmas) for k, n in enumerate(size.ns)]
    return box_table(settings)


@drawn_from(_over_n)
def w_against_n(results: ParameterResults, table: pd.DataFrame) -> Figure:
    """Fig. 2, left: box plots of W against the number of noisy copies, one panel for each noise level of the sweep.

    A box pools the first images of all networks, as many of each as a batch of the paper has. The line is the median, the diamond
    the mean; the small marks are the means of single networks.
    """
    figure, axes = panels(len(results.size.n_sigmas))
    for axis, (sigma, own) in zip(axes, table.groupby("sigma", sort=False), strict=True):
        boxes(axis, own, "n", places=np.arange(len(results.size.ns)))
        axis.set_xticks(range(len(results.size.ns)), [f"{n:,}" for n in results.size.ns])
        axis.set(xlabel="noisy copies n", title=rf"$\sigma$ = {sigma:g}")
    return finish(figure, axes, results.source_of_batch)


def _over_sigma(results: ParameterResults) -> pd.DataFrame:
    size = results.size
    w = results.over_sigma()[..., : size.batch]
    return box_table(({"n": size.n, "sigma": sigma}, w[:, s]) for s, sigma in enumerate(size.sigmas))


@drawn_from(_over_sigma)
def w_against_sigma(results: ParameterResults, table: pd.DataFrame) -> Figure:
    """Fig. 2, right: box plots of W against the noise level; drawn as in :func:`w_against_n`."""
    figure, axes = panels(1)
    sigmas = results.size.sigmas
    boxes(axes[0], table, "sigma", places=np.arange(len(sigmas)))
    axes[0].set_xticks(range(len(sigmas)), [f"{sigma:g}" for sigma in sigmas])
    axes[0].set(xlabel=r"noise level $\sigma$", title=f"n = {results.size.n}")
    return finish(figure, axes, results.source_of_batch)


def _bias(results: ParameterResults) -> pd.DataFrame:
    rows = [
        (sigma, estimator, kind, n, error[s, k])
        for estimator, parts in results.bias().items()
        for kind, error in zip(("no rare class", "with a rare class"), parts, strict=True)
        for s, sigma in enumerate(results.size.n_sigmas)
        for k, n in enumerate(results.size.ns)
    ]
    return pd.DataFrame(rows, columns=["sigma", "estimator", "points", "n", "error of W"])


@drawn_from(_bias)
def estimator_bias(results: ParameterResults, table: pd.DataFrame) -> Figure:
    """The mean error of three estimators of W at each n, for points without and with rare classes.

    The error is taken against Grassberger's estimate at the largest n, averaged over points and networks.
    """
    figure, axes = panels(2)
    ns, sigma = results.size.ns, results.size.n_sigmas[-1]
    shown = table[table["sigma"] == sigma]
    for axis, (kind, own) in zip(axes, shown.groupby("points", sort=False), strict=True):
        for name, line in own.groupby("estimator", sort=False):
            label, colour, marker = ESTIMATOR_STYLE[str(name)]
            axis.plot(line["n"], line["error of W"], color=colour, marker=marker, label=label, markersize=5)
        axis.axhline(0, color=GREY, linewidth=1)
        axis.set(xscale="log", xlabel="noisy copies n", title=f"{kind}, " + rf"$\sigma$ = {sigma:g}")
        axis.set_xticks(ns, [f"{n:,}" for n in ns])
        axis.minorticks_off()
    axes[0].set_ylabel("error of W (nats)")
    axes[0].legend(frameon=False)
    return finish(figure, axes, results.source, y=None)


FIGURES = (w_against_n, estimator_bias, w_against_sigma)
