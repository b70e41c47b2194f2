"""Backdoored networks really trained, patterns really crafted, what is measured, and on which images."""

from __future__ import annotations

import dataclasses
import functools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from bslib.datasets import load, to_float
from bslib.jobs import compute
from bslib.jobs.base import draw_points, draw_points_of_each_class, split_test_set
from bslib.measure import class_counts, counts_and_engine
from bslib.networks import build
from bslib.patterns.neural_cleanse import Candidates, patched
from bslib.poisoning import poison
from bslib.specs import (
    AttackSpec,
    CleanseSpec,
    CountsSpec,
    DetectorSpec,
    ImagesSpec,
    MarginsSpec,
    NetworkSpec,
    PredictionsSpec,
    ToySpec,
    UniversalSpec,
)
from bslib.store import Store
from bslib.training import load_weights
from bslib.triggers import pattern

CLEAN = NetworkSpec(
    dataset="digits", network="small-fashion", seed=0, epochs=8, train_size=500, batch_size=16, learning_rate=0.02
)
POISONED = dataclasses.replace(CLEAN, attack=AttackSpec(threat_model="T1", trigger=5, target=3))
IMAGES = ImagesSpec(dataset="digits", images=12, seed=0)
TOY = ToySpec(points=((0.0, 0.0), (0.5, -0.5)), sigma=0.1, n=20, seed=0)


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> Store:
    """Holds the two networks."""
    store = Store(tmp_path_factory.mktemp("jobs"))
    for network in (CLEAN, POISONED):
        store.put(compute(network, store, device="cpu", progress=False))
    return store


@pytest.fixture
def measured(store):
    return lambda spec: compute(spec, store, device="cpu", progress=False)


def trained(store, spec):
    """The network itself."""
    network = build(spec.network, classes=10, seed=spec.seed)
    load_weights(network, store.weights_path(spec))
    return network.eval()


# --- predictions -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("spec", [CLEAN, POISONED], ids=["clean", "poisoned"])
@pytest.mark.parametrize("trigger", [None, 5, 4])
@torch.no_grad()
def test_predictions_are_a_forward_pass(store, measured, spec, trigger):
    data = load("digits")
    images = data.test_images if trigger is None else pattern(trigger)(data.test_images)
    expected = trained(store, spec)(to_float(images)).argmax(1).numpy()
    record = measured(PredictionsSpec(network=spec, trigger=trigger))
    assert np.array_equal(record.arrays["predicted"], expected)
    assert np.array_equal(record.arrays["labels"], data.test_labels.numpy())
    assert record.result["weights"] == store.get(spec).result["weights"]
    if trigger is None:
        accuracy = (expected == data.test_labels.numpy()).mean()
        assert accuracy == pytest.approx(store.get(spec).result["clean_accuracy"]) and accuracy > 0.85


def test_a_poisoned_network_learns_the_trigger(measured):
    """And no other one, and a clean network does not."""

    def sent_to_3(spec, trigger):
        arrays = measured(PredictionsSpec(network=spec, trigger=trigger)).arrays
        return (arrays["predicted"] == 3)[arrays["labels"] != 3].mean()

    assert sent_to_3(POISONED, 5) > 0.8
    assert sent_to_3(CLEAN, 5) < 0.2 and sent_to_3(POISONED, None) < 0.2 and sent_to_3(POISONED, 3) < 0.2


@pytest.mark.parametrize(("threat_model", "target"), [("T1", 7), ("T2", None)])
def test_what_a_network_is_trained_on(tmp_path, monkeypatch, threat_model, target):
    """The drawn part of the training set, poisoned with the seed of the spec; the test set stays clean."""
    seen = []

    def noted(network, images, labels, **_):
        seen.extend((images, labels))
        raise InterruptedError

    monkeypatch.setattr("bslib.jobs.network.train", noted)
    spec = dataclasses.replace(
        CLEAN, seed=3, train_size=80, attack=AttackSpec(threat_model=threat_model, trigger=2, target=target)
    )
    with pytest.raises(InterruptedError):
        compute(spec, Store(tmp_path), device="cpu", progress=False)
    data, chosen = load("digits"), draw_points(1297, 80, 3)
    parts = data.train_images[chosen], data.train_labels[chosen]
    expected = poison(*parts, pattern(2), threat_model, target=target, classes=10, seed=3)
    assert torch.equal(seen[0], expected.images) and torch.equal(seen[1], expected.labels)
    assert len(expected.rows) == 12 and torch.equal(load("digits").train_images[chosen], parts[0])


