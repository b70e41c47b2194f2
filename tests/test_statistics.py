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
    Replicates,
    auc,
    leave_one_out,
    levene,
    mean_of_networks,
    p_of_one_more,
    share_of_repeats,
    variation_of_networks,
)


def mean(values):
    return values.mean(-1)


# --- the jackknife -----------------------------------------------------------------------------------------------


@given(st.lists(st.lists(st.floats(-5, 5), min_size=1, max_size=6), min_size=2, max_size=8))
def test_the_interval_of_a_mean_is_students_t_over_networks(networks):
    found = leave_one_out([np.array(own) for own in networks]).estimate()
    means = [np.mean(own) for own in networks]
    assume(np.std(means) > 1e-6)
    expected = stats.ttest_1samp(means, 0).confidence_interval(0.95)
    wanted = np.mean(means), expected.low, expected.high
    assert (found.value, found.low, found.high) == pytest.approx(wanted, rel=1e-6, abs=1e-9)
    assert found.repeats == len(networks)


def test_the_interval_of_one_network_is_students_t_over_its_points():
    w = np.random.default_rng(0).gamma(0.5, 0.3, 250)
    found, expected = leave_one_out([w]).estimate(), stats.ttest_1samp(w, 0).confidence_interval(0.95)
    assert (found.low, found.high, found.repeats) == (pytest.approx(expected.low), pytest.approx(expected.high), 1)


def test_a_single_value_has_no_interval():
    found = leave_one_out([np.array([0.3])]).estimate()
    assert found.value == 0.3 and math.isnan(found.low) and f"{found}" == "0.300"


def test_the_value_is_the_mean_over_networks_of_the_statistic():
    rng = np.random.default_rng(0)
    networks = [rng.normal(size=(2, 3, size)) for size in (40, 50, 60)]  # batches need not be of one size
    found = leave_one_out(networks, lambda w: np.stack([w.mean(-1), np.median(w, -1)]))
    assert found.value.shape == (2, 2, 3) and found.without.shape == (3, 2, 2, 3)
    expected = [np.mean([w.mean(-1) for w in networks], 0), np.mean([np.median(w, -1) for w in networks], 0)]
    assert np.allclose(found.value, expected)
    assert np.allclose(found.without[1, 0], np.mean([networks[0].mean(-1), networks[2].mean(-1)], 0))
    assert found.at(1, 0, 2).value == found.value[1, 0, 2] and (found.at(1, 0, 2).without == found.without[:, 1, 0, 2]).all()


def test_the_jackknife_of_a_ratio_is_the_textbooks():
    """Worked out by leaving out one network at a time, with t of 3 degrees of freedom from a table."""
    x, y = np.array([1.0, 2.0, 3.0, 6.0]), np.array([2.0, 3.0, 7.0, 9.0])
    found = leave_one_out([np.array([[a], [b]]) for a, b in zip(x, y, strict=True)]).estimate(lambda m: m[..., 0] / m[..., 1])
    left = [(x.sum() - x[k]) / (y.sum() - y[k]) for k in range(4)]
    half = 3.182446 * math.sqrt(3 / 4 * sum((ratio - np.mean(left)) ** 2 for ratio in left))
    assert (found.value, found.low, found.high) == pytest.approx((12 / 21, 12 / 21 - half, 12 / 21 + half), rel=1e-6)


def test_the_interval_of_a_difference_within_seeds_is_the_paired_t_tests():
    """Kinds that share the ups and downs of their seeds: the interval is the paired t-test's, not Welch's."""
    kinds = np.array([[1.0, 2.0, 4.0, 8.0], [1.5, 2.4, 4.6, 8.3]])
    found = leave_one_out(list(kinds.T[:, :, None])).estimate(lambda means: means[..., 1] - means[..., 0])
    paired = stats.ttest_rel(kinds[1], kinds[0]).confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((paired.low, paired.high)) and found.repeats == 4
    networks = leave_one_out(list(kinds[1][:, None])).minus(leave_one_out(list(kinds[0][:, None])))
    assert networks.high - networks.low > 10 * (found.high - found.low)


