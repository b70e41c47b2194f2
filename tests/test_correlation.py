"""The chapter on success and W: its plan, and its numbers on made-up records that are small enough to compute by hand."""

from __future__ import annotations

import dataclasses
import math
from functools import partial

import matplotlib
import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from scipy import stats

from bslib.chapters import plan_of, sizes_of
from bslib.chapters.correlation import figures, pairs, plan
from bslib.chapters.correlation.results import Correlation, failures, load, quantities
from bslib.ledger import claims_of, judge
from bslib.profiles import PROFILES
from bslib.specs import CountsSpec, NetworkSpec, PredictionsSpec
from bslib.store import Record, Records, Store

matplotlib.use("agg")

SMALL = {"networks": 1, "further": 0, "points": 2, "clean_points": 1, "sigmas": (0.1, 0.25), "ns": (6, 12)}
T2, T1 = (dataclasses.replace(size, **SMALL) for size in sizes_of("correlation", "paper"))
#: For each network (of trigger 3, of trigger 5) and class: images of ten that are sent, and classes that noise leads to.
HITS = [[0, 1, 2, 3, 4, 5, 6, 7, 8, 9], [10, 9, 8, 10, 7, 9, 0, 10, 6, 8]]
SPLIT = [[9, 8, 6, 8, 7, 4, 5, 3, 4, 2], [1, 1, 2, 1, 3, 2, 4, 2, 3, 2]]
CLEAN = [[5, 8, 7, 9, 6, 3, 5, 4, 2, 2], [2, 1, 1, 3, 2, 1, 5, 1, 4, 2]]
DRAW = (figures.success_against_w, figures.correlation_by_setting, figures.success_within)


def part_of(size=T2, hits=HITS, split=SPLIT, clean=CLEAN, *, at=None, seed=0, profile="paper", gone=lambda spec: False):
    """The results of a size from made-up records; ``at`` has what noise leads to at another level and number of copies."""
    made, data = {}, {"source": f"made up {size.dataset}"}
    for number, network in enumerate(plan.networks_of(size, seed)):
        made[network], sent = {}, plan.predictions_of(size, network)
        made[sent] = predicted(network, hits[number % len(hits)]) if sent.trigger == network.attack.trigger else {}
        for spec in [plan.clean_counts_of(size, network), *(plan.counts_of(size, network, sigma) for sigma in size.sigmas)]:
            settings = [(at or {}).get((spec.sigmas[0], n), split) if spec.trigger else clean for n in spec.ns]
            made[spec] = counted(spec, [setting[number % len(setting)] for setting in settings])
    records = {spec: Record(spec, {}, arrays, data) for spec, arrays in made.items() if not gone(spec)}
    return Correlation(size, profile, seed, Records(records))


def predicted(network, hits) -> dict:
    """A hundred images: so many of each class, or of the ninety that are not of the target, are sent; the others are right."""
    labels, target = np.arange(100) % 10, network.attack.target
    said = labels.copy()
    for c, sent in enumerate(hits if target is None else [hits]):
        own = np.flatnonzero(labels == c if target is None else labels != target)[:sent]
        said[own] = (c + 1) % 10 if target is None else target
    return {"predicted": said, "labels": labels}


