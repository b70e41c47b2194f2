"""The chapter on W as a defence: scores and tests against scikit-learn and SciPy, numbers on made-up records, a tiny run."""

from __future__ import annotations

import dataclasses
import itertools

import matplotlib
import numpy as np
import pytest
from conftest import write_profile
from hypothesis import given
from hypothesis import strategies as st
from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from scipy import stats
from sklearn.metrics import roc_auc_score, roc_curve

from bslib.chapters import plan_of, sizes_of
from bslib.chapters.defence import figures, plan, scores
from bslib.chapters.defence.results import Defence, load, quantities
from bslib.chapters.defence.scores import TESTS, detection_rate, flagged, permutation_test
from bslib.chapters.outcomes import area
from bslib.specs import CleanseSpec, CountsSpec, DetectorSpec, MarginsSpec, PredictionsSpec
from bslib.statistics import anomaly_index, levene
from bslib.store import Record, Records, Store

matplotlib.use("agg")

ATTACKS = (("T1", 1), ("T1", 4), ("T2", 3))
SIZE = dataclasses.replace(
    sizes_of("defence", "paper")[0], networks=2, clean_networks=3, attacks=ATTACKS, cleansed=(("T1", 1),), points=50,
    sigmas=(0.1, 0.25), n=40, ns=(10, 25, 40), candidate_points=4, candidate_sigmas=(0.1,),
)  # fmt: skip
DATA = {"source": "made up fashion-mnist"}
TIME = {"device": "some GPU", "seconds": 0.5}
suspicions = st.lists(st.integers(0, 4), min_size=1, max_size=12).map(np.array)