@given(st.floats(-0.99, 0.99), st.floats(0.001, 0.5))
def test_correlations_stay_between_their_ends_and_are_symmetric_in_z(r, by):
    without = np.clip([r - by, r, r + by], -0.999, 0.999)
    found = Replicates(np.array(r), without, 3).estimate(correlation=True)
    assert -1 <= found.low <= r <= found.high <= 1
    assume(max(abs(found.low), abs(found.high)) < 1)
    z = np.arctanh([found.low, r, found.high])
    assume(abs(z).max() < 8)
    assert z[1] - z[0] == pytest.approx(z[2] - z[1], rel=1e-3, abs=1e-6)


def test_intervals_stay_within_what_is_possible_and_undefined_replicates_are_left_out():
    found = Replicates(np.array(0.9), np.array([0.7, 1.0, np.nan, 0.95]), 4).estimate(within=(0, 1))
    expected = Replicates(np.array(0.9), np.array([0.7, 1.0, 0.95]), 4).estimate(within=(0, 1))
    assert found == expected and found.high == 1.0 and 0 <= found.low < 0.7


def test_a_difference_of_independent_means_is_welchs():
    a, b = [0.1, 0.4, 0.3, 0.9, 0.2], [1.0, 1.3, 1.1]
    found = leave_one_out([np.array([v]) for v in a]).minus(leave_one_out([np.array([v]) for v in b]))
    expected = stats.ttest_ind(a, b, equal_var=False).confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), rel=1e-6)
    assert found.repeats == 3 and found.value == pytest.approx(np.mean(a) - np.mean(b))


@pytest.mark.parametrize("networks", [3, 5, 12])
def test_intervals_of_zero_inflated_values_cover_the_truth(networks):
    """As benchmarks/coverage.py does for more quantities and more experiments."""
    rng, covered = np.random.default_rng(2), []
    for _ in range(400):
        scale = np.exp(rng.normal(0, 0.35, (networks, 1)))
        w = np.where(rng.random((networks, 60)) < 0.6, 0, scale * rng.gamma(1.2, 0.25, (networks, 60)))
        found = leave_one_out(list(w)).estimate()
        covered.append(found.low <= 0.4 * 0.3 * math.exp(0.35**2 / 2) <= found.high)
    assert 0.9 <= np.mean(covered) <= 0.985


@pytest.mark.parametrize("share", [0, 1])
@pytest.mark.parametrize("networks", [2, 5, 12])
def test_networks_that_agree_count_once_each(share, networks):
    """Ten pairs of one network say no more than the network does."""
    ends = stats.binomtest(share * networks, networks).proportion_ci(method="wilson")
    found = share_of_repeats([np.full(10, bool(share))] * networks)
    assert (found.value, found.low, found.high) == pytest.approx((share, ends.low, ends.high))
    assert found.repeats == networks


def test_the_share_of_one_network_is_that_of_its_points():
    ends = stats.binomtest(0, 40).proportion_ci(method="wilson")
    found = share_of_repeats([np.zeros(40, dtype=bool)])
    assert (found.low, found.high, found.repeats) == (pytest.approx(ends.low), pytest.approx(ends.high), 1)


def test_shares_of_one_value_a_network_are_wilsons():
    ends = stats.binomtest(4, 12).proportion_ci(method="wilson")
    found = share_of_repeats([np.array([k < 4]) for k in range(12)])
    assert (found.value, found.low, found.high) == pytest.approx((1 / 3, ends.low, ends.high))


def test_shares_that_differ_vary_between_networks():
    own = [np.full(10, k < 2) for k in range(5)]
    found = share_of_repeats(own)
    of_pairs = stats.binomtest(20, 50).proportion_ci(method="wilson")
    assert found.value == pytest.approx(0.4) and found.low < of_pairs.low and found.high > of_pairs.high
    assert (found.low, found.high) == (0.0, 1.0), "Student's t would leave [0, 1]"