def counted(spec, settings) -> dict:
    """For each number of copies the classes that noise leads to: copies fall evenly into the true one and those behind it."""
    labels = np.repeat(np.arange(10), spec.points) if spec.by_class else np.arange(spec.points)
    many = [np.concatenate([np.broadcast_to(k, spec.points) for k in (own if spec.by_class else [own])]) for own in settings]
    many, behind = np.array(many)[None, :, :, None], (np.arange(10) - labels[:, None]) % 10
    return {"counts": (behind < many) * (2520 // many), "labels": labels}


def frame(w=SPLIT, clean=CLEAN) -> pd.DataFrame:
    """The pairs by hand."""
    made = {"trigger": np.repeat([3, 5], 10), "class": np.tile(np.arange(10), 2), "success": np.ravel(HITS) / 10}
    return pd.DataFrame(made | {"W": np.log(np.ravel(w)), "clean W": np.log(np.ravel(clean))})


KEPT = frame().query("success >= 0.1")


def test_the_paper_plan_has_the_papers_networks_and_no_spec_twice():
    specs = plan_of("correlation", "paper")
    assert len(specs) == len(set(specs)) == 644
    for dataset, threat, networks, further, alone in (("fashion-mnist", "T2", 5, 13, (32, 17)), ("cifar10", "T1", 12, 0, ())):
        nets = [spec for spec in specs if isinstance(spec, NetworkSpec) and spec.dataset == dataset]
        attacks = [(n.attack.trigger, n.seed, n.attack.threat_model, n.attack.target) for n in nets]
        runs = [(k, s) for some in (range(networks), range(networks, networks + further)) for k in (3, 5) for s in some]
        runs += [(k, s + networks + further) for k, many in zip((3, 5), alone, strict=False) for s in range(many)]
        assert attacks == [(k, s, threat, None if threat == "T2" else s % 10) for k, s in runs]
        last = nets[len(nets) - sum(alone) :]
        assert [type(spec) for spec in specs if spec.on_network in last] == [NetworkSpec, PredictionsSpec] * sum(alone)
        for net in nets[: len(nets) - sum(alone)]:
            clean, *triggered = (spec for spec in specs if isinstance(spec, CountsSpec) and spec.network == net)
            levels = 10 if net.seed < networks else 1
            assert clean.trigger is None and {s.trigger for s in triggered} == {net.attack.trigger} and len(triggered) == levels
            assert {(s.seed, s.paired, s.by_class) for s in triggered} == {(clean.seed, True, True if threat == "T2" else None)}
            assert clean.sigmas == triggered[0].sigmas == (0.1,) and clean.paired, "the same images under the same noise"


@pytest.mark.parametrize("profile", PROFILES)
def test_what_is_needed_comes_first_and_the_first_noise_level_before_others(profile):
    place = {spec: k for k, spec in enumerate(plan_of("correlation", profile))}
    assert all(place[needed] < at for spec, at in place.items() for needed in spec.needs.values())
    for size in sizes_of("correlation", profile):
        levels = [s.sigmas[0] for s in place if isinstance(s, CountsSpec) and s.dataset == size.dataset]
        assert levels == sorted(levels, key=size.sigmas.index)


def test_under_t2_each_class_of_a_network_is_a_pair_and_sent_to_the_next():
    found = part_of().pairs()
    assert found["network"].tolist() == [0] * 10 + [1] * 10 and set(found["images"]) == {10}
    pd.testing.assert_frame_equal(found[list(frame())], frame())
    assert found["true"].tolist() == pytest.approx([1 / k for k in np.ravel(SPLIT)])
    assert found["wanted"].tolist() == pytest.approx([1 / k if k > 1 else 0 for k in np.ravel(SPLIT)])


def test_under_t1_each_network_is_a_pair_and_images_of_the_target_do_not_count():
    found = part_of(T1, [45, 90], [[6, 2], [1, 1]], [[3], [2]], seed=4).pairs()
    assert found[["trigger", "class", "success", "images"]].to_numpy().tolist() == [[3, -1, 0.5, 90], [5, -1, 1, 90]]
    assert np.exp(found[["W", "clean W"]].to_numpy()) == pytest.approx(np.array([[12**0.5, 3], [1, 2]]))
    assert found.loc[0, ["wanted", "true"]].tolist() == pytest.approx([1 / 12, 1 / 3]), "class 4 of 0 to 5, and of 1 and 2"


def test_each_noise_level_and_number_of_copies_has_its_own_counts():
    part = part_of(T1, [45, 90], at={(0.1, 6): [2, 3], (0.1, 12): [4, 5], (0.25, 6): [6, 7], (0.25, 12): [8, 9]}, clean=[1, 1])
    found = [part.pairs(sigma, n=n)["W"] for sigma in (None, 0.25) for n in (6, None)]
    assert np.exp(found) == pytest.approx(np.array([[2, 3], [4, 5], [6, 7], [8, 9]])) and part.sigmas == [0.1, 0.25]


@pytest.mark.parametrize("below", [0.0, 0.1, 0.3])
def test_correlations_are_scipys_without_the_pairs_below_random_guess(below):
    got, kept = pairs.correlations(part_of().pairs(), below), frame().query("success >= @below")
    assert (got["pairs"], got["left out"]) == (len(kept), 20 - len(kept)) and len(kept) == {0: 20, 0.1: 18, 0.3: 16}[below]
    for name, test in (("tau", stats.kendalltau), ("r", stats.pearsonr)):
        assert (got[name].value, got[f"{name} p"]) == pytest.approx(tuple(test(kept["success"], kept["W"])))
        assert got[name].repeats == 1 and math.isnan(got[name].low), "of one seed"
    assert pairs.correlations(part_of().pairs(), 0.1)["left out"] == 2, "0.1 itself is kept"


@given(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), min_size=5, max_size=30))
def test_p_values_from_a_coefficient_and_a_number_of_pairs_are_scipys(drawn):
    success, w = np.array(drawn, dtype=float).T
    assert math.isnan(pairs.kendall_tau({"success": success[:4], "W": w[:4]})), "four are too few"
    ranks = stats.kendalltau(range(len(w)), np.argsort(w), method="asymptotic")
    assert pairs.p_values(tau=ranks.statistic, r=0, pairs=len(w))[0] == pytest.approx(ranks.pvalue)