def arrays_of(spec, rng) -> dict:
    """Made-up arrays: W varies from image to image and is often 0; with a trigger it is 0 more often."""
    if isinstance(spec, CountsSpec):
        points = spec.points * (10 if spec.pattern is not None else 1)
        mixed = rng.random((len(spec.sigmas), 1, points)) < (0.3 if spec.trigger is not None else 0.6)
        second = mixed * rng.integers(1, [[n // 2] for n in spec.ns], (len(spec.sigmas), len(spec.ns), points))
        counts = np.zeros((*second.shape, 10), dtype=np.int32)
        counts[..., 0], counts[..., 1] = np.reshape(spec.ns, (-1, 1)) - second, second
        return {"counts": counts}
    if isinstance(spec, DetectorSpec):
        return {"scores": rng.random((1, spec.points)) - 0.2 * (spec.trigger is not None)}
    if isinstance(spec, MarginsSpec):
        return {"margins": rng.random(spec.points) + 0.1 * (spec.trigger is not None)}
    if isinstance(spec, PredictionsSpec):
        labels = np.arange(100) % 10
        wanted = spec.network.attack.target_labels(labels, 10)
        return {"labels": labels, "predicted": np.where(np.arange(100) < 70, wanted, labels)}
    if isinstance(spec, CleanseSpec):
        sizes = rng.integers(5, 50, 10)
        return {"masks": np.ones((10, 1, 2, 2)) * sizes[:, None, None, None] / 4, "success": np.ones(10)}
    return {}


def part_of(size=SIZE, *, gone=lambda spec: False, changes=None) -> Defence:
    """The results of a size from made-up records, without some of them."""
    rng, made = np.random.default_rng(5), {}
    specs = [spec for network in plan.networks_of(size, 0) for spec in plan.specs_of(size, network)]
    for network in plan.cleansed_networks_of(size, 0):
        specs += size.cleanse_specs(network)
    for spec in dict.fromkeys(specs):
        arrays = arrays_of(spec, rng) | (changes or {}).get(spec, {})
        index = {"anomaly_index": anomaly_index(arrays["masks"].sum((1, 2, 3)))} if isinstance(spec, CleanseSpec) else {}
        made[spec] = Record(spec, index, arrays, DATA, TIME)
    return Defence(size, "paper", 0, Records({spec: record for spec, record in made.items() if not gone(spec)}))


@pytest.fixture(scope="module")
def part() -> Defence:
    return part_of()


def w_of(part: Defence, spec: CountsSpec, sigma: float) -> np.ndarray:
    return stats.entropy(part.records[spec].arrays["counts"][spec.sigmas.index(sigma), -1], axis=-1)


def pair(part: Defence, network, sigma: float) -> tuple[np.ndarray, np.ndarray]:
    return tuple(w_of(part, part.size.counts_of(network, t), sigma) for t in (None, network.attack.trigger))


def truth(count: int) -> np.ndarray:
    return np.repeat([False, True], count)


# --- scores and tests --------------------------------------------------------------------------------------------


@given(suspicions, suspicions)
def test_the_area_is_scikit_learns_and_ties_count_half(clean, triggered):
    positive = np.arange(len(clean) + len(triggered)) >= len(clean)
    assert area(clean, triggered) == pytest.approx(roc_auc_score(positive, np.concatenate([clean, triggered])))


@given(suspicions, suspicions, st.integers(0, 11))
def test_the_detection_rate_lies_on_scikit_learns_curve_between_its_corners(clean, triggered, k):
    alarms = (k % len(clean) + 0.5) / len(clean)  # in the middle between two clean images no corner lies
    positive = np.arange(len(clean) + len(triggered)) >= len(clean)
    false, true, _ = roc_curve(positive, np.concatenate([clean, triggered]), drop_intermediate=False)
    assert detection_rate(clean, triggered, alarms=alarms) == pytest.approx(np.interp(alarms, false, true))


def test_a_detection_rate_counts_what_is_above_the_threshold_and_ties_at_random():
    clean = np.arange(100.0)
    assert detection_rate(clean, np.array([94.0, 94.5, 95.5, 200])) == 0.75, "five clean images exceed 94"
    assert detection_rate(clean, np.array([98.5, 99.5]), alarms=0.01) == 1 and detection_rate(clean, clean, alarms=0.01) == 0.01
    assert detection_rate(np.zeros(69), np.zeros(95)) == pytest.approx(0.05)


def test_a_network_is_flagged_by_a_threshold_that_the_others_set():
    positive = np.array([False, False, False, True, True, True])
    assert flagged(np.array([1.0, 2, 3, 7, 8, 9]), positive, np.arange(6)).tolist() == positive.tolist()
    # Without the positive at 4, the threshold lies between 3 and 8; below without the negative at 5, between 3 and 6.
    assert flagged(np.array([1.0, 2, 3, 4, 8, 9]), positive, np.arange(6)).tolist() == [False, False, False, False, True, True]
    assert flagged(np.array([1.0, 3, 5, 6, 8, 9]), positive, np.arange(6)).tolist() == [False, False, True, False, True, True]
    close, seeds = np.array([1.0, 2, 5, 6, 8, 9]), np.array([0, 1, 2, 2, 0, 1])
    assert not flagged(close, positive, np.arange(6))[3], "the negative at 5 keeps the threshold above 6"
    assert flagged(close, positive, seeds).tolist() == positive.tolist(), "it has the seed of the positive at 6"
    assert not flagged(np.array([0.0, 0, 0, 9]), positive[[0, 1, 3, 4]], np.array([1, 2, 1, 2])).any(), "others have one score"


@pytest.mark.parametrize("name", TESTS)
def test_each_test_of_a_batch_is_scipys(name):
    rng = np.random.default_rng(3)
    clean, tested = rng.integers(0, 4, (2, 3, 5, 12)) * rng.random((2, 3, 5, 12)).round(1)
    tested *= 0.6
    oracle = {
        "levene": lambda a, b: levene(a, b).pvalue,
        "brown-forsythe": lambda a, b: stats.levene(a, b, center="median").pvalue,
        "mann-whitney": lambda a, b: stats.mannwhitneyu(b, a, alternative="less", method="asymptotic").pvalue,
        "permutation": lambda a, b: (
            stats.permutation_test(
                (b, a), lambda x, y: x.mean() - y.mean(), alternative="less", n_resamples=2000, rng=np.random.default_rng(1)
            ).pvalue
        ),
        "two-sided": lambda a, b: stats.mannwhitneyu(b, a, method="asymptotic").pvalue,
    }[name]
    found = TESTS[name](clean, tested)
    wanted = [[oracle(a, b) for a, b in zip(*row, strict=True)] for row in zip(clean, tested, strict=True)]
    assert TESTS[name](np.zeros((2, 25)), np.zeros((2, 25))).tolist() == [1, 1], "where nothing varies there is no alarm"
    assert found.shape == (3, 5) and np.ptp(wanted) > 0.3
    assert found == pytest.approx(np.array(wanted), abs=0.07 if name == "permutation" else 1e-9)


def test_a_permutation_test_counts_the_divisions_with_a_mean_as_low(monkeypatch):
    clean, tested = np.array([3.0, 4, 5, 6]), np.array([0.0, 1, 2, 3])
    sums = [sum(chosen) for chosen in itertools.combinations([*tested, *clean], 4)]
    exact = np.mean(np.array(sums) <= 6)  # 2 of 70: the tied 3 may come from either batch
    assert permutation_test(tested, clean) == pytest.approx(1, abs=0.02)
    monkeypatch.setattr(scores, "PERMUTATIONS", 20_000)
    assert exact == 2 / 70 and permutation_test(clean, tested) == pytest.approx(exact, abs=0.005)


def test_the_outlier_rule_makes_levenes_test_say_that_nothing_is_there_or_that_everything_differs():
    mostly_zero, all_zero, mixed = np.r_[np.zeros(20), np.ones(5)], np.zeros(25), np.r_[np.zeros(18), np.ones(7)]
    p = TESTS["levene"](np.stack([mostly_zero, mixed]), np.stack([all_zero, mostly_zero]))
    assert p[0] == 1, "the ones are outliers: both batches are constant"
    assert p[1] < 0.05 < TESTS["brown-forsythe"](mixed, mostly_zero), "in one batch the ones are outliers, in the other not"


# --- numbers on made-up records ----------------------------------------------------------------------------------


def test_batches_with_and_without_the_trigger_have_the_same_images_and_the_second_clean_batch_others():
    network = plan.networks_of(SIZE, 0)[0]
    first, triggered, second = SIZE.counts_of(network, None), SIZE.counts_of(network, 1), plan.second_batch_of(SIZE, network)
    assert first.seed == triggered.seed == SIZE.strip_of(network, 1).seed == SIZE.margins_of(network, 1).seed != second.seed
    assert all(spec.held_out and spec.paired for spec in (first, triggered, second))
    specs = plan_of("defence", "paper")
    assert len(specs) == len(set(specs)) == 455 and {s.seed for s in specs if s.kind == "network"} == set(range(100, 110))


def test_areas_and_rates_of_images_are_means_over_the_seeds(part):
    found = part.quantities()
    of_attack = {"T1": part.backdoored[:2] + part.backdoored[3:5], "T1-4": [part.backdoored[1], part.backdoored[4]]}
    for attack, networks in of_attack.items():
        areas = {"W": [], "STRIP": [], "three": []}
        for network in networks:
            w = -np.concatenate(pair(part, network, 0.1))
            strip, margin = (
                np.concatenate([part.records[of(network, t)].arrays[name].ravel() for t in (None, network.attack.trigger)])
                for of, name in ((SIZE.strip_of, "scores"), (SIZE.margins_of, "margins"))
            )
            three = np.mean([stats.rankdata(score) for score in (w, -strip, margin)], axis=0)
            for name, score in (("W", w), ("STRIP", -strip), ("three", three)):
                areas[name].append(roc_auc_score(truth(50), score))
        by_seed = np.reshape(areas["W"], (2, -1)).mean(1)
        low, high = stats.t.interval(0.95, 1, np.mean(areas["W"]), stats.sem(by_seed))
        own = found[f"image_auc.fashion-mnist.{attack}.W.0.1"]
        assert (own.value, own.repeats) == pytest.approx((np.mean(areas["W"]), 2))
        assert (own.low, own.high) == pytest.approx((max(0, low), min(1, high)))
        assert found[f"image_auc.fashion-mnist.{attack}.STRIP"].value == pytest.approx(np.mean(areas["STRIP"]))
        assert found[f"image_auc.fashion-mnist.{attack}.three.0.1"].value == pytest.approx(np.mean(areas["three"]))
        less = np.subtract(areas["STRIP"], areas["W"]).mean()
        assert found[f"image_auc.fashion-mnist.{attack}.STRIP.less.W.0.1"].value == pytest.approx(less)
        rates = [detection_rate(*(-w for w in pair(part, network, 0.25)), alarms=0.05) for network in networks]
        assert found[f"image_rate.fashion-mnist.{attack}.W.0.25"].value == pytest.approx(np.mean(rates))
    two, three = (found[f"image_auc.fashion-mnist.T1.{name}"].value for name in ("two", "three.0.1"))
    assert found["image_auc.fashion-mnist.T1.three.less.two.0.1"].value == pytest.approx(three - two)
    # Seven images of a class are sent to its target; under T1 those of the target class do not count.
    assert found["success.fashion-mnist.T1"].value == pytest.approx(0.7) and found["success.fashion-mnist.T2"].value == 0.7


def test_areas_by_number_of_copies_are_of_these_prefixes(part):
    differences = []
    for network in part.backdoored[2::3]:
        ladder = [part.records[plan.ladder_of(SIZE, network, t)].arrays["counts"][0] for t in (None, 3)]
        areas = [roc_auc_score(truth(50), -stats.entropy(np.concatenate([c[n] for c in ladder]), axis=-1)) for n in (1, 2)]
        differences.append(areas[0] - areas[1])
    assert part.quantities()["image_auc.fashion-mnist.T2.25.less.40"].value == pytest.approx(np.mean(differences))


def test_batches_are_tested_against_the_second_clean_batch_and_halves_against_the_other_half(part):
    found, rates, alarms, halves = part.quantities(), [], [], []
    for network in part.networks:
        second = w_of(part, plan.second_batch_of(SIZE, network), 0.25)
        batches = {"clean": w_of(part, SIZE.counts_of(network, None), 0.25)}
        if network.attack is not None:
            batches["trigger"] = w_of(part, SIZE.counts_of(network, network.attack.trigger), 0.25)
        for carried, w in batches.items():
            p = [stats.mannwhitneyu(w[k : k + 25], second[k : k + 25], alternative="less").pvalue for k in (0, 25)]
            if carried == "clean" or network.attack.threat_model == "T1":
                (alarms if carried == "clean" else rates).append(np.mean(np.array(p) < 0.05))
        if network.attack is not None and network.attack.threat_model == "T1":
            clean, triggered = (
                part.records[SIZE.strip_of(network, t)].arrays["scores"][0] for t in (None, network.attack.trigger)
            )
            halves.append(stats.mannwhitneyu(triggered[:25], clean[25:], method="asymptotic").pvalue < 0.05)
    assert found["batch_rate.fashion-mnist.T1.mann-whitney.25.0.25"].value == pytest.approx(np.mean(rates)) and np.mean(rates) > 0
    assert found["half_rate.fashion-mnist.T1.STRIP.25"].value == pytest.approx(np.mean(halves)) and 0 < np.mean(halves) < 1
    rates = [found[f"half_rate.fashion-mnist.T1.{name}"].value for name in ("STRIP.25", "W.0.25.25", "STRIP.less.W.0.25.25")]
    assert rates[2] == pytest.approx(rates[0] - rates[1]) and found["half_false_alarms.fashion-mnist.STRIP.25"].repeats == 2
    by_seed = [np.mean([alarms[0:3], alarms[3:6]][s] + [alarms[6 + s]]) for s in (0, 1)] + [alarms[8]]
    own = found["false_alarms.fashion-mnist.mann-whitney.25.0.25"]
    assert (own.value, own.repeats) == pytest.approx((np.mean(by_seed), 3)), "networks of a seed have the same clean images"


def test_networks_are_ranked_by_both_indices():
    masks = {"masks": np.ones((10, 1, 2, 2)) * np.array([1, 50, 51, 52, 53, 54, 55, 56, 57, 58])[:, None, None, None] / 4}
    even = {"masks": np.ones((10, 1, 2, 2)) * np.arange(50, 60)[:, None, None, None] / 4}
    crafted = {n: SIZE.cleanse_specs(n)[0] for n in plan.cleansed_networks_of(SIZE, 0)}
    part = part_of(changes={spec: masks if n.attack else even for n, spec in crafted.items()})
    found, table = part.quantities(), part.candidates
    assert len(table) == 5 and found["network_auc.fashion-mnist.mask"].value == 1
    assert found["network_rate.fashion-mnist.mask"].value == 1 and found["network_false_alarms.fashion-mnist.mask"].value == 0
    w = []
    for network in crafted:
        means = w_of(part, SIZE.cleanse_specs(network)[1], 0.1).reshape(10, 4).mean(1)
        w.append((np.median(means) - means.min()) / stats.median_abs_deviation(means, scale="normal"))
    assert table["W"].to_numpy() == pytest.approx(w, rel=1e-4)
    of_w = roc_auc_score([network.attack is not None for network in crafted], w)
    assert found["network_auc.fashion-mnist.W"].value == pytest.approx(of_w)
    assert found["network_auc.fashion-mnist.W.less.mask"].value == pytest.approx(of_w - 1)


def test_missing_networks_are_left_out_and_counted():
    lost = plan.clean_networks_of(SIZE, 0)[1:]
    part = part_of(gone=lambda spec: spec in lost or getattr(spec, "network", None) in lost)
    assert "7 of 9 networks (1 of 3 clean ones)" in part.source and part.missing is None
    assert part.quantities()["false_alarms.fashion-mnist.levene.25.0.1"].repeats == 2 and len(part.candidates) == 3
    assert "network_rate.fashion-mnist.W" not in part.quantities(), "one clean network sets no threshold for itself"
    assert all(isinstance(draw(part), Figure) for draw in figures.FIGURES)
    clean = part_of(gone=lambda spec: (spec if spec.kind == "network" else spec.network).attack is not None)
    assert not clean.quantities() and "(Not yet run.)" in clean.price_table() and isinstance(figures.false_alarms(clean), Figure)
    assert figures.images(clean).data.startswith("**Not yet run.**")


def test_an_empty_store_says_what_to_run(tmp_path):
    results = load(profile="paper", store=Store(tmp_path, writable=False))
    [part] = results.values()
    assert not quantities(results) and part.images.empty and part.batches.empty and part.halves.empty and part.candidates.empty
    assert {draw(part).data for draw in figures.FIGURES} == {part.missing} and "45 clean and backdoored networks" in part.missing


def test_figures_and_tables_show_every_attack(part):
    for draw in figures.FIGURES:
        figure = draw(part)
        figure.draw_without_rendering()
        assert figure.get_supxlabel().startswith(part.source)
    assert not plt.get_fignums(), "a figure that pyplot holds is shown twice in a notebook"
    assert {*map(tuple, figures.images.table(part)[["threat model", "trigger"]].to_numpy())} == {*ATTACKS}
    assert "| STRIP: an image | 50 | 0.01 s | some GPU |" in part.price_table() and "| 0.5 s | some GPU |" in part.price_table()
    assert part.success_table().count("70.0%") == 3


def test_a_tiny_profile_runs_end_to_end(tmp_path):
    tiny = {
        "epochs": 1,
        "train_size": 100,
        "test_images": 40,
        "attacks": (("T1", 1),),
        "points": 20,
        "steps": 2,
        "n": 10,
        "ns": (5, 10),
    }
    size = dataclasses.replace(sizes_of("defence", "smoke")[0], **tiny, crafted_on=20, samples=8, checked=20, candidate_points=2)
    profile = str(write_profile(tmp_path / "tiny.toml", defence=[size]))
    from bslib.runner import run

    store = Store(tmp_path / "store")
    run(plan_of("defence", profile), store, device="cpu", jobs=1, progress=False)
    [part] = load(profile=profile, store=store).values()
    assert len(part.networks) == 2 and {*part.records} == {*plan_of("defence", profile)} and len(part.quantities()) > 50
    assert all(isinstance(draw(part), Figure) for draw in figures.FIGURES)