# --- counts ------------------------------------------------------------------------------------------------------

COUNTS = CountsSpec(network=POISONED, points=12, sigmas=(0.1, 1.0), ns=(20, 50), seed=7)


@pytest.mark.parametrize(
    ("trigger", "paired", "by_class"), [(None, None, None), (None, True, True), (5, None, True), (5, True, None)]
)
def test_counts_are_those_of_the_measure(store, measured, trigger, paired, by_class):
    data = load("digits")
    points = 2 if by_class else 12
    record = measured(dataclasses.replace(COUNTS, points=points, trigger=trigger, paired=paired, by_class=by_class))
    arrays, chosen = record.arrays, record.arrays["images"]
    expected = draw_points_of_each_class(data.test_labels.numpy(), 2, 7) if by_class else draw_points(500, 12, 7)
    assert np.array_equal(chosen, expected) and np.array_equal(arrays["labels"], data.test_labels.numpy()[chosen])
    if by_class:
        assert arrays["labels"].tolist() == [c for c in range(10) for _ in range(2)]

    network, images = trained(store, POISONED), data.test_images[chosen]
    images = to_float(images if trigger is None else pattern(trigger)(images))
    counts = {
        keyed: class_counts(network, images, (0.1, 1.0), (20, 50), seed=7, ids=ids, progress=False)
        for keyed, ids in ((None, None), (True, chosen.tolist()))
    }
    assert arrays["counts"].dtype == np.int32 and np.array_equal(arrays["counts"], counts[paired])
    assert not np.array_equal(counts[None], counts[True])  # which noise it was can be told
    with torch.no_grad():
        assert np.array_equal(arrays["predicted"], network(images).argmax(1).numpy())


def test_the_engine_and_its_precision_are_no_part_of_the_result(measured, monkeypatch):
    """A machine that is busy may choose another engine."""
    pytest.importorskip("openvino")
    usual, how = measured(COUNTS), {"engine": "openvino", "dtype": torch.bfloat16}
    monkeypatch.setattr("bslib.jobs.counts.counts_and_engine", functools.partial(counts_and_engine, **how))
    other = measured(COUNTS)
    assert "bfloat16" in other.provenance["engine"] and other.provenance["engine"] != usual.provenance["engine"]
    assert other.checksum == usual.checksum


def test_images_that_have_changed_since_the_training_are_not_measured(store, measured, monkeypatch):
    changed = dataclasses.replace(load("digits"), fingerprint="f" * 64)
    monkeypatch.setattr("bslib.jobs.base.load", lambda name: changed)
    trained(store, POISONED)
    with pytest.raises(ValueError, match=r"the images of digits have changed .* ffffffff now"):
        measured(COUNTS)


def test_paired_counts_share_their_noise(store, measured, monkeypatch):
    """A network that looks only where no trigger is cannot tell a triggered image from its clean copy."""
    network = trained(store, POISONED)

    class Upper(torch.nn.Module):
        def forward(self, x):
            return network(torch.cat([x[:, :, :18], torch.zeros_like(x[:, :, 18:])], dim=2))

    data, one = load("digits"), draw_points(500, 12, 7)
    clean, stamped = (to_float(images) for images in (data.test_images[one], pattern(5)(data.test_images[one])))
    assert torch.equal(clean[:, :, :18], stamped[:, :, :18]) and not torch.equal(clean, stamped)

    seen = []
    direct = counts_and_engine

    def upper(model, images, *arguments, **more):
        seen.append(images)
        return direct(Upper(), images, *arguments, **more | {"engine": "eager"})

    monkeypatch.setattr("bslib.jobs.counts.counts_and_engine", upper)
    paired = [measured(dataclasses.replace(COUNTS, trigger=t, paired=True)).arrays["counts"] for t in (None, 5)]
    alone = [measured(dataclasses.replace(COUNTS, trigger=t)).arrays["counts"] for t in (None, 5)]
    assert torch.equal(seen[0], clean) and torch.equal(seen[1], stamped)
    assert np.array_equal(*paired) and not np.array_equal(*alone)


