"""STRIP's entropy and the variance of logit shifts, against NumPy and SciPy."""

from __future__ import annotations

import math
import re

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import special, stats
from torch import Tensor, nn

from bslib.detectors.logit_shift import logit_shift_variance
from bslib.detectors.strip import strip_entropy

CLASSES = 5


def some_images(n: int, *, seed: int, shape=(2, 4, 4)) -> Tensor:
    return torch.rand(n, *shape, generator=torch.Generator().manual_seed(seed))


def linear(weight: Tensor) -> nn.Module:
    """Logits from a (classes, pixels) weight, no bias."""
    network = nn.Sequential(nn.Flatten(), nn.Linear(weight.shape[1], len(weight), bias=False))
    network[1].weight.data = weight
    return network


@pytest.fixture
def network() -> nn.Module:
    """With layers that behave otherwise in training mode, and in it."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layers = [nn.Conv2d(2, 6, 3), nn.BatchNorm2d(6), nn.Tanh(), nn.Flatten(), nn.Dropout(0.5), nn.Linear(24, CLASSES)]
    layers[-1].weight.data *= 10  # otherwise every answer is undecided
    return nn.Sequential(*layers)


def logits_of(network: nn.Module, images: np.ndarray) -> np.ndarray:
    """The network's answers outside training, in double precision."""
    modes = [module.training for module in network.modules()]
    with torch.no_grad():
        logits = network.eval().double()(torch.from_numpy(images).double()).numpy()
    network.float()
    for module, training in zip(network.modules(), modes, strict=True):
        module.training = training
    return logits


def probabilities(network: nn.Module, image: Tensor, overlays: Tensor) -> np.ndarray:
    """(N, classes), with the overlays on one image."""
    return special.softmax(logits_of(network, np.clip(image.numpy() + overlays.numpy(), 0, 1)), axis=1)


# --- STRIP -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [1, 7, 1100])
def test_strip_is_scipys_entropy_over_the_classes(network, n):
    images, overlays = some_images(3, seed=1), some_images(n, seed=2)
    measured = strip_entropy(network, images, overlays)
    p = [probabilities(network, image, overlays) for image in images]
    assert measured.shape == (3,)
    np.testing.assert_allclose(measured.numpy(), [stats.entropy(q, axis=1).mean() for q in p], rtol=1e-4)
    over_the_overlays = [stats.entropy(q, axis=0).mean() for q in p]
    assert not np.isclose(measured.numpy(), over_the_overlays, rtol=0.05).any()


def test_strip_cuts_the_sum_to_what_a_pixel_can_hold():
    """A class for each of two pixels: without the cut, 0.9 + 0.9 against 1 would decide."""
    image, overlays = torch.tensor([[[[0.9, 0.5]]]]), torch.tensor([[[[0.9, 0.5]]]])
    assert strip_entropy(linear(100 * torch.eye(2)), image, overlays).item() == pytest.approx(math.log(2))


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6), scale=st.floats(0, 1000), n=st.integers(1, 9), classes=st.integers(2, 12))
def test_strip_lies_between_0_and_the_log_of_the_classes(seed, scale, n, classes):
    weight = scale * torch.randn(classes, 32, generator=torch.Generator().manual_seed(seed))
    entropies = strip_entropy(linear(weight), some_images(4, seed=seed), some_images(n, seed=seed + 1))
    assert entropies.isfinite().all()
    assert (entropies >= 0).all() and (entropies <= math.log(classes) + 1e-5).all()


def test_strip_at_its_bounds():
    images, overlays = some_images(2, seed=0), some_images(3, seed=1)
    torch.testing.assert_close(strip_entropy(linear(torch.zeros(7, 32)), images, overlays), torch.full((2,), math.log(7)))
    certain = torch.zeros(7, 32)
    certain[3] = 1e4
    assert torch.equal(strip_entropy(linear(certain), images, overlays), torch.zeros(2))
    with_impossible = nn.Sequential(linear(torch.zeros(7, 32)), nn.ConstantPad1d((0, 1), -torch.inf))
    torch.testing.assert_close(strip_entropy(with_impossible, images, overlays), torch.full((2,), math.log(7)))


def test_a_trigger_keeps_its_say_under_any_overlay():
    """A network that looks at the corner first: white there is always class 0."""
    weight = torch.randn(CLASSES, 32, generator=torch.Generator().manual_seed(3)) / 2
    weight[:, -1] = 0
    weight[0, -1] = 100
    images, overlays = some_images(8, seed=4), some_images(20, seed=5)
    images[..., -1, -1] = overlays[..., -1, -1] = 0
    triggered = images.clone()
    triggered[..., -1, -1] = 1
    with_trigger, without = (strip_entropy(linear(weight), x, overlays) for x in (triggered, images))
    assert (with_trigger < without).all()
    assert with_trigger.max() < 1e-6 and without.min() > 0.01


