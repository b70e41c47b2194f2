"""Neural Cleanse against the authors' loop, written out here step by step, and on networks whose smallest patch is known."""

from __future__ import annotations

import math
import re

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torch import Tensor, nn
from torch.nn import functional

from bslib.patterns import neural_cleanse
from bslib.patterns.neural_cleanse import Candidates, Schedule, patched, reverse_triggers
from bslib.statistics import anomaly_index

# --- the schedule ------------------------------------------------------------------------------------------------


class AuthorsLoop:
    """What the authors' code does at the end of each step, in its order and by its names; multiplier 2, patience 5."""

    def __init__(self) -> None:
        self.cost, self.reg_best, self.stopped = 0.0, math.inf, False
        self.early_stop_reg_best, self.early_stop_counter = math.inf, 0
        self.cost_set_counter = self.cost_up_counter = self.cost_down_counter = 0
        self.cost_up_flag = self.cost_down_flag = False

    def step(self, accuracy: float, reg: float) -> bool:
        """Whether the mask of this step is kept."""
        better = accuracy >= 0.99 and reg < self.reg_best
        if better:
            self.reg_best = reg

        if self.reg_best < math.inf:
            if self.reg_best >= self.early_stop_reg_best:
                self.early_stop_counter += 1
            else:
                self.early_stop_counter = 0
        self.early_stop_reg_best = min(self.reg_best, self.early_stop_reg_best)
        if self.cost_down_flag and self.cost_up_flag and self.early_stop_counter >= 25:
            self.stopped = True
            return better

        if self.cost == 0 and accuracy >= 0.99:
            self.cost_set_counter += 1
            if self.cost_set_counter >= 5:
                self.cost = 1e-3
                self.cost_up_counter = self.cost_down_counter = 0
                self.cost_up_flag = self.cost_down_flag = False
        else:
            self.cost_set_counter = 0

        if accuracy >= 0.99:
            self.cost_up_counter += 1
            self.cost_down_counter = 0
        else:
            self.cost_up_counter = 0
            self.cost_down_counter += 1
        if self.cost_up_counter >= 5:
            self.cost_up_counter = 0
            self.cost *= 2
            self.cost_up_flag = True
        elif self.cost_down_counter >= 5:
            self.cost_down_counter = 0
            self.cost /= 2**1.5
            self.cost_down_flag = True
        return better


@st.composite
def courses(draw) -> list[tuple[float, float]]:
    """Success and norm step by step: stretches of success and failure, norms that shrink, repeat and grow."""
    stretches = draw(st.lists(st.tuples(st.booleans(), st.integers(1, 14)), min_size=1, max_size=12))
    good = np.repeat([g for g, _ in stretches], [length for _, length in stretches])
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    success = np.where(good, rng.choice([0.99, 0.995, 1.0], len(good)), rng.choice([0.0, 0.5, 0.9899], len(good)))
    norms = np.maximum.accumulate(rng.integers(1, 60, len(good))[::-1])[::-1] + rng.integers(0, 3, len(good))
    return list(zip(success.tolist(), norms.astype(float).tolist(), strict=True))


@settings(max_examples=300, deadline=None)
@given(course=courses())
def test_the_schedule_is_the_authors_loop(course):
    schedule, authors = Schedule(), AuthorsLoop()
    for success, norm in course:
        assert schedule.update(success, norm) == authors.step(success, norm)
        assert (schedule.weight, schedule.best, schedule.done) == (authors.cost, authors.reg_best, authors.stopped)
        if authors.stopped:
            break


def test_lambda_by_hand():
    """Set after 5 successes; the one that set it counts towards the next 5."""
    schedule, weights = Schedule(), []
    for success in [1.0] * 10 + [0.0] * 10 + [1.0] * 5:
        schedule.update(success, 9.0)
        weights.append(schedule.weight)
    assert weights == pytest.approx([0] * 4 + [1e-3] * 4 + [2e-3] * 6 + [2e-3 / 2**1.5] * 5 + [2e-3 / 8] * 5 + [4e-3 / 8])


