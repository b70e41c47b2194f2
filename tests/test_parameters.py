"""The Parameters chapter: its plan, and its numbers on records so small that they can be worked out by hand."""

from __future__ import annotations

import dataclasses
from itertools import pairwise
from math import log, sqrt

import numpy as np
import pytest
from scipy import stats

from bslib.chapters import CHAPTERS, plan_of
from bslib.chapters.parameters.explorer import content
from bslib.chapters.parameters.figures import estimator_bias, w_against_n, w_against_sigma
from bslib.chapters.parameters.plan import Size, networks_of, plan, specs_of
from bslib.chapters.parameters.results import ParameterResults, load, quantities
from bslib.store import Record, Records, Store

BIT = log(2)
SIZE = Size(
    dataset="fashion-mnist", network="small-fashion", networks=3, epochs=7, points=4,
    ns=(8, 16, 32), n_sigmas=(0.1, 0.25), sigmas=(0.005, 0.01, 0.1, 0.15, 0.25, 0.5), n=16,
)  # fmt: skip
#: W in bits of three networks, by noise level, n and point; and by noise level and point.
OVER_N = [
    [[[0, 0, 1, 1], [0, 1, 1, 2], [1, 1, 2, 2]], [[1, 1, 1, 1], [1, 1, 2, 2], [2, 2, 2, 2]]],
    [[[0, 0, 0, 0], [0, 0, 1, 1], [0, 1, 1, 2]], [[1, 2, 1, 2], [2, 2, 2, 2], [3, 2, 3, 2]]],
    [[[1, 1, 1, 1], [1, 1, 1, 3], [1, 2, 2, 3]], [[0, 1, 1, 2], [1, 2, 2, 3], [2, 3, 3, 2]]],
]
OVER_SIGMA = [
    [[0, 0, 0, 0], [0, 0, 1, 2], [1, 1, 2, 2], [0, 3, 0, 3], [2, 2, 3, 3], [3, 3, 3, 3]],
    [[0, 0, 0, 1], [0, 0, 0, 1], [0, 2, 2, 2], [1, 3, 1, 3], [1, 2, 3, 2], [3, 2, 3, 3]],
    [[0, 0, 0, 0], [0, 1, 1, 3], [1, 1, 1, 2], [3, 3, 0, 3], [3, 0, 2, 1], [3, 3, 2, 3]],
]