# --- the shift of logits -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [2, 9, 1001])
def test_logit_shift_variance_is_numpys(network, n):
    clean, patterned = some_images(n, seed=1), some_images(n, seed=2)
    shift = logits_of(network, patterned.numpy()) - logits_of(network, clean.numpy())
    measured = logit_shift_variance(network, clean, patterned)
    assert isinstance(measured, float)
    assert measured == pytest.approx(np.var(shift, axis=0).mean() / np.mean(shift**2), rel=1e-4) and 0 <= measured <= 1


def test_a_pattern_that_changes_no_logit_is_not_suspicious(network):
    images = some_images(9, seed=1)
    assert logit_shift_variance(network, images, images) == 1


def test_a_logit_that_stays_at_minus_infinity_does_not_shift(network):
    clean, patterned = some_images(9, seed=1), some_images(9, seed=2)
    masked = nn.Sequential(network, nn.ConstantPad1d((0, 1), -torch.inf))
    shift = np.pad(logits_of(network, patterned.numpy()) - logits_of(network, clean.numpy()), ((0, 0), (0, 1)))
    expected = np.var(shift, axis=0).mean() / np.mean(shift**2)
    assert logit_shift_variance(masked, clean, patterned) == pytest.approx(expected, rel=1e-4)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6), n=st.integers(2, 9))
def test_a_linear_network_is_moved_the_same_way_by_what_is_added(seed, n):
    weight = torch.randn(CLASSES, 32, generator=torch.Generator().manual_seed(seed))
    images, (pattern,) = some_images(n, seed=seed), some_images(1, seed=seed + 1)
    assert logit_shift_variance(linear(weight), images, images + pattern) < 1e-9
    stamped = images.clone()
    stamped[:, :, 0, 0] = 1  # overwriting moves the images differently
    assert logit_shift_variance(linear(weight), images, stamped) > 1e-6


# --- both --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("measure", [strip_entropy, logit_shift_variance])
def test_the_model_is_left_as_it_was(network, measure):
    network[1].eval()
    modes = [module.training for module in network.modules()]
    state = {name: value.clone() for name, value in network.state_dict().items()}
    generator = torch.get_rng_state()
    first, second = some_images(4, seed=0), some_images(4, seed=1)
    before = first.clone(), second.clone()
    measure(network, first, second)
    assert modes == [module.training for module in network.modules()]
    assert all(torch.equal(value, state[name]) for name, value in network.state_dict().items())
    assert all(parameter.grad is None and parameter.requires_grad for parameter in network.parameters())
    assert torch.equal(first, before[0]) and torch.equal(second, before[1])
    assert torch.equal(torch.get_rng_state(), generator)


@pytest.mark.parametrize(
    ("measure", "first", "second", "message"),
    [
        (strip_entropy, (3, 2, 4, 4), (0, 2, 4, 4), "overlays must be at least one image of shape (2, 4, 4), got (0, 2, 4, 4)"),
        (strip_entropy, (3, 2, 4, 4), (5, 1, 4, 4), "overlays must be at least one image of shape (2, 4, 4), got (5, 1, 4, 4)"),
        (strip_entropy, (3, 2, 4, 4), (2, 4, 4), "of shape (2, 4, 4), got (2, 4, 4)"),
        (logit_shift_variance, (1, 2, 4, 4), (1, 2, 4, 4), "at least two, got (1, 2, 4, 4) and (1, 2, 4, 4)"),
        (logit_shift_variance, (0, 2, 4, 4), (0, 2, 4, 4), "at least two, got (0, 2, 4, 4) and (0, 2, 4, 4)"),
        (logit_shift_variance, (3, 2, 4, 4), (4, 2, 4, 4), "got (3, 2, 4, 4) and (4, 2, 4, 4)"),
    ],
)
def test_what_does_not_fit_is_named(network, measure, first, second, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        measure(network, torch.rand(first), torch.rand(second))


@pytest.mark.parametrize("measure", [strip_entropy, logit_shift_variance])
def test_a_network_that_diverged_has_no_score(network, measure):
    network[-1].bias.data[0] = torch.nan
    with pytest.raises(ValueError, match="NaN"):
        measure(network, some_images(3, seed=0), some_images(3, seed=1))


def test_strip_refuses_pixels_from_0_to_255(network):
    """Their sums would all be white."""
    for scales in ((1, 255), (255, 1)):
        with pytest.raises(ValueError, match="divide by 255 first"):
            strip_entropy(network, *(scale * some_images(3, seed=0) for scale in scales))
