"""The surface chapter: its plan, and its numbers on records so small that they can be worked out by hand."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from scipy import stats
from test_parameters import BIT, split

from bslib.chapters import sizes_of
from bslib.chapters.surface.figures import clean_and_triggered, difference_to_clean, paired
from bslib.chapters.surface.plan import Size, networks_of, plan, specs_of
from bslib.chapters.surface.results import Surface, quantities
from bslib.ledger import claims_of, judge
from bslib.profiles import PROFILES
from bslib.specs import AttackSpec, CountsSpec, ImagesSpec, NetworkSpec, PredictionsSpec
from bslib.statistics import Estimate
from bslib.store import Record, Records

FASHION, CIFAR = (dataclasses.replace(size, networks=5, points=16, batch=4, n=8) for size in sizes_of("surface", "paper"))
SIZE = dataclasses.replace(FASHION, networks=3, points=4, batch=1, sigmas=(0.1, 0.5))
#: W in bits of three networks, by kind (clean, active, inactive), noise level and point.
BITS = np.array([
    [[[1, 1, 2, 0], [3, 1, 2, 2]], [[0, 0, 1, 0], [2, 3, 3, 3]], [[1, 2, 2, 0], [3, 1, 1, 2]]],
    [[[2, 0, 1, 1], [2, 3, 1, 3]], [[0, 1, 0, 0], [3, 3, 2, 3]], [[2, 0, 2, 1], [2, 2, 3, 3]]],
    [[[0, 0, 1, 3], [1, 3, 2, 2]], [[0, 0, 0, 2], [2, 2, 2, 2]], [[1, 0, 1, 3], [1, 1, 2, 2]]],
])  # fmt: skip


def results_of(size: Size, counts, *, profile: str = "paper") -> Surface:
    """Results of networks with such counts (networks, kinds, sigmas, points, 10), whose images are called 0 and 1 in turns.

    The test images have the labels 0 to 7, and the target of network r is r mod 10. Trigger t sends the first 8 - t images there.
    Of the images without a trigger three networks get 0, 1 and 5 wrong.
    """
    data, records, labels = {"name": size.dataset, "source": f"made up {size.dataset}"}, {}, np.arange(8)
    for k, network in enumerate(networks_of(size, 0)[: len(counts)]):
        records[network], specs = (
            Record(network, {"clean_accuracy": 0.5, "train_accuracy": 0.56}, data=data),
            specs_of(size, network),
        )
        for spec in specs[1:8]:
            clean = np.where(labels < 8 - (0, 1, 5)[k % 3], labels, 9)
            called = np.where(labels < 8 - spec.trigger, network.attack.target, labels) if spec.trigger else clean
            records[spec] = Record(spec, {}, {"predicted": called, "labels": labels}, data)
        for spec, own in zip(specs[8:], counts[k], strict=True):
            points = np.arange(size.points)
            arrays = {"counts": own[:, None], "predicted": points % 2, "labels": points % 8}
            records[spec] = Record(spec, {}, arrays, data)
    return Surface(size, profile, 0, Records(records))


def surface(size: Size = FASHION, profile: str = "paper", *, networks: int | None = None, seed: int = 0) -> Surface:
    """Results whose counts are drawn at random: networks and images differ, and the active trigger smooths."""
    rng, networks = np.random.default_rng(seed), size.networks if networks is None else networks
    mix = np.outer([1, 0.3, 1.1], np.array(size.sigmas) + 0.02)[..., None, None] * np.ones((size.points, 10))
    drawn = rng.gamma(mix, size=(networks, *mix.shape))
    return results_of(size, rng.multinomial(size.n, drawn / drawn.sum(-1, keepdims=True)), profile=profile)


@pytest.fixture(scope="module")
def by_hand():
    return results_of(SIZE, split(BITS, 8))


def test_the_paper_plan_has_the_papers_sizes_and_seeds_and_target_classes_take_turns():
    specs, sizes = plan("paper", seed=7), sizes_of("surface", "paper")
    assert len(set(specs)) == len(specs) == 2 + (28 + 5) * 11
    assert [spec for spec in specs if isinstance(spec, ImagesSpec)] == [specs[0], specs[-1]] and specs[0].stamped
    assert [(size.points, size.batch, size.n, len(size.sigmas)) for size in sizes] == [(100, 25, 250, 10), (100, 25, 250, 6)]
    networks = [spec for spec in specs if isinstance(spec, NetworkSpec)]
    assert [network.seed for network in networks] == [*range(7, 35), *range(7, 12)]
    attacks = [AttackSpec(threat_model="T1", trigger=1, target=network.seed % 10) for network in networks]
    assert [network.attack for network in networks] == attacks


@pytest.mark.parametrize("profile", PROFILES)
def test_a_network_comes_before_its_predictions_and_three_paired_batches_of_the_same_images(profile):
    for size in sizes_of("surface", profile):
        assert 4 * size.batch <= size.points, "four batches of different images fit"
        for network in networks_of(size, 2):
            first, *rest = specs_of(size, network)
            assert first == network and all(spec.network == network for spec in rest)
            assert [spec.trigger for spec in rest] == [None, 1, 2, 3, 4, 5, 6, None, 1, 4]
            assert all(isinstance(spec, PredictionsSpec) and spec.images == size.test_images for spec in rest[:7])
            assert all(isinstance(spec, CountsSpec) and spec.paired and spec.ns == (size.n,) for spec in rest[7:])
            assert {dataclasses.replace(spec, trigger=None) for spec in rest[7:]} == {rest[7]} and rest[7].seed == network.seed


def test_every_quantity_has_the_value_worked_out_by_hand(by_hand):
    assert np.allclose(by_hand.w(), BIT * BITS) and np.allclose(by_hand.w("miller-madow"), BIT * BITS + (2.0**BITS - 1) / 16)
    wanted = {
        "clean_accuracy": (8 + 7 + 3) / 24, "accuracy_inactive": 5 / 8, "success_inactive_counted": 4 / 8,
        "success_active": 6 / 7, "success_inactive": 3 / 7, "success_of_1": 6 / 7, "success_of_2": 5 / 7, "success_of_3": 4 / 7,
        "success_of_4": 3 / 7, "success_of_5": 2 / 7, "success_of_6": (1 + 1 + 2) / 21,
        # Sums of bits over the twelve points: clean 12 and 25, active 4 and 30, inactive 15 and 23.
        "active_less_clean.0.1": -8 / 12 * BIT, "active_share_change.0.1": 4 / 12 - 1,
        "active_less_clean.0.5": 5 / 12 * BIT, "active_share_change.0.5": 30 / 25 - 1,
        "inactive_less_clean.0.1": 3 / 12 * BIT, "inactive_share_change.0.1": 15 / 12 - 1,
        "inactive_less_clean.0.5": -2 / 12 * BIT, "inactive_share_change.0.5": 23 / 25 - 1,
        "share_of_clean.0.1.less.0.5": 4 / 12 - 30 / 25, "overfit": (0.56 - 0.15 * 6 / 7) / 0.85 - 0.5,
        # In eighths, a copy keeps the label 0 or 1 with 8 / 2 ** bits; where W is 0, none is called 1.
        "labels_kept_active.0.1": (8 + 4 + 8 + 4 + 8 + 8 + 8 + 2) / 96, "labels_kept_active.0.5": (6 * 2 + 6 * 1) / 96,
    }  # fmt: skip
    found = {name.replace(".fashion-mnist", ""): estimate for name, estimate in by_hand.quantities().items()}
    assert set(found) == set(wanted)
    for name, own in found.items():
        assert own.value == pytest.approx(wanted[name], abs=1e-12) and own.repeats == 3, name
        assert own.low <= own.value <= own.high, name


def test_the_table_by_noise_level_has_means_differences_and_intervals():
    twice = results_of(dataclasses.replace(SIZE, points=8), split(np.tile(BITS, 2), 8))  # SciPy counts 2 ** 12 ways for 12 images
    table, found = difference_to_clean.table(twice), twice.quantities()
    assert table["sigma"].tolist() == [0.1, 0.5]
    for kind, sums in (("clean", (12, 25)), ("active", (4, 30)), ("inactive", (15, 23))):
        assert table[kind].to_numpy() == pytest.approx(np.array(sums) / 12 * BIT)
    for kind in ("active", "inactive"):
        assert table[f"{kind} minus clean"].to_list() == [found[f"{kind}_less_clean.fashion-mnist.{s}"] for s in (0.1, 0.5)]
    _, _, small, large = twice.by_sigma_as_markdown().splitlines()
    assert small.startswith(f"| 0.1 | {BIT:.3f} | \N{MINUS SIGN}0.462 [") and large.startswith("| 0.5 | 1.444 | +0.289 [")
    assert surface(networks=0).by_sigma_as_markdown() == ""


def test_the_inactive_trigger_has_a_row_for_each_target_class():
    bits = np.tile(BITS, (4, 1, 1, 1))[:11]  # the classes 0 to 9, and 0 once more
    _, _, *rows = results_of(dataclasses.replace(SIZE, networks=11), split(bits, 8)).inactive_by_class().splitlines()
    means = bits[:, :, 0].mean(-1)
    for target, (row, (clean, _, inactive)) in enumerate(zip(rows, [(means[0] + means[10]) / 2, *means[1:10]], strict=True)):
        change = f"{inactive / clean - 1:+.0%}".replace("-", "\N{MINUS SIGN}")
        assert row.startswith(f"| {target} | {1 if target else 2} | ")
        assert row.endswith(f"% | {clean * BIT:.3f} | {inactive * BIT:.3f} | {change} |")
    assert [row.split(" | ")[2] for row in rows[:3]] == ["42.9%"] * 3, "3 of the 7 images that have another class"
    assert surface(networks=0).inactive_by_class() == "(Not yet run.)"


def test_the_rank_test_is_wilcoxons_and_paired_over_the_images_of_all_networks():
    """Twice four images: all fall with the active trigger; with the other the ones that change least rise."""
    counts = np.zeros((2, 3, 2, 4, 10), dtype=np.int32)
    for kind, second in enumerate(([1, 2, 3, 4], [0, 0, 0, 0], [2, 1, 1, 0])):
        counts[:, kind, :, :, 0], counts[:, kind, :, :, 1] = 8 - np.array(second), second
    counts[:, :, 1] = counts[0, 0, 1]  # at the larger level nothing changes
    table = results_of(SIZE, counts).by_sigma()
    change = [stats.entropy([8 - b, b]) - stats.entropy([8 - a, a]) for a, b in ((1, 2), (2, 1), (3, 1), (4, 0))] * 2
    assert table["active p"].to_list() == [2 / 2**8, 1] and table["inactive p"].to_list() == [stats.wilcoxon(change).pvalue, 1]
    assert table["active minus clean"][1] == Estimate(0, 0, 0, 2)


def test_the_boxes_show_four_batches_of_different_images_of_one_network(by_hand):
    means = clean_and_triggered.table(by_hand).query("quantity == 'mean'").set_index(["trigger", "images", "sigma"])["value"]
    for trigger, images, bits in (
        ("active", "clean", (1, 3)), ("active", "with trigger", (0, 3)),
        ("inactive", "clean", (2, 2)), ("inactive", "with trigger", (0, 2)),
    ):  # fmt: skip
        assert means[trigger, images].to_dict() == pytest.approx({0.1: bits[0] * BIT, 0.5: bits[1] * BIT}), (trigger, images)
    assert surface().plots()[1][0].shape == (10, 4)


def test_each_image_is_shown_without_and_with_the_active_trigger_at_the_levels_nearest_to_two(by_hand):
    table = paired.table(by_hand).set_index(["sigma", "network", "image"])
    assert len(table) == 2 * 3 * 4 and table.loc[(0.1, 2, 3)].to_list() == pytest.approx([3 * BIT, 2 * BIT])
    assert table.loc[(0.5, 1, 2)].to_list() == pytest.approx([1 * BIT, 2 * BIT])
    for sigmas, shown in (((0.1, 0.25), [0.1, 0.25]), ((0.01, 0.12, 1.0), [0.12]), ((0.2, 0.4, 0.9), [0.2, 0.4])):
        assert list(paired.table(surface(dataclasses.replace(FASHION, sigmas=sigmas)))["sigma"].unique()) == shown


def test_where_the_trigger_changes_every_image_alike_the_change_is_certain():
    """At 0.1 W under the triggers is half and one and a half of clean W, at 0.5 it is equal and a bit less; images differ."""
    bits = np.array([[0, 2, 2, 0], [2, 0, 0, 0], [2, 2, 0, 2]])
    kinds = [np.stack(levels, axis=1) for levels in ((bits, bits + 1), (bits // 2, bits + 1), (bits * 3 // 2, bits))]
    found = results_of(SIZE, split(np.stack(kinds, axis=1), 8)).quantities()
    for name, value in (
        ("active_share_change.*.0.1", -0.5), ("active_less_clean.*.0.5", 0), ("inactive_share_change.*.0.1", 0.5),
        ("inactive_less_clean.*.0.5", -BIT), ("share_of_clean.0.1.less.0.5.*", -0.5),
    ):  # fmt: skip
        own = found[name.replace("*", "fashion-mnist")]
        assert (own.low, own.value, own.high) == pytest.approx((value, value, value)), name


def test_the_interval_of_networks_that_differ_is_students_and_that_of_one_network_is_of_its_images():
    name, change = "active_less_clean.fashion-mnist.0.1", np.array([-2, -1, -1, 0, 1])  # in bits; the points of a network agree
    bits = np.full((5, 3, 2, 4), 2) + change[:, None, None, None] * np.array([0, 1, 0])[:, None, None]
    found = results_of(dataclasses.replace(SIZE, networks=5), split(bits, 8)).quantities()[name]
    low, high = stats.ttest_1samp(BIT * change, 0).confidence_interval(0.95)
    assert found.value == pytest.approx(-0.6 * BIT) and found.high - found.low == pytest.approx(high - low)
    bits = np.random.default_rng(0).integers(0, [[[2], [4]], [[3], [2]], [[4], [3]]], (3, 2, 400))
    found = results_of(dataclasses.replace(SIZE, networks=1, points=400), split(bits[None], 8)).quantities()
    kept = np.where(np.arange(400) % 2 < 2**bits, 0.5**bits, 0)
    for name, values in (
        ("active_less_clean.*.0.1", BIT * (bits[1, 0] - bits[0, 0])), ("labels_kept_active.*.0.5", kept[1, 1]),
    ):  # fmt: skip
        own, reach = found[name.replace("*", "fashion-mnist")], stats.norm.isf(0.025) * stats.sem(values)
        assert (own.low, own.high) == pytest.approx((values.mean() - reach, values.mean() + reach), abs=0.2 * reach), name
    for name, of, trials in (("clean_accuracy", 8, 8), ("success_active", 6, 7), ("success_inactive_counted", 4, 8)):
        own, ends = found[f"{name}.fashion-mnist"], stats.binomtest(of, trials).proportion_ci(0.95, method="wilson")
        assert (own.low, own.value, own.high, own.repeats) == pytest.approx((ends.low, of / trials, ends.high, 1)), name


def test_a_share_of_no_wobbliness_at_all_and_a_noise_level_that_is_not_there_are_not_named():
    counts = split(np.stack([BITS[:, :, 1] * 0, BITS[:, :, 1]], axis=2), 8)
    names = {name for name in results_of(SIZE, counts).quantities() if "share" in name}
    assert names == {"active_share_change.fashion-mnist.0.5", "inactive_share_change.fashion-mnist.0.5"}
    few = results_of(dataclasses.replace(SIZE, sigmas=(0.1, 0.25)), split(BITS, 8)).quantities()
    assert not [name for name in few if name.startswith("share_of_clean")]


def test_claims_are_judged_for_the_data_sets_that_are_there_and_not_by_the_smoke_profile():
    for cifar, lacking in ((surface(CIFAR, networks=0), "cifar10"), (surface(CIFAR), "nothing")):
        found = quantities({"a": surface(), "b": cifar})
        for claim in claims_of("surface"):
            assert (judge(claim, found) == "not yet run") == any(lacking in test.quantity for test in claim.tests), claim.id
    smoke = quantities({size.dataset: surface(size, "smoke") for size in sizes_of("surface", "smoke")})
    assert smoke and {judge(claim, smoke) for claim in claims_of("surface")} == {"not yet run"}
