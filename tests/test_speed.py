"""The faster copy of a network gives the network's own logits but for rounding, and the guarantees of W hold on it."""

from __future__ import annotations

import copy
import re
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional

from bslib import loops, speed
from bslib.loops import (
    PooledConvolution,
    TrainablePooledConvolution,
    TrainableWinogradConvolution,
    WinogradConvolution,
    library_for,
)
from bslib.measure import class_counts
from bslib.networks import build
from bslib.speed import Careful, prepare, trainable

compiled = pytest.mark.skipif(not any(map(shutil.which, ("cc", "gcc", "clang"))), reason="no C compiler")


class Block(nn.Module):
    """Written as people write them: functions beside modules, a ReLU used twice, a residual, batch norms that have seen data."""

    def __init__(self):
        super().__init__()
        self.first, self.norm = nn.Conv2d(1, 32, 3, padding=1, bias=False), nn.BatchNorm2d(32)
        self.second, self.third, self.other = nn.Conv2d(32, 32, 3, padding=1), nn.Conv2d(32, 64, 3), nn.BatchNorm2d(64)
        self.relu, self.last = nn.ReLU(), nn.Linear(64 * 4, 5)

    def forward(self, x):
        x = functional.relu(functional.max_pool2d(self.norm(self.first(x)), 2))
        x = x + self.relu(self.second(x))
        x = functional.max_pool2d(self.relu(self.other(self.third(x))), 2)
        return self.last(torch.flatten(x, 1))


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    block = Block()
    with torch.no_grad():
        for _ in range(5):  # statistics other than 0 and 1
            block(torch.rand(32, 1, 12, 12) * 3)
        block.last.weight *= 5  # logits far apart, as a trained network's
    return block.eval()


@pytest.fixture(scope="module")
def images():
    return torch.rand(6, 1, 12, 12, generator=torch.Generator().manual_seed(1))


def counts(network, images, sigma=0.5, n=100, **options):
    return class_counts(network, images, sigma, n, seed=0, progress=False, **options)


def convolution(c, o, size, padding, bias, stride=1):
    torch.manual_seed(c + o + size)
    return nn.Conv2d(c, o, size, padding=padding, bias=bias, stride=stride)


@compiled
@torch.no_grad()
@pytest.mark.parametrize("clip", [False, True])
@pytest.mark.parametrize(
    ("c", "o", "size", "padding", "bias"), [(1, 32, 3, 0, True), (3, 64, 3, 1, False), (1, 32, 5, (2, 0), True)]
)
@pytest.mark.parametrize("shape", [(28, 28), (9, 12)])
def test_a_pooled_convolution_is_torchs_one_after_the_other(c, o, size, padding, bias, clip, shape):
    conv, x = convolution(c, o, size, padding, bias), torch.randn(3, c, *shape)
    assert PooledConvolution.fits(conv)
    expected = functional.max_pool2d(conv(x), 2)
    got = PooledConvolution(conv, library_for(x), clip=clip)(x)
    assert got.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(got, expected.relu() if clip else expected, rtol=1e-5, atol=1e-5)


@compiled
@torch.no_grad()
@settings(max_examples=25, deadline=None)
@given(
    c=st.sampled_from([32, 48, 64]), o=st.sampled_from([32, 96]), height=st.integers(3, 21), width=st.integers(3, 21),
    images=st.integers(1, 9), padding=st.integers(0, 2), stride=st.sampled_from([1, 2]), clip=st.booleans(),
    threads=st.sampled_from([1, 2]),
)  # fmt: skip
def test_winograds_way_is_a_convolution_at_every_size(c, o, height, width, images, padding, stride, clip, threads):
    """The oracle is torch in float64."""
    c, o = (c, o) if stride == 1 else (c + 32, o + 32)
    conv = convolution(c, o, 3, padding, True, stride)
    x = torch.randn(images, c, height, width)
    assert WinogradConvolution.fits(conv)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        got = WinogradConvolution(conv, library_for(x), clip=clip)(x)
    finally:
        torch.set_num_threads(before)
    expected = functional.conv2d(x.double(), conv.weight.double(), conv.bias.double(), padding=padding, stride=stride)
    torch.testing.assert_close(got.double(), expected.relu() if clip else expected, rtol=1e-4, atol=1e-4)


