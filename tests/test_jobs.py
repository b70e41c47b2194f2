"""Backdoored networks really trained, what is measured on them, and in which order the runner makes them."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bslib import runner
from bslib.datasets import load, to_float
from bslib.jobs import carry_out, draw_points, draw_points_of_each_class
from bslib.measure import class_counts
from bslib.networks import build
from bslib.poisoning import poison
from bslib.runner import run
from bslib.specs import AttackSpec, CountsSpec, ImagesSpec, NetworkSpec, PredictionsSpec
from bslib.store import Store
from bslib.training import load_weights
from bslib.triggers import pattern

CLEAN = NetworkSpec(
    dataset="digits", network="small-fashion", seed=0, epochs=8, train_size=500, batch_size=16, learning_rate=0.02
)
POISONED = dataclasses.replace(CLEAN, attack=AttackSpec(threat_model="T1", trigger=5, target=3))


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> Store:
    """Holds the two networks."""
    store = Store(tmp_path_factory.mktemp("jobs"))
    for network in (CLEAN, POISONED):
        store.put(carry_out(network, store, device="cpu", progress=False))
    return store


@pytest.fixture
def measured(store):
    return lambda spec: carry_out(spec, store, device="cpu", progress=False)


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
    images = to_float(data.test_images)
    expected = trained(store, spec)(images if trigger is None else pattern(trigger)(images)).argmax(1).numpy()
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

    monkeypatch.setattr("bslib.jobs.train", noted)
    spec = dataclasses.replace(
        CLEAN, seed=3, train_size=80, attack=AttackSpec(threat_model=threat_model, trigger=2, target=target)
    )
    with pytest.raises(InterruptedError):
        carry_out(spec, Store(tmp_path), device="cpu", progress=False)
    data, chosen = load("digits"), draw_points(1297, 80, 3)
    parts = data.train_images[chosen], data.train_labels[chosen]
    expected = poison(*parts, pattern(2), threat_model, target=target, classes=10, seed=3)
    assert torch.equal(seen[0], expected.images) and torch.equal(seen[1], expected.labels)
    assert len(expected.rows) == 12 and torch.equal(load("digits").train_images[chosen], parts[0])


# --- counts ------------------------------------------------------------------------------------------------------

COUNTS = CountsSpec(network=POISONED, points=12, sigmas=(0.1, 1.0), ns=(20, 50), seed=7)


@pytest.mark.parametrize("by_class", [None, True])
@pytest.mark.parametrize("paired", [None, True])
@pytest.mark.parametrize("trigger", [None, 5])
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
    direct = class_counts

    def upper(model, images, *arguments, **more):
        seen.append(images)
        return direct(Upper(), images, *arguments, **more)

    monkeypatch.setattr("bslib.jobs.class_counts", upper)
    paired = [measured(dataclasses.replace(COUNTS, trigger=t, paired=True)).arrays["counts"] for t in (None, 5)]
    alone = [measured(dataclasses.replace(COUNTS, trigger=t)).arrays["counts"] for t in (None, 5)]
    assert torch.equal(seen[0], clean) and torch.equal(seen[1], stamped)
    assert np.array_equal(*paired) and not np.array_equal(*alone)


# --- which images ------------------------------------------------------------------------------------------------


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


# --- the order of the work ---------------------------------------------------------------------------------------

FIRST = NetworkSpec(dataset="digits", network="small-fashion", seed=0, epochs=1, train_size=16)
SECOND = dataclasses.replace(FIRST, seed=1, epochs=4, train_size=400)  # takes longer: the first could run ahead
IMAGES = ImagesSpec(dataset="digits", images=1, seed=0)


def counts_at(network: NetworkSpec, sigma: float) -> CountsSpec:
    return CountsSpec(network=network, points=1, sigmas=(sigma,), ns=(2,), seed=0)


#: Comes back to both networks, twice.
RETURNING = [
    FIRST, PredictionsSpec(network=FIRST), SECOND, PredictionsSpec(network=SECOND), IMAGES,
    counts_at(FIRST, 0.1), counts_at(SECOND, 0.1),
    counts_at(FIRST, 0.2), counts_at(SECOND, 0.2),
]  # fmt: skip
STAGES = [RETURNING[:5], RETURNING[5:7], RETURNING[7:]]


def test_a_plan_that_returns_to_a_network_keeps_its_order(tmp_path, monkeypatch):
    specs = []

    def noted(spec, *arguments, **more):
        specs.append(spec)
        return carry_out(spec, *arguments, **more)

    monkeypatch.setattr(runner, "carry_out", noted)
    run(RETURNING, Store(tmp_path), device="cpu", jobs=1, progress=False)
    assert specs == RETURNING  # each network trained once, what is named first finished first


def test_several_jobs_finish_a_stage_before_the_next(tmp_path):
    store = Store(tmp_path)
    run(RETURNING, store, device="cpu", jobs=2, progress=False)
    written = {spec: (store.folder / spec.kind / f"{spec.key}.json").stat().st_mtime_ns for spec in RETURNING}
    first, second, third = ([written[spec] for spec in stage] for stage in STAGES)
    assert max(first) <= min(second) and max(second) <= min(third)
    for network in (FIRST, SECOND):  # trained once: the weights are no younger than their first record
        assert store.weights_path(network).stat().st_mtime_ns <= written[network]


def test_a_stopped_plan_goes_on_with_the_first_stage(tmp_path, monkeypatch):
    store, specs = Store(tmp_path), []

    def stopped(spec, *arguments, **more):
        if len(specs) == 3:
            raise KeyboardInterrupt
        specs.append(spec)
        return carry_out(spec, *arguments, **more)

    with monkeypatch.context() as patch:
        patch.setattr(runner, "carry_out", stopped)
        with pytest.raises(KeyboardInterrupt):
            run(RETURNING, store, device="cpu", jobs=1, progress=False)
    monkeypatch.setattr(runner, "carry_out", lambda spec, *a, **more: specs.append(spec) or carry_out(spec, *a, **more))
    run(RETURNING, store, device="cpu", jobs=1, progress=False)
    assert specs == RETURNING