def split(bits, n) -> np.ndarray:
    """Counts (..., 10) of n copies that are spread evenly over 2 ** bits classes, the first ones: W is that many bits."""
    classes = 2 ** np.asarray(bits)[..., None]
    return np.where(np.arange(10) < classes, np.asarray(n)[..., None] // classes, 0).astype(np.int32)


def results_of(size: Size, over_n, over_sigma) -> ParameterResults:
    """Results of networks with such counts; the commonest class of each is its seed, although not of its first image."""
    data, records = {"name": size.dataset, "source": f"made up {size.dataset}"}, {}
    for k, network in enumerate(networks_of(size, 0)[: len(over_n)]):
        records[network] = Record(network, {"clean_accuracy": (0.9, 0.8, 0.4)[k % 3], "test_images": 10_000}, data=data)
        for spec, counts in zip(specs_of(size, network)[1:], (over_n[k], over_sigma[k]), strict=True):
            rolled = [np.roll(counts[..., :1, :], k - 1, axis=-1), np.roll(counts[..., 1:, :], k, axis=-1)]
            records[spec] = Record(spec, {}, {"counts": np.concatenate(rolled, axis=-2)}, data)
    return ParameterResults(size, "paper", 0, Records(records))


def in_bits(size: Size, over_n, over_sigma) -> ParameterResults:
    """The same with W in bits: (networks, sigmas, ns, points) and (networks, sigmas, points)."""
    return results_of(size, split(over_n, np.array(size.ns)[:, None]), split(np.asarray(over_sigma)[:, :, None], size.n))


def grassberger(*counts: int) -> float:
    """His estimate by the recursion for whole numbers, G(2k + 2) = G(2k) + 2 / (2k + 1), and H for the digamma function."""
    n, g = sum(counts), [sum(2 / (2 * j + 1) for j in range(count // 2)) for count in counts]
    above = sum(c * own for c, own in zip(counts, g, strict=True)) / n
    return 0.0 if len(counts) == 1 else sum(1 / j for j in range(1, n)) + log(2) - above


@pytest.fixture(scope="module")
def by_hand():
    return in_bits(SIZE, OVER_N, OVER_SIGMA)


@pytest.mark.parametrize(
    ("profile", "count", "trained"), [("smoke", 9, (2, 96, 0.05, True)), ("paper", 30, (16, None, 0.1, True))]
)
def test_a_network_comes_before_both_sweeps_on_one_batch_of_its_own_and_no_spec_comes_twice(profile, count, trained):
    specs = plan(profile, seed=3)
    assert len(set(specs)) == len(specs) == count
    assert (specs[-3].epochs, specs[-3].train_size, specs[-3].learning_rate, specs[-3].augment) == trained
    if profile == "paper":
        assert [len(spec.sigmas) for spec in (specs[2], specs[-1])] == [10, 7] and specs[1].sigmas == (0.1, 0.25)
        assert specs[1].ns == (10, 25, 50, 100, 250, 500, 1000) and specs[2].ns == (250,)
        assert (specs[2].points, specs[-1].points) == (2500, 250)
    for network, over_n, over_sigma in zip(specs[::3], specs[1::3], specs[2::3], strict=True):
        assert network.attack is None and over_n.network == over_sigma.network == network
        assert over_n.seed == over_sigma.seed == network.seed >= 3 and over_n.points == over_sigma.points
        assert set(over_n.sigmas) <= set(over_sigma.sigmas) and set(over_sigma.ns) <= set(over_n.ns)


@pytest.mark.parametrize("chapter", CHAPTERS)
def test_seeds_far_apart_share_no_spec_and_unknown_names_and_seeds_are_refused(chapter):
    assert not set(plan_of(chapter, "paper")) & set(plan_of(chapter, "paper", seed=1000))
    for wrong in (("outliers", "paper", 0), (chapter, "large", 0), (chapter, "paper", -1)):
        with pytest.raises(ValueError, match=r"must be .*, got ('outliers'|'large'|-1)"):
            plan_of(*wrong[:2], seed=wrong[2])


def test_every_quantity_has_the_value_worked_out_by_hand(by_hand):
    assert np.allclose(by_hand.over_n(), BIT * np.array(OVER_N)) and np.allclose(by_hand.over_sigma(), BIT * np.array(OVER_SIGMA))
    a, b = sqrt(1 / 3), sqrt(2 / 3)  # the deviations of (1, 1, 2, 2) and (0, 1, 1, 2)
    wanted = {
        "accuracy": 0.7, "epochs": 7, "share_of_steps_that_shrink": 2 / 5, "commonest_answer_at_0.25": (6 + 9 + 15) / 32 / 3,
        "mean_growth.0.1": (18 - 6) / 12 * BIT, "mean_growth.0.25": (28 - 14) / 12 * BIT,  # sums over twelve points
        "spread_growth.0.1": 2 * b / 3 * BIT, "spread_growth.0.25": (a - b) / 3 * BIT,
        "mean_change_after_16.0.1": (18 - 12) / 18, "spread_change_after_16.0.1": (b - 1) / (a + 2 * b),
        "mean_change_after_16.0.25": (28 - 22) / 28, "spread_change_after_16.0.25": (a - b) / (2 * a),
        "variation_between_networks.0.1": 0.5 / 1, "variation_between_networks.0.25": sqrt(1 / 12) / (22 / 12),
        "range_of_means_0.005_to_0.15": (23 - 1) / 12 * BIT, "mean_growth_from_0.15_to_0.25": (24 - 23) / 12 * BIT,
        "spread_at_0.01": (sqrt(2.75 / 3) + 0.5 + sqrt(4.75 / 3)) * BIT / 3,
        "upper_quartile_at_0.01": (1.25 + 0.25 + 1.5) * BIT / 3
    }  # fmt: skip
    bits, levels = np.array(OVER_N, dtype=float), np.std(OVER_SIGMA, axis=-1, ddof=1).mean(0) * BIT
    wanted["smallest_spread_step"] = min(b - a for a, b in pairwise(levels))
    for s, sigma in enumerate((0.1, 0.25)):
        ranges = stats.iqr(bits[:, s], axis=-1).mean(0) * BIT
        relative = bits[:, s].std(-1, ddof=1).mean(0) / bits[:, s].mean((0, 2))
        wanted[f"quartiles_growth.{sigma}"] = ranges[-1] - ranges[0]
        wanted[f"relative_spread_growth.{sigma}"] = relative[-1] - relative[0]
    first = {0.1: 6 * grassberger(4, 4), 0.25: 8 * grassberger(4, 4) + 3 * grassberger(2, 2, 2, 2)}
    two, four, eight = (grassberger(*[32 // classes] * classes) for classes in (2, 4, 8))
    for sigma, last in ((0.1, 5 * two + 5 * four + eight), (0.25, 8 * four + 4 * eight)):
        wanted[f"mean_growth_corrected.{sigma}"] = corrected = (last - first[sigma]) / 12
        wanted[f"mean_growth_from_bias.{sigma}"] = wanted[f"mean_growth.{sigma}"] - corrected
    found = {name.replace(".fashion-mnist", ""): estimate for name, estimate in by_hand.quantities().items()}
    assert set(found) == set(wanted)
    for name, own in found.items():
        assert own.value == pytest.approx(wanted[name], abs=1e-12) and own.repeats == 3, name
        assert own.low <= own.value <= own.high, name


def test_the_tables_of_the_box_plots_have_these_numbers(by_hand):
    table = w_against_n.table(by_hand)
    box = table[(table["sigma"] == 0.25) & (table["n"] == 32)].groupby("quantity")["value"].apply(list)
    assert box["mean"] == pytest.approx([28 / 12 * BIT]) and box["median"] == pytest.approx([2 * BIT])
    assert box["mean of a network"] == pytest.approx([2 * BIT, 2.5 * BIT, 2.5 * BIT])
    means = w_against_sigma.table(by_hand).query("quantity == 'mean'")
    assert means["sigma"].tolist() == list(SIZE.sigmas) and set(means["n"]) == {16}
    assert means["value"].to_numpy() == pytest.approx(np.array([1, 9, 17, 23, 24, 34]) / 12 * BIT)


def test_only_a_batch_of_each_network_is_drawn_and_sent_and_the_line_below_says_so():
    few = in_bits(dataclasses.replace(SIZE, batch=2), OVER_N, OVER_SIGMA)
    for figure, bits in ((w_against_n, np.array(OVER_N)), (w_against_sigma, np.array(OVER_SIGMA))):
        means = figure.table(few).query("quantity == 'mean'")["value"].to_numpy()
        assert means == pytest.approx(bits[..., :2].mean((0, -1)).ravel() * BIT)
    (part,), batches = content([few])
    assert part["source"].endswith("; the first 2 images are shown") and {len(counts) for _, counts in batches} == {2}
    assert few.source_of_batch == part["source"] and "shown" not in in_bits(SIZE, OVER_N, OVER_SIGMA).source_of_batch


def test_the_error_of_each_estimator_is_taken_against_grassbergers_last_for_points_with_and_without_a_rare_class():
    size, counts = dataclasses.replace(SIZE, networks=1, ns=(4, 200), n=4), np.zeros((1, 2, 2, 4, 10), dtype=np.int32)
    last = [[100, 100], [198, 2], [199, 1], [200, 0]]  # the third has a rare class: under 1%, and seen
    counts[0, 1, :, :, :2] = [[[2, 2], [4, 0], [3, 1], [4, 0]], last]
    counts[0, 0, :, :, 0] = [[4] * 4, [200] * 4]
    results = results_of(size, counts, np.ones((1, 6, 1, 4, 10), dtype=np.int32))
    best = np.array([grassberger(*(c for c in point if c)) for point in last])
    plain = np.array([log(2), stats.entropy([3, 1])])
    early = {"plug-in": plain, "miller-madow": plain + 1 / 8, "grassberger": (grassberger(2, 2), grassberger(3, 1))}
    table, again = estimator_bias.table(results), results.over_n("grassberger")[0, 1, 1]
    assert again == pytest.approx(best) and results.over_sigma("miller-madow")[0, 0, 0] == pytest.approx(log(10) + 9 / 20)
    for name, (even, rare) in early.items():
        error = table.query("estimator == @name and sigma == 0.25").set_index(["points", "n"])["error of W"]
        assert error["no rare class", 4] == pytest.approx((even - best[[0, 1, 3]].sum()) / 3), name
        assert error["with a rare class", 4] == pytest.approx(rare - best[2]), name
    assert error["no rare class", 200] == error["with a rare class", 200] == pytest.approx(0)
    assert table.query("sigma == 0.1 and points == 'with a rare class'")["error of W"].isna().all(), "there is none"


def test_the_largest_step_is_compared_with_the_first_data_set_on_the_noise_levels_that_both_have(by_hand):
    size = dataclasses.replace(SIZE, dataset="cifar10", networks=2, sigmas=(0.01, 0.25, 0.5))
    steep = in_bits(size, OVER_N[:2], [[[0] * 4, [3] * 4, [3] * 4]] * 2)
    third = in_bits(dataclasses.replace(size, dataset="digits"), OVER_N[:1], [[[0] * 4, [2] * 4, [3] * 4]])
    found = quantities({"a": by_hand, "b": steep, "c": third})
    # At 0.01, 0.25 and 0.5 the first has the means 9, 24 and 34 twelfths: a step of 15 in a range of 25.
    compared = found["largest_step.cifar10.less.fashion-mnist"]
    assert compared.value == pytest.approx(1 - 15 / 25) and compared.repeats == 2
    assert found["largest_step.digits.less.fashion-mnist"].value == pytest.approx(2 / 3 - 15 / 25)
    empty = dataclasses.replace(steep, records=Records({}))
    assert not [name for name in quantities({"a": by_hand, "b": empty}) if "largest" in name or "cifar10" in name]
    twin = in_bits(dataclasses.replace(SIZE, dataset="cifar10"), OVER_N, OVER_SIGMA)
    equal = quantities({"a": by_hand, "b": twin})["largest_step.cifar10.less.fashion-mnist"]
    assert equal.value == 0 and equal.low < -0.01 and equal.high > 0.01


def test_where_every_image_grows_alike_the_growth_is_certain():
    first, middle = np.array([[0, 1, 2, 0], [1, 0, 0, 2]]), np.array([[0, 1, 0, 1], [1, 1, 1, 0]])
    over_n = np.stack([np.stack([first, first, first + 1], axis=1), np.stack([middle, middle, 2 * middle], axis=1)], axis=1)
    found = in_bits(SIZE, over_n, OVER_SIGMA[:2]).quantities()
    for name, value in (("mean_growth.*.0.1", BIT), ("spread_growth.*.0.1", 0), ("mean_change_after_16.*.0.25", 0.5)):
        own = found[name.replace("*", "fashion-mnist")]
        assert (own.low, own.value, own.high) == pytest.approx((value, value, value)), name


def test_the_interval_of_networks_that_differ_is_students():
    growth = np.array([0, 1, 1, 2, 3])[:, None, None, None]  # the points of a network agree
    over_n = growth * np.array([0, 0, 1])[:, None] + np.array([0, 1, 0])[:, None] + np.zeros((5, 2, 3, 4), dtype=int)
    results = in_bits(dataclasses.replace(SIZE, networks=5), over_n, [OVER_SIGMA[0]] * 5)
    found, student = results.quantities()["mean_growth.fashion-mnist.0.1"], stats.ttest_1samp(BIT * growth.ravel(), 0)
    low, high = student.confidence_interval(0.95)
    assert found.value == pytest.approx(1.4 * BIT) and found.high - found.low == pytest.approx(high - low)


def test_a_quantity_is_named_only_where_it_can_be_computed():
    size = dataclasses.replace(SIZE, networks=1, sigmas=(0.1, 0.5))
    found = in_bits(size, np.zeros((1, 2, 3, 4), dtype=int), np.zeros((1, 2, 4), dtype=int)).quantities()
    growth = {
        "mean_growth",
        "mean_growth_corrected",
        "mean_growth_from_bias",
        "spread_growth",
        "quartiles_growth",
    }  # but no share of W = 0
    assert {name.split(".fashion")[0] for name in found} == {
        "accuracy",
        "epochs",
        "share_of_steps_that_shrink",
        "smallest_spread_step",
        *growth,
    }
    own, ends = found["accuracy.fashion-mnist"], stats.binomtest(9000, 10_000).proportion_ci(0.95, method="wilson")
    assert (own.low, own.high, own.repeats) == pytest.approx((ends.low, ends.high, 1))


def test_both_sweeps_count_the_same_images_under_the_same_noise_and_networks_have_their_own(completed, tiny_profile):
    first, second = load(profile=tiny_profile, store=Store(completed.folder, writable=False)).values()
    assert len(first.runs) == 2 and second.runs == []
    for _, over_n, over_sigma in first.runs:
        counts, other = over_n.arrays["counts"], over_sigma.arrays["counts"]
        assert np.array_equal(counts[:, 1], other[1:, 0]), "0.1 and 0.25 at n = 25"
        assert (np.diff(counts, axis=1) >= 0).all() and (counts.sum(-1) == np.array([10, 25, 50])[:, None]).all()
        assert all(np.array_equal(over_n.arrays[name], over_sigma.arrays[name]) for name in ("images", "labels", "predicted"))
        assert (other[0, 0].argmax(-1) == over_sigma.arrays["predicted"]).mean() >= 5 / 6, "at 0.01 there is hardly any noise"
    assert not np.array_equal(*(over_n.arrays["images"] for _, over_n, _ in first.runs))