@compiled
@torch.no_grad()
@pytest.mark.parametrize(("side", "padding"), [(1, 0), (2, 0)])
@pytest.mark.parametrize("stride", [1, 2])
def test_images_smaller_than_a_kernel_are_refused(side, padding, stride):
    conv = convolution(64, 64, 3, padding, True, stride)
    fast = WinogradConvolution(conv, library_for(torch.zeros(1)), clip=False)
    with pytest.raises(ValueError, match=rf"images of 9 x {side} with padding 0 are smaller than a kernel of 3 x 3"):
        fast(torch.rand(1, 64, 9, side))


@compiled
@torch.no_grad()
def test_what_is_not_a_number_stays_so():
    x = torch.rand(2, 1, 8, 8)
    conv = nn.Conv2d(1, 32, 3)
    conv.weight[3] = torch.nan
    got = PooledConvolution(conv, library_for(x), clip=True)(x)
    assert got[:, 3].isnan().all()
    assert got[:, :3].isfinite().all()
    deep = nn.Conv2d(32, 32, 3)
    deep.weight[5] = torch.nan
    got = WinogradConvolution(deep, library_for(x), clip=True)(got[:, :1].expand(-1, 32, -1, -1))
    assert got[:, 5].isnan().all()
    assert got[:, 6].isfinite().all()


class Deciding(nn.Module):
    def forward(self, x):
        return x.flatten(1)[:, :3] if x.sum() > 0 else x.flatten(1)[:, :2]


class Locked(nn.Sequential):
    """It cannot be copied."""

    def __init__(self):
        super().__init__(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten())
        self.lock = threading.Lock()


class Counting(nn.Conv2d):
    def forward(self, x):
        return super().forward(x) * 2


class Pooling(nn.Module):
    def __init__(self, pool):
        super().__init__()
        self.conv, self.pool = nn.Conv2d(1, 32, 3), pool

    def forward(self, x):
        return self.pool(self.conv(x)).flatten(1)


def hooked():
    network = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten())
    network[0].register_forward_hook(lambda module, inputs, output: output + 1)
    return network


def shared():
    """One convolution before a batch norm and without one: its weights cannot be changed."""
    conv = nn.Conv2d(1, 1, 3, padding=1)
    return nn.Sequential(conv, nn.BatchNorm2d(1), conv, nn.Flatten())


def gradients(network, x, upstream, inputs, weights=True):
    """What comes out, and the gradients of what goes in and of the weights, where they are asked for."""
    x = x.clone().requires_grad_(inputs)
    network.requires_grad_(weights)
    out = network(x)
    wanted = [x] * inputs + list(network.parameters()) * weights
    return [out.detach(), *torch.autograd.grad((out * upstream).sum(), wanted)]


def off(network, reference, x, upstream, inputs, weights=True):
    """How far the result and the gradients lie from torch's in float64 at the most, as a share of the largest of each."""
    got = gradients(network, x, upstream, inputs, weights)
    wanted = gradients(reference.double(), x.double(), upstream.double(), inputs, weights)
    assert [one.shape for one in got] == [one.shape for one in wanted]
    assert len(got) > 1
    return max(float((one - other).abs().max() / other.abs().max()) for one, other in zip(got, wanted, strict=True))


@compiled
@settings(max_examples=20, deadline=None)
@given(
    shape=st.sampled_from([(1, 32, 3), (3, 64, 3), (1, 32, 5), (2, 96, 3), (32, 32, 1)]), padding=st.integers(0, 2),
    clip=st.booleans(), height=st.integers(6, 14), width=st.integers(6, 21), images=st.integers(1, 5), inputs=st.booleans(),
    weights=st.booleans(), threads=st.sampled_from([1, 2, 3]),
)  # fmt: skip
def test_the_gradients_of_a_pooled_convolution(shape, padding, clip, height, width, images, inputs, weights, threads):
    conv, before = convolution(*shape, padding, True), torch.get_num_threads()
    x = torch.rand(images, shape[0], height, width)
    reference = nn.Sequential(copy.deepcopy(conv), nn.MaxPool2d(2), nn.ReLU() if clip else nn.Identity())
    fast = TrainablePooledConvolution(conv, library_for(x), clip=clip)
    torch.set_num_threads(threads)
    try:
        assert off(fast, reference, x, torch.randn(reference(x).shape), inputs=inputs, weights=weights or not inputs) <= 1e-4
    finally:
        torch.set_num_threads(before)


