"""The tables say what the figures show."""

from __future__ import annotations

import base64
import io
import re

import numpy as np
import pandas as pd
import pytest
from matplotlib.cbook import boxplot_stats
from matplotlib.figure import Figure
from test_figures import SIZE

from bslib import figures, tables


@pytest.fixture(scope="module")
def half(made_up_half):
    return made_up_half(SIZE)


def test_a_box_has_its_quartiles_median_mean_whiskers_and_outliers(half):
    table = tables.numbers_of(figures.w_against_sigma(half))
    w = half.over_sigma()
    for k, sigma in enumerate(SIZE.sigmas):
        own = table[table["at"] == f"{sigma:g}"].groupby("series")
        expected = boxplot_stats(w[:, k].ravel(), whis=1.5)[0]
        assert own.get_group("quartiles")[["low", "high"]].to_numpy() == pytest.approx(
            np.array([[expected["q1"], expected["q3"]]])
        )
        assert own.get_group("median")["y"].to_numpy() == pytest.approx([expected["med"]])
        assert own.get_group("mean")["y"].to_numpy() == pytest.approx([expected["mean"]])
        assert sorted(own.get_group("whisker")["y"]) == pytest.approx([expected["whislo"], expected["whishi"]])
        assert sorted(own.get_group("mean of a network")["y"]) == pytest.approx(sorted(w[:, k].mean(-1)))
        outliers = sorted(own.get_group("outlier")["y"]) if "outlier" in own.groups else []
        assert outliers == pytest.approx(sorted(expected["fliers"]))


def test_curves_are_told_apart_by_label_and_panel(half):
    table = tables.numbers_of(figures.estimator_bias(half))
    bias = half.bias()
    assert set(table["series"]) == set(bias) and table["panel"].nunique() == 2
    for name, parts in bias.items():
        own = table[table["series"] == name]
        assert own["y"].to_numpy() == pytest.approx(np.concatenate([column[-1] for column in parts]))
        assert own["x"].to_list() == 2 * list(SIZE.ns)


def test_intervals_have_both_ends():
    figure = Figure()
    axis = figure.subplots()
    nan = float("nan")
    axis.errorbar([0, 1, 2], [0.5, 0.75, nan], yerr=[[0.25, 0.125, nan], [0.25, 0.5, nan]], fmt="o", capsize=2, label="AUC")
    axis.axhline(0.5)
    axis.set(xlabel="noise", ylabel="area")
    axis.set_xticks([0, 1, 2], ["0.05", "0.1", "0.25"])
    table = tables.numbers_of(figure)
    assert table[["panel", "series", "x axis", "y axis"]].to_numpy().tolist() == 3 * [[1, "AUC", "noise", "area"]]
    assert table["at"].to_list() == ["0.05", "0.1", "0.25"]
    numbers = table[["x", "y", "low", "high"]].to_numpy(dtype=float)
    assert numbers == pytest.approx(np.array([[0, 0.5, 0.25, 0.75], [1, 0.75, 0.625, 1.25], [2, nan, nan, nan]]), nan_ok=True)


def test_links_hold_the_table_and_leave_out_what_has_none(half):
    figure = figures.w_against_sigma(half)
    links = tables.downloads({"fig-sigma": figure, "fig-none": "not yet run", "fig-empty": Figure()}).data
    (name, content), *others = re.findall(r'download="([^"]+)" href="data:text/csv;base64,([^"]+)"', links)
    assert name == "fig-sigma.csv" and not others
    table, found = tables.numbers_of(figure), pd.read_csv(io.BytesIO(base64.b64decode(content)), dtype={"at": str})
    assert found["series"].to_list() == table["series"].to_list() and found["at"].to_list() == table["at"].to_list()
    assert found["y"].to_numpy() == pytest.approx(table["y"].to_numpy(dtype=float), rel=1e-5, nan_ok=True)
    assert "No figure" in tables.downloads({"fig-none": "not yet run"}).data
