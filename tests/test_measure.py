import math
import re

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torch import nn

import bslib
from bslib.measure import BLOCK, class_counts, counts_and_engine, predict, standard_noise, wobbliness


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Dropout(0.5), nn.Linear(4 * 6 * 6, 5))


@pytest.fixture(scope="module")
def images():
    return torch.rand(6, 1, 8, 8, generator=torch.Generator().manual_seed(1))


def counts(network, images, sigma=0.5, n=100, seed=0, **options):
    return class_counts(network, images, sigma, n, seed=seed, progress=False, **options)


def textbook(network, images, sigma, mask) -> np.ndarray:
    """Eqs. 1 and 2 written out, one noisy copy at a time, with noise where the mask is true."""
    expected = np.zeros((len(images), 5), dtype=int)
    network.eval()
    with torch.no_grad():
        for b, noise in enumerate(standard_noise(images, 70, seed=3)):
            for z in noise:
                expected[b, network(torch.where(mask, images[b] + sigma * z, images[b])[None]).argmax()] += 1
    network.train()
    return expected


def test_counts_are_those_of_a_textbook_loop(network, images):
    everywhere = torch.ones(1, 8, 8, dtype=torch.bool)
    measured = counts(network, images, sigma=(0.2, 0.9), n=70, seed=3)
    assert measured.dtype == np.int64
    for sigma, found in zip((0.2, 0.9), measured, strict=True):
        assert np.abs(found - textbook(network, images, sigma, everywhere)).sum() <= 2  # one label, at a tie of logits


def test_a_linear_binary_network_has_the_w_of_its_closed_form():
    """p = Phi((w.x + b) / (sigma |w|)): an exact check of the whole path."""
    w, b, sigma, n = torch.tensor([0.6, -0.8, 0.3]), 0.05, 0.7, 20_000
    network = nn.Linear(3, 2)
    with torch.no_grad():
        network.weight.copy_(torch.stack([w, torch.zeros(3)]))
        network.bias.copy_(torch.tensor([b, 0.0]))
    x = torch.rand(8, 3, generator=torch.Generator().manual_seed(0))
    p = stats.norm.cdf(((x @ w + b) / (sigma * w.norm())).numpy())
    measured = counts(network, x, sigma, n)[0, :, 0]
    z = (measured - n * p) / np.sqrt(n * p * (1 - p))
    assert np.abs(z).max() < 4
    np.testing.assert_allclose(wobbliness(network, x, sigma, n, progress=False), stats.entropy([p, 1 - p], axis=0), atol=0.01)


def test_noise_is_standard_normal_and_never_clipped():
    z = standard_noise(torch.rand(4, 3072), 1000, seed=0).numpy().astype(float)
    assert z.mean() == pytest.approx(0, abs=4 / math.sqrt(z.size))
    assert z.var() == pytest.approx(1, abs=4 * math.sqrt(2 / z.size))
    assert stats.kstest(z.ravel()[::50], "norm").pvalue > 1e-3
    assert np.isfinite(z).all()
    assert np.abs(z).max() > 4.5


def test_noise_is_independent_between_points_seeds_and_blocks():
    x = torch.rand(3, 500)
    z = standard_noise(x, 3 * BLOCK, seed=0)
    other = standard_noise(x, 3 * BLOCK, seed=1)
    parts = [z[0, :BLOCK], z[0, BLOCK : 2 * BLOCK], z[1, :BLOCK], z[2, :BLOCK], other[0, :BLOCK]]
    correlations = np.corrcoef([part.flatten().numpy() for part in parts])
    assert np.abs(correlations - np.eye(5)).max() < 4 / math.sqrt(BLOCK * 500)


def test_seeds_that_share_their_low_32_bits_give_different_noise():
    """torch's own CPU generator would not: it reads 32 bits of its seed."""
    x = torch.rand(1, 10)
    assert not torch.equal(standard_noise(x, 5, seed=7), standard_noise(x, 5, seed=7 + 2**32))