@compiled
@settings(max_examples=25, deadline=None)
@given(
    c=st.sampled_from([32, 96]), o=st.sampled_from([32, 64]), height=st.integers(3, 14), width=st.integers(3, 14),
    images=st.integers(1, 9), padding=st.integers(0, 3), clip=st.booleans(), weights=st.booleans(),
    threads=st.sampled_from([1, 2]),
)  # fmt: skip
def test_the_gradients_of_winograds_way(c, o, height, width, images, padding, clip, weights, threads):
    conv, before = convolution(c, o, 3, padding, True), torch.get_num_threads()
    x = torch.randn(images, c, height, width)
    reference = nn.Sequential(copy.deepcopy(conv), nn.ReLU() if clip else nn.Identity())
    assert TrainableWinogradConvolution.fits(conv)
    torch.set_num_threads(threads)
    try:
        fast = TrainableWinogradConvolution(conv, library_for(x), clip=clip)
        beside_the_kink = conv(x).detach().abs() > 1e-3  # elsewhere rounding decides whether a ReLU lets a gradient through
        upstream = torch.randn(reference(x).shape) * beside_the_kink
        assert off(fast, reference, x, upstream, inputs=True, weights=weights) <= 1e-4
        with torch.no_grad():  # fixed weights are transformed once, until they change
            conv.weight.mul_(2), reference[0].weight.mul_(2)
        assert off(fast, reference, x, upstream, inputs=True, weights=False) <= 1e-4
    finally:
        torch.set_num_threads(before)


@compiled
@pytest.mark.parametrize(("name", "shape", "loops_"), [("larger-fashion", (1, 28, 28), 2), ("resnet18", (3, 32, 32), 13)])
def test_a_network_is_trained_through_the_loops_with_its_own_weights(name, shape, loops_):
    network = build(name, seed=0).train()
    x, labels = torch.rand(6, *shape), torch.arange(6)
    before = {key: value.clone() for key, value in network.state_dict().items()}
    fast, what = trainable(network, x)
    assert what.startswith("fast: ")
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())  # batch norms have seen nothing
    kinds = (TrainablePooledConvolution, TrainableWinogradConvolution)
    assert sum(isinstance(module, kinds) for module in called(fast)) == loops_
    assert {id(p) for p in fast.parameters()} == {id(p) for p in network.parameters()}
    found = []
    for one in (fast, network):
        network.zero_grad()
        functional.cross_entropy(one(x), labels).backward()
        found.append([p.grad.clone() for p in network.parameters()])
    for one, other in zip(*found, strict=True):
        assert one.shape == other.shape
        # A ReLU near 0 turns rounding into more: at 64 images torch's own float32 is 0.8 % from its float64.
        assert (one - other).norm() <= 0.03 * other.norm() + 1e-6


class Holding(nn.Module):
    """Its first layer is not trained, or none of it: a graph has no ``torch.no_grad``."""

    def __init__(self, *, everything=False):
        super().__init__()
        self.everything = everything
        self.conv, self.end = nn.Conv2d(1, 32, 3), nn.Linear(5408, 3)

    def forward(self, x):
        with torch.no_grad():
            x = functional.max_pool2d(self.conv(x), 2)
        with torch.set_grad_enabled(not self.everything):
            return self.end(x.flatten(1))


class Asking(nn.Module):
    """Traced, it takes what it is given for something else."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 32, 3)

    def forward(self, x):
        return functional.max_pool2d(self.conv(x if isinstance(x, torch.Tensor) else x["images"]), 2)


class Drawing(nn.Module):
    """What it adds is drawn anew each time; in a graph it would be what was drawn when that was made."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 32, 3)

    def forward(self, x):
        return functional.max_pool2d(self.conv(x), 2).flatten(1) + torch.randn(800)


def hooked_backward():
    network = build("larger-fashion", seed=0)
    network[0].register_full_backward_hook(lambda module, gradients, upstream: None)
    return network


@compiled
@pytest.mark.parametrize(
    ("network", "reason"),
    [
        (hooked(), "it has hooks"),
        (hooked_backward(), "it has hooks"),
        (Deciding(), "torch.fx cannot trace it"),
        (Drawing(), "of the largest off"),
        (Holding(), "other gradients"),
        (Holding(everything=True), "other gradients"),
        (Asking(), "rewritten, it cannot be run (IndexError)"),
        (nn.Sequential(nn.Flatten(), nn.Linear(784, 3)), "nothing in it can be replaced"),
        (nn.Sequential(nn.Conv2d(1, 40, 3), nn.MaxPool2d(2)), "nothing in it can be replaced"),
    ],
)
def test_what_the_loops_cannot_train_stays_as_it_is(network, reason):
    x = torch.rand(4, 1, 12, 12) if isinstance(network, Drawing) else torch.rand(4, 1, 28, 28)
    same, what = trainable(network.train(), x)
    assert same is network
    assert what.startswith("eager: ") and reason in what