def grouped(level: float = 1.0, slope: float = 1.0) -> pd.DataFrame:
    """In each class under each trigger three contrasts: a in success, a + e in W, c in W without, and in both by a slope."""
    a, c, e = np.tile([[-1, 1, -1, 1], [-1, -1, 1, 1], [1, -1, -1, 1]], 6)
    trigger, label = np.repeat([3, 3, 3, 5, 5, 5], 4), np.repeat([0, 1, 2] * 2, 4)
    success, w = 3 * a + 2 * slope * c + level * (trigger - label), a + e + 5 * slope * c - level * (label * trigger)
    return pd.DataFrame({"trigger": trigger, "class": label, "success": success, "W": w, "clean W": c + level * label})


@pytest.mark.parametrize(("level", "slope"), [(0, 0), (1, 1), (-7, 1), (0.3, -9)])
def test_what_trigger_class_and_clean_w_explain_is_taken_out(level, slope):
    made, (a, e) = grouped(level, slope), np.tile([[-1, 1, -1, 1], [1, -1, -1, 1]], 6)
    left = pairs.residuals(made.sample(frac=1, random_state=0)).sort_index()
    assert left.to_numpy() == pytest.approx(np.column_stack([3 * a, a + e])), "each at its own pair"
    assert pairs.partial_correlation(made) == pytest.approx(0.5**0.5)
    within = (3 + 10 * slope**2) / ((9 + 4 * slope**2) * (2 + 25 * slope**2)) ** 0.5
    assert pairs.partial_correlation(made, given=()) == pytest.approx(within)
    few = [pairs.partial_correlation(made.iloc[:many]) for many in (1, 4, 8)]  # a mean of each group and a slope are fitted
    assert np.isnan(few).tolist() == [True, True, False] and pairs.residuals(made.iloc[::3]).isna().all(axis=None)


