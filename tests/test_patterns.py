"""The chapter on what else smooths: its plan, and its numbers on made-up records that are small enough to compute by hand."""

from __future__ import annotations

import dataclasses
import math
from functools import partial

import matplotlib
import numpy as np
import pytest
from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from scipy import stats
from sklearn.metrics import roc_auc_score

from bslib.chapters import plan_of, sizes_of
from bslib.chapters.patterns import figures, plan
from bslib.chapters.patterns.candidates import candidates
from bslib.chapters.patterns.detector import by_trigger, false_alarms, sensitivity, working
from bslib.chapters.patterns.others import detectors, others
from bslib.chapters.patterns.results import Patterns, load, quantities
from bslib.chapters.patterns.universal import universal, universal_areas
from bslib.chapters.surface.plan import pictures_of
from bslib.ledger import claims_of, judge
from bslib.profiles import PROFILES
from bslib.specs import CleanseSpec, CountsSpec, DetectorSpec, ImagesSpec, NetworkSpec, PredictionsSpec, UniversalSpec
from bslib.store import Record, Records, Store

matplotlib.use("agg")

SMALL = {
    "networks": 1, "triggers": (1, 4), "further": (), "only_crafted": 0, "more_triggers": (),
    "points": 8, "sigmas": (0.1, 0.25, 0.05), "n": 12, "bounds": (10,), "more_bounds": (4,), "more_bounds_networks": None,
    "pattern_points": 4, "pattern_sigmas": (0.1, 0.25), "scored": 2,
}  # fmt: skip
FASHION, CIFAR = (dataclasses.replace(size, **SMALL) for size in sizes_of("patterns", "paper"))
THREES = dataclasses.replace(FASHION, networks=3)
SEED = 3  # the target class of the first networks
CLEAN, ONE, FOUR = plan.networks_of(FASHION, SEED)
CLEANSE, (UNIVERSAL, OTHER_BOUND) = plan.cleanse_of(FASHION, ONE), plan.universals_of(FASHION, ONE)
DRAW = (figures.roc, figures.roc_by_setting, figures.universal, figures.reversed_triggers, figures.reversed_norms)
LOG2 = math.log(2)
#: How many classes noise leads to at each point. Against points that vary by one amount, as they do where nothing else is said,
#: the score of EVEN is 700, and of MORE -700. Half of HALF varies; as a whole its zeros are outliers, and the rest does not.
EVEN, MORE, HALF = [2] * 8, [1, 4] * 4, [1, 2, 1, 2, 2, 2, 2, 2]
NORMS = [9, 9, 9, 4, 9, 9, 2, 9, 9, 9]