@pytest.mark.parametrize(
    ("shape", "n", "seed", "ids", "some", "total"),
    [
        ((3,), 130, 0, None, [1.34571, -0.17284, 0.10209, -1.0109], 643.55),
        ((1, 8, 8), 250, 7, [1, "a"], [-0.54075, 0.39318, 0.88946, 0.60373], 25536.22),
        ((3, 32, 32), 64, 2**40 + 1, ["x", 5], [-0.53022, -1.00422, -0.36759, 0.70712], 313561.83),
    ],
)
def test_noise_is_what_committed_records_were_made_with(shape, n, seed, ids, some, total):
    """Up to the last bit of a logarithm or a cosine, in which processors differ."""
    x = (torch.arange(2 * math.prod(shape), dtype=torch.float32) / 7 % 1).view(2, *shape)
    noise = standard_noise(x.double(), n, seed=seed, ids=ids)  # the key is of the float32 pixels
    flat = noise.flatten()
    assert flat[[0, 1, len(flat) // 2, -1]].tolist() == pytest.approx(some, abs=2e-5)
    assert float(flat.double().abs().sum()) == pytest.approx(total, rel=1e-6, abs=0.01)


@pytest.mark.parametrize("shape", [(2,), (5,), (20,), (1, 8, 8)])
def test_prefixes_nest(shape):
    x = torch.rand(2, *shape)
    assert torch.equal(standard_noise(x, 1000, seed=0)[:, :250], standard_noise(x, 250, seed=0))


def test_counts_at_prefixes_are_the_counts_of_shorter_runs(network, images):
    ns = (300, 10, 64, 65, 250)  # in the order asked for, not sorted
    together = counts(network, images, sigma=(0.3, 0.6), n=ns)
    assert together.shape == (2, 5, 6, 5)
    for k, n in enumerate(ns):
        assert_equal_but_for_ties(together[:, k], counts(network, images, sigma=(0.3, 0.6), n=n))


def assert_equal_but_for_ties(first, second, rate=1e-3):
    """Labels may differ where rounding decides between two equal logits: in less than one of a thousand copies."""
    assert first.shape == second.shape
    assert np.abs(first - second).sum() / 2 <= max(1, rate * first.sum())


@settings(max_examples=10, deadline=None)
@given(
    order=st.permutations(range(6)),
    keep=st.integers(1, 6),
    batch_size=st.sampled_from([1, 64, np.int64(100), 1000]),
    threads=st.sampled_from([1, 2]),
)
def test_chunk_order_company_and_threads_do_not_matter(network, images, order, keep, batch_size, threads):
    before = torch.get_num_threads()
    whole = counts(network, images, sigma=(0.3, 0.6), n=130)
    chosen = list(order)[:keep]
    torch.set_num_threads(threads)
    try:
        part = counts(network, images[chosen], sigma=0.6, n=130, batch_size=batch_size)
    finally:
        torch.set_num_threads(before)
    assert_equal_but_for_ties(whole[1:, chosen], part)


def test_ids_pair_the_noise_of_different_images(network, images):
    same = counts(network, torch.cat([images[:1]] * 2), ids=["a", "b"])
    assert not np.array_equal(same[0, 0], same[0, 1])
    z = standard_noise(torch.stack([images[0], images[1]]), 10, seed=0, ids=[5, 5])
    assert torch.equal(z[0], z[1])
    assert not torch.equal(z[0], standard_noise(images[:1], 10, seed=0, ids=["5"])[0])


def test_sigma_zero_repeats_the_prediction(network, images):
    network.eval()
    labels = network(images).argmax(1).numpy()
    network.train()
    measured = counts(network, images, sigma=0.0, n=10)[0]
    assert (measured[np.arange(6), labels] == 10).all()


def test_shapes_follow_what_was_asked(network, images):
    assert counts(network, images).shape == (1, 6, 5)
    assert counts(network, images, sigma=[0.5]).shape == (1, 6, 5)
    assert counts(network, images, n=[10]).shape == (1, 1, 6, 5)
    assert wobbliness(network, images, 0.5, 10).shape == (6,)
    assert wobbliness(network, images, [0.5, 1], 10).shape == (2, 6)
    assert wobbliness(network, images, 0.5, [10, 20]).shape == (2, 6)
    assert wobbliness(network, images, [0.5], [10, 20]).shape == (1, 2, 6)


def test_the_model_gets_its_modes_back_and_is_otherwise_untouched(network, images):
    network.train()
    network[1].eval()
    state = {name: value.clone() for name, value in network.state_dict().items()}
    try:
        counts(network, images)
        assert network.training
        assert not network[1].training
        assert all(torch.equal(value, state[name]) for name, value in network.state_dict().items())
        with pytest.raises(ValueError, match="sigma"):
            counts(network, images, sigma=-1)
        assert network.training
    finally:
        network.train()


def test_batches_do_not_grow_with_n(images):
    sizes = []

    class Watching(nn.Module):
        def forward(self, x):
            sizes.append(len(x))
            return x.flatten(1)[:, :3]

    for n in (250, 10_000):
        counts(Watching(), images[:2], n=n)
    assert max(sizes) == 2048  # 2 ** 17 values


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"sigma": -0.1}, "-0.1"),
        ({"sigma": math.nan}, "nan"),
        ({"sigma": math.inf}, "inf"),
        ({"sigma": []}, "at least one"),
        ({"sigma": "0.1"}, "sigma must be a number or a sequence of numbers, got '0.1'"),
        ({"sigma": True}, "got True"),
        ({"n": 10**30}, "n must be at most 2,147,483,647, got 1,000"),
        ({"n": 0}, "0"),
        ({"n": 2.5}, "2.5"),
        ({"n": [10, -3]}, "-3"),
        ({"ids": ["a"]}, "1 ids"),
        ({"ids": {1, 2, 3, 4, 5, 6}}, "ids must be a sequence of ints or strings, got set"),
        ({"n": [1, [2]]}, "n must be a whole number or a flat sequence"),
        ({"ids": [1.5] * 6}, "1.5"),
        ({"ids": [None] * 6}, "None"),
        ({"sigma": [0.1, 1j]}, "1j"),
        ({"sigma": torch.tensor(0.1, requires_grad=True)}, "tensor(0.1000, requires_grad=True)"),
        ({"mask": np.ones((1, 8, 8), bool)}, "ndarray"),
        ({"images": torch.rand(2, 1, 8, 8).to_sparse()}, "sparse"),
        ({"images": torch.rand(0, 1, 8, 8)}, "(0, 1, 8, 8)"),
        ({"images": torch.rand(3)}, "(3,)"),
        ({"images": torch.zeros(2, 1, 8, 8, dtype=torch.uint8)}, "torch.uint8"),
        ({"images": torch.full((2, 1, 8, 8), math.nan)}, "NaN"),
        ({"images": [[1.0]]}, "list"),
        ({"network": nn.Flatten(0)}, "(128,)"),
        ({"network": nn.Identity()}, "(2, 1, 8, 8)"),
        ({"network": nn.Sequential(nn.Flatten(), nn.Threshold(1e9, math.nan))}, "NaN"),
    ],
)
def test_bad_requests_name_what_was_received(network, images, change, named):
    arguments = {"network": network, "images": images} | change
    with pytest.raises(ValueError) as caught:
        counts(**arguments)
    assert named in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_mask_leaves_the_other_features_without_noise_and_keeps_the_noise_of_the_rest(network, images):
    mask = torch.zeros(1, 8, 8, dtype=torch.bool)
    mask[:, 2:7, 1:6] = True
    masked = counts(network, images, sigma=0.9, n=70, seed=3, mask=mask)
    assert np.abs(masked[0] - textbook(network, images, 0.9, mask)).sum() <= 2
    assert not np.array_equal(masked, counts(network, images, sigma=0.9, n=70, seed=3))
    w = wobbliness(network, images, 0.9, 70, seed=3, mask=mask, progress=False)
    np.testing.assert_allclose(w, stats.entropy(masked[0], axis=-1), atol=1e-12)