def test_replicates_leave_out_one_seed_with_all_its_networks():
    made = part_of(dataclasses.replace(T2, networks=2), HITS * 2, SPLIT * 2, CLEAN * 2).pairs()
    found = pairs.replicates(made, lambda p: (len(p["W"]), p["W"].sum(), len(set(p["trigger"]))))
    assert found.value.tolist()[0] == 40 and found.without[:, 0].tolist() == [20] * 2 and (found.without[:, 2] == 2).all()
    assert found.value[1] - found.without[:, 1] == pytest.approx(made.groupby("seed")["W"].sum())
    assert found.repeats == 2, "networks of a seed have the same images"


def test_an_interval_is_wide_where_networks_differ():
    size, rising = dataclasses.replace(T2, networks=2), list(range(1, 11))
    got = pairs.correlations(part_of(size, [rising], [rising, rising[::-1]], [rising]).pairs(), 0.1)["r"]
    assert abs(got.value) < 0.01 and got.low < -0.5 and got.high > 0.5, "no number of images makes a sign sure"


def test_sensitivity_has_every_rule_at_every_level():
    other = [split[::-1] for split in SPLIT]
    table = part_of(at={(0.25, 12): other, (0.1, 6): CLEAN}).sensitivity().set_index(["sigma", "n", "exclude below"])
    assert list(table.index) == [(s, n, below) for s in (0.1, 0.25) for n, below in ((12, 0), (12, 0.1), (12, 0.3), (6, 0.1))]
    for at, w in (((0.1, 12, 0.1), SPLIT), ((0.25, 12, 0.1), other), ((0.1, 6, 0.1), CLEAN)):
        assert table.loc[at, "tau"].value == pytest.approx(stats.kendalltau(KEPT["success"], frame(w)["W"][KEPT.index])[0])
    assert table["left out"].tolist() == [0, 2, 4, 2] * 2


def test_parts_of_the_pairs_have_correlations_of_their_own():
    got, parts = part_of().breakdown(), {f"trigger {k} alone": own for k, own in KEPT.groupby("trigger")}
    columns = {name: (own["success"], own["W"]) for name, own in ({"all pairs": KEPT} | parts).items()}
    columns["W with the trigger against W without it"] = KEPT["W"], KEPT["clean W"]
    assert list(got) == list(columns), "of one network of a kind, nothing is left within trigger and class"
    for name, two in columns.items():
        assert got[name].value == pytest.approx(stats.pearsonr(*two)[0]) and got[name].repeats == 1
    repeated = part_of(dataclasses.replace(T2, networks=3), HITS * 3, SPLIT * 3, CLEAN * 3).breakdown()
    without = "W without the trigger taken out"
    assert list(repeated)[1:4] == ["trigger 3 alone", "trigger 3, class taken out", f"trigger 3, class and {without}"]
    assert list(repeated)[7:9] == ["all pairs, trigger and class taken out", f"all pairs, trigger, class and {without}"]
    assert all(own.repeats == 3 and -1 <= own.low <= own.value <= own.high <= 1 for own in repeated.values())


def test_what_noise_does_to_a_trigger_is_said_of_kept_and_left_out_pairs():
    table, rows = part_of().by_trigger(), part_of().trigger_table().splitlines()[2:]
    assert list(table.index) == [f"trigger {k}, {said}" for k in (3, 5) for said in ("left out", "kept")]
    assert table["pairs"].tolist() == [1, 9, 1, 9] and table["success"].tolist() == pytest.approx([0, 0.5, 0, 77 / 90])
    assert table["wanted"].tolist()[2:] == pytest.approx([1 / 4, (4 / 2 + 2 / 3) / 9])
    assert table["true"].tolist()[2:] == pytest.approx([1 / 4, (3 + 4 / 2 + 2 / 3) / 9])
    three, less = KEPT[KEPT["trigger"] == 3], [estimate.value for estimate in table["W minus clean W"]]
    assert less[:3] == pytest.approx([math.log(9 / 5), (three["W"] - three["clean W"]).mean(), math.log(4 / 5)])
    assert rows[2].startswith("| trigger 5, left out | 1 | 0% | 25% | 25% | \N{MINUS SIGN}0.223 |") and len(rows) == 4