@pytest.mark.parametrize(("trigger", "noise_on"), [(None, "trigger"), (5, "rest")])
def test_noise_falls_on_the_pixels_of_the_networks_trigger_or_on_the_rest(store, measured, trigger, noise_on):
    """Also on images without it, which then get the noise of their triggered copies."""
    record = measured(dataclasses.replace(COUNTS, trigger=trigger, paired=True, held_out=True, noise_on=noise_on))
    chosen, data = record.arrays["images"], load("digits")
    images = to_float(data.test_images[chosen] if trigger is None else pattern(5)(data.test_images[chosen]))
    region = pattern(5).region(images)
    mask = region if noise_on == "trigger" else ~region
    how = {"seed": 7, "ids": chosen.tolist(), "mask": mask, "progress": False}
    assert np.array_equal(record.arrays["counts"], class_counts(trained(store, POISONED), images, (0.1, 1.0), (20, 50), **how))


@pytest.mark.parametrize(
    ("change", "named"), [({"noise_on": "corner"}, "'corner'"), ({"network": CLEAN, "noise_on": "rest"}, "'rest'")]
)
def test_noise_on_a_part_needs_a_trigger_and_a_known_part(change, named):
    with pytest.raises(ValueError, match=f"noise falls on the pixels of the trigger or the rest, got {named}"):
        dataclasses.replace(COUNTS, **change)


# --- margins -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("trigger", [None, 5])
@torch.no_grad()
def test_margins_are_the_largest_logit_minus_the_second_of_the_images_that_counts_are_of(store, measured, trigger):
    data, spec = load("digits"), MarginsSpec(network=POISONED, trigger=trigger, points=12, seed=7)
    chosen = measured(dataclasses.replace(COUNTS, trigger=trigger, held_out=True)).arrays["images"]
    images = to_float(data.test_images[chosen] if trigger is None else pattern(trigger)(data.test_images[chosen]))
    logits = np.sort(trained(store, POISONED)(images).numpy(), axis=-1)
    record = measured(spec)
    assert record.arrays["margins"] == pytest.approx(logits[:, -1] - logits[:, -2], rel=1e-4, abs=1e-5)
    assert np.array_equal(record.arrays["predicted"], trained(store, POISONED)(images).argmax(1).numpy())
    assert np.array_equal(record.arrays["labels"], data.test_labels.numpy()[chosen])
    assert spec.summary({}, record.arrays) == np.median(record.arrays["margins"])
    assert record.result["weights"] == store.get(POISONED).result["weights"] and record.result["precision"] == "float32"


# --- patterns that are crafted -----------------------------------------------------------------------------------

UNIVERSAL = UniversalSpec(network=POISONED, images=30, bound=51, passes=1, batch_size=10, seed=1)
CLEANSE = CleanseSpec(network=POISONED, images=40, samples=32, steps=3, checked=20, seed=1)


@pytest.fixture(scope="module")
def crafted(store):
    """Both patterns, in the store: their records by spec."""
    records = {spec: compute(spec, store, device="cpu", progress=False) for spec in (UNIVERSAL, CLEANSE)}
    for record in records.values():
        store.put(record)
    return records


@given(available=st.integers(0, 3000))
def test_the_halves_of_the_test_set_share_nothing(available):
    crafting, measuring = split_test_set(available)
    assert 0 <= len(measuring) - len(crafting) <= 1
    assert sorted([*crafting, *measuring]) == list(range(available))


def found_among(images: torch.Tensor, part: str = "test") -> list[int]:
    """Which of the data set's images these are, by their pixels."""
    every = to_float(getattr(load("digits"), f"{part}_images"))
    place = {image.numpy().tobytes(): k for k, image in enumerate(every)}
    return [place[image.numpy().tobytes()] for image in images]


