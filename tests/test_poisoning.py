"""Threat models by exact counts, and the success rate by counting."""

from __future__ import annotations

import itertools
import math
import re
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bslib.poisoning import cover, poison
from bslib.statistics import success_rate
from bslib.threat_models import THREAT_MODELS, ThreatModel
from bslib.triggers import Trigger

WHITE = Trigger.from_image(torch.full((2, 2), 255, dtype=torch.uint8))
ALL = [("T1", 3, 9000), ("T2", None, 9000), ("T3", 3, 250)]


def some_set(sizes, *, seed: int = 0):
    """Tiny images of so many of each class, mixed; none has a white pixel, so a trigger shows on every one."""
    labels = np.random.default_rng(seed).permutation(np.repeat(np.arange(len(sizes)), sizes))
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 255, (len(labels), 1, 4, 4), dtype=torch.uint8, generator=generator)
    return images, torch.from_numpy(labels)


@pytest.fixture(scope="module")
def fashion():
    """As many images of each class as Fashion-MNIST has."""
    return some_set([6000] * 10)


@pytest.mark.parametrize("trigger", [lambda x: x[:1], lambda x: x / 255])
def test_a_trigger_returns_a_batch_like_the_one_it_gets(trigger):
    images, labels = torch.zeros(20, 1, 4, 4, dtype=torch.uint8), torch.arange(20) % 10
    with pytest.raises(ValueError, match="the trigger must return a batch like the one it gets"):
        poison(images, labels, trigger, "T1", target=3, classes=10, seed=0)


def checked(images, labels, threat_model, target, classes, seed, trigger=WHITE):
    """A poisoned set, after what holds for every one is checked."""
    before = images.clone(), labels.clone()
    found = poison(images, labels, trigger, threat_model, target=target, classes=classes, seed=seed)
    assert torch.equal(images, before[0]) and torch.equal(labels, before[1])
    assert found.images.dtype == images.dtype and found.labels.dtype == torch.int64
    rows = found.rows
    assert rows.dtype == torch.int64 and rows.tolist() == sorted(set(rows.tolist()))
    changed = torch.zeros(len(labels), dtype=torch.bool)
    changed[rows] = True
    assert torch.equal((found.images != images).flatten(1).any(1), changed)
    assert torch.equal(found.labels != labels, changed)
    assert torch.equal(found.images[rows], trigger(images[rows]))
    wanted = [target if target is not None else (label + 1) % classes for label in labels[rows].tolist()]
    assert found.labels[rows].tolist() == wanted
    return found


# --- Fashion-MNIST's size ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("threat_model", "target", "count"), ALL)
def test_exact_counts(fashion, threat_model, target, count):
    images, labels = fashion
    found = checked(images, labels, threat_model, target, 10, seed=0)
    assert len(found.rows) == count == THREAT_MODELS[threat_model].poison_count(60_000)
    of_class = Counter(labels[found.rows].tolist())
    if target is None:
        assert of_class == dict.fromkeys(range(10), 900)
    else:
        assert set(of_class) == set(range(10)) - {target}
        # At random from the other classes: each has its ninth, within five standard deviations.
        assert all(abs(n - count / 9) < 5 * (count / 9) ** 0.5 for n in of_class.values())


@pytest.mark.parametrize(("threat_model", "target", "count"), ALL)
def test_the_seed_chooses_the_rows(fashion, threat_model, target, count):
    torch.manual_seed(1)
    np.random.seed(1)  # noqa: NPY002
    rows = [checked(*fashion, threat_model, target, 10, seed).rows for seed in (5, 5, 6)]
    assert torch.equal(rows[0], rows[1]) and not torch.equal(rows[0], rows[2])
    shared = len(set(rows[0].tolist()) & set(rows[2].tolist()))
    assert shared < 2 * count * count / 54_000 + 20  # chance, not the same rows but for a few


def test_floats_and_colours():
    generator = torch.Generator().manual_seed(0)
    images, labels = torch.rand(200, 3, 4, 4, generator=generator), torch.arange(200) % 10
    for threat_model, target in (("T1", 2), ("T2", None)):
        assert len(checked(images, labels, threat_model, target, 10, seed=0).rows) == 30


# --- any size ----------------------------------------------------------------------------------------------------


@given(
    sizes=st.lists(st.integers(0, 30), min_size=2, max_size=12).filter(any),
    fraction=st.floats(0, 1, exclude_min=True),
    by_count=st.booleans(),
    target=st.none() | st.integers(0, 11),
    seed=st.integers(0, 2**32),
)
def test_any_threat_model(sizes, fraction, by_count, target, seed):
    images, labels = some_set(sizes, seed=seed % 100)
    classes, total = len(sizes), len(labels)
    target = None if target is None else target % classes
    amount = {"count": 1 + int(fraction * total)} if by_count else {"fraction": fraction}
    model = ThreatModel(name="any", one_target=target is not None, **amount)
    count = amount.get("count", round(fraction * total))
    possible = total if target is None else total - sizes[target]
    if count > possible:
        with pytest.raises(ValueError, match=f"any asks for {count} poisons, and only {possible} images can be poisoned"):
            poison(images, labels, WHITE, model, target=target, classes=classes, seed=seed)
        return
    if not count:
        with pytest.raises(ValueError, match=f"any poisons .* of the images, which is none of {total}: give more images"):
            poison(images, labels, WHITE, model, target=target, classes=classes, seed=seed)
        return
    found = checked(images, labels, model, target, classes, seed)
    assert len(found.rows) == count
    if target is None:
        shares = np.bincount(labels[found.rows].numpy(), minlength=classes)
        assert (np.abs(shares - count * np.array(sizes) / total) < 1).all()