def counted(spec, classes) -> dict:
    """Noisy copies that fall evenly into so many classes, for each point or for each level and point: W is the logarithm."""
    many = np.broadcast_to(np.atleast_2d(classes)[:, None], (len(spec.sigmas), 1, spec.batches * spec.points))[..., None]
    return {"counts": (np.arange(10) < many) * (spec.ns[0] // many)}


def sized(norms) -> dict:
    return {"masks": np.ones((10, 1, 2, 2)) * np.reshape(list(norms), (10, 1, 1, 1)) / 4}


def succeeds(network, hits: int) -> dict:
    """Predictions of a hundred images: so many of the ninety of other classes are sent to the target, the others called right."""
    labels = np.arange(100) % 10
    predicted = labels.copy()
    predicted[np.flatnonzero(labels != network.attack.target)[:hits]] = network.attack.target
    return {plan.specs_of(FASHION, network)[1]: {"predicted": predicted, "labels": labels}}


def arrays_of(spec) -> dict:
    """What a record holds where nothing else is said: W varies as much everywhere, and every trigger works."""
    channels = 1 if getattr(spec, "dataset", "").startswith(("fashion", "digits")) else 3
    if isinstance(spec, CountsSpec):
        return counted(spec, 1 + np.arange(spec.batches * spec.points) % 2)
    if isinstance(spec, PredictionsSpec):
        return next(iter(succeeds(spec.network, 90).values()))
    if isinstance(spec, UniversalSpec):
        return {"fooling_rates": np.array([0.2, 0.6, 0.4]), "without": np.arange(10), "with": np.full(10, 7)}
    if isinstance(spec, CleanseSpec):
        shares = {f"success{part}": np.ones(10) for part in ("", "_test", "_train")}
        return {"patterns": np.ones((10, channels, 2, 2))} | sized(range(1, 11)) | shares
    if isinstance(spec, DetectorSpec):
        return {"scores": np.ones((spec.batches, spec.points) if spec.detector == "strip" else spec.batches)}
    plain = np.zeros((6, channels, 2, 2), np.uint8)
    return {"images": plain, "stamped": plain + np.eye(2, dtype=np.uint8)} if isinstance(spec, ImagesSpec) else {}


def part_of(changes=None, size=FASHION, *, profile="paper", gone=lambda spec: False) -> Patterns:
    """The results of a size from made-up records, with some of their arrays changed and some of them gone."""
    steps = "specs_of", "universal_specs", "cleanse_specs", "scores_specs", "level_specs", "further_specs"
    specs = [pictures_of(size, SEED), *plan.compared_specs(size, SEED)]
    specs += [spec for net in plan.networks_of(size, SEED) for step in steps for spec in getattr(plan, step)(size, net)]
    specs += [spec for net in plan.networks_of(size, SEED) for spec in plan.more_bounds_specs(size, net, SEED)]
    only_crafted = plan.only_crafted_networks_of(size, SEED)
    specs += [s for net in only_crafted for step in (plan.only_crafted_specs, plan.universal_specs) for s in step(size, net)]
    data, result = {"source": f"made up {size.dataset}"}, {"anomaly_index": 1.5}
    made = {s: Record(s, result, arrays_of(s) | (changes or {}).get(s, {}), data) for s in specs if not gone(s)}
    return Patterns(size, profile, SEED, Records(made))


def batch(network, carried, classes, sigma=None, size=FASHION) -> dict:
    """A batch with a trigger, 0 or None, or with a crafted pattern, in which W is given."""
    crafted = isinstance(carried, UniversalSpec | CleanseSpec)
    spec = plan.crafted_batch_of(size, carried, sigma) if crafted else plan.batch_of(size, network, carried, sigma)
    return {spec: counted(spec, classes)}


def candidates_even(network, *classes, sigma=None) -> dict:
    """W of these candidates does not vary."""
    each = np.where(np.isin(np.arange(10), classes)[:, None], 2, [1, 2, 1, 2])
    return batch(network, plan.cleanse_of(FASHION, network), each.ravel(), sigma)


def is_crafted(spec) -> bool:
    return isinstance(spec, UniversalSpec | CleanseSpec) or getattr(spec, "pattern", None) is not None


def test_the_paper_plan_has_the_papers_networks_and_no_spec_twice():
    specs = plan_of("patterns", "paper")
    assert len(specs) == len(set(specs)) == 2959
    triggers = {"fashion-mnist": (1, 3, 4, 2, 5, 6), "cifar10": (1, 3, 4)}
    further = [s for s in specs if isinstance(s, NetworkSpec) and s.dataset == "cifar10" and s.seed >= 3]
    assert [(n.attack.trigger, n.seed) for n in further] == [(1, 3), *((4, seed) for seed in range(3, 12))]
    assert {s.on_network for s in specs if isinstance(s, DetectorSpec)} & {*further} == {*further[:2]}
    for network in further[2:]:  # for crafted patterns alone
        own = [s for s in specs if s.on_network == network]
        kinds = ["network", "counts", "cleanse", "counts", "universal", "counts"]
        assert [s.kind for s in own] == kinds and {getattr(s, "trigger", None) for s in own} == {None}
    specs = [s for s in specs if s.on_network not in further]
    for dataset, threat, seeds in (("fashion-mnist", "T3", 9), ("cifar10", "T1", 3)):
        kinds = (None, *triggers[dataset])
        networks = [s for s in specs if isinstance(s, NetworkSpec) and s.dataset == dataset]
        attacks = [n.attack and (n.attack.threat_model, n.attack.trigger, n.attack.target) for n in networks]
        assert [n.seed for n in networks] == [seed for seed in range(seeds) for _ in kinds], "one of each kind, then the next"
        assert attacks == [t and (threat, t, seed) for seed in range(seeds) for t in kinds], "target classes take turns"
        crafted = {(plan.trained_trigger(s.network), s.network.seed) for s in specs if is_crafted(s) and s.dataset == dataset}
        assert crafted == {(trigger, k) for trigger in (0, 1, 3, 4) for k in range(seeds)}
        bounds = {(s.bound, s.network.seed) for s in specs if isinstance(s, UniversalSpec) and s.dataset == dataset}
        assert bounds == {(b, k) for b in (10, 26) for k in range(seeds)} | {(b, k) for b in (4, 8, 16) for k in range(3)}
    compared = [(s.dataset, s.network.seed, s.network.attack.trigger) for s in specs if getattr(s, "samples", 0) == 1000]
    assert compared == [("fashion-mnist", 0, 1)]


@pytest.mark.parametrize("profile", PROFILES)
def test_needed_specs_come_first_then_triggers_then_crafted_patterns_then_other_levels_and_bounds(profile):
    place = {spec: k for k, spec in enumerate(plan_of("patterns", profile))}
    assert all(place[needed] < at for spec, at in place.items() for needed in spec.needs.values())
    for size in sizes_of("patterns", profile):
        ranks = []
        for spec in (spec for spec in place if spec.on_network and spec.dataset == size.dataset):
            other = getattr(getattr(spec, "pattern", None) or spec, "bound", size.bounds[0]) not in size.bounds
            other |= 0.1 not in getattr(spec, "sigmas", [0.1]) or getattr(spec, "samples", 0) == (size.compared or -1)
            alone = spec.on_network in plan.only_crafted_networks_of(size, 0)
            ranks.append(2 if other else int(alone or is_crafted(spec) or isinstance(spec, DetectorSpec)))
        assert ranks == sorted(ranks) and {0, 1} <= set(ranks) and size.pattern_sigmas[0] == size.sigmas[0] == 0.1
        half = 250 if size.dataset.startswith("digits") else 5000  # of the test set
        assert max(size.crafted_on, size.overlays, size.points, size.scored) <= half and size.pattern_points <= size.points


def test_further_networks_are_there_for_crafted_patterns_alone():
    size = dataclasses.replace(FASHION, only_crafted=2)
    part, further = part_of(size=size), plan.only_crafted_networks_of(size, SEED)
    assert [(net.seed, plan.trained_trigger(net)) for net in further] == [(SEED + 1, 4), (SEED + 2, 4)]
    assert part.networks == [CLEAN, ONE, FOUR] and part.listed == [CLEAN, ONE, FOUR, *further]
    for table in (candidates(part), universal(part).query("bound == 10")):
        seeds = table.assign(seed=part.seeds(table)).groupby("sigma")["seed"].agg(set)
        assert seeds.to_dict() == {0.1: {SEED, SEED + 1, SEED + 2}, 0.25: {SEED}}
    assert figures.reversed_norms(part).get_supxlabel().endswith("; crafted for 5 networks")
    assert figures.universal(part).get_supxlabel().endswith("; crafted for 3 to 5 networks"), "the other bound for three"
    some = part_of(size=size, gone=lambda spec: spec == plan.cleanse_of(size, further[0]))
    assert some.listed == [CLEAN, ONE, FOUR, further[1]]


def test_every_batch_has_images_of_its_own_from_the_half_that_nothing_is_crafted_on():
    for net in (CLEAN, FOUR):
        batches = [spec for spec in plan.specs_of(FASHION, net) if isinstance(spec, CountsSpec)]
        assert [spec.trigger for spec in batches] == [None, None, 1, 2, 3, 4, 5, 6]
        batches.append(plan.crafted_batch_of(FASHION, plan.cleanse_of(FASHION, net)))
        assert len({spec.seed for spec in batches}) == 9 and all(spec.held_out for spec in batches)
        assert {spec.sigmas for spec in plan.level_specs(FASHION, net)} == {(0.25, 0.05)}


def test_a_score_is_high_where_a_batch_varies_less_than_the_first_clean_one():
    tests = part_of(batch(ONE, 1, EVEN) | batch(CLEAN, 0, EVEN) | batch(FOUR, None, EVEN)).tests()
    scores = tests.pivot(index="network", columns="trigger", values="score").to_numpy().tolist()
    assert scores == [[700] + [0] * 6, [0, 700] + [0] * 5, [-700] * 7]
    own = tests[["network", "trigger"]][tests["carried"] == "own"].to_numpy().tolist()
    assert own == [[1, 1], [2, 4]] and tests["trigger"][tests["carried"] == "nothing"].tolist() == [0, 0, 0]


@pytest.mark.parametrize(("form", "center"), [("paper", "mean"), ("median", "median"), ("calibrated", "median")])
def test_a_score_is_the_logarithm_of_scipys_p_value(form, center):
    clean, tested = [1, 10, 2, 9, 1, 10, 5, 3], [4, 5, 4, 6, 5, 4, 7, 5]
    p = stats.levene(np.log(clean), np.log(tested), center=center).pvalue
    row = part_of(batch(ONE, None, clean) | batch(ONE, 1, tested)).tests(form=form).query("carried == 'own' and network == 1")
    assert row["p"].item() == pytest.approx(p) and row["score"].item() == pytest.approx(-math.log(p)) and 0.0001 < p < 0.05


def test_each_noise_level_has_its_own_counts_and_is_there_where_every_network_has_it():
    part = part_of(batch(ONE, 1, [MORE, EVEN], 0.05))  # at 0.25 and 0.05
    scores = [part.tests(sigma).query("carried == 'own'")["score"].tolist() for sigma in (None, 0.25, 0.05)]
    assert scores == [[0, 0], [-700, 0], [700, 0]] and part.sigmas == [0.05, 0.1, 0.25]
    assert [part.area(sigma).value for sigma in (None, 0.25, 0.05)] == [0.5, 0.25, 0.75]
    some = part_of(gone=lambda spec: spec == plan.batch_of(FASHION, FOUR, 3, 0.25))
    assert some.sigmas == [0.1] and some.networks == [CLEAN, ONE, FOUR] and set(sensitivity(some)["sigma"]) == {0.1}


def test_smaller_batches_are_cut_from_the_points_and_what_is_left_over_is_not_used():
    part, own = part_of(batch(ONE, 1, [1, 2, 1, 2, 2, 2, 2, 1])), "carried == 'own' and network == 1"
    assert part.tests(batch=4).query(own)["score"].tolist() == [0, 700], "of the second four, a single zero is an outlier"
    assert len(part.tests(batch=3).query(own)) == 2 and len(part.tests(batch=9)) == 0
    assert not part_of(batch(ONE, None, HALF) | batch(ONE, 1, HALF)).tests(points=4)["score"].any(), "the first four of both"


def test_the_area_counts_ties_half_and_an_unsigned_score_any_difference():
    part = part_of(batch(ONE, 1, EVEN) | batch(CLEAN, 0, EVEN) | batch(CLEAN, 5, MORE))
    assert part.tests()["score"].value_counts().to_dict() == {0: 18, 700: 2, -700: 1}  # own ones: 700 and 0
    assert part.area().value == pytest.approx((18.5 + 9.5) / 38)
    unsigned = sensitivity(part).query("sigma == 0.1 and form == 'no direction' and triggers == 'all'")["area"].item()
    assert unsigned.value == pytest.approx((18 + 8.5) / 38)
    assert part.area(triggers=[1]).value == pytest.approx(12.5 / 13) and part.area(triggers=[4]).value == pytest.approx(6.5 / 13)
    assert part.area().repeats == 1 and math.isnan(part.area().low), "networks of one seed are one repeat"
    part.tests()["score"].array[:] = 0
    assert part.tests()["score"].any(), "a changed table does not change the next"


def kinds_of(size) -> list[list]:
    """The clean networks, and those with each trigger."""
    networks = plan.networks_of(size, SEED)
    return [networks[k : k + size.networks] for k in range(0, len(networks), size.networks)]


def each_of(networks, make) -> dict:
    return {spec: arrays for network in networks for spec, arrays in make(network).items()}


def test_triggers_below_90_percent_can_be_left_out_and_success_is_of_images_of_other_classes():
    clean, ones, fours = kinds_of(THREES)
    for hits, area, curve in ((80, 1, [0, 1, 1]), (81, 0.75, [0, 0.5, 1])):  # of ninety
        some_fail = each_of(fours, partial(succeeds, hits=hits))
        part = part_of(each_of(ones, lambda net: batch(net, 1, EVEN)) | some_fail, THREES)
        assert part.area(triggers=working(part)).value == area and part.area().value == 0.75
        every, works = (own for _, own in figures.roc.table(part).groupby("positives", sort=False))
        assert (every["positive"] == 6).all() and (works["positive"] == 3 + 3 * (hits > 80)).all()
        assert works["true positive rate"].tolist() == curve and (works["negative"] == 39 + 18 * (hits > 80)).all()
        assert part.success(fours[0]) == hits / 90 and part.success(ones[0]) == 1 and math.isnan(part.success(clean[0]))
    none = part_of(each_of(ones + fours, lambda net: succeeds(net, 0)), THREES)
    assert set(figures.roc.table(none)["positives"]) == {"all own triggers"} and isinstance(figures.roc(none), Figure)


@pytest.mark.parametrize(("points", "sizes"), [(25, [25]), (60, [25, 50, 60])])
def test_sensitivity_has_every_setting_once(points, sizes):
    size = dataclasses.replace(THREES, points=points)
    _, ones, fours = kinds_of(size)
    even = each_of(ones, lambda net: batch(net, 1, [2] * points, size=size))
    table = sensitivity(part_of(even | each_of(fours, lambda net: succeeds(net, 45)), size))
    settings = table[["sigma", "batch", "form", "triggers"]]
    assert len(settings) == len(settings.drop_duplicates()) == 3 * len(sizes) * 8 and sorted(set(table["batch"])) == sizes
    for (sigma, triggers), own in table.groupby(["sigma", "triggers"]):
        assert {a.value for a in own["area"]} == {0.5 if sigma != 0.1 else 1 if triggers == "working" else 0.75}


def test_a_universal_perturbation_is_described_by_what_it_changes_and_where_to():
    said = {UNIVERSAL: {"with": np.array([7, 7, 7, 8, 4, 5, 6, 7, 8, 9])}, OTHER_BOUND: {"with": np.arange(10)}}
    counts = batch(ONE, UNIVERSAL, EVEN[:4]) | batch(ONE, UNIVERSAL, MORE[:4], 0.25) | batch(ONE, None, HALF)
    table = universal(part_of(said | counts)).query("network == 1").set_index(["bound", "sigma"])
    assert len(table) == 4
    row, nobody = table.loc[10, 0.1], table.loc[4, 0.1]
    assert (row["fooled"], row["classes"]) == pytest.approx((0.4, 4 / 3**0.75)), "to two classes, three to one"
    assert (row["paper"], table.loc[(10, 0.25), "paper"]) == (700, -700), "against as many clean points"
    assert (row["calibrated"], table.loc[(10, 0.25), "calibrated"]) == (700, -700)
    assert nobody["fooled"] == 0 and math.isnan(nobody["classes"])


def test_perturbations_are_told_from_the_other_clean_batches_of_the_same_networks():
    # Four points are a batch, so a network has four clean ones, and the first is what the others are compared with.
    changes = batch(ONE, 0, EVEN) | batch(CLEAN, 0, HALF)  # two even batches and one
    for net in (CLEAN, FOUR):
        changes |= batch(net, plan.universals_of(FASHION, net)[0], EVEN[:4])
    changes[plan.universals_of(FASHION, FOUR)[0]] = {"with": np.arange(10)}
    table = figures.universal.table(part_of(changes, gone=lambda spec: spec == UNIVERSAL)).set_index(["bound", "sigma"])
    assert sorted(table.index) == [(4, 0.1), (4, 0.25), (10, 0.1), (10, 0.25)]
    found = table.loc[10, 0.1]
    assert (found["auc"].value, found["auc"].repeats, found["fooled"].value) == pytest.approx((5.5 / 6, 1, 0.45))
    assert found["classes"].value == pytest.approx(1), "of the network that is fooled"
    assert table.loc[(4, 0.1), "auc"].value == pytest.approx(1 / 3), "of nine other clean batches three are even"


def test_each_candidate_has_its_own_mask_and_points_and_the_backdoors_class_is_marked():
    shares = {"success": np.arange(10) / 10, "success_test": np.arange(10) / 20, "success_train": np.arange(10) / 40}
    changes = candidates_even(ONE, 3, 8) | candidates_even(ONE, 5, sigma=0.25) | batch(ONE, None, HALF) | {CLEANSE: shares}
    part = part_of(changes)
    table, drawn = candidates(part), figures.reversed_norms.table(part)
    assert len(table) == 3 * 2 * 10 and table["own"].sum() == 2 * 2 and (table["index"] == 1.5).all()
    own = table[(table["network"] == 1) & (table["sigma"] == 0.1)].set_index("class")
    assert own.index[own["own"]].tolist() == [3] and own["norm"].tolist() == [*range(1, 11)]
    assert own.index[own["score"] == 700].tolist() == [3, 8] and (own["score"] == 0).sum() == 8
    assert own["W"].tolist() == pytest.approx([LOG2 if k in (3, 8) else LOG2 / 2 for k in range(10)])
    assert own.loc[4, ["success", "success_test", "success_train"]].tolist() == [0.4, 0.2, 0.1]
    assert table.query("network == 1 and sigma == 0.25 and W > 0.5")["class"].tolist() == [5]
    assert table.groupby("network")["backdoored"].all().tolist() == [False, True, True]
    assert drawn["trigger"].tolist() == [0] * 10 + [1] * 10 + [4] * 10
    assert drawn["score10"].tolist() == pytest.approx((table[table["sigma"] == 0.1]["score"] / math.log(10)).tolist())
    bold = [axis.get_title() for axis in figures.reversed_triggers(part).axes if axis.title.get_weight() == "bold"]
    assert bold == ["class 3: 4"] * 2, "on two of three networks"


def test_other_detectors_are_asked_about_the_smallest_mask_and_less_what_they_say_of_clean_images():
    changes = {CLEANSE: sized(NORMS)} | candidates_even(ONE, 6) | batch(ONE, UNIVERSAL, EVEN[:4])
    changes |= batch(ONE, None, HALF) | batch(ONE, 1, EVEN)
    for scores, detector, carried in (
        ([[0.5, 1.1]], "strip", {}), ([[0.1, 0.4]], "strip", {"trigger": 1}), ([25.0], "logit_shift", {"pattern": UNIVERSAL}),
        ([[0.2 if k == 6 else 1] * 2 for k in range(10)], "strip", {"pattern": CLEANSE}),
        (range(10), "logit_shift", {"pattern": CLEANSE}),
    ):  # fmt: skip
        changes[plan.score_of(FASHION, ONE, detector, **carried)] = {"scores": np.array(scores)}
    table = others(part_of(changes)).set_index("carried")
    own = table[table["network"] == 1].drop(columns="network")
    assert own.loc[["own", "universal"]].to_numpy() == pytest.approx(np.array([[700, 0.55, -1], [700, -0.2, -25]]))
    assert own.loc["reversed, backdoored"].tolist() == pytest.approx([700, 0.6, -6])
    assert own.loc["unseen"].to_numpy() == pytest.approx(np.tile([0, -0.2, -1], (5, 1)))
    counts = {"unseen": 16, "universal": 3, "own": 2, "reversed, backdoored": 2, "reversed, clean": 1}
    assert table.index.value_counts().to_dict() == counts


def test_what_detectors_must_not_find_are_unseen_triggers():
    changes = batch(ONE, 1, EVEN) | batch(CLEAN, 2, EVEN) | batch(CLEAN, 0, EVEN)
    for net in (CLEAN, ONE, FOUR):
        changes |= batch(net, plan.universals_of(FASHION, net)[0], EVEN[:4])
    part = part_of(changes | {plan.score_of(FASHION, FOUR, "logit_shift", trigger=4): {"scores": np.array([0.5])}})
    table = detectors(part)
    assert list(table.columns) == ["own", "universal", "reversed, clean", "reversed, backdoored"]
    assert table.loc["W", "own"].value == pytest.approx((15.5 + 7.5) / 32) and "| W | 0.72 |" in part.detectors_table()
    assert table.loc["W", "universal"].value == pytest.approx(15.5 / 16) and table.loc["W", "universal"].repeats == 1
    assert table.loc["logit variance", "own"].value == 0.75 and table.loc["STRIP", "own"].value == 0.5


def check(found, expected) -> None:
    for name, value in expected.items():
        estimate = found[name.format("fashion-mnist")]
        assert estimate.value == pytest.approx(value, abs=1e-12) and estimate.low <= estimate.value <= estimate.high, name


def test_quantities_of_the_detector_by_hand():
    nets = plan.networks_of(THREES, SEED)  # three clean ones, three with trigger 1, three with trigger 4
    changes = batch(nets[0], 0, EVEN) | batch(nets[5], 0, MORE) | batch(nets[2], 2, EVEN) | batch(nets[3], 1, EVEN)
    changes |= batch(nets[1], 2, MORE) | batch(nets[1], 3, MORE) | batch(nets[1], 6, MORE)
    found = part_of(changes | batch(nets[6], 4, EVEN, 0.25) | succeeds(nets[8], 45), THREES).quantities()

    def area(*own: float, more: int = 4, others: int = 57) -> float:
        return roc_auc_score([0] * others + [1] * len(own), [700] * 2 + [-700] * more + [0] * (others - 2 - more) + list(own))

    check(found, {
        "own_success.{}": 5.5 / 6, "own_success.{}.4": 2.5 / 3,
        "own_success.{}.1": 1, "own_less_clean.{}.1": LOG2 / 2 / 3, "own_less_clean.{}.4": 0, "auc.{}": area(700, 0, 0, 0, 0, 0),
        "auc_own.{}.1": area(700, 0, 0, others=39), "auc_own.{}.4": area(0, 0, 0, more=3, others=39),
        "auc_at.{}.0.25": 0.5 + 0.5 / 6, "auc_own_at.{}.0.25.1": 0.5, "auc_own_at.{}.0.25.4": 0.5 + 0.5 / 3,
    })  # fmt: skip
    assert {estimate.repeats for estimate in found.values()} == {3}, "networks of a seed share their images"
    # Around the median, half of the points that vary are as far from it as all of EVEN: the calibrated test sees less of them.
    assert found["auc_calibrated.fashion-mnist"].value > 0.5 and found["auc_calibrated.fashion-mnist"].repeats == 3


def test_the_calibrated_test_raises_false_alarms_as_often_as_it_says_and_the_papers_does_not():
    size, rng = dataclasses.replace(THREES, points=250, pattern_points=100), np.random.default_rng(0)
    changes = {}
    for net in plan.networks_of(size, SEED):
        for carried in (None, 0):  # three quarters of W are 0
            classes = np.where(rng.random(250) < 0.75, 1, rng.integers(2, 11, 250))
            changes |= batch(net, carried, classes, size=size)
    part = part_of(changes, size)
    paper, calibrated = (false_alarms(part, form)[["told_apart", "found"]].mean() for form in ("paper", "calibrated"))
    assert calibrated["told_apart"] == pytest.approx(0.05, abs=0.02) and calibrated["found"] == pytest.approx(0.025, abs=0.015)
    assert paper["told_apart"] > 0.3 and paper["found"] == pytest.approx(paper["told_apart"] / 2, rel=0.2)
    assert part.quantities()["clean_found.fashion-mnist"].value == pytest.approx(paper["found"])


def test_quantities_of_crafted_patterns_by_hand():
    size, changes = dataclasses.replace(THREES, pattern_points=8), {}
    clean, even, somewhat, more = [1, 10, 2, 9, 1, 10, 5, 3], [5] * 8, [3, 6, 3, 7, 4, 8, 3, 5], [1, 10] * 4
    p = [stats.levene(np.log(clean), np.log(tested), center="mean").pvalue for tested in (even, somewhat, more)]
    assert p[0] < 0.001 < p[1] < 0.05 and p[2] < 0.05
    for k, net in enumerate(plan.networks_of(size, SEED)):
        cleanse, universal = plan.cleanse_of(size, net), plan.universals_of(size, net)[0]
        each = [even, even, somewhat, more, *[clean] * 6] if k == 0 else [clean] * 10
        changes |= batch(net, None, clean, size=size) | batch(net, cleanse, np.ravel(each), size=size)
        changes[cleanse] = {"success_train": np.full(10, 1.0 if k % 3 else 0.98), "success_test": np.full(10, 0.8 if k else 0.5)}
        changes[universal] = {"with": np.arange(10) if k == 1 else np.where(np.arange(10) < 5, 7, np.arange(10))}
        changes |= batch(net, universal, even if k else clean, size=size)
    found = part_of(changes, size).quantities()
    less = [np.log(tested).mean() - np.log(clean).mean() for tested in (even, even, somewhat, more)]
    check(found, {
        "candidates_found.{}": 0.3 / 9, "candidates_found_at.{}.0.1": 0.3 / 9, "candidates_found_at.{}.0.25": 0,
        "candidates_low_p.{}": 0.2 / 9, "candidates_always_train.{}": 6 / 9, "candidates_success_on_clean.{}": 2.1 / 3,
        "candidates_less_clean_on_clean.{}": sum(less) / 30, "candidates_p_varies.{}": -np.log10([p[0], *p]).sum() / 90,
        "fooled_universal.{}": 4 / 9, "classes_universal.{}": 1, "auc_universal.{}": 8 / 9, "auc_universal_at.{}.4": 0.5,
        "fooled_universal_at.{}.4": 0.9, "fooled_universal_at.{}.10": 4 / 9,
    })  # fmt: skip
    always = found["candidates_always_train.fashion-mnist"]
    assert always.low < 0.4 and always.high > 0.85, "ninety candidates are of three seeds"
    assert found["candidates_success_on_clean.fashion-mnist"].repeats == 3


def test_quantities_come_from_two_seeds_at_least():
    assert part_of().quantities() == {} and len(universal(part_of())), "of one seed"
    two = dataclasses.replace(FASHION, networks=2)
    found = part_of(None, two, gone=lambda spec: is_crafted(spec) and spec.network.seed == SEED).quantities()
    whole = part_of(None, two).quantities()
    assert "auc_universal.fashion-mnist" in whole and "auc_universal.fashion-mnist" not in found
    assert found["auc.fashion-mnist"] == whole["auc.fashion-mnist"] and whole["auc.fashion-mnist"].repeats == 2
    assert whole["detector_auc.fashion-mnist.W.universal"] == detectors(part_of(None, two)).loc["W", "universal"]
    clean = part_of(None, two, gone=lambda spec: is_crafted(spec) and (spec.network.attack is None) and spec.network.seed == SEED)
    assert not [name for name in clean.quantities() if "on_clean" in name or name.endswith("reversed, clean")], "of one seed"


def test_each_seed_counts_equally_in_a_mean_whatever_its_networks():
    """Seed 0 has the candidates of its clean network alone: 3 of 10 are found; of seed 1's thirty, all; of seed 2's, none."""
    lost, changes = [net for net in plan.networks_of(THREES, SEED) if net.seed == SEED and net.attack], {}
    for net in plan.networks_of(THREES, SEED):
        if net.seed < SEED + 2:
            changes |= candidates_even(net, *range(3 if net.seed == SEED else 10))
    found = part_of(changes, THREES, gone=lambda spec: is_crafted(spec) and spec.network in lost).quantities()
    own = found["candidates_found.fashion-mnist"]
    reach = stats.t.isf(0.025, 2) * stats.sem([0.3, 1, 0])
    assert (own.value, own.high, own.repeats) == pytest.approx((1.3 / 3, min(1, 1.3 / 3 + reach), 3))


def test_every_claim_has_its_quantity_of_its_own_data_set():
    parts = {
        size.dataset: part_of(
            None, dataclasses.replace(size, networks=3, triggers=(1, 3, 4), more_triggers=more, bounds=(10, 26))
        )
        for size, more in ((FASHION, (2, 5, 6)), (CIFAR, ()))
    }
    found, half = quantities(parts), quantities({"fashion-mnist": parts["fashion-mnist"]})
    assert half == {name: estimate for name, estimate in found.items() if "cifar10" not in name}
    assert [claim.id for claim in claims_of("patterns") if judge(claim, found) == "not yet run"] == []


def test_tables_say_the_lowest_to_the_highest_success_and_the_smallest_mask():
    rows = part_of(succeeds(plan.networks_of(THREES, SEED)[4], 45), THREES).success_table().splitlines()[2:]
    assert rows == ["| 1 | 3 | 50.0% to 100.0% |", "| 4 | 3 | 100.0% |"]
    many, falling = plan.compared_specs(FASHION, SEED)[1], range(20, 10, -1)
    changes = {many: sized(falling) | {"success_test": np.linspace(0.7, 1, 10)}}
    part = part_of(changes | {CLEANSE: sized(NORMS) | {"success_train": np.linspace(0.9, 1, 10)}})
    clean, one, _ = part.cleanse_table().splitlines()[2:]
    assert clean == "| none (clean) | 1 | 1.5 | 0 |  |  | 5.5 | at least 100.0% |"
    assert one == "| 1 | 1 | 1.5 | 0 | 0 | 4.0 | 9.0 | at least 90.0% |"
    first, second, _, words = part.comparison_table().splitlines()[2:]
    assert first == "| 64 | 4.0 | 2.0 to 9.0 | 1.5 | at least 100.0% | at least 90.0% |"
    assert second == "| 1000 | 17.0 | 11.0 to 20.0 | 1.5 | at least 70.0% | at least 100.0% |"
    assert f"is {stats.spearmanr(NORMS, falling).statistic:.2f}." in words
    none = part_of(gone=lambda spec: spec == many), part_of(size=CIFAR)
    assert [part.comparison_table() for part in none] == ["(Not yet run.)"] * 2


def test_a_network_counts_when_all_its_first_batches_are_there_and_every_kind_has_to_be_there():
    for spec in plan.specs_of(FASHION, ONE):
        part = part_of(size=THREES, gone=lambda one, spec=spec: one == spec)
        assert len(part.networks) == 8 and part.missing is None and "8 of 9 networks" in part.source
        part = part_of(gone=lambda one, spec=spec: one == spec)
        assert "the store holds 2 of them" in part.missing and "auc.fashion-mnist" not in part.quantities()
    other_seed = dataclasses.replace(part_of(size=THREES), size=FASHION, seed=SEED + 1)
    assert [network.seed for network in other_seed.networks] == [SEED + 1] * 3


def test_networks_without_all_records_of_a_pattern_are_left_out_of_its_numbers_and_figures():
    needed = {p: (p, plan.crafted_batch_of(FASHION, p)) for p in (CLEANSE, UNIVERSAL)}
    for spec in (*needed[CLEANSE], *needed[UNIVERSAL]):
        part = part_of(gone=lambda one, spec=spec: one == spec)
        assert set(others(part)["network"]) == {0, 2} and part.networks == [CLEAN, ONE, FOUR]
        for table, pattern in ((candidates(part), CLEANSE), (universal(part).query("bound == 10"), UNIVERSAL)):
            assert set(table.query("sigma == 0.1")["network"]) == ({0, 2} if spec in needed[pattern] else {0, 1, 2})
    for spec in plan.scores_specs(FASHION, ONE):  # the other detector and W keep their scores
        scores = others(part_of(gone=lambda one, spec=spec: one == spec)).set_index("network")
        lacking, there = ("STRIP", "logit variance") if spec.detector == "strip" else ("logit variance", "STRIP")
        assert scores.loc[1, lacking].isna().all() and scores.loc[[0, 2], lacking].notna().all() and scores[there].notna().all()
    part, some = part_of(gone=is_crafted), part_of(gone=lambda spec: is_crafted(spec) and spec.network == ONE)
    assert isinstance(figures.roc(part), Figure) and all(draw(part).data.startswith("**Not yet run.**") for draw in DRAW[2:])
    assert all(draw(some).get_supxlabel().endswith("; crafted for 2 networks") for draw in (DRAW[2], DRAW[4]))


def test_clean_networks_alone_compare_no_searches():
    assert plan.compared_specs(dataclasses.replace(FASHION, triggers=(), more_triggers=()), SEED) == []


def test_what_is_missing_says_what_to_run(tmp_path):
    results = load(profile="paper", store=Store(tmp_path, writable=False))
    assert list(results) == ["fashion-mnist", "cifar10"] and not quantities(results)
    for (dataset, part), held in zip(results.items(), (63, 14), strict=True):
        tables = Patterns.tests, universal, universal_areas, candidates, others, detectors
        assert all(table(part).empty for table in tables) and part.success_table().count("not yet run") == {63: 6, 14: 3}[held]
        assert part.cleanse_table() == part.detectors_table() == "(Not yet run.)"
        assert f"{held} clean and backdoored networks ({part.size.network}) on {dataset}, and the store" in part.missing
        assert all("`bslib run patterns --profile paper --store book/records` computes them" in draw(part).data for draw in DRAW)


@pytest.mark.parametrize("profile", PROFILES)
def test_figures_are_drawn_of_both_profiles(profile):
    for size in (FASHION, CIFAR) if profile == "paper" else sizes_of("patterns", profile):
        part = part_of(None, size, profile=profile)
        assert all(isinstance(draw(part), Figure) for draw in DRAW) and not plt.get_fignums(), "else they are shown twice"


def test_the_papers_claim_is_judged_on_triggers_that_work_and_more_triggers_count_as_well():
    size = dataclasses.replace(THREES, more_triggers=(2,))
    nets = plan.networks_of(size, SEED)
    changes = {}
    for net in nets[3:]:
        works = net.attack.trigger != 4
        changes |= succeeds(net, 88 if works else 20) | (batch(net, net.attack.trigger, EVEN) if works else {})
    part = part_of(changes, size)
    found = part.quantities()
    assert working(part) == [1, 2] and found["auc_working.fashion-mnist"].value == 1
    assert found["auc.fashion-mnist"].value == pytest.approx((6 + 3 / 2) / 9)
    assert found["own_success.fashion-mnist"].value == pytest.approx((88 + 88 + 20) / 3 / 90)
    assert found["own_success.fashion-mnist.2"].value == pytest.approx(88 / 90)
    table = by_trigger(part).query("sigma == 0.1").set_index("trigger")
    assert table["auc"][2].value == 1 and table["auc"][4].value == 0.5 and len(by_trigger(part)) == 9
    missing = part_of(changes, size, gone=lambda spec: spec.on_network in nets[-3:])
    assert missing.missing is None and working(missing) == [], (
        "the chapter is there without the further triggers, and the claim waits"
    )
    with pytest.raises(ValueError, match=r"more_triggers \(1,\) must not be among triggers"):
        dataclasses.replace(size, more_triggers=(1,))


def test_a_backdoor_is_told_from_a_patch_by_the_scores_of_as_many_points():
    nets = plan.networks_of(THREES, SEED)
    changes = {k: v for net in nets[3:] for k, v in batch(net, net.attack.trigger, EVEN).items()}
    assert part_of(changes, THREES).quantities()["backdoor_against_patch.fashion-mnist"].value == 1
    half = {k: v for net in nets[6:] for k, v in succeeds(net, 45).items()}  # trigger 4 does not work: its batches do not count
    half |= {k: v for net in nets[6:] for k, v in batch(net, net.attack.trigger, MORE).items()}
    assert part_of(changes | half, THREES).quantities()["backdoor_against_patch.fashion-mnist"].value == 1
    assert part_of(None, THREES).quantities()["backdoor_against_patch.fashion-mnist"].value == 0.5
