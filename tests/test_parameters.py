"""The Parameters chapter: its plan, and its numbers computed once more straight from the counts."""

from __future__ import annotations

import dataclasses
from itertools import pairwise

import numpy as np
import pytest
from scipy import stats
from scipy.special import digamma

from bslib.chapters import CHAPTERS, parameters, plan_of, wobbliness
from bslib.chapters.parameters import ParameterResults, half_of, load, plan, quantities, specs_of
from bslib.entropy import ESTIMATORS
from bslib.profiles import PROFILES, ParametersSize, profile_named
from bslib.specs import CountsSpec, NetworkSpec
from bslib.store import Records, Store

SIZE = ParametersSize(
    dataset="fashion-mnist", network="small-fashion", networks=3, epochs=1, points=40,
    ns=(10, 50, 250, 1000), n_sigmas=(0.1, 0.25), sigmas=(0.005, 0.01, 0.1, 0.15, 0.25, 0.5), n=250,
)  # fmt: skip


@pytest.fixture(scope="module")
def half(made_up_half):
    return made_up_half(SIZE)


@pytest.fixture(scope="module")
def found(half):
    return half.quantities()


def w_of(counts: np.ndarray) -> np.ndarray:
    return stats.entropy(counts, axis=-1)


def w_over_n(half: ParameterResults) -> np.ndarray:
    """(networks, sigmas, ns, points)"""
    return np.stack([w_of(run[1].arrays["counts"]) for run in half.runs])


def w_over_sigma(half: ParameterResults) -> np.ndarray:
    """(networks, sigmas, points)"""
    return np.stack([w_of(run[2].arrays["counts"][:, 0]) for run in half.runs])


# --- plan --------------------------------------------------------------------------------------------------------


def test_the_paper_plan_has_the_papers_sizes():
    specs = plan("paper")
    assert len(set(specs)) == len(specs) == 30
    fashion, cifar = specs[:15], specs[15:]
    for part, dataset, network in ((fashion, "fashion-mnist", "small-fashion"), (cifar, "cifar10", "resnet18")):
        networks = [spec for spec in part if isinstance(spec, NetworkSpec)]
        assert {(spec.dataset, spec.network, spec.train_size) for spec in networks} == {(dataset, network, None)}
        assert [spec.seed for spec in networks] == [0, 1, 2, 3, 4]
        for spec in part:
            if isinstance(spec, CountsSpec):
                assert spec.points == 250 and spec.network in networks
    for one, sigmas in ((fashion, (0.005, 0.01, 0.05, 0.1, 0.15, 0.2, 0.25, 0.5, 0.75, 1.0)), (cifar, None)):
        over_n, over_sigma = one[1:3]
        assert (over_n.sigmas, over_n.ns) == ((0.1, 0.25), (10, 25, 50, 100, 250, 500, 1000))
        assert over_sigma.ns == (250,) and over_sigma.sigmas == (sigmas or (0.005, 0.01, 0.05, 0.1, 0.15, 0.2, 0.25))


@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize("chapter", CHAPTERS)
def test_a_plan_is_a_function_of_the_seed(chapter, profile):
    assert plan_of(chapter, profile) == plan_of(chapter, profile, seed=0)
    assert not set(plan_of(chapter, profile)) & set(plan_of(chapter, profile, seed=1000))
    if chapter == "parameters":  # seeds follow each other: what two books share is computed once
        again = set(plan(profile)) & set(plan(profile, seed=1))
        assert len(again) == 3 * sum(size.networks - 1 for size in profile_named(profile).parameters)


def test_a_network_comes_before_what_is_measured_on_it():
    for profile in PROFILES:
        seen = set()
        for spec in plan(profile):
            assert not isinstance(spec, CountsSpec) or spec.network in seen
            seen.add(spec)


@pytest.mark.parametrize("profile", PROFILES)
def test_sizes_fit_the_analysis(profile):
    """The n of the sigma sweep is among the ns, and the sweeps share a cell."""
    for size in profile_named(profile).parameters:
        assert size.n in size.ns and list(size.ns) == sorted(set(size.ns)) and list(size.sigmas) == sorted(set(size.sigmas))
        assert set(size.n_sigmas) <= set(size.sigmas)


@pytest.mark.parametrize("call", [plan, wobbliness.plan, profile_named])
def test_unknown_profile_is_refused(call):
    with pytest.raises(ValueError, match="profile must be one of smoke, paper, got 'large'"):
        call("large")


def test_unknown_chapter_is_refused():
    with pytest.raises(ValueError, match="got 'outliers'"):
        plan_of("outliers", "smoke")


# --- numbers from made-up counts ---------------------------------------------------------------------------------