def test_without_loops_torch_trains(monkeypatch):
    network, x = build("larger-fashion", seed=0), torch.rand(4, 1, 28, 28)
    assert trainable(network.double(), x.double()) == (network, "eager: no C loops: they are for float32 on a CPU")
    network.float()
    monkeypatch.setattr(speed, "library_for", lambda x: "no C loops: none in this test")
    assert trainable(network, x) == (network, "eager: no C loops: none in this test")


@compiled
def test_what_is_trained_may_work_in_place():
    """As in every VGG."""
    torch.manual_seed(4)
    network = nn.Sequential(
        nn.Conv2d(1, 32, 3),
        nn.MaxPool2d(2),
        nn.LeakyReLU(inplace=True),
        nn.Conv2d(32, 32, 3),
        nn.ReLU(inplace=True),
        nn.Flatten(),
    )
    x = torch.rand(3, 1, 14, 14)
    reference, fast = copy.deepcopy(network), trainable(network, x)[0]
    assert fast is not network
    assert off(fast, reference, x, torch.randn(reference(x).shape), inputs=False) <= 1e-4


@compiled
def test_a_gradient_of_the_gradient_is_refused():
    x = torch.rand(2, 32, 6, 6, requires_grad=True)
    out = TrainableWinogradConvolution(nn.Conv2d(32, 32, 3), library_for(x))(x)
    (gradient,) = torch.autograd.grad(out.pow(2).sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="differentiate twice"):
        gradient.sum().backward()


@compiled
@torch.no_grad()
def test_the_loops_refuse_what_they_would_misread(images):
    fast = prepare(build("larger-fashion", seed=0).eval(), torch.rand(1, 1, 28, 28)).network
    with pytest.raises(TypeError, match=r"the C loops are for float32 on the CPU, got torch.float64"):
        fast(torch.rand(1, 1, 28, 28, dtype=torch.float64))


@compiled
@torch.no_grad()
def test_two_threads_of_python_do_not_share_what_lies_between():
    network, x = build("larger-fashion", seed=0).eval(), torch.rand(40, 1, 28, 28)
    fast = prepare(network, x).network
    one_by_one = [fast(part) for part in x.split(4)]
    with ThreadPoolExecutor(2) as pool:
        for _ in range(10):
            together = pool.map(fast_without_gradients(fast), x.split(4))
            assert all(torch.equal(*pair) for pair in zip(one_by_one, together, strict=True))


def fast_without_gradients(fast):
    """Whether gradients are kept is each thread's own."""
    return torch.no_grad()(lambda part: fast(part))


@compiled
@torch.no_grad()
def test_a_prepared_network_can_be_copied():
    network, x = build("larger-fashion", seed=0).train(), torch.rand(3, 1, 28, 28)
    for fast in (prepare(network.eval(), x).network, trainable(network.train(), x)[0]):
        assert torch.equal(copy.deepcopy(fast)(x), fast(x))
        assert prepare(fast.eval(), x).network is not None


@compiled
def test_the_gradient_of_weights_over_several_blocks():
    """5 x 5 x 12 tiles, which is several blocks and a part of one, and neither channels nor filters of one vector."""
    conv = nn.Conv2d(64, 96, 3, padding=1, bias=False)
    x = torch.randn(12, 64, 19, 17)
    assert 2 * loops.TILES_BACK[0] < 12 * 5 * 5
    fast = TrainableWinogradConvolution(conv, library_for(x))
    reference = copy.deepcopy(conv)
    assert off(fast, reference, x, torch.randn(reference(x).shape), inputs=True) <= 1e-4