def test_a_mask_of_every_feature_changes_nothing_and_one_of_none_removes_the_noise(network, images):
    everywhere = torch.ones(1, 8, 8, dtype=torch.bool)
    assert np.array_equal(counts(network, images, mask=everywhere), counts(network, images))
    assert (counts(network, images, mask=~everywhere).max(-1) == 100).all()


@pytest.mark.parametrize(
    ("mask", "named"),
    [
        (torch.ones(8, 8, dtype=torch.bool), "bool of shape (1, 8, 8), got torch.bool of shape (8, 8)"),
        (torch.ones(6, 1, 8, 8, dtype=torch.bool), "of shape (6, 1, 8, 8)"),
        (torch.ones(1, 8, 8), "got torch.float32"),
    ],
)
def test_a_mask_that_does_not_fit_is_refused(network, images, mask, named):
    with pytest.raises(ValueError, match=re.escape(named)):
        counts(network, images, mask=mask)


def test_the_package_hands_out_what_a_stranger_wants(network, images):
    assert bslib.wobbliness is wobbliness
    assert set(bslib.__all__) <= set(dir(bslib))
    with pytest.raises(AttributeError, match="wobblyness"):
        bslib.wobblyness  # noqa: B018


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_on_a_gpu_the_guarantees_hold_too(network, images):
    network, images = network.cuda(), images.cuda()
    whole = counts(network, images, sigma=(0.3, 0.6), n=(130, 300))
    part = counts(network, images[[4, 2]], sigma=0.6, n=130, batch_size=64)
    assert_equal_but_for_ties(whole[1:, 0][:, [4, 2]], part, rate=0.01)


# What trial images do not show