def test_w_is_the_entropy_of_the_counts(half):
    assert half.over_n().shape == (3, 2, 4, 40) and half.over_sigma().shape == (3, 6, 40)
    assert np.allclose(half.over_n(), w_over_n(half)) and np.allclose(half.over_sigma(), w_over_sigma(half))
    corrected = half.over_n("miller-madow") - half.over_n()
    seen = np.stack([(run[1].arrays["counts"] > 0).sum(-1) for run in half.runs])
    assert np.allclose(corrected, (seen - 1) / (2 * np.array(SIZE.ns)[:, None]))


def grassberger_over_n(half):
    """Grassberger's estimate by digamma functions, 0 where one class was seen, shape (networks, sigmas, ns, points)."""
    counts = np.stack([run[1].arrays["counts"] for run in half.runs]).astype(float)
    k = np.maximum(counts, 1)
    g = digamma(k) + (-1) ** k / 2 * (digamma((k + 1) / 2) - digamma(k / 2))
    total = counts.sum(-1)
    return np.where((counts > 0).sum(-1) == 1, 0, digamma(total) - (counts * g).sum(-1) / total)


def test_every_quantity_is_recomputed(half, found):
    """All of them, from the counts with SciPy and numpy: none is left over."""
    n, s = w_over_n(half), w_over_sigma(half)
    mean, spread = n.mean(-1).mean(0), n.std(-1, ddof=1).mean(0)  # (sigmas, ns)
    expected = {"accuracy": np.mean([run[0].result["clean_accuracy"] for run in half.runs]), "epochs": half.size.epochs}
    for k, sigma in enumerate(("0.1", "0.25")):
        for name, values in (("mean", mean[k]), ("spread", spread[k])):
            expected[f"{name}_growth.{sigma}"] = values[3] - values[0]
            expected[f"{name}_change_after_250.{sigma}"] = (values[3] - values[2]) / values[3]
        corrected = grassberger_over_n(half).mean((0, 3))[k]
        expected[f"mean_growth_corrected.{sigma}"] = corrected[3] - corrected[0]
        expected[f"mean_growth_from_bias.{sigma}"] = mean[k][3] - mean[k][0] - (corrected[3] - corrected[0])
        means = n[:, k, 2].mean(-1)
        expected[f"variation_between_networks.{sigma}"] = np.std(means, ddof=1) / np.mean(means)
    spread_over_sigma = s.std(-1, ddof=1).mean(0)
    expected["share_of_steps_that_shrink"] = np.mean(spread_over_sigma[1:] > spread_over_sigma[:-1])
    four = s.mean(-1).mean(0)[[0, 1, 2, 3]]
    expected["range_of_means_0.005_to_0.15"] = four.max() - four.min()
    expected["spread_at_0.01"] = spread_over_sigma[1]
    expected["upper_quartile_at_0.01"] = np.mean([np.percentile(w, 75) for w in s[:, 1]])
    before, after = SIZE.sigmas.index(0.15), SIZE.sigmas.index(0.25)
    expected["mean_growth_from_0.15_to_0.25"] = s.mean(-1).mean(0)[after] - s.mean(-1).mean(0)[before]
    answers = [run[2].arrays["counts"][after, 0].sum(0) for run in half.runs]
    expected["commonest_answer_at_0.25"] = np.mean([a.max() / a.sum() for a in answers])

    def without_dataset(name: str) -> str:
        return name.replace(".fashion-mnist", "")

    assert {without_dataset(name) for name in found} == set(expected) and all(".fashion-mnist" in name for name in found)
    for name, estimate in found.items():
        assert estimate.value == pytest.approx(expected[without_dataset(name)], abs=1e-12), name
        assert estimate.low <= estimate.high and estimate.networks == 3, name
        slack = estimate.high - estimate.low  # the bootstrap of a ratio or an extreme may be shifted
        assert estimate.low - slack <= estimate.value <= estimate.high + slack, name


def test_one_network_has_all_quantities_but_the_variation(made_up_half, found):
    alone = made_up_half(SIZE, networks=1).quantities()
    assert set(found) - set(alone) == {f"variation_between_networks.fashion-mnist.{sigma}" for sigma in (0.1, 0.25)}
    assert all(estimate.networks == 1 for estimate in alone.values())


def test_largest_step_compares_the_halves(made_up_half, half):
    other = dataclasses.replace(SIZE, dataset="cifar10", sigmas=(0.005, 0.01, 0.1, 0.25))
    second = made_up_half(other, seed=8, networks=2)
    found = quantities(half, second)
    shares = []
    for one in (second, half):
        columns = [one.size.sigmas.index(sigma) for sigma in (0.005, 0.01, 0.1, 0.25)]
        means = w_over_sigma(one).mean(-1).mean(0)[columns]
        shares.append(max(abs(b - a) for a, b in pairwise(means)) / (means.max() - means.min()))
    name = "largest_step.cifar10.less.fashion-mnist"
    assert found[name].value == pytest.approx(shares[0] - shares[1]) and found[name].networks == 2
    assert name not in quantities(half, ParameterResults(other, "paper", ()))


