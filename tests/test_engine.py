"""What makes forward passes fast gives the labels of float32, says what it is, and steps aside where it does not fit."""

from __future__ import annotations

import copy
import gc
import re
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torchvision.transforms import v2

from bslib import engine
from bslib.calling import evaluating
from bslib.engine import NearTieFallback, compile_for_inference, fast_dtype
from bslib.measure import class_counts, predict
from bslib.networks import build

LOW = fast_dtype(torch.device("cpu"))


@pytest.fixture(scope="module")
def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(8 * 9, 5)
    )  # fmt: skip


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    return torch.rand(6, 1, 8, 8, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def converting(monkeypatch):
    """Every conversion is worth it; returns the list of networks that were converted."""
    pytest.importorskip("openvino")
    converted, make = [], engine._on_openvino
    monkeypatch.setattr(engine, "SAVED", dict.fromkeys(engine.SAVED, 1e6))
    monkeypatch.setattr(engine, "_timed", lambda network, images: (network(images), 1.0))
    monkeypatch.setattr(engine, "_on_openvino", lambda net, x: converted.append(net) or make(net, x))
    return converted


def what(model, x, **options) -> str:
    with evaluating(model) as logits:
        return compile_for_inference(logits, x, **options).what


def counts(model, x, sigma=0.3, n=130, **options):
    return class_counts(model, x, sigma, n, seed=0, progress=False, **options)


# Near ties


@pytest.mark.parametrize(
    ("logits", "near"),
    [
        ([9.0, 8.9, 0.0], True),
        ([9.0, 8.5, 0.0], False),  # 6 units of 2 ** -7 of the largest are 0.42
        ([-9.0, -8.9], True),
        ([100.0, 94.0], False),
        ([100.0, 96.0], True),
        ([-100.0, -104.0, -300.0], True),  # the largest by amount counts
        ([0.0, 0.0], True),
        ([0.0, 0.3], True),  # logits that cancel: the rounding error on trial images, 0.1, counts four times
        ([torch.inf, 0.0], True),
        ([torch.nan, 0.0], True),
    ],
)
def test_near_ties(logits, near):
    fallback = NearTieFallback(nn.Identity(), nn.Identity(), torch.bfloat16, error=0.1)
    assert fallback.near_ties(torch.tensor([logits])).tolist() == [near]


def test_near_ties_are_reevaluated_in_float32():
    seen = []

    def exact(x):
        seen.append(x)
        return (x + 1).double()  # as a model does whose last step is NumPy's

    x = torch.tensor([[9.0, 8.9], [9.0, 1.0], [2.0, 2.0]])
    logits = NearTieFallback(lambda x: x.bfloat16(), exact, torch.bfloat16)(x)
    assert torch.equal(seen[0], x[[0, 2]]) and torch.equal(logits, torch.tensor([[10.0, 9.9], [9.0, 1.0], [3.0, 3.0]]))


def test_a_network_that_is_always_nearly_tied_goes_on_in_float32():
    calls = []
    fallback = NearTieFallback(lambda x: calls.append("quick") or x, lambda x: calls.append("exact") or x, torch.bfloat16)
    for _ in range(3):
        fallback(torch.ones(600, 2))
    assert calls == ["quick", "exact", "exact", "exact"]


@pytest.mark.parametrize("how", ["openvino", "eager"])
def test_low_precision_changes_no_label(network, images, how):
    pytest.importorskip("openvino")
    exact = counts(network, images, sigma=(0.1, 0.5), n=1600, dtype=torch.float32, engine="eager")
    assert (exact.sum((0, 1)) > 0).sum() > 1
    asked = {"dtype": torch.bfloat16} if how == "eager" or torch.bfloat16 == LOW else {}
    assert np.array_equal(counts(network, images, sigma=(0.1, 0.5), n=1600, engine=how, **asked), exact)


def test_where_rounding_is_large_the_default_is_float32(images):
    """Logits that are small differences of large sums."""
    cancelling = nn.Sequential(nn.Flatten(), nn.Linear(64, 512), nn.Linear(512, 3))
    with torch.no_grad():
        cancelling[1].weight.mul_(1000)
        cancelling[1].bias.fill_(1e5)
        cancelling[2].weight[:, 256:] = -cancelling[2].weight[:, :256]
    assert what(cancelling, images, engine="eager") == "eager, float32"
    if torch.bfloat16 == LOW:
        assert what(cancelling, images, engine="eager", dtype=torch.bfloat16) == "eager, bfloat16, near ties in float32"


class Saturated(nn.Sequential):
    """For features of 0 to 1 always the same answer; the offset of 1,000 leaves bfloat16 no digits for features near it."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        super().__init__(nn.Linear(6, 32), nn.Tanh(), nn.Linear(32, 4))
        with torch.no_grad():
            self[0].weight /= 10
            self[0].bias -= self[0].weight.sum(1) * 1000


class Trees(nn.Module):
    """A tree of another library, as a user wraps it: tracing records its answer as a constant."""

    def forward(self, x):
        inner, outer = x.numpy().reshape(len(x), -1)[:, :2].T > 1000
        return torch.from_numpy(np.stack([inner & outer, inner & ~outer, ~inner], 1).astype(np.float32))


@pytest.mark.parametrize(("make", "asked"), [(Saturated, {"engine": "eager", "dtype": torch.bfloat16}), (Trees, {})])
def test_what_trial_images_do_not_reach_is_compared_on_the_images(make, asked, converting):
    """Trial images lie in [0, 1]. The rows of this table do not."""
    model, rows = make(), 1000 + 10 * torch.randn(4, 6, generator=torch.Generator().manual_seed(0))
    exact = counts(model, rows, sigma=5.0, engine="eager", dtype=torch.float32)
    assert (exact.sum((0, 1)) > 0).sum() > 1
    message = "other logits than the model's for these images, so the model runs as it is|large rounding errors for these images"
    with pytest.warns(UserWarning, match=message):
        assert np.array_equal(counts(model, rows, sigma=5.0, **asked), exact)
    if make is Trees:
        with pytest.warns(UserWarning, match="other logits"):
            assert np.array_equal(predict(model, rows), model(rows).argmax(1).numpy())


def test_rounding_errors_outside_the_unit_interval_change_no_label():
    """Of a network with one output for a table in its own units: near ties are reckoned from errors on the rows themselves."""
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(32, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 1)).eval()
    rows = torch.randn(4000, 32, generator=torch.Generator().manual_seed(0)) * 200 + 500
    with torch.no_grad():
        logits = model(rows)[:, 0] - (middle := model(rows).median())
        model[-1].bias -= middle
    near = torch.arange(3, 16, 4)
    rows = rows[:16].index_copy(0, near, rows[logits.abs().argsort()[:4]])
    exact = counts(model, rows, n=250, sigma=1.0, engine="eager", dtype=torch.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert np.array_equal(counts(model, rows, n=250, sigma=1.0, engine="eager", dtype=torch.bfloat16), exact)
    assert 0 < exact[0, near, 0].mean() < 250


@pytest.mark.parametrize(
    ("of", "continuous"),
    [
        (lambda z: z.argmax(1, keepdim=True) * z, False),
        (lambda z: z.max(1, keepdim=True).indices * z, False),
        (lambda z: (z * 50).long().remainder(4) * z, False),
        (lambda z: z * (z > 0.5), False),
        (lambda z: z.clone().floor_(), False),
        (lambda z: z.gather(1, z.topk(2).indices), False),
        (lambda z: nn.functional.softmax(nn.functional.layer_norm(nn.functional.gelu(z), z.shape), 1), True),
        (lambda z: nn.functional.max_pool2d(z.view(2, 1, 8, 8), 2).relu(), True),
        (lambda z: z.masked_fill(torch.zeros(2, 64) != 0, -100.0), True),
    ],
)
def test_jumps_are_seen(of, continuous):
    """Where a gate picks or compares, rounding may change the logits by much."""
    with engine._Reading() as reading:
        of(torch.rand(2, 64))
    assert reading.continuous == continuous


def test_bfloat16_is_not_the_default_of_a_network_with_jumps(images):
    pytest.importorskip("openvino")

    class Steps(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            wide = (nn.Linear(64, 768), nn.ReLU(), nn.Linear(768, 768), nn.ReLU(), nn.Linear(768, 4))
            self.one, self.two = (nn.Sequential(nn.Flatten(), *copy.deepcopy(wide)) for _ in range(2))

        def forward(self, x):
            z = self.one(x)
            return z + self.two(x) * (z[:, :1] > 0)  # with a sigmoid instead, bfloat16 would be the default

    assert "bfloat16" not in what(Steps().eval(), images, engine="openvino")
    with pytest.warns(UserWarning, match="bfloat16 may change labels that are no near ties: the model compares"):
        assert "bfloat16" in what(Steps().eval(), images, engine="eager", dtype=torch.bfloat16)


def test_a_forward_that_fails_in_bfloat16_runs_in_float32(images, monkeypatch):
    class Numeric(nn.Linear):
        def forward(self, x):
            return torch.from_numpy(super().forward(x.flatten(1)).numpy())  # NumPy has no bfloat16

    monkeypatch.setattr(engine, "fast_dtype", lambda device: torch.bfloat16)
    model = Numeric(64, 5)
    assert what(model, images, engine="eager") == "eager, float32"
    with pytest.raises(ValueError, match=r"the model cannot run in torch.bfloat16 \(TypeError\): use torch.float32"):
        counts(model, images, engine="eager", dtype=torch.bfloat16)


def test_a_model_in_half_precision_without_a_copy_in_float32_runs_as_it_is(images):
    class Casting(nn.Linear):
        def forward(self, x):
            return super().forward(x.flatten(1).half())

    model = Casting(64, 5).half()
    assert what(model, images) == "eager, float16: no copy in float32 (RuntimeError)"
    with pytest.raises(ValueError, match=r"the model runs in torch.float16 only, got dtype=torch.float32"):
        counts(model, images, dtype=torch.float32)


# The choice


def test_short_work_stays_eager(network, images, converting, monkeypatch):
    monkeypatch.setattr(engine, "CONVERSION", (1e12, 0.0))
    assert what(network, images, passes=100) == "eager, float32: the work is short" and not converting
    assert what(network, images).startswith("OpenVINO 20") and len(converting) == 1
    assert what(network, images, passes=100).startswith("OpenVINO 20") and len(converting) == 1  # it is there


def test_short_work_is_not_preceded_by_long_trials(images, monkeypatch):
    monkeypatch.setattr(engine, "fast_dtype", lambda device: torch.bfloat16)
    model, seen = nn.Sequential(nn.Flatten(), nn.Linear(64, 3)), []
    model.register_forward_pre_hook(lambda module, args: seen.append(len(args[0])))
    for how in ("eager", "auto"):
        counts(model, images[:1], n=1, engine=how)
    assert sum(seen) < 50


def test_the_recommended_normalisation_is_converted_with_the_network(network, images, converting):
    normalised = nn.Sequential(v2.Normalize([0.5], [0.2]), network)
    assert what(normalised, images).startswith("OpenVINO 20") and len(converting) == 1


def test_the_choice_does_not_depend_on_the_points(images, converting):
    for points in (images, images * 0, images[:1] * 50):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Flatten(), nn.Linear(64, 5))
        with evaluating(model) as logits:
            assert compile_for_inference(logits, points, dtype=torch.float32).batch_size == 4096
        assert what(model, points, dtype=torch.float32).startswith("OpenVINO")


def test_what_is_made_is_kept_for_the_same_weights(images, converting):
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 5))
    first = counts(model, images)
    assert np.array_equal(counts(model, images[:2]), first[:, :2]) and len(converting) == 1
    counts(model, images, dtype=torch.float32)
    counts(model, images)  # both precisions are kept
    assert len(converting) == 2
    with torch.no_grad():
        model[1].weight.data.mul_(-1)  # not seen by autograd's version counter
    after = counts(model, images)
    assert len(converting) == 3 and np.array_equal(after, counts(model, images, engine="eager"))
    assert not np.array_equal(after, first)


def test_an_attribute_that_changes_the_answer_is_noticed(images, converting):
    class Turned(nn.Linear):
        turned = False

        def forward(self, x):
            return super().forward(x.flatten(1)) * (-1 if self.turned else 1)

    torch.manual_seed(0)
    model = Turned(64, 5)
    before = counts(model, images)
    model.turned = True
    assert not np.array_equal(counts(model, images), before) and len(converting) == 2
    assert np.array_equal(counts(model, images), counts(model, images, engine="eager"))


def test_an_attribute_that_matters_only_outside_the_unit_interval_is_noticed(images, converting):
    """Trial images, which lie in [0, 1], give the same logits."""

    class Clipped(nn.Linear):
        clip = False

        def forward(self, x):
            return super().forward((x.clamp(0, 1) if self.clip else x).flatten(1))

    torch.manual_seed(0)
    model = Clipped(64, 5)
    before = counts(model, images, sigma=1.0, engine="openvino")
    model.clip = True
    after = counts(model, images, sigma=1.0, engine="openvino")
    assert np.array_equal(after, counts(model, images, sigma=1.0, engine="eager")) and not np.array_equal(after, before)


def test_a_hook_registered_after_a_conversion_is_called(images, converting):
    model, seen = nn.Sequential(nn.Flatten(), nn.Linear(64, 5)), []
    counts(model, images)
    assert len(converting) == 1
    model[0].register_forward_hook(lambda module, args, out: seen.append(len(out)))
    counts(model, images)
    assert sum(seen) >= 6 * 130
    with pytest.raises(ValueError, match="it has hooks"):
        counts(model, images, engine="openvino")


class Deciding(nn.Module):
    def forward(self, x):
        return x.flatten(1)[:, :3] if x.mean() > 0.01 else x.flatten(1)[:, 3:6]


class Remembering(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("kept", torch.ones(3))

    def forward(self, x):
        return torch.from_numpy(x.flatten(1)[:, :3].numpy() * self.kept.numpy())


def hooked() -> nn.Module:
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 3))
    model[1].register_forward_pre_hook(lambda module, args: None)
    return model


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (Deciding, "its forward reads values of tensors"),
        (Remembering, "OpenVINO .* (gives other logits|cannot run it)"),
        (hooked, "it has hooks"),
    ],
)
def test_what_cannot_be_converted_runs_as_it_is(make, reason, images, converting):
    model = make()
    with pytest.raises(ValueError, match=f"engine 'openvino' was asked for, and cannot run this model: ({reason})"):
        counts(model, images, engine="openvino")
    assert what(model, images).startswith("eager") and re.search(reason, what(model, images))


def test_an_engine_that_could_only_run_eagerly_is_refused(images):
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 3))
    for dtype in (torch.float16, torch.bfloat16, torch.float64):
        with pytest.raises(ValueError, match=f"engine 'openvino' runs .* in float32, got one in {dtype}: use engine='auto'"):
            counts(nn.Sequential(nn.Flatten(), nn.Linear(64, 3)).to(dtype), images, engine="openvino")
    with pytest.raises(ValueError, match=r"engine 'openvino' runs deterministic .*, got a stochastic one"):
        counts(model, images, engine="openvino", stochastic=True)


@pytest.mark.parametrize("asked", [None, torch.bfloat16, torch.float32])
def test_a_stochastic_model_in_half_precision_runs_in_the_precision_asked_for(asked, images):
    seen = []
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 3)).bfloat16()
    model.register_forward_pre_hook(lambda module, args: seen.append((len(args[0]), args[0].dtype)))
    assert counts(model, images, stochastic=True, dtype=asked).sum() == 6 * 130
    assert {dtype for size, dtype in seen if size > 2} == {asked or torch.bfloat16}


def test_a_conversion_that_gives_other_logits_is_dropped(images, converting, monkeypatch):
    monkeypatch.setattr(engine, "_on_openvino", lambda net, x: lambda dtype: lambda points: 1.01 * net(points))
    assert what(nn.Sequential(nn.Flatten(), nn.Linear(64, 5)), images).endswith("gives other logits")


def test_without_openvino_all_works(images, monkeypatch):
    monkeypatch.setitem(sys.modules, "openvino", None)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 5))
    assert what(model, images).endswith("OpenVINO is not installed (pip install 'bslib[fast]')")
    with pytest.raises(ValueError, match="OpenVINO is not installed"):
        counts(model, images, engine="openvino")


def test_openvino_sends_no_messages():
    pytest.importorskip("openvino")
    script = """
import sys, torch, bslib
model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 3))
bslib.wobbliness(model, torch.rand(1, 1, 2, 2), engine="openvino", progress=False)
assert "openvino" in sys.modules
print([name for name in sys.modules if name.split(".")[0] == "openvino_telemetry"])
"""
    assert subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout == "[]\n"
    files = (Path(__file__).parents[1] / "bslib").rglob("*.py")
    importing = [path.name for path in files if re.search("^ *(import|from) openvino", path.read_text(), re.MULTILINE)]
    assert importing == ["engine.py"], "with the guard against messages"


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"engine": "fast"}, "engine must be one of auto, openvino, eager, got 'fast'"),
        ({"dtype": torch.int8}, "or for one in float32 bfloat16 or float16, got torch.int8"),
    ],
)
def test_unknown_choices_are_named(network, images, options, says):
    with pytest.raises(ValueError, match=says):
        counts(network, images, **options)


# The guarantees of the measure hold


@pytest.fixture(scope="module")
def whole(network, images) -> np.ndarray:
    """The counts of all images by OpenVINO."""
    pytest.importorskip("openvino")
    return counts(network, images, sigma=(0.3, 0.6), engine="openvino")


@settings(max_examples=6, deadline=None)
@given(
    order=st.permutations(range(6)),
    keep=st.integers(1, 6),
    batch_size=st.sampled_from([None, 1, 64, 1000]),
    threads=st.sampled_from([1, 2]),
)
def test_order_company_and_threads_do_not_matter(network, images, whole, order, keep, batch_size, threads):
    chosen, before = list(order)[:keep], torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        part = counts(network, images[chosen], sigma=0.6, batch_size=batch_size, engine="openvino")
    finally:
        torch.set_num_threads(before)
    assert np.abs(whole[1:, chosen] - part).sum() <= 2  # one label, where rounding decides


def test_a_network_of_the_paper():
    pytest.importorskip("openvino")
    model, x = build("small-fashion", seed=0), torch.rand(1, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    assert what(model, x, engine="openvino").startswith("OpenVINO")
    assert np.array_equal(counts(model, x, engine="openvino"), counts(model, x, engine="eager", dtype=torch.float32))


def test_what_gpus_run_has_no_batch_norms_left_and_the_same_logits():
    model, x = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.LazyLinear(3)), torch.rand(16, 1, 8, 8)
    model(x)  # in training mode: the batch norm learns a mean and a variance
    with evaluating(model) as network:
        logits, seen = [], []
        for run in (network, engine._folded(network, x)(torch.float32)):
            with torch.profiler.profile() as profile:
                logits.append(run(x))
            seen.append({event.key for event in profile.events()})
    assert ["aten::batch_norm" in keys for keys in seen] == [True, False] and torch.allclose(*logits, atol=1e-5)


def test_a_call_leaves_nothing_behind(network, images):
    """Reference cycles would keep tensors until the garbage collector comes."""
    counts(network, images)
    gc.collect()
    gc.disable()
    try:
        before = sum(type(thing) is torch.Tensor for thing in gc.get_objects())
        for _ in range(5):
            counts(network, images)
        assert sum(type(thing) is torch.Tensor for thing in gc.get_objects()) == before
    finally:
        gc.enable()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("how", ["auto", "eager"])
def test_on_a_gpu_the_labels_are_those_of_a_cpu(network, images, how):
    on_gpu = counts(network.cuda(), images.cuda(), n=4000, engine=how)
    on_cpu = counts(network.cpu(), images, n=4000)  # other noise: equal up to chance
    assert np.abs(on_gpu - on_cpu).max() < 5 * (4000 / 2) ** 0.5