class Scaled(nn.Module):
    """Divides a batch by 255 as soon as one of its features exceeds 1."""

    def forward(self, x):
        return (x / 255 if x.max() > 1 else x).flatten(1)[:, :3]


class Remembering(nn.Module):
    """Divides by the largest feature that it has ever seen beyond 1."""

    largest = 1.0

    def forward(self, x):
        self.largest = max(self.largest, float(x.max()))
        return x.flatten(1)[:, :3] / self.largest


def test_a_dependence_on_the_batch_beyond_the_trial_images_is_refused():
    with pytest.raises(ValueError, match="to a noisy image depends on the other images of the batch"):
        counts(Scaled(), 0.5 + torch.rand(4, 1, 8, 8) / 10, sigma=0.2)


class Crowded(nn.Module):
    """Subtracts the mean of its batch, once there are ten images and more."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(3))

    def forward(self, x):
        logits = x.flatten(1)[:, :3] * self.scale
        return logits - logits.mean(0) if len(x) >= 10 else logits


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_dependence_on_large_batches_alone_is_refused(dtype):
    model, x = Crowded().to(dtype), torch.rand(40, 1, 8, 8)
    with pytest.raises(ValueError, match="to an image depends on the other images of a large batch"):
        counts(model, x, sigma=0.2)
    with pytest.raises(ValueError, match="to an image depends on the other images of a large batch"):
        predict(model, x)
    assert counts(model, x, sigma=0.2, stochastic=True).sum() == 40 * 100


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_rounding_that_depends_on_the_size_of_a_batch_is_none_of_its_images(dtype):
    class Rounding(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.randn(64, 3, generator=torch.Generator().manual_seed(0)))

        def forward(self, x):
            logits = x.flatten(1) @ self.weight
            return logits * (1 + torch.finfo(x.dtype).eps * len(x))

    assert counts(Rounding().to(dtype), torch.rand(40, 1, 8, 8), sigma=0.2).sum() == 40 * 100


def test_logits_that_noise_makes_nan_are_said_to_be_nan():
    class Root(nn.Module):
        def forward(self, x):
            return x.flatten(1)[:, :3].sqrt()

    with pytest.raises(ValueError, match=r"logits hold NaN: .* or noise left its range"):
        counts(Root(), torch.rand(40, 1, 8, 8), sigma=0.5)
    with pytest.raises(ValueError, match="logits hold NaN"):
        predict(Root(), torch.rand(40, 1, 8, 8) - 0.2)


@pytest.mark.parametrize("most", [4, 20])
def test_no_pass_has_more_images_than_the_batch_size(most):
    class Counting(nn.Module):
        most = 0

        def forward(self, x):
            Counting.most = max(self.most, len(x))
            return x.flatten(1)[:, :3]

    some = counts(Counting(), x := torch.rand(3, 1, 8, 8), sigma=0.2, n=100, batch_size=most)
    assert Counting.most == most and np.array_equal(some, counts(Counting(), x, sigma=0.2, n=100))


def test_a_memory_of_what_was_seen_is_refused():
    with pytest.raises(ValueError, match=r"it remembers what it has seen|depends on the other images"):
        counts(Remembering(), torch.rand(4, 1, 8, 8, generator=torch.Generator().manual_seed(0)), sigma=1.0, batch_size=64)


def test_each_batch_is_compared_with_the_model_in_float32():
    """In bfloat16 a mean of 300 is subtracted with an error; only the last rows have it."""
    torch.manual_seed(0)
    centred = nn.Sequential(nn.Linear(16, 16, bias=False), nn.Linear(16, 4))
    with torch.no_grad():
        centred[0].weight.copy_(torch.eye(16) - 1 / 16)
    x = torch.rand(20, 16) + torch.arange(20)[:, None].ge(15) * 300
    with pytest.warns(UserWarning, match="large rounding errors for these images, so float32 is used"):
        found, engine = counts_and_engine(centred, x, 0.1, 64, seed=0, batch_size=64, dtype=torch.bfloat16)
    assert "bfloat16" in engine and engine.endswith(", then float32: large rounding errors")
    assert (found == counts(centred, x, sigma=0.1, n=64, dtype=torch.float32)).all()


def test_rounding_of_large_features_is_no_dependence_on_the_batch():
    """A normalisation folded into the first layer, for years and the like."""
    for seed in range(3):
        torch.manual_seed(seed)
        model, mean = nn.Sequential(nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 3)), torch.rand(16) * 6000
        with torch.no_grad():
            model[0].bias -= model[0].weight @ mean
        assert counts(model, mean + torch.randn(20, 16), n=64).sum() == 20 * 64