def test_networks_of_which_the_success_alone_is_measured_count_in_the_pairs_left_out():
    """A tenth of the one, nothing of the other and two tenths of the third; nothing else changes."""
    size = dataclasses.replace(T2, success_only=(0, 2))
    first = part_of(size)
    alone = {net: hits for net, hits in zip(plan.success_networks_of(size, 0), [[1] * 10, [0, 0] + [5] * 8], strict=True)}
    assert [(net.seed, net.attack.trigger) for net in alone] == [(1, 5), (2, 5)]
    sent = {plan.predictions_of(size, net): predicted(net, hits) for net, hits in alone.items()}
    more = {spec: Record(spec, {}, arrays, {"source": "made up"}) for spec, arrays in sent.items()}
    second = dataclasses.replace(first, records=Records({**first.records, **more}))
    before, after = first.quantities(), second.quantities()
    assert [name for name in after if repr(after[name]) != repr(before[name])] == ["left_out.fashion-mnist.5"]
    known = stats.ttest_1samp([0.1, 0.0, 0.2], 0).confidence_interval()
    found = after["left_out.fashion-mnist.5"]
    assert (found.value, found.low, found.high) == pytest.approx((0.1, max(known.low, 0), known.high)) and found.repeats == 3


def test_quantities_by_hand():
    found = quantities({"fashion-mnist": part_of(at={(0.25, 12): CLEAN})})
    low = KEPT["success"] < 0.4
    three, five = (KEPT[KEPT["trigger"] == trigger] for trigger in (3, 5))
    expected = {
        "tau.{}": stats.kendalltau(KEPT["success"], KEPT["W"])[0], "r.{}": stats.pearsonr(KEPT["success"], KEPT["W"])[0],
        "spread_of_low_less_high.{}": KEPT["W"][low].std() - KEPT["W"][~low].std(),
        "r_alone.{}.3": stats.pearsonr(three["success"], three["W"])[0], "left_out.{}.3": 0.1, "success.{}.3": 0.45,
        "r_alone.{}.5": stats.pearsonr(five["success"], five["W"])[0], "left_out.{}.5": 0.1, "success.{}.5": 0.77,
        "r_without.{}": stats.pearsonr(KEPT["success"], KEPT["clean W"])[0], 
        "residual_rank.{}": None, "smooth_failures.{}": 0, "rough_failures.{}": 2 / 9,  # residuals have a test
        "tau_at.{}.0.25": stats.kendalltau(KEPT["success"], KEPT["clean W"])[0],
        "less_clean.{}.3": (three["W"] - three["clean W"]).mean(), "less_clean.{}.5": (five["W"] - five["clean W"]).mean(),
    }  # fmt: skip
    for name, value in expected.items():
        assert value is None or found[name.format("fashion-mnist")].value == pytest.approx(value), name
    assert {name for name in found if "reported" not in name} == {name.format("fashion-mnist") for name in expected}
    assert found["reported_p_of_r.79"].value == pytest.approx(stats.beta(38.5, 38.5, loc=-1, scale=2).cdf(-0.58) * 2)


@pytest.mark.parametrize(("networks", "there"), [(2, False), (3, True)])
def test_quantities_need_five_pairs_three_of_a_kind_and_both_triggers(networks, there):
    size, sent = dataclasses.replace(T1, networks=networks), {2: [20, 23, 50, 60], 3: [20, 23, 29, 50, 60, 75]}[networks]
    part = part_of(size, sent, [3, 2, 5, 4, 7, 1], [1])
    names = {name.split(".")[0] for name in part.quantities()}
    assert ("tau" in names) == ("r" in names) == ("spread_of_low_less_high" in names) == there and "left_out" in names
    one_trigger = part_of(size, sent, [3, 2, 5, 4, 7, 1], [1], gone=lambda spec: spec.on_network.attack.trigger == 5)
    assert one_trigger.quantities() == {} and len(one_trigger.networks) == networks