@given(st.lists(st.floats(0, 2), min_size=3, max_size=30), st.lists(st.floats(0, 2), min_size=3, max_size=30))
def test_with_outliers_and_the_median_it_is_scipys_brown_forsythe_test(clean, tested):
    deviations = [np.abs(np.array(w) - np.median(w)) for w in (clean, tested)]
    assume(all(np.ptp(own) > 1e-3 for own in deviations) and abs(deviations[0].mean() - deviations[1].mean()) > 1e-6)
    found = levene(np.array(clean), np.array(tested), center="median", outliers=True)
    assert found.pvalue == pytest.approx(stats.levene(clean, tested, center="median").pvalue, rel=1e-6)
    assert np.sign(found.score) == np.sign(deviations[0].mean() - deviations[1].mean())


def test_two_batches_of_one_distribution_are_told_apart_one_time_in_twenty_if_outliers_stay():
    """Zero-inflated W of clean images: the paper's rule sees differences that are not there."""
    rng, p = np.random.default_rng(0), {True: [], False: []}
    for _ in range(400):
        first, second = np.where(rng.random((2, 100)) < 0.7, 0, rng.gamma(1.2, 0.25, (2, 100)))
        for outliers, found in p.items():
            found.append(levene(first, second, center="median" if outliers else "mean", outliers=outliers).pvalue < 0.05)
    assert 0.02 < np.mean(p[True]) < 0.09 and np.mean(p[False]) > 0.2


# --- over networks -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("hits", "trials"), [(8812, 10_000), (500, 500), (0, 500), (1, 3)])
def test_one_network_has_wilsons_interval(hits, trials):
    p, z = hits / trials, 1.959963984540054
    centre = (p + z * z / (2 * trials)) / (1 + z * z / trials)
    half = z / (1 + z * z / trials) * math.sqrt(p * (1 - p) / trials + z * z / (4 * trials**2))
    found = mean_of_networks([p], trials)
    assert (found.value, found.repeats) == (p, 1)
    assert (found.low, found.high) == pytest.approx((centre - half, centre + half), abs=1e-9)
    assert 0 <= found.low <= p <= found.high <= 1


def test_fractions_of_networks_that_agree_exactly_have_wilsons_interval():
    """Not one of no width, which would say that any other network agrees as well."""
    ends = stats.binomtest(3, 3).proportion_ci(method="wilson")
    assert mean_of_networks([1.0] * 3, 100) == Estimate(1.0, pytest.approx(ends.low), 1.0, 3)
    found = mean_of_networks([0.88] * 3, 100)
    assert found.value == 0.88 and found.low < 0.6 and 0.95 < found.high < 1.0
    half = share_of_repeats([np.array([True, False])] * 5)
    assert half.value == 0.5 and half.low < 0.25 and half.high > 0.75


def test_variation_of_networks_by_hand():
    found = variation_of_networks([0.9, 1.0, 1.1])
    # Quantiles of chi-square with 2 degrees of freedom are -2 ln(1 - p).
    assert found.value == pytest.approx(0.1)
    assert found.low == pytest.approx(0.1 * math.sqrt(2 / (-2 * math.log(0.025))))
    assert found.high == pytest.approx(0.1 * math.sqrt(2 / (-2 * math.log(0.975))))
    assert found.repeats == 3


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
def test_levene_is_scipys_far_in_the_tail(center):
    for seed in range(50):
        rng = np.random.default_rng(seed)
        pair = [
            rng.gamma(0.5, scale, size) for scale, size in zip(rng.uniform(0.01, 0.3, 2), rng.integers(5, 90, 2), strict=True)
        ]
        kept = [w[abs(w - np.percentile(w, [25, 75]).mean()) <= 2 * np.ptp(np.percentile(w, [25, 75]))] for w in pair]
        statistic, points = stats.levene(*kept, center=center).statistic, sum(map(len, kept))
        assert abs(levene(*pair, center=center).score) == pytest.approx(-stats.f.logsf(statistic, 1, points - 2), rel=1e-12)


