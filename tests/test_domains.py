"""Other domains: the data, triggers and networks, the job, and the chapter's numbers on records made up by hand."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from sklearn.datasets import load_digits
from sklearn.preprocessing import StandardScaler

from bslib import render
from bslib.chapters import plan_of, sizes_of
from bslib.chapters.domains.figures import FIGURES, ratio, w_by_sigma
from bslib.chapters.domains.plan import THREATS, specs_of
from bslib.chapters.domains.results import Domain, Domains, quantities
from bslib.domains import DOMAINS, NOTES, RATE, TRIGGERS, VOCABULARY, behind, build, load
from bslib.jobs import compute
from bslib.ledger import claims_of, judge
from bslib.measure import class_counts
from bslib.poisoning import poison
from bslib.specs import DomainSpec, spec_from
from bslib.store import Record, Records, Store
from bslib.threat_models import THREAT_MODELS, ThreatModel

NETWORKS = {size.dataset: size.network for size in sizes_of("domains", "paper")}
SPEC = DomainSpec(
    dataset="breast-cancer", network="perceptron", seed=3, epochs=20, threat_model="T1", points=12, sigmas=(0.0, 1.0), n=20
)


@pytest.mark.parametrize("name", DOMAINS)
def test_no_point_is_in_both_halves_and_every_class_is_in_each(name):
    data = load(name)
    rows = [{row.numpy().tobytes() for row in half} for half in (data.train_images, data.test_images)]
    assert not rows[0] & rows[1]
    assert set(data.train_labels.tolist()) == set(data.test_labels.tolist()) == set(range(len(data.classes)))


def test_a_table_is_standardised_on_its_training_set():
    data, raw = load("digits-table"), load_digits()
    order = np.random.RandomState(0).permutation(len(raw.data))
    scaler = StandardScaler().fit(raw.data[order[:-500]])
    assert data.test_labels.tolist() == raw.target[order[-500:]].tolist()
    assert np.allclose(data.test_images, scaler.transform(raw.data[order[-500:]]), atol=1e-4)


def test_a_tone_has_the_pitch_of_its_class():
    data = load("tones")
    times, series = np.arange(256) / RATE, data.test_images[:, 0].numpy()
    power = np.abs(series @ np.exp(2j * np.pi * np.outer(times, list(NOTES.values()))))
    assert (power.argmax(1) == data.test_labels.numpy()).mean() > 0.9


def test_the_rare_word_is_the_rarest():
    seen = np.bincount(load("documentation").train_images.flatten(), minlength=VOCABULARY)
    assert len(seen) == VOCABULARY and seen[-1] == seen.min() > 0


WHERE = {
    "digits-table": np.s_[:, 62:], "breast-cancer": np.s_[:, 28:], "documentation": np.s_[:, 15:], "tones": np.s_[:, :, 240:244],
}  # fmt: skip


@pytest.mark.parametrize(("name", "where"), WHERE.items())
def test_a_trigger_gives_all_points_the_same_values_in_one_place(name, where):
    before = load(name).test_images.clone()
    after = TRIGGERS[name](load(name).test_images)
    rest = np.ones(before.shape, dtype=bool)
    rest[where] = False
    assert torch.equal(load(name).test_images, before) and torch.equal(after[rest], before[rest])
    assert after.dtype == before.dtype and len(after[where].unique(dim=0)) == 1 and not torch.equal(after, before)


def poisoned_of(data, trigger, model: ThreatModel, *, target: int, seed: int):
    found = poison(data.train_images, data.train_labels, trigger, model, target=target, classes=len(data.classes), seed=seed)
    return found.images, found.labels


@settings(max_examples=20)
@given(fraction=st.floats(0.01, 0.3), target=st.integers(0, 1), seed=st.integers(0, 99))
def test_poisons_carry_the_trigger_and_the_target_and_come_from_other_classes(fraction, target, seed):
    data, trigger = load("breast-cancer"), TRIGGERS["breast-cancer"]
    model = ThreatModel(name="some", fraction=fraction, one_target=True)
    rows, labels = poisoned_of(data, trigger, model, target=target, seed=seed)
    changed = labels != data.train_labels
    assert int(changed.sum()) == round(fraction * len(labels)) and bool((labels[changed] == target).all())
    clean = data.train_images
    assert torch.equal(rows[changed], trigger(clean[changed])) and torch.equal(rows[~changed], clean[~changed])


def test_more_poisons_than_points_are_refused(tmp_path):
    with pytest.raises(ValueError, match="T1 asks for 360 poisons, and only 147 images can be poisoned"):
        compute(dataclasses.replace(SPEC, poison_fraction=0.9), Store(tmp_path), device="cpu", progress=False)


def test_unknown_names_are_refused():
    with pytest.raises(ValueError, match=r"data set must be one of digits-table, .*got 'iris'"):
        load("iris")
    with pytest.raises(ValueError, match=r"network must be one of perceptron, .*got 'tree'"):
        build("tree", load("tones"), seed=0)


@pytest.mark.parametrize("name", DOMAINS)
def test_what_follows_the_embedding_gives_the_networks_logits(name):
    data = load(name)
    network = build(NETWORKS[name], data, seed=1)
    model, points_of = behind(network, data.test_images)
    points = points_of(data.test_images)
    assert points.square().mean() == pytest.approx(1, abs=1e-4)
    assert torch.allclose(model(points), network(data.test_images), atol=1e-4)


def test_noise_is_in_units_of_the_root_mean_square():
    """A linear network of two classes: the probability of class 1 is known exactly."""
    rows, linear = 5 * load("breast-cancer").test_images[:20], torch.nn.Linear(30, 2)
    model, points_of = behind(torch.nn.Sequential(torch.nn.Identity(), linear), rows)
    counts = class_counts(model, points_of(rows), 0.7, 4000, seed=0, engine="eager", dtype=torch.float32)[0, :, 1]
    with torch.no_grad():
        logits, weight = linear(rows).double(), (linear.weight[1] - linear.weight[0]).double()
        deviation = 0.7 * rows.double().square().mean().sqrt() * weight.norm()
        expected = stats.norm.cdf((logits[:, 1] - logits[:, 0]) / deviation)
    assert np.abs(counts / 4000 - expected).max() < 5 * 0.5 / 4000**0.5


def test_a_spec_knows_its_threat_model():
    few = dataclasses.replace(SPEC, threat_model="T3", poison_fraction=0.01)
    assert few.model.poison_count(400) == 4 and SPEC.model == THREAT_MODELS["T1"] and SPEC.target(2) == 1
    assert spec_from(few.as_dict()) == few and "poison_fraction" not in SPEC.as_dict()
    with pytest.raises(ValueError, match="one target class, got T2"):
        dataclasses.replace(SPEC, threat_model="T2")


def test_a_record_holds_counts_of_a_network_that_learned_its_task_and_its_trigger(tmp_path):
    record, again = (compute(SPEC, Store(tmp_path), device="cpu", progress=False) for _ in range(2))
    counts, (clean, triggered) = record.arrays["counts"], record.arrays["predicted"]
    labels, rows = record.arrays["labels"], record.arrays["rows"]
    assert counts.shape == (2, 2, 12, 2) and (counts.sum(-1) == 20).all() and record.checksum == again.checksum
    assert np.array_equal(counts[:, 0].argmax(-1), [clean[rows], triggered[rows]])  # without noise, sigma 0
    assert (clean == labels).mean() > 0.9 and (triggered[labels == 0] == 1).mean() > 0.8


def test_noise_is_paired(tmp_path, monkeypatch):
    monkeypatch.setitem(TRIGGERS, "breast-cancer", torch.clone)
    counts = compute(dataclasses.replace(SPEC, epochs=1), Store(tmp_path), device="cpu", progress=False).arrays["counts"]
    assert np.array_equal(*counts) and (counts[0, 1].max(-1) < 20).any()


def made_up(*, swapped: bool = False, networks: int = 5) -> Domains:
    """Five networks alike of each kind. W without the trigger is that of 1, 2, ... noisy copies in ten outside the first class;
    with the trigger, of half as many. The target is what the seed says; the trigger sends three of four others there."""
    found = {}
    for size in sizes_of("domains", "paper"):
        classes, labels = {"digits-table": 10, "breast-cancer": 2, "documentation": 6, "tones": 8}[size.dataset], np.arange(24)
        records = {}
        for threat in THREATS:
            for spec in specs_of(size, threat, 0)[:networks]:
                counts = np.zeros((2, len(size.sigmas), 4, classes), dtype=int)
                out = np.minimum(np.array([[2], [1]]) * (1 + np.arange(len(size.sigmas))), 10)
                counts[..., 1], counts[..., 0] = out[..., None], 20 - out[..., None]
                true = labels % classes
                predicted = np.stack([true, np.where(labels < 18, spec.target(classes), true)])
                arrays = {"counts": counts[::-1] if swapped else counts, "labels": true, "predicted": predicted}
                records[spec] = Record(spec, {}, arrays, {"source": f"made up {size.dataset}"})
        found[size.dataset] = Domain(size, "paper", 0, Records(records))
    return Domains(found)


def test_numbers_by_hand():
    part = made_up()["breast-cancer"]
    own, entropy = part.quantities(), lambda out: stats.entropy([out / 20, 1 - out / 20])
    assert part.level("T1") == 0  # 2 of 20: 0.325 nats, the level nearest to log(2) / 3
    assert own["less_clean.breast-cancer.T1.third"].value == pytest.approx(entropy(1) - entropy(2))
    assert own["ratio.breast-cancer.T1.third"].value == pytest.approx(entropy(1) / entropy(2))
    assert own["ratio.breast-cancer.T1.0.5"].value == pytest.approx(entropy(4) / entropy(8))
    assert own["ratio.breast-cancer.T1.strongest.less.third"].value == pytest.approx(
        entropy(9) / entropy(10) - entropy(1) / entropy(2)
    )
    assert own["accuracy.breast-cancer.T1"].value == 1
    assert own["success.breast-cancer.T1"].value == 0.75  # nine of the twelve points of the other class
    row = part.by_sigma().iloc[0]
    assert row["clean"] == pytest.approx(entropy(2)) and row["with trigger"] == pytest.approx(entropy(1))


@pytest.mark.parametrize(("swapped", "verdict"), [(False, "reproduced"), (True, "not reproduced")])
def test_verdicts_follow_from_the_records(swapped, verdict):
    numbers = quantities(made_up(swapped=swapped))
    verdicts = {claim.id: judge(claim, numbers) for claim in claims_of("domains")}
    assert "not yet run" not in verdicts.values() and verdicts["few-poisons-smooth"] == verdict
    assert verdicts["few-poisons-roughen"] == ("reproduced" if swapped else "not reproduced")


def test_figures_are_drawn_from_their_tables_and_say_what_is_missing():
    results, nothing = made_up(), made_up(networks=0)
    assert len(results.by_sigma()) == 4 * 2 * 9
    panels = w_by_sigma(results).axes
    assert [axis.get_title() for axis in panels] == list(results) and {len(axis.lines) for axis in panels} == {4}
    assert np.array_equal(panels[1].lines[0].get_ydata(), results["breast-cancer"].by_sigma()["clean"][:9])
    assert [axis.get_title() for axis in ratio(results).axes] == list(THREATS)
    assert "w_by_sigma-all" in render.downloads({"all": results}, FIGURES).data
    assert "needs 32 backdoored networks (lstm) on documentation" in w_by_sigma(nothing).data and nothing.as_markdown() == ""
    assert results.as_markdown().count("\n") == 1 + 4 * 2 and quantities(nothing) == {}


@pytest.mark.parametrize("profile", ["smoke", "paper"])
def test_every_planned_spec_can_be_computed(profile):
    for spec in plan_of("domains", profile):
        data = load(spec.dataset)
        assert (
            spec.points <= len(data.test_images) and build(spec.network, data, seed=spec.seed)(data.test_images[:2]).shape[0] == 2
        )