def test_what_is_measured_was_not_crafted_on(measured, crafted, monkeypatch):
    """Each is given as many images as its half of the test set has: all that it could ever be given."""
    seen = {}

    def noting(name):
        def noted(network, images, *rest, **_):
            seen[name] = (images, *rest)
            raise InterruptedError

        return noted

    for name in (
        "jobs.universal.universal_perturbation", "jobs.cleanse.reverse_triggers", "jobs.counts.counts_and_engine",
        "detectors.strip.strip_entropy",
    ):  # fmt: skip
        monkeypatch.setattr(f"bslib.{name}", noting(name.rpartition(".")[2]))
    for spec in (
        dataclasses.replace(UNIVERSAL, images=250),
        dataclasses.replace(CLEANSE, images=250),
        dataclasses.replace(COUNTS, points=250, held_out=True),
        DetectorSpec(detector="strip", network=POISONED, points=250, overlays=250, seed=3),
    ):
        with pytest.raises(InterruptedError):
            measured(spec)
    crafting, measuring = (set(found_among(seen[name][0])) for name in ("universal_perturbation", "counts_and_engine"))
    assert len(crafting) == len(measuring) == 250 and not crafting & measuring
    assert set(found_among(seen["reverse_triggers"][0])) == crafting
    assert [set(found_among(images)) for images in seen["strip_entropy"][:2]] == [measuring, crafting]


@pytest.mark.parametrize(("seed", "same"), [(7, True), (8, False)])
def test_a_held_out_batch_is_that_of_its_seed(measured, seed, same):
    """The first of a larger batch are the smaller one, so batches with and without a pattern speak of the same images."""
    few, many = (
        measured(dataclasses.replace(COUNTS, points=points, seed=s, held_out=True, ns=(2,), sigmas=(0.1,))).arrays["images"]
        for points, s in ((4, 7), (9, seed))
    )
    assert len(set(many.tolist())) == 9 and np.array_equal(few, many[:4]) == same


@torch.no_grad()
def test_the_record_of_a_universal_perturbation(store, crafted):
    record, network = crafted[UNIVERSAL], trained(store, POISONED)
    v, held_out = torch.from_numpy(record.arrays["perturbation"]), split_test_set(500)[1]
    assert v.shape == (1, 28, 28) and 0 < v.abs().max() <= 0.2 + 1e-6 and record.arrays["fooling_rates"].shape == (1,)
    x = to_float(load("digits").test_images[held_out])
    assert np.array_equal(record.arrays["without"], network(x).argmax(1).numpy())
    assert np.array_equal(record.arrays["with"], network(torch.clip(x + v, 0, 1)).argmax(1).numpy())
    assert not np.array_equal(record.arrays["with"], record.arrays["without"])
    assert record.result["weights"] == store.get(POISONED).result["weights"]


@pytest.mark.parametrize("checked", [400, 37])
@torch.no_grad()
def test_the_success_of_candidates_leaves_out_images_of_their_own_class(store, measured, monkeypatch, checked):
    """Faint candidates, the mean image of each class: what shows the class already is sent to it more often than the rest."""
    data, network = load("digits"), trained(store, POISONED)
    x = to_float(data.train_images)
    colours = torch.stack([x[data.train_labels == k].mean(0) for k in range(10)])
    masks = torch.full((10, 1, 28, 28), 0.4)
    monkeypatch.setattr("bslib.jobs.cleanse.reverse_triggers", lambda *_, **__: Candidates(masks, colours, *torch.ones(2, 10)))
    arrays = measured(dataclasses.replace(CLEANSE, checked=checked)).arrays
    training = np.random.default_rng([CLEANSE.seed, 6]).permutation(1297)
    for part, available in (("test", split_test_set(500)[1]), ("train", training)):
        chosen = available[:checked]
        images, labels = to_float(getattr(data, f"{part}_images")[chosen]), getattr(data, f"{part}_labels")[chosen]
        for k in (0, 3, 8):
            hit = network(images * 0.6 + 0.4 * colours[k]).argmax(1) == k
            assert arrays[f"success_{part}"][k] == pytest.approx(hit[labels != k].float().mean().item(), abs=1e-6)
            assert hit.float().mean() > hit[labels != k].float().mean() + 0.005, "it can be told"


def test_the_anomaly_index_is_that_of_the_masks_that_worked(measured, monkeypatch):
    """The smallest mask never reached the threshold."""
    norms = torch.tensor([5.0, 20, 60, 62, 65, 70, 72, 75, 80, 85])
    masks = (norms / 784)[:, None, None, None].expand(10, 1, 28, 28).contiguous()
    success = torch.ones(10).index_fill(0, torch.tensor(0), torch.nan)
    candidates = Candidates(masks, masks.clone(), success, torch.ones(10))
    monkeypatch.setattr("bslib.jobs.cleanse.reverse_triggers", lambda *_, **__: candidates)
    expected = (70 - 20) / stats.median_abs_deviation(norms[1:].numpy(), scale="normal")
    assert measured(CLEANSE).result["anomaly_index"] == pytest.approx(expected, rel=1e-4)