@pytest.mark.skipif(not shutil.which("gcc"), reason="no gcc")
def test_the_loops_without_long_vectors(tmp_path, monkeypatch):
    """As on other processors: fewer rows of a product fit into registers."""
    compiler = tmp_path / "cc"
    compiler.write_text('#!/bin/sh\nexec gcc $(echo "$@" | sed s/-march=native//)\n')
    compiler.chmod(0o755)
    monkeypatch.setenv("CC", str(compiler))
    library = loops._load_library("a processor with short vectors", tmp_path)
    assert isinstance(library, loops.Library)
    conv, x = nn.Conv2d(32, 64, 3, padding=1), torch.randn(5, 32, 9, 7)
    fast, reference = TrainableWinogradConvolution(conv, library), copy.deepcopy(conv)
    assert off(fast, reference, x, torch.randn(reference(x).shape), inputs=True) <= 1e-4
    conv, x = nn.Conv2d(3, 32, 3), torch.rand(2, 3, 9, 8)
    reference = nn.Sequential(copy.deepcopy(conv), nn.MaxPool2d(2), nn.ReLU())
    fast = TrainablePooledConvolution(conv, library, clip=True)
    assert off(fast, reference, x, torch.randn(reference(x).shape), inputs=True) <= 1e-4
    conv, x = nn.Conv2d(64, 64, 3, stride=2, padding=1), torch.rand(3, 64, 11, 10)
    with torch.no_grad():
        torch.testing.assert_close(WinogradConvolution(conv, library, clip=False)(x), conv(x), rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_batch_norms_are_folded_to_within_rounding(network, images, monkeypatch):
    monkeypatch.setattr(speed, "library_for", lambda x: "no C loops: none in this test")
    prepared = prepare(network, images)
    assert prepared.what == "fast: 2 batch norms folded, no C loops: none in this test"
    assert not any(isinstance(m, nn.BatchNorm2d) for m in prepared.network.modules() if m in called(prepared.network))
    torch.testing.assert_close(prepared.network(images), network(images), rtol=1e-4, atol=1e-4)


def called(network):
    return [network.get_submodule(node.target) for node in network.graph.nodes if node.op == "call_module"]


@compiled
@torch.no_grad()
def test_all_three_are_found_in_a_network_written_by_hand(network, images):
    prepared = prepare(network, images)
    assert prepared.what == "fast: 2 batch norms folded, 1 pooled convolution, 2 Winograd convolutions"
    assert not any(isinstance(module, (nn.BatchNorm2d, nn.Conv2d)) for module in called(prepared.network))
    assert sum(isinstance(module, nn.ReLU) for module in called(prepared.network)) == 0
    torch.testing.assert_close(prepared.network(images), network(images), rtol=1e-4, atol=1e-4)


class Adding(nn.Module):
    """Two convolutions of one input, and what is done with their results."""

    def __init__(self, end, last=None):
        super().__init__()
        self.first, self.second = nn.Conv2d(32, 32, 3, padding=1), nn.Conv2d(32, 32, 3, padding=1)
        self.end, self.last = end, last or nn.Flatten()

    def forward(self, x):
        x = x.expand(-1, 32, -1, -1)
        return self.last(self.end(self.first(x), self.second, x))


def remembering(first, second, x):
    """What is added to is needed again, and has changed by then."""
    changed = first.relu()
    changed.add_(second(x))
    return first + changed


@compiled
@torch.no_grad()
@pytest.mark.parametrize(
    ("end", "sums", "relus"),
    [
        (lambda first, second, x: functional.relu(first + second(x)), 0, 0),
        (lambda first, second, x: (second(first) + first).relu(), 0, 0),
        (lambda first, second, x: second(first).add_(first), 0, 0),
        (lambda first, second, x: second(first.relu() + x), 1, 0),
        (lambda first, second, x: functional.relu(second(x) + 1), 1, 1),
        (lambda first, second, x: first + first, 1, 0),
        (lambda first, second, x: torch.add(first, x[:, :, :1]), 1, 0),
        (lambda first, second, x: torch.add(second(x), first, alpha=2), 1, 0),
        (lambda first, second, x: second(x) + (first > 0), 1, 0),
        (lambda first, second, x: second(x) + first.double(), 1, 0),
        (remembering, 2, 1),
    ],
)
def test_a_sum_behind_winograds_way_goes_along_where_it_is_one_of_equals(end, sums, relus, images):
    torch.manual_seed(2)
    network = Adding(end).eval()
    prepared = prepare(network, images)
    assert "Winograd" in prepared.what
    targets = [node.target for node in prepared.network.graph.nodes if node.op != "call_module"]
    assert sum("add" in str(target) for target in targets) == sums
    assert sum("relu" in str(target) for target in targets) == relus
    torch.testing.assert_close(prepared.network(images), network(images), rtol=1e-4, atol=1e-4)


@compiled
@torch.no_grad()
@pytest.mark.parametrize(
    ("flatten", "in_place"),
    [
        (nn.Flatten(), True),
        (lambda x: torch.flatten(x, 1), True),
        (lambda x: x.flatten(1), True),
        (lambda x: x.flatten(2)[:, :, 0], False),
        (lambda x: x.mean(3).flatten(1), False),
    ],
)
def test_features_stay_where_they_lie_behind_the_loops(flatten, in_place, images):
    torch.manual_seed(3)
    features = flatten(torch.rand(2, 32, 12, 12)).shape[1]

    class Ending(Adding):
        def forward(self, x):
            return self.last(self.end(self.first(x.expand(-1, 32, -1, -1))))

    network = Ending(flatten, nn.Linear(features, 4)).eval()
    weight = network.last.weight.clone()
    prepared = prepare(network, images)
    assert in_place == any("FlattenChannelsLast" in type(module).__name__ for module in called(prepared.network))
    torch.testing.assert_close(prepared.network(images), network(images), rtol=1e-4, atol=1e-4)
    assert torch.equal(network.last.weight, weight)


@compiled
@torch.no_grad()
@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("small-fashion", "fast: 1 pooled convolution"),
        ("larger-fashion", "fast: 1 pooled convolution, 1 Winograd convolution"),
    ],
)
def test_the_papers_small_networks(name, what):
    network, x = build(name, seed=0).eval(), torch.rand(5, 1, 28, 28)
    before = {key: value.clone() for key, value in network.state_dict().items()}
    prepared = prepare(network, x)
    assert prepared.what == what
    assert prepared.batch_size == {"small-fashion": 512, "larger-fashion": 384}[name]
    torch.testing.assert_close(prepared.network(x), network(x), rtol=1e-4, atol=1e-5)
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())


