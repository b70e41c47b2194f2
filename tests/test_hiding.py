"""The chapter on hiding from W: its plan, its numbers against counting by hand, and a small one computed from nothing."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from conftest import write_profile
from scipy import stats
from sklearn.metrics import roc_auc_score
from test_parameters import BIT, split

from bslib import runner
from bslib.chapters import plan_of, sizes_of
from bslib.chapters.hiding import figures
from bslib.chapters.hiding.explorer import content
from bslib.chapters.hiding.plan import networks_of, specs_of
from bslib.chapters.hiding.results import Hiding, load
from bslib.specs import CountsSpec
from bslib.store import Record, Records, Store

(PAPER,) = sizes_of("hiding", "paper")
SIZE = dataclasses.replace(
    PAPER,
    networks=3,
    points=6,
    sigmas=(0.05, 0.1),
    n=8,
    attacks=(("T1", 1), ("T2", 5)),
    covers=(5, 40),
    cover_sigmas=(0.1,),
    candidate_sigmas=(0.1,),
)
#: The true classes of the six images of a batch; the targets are 0, 1 and 2, so network 1 has one image of its target class.
LABELS = np.array([1, 4, 5, 6, 7, 8])


def made_up(size=SIZE, *, seed: int = 0) -> Hiding:
    """Results with counts, predictions and scores drawn at random; W of an image is a whole number of bits."""
    rng, records, data = np.random.default_rng(seed), {}, {"name": size.dataset, "source": f"made up {size.dataset}"}
    for network in networks_of(size, 0):
        records[network] = Record(network, {"clean_accuracy": rng.uniform(0.8, 0.9)}, data=data)
        for spec in specs_of(size, network)[1:]:
            shape = (len(size.sigmas), 1, size.points)
            arrays = {"labels": np.resize(LABELS, size.points), "predicted": rng.integers(0, 10, size.points)}
            if isinstance(spec, CountsSpec):
                arrays["counts"] = split(rng.integers(1, 4, shape), size.n)
            of_kind = {"detector": {"scores": rng.random((1, size.points))}, "margins": {"margins": rng.random(size.points)}}
            records[spec] = Record(spec, {}, of_kind.get(spec.kind, arrays), data)
        if network.attack.trigger == 1 and network.attack.covers == size.covers[-1]:
            crafted, batch = size.cleanse_specs(network)
            masks = np.full((10, 1, 2, 2), 3.0)
            masks[network.seed % 2] = 1.0  # the target of seed 100 + k is k, so it is found for the first two
            counts = split(rng.integers(0, 4, (1, 1, 10 * size.candidate_points)), size.n)
            records[crafted] = Record(crafted, {"anomaly_index": 2.5}, {"masks": masks}, data)
            records[batch] = Record(batch, {}, {"counts": counts}, data)
    return Hiding(size, "paper", 0, Records(records))


def test_numbers_are_those_that_counting_gives():
    hiding = made_up()
    found, data = hiding.quantities(), "fashion-mnist"
    for attack, number in (("T1-1", 0), ("T1-1", 5), ("T1-1", 40), ("T2-5", 0), ("T2-5", 40)):
        group = f"{data}.{attack}.{number}"
        runs = [[hiding.records[spec] for spec in specs_of(SIZE, network)] for network in hiding.groups[attack, number]]
        for s, sigma in enumerate(SIZE.sigmas):
            w = {k: [np.log2((run[k].arrays["counts"][s, 0] > 0).sum(-1)).sum() for run in runs] for k in (2, 3, 6)}
            wanted, areas = [], []
            for run in runs:
                target = run[0].spec.attack.target
                goal = (LABELS + 1) % 10 if target is None else np.full(6, target)
                counts = run[3].arrays["counts"][s, 0]
                wanted.append(np.mean([counts[i, goal[i]] / 8 for i in range(6) if goal[i] != LABELS[i]]))
                of = [[1 - r.arrays["counts"][s, 0][i, r.arrays["predicted"][i]] / 8 for i in range(6)] for r in run[2:4]]
                areas.append(roc_auc_score([0] * 6 + [1] * 6, of[0] + of[1]))
            assert found[f"ratio.{group}.{sigma:g}"].value == pytest.approx(sum(w[3]) / sum(w[2]))
            assert found[f"wanted.{group}.{sigma:g}"].value == pytest.approx(np.mean(wanted))
            assert found[f"auc.{group}.flips.{sigma:g}"].value == pytest.approx(np.mean(areas))
            for name, k in (("without", 2), ("with", 3), ("beside", 6)):
                assert found[f"W_{name}.{group}.{sigma:g}"].value == pytest.approx(BIT * np.mean(w[k]) / 6)
        strip = [roc_auc_score([0] * 6 + [1] * 6, -np.concatenate([run[k].arrays["scores"][0] for k in (4, 5)])) for run in runs]
        area = found[f"auc.{group}.STRIP"]
        ends = stats.ttest_1samp(strip, 0).confidence_interval(0.95)
        assert (area.value, area.repeats) == (pytest.approx(np.mean(strip)), 3)
        assert (area.low, area.high) == pytest.approx((max(ends.low, 0), min(ends.high, 1)))


def test_accuracy_is_lost_against_the_plain_network_of_the_same_seed_and_masks_are_compared_with_all_others():
    hiding = made_up()
    found = hiding.quantities()
    accuracies = {key: [hiding.records[n].result["clean_accuracy"] for n in networks] for key, networks in hiding.groups.items()}
    lost = np.subtract(accuracies["T1-1", 0], accuracies["T1-1", 40])
    own, ends = found["accuracy_lost.fashion-mnist.T1-1.40"], stats.ttest_1samp(lost, 0).confidence_interval(0.95)
    assert (own.low, own.value, own.high) == pytest.approx((ends.low, lost.mean(), ends.high))
    assert found["accuracy_lost.fashion-mnist.T1-1.0"].value == 0
    assert found["smallest_mask.fashion-mnist.T1-1.40"].value == pytest.approx(2 / 3), "seed 102 has the target 2"
    assert "| 102 | 12 | 4 | 2.5 |" in hiding.cleanse_table()


def test_a_network_without_its_plain_twin_and_without_neural_cleanse_still_counts():
    hiding = made_up()
    lost = {hiding.groups["T1-1", 0][1], *(spec for spec in hiding.records if spec.kind == "cleanse")}
    less = dataclasses.replace(hiding, records=Records({s: r for s, r in hiding.records.items() if s not in lost}))
    found = less.quantities()
    assert not [name for name in found if name.startswith("smallest_mask")] and less.cleansed().empty
    assert found["success.fashion-mnist.T1-1.40"].repeats == 3 and found["success.fashion-mnist.T1-1.0"].repeats == 2
    assert "accuracy_lost.fashion-mnist.T1-1.40" not in found, "one of its networks has nothing to be compared with"


def test_explorer_has_one_row_for_each_network_and_noise_level_and_nothing_of_numpys():
    (part,), batches = content([made_up()])
    assert batches == [] and len(part["means"]) == 3 * 5 * 2 and part["sigma"] == 0.1
    assert {type(value) for row in part["means"] for value in row.values()} == {str, int, float}


@pytest.fixture(scope="module")
def computed(tmp_path_factory) -> Hiding:
    """A smaller smoke profile, really computed."""
    folder, (smoke,) = tmp_path_factory.mktemp("hiding"), sizes_of("hiding", "smoke")
    size = dataclasses.replace(
        smoke, epochs=3, train_size=400, test_images=100, attacks=(("T1", 1),), covers=(50,), steps=3, n=10
    )
    profile = write_profile(folder / "small.toml", hiding=[size])
    runner.run(plan_of("hiding", str(profile)), store := Store(folder / "records"), device="cpu", jobs=1, progress=False)
    return load(profile=str(profile), store=store)["digits"]


def test_a_small_chapter_is_computed_and_drawn(computed):
    assert computed.missing is None and len(computed.networks) == 2 and len(computed.cleansed()) == 1
    found = computed.quantities()
    assert {"success.digits.T1-1.50", "wanted.digits.T1-1.0.0.1", "auc.digits.T1-1.50.STRIP"} <= set(found)
    for draw in figures.FIGURES:
        figure = draw(computed)
        figure.draw_without_rendering()
        assert figure.get_supxlabel().replace("\n", " ") == computed.source and not draw.table(computed).empty
    without = dataclasses.replace(computed, records=Records({}))
    assert {draw(without).data for draw in figures.FIGURES} == {without.missing} and not without.quantities()
    assert without.cost_table() and without.cleanse_table(), "tables have words where there are no rows"


@pytest.mark.parametrize("name", ["sigmas", "attacks", "covers"])
def test_a_size_of_nothing_is_refused(name):
    with pytest.raises(ValueError, match=f"{name} must not be empty"):
        dataclasses.replace(sizes_of("hiding", "smoke")[0], **{name: ()})


def test_a_first_attack_without_a_target_class_is_refused():
    with pytest.raises(ValueError, match=r"first of attacks must have one target class.*'T2', 5"):
        dataclasses.replace(sizes_of("hiding", "smoke")[0], attacks=(("T2", 5),))