def test_every_claim_has_its_quantity():
    sent, many = [9, 20, 30, 50, 70, 90, 80, 85, 88, 60, 75, 90], [8, 7, 6, 4, 3, 1, 2, 2, 1, 3, 5, 2]
    cifar, size = part_of(dataclasses.replace(T1, networks=6), sent, many, many[::-1]), dataclasses.replace(T2, networks=3)
    fashion = part_of(size, [*HITS, HITS[0][::-1]], [*SPLIT, SPLIT[1][::-1]])
    found = quantities({"fashion-mnist": fashion, "cifar10": cifar})
    assert [claim.id for claim in claims_of("correlation") if judge(claim, found) == "not yet run"] == []


def test_a_network_counts_when_it_is_measured_at_the_first_level():
    size = dataclasses.replace(T2, networks=2)
    nets = plan.networks_of(size, 0)
    level, other_level = (plan.counts_of(size, nets[2], sigma) for sigma in (0.1, 0.25))
    for spec in (nets[2], plan.predictions_of(size, nets[2]), level, plan.clean_counts_of(size, nets[2])):
        part = part_of(size, gone=lambda one, spec=spec: one == spec)
        assert part.networks == [nets[0], nets[1], nets[3]]
        assert "3 of 4 networks under T2, 2 images behind each pair" in part.source
    part = part_of(size, gone=lambda one: one == other_level)
    assert part.networks == nets and part.sigmas == [0.1] and part.missing is None
    assert [network.seed for network in dataclasses.replace(part_of(size), size=T2, seed=1).networks] == [1, 1]


def test_further_networks_have_pairs_at_the_first_level_alone_behind_those_of_every_level():
    size = dataclasses.replace(T1, networks=1, further=1)
    part = part_of(size, [45, 90, 9, 18], [1] * 4, at={(0.1, 12): [4, 5, 6, 7], (0.25, 12): [8, 9]}, clean=[1, 1, 1, 1])
    first, other = part.pairs(), part.pairs(0.25)
    assert first["trigger"].tolist() == [3, 5, 3, 5] and other["network"].tolist() == [0, 1] == first["network"].tolist()[:2]
    assert np.exp(first["W"]).tolist() == pytest.approx([4, 5, 6, 7]) and np.exp(other["W"]).tolist() == pytest.approx([8, 9])
    assert part.sigmas == [0.1, 0.25] and "4 of 4 networks under T1, 2 of them at σ = 0.1 alone" in part.source


def test_what_is_missing_says_what_to_run(tmp_path):
    results = load(profile="paper", store=Store(tmp_path, writable=False))
    assert list(results) == ["fashion-mnist", "cifar10"] and all("reported" in name for name in quantities(results))
    for (dataset, part), networks in zip(results.items(), (36, 24), strict=True):
        assert part.networks == part.sigmas == [] and part.breakdown() == {} and part.trigger_table() == "(Not yet run.)"
        assert f"{networks} backdoored networks ({part.size.network}) on {dataset}, and the store holds none" in part.missing
        for draw in DRAW:
            assert "`bslib run correlation --profile paper --store book/records` computes them" in draw(part).data


@pytest.mark.parametrize("profile", PROFILES)
def test_figures_are_drawn_of_both_profiles(profile):
    for size in (T2, T1) if profile == "paper" else sizes_of("correlation", profile):
        part = part_of(size, *(() if size.threat_model == "T2" else ([45, 80], [2, 3], [1, 2])), profile=profile)
        assert all(isinstance(draw(part), Figure) for draw in DRAW) and not plt.get_fignums(), "else they are shown twice"


