"""Intervals and tests against SciPy, against formulas by hand, and against simulation."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from matplotlib import cbook
from scipy import stats
from sklearn.metrics import roc_auc_score

from bslib.statistics import (
    Estimate,
    Estimates,
    NotYetRun,
    _quartile,
    auc,
    levene,
    mean_of_networks,
    nested_bootstrap,
    nested_bootstrap_of_means,
    percentile_estimate,
    share_of_networks,
    small_sample_factor,
    variation_of_networks,
    without_outliers,
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
    assert found.low == pytest.approx(low, abs=0.2 * (high - low))


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


@pytest.mark.parametrize("networks", [2, 3, 5, 10])
def test_intervals_of_few_networks_cover_the_truth(networks):
    """With percentiles alone three networks would cover it 8 times of 10, since no draw lies beyond the three."""
    rng, covered, narrow = np.random.default_rng(2), [], []
    for seed in range(300):
        w = 3 + 0.3 * rng.normal(size=(networks, 1)) + 0.5 * rng.normal(size=(networks, 40))
        value, draws = nested_bootstrap_of_means(list(w), resamples=400, seed=seed)
        estimate, (low, high) = percentile_estimate(value, draws, networks), np.quantile(draws, [0.025, 0.975])
        covered.append(estimate.low <= 3 <= estimate.high)
        narrow.append(low <= 3 <= high)
    assert 0.93 <= np.mean(covered) <= 1.0
    assert np.mean(narrow) < np.mean(covered)


def test_widening_is_students_t_for_a_mean():
    """Draws of a mean are about normal, with (k - 1) / k of its variance."""
    values = np.random.default_rng(0).normal(size=12)
    sem = stats.sem(values)
    draws = stats.norm.ppf(np.linspace(0.0005, 0.9995, 20001), values.mean(), sem * (11 / 12) ** 0.5)
    expected = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    found = percentile_estimate(values.mean(), draws, 12)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=0.01 * sem)
    assert small_sample_factor(1) == 1.0 and small_sample_factor(10_000) == pytest.approx(1, abs=1e-3)


def test_intervals_stay_within_what_is_possible():
    found = percentile_estimate(0.9, np.linspace(0.7, 1.0, 101), 3, within=(0, 1))
    assert found.high == 1.0 and 0 <= found.low < 0.7


@pytest.mark.parametrize("share", [0, 1])
@pytest.mark.parametrize("networks", [2, 5, 12])
def test_networks_that_agree_count_once_each(share, networks):
    """Ten pairs of one network say no more than the network does."""
    ends = stats.binomtest(share * networks, networks).proportion_ci(method="wilson")
    found = share_of_networks([np.full(10, bool(share))] * networks)
    assert (found.value, found.low, found.high) == pytest.approx((share, ends.low, ends.high))
    assert found.networks == networks


def test_the_share_of_one_network_is_that_of_its_points():
    ends = stats.binomtest(0, 40).proportion_ci(method="wilson")
    found = share_of_networks([np.zeros(40, dtype=bool)])
    assert (found.low, found.high, found.networks) == (pytest.approx(ends.low), pytest.approx(ends.high), 1)


def test_shares_of_one_value_a_network_are_wilsons():
    ends = stats.binomtest(4, 12).proportion_ci(method="wilson")
    found = share_of_networks([np.array([k < 4]) for k in range(12)])
    assert (found.value, found.low, found.high) == pytest.approx((1 / 3, ends.low, ends.high))


def test_shares_that_differ_resample_networks():
    own = [np.full(10, k < 2) for k in range(5)]
    found = share_of_networks(own)
    of_pairs = stats.binomtest(20, 50).proportion_ci(method="wilson")
    assert found.value == pytest.approx(0.4) and found.low < of_pairs.low and found.high > of_pairs.high
    alike = share_of_networks([np.arange(10) < 2] * 5)  # each network alike in itself: points still vary
    assert alike.value == pytest.approx(0.2) and 0 <= alike.low < 0.2 < alike.high


def test_points_alone_would_be_far_too_narrow():
    rng = np.random.default_rng(3)
    w = rng.normal(size=(5, 1)) + 0.1 * rng.normal(size=(5, 250))
    _, nested = nested_bootstrap(list(w), mean)
    _, of_points = nested_bootstrap([w.ravel()], mean)
    assert nested.std() > 4 * of_points.std()


@pytest.mark.parametrize("lengths", [[7, 7, 7, 7], [1, 1, 1], [3, 12, 30, 5, 8]])
def test_without_the_loop_means_have_the_same_bootstrap(lengths):
    rng = np.random.default_rng(2)
    networks = [rng.normal(rng.normal(), size=length) for length in lengths]
    value, draws = nested_bootstrap(networks, mean, resamples=4000)
    own, quick = nested_bootstrap_of_means(networks, resamples=4000, seed=1)
    assert own == pytest.approx(value)
    assert np.quantile(quick, [0.025, 0.5, 0.975]) == pytest.approx(np.quantile(draws, [0.025, 0.5, 0.975]), abs=draws.std() / 8)


@pytest.mark.parametrize("lengths", [[30, 30, 30], [7, 30, 7, 12], [40]])
@pytest.mark.parametrize("settings", [(), (2, 3)])
def test_draws_are_those_of_a_loop(lengths, settings):
    """To the last digit: each network is drawn, and then its points, one call of the generator after the other."""
    networks = [np.random.default_rng(size).gamma(0.5, 0.3, (*settings, size)) for size in lengths]
    rng, r, expected = np.random.default_rng(5), len(lengths), []
    for _ in range(50):
        chosen = [networks[k] for k in rng.integers(r, size=r)]
        expected.append(np.mean([mean(w[..., rng.integers(w.shape[-1], size=w.shape[-1])]) for w in chosen], axis=0))
    _, draws = nested_bootstrap(networks, mean, resamples=50, seed=5)
    assert np.array_equal(draws, expected)


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


# --- outliers ----------------------------------------------------------------------------------------------------

few = settings(max_examples=50)

#: W of points: zero of many, some values often, and any other.
values_of_w = st.sampled_from([0.0, 0.0, 0.0258, 0.1, 0.6931, 2.3026]) | st.floats(0, 2.3).map(lambda w: round(w, 3))
batches = st.lists(values_of_w, min_size=1, max_size=40).map(np.array)


@given(w=batches)
def test_outliers_are_the_fliers_of_a_box_plot(w):
    kept, box = without_outliers(w), cbook.boxplot_stats(w, whis=1.5)[0]
    assert sorted([*kept, *box["fliers"]]) == sorted(w)
    assert kept.tolist() == [v for v in w if v in kept], "in their order"


@given(value=values_of_w, size=st.integers(1, 40))
def test_nothing_is_removed_where_all_values_are_equal(value, size):
    assert without_outliers(np.full(size, value)).tolist() == [value] * size


def test_outliers_lie_beyond_one_and_a_half_ranges_on_either_side():
    at, beyond = np.array([0.0, 1.0, 1.0, 2.0, 2.0, 3.5]), np.array([0.0, 1.0, 1.0, 2.0, 2.0, 3.6])  # quartiles 1 and 2
    assert without_outliers(at).max() == 3.5 and without_outliers(beyond).max() == 2.0
    assert without_outliers(-at).min() == -3.5 and without_outliers(-beyond).min() == -2.0


# --- Levene's test -----------------------------------------------------------------------------------------------


def no_fliers(w: np.ndarray) -> np.ndarray:
    fliers = cbook.boxplot_stats(w, whis=1.5)[0]["fliers"]
    return w[~np.isin(w, fliers)]


def deviations(w: np.ndarray, center: str) -> np.ndarray:
    return np.abs(w - (w.mean() if center == "mean" else np.median(w)))


@pytest.mark.parametrize("center", ["mean", "median"])
@few
@given(clean=batches, tested=batches)
def test_levene_is_scipys_without_the_outliers(center, clean, tested):
    kept = no_fliers(clean), no_fliers(tested)
    within, less = zip(*[(d.var(), d.mean()) for d in (deviations(w, center) for w in kept)], strict=True)
    assume(max(within) > 1e-8 and abs(less[0] - less[1]) > 1e-9)  # there is something to test, and something to test it by
    found, expected = levene(clean, tested, center=center), stats.levene(*kept, center=center)
    assert found.pvalue == pytest.approx(expected.pvalue, rel=1e-9, abs=1e-300)
    assert abs(found.score) == pytest.approx(-math.log(expected.pvalue), rel=1e-9, abs=1e-12)
    assert (found.score > 0) == (less[1] < less[0]) or found.pvalue == 1, "high where the tested batch varies less"


def test_levene_by_hand():
    """Deviations 2, 1, 0, 1, 2 and twice as many: means 1.2 and 2.4; between 3.6, within 2.8 + 11.2, so 3.6 / (14 / 8)."""
    found = levene(np.array([1.0, 2, 3, 4, 5]), np.array([2.0, 4, 6, 8, 10]), center="mean")
    assert pytest.approx(2.05714, abs=1e-5) == 3.6 / (14 / 8)
    assert found.pvalue == pytest.approx(0.18940, abs=1e-5) == stats.f.sf(3.6 / (14 / 8), 1, 8)
    assert found.score == pytest.approx(math.log(0.18940), abs=1e-4), "the tested one varies more"


def test_levene_takes_outliers_out_first():
    clean, tested = np.arange(20.0), np.append(np.arange(20.0) / 2, [500.0, -500.0])
    assert levene(clean, tested) == levene(clean, tested[:20]) and levene(clean, tested).score > 3
    assert stats.levene(clean, tested, center="mean").statistic < 3


@pytest.mark.parametrize("center", ["mean", "median"])
def test_levene_is_scipys_to_the_last_digit(center):
    for seed in range(50):
        rng = np.random.default_rng(seed)
        pair = [
            rng.gamma(0.5, scale, size) for scale, size in zip(rng.uniform(0.01, 0.3, 2), rng.integers(5, 90, 2), strict=True)
        ]
        kept = [w[abs(w - np.percentile(w, [25, 75]).mean()) <= 2 * np.ptp(np.percentile(w, [25, 75]))] for w in pair]
        statistic, points = stats.levene(*kept, center=center).statistic, sum(map(len, kept))
        assert abs(levene(*pair, center=center).score) == -stats.f.logsf(statistic, 1, points - 2)


@given(st.lists(values_of_w, min_size=1, max_size=60))
def test_quartiles_are_numpys_to_the_last_digit(w):
    assert [_quartile(sorted(w), share) for share in (0.25, 0.75)] == np.percentile(w, [25, 75]).tolist()


@pytest.mark.parametrize("center", ["mean", "median"])
@few
@given(clean=batches, tested=batches)
def test_levene_is_finite_and_turns_round(center, clean, tested):
    found, turned = levene(clean, tested, center=center), levene(tested, clean, center=center)
    assert -700 <= found.score <= 700 and 0 <= found.pvalue <= 1
    assert found.score == pytest.approx(-turned.score, rel=1e-9, abs=1e-9) and found.pvalue == pytest.approx(turned.pvalue)
    assert abs(found.score) == 700 or found.pvalue == pytest.approx(math.exp(-abs(found.score)))


@given(first=values_of_w, second=values_of_w, sizes=st.tuples(*[st.integers(1, 40)] * 2))
def test_two_constant_batches_are_no_evidence(first, second, sizes):
    assert levene(np.full(sizes[0], first), np.full(sizes[1], second)) == (0.0, 1.0)


def two_valued(low: int, high: int, half: int) -> np.ndarray:
    """Exact in binary: 64ths."""
    return np.tile([low / 64, high / 64], half)


@pytest.mark.parametrize("center", ["mean", "median"])
@given(ends=st.tuples(*[st.integers(0, 147)] * 3), sizes=st.tuples(*[st.integers(0, 5)] * 2))
def test_a_constant_batch_against_two_values_is_all_the_evidence(center, ends, sizes):
    constant, (low, high) = np.full(2 ** sizes[0], ends[0] / 64), ends[1:]
    assume(low != high)
    varied = two_valued(low, high, 2 ** sizes[1])
    assert levene(constant, varied, center=center) == (-700, 0) and levene(varied, constant, center=center) == (700, 0)


def test_two_values_against_two_values():
    """The same distance is no difference, another one is all the evidence, wherever they lie."""
    for low in (0, 10, 64):
        assert levene(two_valued(0, 16, 8), two_valued(low, low + 16, 4)) == (0, 1)
        assert levene(two_valued(0, 16, 8), two_valued(low, low + 8, 4)) == (700, 0)
        assert levene(two_valued(0, 16, 8), two_valued(low, low + 32, 4)) == (-700, 0)


@pytest.mark.parametrize(("constant", "varied"), [([0.29] * 12, [1.54, 1.49]), ([1.92] * 2, [1.81, 0.55] * 3)])
def test_what_rounding_leaves_is_no_deviation(constant, varied):
    assert levene(np.array(constant), np.array(varied)) == (-700, 0)


def test_points_without_company():
    one, two = np.array([0.5]), np.array([0.25, 0.75])
    assert levene(one, one) == levene(one, one + 1) == (0, 1)
    assert levene(one, two) == (-700, 0) and levene(two, one) == (700, 0) and levene(two, two + 0.5) == (0, 1)
    assert levene(one, np.array([0.0, 0.1, 0.9])).score < 0 < levene(np.array([0.0, 0.1, 0.9]), one).score


def wide_and_narrow(narrow: float) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    return rng.choice([-1.0, 1.0], 250) + rng.uniform(-0.1, 0.1, 250), rng.uniform(-narrow, narrow, 250)


def test_evidence_grows_with_the_contrast():
    scores = [levene(*wide_and_narrow(narrow)).score for narrow in (1.0, 0.8, 0.6, 0.5)]
    assert np.all(np.diff(scores) > 20) and scores[0] > 0 and scores[-1] < 700


def test_evidence_ends_before_p_is_too_small_for_a_float():
    for narrow in (0.3, 0.2, 0.1, 0.05):
        found = levene(*wide_and_narrow(narrow))
        assert found.score == 700 and found.pvalue <= math.exp(-700)


@pytest.mark.parametrize("batch", [[], [0.5, float("nan")], [float("inf")], [[0.5, 0.25]], 0.5])
def test_what_is_no_batch_is_named(batch):
    good = np.array([0.5, 0.25])
    for name, pair in (("clean", (np.array(batch), good)), ("tested", (good, np.array(batch)))):
        with pytest.raises(ValueError) as caught:
            levene(*pair)
        assert f"the {name} batch" in str(caught.value) and str(batch) in str(caught.value)


def test_another_centre_is_refused():
    with pytest.raises(ValueError, match="center must be mean or median, got 'trimmed'"):
        levene(np.array([0.5, 0.25]), np.array([0.5]), center="trimmed")


# --- area under the ROC curve ------------------------------------------------------------------------------------

some_tests = st.lists(
    st.tuples(st.integers(-3, 3).map(float) | st.floats(-50, 50), st.booleans(), st.integers(0, 4)), min_size=2, max_size=30
).filter(lambda rows: len({positive for _, positive, _ in rows}) == 2)


@few
@given(rows=some_tests)
def test_the_area_is_sklearns_and_mann_and_whitneys(rows):
    scores, positive, networks = map(np.array, zip(*rows, strict=True))
    found = auc(scores, positive, networks, resamples=20)
    assert found.value == pytest.approx(roc_auc_score(positive, scores), abs=1e-12)
    u = stats.mannwhitneyu(scores[positive], scores[~positive]).statistic
    assert found.value == pytest.approx(u / (positive.sum() * (~positive).sum()), abs=1e-12)
    fewer = min(len(set(networks[of].tolist())) for of in (positive, ~positive))
    assert found.networks == fewer and not (found.low < 0 or found.high > 1)


def test_a_tie_counts_half():
    assert auc([1.0, 1.0], [True, False], [0, 0]) == Estimate(0.5, 0.5, 0.5, 1)
    assert auc([1.0, 2.0, 1.0, 0.0], [True, True, False, False], [0, 0, 0, 0]).value == 3.5 / 4


def test_perfect_separation_has_no_width():
    scores, positive = [5.0, 4.0, 3.0, 2.0, 1.0, 0.0], [True] * 3 + [False] * 3
    found = auc(scores, positive, ["a", "b", "c"] * 2)
    assert found == Estimate(1.0, 1.0, 1.0, 3)
    assert auc(scores, np.logical_not(positive), ["a", "b", "c"] * 2) == Estimate(0.0, 0.0, 0.0, 3)


def test_the_interval_resamples_networks():
    """Half of the networks give the trigger away, half give it the lower score: each with many batches of one score."""
    batches, networks = 50, 4
    which = np.repeat(np.arange(networks), 2 * batches)
    positive = np.tile([True, False], networks * batches)
    scores = np.where(which % 2 == 0, 1.0, -1.0) * positive
    found = auc(scores, positive, which)
    assert found.value == 0.5 and found.networks == networks and (found.low, found.high) == (0.0, 1.0)
    each_its_own = auc(scores, positive, np.arange(len(scores)) // 2)
    assert each_its_own.high - each_its_own.low < 0.25
    # All batches of a network go together: what is the same in each network does not vary.
    equal = auc(np.tile([2.0, 1.0, 3.0, 0.0], 6), np.tile([True, False, False, True], 6), np.repeat(np.arange(6), 4))
    assert equal.value == equal.low == equal.high == 0.25


def test_the_interval_is_that_of_a_bootstrap_by_brute_force():
    rng = np.random.default_rng(4)
    which = np.repeat(np.arange(8), rng.integers(3, 9, 8))
    positive = rng.random(len(which)) < 0.4
    scores = np.round(rng.normal(size=8)[which] + rng.normal(size=len(which)) + positive, 1)
    draws = []
    for _ in range(150):
        rows = np.concatenate([np.flatnonzero(which == k) for k in rng.integers(8, size=8)])
        draws.append(roc_auc_score(positive[rows], scores[rows]))
    by_hand = percentile_estimate(0.5, np.array(draws), 8, within=(0, 1))
    low, high = by_hand.low, by_hand.high
    found = auc(scores, positive, which, resamples=4000, seed=1)
    assert 0.1 < high - low < 0.8
    assert (found.low, found.high) == pytest.approx((low, high), abs=0.2 * (high - low))
    assert auc(scores, positive, which, seed=1) == auc(scores, positive, which, seed=1) != auc(scores, positive, which, seed=2)


def test_resamples_without_either_kind_take_no_part():
    """Only one network has the trigger: a resample without it has no area, and is not counted as one."""
    found = auc([3.0, 2.0, 1.0], [True, False, False], [0, 1, 2], resamples=300)
    assert found == Estimate(1.0, 1.0, 1.0, 1), "and what the trigger does is known of that network alone"


# --- in words ----------------------------------------------------------------------------------------------------


def test_percentile_estimate_is_the_quantiles_of_one_network():
    draws = np.random.default_rng(0).normal(size=4001)
    found = percentile_estimate(0.3, draws, 1)
    ordered = np.sort(draws)
    assert (found.low, found.high) == pytest.approx((ordered[100], ordered[3900])) and (found.value, found.networks) == (0.3, 1)


def test_more_networks_are_widened_about_the_median():
    ordered = np.sort(np.random.default_rng(0).normal(size=4001))
    found, by = (
        percentile_estimate(0.3, ordered, 7),
        2.446912 / 1.959964 * (7 / 6) ** 0.5,
    )  # t of 6 degrees of freedom, from a table
    ends = [ordered[2000] + by * (ordered[k] - ordered[2000]) for k in (100, 3900)]
    assert (found.low, found.high) == pytest.approx(ends, rel=1e-5) and (found.value, found.networks) == (0.3, 7)


def test_formats_apply_to_all_three_numbers():
    estimate = Estimate(0.5, 0.25, 0.75, 5)
    assert f"{estimate:.1%}" == "50.0% [25.0%, 75.0%]" and f"{estimate:+.2f}" == "+0.50 [+0.25, +0.75]"
    assert str(estimate) == f"{estimate}" == "0.500 [0.250, 0.750]"


def test_what_has_no_records_says_so():
    estimates = Estimates({"there": Estimate(0.5, 0.25, 0.75, 5)})
    assert f"{estimates['absent']:.1%} {estimates['there']:.1f}" == "(not yet run) 0.5 [0.2, 0.8]"
    assert isinstance(estimates["absent"], NotYetRun)
    assert "absent" not in estimates and estimates.get("absent") is None and len(estimates) == 1