@given(st.integers(1, 3), st.integers(1, 4), st.booleans())
def test_many_pairs_at_once_are_each_pair(networks, pairs, outliers):
    rng = np.random.default_rng(networks)
    clean, tested = rng.gamma(0.2, size=(networks, 1, 9)), rng.gamma(0.2, size=(networks, pairs, 12)).round(1)
    found = levene(clean, tested, center="median", outliers=outliers)
    each = [[levene(a[0], one, center="median", outliers=outliers) for one in b] for a, b in zip(clean, tested, strict=True)]
    assert np.moveaxis(np.array(found), 0, -1) == pytest.approx(np.array(each), rel=1e-12)


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


@pytest.mark.parametrize("batch", [[], [0.5, float("nan")], [float("inf")], 0.5])
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
    found = auc(scores, positive, networks)
    assert found.value == pytest.approx(roc_auc_score(positive, scores), abs=1e-12)
    u = stats.mannwhitneyu(scores[positive], scores[~positive]).statistic
    assert found.value == pytest.approx(u / (positive.sum() * (~positive).sum()), abs=1e-12)
    fewer = min(len(set(networks[of].tolist())) for of in (positive, ~positive))
    assert found.repeats == fewer and not (found.low < 0 or found.high > 1)


def test_a_tie_counts_half():
    found = auc([1.0, 1.0], [True, False], [0, 0])
    assert found.value == 0.5 and math.isnan(found.low), "one network has no interval"
    assert auc([1.0, 2.0, 1.0, 0.0], [True, True, False, False], [0, 0, 0, 0]).value == 3.5 / 4


def test_perfect_separation_has_wilsons_interval_over_networks():
    scores, positive = [5.0, 4.0, 3.0, 2.0, 1.0, 0.0], [True] * 3 + [False] * 3
    ends = stats.binomtest(3, 3).proportion_ci(method="wilson")
    assert auc(scores, positive, ["a", "b", "c"] * 2) == Estimate(1.0, pytest.approx(ends.low), 1.0, 3)
    assert auc(scores, np.logical_not(positive), ["a", "b", "c"] * 2) == Estimate(0.0, 0.0, pytest.approx(1 - ends.low), 3)