def test_bias_is_taken_against_the_best_value(half):
    found = half.bias()
    counts = np.stack([run[1].arrays["counts"] for run in half.runs])
    rare = ((counts[:, :, -1] > 0) & (counts[:, :, -1] < 10)).any(-1)  # fewer than 1 % of 1,000
    assert 0 < rare.mean() < 1
    best = half.over_n("grassberger")[:, :, -1]
    for name in ESTIMATORS:
        error = half.over_n(name) - best[:, :, None]
        for column, where in enumerate((~rare, rare)):
            for s in range(2):
                for k in range(4):
                    expected = error[:, s, k][where[:, s]].mean()
                    assert found[name][column][s, k] == pytest.approx(expected)
    assert np.allclose(found["grassberger"][0][:, -1], 0)
    assert (found["plug-in"][1][:, 0] < -0.05).all()  # at n = 10 the plug-in is far too low


def test_the_source_says_where_numbers_come_from(half):
    text = half.source("n")
    assert text != half.source("sigma"), "each sweep has records of its own"
    assert "made up fashion-mnist" in text and "3 of 3 networks" in text and "40 test images" in text and "paper" in text
    assert all(run[1].spec.key[:6] in text for run in half.runs)
    part = ParameterResults(SIZE, "paper", half.runs[:2])
    assert "2 of 3 networks" in part.source("n") and part.missing is None


# --- what is there -----------------------------------------------------------------------------------------------


def test_a_network_counts_when_it_is_complete(half):
    records = {record.spec: record for run in half.runs for record in run}
    assert len(half_of(SIZE, "paper", 0, Records(records)).runs) == 3
    for spec in specs_of(SIZE, 1):
        part = half_of(SIZE, "paper", 0, Records({s: r for s, r in records.items() if s != spec}))
        assert [run[0].spec.seed for run in part.runs] == [0, 2]
    assert [run[0].spec.seed for run in half_of(SIZE, "paper", 2, Records(records)).runs] == [2]


def test_what_is_missing_says_what_to_run(tmp_path):
    found = load(profile="paper", store=Store(tmp_path, writable=False))
    for half, size in zip(found, PROFILES["paper"].parameters, strict=True):
        assert half.runs == () and half.quantities() == {}
        assert "Not yet run" in half.missing and "`bslib run parameters --profile paper --store book/records`" in half.missing
        assert size.dataset in half.missing and size.network in half.missing and str(size.networks) in half.missing


# --- a plan really computed --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def computed(completed, tiny_plan, tiny_profile):
    return half_of(tiny_profile.parameters[0], "smoke", 0, Records({spec: completed.get(spec) for spec in tiny_plan}))


def test_the_sweeps_agree_where_they_meet(computed):
    """Sigma 0.1 and 0.25 at n = 25 are in both: the same images, the same noise, the same counts."""
    for network, over_n, over_sigma in computed.runs:
        assert np.array_equal(over_n.arrays["counts"][:, 1], over_sigma.arrays["counts"][1:, 0])
        for name in ("images", "labels", "predicted"):
            assert np.array_equal(over_n.arrays[name], over_sigma.arrays[name])
        assert network.result["weights"] == over_n.result["weights"] == over_sigma.result["weights"]


def test_counts_nest_and_sum_to_n(computed):
    for _, over_n, over_sigma in computed.runs:
        counts = over_n.arrays["counts"]
        assert (np.diff(counts, axis=1) >= 0).all()
        assert (counts.sum(-1) == np.array([10, 25, 50])[:, None]).all() and (over_sigma.arrays["counts"].sum(-1) == 25).all()


def test_networks_see_batches_and_weights_of_their_own(computed):
    first, second = computed.runs
    assert first[0].result["weights"] != second[0].result["weights"]
    assert not np.array_equal(first[1].arrays["images"], second[1].arrays["images"])


def test_without_noise_counts_are_the_prediction(computed):
    for _, _, over_sigma in computed.runs:
        steady = over_sigma.arrays["counts"][0, 0]  # sigma 0.01
        assert (steady.argmax(-1) == over_sigma.arrays["predicted"]).mean() >= 5 / 6


def test_the_chapter_reads_a_completed_store(completed, tiny_profile, monkeypatch):
    monkeypatch.setitem(PROFILES, "smoke", tiny_profile)
    first, second = parameters.load(profile="smoke", store=Store(completed.folder, writable=False))
    assert len(first.runs) == 2 and second.runs == () and "larger-fashion" in second.missing
    assert first.accuracy.networks == 2