@compiled
def test_counts_agree_with_the_eager_ones_but_for_ties(network, images):
    """Of 38,400 labels at two noise levels, fewer than one in a thousand changes."""
    eager = counts(network, images, sigma=(0.3, 0.6), n=3200, engine="eager")
    fast = counts(network, images, sigma=(0.3, 0.6), n=3200, engine="fast")
    assert (eager > 0).sum(-1).max() > 1  # there is something to get wrong
    assert np.abs(fast - eager).sum() / 2 <= 38


@compiled
@settings(max_examples=10, deadline=None)
@given(
    order=st.permutations(range(6)),
    keep=st.integers(1, 6),
    batch_size=st.sampled_from([None, 1, 64, 100, 1000]),
    n=st.sampled_from([10, 64, 130]),
    threads=st.sampled_from([1, 2]),
)
def test_the_guarantees_hold_on_the_fast_path(network, images, order, keep, batch_size, n, threads):
    """Seeds, chunks, order, company, prefixes and threads, as in test_measure, now with the copy."""
    whole = counts(network, images, sigma=(0.3, 0.6), n=(n, 130), engine="fast")[:, 0]
    chosen, before = list(order)[:keep], torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        part = counts(network, images[chosen], sigma=0.6, n=n, batch_size=batch_size, engine="fast")
    finally:
        torch.set_num_threads(before)
    assert part.sum() == keep * n
    assert np.abs(whole[1:, chosen] - part).sum() / 2 <= max(1, 1e-3 * part.sum())


def test_what_is_done_does_not_hang_on_the_points(network, images):
    with torch.no_grad():
        prepared = [prepare(network, part) for part in (images, images[:1], images[4:], images * torch.nan)]
        assert len({p.what for p in prepared}) == 1
        assert len({p.batch_size for p in prepared}) == 1


@compiled
@torch.no_grad()
def test_features_stay_where_they_lie_behind_a_pooled_convolution_too():
    network = nn.Sequential(nn.Conv2d(1, 32, 3), nn.MaxPool2d(2), nn.ReLU(), nn.Flatten(), nn.Linear(32 * 25, 4)).eval()
    x = torch.rand(3, 1, 12, 12)
    fast = prepare(network, x).network
    assert [type(module).__name__ for module in called(fast)] == ["PooledConvolution", "_FlattenChannelsLast", "Linear"]
    torch.testing.assert_close(fast(x), network(x), rtol=1e-4, atol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize(
    ("network", "reason"),
    [
        (Deciding(), "torch.fx cannot trace it"),
        (hooked(), "it has hooks"),
        (Locked(), "torch.fx cannot trace it"),
        (nn.Sequential(nn.Flatten(), nn.Linear(144, 3)), "nothing in it can be replaced"),
        (nn.Sequential(Counting(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten()), "nothing in it can be replaced"),
        (nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4, track_running_stats=False), nn.Flatten()), "nothing in it"),
        (shared(), "nothing in it can be replaced"),
        (nn.Sequential(nn.Conv2d(1, 32, 3, stride=2), nn.MaxPool2d(2), nn.Flatten()), "nothing in it can be replaced"),
        (nn.Sequential(nn.Conv2d(1, 32, 3), nn.MaxPool2d(3), nn.Flatten()), "nothing in it can be replaced"),
        (Pooling(lambda x: functional.max_pool2d(x, 2, 2, 0, 2)), "nothing in it can be replaced"),
        (Pooling(lambda x: functional.max_pool2d(x, 2) + x[:, :, ::2, ::2]), "nothing in it can be replaced"),
        (nn.Sequential(nn.Conv2d(1, 32, 3), nn.MaxPool2d(2, ceil_mode=True), nn.Flatten()), "nothing in it can be replaced"),
        (
            nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Threshold(1e9, torch.nan)),
            "its output is no tensor of finite",
        ),
    ],
)
def test_a_network_that_gains_nothing_runs_as_it_is_and_the_reason_is_said(network, reason, images):
    network.eval()
    prepared = prepare(network, images)
    assert prepared.network is network
    assert prepared.what.startswith("eager: ")
    assert reason in prepared.what
    with pytest.raises(ValueError, match=f"'fast' was asked for.*{re.escape(reason)}"):
        prepare(network, images, engine="fast")


