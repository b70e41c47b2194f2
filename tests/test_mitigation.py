"""The chapter on mitigations: its plan, its numbers against counting by hand, and a small one computed from nothing."""

from __future__ import annotations

import dataclasses
from collections import Counter

import numpy as np
import pytest
from conftest import write_profile
from test_parameters import BIT, split

from bslib.chapters import plan_of, sizes_of
from bslib.chapters.mitigation import figures
from bslib.chapters.mitigation.plan import networks_of, plan
from bslib.chapters.mitigation.results import Mitigation, load, treatment_of
from bslib.ledger import claims_of
from bslib.runner import run
from bslib.specs import NetworkSpec
from bslib.store import Record, Records, Store

(PAPER,) = sizes_of("mitigation", "paper")
SIZE = dataclasses.replace(
    PAPER, networks=2, followed=0, points=4, n=8, sigmas=(0.1,), fractions=(0.5,), noises=(0.1,), attacks=(("T1", 1), ("T3", 2))
)


def made_up(success, bits) -> Mitigation:
    """Results of networks whose success (of 100 images) and bits of W with the trigger are functions of attack, treatment, run.

    Without the trigger every image has 2 bits; the accuracy is 0.9 without a treatment or noise and 0.8 else.
    """
    records, data = {}, {"name": SIZE.dataset, "source": "made up"}
    for network in networks_of(SIZE, 0):
        key = network.attack.threat_model, treatment_of(network), network.seed - 100
        spec, predictions, clean, triggered = SIZE.basics(network)
        hits, labels = np.arange(100) < success(*key), np.full(100, 9)
        records[spec] = Record(spec, {"clean_accuracy": 0.9 if key[1] == "none" else 0.8}, data=data)
        arrays = {"predicted": np.where(hits, network.attack.target, 9), "labels": labels}
        records[predictions] = Record(predictions, {}, arrays, data)
        for counts, own in ((clean, [2] * 4), (triggered, bits(*key))):
            records[counts] = Record(counts, {}, {"counts": split(np.array(own)[None, None], 8)}, data)
    return Mitigation(SIZE, "paper", 0, Records(records))


def steady(*_) -> int:
    return 98


def test_the_plan_has_every_treatment_of_every_network_and_names_that_the_claims_use():
    networks = [spec for spec in plan("paper") if isinstance(spec, NetworkSpec)]
    names = Counter(treatment_of(network) for network in networks)
    assert len(set(networks)) == len(networks) == 5 * 3 * (1 + 3 + 5 + 5 + 1 + 2) + 7 * (1 + 3)
    further = {"none", *(name for name in names if name.startswith("fine-tune"))}
    assert names == {name: 15 + 7 * (name in further) for name in names}
    assert {(n.attack.trigger, treatment_of(n)) for n in networks if n.seed > 104} == {(1, name) for name in further}
    used = {
        test.quantity.split(".", 3)[-1]
        for claim in claims_of("mitigation")
        for test in claim.tests
        if "warns" not in test.quantity
    }
    assert used <= set(names) and {"fine-tune 0.005", "fine-prune 0.9", "unlearn"} <= used
    assert all(network.untreated in networks for network in networks)


def test_numbers_are_those_that_counting_gives():
    found = made_up(steady, lambda model, name, run: [0, 1, run, 1] if name == "none" else [2, 3, 1 + run, 1]).quantities()
    for name, wanted in (
        ("success.*.T1-1.none", 0.98), ("success.*.T3-2.unlearn", 0.98), ("accuracy_lost.*.T1-1.prune 0.5", 0.1),
        ("accuracy_lost.*.T3-2.noise 0.1", 0.1), ("accuracy_lost.*.T1-1.none", 0), ("W_without.*.T1-1.unlearn", 2 * BIT),
        ("W_with.*.T1-1.none", 5 / 8 * BIT), ("ratio.*.T1-1.none", 5 / 16), ("ratio.*.T1-1.fine-prune 0.5", 15 / 16),
        ("less_clean.*.T3-2.unlearn", -1 / 8 * BIT),
    ):  # fmt: skip
        own = found[name.replace("*", "fashion-mnist")]
        assert own.value == pytest.approx(wanted, abs=1e-12) and own.repeats == 2, name


@pytest.mark.parametrize(
    ("success", "bits", "warned"),
    [
        (98, 2, (1.0, 1.0)),  # doubled, and it works
        (98, 1, (0.0, 0.0)),  # nothing changes
        (94, 2, (0.0, 1.0)),  # too low for T1, and more than 0.95 of 98% for T3
        (93, 2, (0.0, 0.0)),
    ],
)
def test_w_warns_if_it_doubles_while_the_backdoor_works(success, bits, warned):
    after = "fine-tune 0.05"
    found = made_up(
        lambda model, name, run: success if name == after else 98,
        lambda model, name, run: [bits if name == after else 3 if name == "unlearn" else 1] * 4,
    ).quantities()
    assert (found["warns.fashion-mnist.T1-1"].value, found["warns.fashion-mnist.T3-2"].value) == warned


def test_w_does_not_warn_where_it_was_and_is_nothing_and_one_network_can_warn_alone():
    flat = made_up(steady, lambda *_: [0] * 4)
    assert flat.quantities()["warns.fashion-mnist.T1-1"].value == 0 and not flat.paths()["warns"].any()
    half = made_up(steady, lambda model, name, run: [2 if run and name == "fine-tune 0.005" else 1] * 4)
    paths = half.paths()
    assert paths[paths["warns"]][["network", "treatment"]].drop_duplicates().to_numpy().tolist() == [[101, "fine-tune 0.005"]]
    assert half.quantities()["warns.fashion-mnist.T3-2"].value == 0.5


def test_a_treated_network_counts_with_the_records_of_its_base_alone():
    whole = made_up(steady, lambda *_: [1] * 4)
    base = next(n for n in whole.networks if treatment_of(n) == "none")
    less = dataclasses.replace(whole, records=Records({s: r for s, r in whole.records.items() if s != base}))
    assert [n for n in whole.networks if n not in less.networks] == [
        n for n in whole.networks if (n.attack, n.seed) == (base.attack, base.seed)
    ]


def test_a_small_chapter_is_computed_and_drawn(tmp_path):
    (smoke,) = sizes_of("mitigation", "smoke")
    size = dataclasses.replace(smoke, epochs=2, train_size=300, test_images=100, images=60, treatment_epochs=1, n=10, points=10)
    profile = write_profile(tmp_path / "small.toml", mitigation=[size])
    run(plan_of("mitigation", str(profile)), store := Store(tmp_path / "records"), device="cpu", jobs=1, progress=False)
    part = load(profile=str(profile), store=store)["digits"]
    names = ["none", "fine-tune 0.01", "fine-tune 0.05", "prune 0.5", "fine-prune 0.5", "unlearn", "noise 0.1"]
    assert part.missing is None and part.after()["treatment"].to_list() == names and "| unlearn |" in part.treatment_table()
    assert len({part.records[network].result["weights"] for network in part.networks}) == 7
    for draw in figures.FIGURES:
        figure = draw(part)
        figure.draw_without_rendering()
        assert figure.get_supxlabel().replace("\n", " ") == part.source and not draw.table(part).empty
    without = dataclasses.replace(part, records=Records({}))
    assert {draw(without).data for draw in figures.FIGURES} == {without.missing} and not without.quantities()
    assert without.treatment_table()