def test_the_interval_leaves_out_whole_networks():
    """Half of the networks give the trigger away, half give it the lower score: each with many batches of one score."""
    batches, networks = 50, 4
    which = np.repeat(np.arange(networks), 2 * batches)
    positive = np.tile([True, False], networks * batches)
    scores = np.where(which % 2 == 0, 1.0, -1.0) * positive
    found = auc(scores, positive, which)
    assert found.value == 0.5 and found.repeats == networks and (found.low, found.high) == (0.0, 1.0)
    each_its_own = auc(scores, positive, np.arange(len(scores)) // 2)
    assert each_its_own.high - each_its_own.low < 0.25
    # All batches of a network go together: what is the same in each network does not vary.
    equal = auc(np.tile([2.0, 1.0, 3.0, 0.0], 6), np.tile([True, False, False, True], 6), np.repeat(np.arange(6), 4))
    assert equal.value == 0.25
    for end in (equal.low, equal.high):  # Wilson's interval of 6 trials, whose count is not whole
        assert abs(0.25 - end) == pytest.approx(1.959964 * (end * (1 - end) / 6) ** 0.5, rel=1e-6)


def test_the_interval_is_that_of_sklearns_areas_without_one_network():
    rng = np.random.default_rng(4)
    which = np.repeat(np.arange(8), rng.integers(3, 9, 8))
    positive = rng.random(len(which)) < 0.4
    scores = np.round(rng.normal(size=8)[which] + rng.normal(size=len(which)) + positive, 1)
    left = [roc_auc_score(positive[which != k], scores[which != k]) for k in range(8)]
    half = 2.364624 * math.sqrt(7 / 8 * sum((area - np.mean(left)) ** 2 for area in left))  # t of 7 degrees of freedom
    found = auc(scores, positive, which)
    assert (found.low, found.high) == pytest.approx((max(found.value - half, 0), min(found.value + half, 1)), rel=1e-5)


def test_an_area_has_as_many_degrees_of_freedom_as_the_rarer_kind_has_repeats():
    """Networks with seeds 0 and 1 have the trigger, six others have none: t with one degree of freedom, not with seven."""
    scores, positive = np.array([3.0, 1.5, 2.0, 1.0, 0.5, 0.0, 2.5, 1.2]), np.arange(8) < 2
    found = auc(scores, positive, np.arange(8))
    without = [roc_auc_score(np.delete(positive, k), np.delete(scores, k)) for k in range(8)]
    reach = stats.t.isf(0.025, 1) * (7 / 8 * 8 * np.var(without)) ** 0.5
    assert (found.low, found.repeats) == (max(0.0, found.value - reach), 2)
    one = auc([3.0, 2.0, 1.0], [True, False, False], [0, 1, 2])
    assert (one.value, one.repeats) == (1, 1) and math.isnan(one.low), "one network with the trigger has no interval"


# --- in words ----------------------------------------------------------------------------------------------------


def test_formats_apply_to_all_three_numbers():
    estimate = Estimate(0.5, 0.25, 0.75, 5)
    assert f"{estimate:.1%}" == "50.0% [25.0%, 75.0%]" and f"{estimate:+.2f}" == "+0.50 [+0.25, +0.75]"
    assert str(estimate) == f"{estimate}" == "0.500 [0.250, 0.750]"


def test_what_has_no_records_says_so():
    estimates = Estimates({"there": Estimate(0.5, 0.25, 0.75, 5)})
    assert f"{estimates['absent']:.1%} {estimates['there']:.1f}" == "(not yet run) 0.5 [0.2, 0.8]"
    assert isinstance(estimates["absent"], NotYetRun)
    assert "absent" not in estimates and estimates.get("absent") is None and len(estimates) == 1


# --- comparisons with the paper ------------------------------------------------------------------------------------


def test_one_more_network_lies_in_students_prediction_interval():
    values = [0.10, 0.14, 0.11, 0.17, 0.12]
    reach = stats.t.ppf(0.975, 4) * np.std(values, ddof=1) * (1 + 1 / 5) ** 0.5
    for end in (np.mean(values) - reach, np.mean(values) + reach):
        assert p_of_one_more(values, end).value == pytest.approx(0.05)
    assert p_of_one_more(values, 0.128).value == pytest.approx(1) and p_of_one_more(values, 0.9).value < 1e-4
    assert math.isnan(p_of_one_more([0.1], 0.1).value) and math.isnan(p_of_one_more([0.1, 0.1], 0.1).value)


def test_two_correlations_are_the_same_half_of_five_times_in_a_hundred_on_either_side():
    rng, found = np.random.default_rng(0), []
    for _ in range(400):
        x = rng.normal(0, 1, (2, 40))
        y = 0.6 * x + 0.8 * rng.normal(0, 1, (2, 40))
        without = [np.corrcoef(np.delete(x[0], k), np.delete(y[0], k))[0, 1] for k in range(40)]
        ours = Replicates(np.array(np.corrcoef(x[0], y[0])[0, 1]), np.array(without), 40)
        found.append(ours.p_of_correlation(float(np.corrcoef(x[1], y[1])[0, 1]), 37**-0.5).value)
    assert stats.kstest(found, "uniform").pvalue > 0.01, "p-values of equal correlations are uniform"
    assert ours.p_of_correlation(float(ours.value), 0.1).value == 1 and ours.p_of_correlation(-0.6, 0.1).value < 0.001