def test_it_stops_25_steps_after_the_best_mask_once_lambda_has_moved_both_ways():
    schedule = Schedule()
    for success in [1.0] * 9 + [0.0] * 5 + [1.0] * 12:
        assert not schedule.done
        schedule.update(success, 9.0)
    assert schedule.done


# --- the anomaly index -------------------------------------------------------------------------------------------

REFERENCE = [10, 60, 62, 65, 70, 72, 75, 80, 85, 90]


def test_the_reference_value():
    assert anomaly_index(REFERENCE) == pytest.approx(4.571548, abs=5e-7)
    assert anomaly_index(torch.tensor(REFERENCE).float()) == pytest.approx(4.571548, abs=5e-7)


@given(norms=st.lists(st.integers(0, 500), min_size=3, max_size=15))
def test_the_index_is_scipys_deviation(norms):
    """SciPy's constant is 1.4826022..., the authors' 1.4826."""
    deviation = stats.median_abs_deviation(norms, scale="normal")
    below = sorted(norms)[(len(norms) - 1) // 2] / 2 + sorted(norms)[len(norms) // 2] / 2 - min(norms)
    if deviation > 0:
        assert anomaly_index(norms) == pytest.approx(below / deviation, rel=1e-5)
    else:
        assert anomaly_index(norms) == (math.inf if below else 0)


def test_the_median_of_an_even_count_is_between_the_middle_two():
    """By hand: median 25, deviations 15, 5, 5, 15, their median 10; torch.median would say 20 and 10 / 14.826."""
    assert anomaly_index([40, 10, 30, 20]) == pytest.approx(15 / (1.4826 * 10))


def test_only_what_is_small_is_suspicious():
    assert anomaly_index([7.5] * 6) == 0
    assert anomaly_index([50, 51, 52, 53, 500]) == pytest.approx(2 / 1.4826)
    assert anomaly_index([1, 50, 50, 50]) == math.inf
    assert anomaly_index([5, *REFERENCE], [math.nan, *[1.0] * 10]) == pytest.approx(4.571548, abs=5e-7)
    assert anomaly_index([1, 2, 50, 60], [1.0, 0.99, math.nan, math.nan]) == 0
    with pytest.raises(ValueError, match="at least three classes, got 2"):
        anomaly_index([3.0, 40.0])


# --- the triggers ------------------------------------------------------------------------------------------------


def some_images(n: int, shape=(1, 4, 4), *, seed: int = 0, brightest: float = 1.0) -> Tensor:
    return brightest * torch.rand(n, *shape, generator=torch.Generator().manual_seed(seed))


def reversed_of(network: nn.Module, images: Tensor, **options) -> Candidates:
    sizes = {"classes": 3, "samples": 16, "batch_size": 8, "seed": 0}
    return reverse_triggers(network, images, progress=False, **sizes | options)


def one_pixel_a_class(places: list[int], pixels: int = 16, strength: float = 30.0) -> nn.Module:
    """Class k is the brightness of the pixel ``places[k]``."""
    network = nn.Sequential(nn.Flatten(), nn.Linear(pixels, len(places), bias=False))
    network[1].weight.data = strength * functional.one_hot(torch.tensor(places), pixels).float()
    return network


@pytest.fixture
def network() -> nn.Module:
    """Two channels, three classes, and layers that behave otherwise in training mode."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        layers = [nn.Conv2d(2, 6, 3), nn.BatchNorm2d(6), nn.Tanh(), nn.Flatten(), nn.Dropout(0.5), nn.Linear(24, 3)]
    layers[-1].weight.data *= 3
    return nn.Sequential(*layers)


def test_it_finds_the_pixel_that_decides_in_lower_precision_too():
    """The passes through the network are rounded, the masks are not."""
    places, images = [5, 10, 3], some_images(64, brightest=0.8)
    network = one_pixel_a_class(places)
    exact, rounded = (
        reversed_of(network, images, samples=64, batch_size=32, steps=250, dtype=dtype)
        for dtype in (torch.float32, torch.bfloat16)
    )
    assert not torch.equal(rounded.masks, exact.masks) and rounded.norms == pytest.approx(exact.norms, abs=0.2)
    for found in (exact, rounded):
        assert (found.success >= 0.99).all() and found.masks.dtype == found.patterns.dtype == torch.float32
        assert found.masks.flatten(1).argmax(1).tolist() == places
        assert found.patterns.flatten(1)[range(3), places].min() > 0.9
        assert found.norms.max() < 1.2  # of 16; one white pixel is 1
        for k in range(3):
            hit = network(patched(images, found.masks[k], found.patterns[k])).argmax(1) == k
            assert hit.float().mean() >= 0.95


def test_the_class_of_a_trigger_stands_out():
    """Each of five classes needs a whole quarter or so of the image; class 2 is also what a white corner says."""
    weight = torch.zeros(5, 36)
    for k, part in enumerate(torch.arange(35).split(7)):
        weight[k, part] = 4
    weight[2, 35] = 60
    network = nn.Sequential(nn.Flatten(), nn.Linear(36, 5, bias=False))
    network[1].weight.data = weight
    images = some_images(64, (1, 6, 6), seed=3)
    images[..., -1, -1] = 0
    found = reversed_of(network, images, classes=5, samples=64, batch_size=32, steps=200)
    assert (found.success >= 0.99).all()
    assert found.norms.argmin() == 2 and found.masks[2].argmax() == 35
    assert anomaly_index(found.norms) > 2


def bounded(theta: Tensor) -> Tensor:
    return torch.tanh(theta) / (2 - 1e-7) + 0.5


def starts_and_batches(images: Tensor, classes: int, *, samples: int, batch_size: int, steps: int, seed: int):
    """What a seed means: masks, then patterns, uniform; then one order of the images after the other."""
    rng = np.random.default_rng([seed, 4])
    shapes = ((classes, c, *images.shape[2:]) for c in (1, images.shape[1]))
    starts = [torch.arctanh((torch.from_numpy(rng.random(shape, dtype=np.float32)) - 0.5) * (2 - 1e-7)) for shape in shapes]
    updates = samples // batch_size
    orders = [rng.permutation(len(images)) for _ in range(math.ceil(steps * updates * batch_size / len(images)) + 1)]
    batches = np.concatenate(orders)[: steps * updates * batch_size].reshape(steps, updates, batch_size)
    return starts, batches


def one_class_alone(network: nn.Module, images: Tensor, k: int, start: list[Tensor], batches: np.ndarray):
    """The authors' optimisation of class k, one class and one batch at a time: mask, pattern, success and steps."""
    theta, phi = (t[k].clone().requires_grad_() for t in start)
    optimizer, loop = torch.optim.Adam([theta, phi], lr=0.1, betas=(0.5, 0.9)), AuthorsLoop()
    kept = None
    for step, updates in enumerate(batches, start=1):
        accuracies, regs = [], []
        for chosen in updates:
            mask, wanted = bounded(theta), torch.full((len(chosen),), k)
            logits = network((1 - mask) * images[chosen] + mask * bounded(phi))
            loss = functional.cross_entropy(logits, wanted) + loop.cost * mask.abs().sum()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            accuracies.append((logits.argmax(1) == wanted).float().mean().item())
            regs.append(mask.abs().sum().item())
        success = float(np.mean(accuracies))
        if loop.step(success, float(np.mean(regs))):
            kept = bounded(theta).detach(), bounded(phi).detach(), success, step
        if loop.stopped:
            break
    if kept is None:
        return bounded(theta).detach(), bounded(phi).detach(), math.nan, step
    return *kept[:3], step


@pytest.mark.parametrize(("samples", "batch_size"), [(24, 8), (22, 8), (6, 6)])
def test_classes_side_by_side_are_each_class_alone(network, samples, batch_size):
    """Twelve steps: long enough for lambda to be set and moved."""
    images, options = some_images(20, (2, 4, 4), seed=5), {"samples": samples, "batch_size": batch_size}
    found = reversed_of(network, images, steps=12, seed=7, **options)
    starts, batches = starts_and_batches(images, 3, steps=12, seed=7, **options)
    network.eval()
    for k in range(3):
        mask, pattern, success, steps = one_class_alone(network, images, k, starts, batches)
        torch.testing.assert_close(found.masks[k], mask, rtol=0, atol=1e-4)
        torch.testing.assert_close(found.patterns[k], pattern, rtol=0, atol=1e-4)
        assert found.success[k].item() == pytest.approx(success, nan_ok=True) and found.steps[k] == steps == 12


def test_a_class_that_stops_does_not_disturb_the_others():
    network, images = one_pixel_a_class([5, 10, 3], strength=15.0), some_images(16, brightest=0.8)
    sizes = {"samples": 16, "batch_size": 16, "steps": 200}
    found = reversed_of(network, images, **sizes)
    starts, batches = starts_and_batches(images, 3, seed=0, **sizes)
    assert len(set(found.steps.tolist())) == 3 and found.steps.max() < 200
    for k in range(3):
        mask, pattern, success, steps = one_class_alone(network, images, k, starts, batches)
        assert found.steps[k] == steps and found.success[k].item() == pytest.approx(success)
        torch.testing.assert_close(found.masks[k], mask, rtol=0, atol=1e-3)
        torch.testing.assert_close(found.patterns[k] * mask, pattern * mask, rtol=0, atol=1e-3)


def test_a_class_that_cannot_be_reached_has_no_success():
    """Nothing but class 0: the others keep their last mask."""
    network, images = one_pixel_a_class([5, 10, 3], strength=1.0), some_images(16)
    network[1].bias = nn.Parameter(torch.tensor([100.0, 0.0, 0.0]))
    found = reversed_of(network, images, steps=8)
    assert found.success[0] == 1 and found.success[1:].isnan().all()
    assert found.steps.tolist() == [8, 8, 8]
    starts, batches = starts_and_batches(images, 3, samples=16, batch_size=8, steps=8, seed=0)
    for k in (1, 2):
        mask, pattern, _, _ = one_class_alone(network, images, k, starts, batches)
        torch.testing.assert_close(found.masks[k], mask, rtol=0, atol=1e-4)
        torch.testing.assert_close(found.patterns[k], pattern, rtol=0, atol=1e-4)


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10**6), steps=st.integers(1, 6), channels=st.sampled_from([1, 3]))
def test_masks_and_patterns_are_images(seed, steps, channels):
    images = some_images(8, (channels, 3, 4), seed=seed)
    network = one_pixel_a_class([0, 4, 9, 11], pixels=12 * channels)
    found = reversed_of(network, images, classes=4, steps=steps, seed=seed)
    assert found.masks.shape == (4, 1, 3, 4) and found.patterns.shape == (4, channels, 3, 4)
    assert found.success.shape == found.steps.shape == (4,)
    for values in (found.masks, found.patterns):
        assert values.min() >= 0 and values.max() <= 1
    np.testing.assert_allclose(found.norms.numpy(), np.abs(found.masks.numpy()).sum((1, 2, 3)), rtol=1e-4, atol=1e-5)
    assert (found.success.isnan() | (found.success >= 0.99)).all()


