"""Intervals against SciPy, against formulas by hand, and against simulation."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from bslib.statistics import (
    Estimate,
    Estimates,
    NotYetRun,
    mean_of_networks,
    nested_bootstrap,
    percentile_estimate,
    variation_of_networks,
)


def mean(values):
    return values.mean(-1)


# --- nested bootstrap --------------------------------------------------------------------------------------------


def test_one_network_is_a_plain_bootstrap_of_points():
    w = np.random.default_rng(0).gamma(0.5, 0.3, 250)
    value, draws = nested_bootstrap([w], mean, resamples=2000)
    found = percentile_estimate(value, draws, 1)
    plain = stats.bootstrap((w,), np.mean, n_resamples=4000, method="percentile", rng=np.random.default_rng(1))
    low, high = plain.confidence_interval
    assert found.value == pytest.approx(w.mean(), rel=1e-12)
    assert found.high - found.low == pytest.approx(high - low, rel=0.15)
    assert found.low == pytest.approx(low, abs=0.15 * (high - low))


def test_the_value_is_the_mean_over_networks_of_the_statistic():
    rng = np.random.default_rng(0)
    networks = [rng.normal(size=(2, 3, size)) for size in (40, 50, 60)]  # batches need not be of one size
    value, draws = nested_bootstrap(networks, lambda w: np.stack([w.mean(-1), np.median(w, -1)]), resamples=20)
    assert value.shape == (2, 2, 3) and draws.shape == (20, 2, 2, 3)
    expected = [np.mean([w.mean(-1) for w in networks], 0), np.mean([np.median(w, -1) for w in networks], 0)]
    assert np.allclose(value, expected)


@pytest.mark.parametrize(("between", "within"), [(1.0, 0.1), (0.1, 3.0), (0.5, 2.0)])
def test_draws_have_the_variance_that_the_model_has(between, within):
    """w = network effect + point effect. The draws' variance is known; here R = 8 networks of B = 50 points.

    Resampling R networks with replacement gives (R - 1) / R of the variance of a network's mean, and resampling the points
    of each adds theirs once more: ((R - 1) / R (a + e / B) + e / B) / R, for variances a between and e within.
    """
    networks, points, rng = 8, 50, np.random.default_rng(1)
    widths = []
    for seed in range(15):
        w = between * rng.normal(size=(networks, 1)) + within * rng.normal(size=(networks, points))
        widths.append(nested_bootstrap(list(w), mean, resamples=150, seed=seed)[1].var())
    a, e = between**2, within**2 / points
    assert np.mean(widths) == pytest.approx(((networks - 1) / networks * (a + e) + e) / networks, rel=0.3)


def test_intervals_cover_the_truth():
    rng, hits = np.random.default_rng(2), 0
    for seed in range(80):
        w = 3 + 0.3 * rng.normal(size=(10, 1)) + rng.normal(size=(10, 40))
        estimate = percentile_estimate(*nested_bootstrap(list(w), mean, resamples=120, seed=seed), 10)
        hits += estimate.low <= 3 <= estimate.high
    assert 0.83 <= hits / 80 <= 1.0


def test_points_alone_would_be_far_too_narrow():
    rng = np.random.default_rng(3)
    w = rng.normal(size=(5, 1)) + 0.1 * rng.normal(size=(5, 250))
    _, nested = nested_bootstrap(list(w), mean)
    _, of_points = nested_bootstrap([w.ravel()], mean)
    assert nested.std() > 4 * of_points.std()


def test_settings_stay_paired():
    """Two settings of the same points that differ by a constant differ by it in every draw."""
    w = np.random.default_rng(0).normal(size=(5, 1, 80))
    networks = [np.concatenate([one, one + 0.25]) for one in w]
    _, draws = nested_bootstrap(networks, mean, resamples=50)
    assert np.allclose(draws[:, 1] - draws[:, 0], 0.25) and draws[:, 0].std() > 0.01


def test_draws_are_a_function_of_the_seed():
    w = list(np.random.default_rng(0).normal(size=(3, 20)))
    draws = [nested_bootstrap(w, mean, resamples=30, seed=seed)[1] for seed in (0, 0, 1)]
    assert np.array_equal(draws[0], draws[1]) and not np.array_equal(draws[0], draws[2])


# --- over networks -----------------------------------------------------------------------------------------------


def test_mean_of_networks_is_students_t():
    shares = [0.881, 0.879, 0.886, 0.874, 0.884]
    found = mean_of_networks(shares, 10_000)
    expected = stats.ttest_1samp(shares, 0).confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), rel=1e-12)
    assert found.value == pytest.approx(0.8808) and found.networks == 5
    by_hand = 2.7764451 * np.std(shares, ddof=1) / math.sqrt(5)  # t of 4 degrees of freedom, from a table
    assert found.high - found.value == pytest.approx(by_hand, rel=1e-6)


@pytest.mark.parametrize(("hits", "trials"), [(8812, 10_000), (500, 500), (0, 500), (1, 3)])
def test_one_network_has_wilsons_interval(hits, trials):
    p, z = hits / trials, 1.959963984540054
    centre = (p + z * z / (2 * trials)) / (1 + z * z / trials)
    half = z / (1 + z * z / trials) * math.sqrt(p * (1 - p) / trials + z * z / (4 * trials**2))
    found = mean_of_networks([p], trials)
    assert (found.value, found.networks) == (p, 1)
    assert (found.low, found.high) == pytest.approx((centre - half, centre + half), abs=1e-9)
    assert 0 <= found.low <= p <= found.high <= 1


def test_equal_networks_have_an_interval_of_no_width():
    found = mean_of_networks([0.88, 0.88, 0.88], 10_000)
    assert found.low == pytest.approx(0.88, abs=1e-9) and found.high == pytest.approx(0.88, abs=1e-9)


def test_variation_of_networks_by_hand():
    found = variation_of_networks([0.9, 1.0, 1.1])
    # Quantiles of chi-square with 2 degrees of freedom are -2 ln(1 - p).
    assert found.value == pytest.approx(0.1)
    assert found.low == pytest.approx(0.1 * math.sqrt(2 / (-2 * math.log(0.025))))
    assert found.high == pytest.approx(0.1 * math.sqrt(2 / (-2 * math.log(0.975))))
    assert found.networks == 3


def test_variation_of_networks_covers_the_truth():
    samples = np.random.default_rng(0).normal(2.0, 0.1, size=(1500, 5))
    found = [variation_of_networks(sample.tolist()) for sample in samples]
    assert 0.93 < np.mean([one.low <= 0.05 <= one.high for one in found]) < 0.97
    assert np.mean([one.value for one in found]) == pytest.approx(0.05 * 0.94, rel=0.02)  # c4 of 5 is 0.9400


def test_one_network_has_no_variation():
    with pytest.raises(ValueError, match="at least 2 networks, got 1"):
        variation_of_networks([0.9])


# --- in words ----------------------------------------------------------------------------------------------------


def test_percentile_estimate_is_the_quantiles():
    draws = np.random.default_rng(0).normal(size=4001)
    found = percentile_estimate(0.3, draws, 7)
    ordered = np.sort(draws)
    assert (found.low, found.high) == (ordered[100], ordered[3900]) and (found.value, found.networks) == (0.3, 7)


def test_formats_apply_to_all_three_numbers():
    estimate = Estimate(0.5, 0.25, 0.75, 5)
    assert f"{estimate:.1%}" == "50.0% [25.0%, 75.0%]" and f"{estimate:+.2f}" == "+0.50 [+0.25, +0.75]"
    assert str(estimate) == f"{estimate}" == "0.500 [0.250, 0.750]"


def test_what_has_no_records_says_so():
    estimates = Estimates({"there": Estimate(0.5, 0.25, 0.75, 5)})
    assert f"{estimates['absent']:.1%} {estimates['there']:.1f}" == "(not yet run) 0.5 [0.2, 0.8]"
    assert isinstance(estimates["absent"], NotYetRun)
    assert "absent" not in estimates and estimates.get("absent") is None and len(estimates) == 1