@torch.no_grad()
def test_a_copy_that_gives_other_logits_is_dropped(network, images, monkeypatch):
    monkeypatch.setattr(speed, "fuse_conv_bn_eval", lambda conv, norm: conv)
    assert re.fullmatch(r"eager: rewritten, its logits are \de.\d+ of the largest off", prepare(network, images).what)


@torch.no_grad()
def test_without_a_compiler_that_is_said(network, images, tmp_path, monkeypatch):
    monkeypatch.setattr(loops, "cache_folder", lambda: tmp_path)
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert "there is no C compiler (install gcc or clang)" in prepare(network, images).what
    broken = tmp_path / "broken"
    broken.write_text("#!/bin/sh\necho cannot work today >&2\nexit 1\n")
    broken.chmod(0o755)
    monkeypatch.setattr(shutil, "which", lambda name: str(broken))
    monkeypatch.setattr(loops, "cache_folder", lambda: tmp_path / "other")
    assert "cannot compile them (cannot work today)" in prepare(network, images).what
    assert not list(tmp_path.rglob("*.so"))


@compiled
@torch.no_grad()
def test_the_loops_are_compiled_once(images, tmp_path):
    first = loops._load_library("this processor", tmp_path)
    (library,) = (tmp_path / "kernels").iterdir()
    stamp = library.stat().st_mtime_ns
    loops._load_library.cache_clear()
    second = loops._load_library("this processor", tmp_path)
    assert not isinstance(first, str)
    assert not isinstance(second, str)
    assert library.stat().st_mtime_ns == stamp


@compiled
@torch.no_grad()
def test_in_bfloat16_the_pooled_convolution_stays_and_winograds_way_goes(network, images):
    prepared = prepare(network, images, dtype=torch.bfloat16)
    pooled = "fast: 2 batch norms folded, 1 pooled convolution"
    assert prepared.what == f"{pooled}; bfloat16, close calls in float32 ({pooled}, 2 Winograd convolutions)"
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert prepare(network, images).what == pooled
    assert prepare(network, images, dtype=torch.bfloat16, engine="eager").what.startswith("eager: as asked; bfloat16")
    weights = {m.weight.dtype for m in called(prepared.network.quick) if isinstance(m, nn.Conv2d | nn.Linear)}
    assert weights == {torch.bfloat16}  # rounded once, not at each call
    assert {p.dtype for p in network.parameters()} == {torch.float32}
    noisy = images.repeat(50, 1, 1, 1) + torch.randn(300, 1, 12, 12, generator=torch.Generator().manual_seed(0))
    found, own = prepared.network(noisy), network(noisy)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        close = prepared.network.close(prepared.network.quick(noisy))
    off_by = (found - own).abs().amax(1) / own.abs().amax(1)
    assert 5 < close.sum() < 100
    assert off_by[close].max() < 1e-4 and 1e-3 < off_by[~close].max() < 0.05


@pytest.mark.parametrize("engine", ["auto", "eager"])
def test_in_bfloat16_rounding_changes_none_of_38400_labels(network, images, engine):
    """Where it alone would."""
    full = counts(network, images, sigma=(0.3, 0.6), n=3200)
    careful = counts(network, images, sigma=(0.3, 0.6), n=3200, dtype=torch.bfloat16, engine=engine)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        alone = counts(network, images, sigma=(0.3, 0.6), n=3200)
    assert np.abs(alone - full).sum() > 10
    assert np.array_equal(careful, full)


class InPlace(nn.Module):
    """It centres what it is given where it lies, as some do."""

    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, x):
        x -= 0.5
        return self.network(x)


class OfItsOwn(InPlace):
    """It gives logits of another precision."""

    def forward(self, x):
        return self.network(x).double()


class Autocast(InPlace):
    def forward(self, x):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return self.network(x)