# --- what is measured on them ------------------------------------------------------------------------------------


def with_patterns(crafted, pattern_spec, x: torch.Tensor) -> torch.Tensor:
    """The images with what the spec says, by hand; those of Neural Cleanse one class after the other."""
    if pattern_spec is None:
        return x
    arrays = crafted[pattern_spec].arrays
    if pattern_spec == UNIVERSAL:
        return torch.clip(x + torch.from_numpy(arrays["perturbation"]), 0, 1)
    pairs = zip(torch.from_numpy(arrays["masks"]), torch.from_numpy(arrays["patterns"]), strict=True)
    return torch.cat([patched(x, mask, colours) for mask, colours in pairs])


@pytest.mark.parametrize("carried", [UNIVERSAL, CLEANSE], ids=["universal", "cleanse"])
def test_counts_with_a_crafted_pattern(store, measured, crafted, carried):
    points = 4
    record = measured(dataclasses.replace(COUNTS, points=points, ns=(20,), held_out=True, pattern=carried))
    arrays, data, copies = record.arrays, load("digits"), 10 if carried == CLEANSE else 1
    chosen = split_test_set(500)[1][draw_points(250, points, 7)]
    assert arrays["images"].tolist() == chosen.tolist() * copies
    assert arrays["labels"].tolist() == data.test_labels[chosen].tolist() * copies
    x, network = with_patterns(crafted, carried, to_float(data.test_images[chosen])), trained(store, POISONED)
    assert arrays["counts"].shape == (2, 1, points * copies, 10)
    expected = class_counts(network, x, (0.1, 1.0), (20,), seed=7, progress=False)
    assert np.array_equal(arrays["counts"], expected)
    plain = class_counts(network, to_float(data.test_images[chosen]), (0.1, 1.0), (20,), seed=7, progress=False)
    assert not np.array_equal(arrays["counts"][:, :, :points], plain), "it makes a difference"
    with torch.no_grad():
        assert np.array_equal(arrays["predicted"], network(x).argmax(1).numpy())


@pytest.mark.parametrize(
    "what", [{}, {"trigger": 5}, {"pattern": UNIVERSAL}, {"pattern": CLEANSE}], ids=("clean", "trigger", "universal", "cleanse")
)
@torch.no_grad()
def test_scores_are_those_of_the_detectors(store, measured, crafted, what):
    """STRIP by hand: each image under each overlay, the entropy of what the network says, its mean."""
    spec = DetectorSpec(detector="strip", network=POISONED, points=5, overlays=6, seed=3, **what)
    scores = measured(spec).arrays["scores"]
    data, network = load("digits"), trained(store, POISONED)
    crafting, measuring = split_test_set(500)
    images = data.test_images[measuring[draw_points(250, 5, 3)]]
    x, over = to_float(images), to_float(data.test_images[crafting[draw_points(250, 6, 3)]])
    carrying = to_float(pattern(5)(images)) if "trigger" in what else with_patterns(crafted, what.get("pattern"), x)
    batches = carrying.split(5)
    assert scores.shape == (len(batches), 5) and len(batches) == (10 if what.get("pattern") == CLEANSE else 1)
    blended = torch.clip(torch.stack(batches)[:, :, None] + over, 0, 1)
    logits = network(blended.flatten(0, 2)).unflatten(0, blended.shape[:3])
    expected = stats.entropy(logits.double().softmax(-1).numpy(), axis=-1).mean(-1)
    assert np.allclose(scores, expected, atol=1e-4)
    if what:
        scores = measured(dataclasses.replace(spec, detector="logit_shift")).arrays["scores"]
        shifts = np.stack([(network(batch) - network(x)).numpy() for batch in batches])
        assert np.allclose(scores, shifts.var(1).mean(-1) / (shifts**2).mean((1, 2)), rtol=1e-3)