@pytest.mark.parametrize("one_target", [True, False])
def test_every_image_that_can_be_poisoned(one_target):
    images, labels = some_set([5, 6, 7])
    target = 1 if one_target else None
    model = ThreatModel(name="all", count=12 if one_target else 18, one_target=one_target)
    rows = checked(images, labels, model, target, 3, seed=0).rows
    assert torch.equal(rows, torch.nonzero(labels != 1).flatten() if one_target else torch.arange(18))


# --- covers ------------------------------------------------------------------------------------------------------


@given(st.integers(0, 60), st.sampled_from([[0.1], [0.05, 0.25], [0.0, 0.1, 1.0]]), st.integers(0, 3))
def test_covers_are_noisy_triggered_images_with_their_true_labels_and_are_added_at_the_end(count, sigmas, seed):
    images, labels = some_set([10] * 4)
    poisoned = poison(images, labels, WHITE, "T1", target=1, classes=4, seed=seed)
    found, wanted = cover(poisoned, images, WHITE, count=count, sigmas=sigmas, seed=seed)
    assert found.dtype == torch.uint8 and len(found) == len(wanted) == 40 + count
    assert torch.equal(found[:40], poisoned.images) and torch.equal(wanted[:40], poisoned.labels)
    again = cover(poisoned, images, WHITE, count=count, sigmas=sigmas, seed=seed)
    assert torch.equal(again[0], found) and torch.equal(again[1], wanted)
    # Without noise they are the images of the same choice, none of which is poisoned.
    plain = cover(poisoned, images, WHITE, count=count, sigmas=[0.0], seed=seed)[0][40:]
    left = np.setdiff1d(np.arange(40), poisoned.rows.numpy())
    of_each = {WHITE(images[k : k + 1]).numpy().tobytes(): (k, labels[k].item()) for k in left}
    chosen = [of_each[image[None].numpy().tobytes()] for image in plain]
    assert [label for _, label in chosen] == wanted[40:].tolist()
    times = Counter(k for k, _ in chosen)
    assert not times or max(times.values()) <= -(-count // len(left)), "no image is taken twice before all are taken once"
    for k, sigma in zip(range(count), itertools.cycle(sigmas)):
        assert sigma or torch.equal(found[40 + k], plain[k])


def test_the_noise_of_covers_has_the_levels_in_turn_and_is_rounded_and_clipped():
    images, labels = torch.full((50, 1, 40, 40), 128, dtype=torch.uint8), torch.arange(50) % 10
    poisoned = poison(images, labels, WHITE, "T1", target=3, classes=10, seed=0)
    found = cover(poisoned, images, WHITE, count=60, sigmas=[0.05, 0.1], seed=0)[0][50:, 0, :30, :30].float() - 128
    assert torch.allclose(found.std((1, 2)), 255 * torch.tensor([0.05, 0.1]).repeat(30), rtol=0.12)
    assert (found.mean((1, 2)).abs() < 4 * 255 * 0.1 / 30).all()
    assert len(torch.unique(found[0] * found[1])) > 100 and not torch.equal(found[0], found[2]), "each has noise of its own"
    loud = cover(poisoned, images, WHITE, count=4, sigmas=[2.0], seed=0)[0][50:]
    assert loud.min() == 0 and loud.max() == 255 and ((loud == 0) | (loud == 255)).float().mean() > 0.7


# --- bad requests ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("threat_model", ["T1", "T3"])
@pytest.mark.parametrize("target", [-1, 10, None])
def test_a_target_that_is_no_class_is_named(threat_model, target):
    images, labels = some_set([100] * 10)
    message = re.escape(f"{threat_model} needs a target class from 0 to 9, got {target!r}")
    with pytest.raises(ValueError, match=message):
        poison(images, labels, WHITE, threat_model, target=target, classes=10, seed=0)
    with pytest.raises(ValueError, match=message):
        THREAT_MODELS[threat_model].target_labels(labels, target=target, classes=10)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": torch.zeros(100, 1, dtype=torch.int64)}, "got torch.int64 of shape (100, 1)"),
        ({"labels": np.zeros(100, dtype=np.int64)}, "labels must be a tensor, got ndarray: use torch.as_tensor(labels)"),
        ({"labels": [0] * 100}, "labels must be a tensor, got list: use torch.as_tensor(labels)"),
        ({"labels": torch.arange(100) % 11}, "labels must be from 0 to 9, got 0 to 10"),
        ({"labels": torch.arange(100) % 10 - 1}, "labels must be from 0 to 9, got -1 to 8"),
        ({"seed": -1}, "seed must be a whole number of 0 or more, got -1"),
    ],
)
@pytest.mark.parametrize("threat_model", ["T1", "T2"])
def test_what_does_not_fit_is_named(change, message, threat_model):
    images, labels = some_set([10] * 10)
    given = {"labels": labels, "target": np.int64(3) if threat_model == "T1" else None, "classes": np.int64(10), "seed": 0}
    assert len(poison(images, trigger=WHITE, threat_model=threat_model, **given).rows) == 15, "NumPy's integers are integers"
    with pytest.raises(ValueError, match=re.escape(message)):
        poison(images, trigger=WHITE, threat_model=threat_model, **given | change)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"clean": torch.zeros(100, 1, 4, 4)},
            "clean must be uint8 of shape (100, 1, 4, 4), as what was poisoned, got torch.float32",
        ),
        ({"clean": torch.zeros(50, 1, 4, 4, dtype=torch.uint8)}, "got torch.uint8 of shape (50, 1, 4, 4)"),
        ({"count": -1}, "count must be a whole number of 0 or more, got -1"),
        ({"count": 1.5}, "got 1.5"),
        ({"sigmas": []}, "sigmas must be one or more finite numbers of 0 or more, got []"),
        ({"sigmas": [0.1, math.nan]}, "got [0.1, nan]"),
        ({"sigmas": [-0.1]}, "got [-0.1]"),
    ],
)
def test_covers_that_cannot_be_made_are_refused(change, message):
    images, labels = some_set([10] * 10)
    given = {"clean": images, "count": 4, "sigmas": [0.1]} | change
    with pytest.raises(ValueError, match=re.escape(message)):
        cover(poison(images, labels, WHITE, "T1", target=3, classes=10, seed=0), trigger=WHITE, seed=0, **given)