def test_tables_of_figures_have_every_pair_and_say_where_there_is_no_correlation():
    table, within = (draw.table(part_of()) for draw in (figures.success_against_w, figures.success_within))
    assert table.index[~table["kept"]].tolist() == [0, 16] and table["success"].tolist() == frame()["success"].tolist()
    assert within.index.tolist() == KEPT.index.tolist() and within["W"].tolist() == pytest.approx(KEPT["W"].tolist())
    for hits, left_out in ((0, 20), (10, 0)):  # nothing, or nothing but one value, is left to correlate
        part = part_of(hits=[[hits] * 10] * 2)
        got = pairs.correlations(part.pairs(), part.random_guess)
        assert np.isnan([got["tau"].value, got["tau p"], got["r"].value, got["r p"]]).all() and got["left out"] == left_out
        title = figures.success_against_w(part).axes[0].get_title()
        assert title == f"{20 - left_out} pairs, {left_out} left out: no correlation"
        assert figures.success_within.table(part).empty == (hits == 0)


def test_success_that_varies_more_where_w_is_larger_has_residuals_of_that_rank():
    w = np.linspace(0, 1, 50)
    fanned = {"success": 0.5 - 0.2 * w + 0.2 * w * np.tile([1, -1], 25), "W": w}
    even = {"success": 0.5 - 0.2 * w + 0.1 * np.tile([1, -1], 25), "W": w}
    assert pairs.residual_rank(fanned) > 0.9 and abs(pairs.residual_rank(even)) < 0.3
    assert math.isnan(pairs.residual_rank({"success": np.ones(9), "W": w[:9]}))


def test_failures_are_counted_among_all_pairs_of_the_half_with_the_smaller_w():
    """Network 0 has one pair in the smoother half and network 1 four; the mean of the networks' fractions would be 5 / 8."""
    success, w = [0.0, 0.9, 0.9, 0.9, 0.9, 0.05, 0.5, 0.9, 0.9, 0.9], [1, 9, 9, 9, 9, 2, 3, 4, 5, 9]
    made = pd.DataFrame({"seed": [0] * 5 + [1] * 5, "trigger": 3, "class": 0, "success": success, "W": w, "clean W": 0.0})
    found = [pairs.replicates(made, partial(failures, half=half)).value for half in ("smooth", "rough")]
    assert found == pytest.approx([2 / 5, 0]) and math.isnan(failures({"success": np.ones(0), "W": np.ones(0)}, "rough"))


def test_a_seed_without_a_pair_that_counts_still_counts_as_a_repeat():
    """All kept pairs are of one seed, as after a short training: an interval of the seeds is then unknown, not narrow."""
    size = dataclasses.replace(T2, networks=2)
    found = part_of(size, [[0] * 10, HITS[1]] * 2, SPLIT * 2, CLEAN * 2).quantities()
    assert found["tau.fashion-mnist"].repeats == 2
    assert "p_of_tau.fashion-mnist" not in found and math.isnan(found["tau.fashion-mnist"].low)
    two = part_of(size, [[0] * 10, HITS[1], HITS[0], HITS[1][::-1]], SPLIT * 2, CLEAN * 2)
    kept, found = two.pairs().query("success >= 0.1"), two.quantities()
    assert found["tau.fashion-mnist"].value == pytest.approx(stats.kendalltau(kept["success"], kept["W"])[0])
    for name, of, error, kind in (("tau", -0.49, (0.437 / 75) ** 0.5, stats.kendalltau), ("r", -0.58, 76**-0.5, stats.pearsonr)):
        own = [kind(*kept[kept["seed"] != seed][["success", "W"]].to_numpy().T).statistic for seed in (0, 1)]
        ours = np.ptp(np.arctanh(own)) / 2  # the jackknife's standard error of two
        freedom = (ours**2 + error**2) ** 2 / ours**4  # Satterthwaite; the paper's has none of its own
        score = abs(np.arctanh(found[f"{name}.fashion-mnist"].value) - np.arctanh(of)) / np.hypot(ours, error)
        assert found[f"p_of_{name}.fashion-mnist"].value == pytest.approx(2 * stats.t.sf(score, freedom), rel=1e-6)