def test_the_seed_decides(network):
    images = some_images(16, (2, 4, 4))
    first, again, other = (reversed_of(network, images, steps=3, seed=seed) for seed in (0, 0, 1))
    assert all(torch.equal(a, b) for a, b in zip(first[:2], again[:2], strict=True))
    assert not torch.isclose(first.masks, other.masks).any(dim=(1, 2, 3)).all()
    assert not torch.allclose(first.patterns, other.patterns)


def state_of(network: nn.Module) -> list:
    """Everything about a network that a caller could see change."""
    named = [(name, value.tolist()) for name, value in network.state_dict().items()]
    flags = [(p.requires_grad, None if p.grad is None else p.grad.tolist()) for p in network.parameters()]
    return [named, flags, [module.training for module in network.modules()]]


def test_the_model_is_left_as_it_was(network):
    network[1].eval()
    network[0].weight.requires_grad_(False)
    network[5].bias.grad = torch.tensor([1.0, 2.0, 3.0])
    images = some_images(16, (2, 4, 4))
    before, pixels, generator = state_of(network), images.clone(), torch.get_rng_state()
    reversed_of(network, images, steps=3)
    assert state_of(network) == before
    assert torch.equal(images, pixels) and torch.equal(torch.get_rng_state(), generator)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"samples": 0}, "samples must be a whole number of 1 or more, got 0"),
        ({"batch_size": 0}, "batch_size must be a whole number of 1 or more, got 0"),
        ({"steps": 0}, "steps must be a whole number of 1 or more, got 0"),
        ({"images": torch.rand(0, 2, 4, 4)}, "got shape (0, 2, 4, 4)"),
        ({"images": torch.full((3, 2, 4, 4), 4.0)}, "got values from 4 to 4: divide by 255 first"),
        ({"classes": 0}, "classes must be a whole number of 1 or more, got 0"),
        ({"classes": 7}, "candidates for 7 classes"),
        ({"seed": -1}, "seed must be a whole number of 0 or more, got -1"),
    ],
)
def test_what_does_not_fit_is_named(network, change, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        reversed_of(network, **{"images": some_images(16, (2, 4, 4))} | change)


def test_a_network_that_diverged_has_no_candidates(network):
    network[5].weight.data[0, 0] = torch.nan
    with pytest.raises(ValueError, match="a mask became NaN"):
        reversed_of(network, some_images(16, (2, 4, 4)), steps=3)


class Viewing(nn.Linear):
    """Flattens as many networks do, which does not work in channels last."""

    def forward(self, x):
        return super().forward(x.view(len(x), -1))


def test_networks_that_need_the_contiguous_layout_get_it():
    images = some_images(8, (2, 3, 3))
    viewing, flattening = Viewing(18, 3), nn.Sequential(nn.Flatten(), nn.Linear(18, 3))
    flattening[1].load_state_dict(viewing.state_dict())
    for one, other in zip(reversed_of(viewing, images, steps=3), reversed_of(flattening, images, steps=3), strict=True):
        torch.testing.assert_close(one, other, equal_nan=True)


def test_the_mode_of_the_caller_does_not_matter(network):
    images = some_images(8, (2, 4, 4))
    plain = reversed_of(network, images, steps=2)
    with torch.inference_mode():
        inside = reversed_of(network, images, steps=2)
    assert torch.equal(plain.masks, inside.masks) and not inside.masks.is_inference()


# --- chunks ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("features", [1, 2 * 8 * 32])
def test_chunks_give_the_candidates_of_one_batch(network, monkeypatch, features):
    """One and two classes at a time, with a limit on the features of a batch."""
    images = some_images(20, (2, 4, 4), seed=5)
    together = reversed_of(network, images, steps=12)
    monkeypatch.setattr(neural_cleanse, "MOST_FEATURES", features)
    for one, other in zip(together, reversed_of(network, images, steps=12), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-4, equal_nan=True)


def test_a_batch_is_never_larger_than_the_limit_allows(network, monkeypatch):
    monkeypatch.setattr(neural_cleanse, "MOST_FEATURES", 2 * 8 * 32)
    seen = []
    network.register_forward_hook(lambda _, inputs, __: seen.append(inputs[0].numel()))
    reversed_of(network, some_images(20, (2, 4, 4)), steps=2)
    assert max(seen) == 2 * 8 * 32 and len(seen) == 1 + 8, "a trial, and two steps of two updates, for two classes and for one"


def test_chosen_targets_get_the_candidates_they_have_among_all(network):
    images = some_images(20, (2, 4, 4), seed=5)
    everyone, some = reversed_of(network, images, steps=12), reversed_of(network, images, steps=12, targets=[0, 2])
    for one, other in zip(everyone, some, strict=True):
        torch.testing.assert_close(one[[0, 2]], other, rtol=0, atol=1e-4, equal_nan=True)


@pytest.mark.parametrize("targets", [[], [3], [-1], [1, 0], [1, 1]])
def test_targets_that_are_no_classes_are_refused(network, targets):
    with pytest.raises(ValueError, match=re.escape(f"targets must be ascending classes from 0 to 2, got {targets}")):
        reversed_of(network, some_images(8, (2, 4, 4)), targets=targets)