@pytest.mark.parametrize("kind", [InPlace, OfItsOwn, Autocast])
@pytest.mark.parametrize("ambient", [False, True])
def test_in_bfloat16_networks_of_strangers_keep_their_labels(network, images, kind, ambient):
    stranger = kind(network).eval()
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=ambient):
        careful = counts(stranger, images.clone(), sigma=0.6, n=1280, dtype=torch.bfloat16)
    full = counts(stranger, images.clone(), sigma=0.6, n=1280)
    assert np.abs(careful - full).sum() / 2 <= (20 if kind is Autocast else 0)  # whose own precision is the lower one


def test_close_calls_write_into_nothing_of_the_network():
    own = torch.tensor([[1.0, 1.0, 0.0]])
    module, x = nn.Identity(), torch.rand(4, 3)
    module.forward = lambda x: own.expand(len(x), -1)
    found = Careful(module, nn.Identity(), torch.bfloat16)(x)
    assert torch.equal(found, x) and found is not x
    assert own.tolist() == [[1, 1, 0]]


@pytest.mark.parametrize(
    ("logits", "again"),
    [
        ([1.0, 0.9, 0.0], False),
        ([1.0, 0.96, 0.0], True),
        ([-1.0, -1.2, -9.0], True),  # 0.02 of the largest, 9
        ([0.0, 0.0, 0.0], True),
        ([torch.inf, 0.0, 0.0], True),
        ([torch.nan, 0.0, 1.0], True),
    ],
)
def test_what_is_close_is_asked_again(logits, again):
    class Fixed(nn.Module):
        def forward(self, x):
            return torch.tensor([[5.0, 0.0, 0.0], logits, [0.0, 4.0, 0.0]], dtype=torch.bfloat16)

    asked = []
    exact = lambda x: asked.append(len(x)) or torch.full((len(x), 3), 7.0)  # noqa: E731
    careful = Careful(Fixed(), nn.Identity(), torch.bfloat16)
    careful.exact.forward = exact
    found = careful(torch.rand(3, 2))
    assert asked == [1] * again
    assert (found[1] == 7).all() == again
    assert found[[0, 2]].tolist() == [[5, 0, 0], [0, 4, 0]]


def test_one_class_and_no_logits_are_passed_on():
    for own in (torch.zeros(2, 1), torch.zeros(2), torch.zeros(3, 2), {"logits": 1}):
        module = nn.Identity()
        module.forward = lambda x, own=own: own
        assert Careful(module, nn.Identity(), torch.bfloat16)(torch.rand(2, 3)) is own


@compiled
@torch.no_grad()
def test_under_autocast_maxima_are_added_up_in_float32_and_rounded_as_torch_rounds():
    conv = convolution(1, 32, 3, 0, True)
    x = torch.randn(40, 1, 15, 17)
    x[1, 0, 5, 5], x[2, 0, 3, 3] = torch.nan, torch.inf
    exact = PooledConvolution(conv, library_for(x), clip=False)
    wide = exact(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        narrow = exact(x)
    assert narrow.dtype == torch.bfloat16 and narrow.isnan().any() and narrow.isinf().any()
    assert torch.equal(narrow.nan_to_num(7), wide.to(torch.bfloat16).nan_to_num(7))


@compiled
def test_in_bfloat16_a_network_is_trained_through_the_pooled_loop_alone():
    """Its gradients are as near to those of float32 as torch's own are under autocast."""
    torch.manual_seed(0)
    network, x, labels = build("larger-fashion", seed=0).train(), torch.rand(64, 1, 28, 28), torch.arange(64) % 10
    fast, what = trainable(network, x, dtype=torch.bfloat16)
    assert what == "fast: 1 pooled convolution"
    gradients = []
    for one, lower in ((network, False), (network, True), (fast, True)):
        network.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=lower):
            loss = functional.cross_entropy(one(x), labels)
        loss.backward()
        gradients.append(torch.cat([p.grad.flatten() for p in network.parameters()]))
    exact, eager, ours = gradients
    assert (ours - exact).norm() <= 1.5 * (eager - exact).norm()


@compiled
def test_the_trial_of_what_is_trained_is_in_float32_under_autocast_too():
    network, x = build("larger-fashion", seed=0).train(), torch.rand(4, 1, 28, 28)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert trainable(network, x)[1] == "fast: 1 pooled convolution"


def test_an_unknown_engine_is_named(network, images):
    with pytest.raises(ValueError, match="auto, fast, eager, got 'warp'"):
        counts(network, images, engine="warp")