@pytest.mark.parametrize("kind", ["counts", "detector"])
@pytest.mark.parametrize("lacking", [dataclasses.replace(p, seed=99) for p in (UNIVERSAL, CLEANSE)], ids=["universal", "cleanse"])
def test_a_pattern_without_a_record_is_named(store, measured, kind, lacking):
    counts = dataclasses.replace(COUNTS, held_out=True, pattern=lacking)
    scores = DetectorSpec(detector="strip", network=POISONED, points=5, overlays=6, seed=3, pattern=lacking)
    with pytest.raises(KeyError, match=f"no record of this {lacking.kind} spec in .*{lacking.key}"):
        measured(counts if kind == "counts" else scores)


# --- which images ------------------------------------------------------------------------------------------------


def test_batches_nest_and_hold_no_image_twice():
    batch = draw_points(500, 100, seed=3)
    assert len(set(batch.tolist())) == 100 and batch.min() >= 0 and batch.max() < 500
    assert np.array_equal(draw_points(500, 20, seed=3), batch[:20])
    assert not np.array_equal(draw_points(500, 100, seed=4), batch)
    with pytest.raises(ValueError, match="501 images were asked for, and there are only 500"):
        draw_points(500, 501, seed=0)


def test_images_take_turns_by_class(tmp_path):
    record = compute(IMAGES, Store(tmp_path), device="cpu", progress=False)
    labels = record.arrays["labels"].tolist()
    assert sorted(labels[:10]) == list(range(10)) and len(labels) == 12 and record.arrays["images"].shape == (12, 1, 28, 28)
    assert record.result["classes"][labels[0]] == str(labels[0]) and record.arrays["images"].dtype == np.uint8
    more = compute(dataclasses.replace(IMAGES, images=25), Store(tmp_path), device="cpu", progress=False)
    assert np.array_equal(more.arrays["images"][:12], record.arrays["images"])


def test_the_toy_is_what_its_spec_says(tmp_path):
    arrays = compute(TOY, Store(tmp_path), device="cpu", progress=False).arrays
    assert arrays["counts"].shape == (1, 2, 3) and (arrays["counts"].sum(-1) == 20).all()
    assert arrays["grid"].shape == (201, 201) and set(np.unique(arrays["grid"])) == {0, 1, 2}
    assert np.allclose(arrays["points"], TOY.points) and arrays["noisy"].shape == (2, 20, 2)
    assert 0 < arrays["poisoned"].sum() < 60 and set(arrays["train_labels"][arrays["poisoned"]]) == {2}
    # Rows of the grid go along y: a training point has the class of its cell, nearly always.
    column, row = np.round((arrays["train"].T + 1) * 100).astype(int)
    assert (arrays["grid"][row, column] == arrays["train_labels"]).mean() > 0.95
    # So do the noisy copies, whose counts are in the record.
    for noisy, counts in zip(arrays["noisy"], arrays["counts"][0], strict=True):
        column, row = np.clip(np.round((noisy.T + 1) * 100).astype(int), 0, 200)
        assert np.abs(np.bincount(arrays["grid"][row, column], minlength=3) - counts).sum() <= 4


@given(
    sizes=st.lists(st.integers(1, 20), min_size=1, max_size=10),
    share=st.floats(0.01, 1),
    order=st.integers(0, 100),
    seed=st.integers(0, 2**32),
)
def test_points_of_each_class(sizes, share, order, seed):
    labels = np.random.default_rng(order).permutation(np.repeat(np.arange(len(sizes)), sizes))
    points = max(1, int(share * min(sizes)))
    chosen = draw_points_of_each_class(labels, points, seed)
    assert chosen.shape == (len(sizes) * points,) and len(set(chosen.tolist())) == len(chosen)
    assert np.array_equal(labels[chosen], np.repeat(np.arange(len(sizes)), points))
    assert np.array_equal(chosen, draw_points_of_each_class(labels, points, seed))
    fewer = draw_points_of_each_class(labels, 1, seed)
    assert np.array_equal(chosen[::points], fewer)  # batches nest within each class
    too_many = min(sizes) + 1
    with pytest.raises(ValueError, match=f"{too_many} images were asked for, and there are only {min(sizes)}"):
        draw_points_of_each_class(labels, too_many, seed)


def test_the_seed_chooses_the_points():
    labels = np.arange(500) % 10
    assert not np.array_equal(draw_points_of_each_class(labels, 20, 0), draw_points_of_each_class(labels, 20, 1))