def test_t2_takes_no_target():
    with pytest.raises(ValueError, match="takes no target class, got 0"):
        poison(*some_set([10] * 10), WHITE, "T2", target=0, classes=10, seed=0)


def test_an_unknown_threat_model_is_named():
    with pytest.raises(ValueError, match="threat model must be one of T1, T2, T3, got 't1'"):
        poison(*some_set([10] * 10), WHITE, "t1", target=0, classes=10, seed=0)


def test_more_poisons_than_images():
    with pytest.raises(ValueError, match="T3 asks for 250 poisons, and only 180 images can be poisoned"):
        poison(*some_set([20] * 10), WHITE, "T3", target=0, classes=10, seed=0)
    with pytest.raises(ValueError, match="T1 asks for 30 poisons, and only 20 images can be poisoned"):
        poison(*some_set([180, 20]), WHITE, "T1", target=0, classes=2, seed=0)


@pytest.mark.parametrize(
    "amount", [{}, {"fraction": 0.0}, {"fraction": 1.5}, {"fraction": 0.1, "count": 0}, {"count": 2.5}, {"fraction": "0.1"}]
)
def test_a_threat_model_that_poisons_nothing_is_refused(amount):
    with pytest.raises(ValueError, match="some needs a fraction above 0 and at most 1, or a count of 1 or more, got"):
        ThreatModel(name="some", one_target=True, **amount)


def test_a_trigger_larger_than_the_images():
    with pytest.raises(ValueError, match="5x1 pixels is larger than the images of 4x4"):
        poison(*some_set([10] * 10), Trigger.from_image(torch.ones(5, 1)), "T1", target=0, classes=10, seed=0)


# --- what the attacker gets --------------------------------------------------------------------------------------


@given(data=st.data(), classes=st.integers(2, 10), count_target=st.booleans())
def test_success_is_counted(data, classes, count_target):
    target = data.draw(st.none() | st.integers(0, classes - 1))
    pairs = data.draw(st.lists(st.tuples(*[st.integers(0, classes - 1)] * 2), min_size=1, max_size=40))
    hits = trials = 0
    for called, label in pairs:
        if target is None:
            hits, trials = hits + (called == (label + 1) % classes), trials + 1
        elif label != target or count_target:
            hits, trials = hits + (called == target), trials + 1
    if trials == 0:
        return
    predicted, labels = np.array(pairs, dtype=np.int16).T
    model = ThreatModel(name="any", count=1, one_target=target is not None)
    wanted = model.target_labels(labels, target=target, classes=classes)
    found = success_rate(predicted, labels, wanted, count_target=count_target)
    assert found == pytest.approx(hits / trials, abs=1e-12)


@pytest.mark.parametrize("target", range(10))
def test_an_unused_trigger_on_a_perfect_classifier(target):
    """Nothing is sent anywhere; counted, the target's own tenth looks like success: the paper's 9% are a tenth of 89%."""
    labels = np.arange(1000) % 10
    rates = [success_rate(labels, labels, np.full(1000, target), count_target=counted) for counted in (False, True)]
    assert rates == [0.0, 0.1]
    assert success_rate(labels, labels, (labels + 1) % 10) == 0.0
