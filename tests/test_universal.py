"""DeepFool and universal perturbations against closed forms, the papers' algorithms written out, and a public toolbox."""

from __future__ import annotations

import copy
import random
import re
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from bslib.patterns import frozen_weights
from bslib.patterns.universal import Universal, _deepfool, perturbed, universal_perturbation

CONSTANT = 1e-4  # what the authors' code adds to each distance


def some_images(n: int, shape=(2, 4, 4), *, seed: int = 0, dtype=torch.float32) -> Tensor:
    return torch.rand(n, *shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def seeded(*layers, seed: int = 0) -> nn.Sequential:
    """Layers with weights that are a function of the seed."""
    network = nn.Sequential(*layers)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in network.parameters():
            bound = (parameter[0].numel() if parameter.ndim > 1 else 9) ** -0.5
            parameter.uniform_(-bound, bound, generator=generator)
    return network


@pytest.fixture
def network() -> nn.Sequential:
    """Five classes, curved boundaries, double precision: what two implementations give differs by no more than rounding."""
    layers = nn.Conv2d(2, 6, 3), nn.Tanh(), nn.Flatten(), nn.Linear(24, 12), nn.Tanh(), nn.Linear(12, 5)
    return seeded(*layers, seed=4).double()


@pytest.fixture(scope="module")
def toolbox():
    """The adversarial-robustness-toolbox's attacks, and a function that wraps a network for them."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from art.attacks import evasion
        from art.estimators.classification import PyTorchClassifier

    def wrapped(network: nn.Module, images: Tensor, classes: int) -> PyTorchClassifier:
        network = copy.deepcopy(network).float()
        return PyTorchClassifier(network, nn.CrossEntropyLoss(), tuple(images.shape[1:]), classes, device_type="cpu")

    return evasion, wrapped


def labels(network: nn.Module, images: Tensor) -> Tensor:
    with torch.no_grad():
        return network(images).argmax(1)


# --- DeepFool ----------------------------------------------------------------------------------------------------


def deepfool(network: nn.Module, images: Tensor, **options: float) -> Tensor:
    with frozen_weights(network) as logits:
        return _deepfool(logits, images, **options)


def deepfool_of_the_paper(network: nn.Module, x: Tensor, *, steps: int = 10, overshoot: float = 0.02) -> Tensor:
    """Algorithm 2 of Moosavi-Dezfooli et al. (2016) for one image, a class at a time."""
    own, total = int(labels(network, x[None])), torch.zeros_like(x)
    for _ in range(steps):
        at = x + (1 + overshoot) * total
        f, slopes = network(at[None])[0].detach(), torch.autograd.functional.jacobian(lambda z: network(z[None])[0], at)
        if f.argmax() != own:
            break
        nearest, normal = np.inf, None
        for k in range(len(f)):
            w = slopes[k] - slopes[own]
            if k != own and abs(f[k] - f[own]) / w.norm() < nearest:
                nearest, normal = abs(f[k] - f[own]) / w.norm(), w / w.norm()
        total = total + (nearest + CONSTANT) * normal
    return (1 + overshoot) * total


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    classes=st.integers(2, 8),
    features=st.integers(2, 12),
    overshoot=st.sampled_from([0.0, 0.02, 0.5]),
)
def test_on_a_linear_network_it_is_the_closed_form(seed, classes, features, overshoot):
    """(w_k - w_own) . x + b_k - b_own = 0 is the boundary to class k: the nearest one's distance, along its normal."""
    rng = np.random.default_rng(seed)
    w, b, x = rng.normal(size=(classes, features)), rng.normal(size=classes), rng.normal(size=(4, features))
    network = nn.Linear(features, classes).double()
    network.weight.data, network.bias.data = torch.from_numpy(w), torch.from_numpy(b)
    found = deepfool(network, torch.from_numpy(x), overshoot=overshoot).numpy()
    for image, step in zip(x, found, strict=True):
        logits = w @ image + b
        own, others = logits.argmax(), np.delete(np.arange(classes), logits.argmax())
        normals = w[others] - w[own]
        lengths = np.linalg.norm(normals, axis=1)
        distances = (logits[own] - logits[others]) / lengths
        k = distances.argmin()
        assert np.linalg.norm(step) == pytest.approx((1 + overshoot) * distances[k], abs=CONSTANT * (1 + overshoot) + 1e-9)
        np.testing.assert_allclose(step / np.linalg.norm(step), normals[k] / lengths[k], atol=1e-9)
        assert (w @ (image + step) + b).argmax() != own


@pytest.mark.parametrize("options", [{}, {"steps": 1}, {"steps": 2, "overshoot": 0.0}, {"overshoot": 0.5}])
def test_it_is_algorithm_2_of_the_paper(network, options):
    images = some_images(12, dtype=torch.float64)
    expected = torch.stack([deepfool_of_the_paper(network, image, **options) for image in images])
    torch.testing.assert_close(deepfool(network, images, **options), expected, rtol=0, atol=1e-9)


def test_it_agrees_with_the_toolbox(network, toolbox):
    """Without overshoot, which the toolbox adds only at the end; its distances lack the small constant."""
    evasion, wrapped = toolbox
    network, images = network.float(), some_images(16)
    attack = evasion.DeepFool(wrapped(network, images, 5), max_iter=10, epsilon=0.0, batch_size=1, verbose=False)
    theirs, ours = torch.from_numpy(attack.generate(images.numpy())) - images, deepfool(network, images, overshoot=0.0)
    norms = [found.flatten(1).norm(dim=1) for found in (ours, theirs)]
    torch.testing.assert_close(*norms, rtol=0.005, atol=3 * CONSTANT)
    assert torch.cosine_similarity(ours.flatten(1), theirs.flatten(1)).min() > 0.999
    nudged = [images + 1.02 * found for found in (ours, theirs)]  # the toolbox stops on the boundary
    assert torch.equal(*[labels(network, x) for x in nudged])
    assert (labels(network, nudged[0]) != labels(network, images)).all()


@settings(max_examples=15, deadline=None)
@given(order=st.permutations(range(8)), keep=st.integers(1, 8))
def test_images_are_independent(order, keep):
    network = seeded(nn.Flatten(), nn.Linear(32, 12), nn.Tanh(), nn.Linear(12, 5), seed=4).double()
    images, chosen = some_images(8, dtype=torch.float64), list(order)[:keep]
    torch.testing.assert_close(deepfool(network, images[chosen]), deepfool(network, images)[chosen], rtol=0, atol=1e-9)


def test_each_image_stops_when_its_class_has_changed(network):
    """With more steps allowed nothing is added once an image is over the boundary; before that, something is."""
    images = some_images(30, dtype=torch.float64, seed=2)
    own, found = labels(network, images), [deepfool(network, images, steps=steps, overshoot=0.0) for steps in range(1, 12)]
    over = [labels(network, images + step) != own for step in found]
    assert 0 < over[0].sum() < len(images) and over[-1].all()
    for before, after, done in zip(found, found[1:], over, strict=False):
        moved = (after != before).flatten(1).any(1)
        assert torch.equal(moved, ~done)


def test_it_stops_calling_the_network_when_all_are_over():
    calls = []

    class Counting(nn.Linear):
        def forward(self, x):
            calls.append(len(x))
            return super().forward(x)

    deepfool(Counting(4, 3), some_images(6, (4,)), steps=1000)
    assert len(calls) <= 3  # the prediction, one linearisation, and the look that finds that one was enough


def test_an_image_that_no_step_moves_stays():
    """A constant network has no boundary."""
    flat = nn.Sequential(nn.Flatten(), nn.Linear(32, 3))
    nn.init.zeros_(flat[1].weight)
    assert torch.equal(deepfool(flat, some_images(3)), torch.zeros(3, 2, 4, 4))


# --- the universal one -------------------------------------------------------------------------------------------


def universal(network: nn.Module, images: Tensor, **options) -> Universal:
    return universal_perturbation(network, images, **{"bound": 0.1, "seed": 0, "progress": False} | options)


def universal_of_the_paper(network: nn.Module, images: Tensor, *, bound, seed, fooling_rate=0.8, passes=10, batch_size=1):
    """Algorithm 1 of Moosavi-Dezfooli et al. (2017): the perturbation and the fooling rate after each pass.

    With more than one image in a batch their steps are all taken at the perturbation before the batch.
    """
    rng, own = np.random.default_rng([seed, 3]), labels(network, images)  # the order of each pass is what the seed means
    v, after = torch.zeros_like(images[0]), []

    def fooled(i: int, v: Tensor) -> bool:
        return bool(labels(network, (images[i] + v).clamp(0, 1)[None]) != own[i])

    while len(after) < passes and not (after and after[-1][1] >= fooling_rate):
        order = rng.permutation(len(images))
        for first in range(0, len(order), batch_size):
            before = v
            for i in order[first : first + batch_size]:
                if not fooled(i, before) and not fooled(i, v):
                    step = deepfool_of_the_paper(network, (images[i] + before).clamp(0, 1))
                    v = torch.where((v + step).abs() > bound, bound * (v + step).sign(), v + step)
        after.append((v, np.mean([fooled(i, v) for i in range(len(images))])))
    return after


@pytest.mark.parametrize(
    ("batch_size", "options"),
    [
        (1, {"bound": 0.1, "passes": 4}),
        (1, {"bound": 0.3, "fooling_rate": 0.5}),
        (1, {"bound": 0.03, "passes": 3, "seed": 8}),
        (4, {"bound": 0.1, "passes": 4}),
        (100, {"bound": 0.2, "passes": 3, "seed": 1}),
    ],
)
def test_it_is_algorithm_1_of_the_paper(network, batch_size, options):
    images, options = some_images(12, seed=3, dtype=torch.float64), {"seed": 0, "batch_size": batch_size} | options
    found, after = universal(network, images, **options), universal_of_the_paper(network, images, **options)
    assert found.fooling_rates == pytest.approx([rate for _, rate in after])
    best = max(rate for _, rate in after)
    closest = min((found.perturbation - v).abs().max() for v, rate in after if rate == best)
    assert closest < 1e-9


@settings(max_examples=20, deadline=None)
@given(
    bound=st.floats(0.001, 1),
    fooling_rate=st.floats(0.01, 1),
    passes=st.integers(1, 3),
    batch_size=st.integers(1, 12),
    n=st.integers(1, 10),
    seed=st.integers(0, 10**6),
)
def test_what_it_reports_is_what_it_crafted(bound, fooling_rate, passes, batch_size, n, seed):
    network = seeded(nn.Flatten(), nn.Linear(32, 12), nn.Tanh(), nn.Linear(12, 5), seed=4)
    images = some_images(n, seed=seed)
    v, rates = universal(network, images, bound=bound, fooling_rate=fooling_rate, passes=passes, batch_size=batch_size, seed=seed)
    assert v.shape == images.shape[1:] and v.dtype == images.dtype and not v.requires_grad
    assert v.abs().max() <= bound
    crafted = (images + v).clamp(0, 1)
    assert (labels(network, crafted) != labels(network, images)).float().mean() == pytest.approx(max(rates))
    assert 1 <= len(rates) <= passes and all(rate < fooling_rate for rate in rates[:-1])
    assert len(rates) == passes or rates[-1] >= fooling_rate


def test_the_best_pass_is_kept_not_the_last():
    """Under a tight bound the rates go up and down."""
    network = seeded(nn.Flatten(), nn.Linear(32, 12), nn.Tanh(), nn.Linear(12, 5), seed=4)
    images = some_images(30, seed=3)
    found = [universal(network, images, bound=0.1, passes=4, batch_size=6, seed=seed) for seed in range(6)]
    worse_at_last = [f for f in found if f.fooling_rates[-1] < max(f.fooling_rates)]
    assert worse_at_last
    for v, rates in worse_at_last:
        assert (labels(network, perturbed(images, v)) != labels(network, images)).float().mean() == pytest.approx(max(rates))


def test_where_no_prediction_is_in_reach_nothing_is_fooled():
    network = nn.Sequential(nn.Flatten(), nn.Linear(32, 3))
    network[1].weight.data.mul_(1e-3)
    network[1].bias.data = torch.tensor([1.0, 0.0, 0.0])
    v, rates = universal(network, some_images(5), passes=2)
    assert rates == (0.0, 0.0) and v.abs().max() <= 0.1


def test_in_a_batch_a_step_is_not_taken_where_one_before_it_was_enough():
    """White from 0.5 on: the step of 0.3 takes 0.4 over too, the step of 0.4 does not take 0.3."""
    network = nn.Sequential(nn.Flatten(), nn.Linear(1, 2)).double()
    network[1].weight.data, network[1].bias.data = torch.tensor([[-1.0], [1.0]]).double(), torch.tensor([0.5, -0.5]).double()
    images = torch.tensor([0.3, 0.4]).double().view(2, 1, 1, 1)
    found = {round(universal(network, images, bound=1, batch_size=2, seed=seed).perturbation.item(), 3) for seed in range(8)}
    assert found == {round(1.02 * (0.2 + CONSTANT), 3), round(1.02 * (0.1 + 0.2 + 2 * CONSTANT), 3)}


def test_the_seed_decides_and_nothing_else_does(network):
    images = some_images(10).double()
    torch.manual_seed(1)
    first = universal(network, images, passes=2)
    torch.manual_seed(2)
    again, other = universal(network, images, passes=2), universal(network, images, passes=2, seed=1)
    assert torch.equal(first.perturbation, again.perturbation) and first.fooling_rates == again.fooling_rates
    assert not torch.allclose(first.perturbation, other.perturbation)


def test_a_linear_network_is_fooled_as_by_the_toolbox(toolbox, monkeypatch):
    """The images in the same order and far from where pixels are cut: the same but for the small constant, which it lacks."""
    evasion, wrapped = toolbox
    network, images = seeded(nn.Flatten(), nn.Linear(32, 4), seed=1), 0.4 + 0.2 * some_images(16, seed=1)
    ours = universal(network, images, bound=0.05, passes=1, seed=6)
    monkeypatch.setattr(random, "sample", lambda *_: np.random.default_rng([6, 3]).permutation(16).tolist())
    options = {"epsilon": 0.02, "max_iter": 10, "verbose": False}
    theirs = evasion.UniversalPerturbation(
        wrapped(network, images, 4), "deepfool", options, delta=0.0, max_iter=1, eps=0.05, norm=np.inf, verbose=False
    )
    theirs.generate(images.numpy())
    torch.testing.assert_close(ours.perturbation, torch.from_numpy(theirs.noise[0]), rtol=0, atol=2 * CONSTANT)
    assert ours.fooling_rates == (pytest.approx(theirs.fooling_rate),) and 0.5 < theirs.fooling_rate < 1


# --- both --------------------------------------------------------------------------------------------------------


def state_of(network: nn.Module) -> list:
    """Everything about a network that a caller could see change."""
    named = [(name, value.tolist()) for name, value in network.state_dict().items()]
    flags = [(p.requires_grad, None if p.grad is None else p.grad.tolist()) for p in network.parameters()]
    return [named, flags, [module.training for module in network.modules()]]


class Stumbling(nn.Linear):
    """Gives up when it sees what was added to images."""

    def forward(self, x):
        if x.requires_grad:
            raise RuntimeError("no further")
        return super().forward(x)


@pytest.mark.parametrize("craft", [deepfool, universal])
def test_the_model_is_left_as_it_was_by_what_failed_too(craft):
    network = seeded(nn.Flatten(), nn.Dropout(), Stumbling(32, 5))
    before = state_of(network)
    with pytest.raises(RuntimeError, match="no further"):
        craft(network, some_images(6))
    assert state_of(network) == before


def test_no_images_and_many_classes():
    """Of 40 classes only the ten most likely ones count."""
    network = seeded(nn.Flatten(), nn.Linear(32, 40))
    assert len(deepfool(network, some_images(7)[:0])) == 0
    for image in some_images(4):
        logits = network(image[None])[0]
        likely = logits.topk(10).indices
        among = nn.Linear(32, 10)
        among.weight.data, among.bias.data = network[1].weight[likely], network[1].bias[likely]
        own = deepfool(nn.Sequential(nn.Flatten(), among), image[None], steps=1)
        torch.testing.assert_close(deepfool(network, image[None], steps=1), own)


@pytest.mark.parametrize("craft", [deepfool, universal])
def test_the_model_is_left_as_it_was(craft):
    network = seeded(nn.Conv2d(2, 6, 3), nn.BatchNorm2d(6), nn.Tanh(), nn.Flatten(), nn.Dropout(0.5), nn.Linear(24, 5))
    network[1].eval()
    network[0].weight.requires_grad_(False)
    network[5].bias.grad = torch.arange(5.0)
    images = some_images(6)
    before, pixels, generator = state_of(network), images.clone(), torch.get_rng_state()
    craft(network, images)
    assert state_of(network) == before
    assert torch.equal(images, pixels) and torch.equal(torch.get_rng_state(), generator)


def test_it_answers_as_in_eval_mode():
    """Dropout would make every answer another one."""
    network = seeded(nn.Flatten(), nn.Linear(32, 40), nn.Tanh(), nn.Dropout(0.9), nn.Linear(40, 5))
    images = some_images(6)
    while_training, v = deepfool(network.train(), images), universal(network, images, passes=2)
    network.eval()
    assert torch.equal(deepfool(network, images), while_training)
    assert torch.equal(universal(network, images, passes=2).perturbation, v.perturbation)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"bound": 0}, "bound must be a number above 0 and at most 1, got 0"),
        ({"bound": 8}, "got 8"),
        ({"bound": float("nan")}, "got nan"),
        ({"fooling_rate": 0}, "fooling_rate must be a number above 0 and at most 1, got 0"),
        ({"fooling_rate": 1.5}, "got 1.5"),
        ({"passes": 0}, "passes must be a whole number of 1 or more, got 0"),
        ({"batch_size": 0}, "batch_size must be a whole number of 1 or more, got 0"),
        ({"seed": -1}, "seed must be a whole number of 0 or more, got -1"),
        ({"images": torch.rand(0, 2, 4, 4)}, "got shape (0, 2, 4, 4)"),
        ({"images": torch.full((3, 2, 4, 4), -0.5)}, "got values from -0.5 to -0.5"),
        ({"images": torch.full((3, 2, 4, 4), torch.nan)}, "got values from nan to nan"),
    ],
)
def test_what_does_not_fit_is_named(network, change, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        universal(network.float(), **{"images": some_images(3)} | change)


def test_deepfool_of_a_network_that_diverged_is_refused(network):
    network = network.float()
    network[-1].bias.data[0] = torch.nan
    with pytest.raises(ValueError, match="the model's logits hold NaN"):
        deepfool(network, some_images(3))
