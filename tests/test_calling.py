"""Other people's networks: what is accepted gives the counts of a plain loop, what is not says what to do."""

from __future__ import annotations

import os
import random
import re
import signal
import subprocess
import sys
import threading
import warnings
from importlib.util import find_spec
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from torch import nn
from torch.nn import functional
from torchvision.ops import stochastic_depth

from bslib import engine
from bslib.calling import Logits, check_inputs, digest_of, evaluating, same_logits
from bslib.detectors.logit_shift import logit_shift_variance
from bslib.detectors.strip import strip_entropy
from bslib.measure import class_counts, predict, standard_noise, wobbliness
from bslib.patterns.neural_cleanse import reverse_triggers
from bslib.patterns.universal import universal_perturbation

SHAPE = (1, 8, 8)


def seeded(*layers) -> nn.Sequential:
    torch.manual_seed(0)
    network = nn.Sequential(*layers)
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.5)
    return network


def plain() -> nn.Sequential:
    return seeded(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Dropout(), nn.Linear(144, 5)).eval()


class Wrapped(nn.Module):
    """A network whose forward is ``body(inner, x)``."""

    def __init__(self, body, inner: nn.Module | None = None) -> None:
        super().__init__()
        self.inner, self.body = plain() if inner is None else inner, body

    def forward(self, x):
        return self.body(self.inner, x)


@pytest.fixture
def images() -> torch.Tensor:
    return torch.rand(4, *SHAPE, generator=torch.Generator().manual_seed(1))


def counts(model, images, sigma=0.3, n=70, **options):
    return class_counts(model, images, sigma, n, seed=3, progress=False, **options)


def loop(logits, images, sigma=0.3, n=70) -> np.ndarray:
    """Eqs. 1 and 2 written out over the noise of :func:`standard_noise`."""
    found = []
    with torch.no_grad():
        for image, noise in zip(images, standard_noise(images, n, seed=3), strict=True):
            out = logits(image + sigma * noise)
            found.append(np.bincount(out.argmax(1).numpy(), minlength=out.shape[1]))
    return np.stack(found)[None]


def masked(logits: torch.Tensor) -> torch.Tensor:
    """The logits of three classes, and of two that are never predicted."""
    return torch.cat([logits[:, :3], torch.full_like(logits[:, 3:], -1e9)], 1)


def lstm() -> nn.Module:
    return Wrapped(lambda net, x: net[1](net[0](x)[0][:, -1]), nn.ModuleList([nn.LSTM(3, 8, batch_first=True), nn.Linear(8, 4)]))


def exported() -> nn.Module:
    return torch.export.export(plain(), (torch.zeros(2, *SHAPE),), dynamic_shapes=({0: torch.export.Dim("b")},)).module()


def hooked() -> nn.Module:
    model = plain()
    model[0].register_forward_hook(lambda module, args, out: 2 * out)
    return model


ACCEPTED = {
    "logits in an object": (lambda: Wrapped(lambda net, x: SimpleNamespace(logits=net(x), loss=None)), {}),
    "a tuple": (lambda: Wrapped(lambda net, x: (x, net(x))), {"output": 1}),
    "a mapping": (lambda: Wrapped(lambda net, x: {"features": x, "scores": net(x)}), {"output": "scores"}),
    "a data class": (lambda: Wrapped(lambda net, x: SimpleNamespace(scores=net(x))), {"output": "scores"}),
    "passes through NumPy": (lambda: Wrapped(lambda net, x: torch.from_numpy(net(x).numpy().astype(float))), {}),
    "in half precision inside": (lambda: Wrapped(lambda net, x: net(x.half()).float(), plain().half()), {}),
    "writes into its input": (lambda: Wrapped(lambda net, x: net(x.sub_(0.5).div_(0.25))), {}),
    "branches on values": (lambda: Wrapped(lambda net, x: net(x) if float(x[0].sum()) > -1e9 else net(-x)), {}),
    "scripted": (lambda: torch.jit.script(plain()), {}),
    "traced": (lambda: torch.jit.trace(plain(), torch.zeros(2, *SHAPE)), {}),
    "frozen": (lambda: torch.jit.freeze(torch.jit.script(plain())), {}),
    "exported": (exported, {}),
    "data parallel": (lambda: nn.DataParallel(plain()), {}),
    "hooked": (hooked, {}),
    "masks classes": (lambda: Wrapped(lambda net, x: net(x) - torch.tensor([0, 0, 0, 1e9, 1e9])), {}),
}


@pytest.mark.filterwarnings("ignore:.*torch.jit.*is deprecated")
@pytest.mark.parametrize("eagerly", [True, False])
@pytest.mark.parametrize("kind", ACCEPTED)
def test_counts_are_those_of_a_plain_loop(kind, eagerly, images, monkeypatch):
    if not eagerly:  # whatever can be converted is
        pytest.importorskip("openvino")
        monkeypatch.setattr(engine, "SAVED", dict.fromkeys(engine.SAVED, 1e6))
        monkeypatch.setattr(engine, "_timed", lambda network, images: (network(images), 1.0))
    make, options = ACCEPTED[kind]
    model = make()
    expected = loop(lambda x: Logits(model, options.get("output"))(x), images)
    assert (expected.sum((0, 1)) > 0).sum() > 1  # not one class alone
    assert np.array_equal(counts(model, images, **options), expected)


@pytest.mark.parametrize(
    ("model", "shape"),
    [
        (seeded(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 3)), (8,)),
        (lstm(), (12, 3)),
        (seeded(nn.Conv1d(1, 4, 64, stride=32), nn.ReLU(), nn.Flatten(), nn.Linear(996, 3)), (1, 8000)),
        (seeded(nn.Flatten(), nn.Linear(64, 1000)), SHAPE),
    ],
    ids=["tabular", "sequences", "audio", "1,000 classes"],
)
def test_points_of_any_shape(model, shape):
    points = torch.rand(3, *shape, generator=torch.Generator().manual_seed(2))
    assert np.array_equal(counts(model, points), loop(model, points))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_precisions(dtype, images):
    """In half precision near ties are evaluated in float32, so the labels are those of a float32 copy of the rounded weights."""
    model = plain().to(dtype)
    exact = plain().to(dtype).to(torch.float64 if dtype == torch.float64 else torch.float32)
    expected = loop(lambda x: exact(x.to(next(exact.parameters()).dtype)), images, n=640)
    assert np.array_equal(counts(model, images, n=640), expected)


def test_quantised_networks(images):
    from torch.ao.quantization import QuantStub, convert, get_default_qconfig, prepare

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = nn.Sequential(QuantStub(), nn.Flatten(), nn.Linear(64, 5), torch.ao.quantization.DeQuantStub()).eval()
        model.qconfig = get_default_qconfig(torch.backends.quantized.engine)
        prepared = prepare(model)
        prepared(images)
        quantised = convert(prepared)
    assert np.array_equal(counts(quantised, images), loop(quantised, images))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("fullgraph", [False, True])
def test_a_compiled_network(fullgraph, images, monkeypatch):
    monkeypatch.setattr(engine, "SAVED", dict.fromkeys(engine.SAVED, 1e6))
    model = torch.compile(plain(), backend="eager", fullgraph=fullgraph)
    assert np.array_equal(counts(model, images), loop(plain(), images))


def test_a_part_without_modes_keeps_no_other_part_in_training(images):
    """Exported programs refuse eval() and train()."""
    model = nn.Sequential(exported(), nn.BatchNorm1d(5), nn.Dropout())
    assert np.array_equal(counts(model, images), loop(exported(), images))
    assert model[1].training and model[2].training and model[1].num_batches_tracked == 0


def test_a_part_that_keeps_its_own_mode_keeps_it(images):
    """As where dropout stays on for an average over many answers."""

    class Kept(nn.Sequential):
        def train(self, mode=True):
            super().train(mode)
            self[0].train()
            return self

    model = nn.Sequential(nn.Flatten(), Kept(nn.Dropout()), nn.Linear(64, 3))
    with pytest.raises(ValueError, match="by chance"):
        counts(model, images)


@pytest.mark.filterwarnings("ignore:.*other logits than the model's")
def test_a_conversion_that_differs_outside_the_unit_interval_alone():
    """OpenVINO's quotient of whole numbers is another one where few of the noisy rows are: below 0."""
    pytest.importorskip("openvino")
    torch.manual_seed(4)
    inner = nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 3))
    model, rows = Wrapped(lambda net, x: net(((x * 100).int() // 7).float() / 3), inner), 0.35 + 0.3 * torch.rand(8, 6)
    converted, eager = (class_counts(model, rows, 0.15, 1000, seed=0, engine=e, progress=False) for e in ("openvino", "eager"))
    assert np.array_equal(converted, eager)


# Silent errors of the past


def test_a_single_logit_is_two_classes_with_the_threshold_at_zero(images):
    model = seeded(nn.Flatten(), nn.Linear(64, 1))
    expected = loop(lambda x: torch.cat([torch.zeros(len(x), 1), model(x)], 1), images, sigma=2.0)
    assert np.array_equal(counts(model, images, sigma=2.0), expected) and expected.min() > 0
    with pytest.warns(UserWarning, match="if it is a probability, return its logit"):
        counts(nn.Sequential(model, nn.Sigmoid()), images)
    model[1].weight.data *= 0.01
    model[1].bias.data.fill_(0.5)  # in [0, 1] for images, yet a logit
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert counts(model, images)[..., 1].min() > 0


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (lambda net, x: net(x.flip(3) if random.random() < 0.5 else x), "asked again, by chance"),
        (lambda net, x: net(x.flip(3) if np.random.rand() < 0.5 else x), "asked again, by chance"),  # noqa: NPY002
        (lambda net, x: net(x.flip(3) if torch.rand(()) < 0.5 else x), "asked again, by chance"),
        (lambda net, x: net(x.flip(3) if random.random() < 0.02 else x), "asked again, by chance"),
        (lambda net, x: net(x.flip(3) if np.random.rand() > 0.98 else x), "asked again, by chance"),  # noqa: NPY002
        (lambda net, x: net(x.flip(3) if torch.empty(()).bernoulli_(0.02) else x), "asked again, by chance"),
        (lambda net, x: net(stochastic_depth(x, 0.02, "batch")), "asked again, by chance"),
        (lambda net, x: functional.dropout(net(x), 0.1, training=True), "asked again, by chance"),
        (lambda net, x: net(x + 0.05 * torch.randn_like(x)), "asked again, by chance"),
        (lambda net, x: net((x - x.mean()) / x.std()), "depends on the other images"),
        (lambda net, x: net((x / x.amax() * 7).round() / 7), "depends on the other images"),
        (lambda net, x: masked(functional.dropout(net(x), 0.1, training=True)), "asked again, by chance"),
        (lambda net, x: masked(net((x - x.mean()) / x.std())), "depends on the other images"),
    ],
)
@pytest.mark.parametrize("how", ["auto", "openvino"])
def test_what_is_no_function_of_one_image_is_refused(body, says, how, images):
    pytest.importorskip("openvino")
    model = Wrapped(body)
    states = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()  # noqa: NPY002
    with pytest.raises(ValueError, match=f"{says}.*stochastic=True"):
        counts(model, images, engine=how)
    assert random.getstate() == states[0] and np.random.get_state()[1].tolist() == states[1]  # noqa: NPY002
    assert torch.equal(torch.get_rng_state(), states[2])
    assert counts(model, images, stochastic=True).sum() == 4 * 70


class Noisy(nn.Module):
    """A smoothed classifier that votes anew for each image; only about bright images there is any doubt."""

    def forward(self, x):
        return functional.one_hot((x.mean((1, 2, 3)) + 0.05 * torch.randn(len(x)) > 0.775).long(), 3).float()


def scaled_by_the_batch(net, x):
    return net(x / 255 if x.max() > 1 else x)


@pytest.mark.parametrize("model", [Noisy(), Wrapped(scaled_by_the_batch, seeded(nn.Flatten(), nn.Linear(3072, 4)))])
def test_what_shows_in_a_later_batch_alone_is_refused(model):
    """Batches of large images have the copies of one image each."""
    x = 0.6 + 0.35 * torch.rand(6, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    x[0] /= 10
    with pytest.raises(ValueError, match="depends on the other images of a large batch, or on chance"):
        class_counts(model, x, 0.02, 250, seed=0, progress=False)


class Frozen(nn.Module):
    """A part in half precision, which gets its own input, beside one in float32."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.frozen, self.rest = nn.Linear(64, 3).bfloat16(), nn.Linear(64, 3)

    def forward(self, x):
        return self.frozen(x.flatten(1).bfloat16()).float() + 4 * self.rest(x.flatten(1))


@pytest.mark.parametrize("how", [{}, {"engine": "eager", "dtype": torch.float32}])
def test_a_part_in_half_precision_does_not_round_the_images_of_the_others(how):
    model, many = Frozen().eval(), torch.rand(2000, *SHAPE, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        best = model(many).topk(2).values
    close = many[(best[:, 0] - best[:, 1]).argsort()[:8]]
    assert np.array_equal(counts(model, close, sigma=0.001, n=250, **how), loop(model, close, sigma=0.001, n=250))


def test_a_network_in_half_precision_with_near_ties_only():
    """These are evaluated in a copy of it in float32, which takes images in float32."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 3)).bfloat16()
    with torch.no_grad():
        model[1].weight.mul_(1e-3)
        model[1].bias.fill_(1)
    assert counts(model, torch.rand(3, *SHAPE)).sum() == 3 * 70


def test_warnings_that_are_errors_stay_warnings(images):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(UserWarning, match="if it is a probability, return its logit"):
            counts(nn.Sequential(nn.Flatten(), nn.Linear(64, 1), nn.Sigmoid()), images)


def test_a_small_logit_among_larger_ones_is_no_other_answer():
    """Of a network with one output, one image of a batch is compared, and it may lie on the threshold."""
    one, large = torch.tensor([[0.0, 1e-4]]), torch.tensor([[0.0, 5.0], [0.0, 1e-4]])
    assert not same_logits(one, one + 1e-5, 1e-3) and same_logits(one, one + 1e-5, 1e-3, among=large)


def test_a_parameter_in_double_precision_does_not_change_that_of_the_images(images):
    heated = Wrapped(lambda net, x: net(x) / heated.temperature)
    heated.temperature = nn.Parameter(torch.tensor([1.5], dtype=torch.float64))
    assert next(heated.parameters()).dtype == torch.float64 and np.array_equal(counts(heated, images), loop(heated, images))


def in_range(net, x):
    assert x.min() >= 0 and x.max() <= 1, "images must lie in [0, 1]"
    return net(x)


@pytest.mark.parametrize("body", [in_range, lambda net, x: net(torch.zeros(128, *SHAPE)[: len(x)].copy_(x))])
def test_a_model_that_fails_on_noisy_images_or_large_batches_is_an_error_of_one_line(body, images):
    with pytest.raises(ValueError, match=r"the model fails on batches of images of shape .*Error: .*batch_size=64") as problem:
        counts(Wrapped(body), images)
    assert "\n" not in str(problem.value)


def test_conjugate_buffers_and_ids_in_a_tensor(images):
    def fourier(net, x):
        return net(torch.fft.irfft2(torch.fft.rfft2(x) * model.kernel, s=(8, 8)))

    model = Wrapped(fourier)
    model.register_buffer("kernel", torch.fft.rfft2(images[0]).conj())
    assert np.array_equal(counts(model, images, ids=torch.arange(4)), counts(model, images, ids=[0, 1, 2, 3]))


def test_features_outside_the_unit_interval_are_said(images):
    with pytest.warns(UserWarning, match=r"x has features from .* to 2\d\d.*, sigma is meant for features in \[0, 1\]"):
        counts(plain(), images * 255)
    with pytest.warns(UserWarning, match="have the model normalise"):
        counts(plain(), (images - 0.5) / 0.25)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        counts(nn.Linear(3, 2), torch.full((2, 3), 40.0))  # a table has units of its own


def test_warnings_name_the_line_of_the_caller(images):
    for call in (class_counts, wobbliness):
        probability = seeded(nn.Flatten(), nn.Linear(64, 1), nn.Sigmoid())
        with pytest.warns(UserWarning) as caught:
            line = sys._getframe().f_lineno + 1
            call(probability, 2 * images, 0.1, 10, seed=0, progress=False)
        assert len(caught) == 2 and {(warning.filename, warning.lineno) for warning in caught} == {(__file__, line)}


@pytest.mark.parametrize(
    "setting", ["dtype", "device", "autocast", "inference", "grad", "deterministic", "precision", "generator"]
)
def test_what_the_caller_has_set_changes_nothing_and_is_not_changed(setting, images):
    model = plain()
    expected, before = counts(model, images, n=640), torch.get_rng_state()
    with torch.random.fork_rng(devices=[]):
        try:
            if setting == "dtype":
                torch.set_default_dtype(torch.float64)
            elif setting == "device":
                torch.set_default_device("meta")
            elif setting == "deterministic":
                torch.use_deterministic_algorithms(True)
            elif setting == "precision":
                torch.set_float32_matmul_precision("medium")
            elif setting == "generator":
                torch.manual_seed(99)
            modes = {"autocast": torch.autocast("cpu", torch.bfloat16), "inference": torch.inference_mode()}
            with modes.get(setting, torch.enable_grad()):
                state = torch.get_rng_state()
                found = [counts(model, images, n=640, engine=how) for how in ("auto", "eager")]
                now = (torch.get_default_dtype(), torch.get_default_device().type, torch.is_autocast_enabled("cpu"))
                assert torch.equal(torch.get_rng_state(), state)
            assert now == (
                torch.float64 if setting == "dtype" else torch.float32,
                "meta" if setting == "device" else "cpu",
                setting == "autocast",
            )
            assert torch.are_deterministic_algorithms_enabled() == (setting == "deterministic")
            assert torch.get_float32_matmul_precision() == ("medium" if setting == "precision" else "highest")
        finally:
            torch.set_default_dtype(torch.float32)
            torch.set_default_device(None)
            torch.use_deterministic_algorithms(False)
            torch.set_float32_matmul_precision("highest")
    assert all(np.array_equal(one, expected) for one in found)
    assert torch.equal(torch.get_rng_state(), before)


def test_the_callers_images_stay_as_they_are(images):
    """Whoever calls a user's model gives it a clone."""
    model, before = Wrapped(lambda net, x: net(x.sub_(0.5).div_(0.25))), images.clone()
    reference = Wrapped(lambda net, x: net((x - 0.5) / 0.25))
    for call in (
        lambda net: torch.from_numpy(predict(net, images)),
        lambda net: strip_entropy(net, images, images),
        lambda net: torch.tensor(logit_shift_variance(net, images, 1 - images)),
        lambda net: universal_perturbation(net, images, bound=0.2, passes=1, seed=0, progress=False).perturbation,
        lambda net: reverse_triggers(net, images, classes=5, samples=4, batch_size=4, steps=2, seed=0, progress=False).masks,
    ):
        torch.testing.assert_close(call(model), call(reference))
        assert torch.equal(images, before)


# Refusals


@pytest.mark.parametrize(
    ("model", "x", "says"),
    [
        (plain(), torch.zeros(1, 8, 8), "use x[None]"),
        (plain(), torch.zeros(2, 8, 8, 1), "use x.permute(0, 3, 1, 2)"),
        (plain(), torch.zeros(2, *SHAPE, device="meta"), "device 'meta', which has no values"),
        (plain(), np.zeros((2, *SHAPE), np.float32), "use torch.as_tensor(x, dtype=torch.float32)"),
        (plain(), torch.zeros(2, *SHAPE, dtype=torch.int64), "use x.float() / 255"),
        (plain(), torch.zeros(2, *SHAPE, dtype=torch.float64), "use x.float()"),
        (LogisticRegression(), torch.zeros(2, 3), "wrap it in a torch.nn.Module whose forward returns logits"),
        (Wrapped(lambda net, x: {"a": net(x), "b": x}), torch.zeros(2, *SHAPE), "got dict with 'a', 'b': wrap the model"),
        (Wrapped(lambda net, x: (net(x), x)), torch.zeros(2, *SHAPE), "got tuple of 2: wrap the model"),
        (Wrapped(lambda net, x: net(x)[:, 0]), torch.zeros(2, *SHAPE), "end it with unsqueeze(1)"),
        (Wrapped(lambda net, x: net(x).unsqueeze(2)), torch.zeros(2, *SHAPE), "got (2, 5, 1)"),
        (Wrapped(lambda net, x: net(x).argmax(1, keepdim=True)), torch.zeros(2, *SHAPE), "logits as floats, got torch.int64"),
        (Wrapped(lambda net, x: net(x) > 0), torch.zeros(2, *SHAPE), "got torch.bool: return scores, not predicted classes"),
        (nn.Sequential(nn.Flatten(), nn.LazyLinear(3)), torch.zeros(2, *SHAPE), "call it once on an image first"),
        (nn.BatchNorm1d(3, track_running_stats=False), torch.zeros(2, 3), "with a batch of shape (1, 3): ValueError: Expected"),
    ],
)
def test_refusals_name_the_remedy(model, x, says):
    with pytest.raises(ValueError) as caught:
        counts(model, x)
    assert says in str(caught.value) and "\n" not in str(caught.value)


def test_chance_is_seen_in_half_precision(images):
    model = Wrapped(lambda net, x: net(functional.dropout(x, 0.02, training=True))).bfloat16()
    with pytest.raises(ValueError, match="asked again, by chance"):
        counts(model, images)


@pytest.mark.parametrize(
    ("model", "output", "says"),
    [
        (plain(), [], "output must be the name or the index of what holds the logits, got []"),
        (plain(), True, "output must be the name or the index of what holds the logits, got True"),
        (plain(), "scores", "output='scores' names nothing in what the model returned: Tensor"),
        (Wrapped(lambda net, x: net(x).to_sparse()), None, "dense tensor, got torch.sparse_coo"),
    ],
)
def test_outputs_that_hold_no_logits(model, output, says, images):
    with pytest.raises(ValueError, match=re.escape(says)):
        counts(model, images, output=output)


def test_an_output_that_is_not_there(images):
    with pytest.raises(ValueError, match="output='scores' names nothing in what the model returned: dict with 'a'"):
        counts(Wrapped(lambda net, x: {"a": net(x)}), images, output="scores")


@pytest.mark.parametrize(
    "call",
    [
        lambda net, x: strip_entropy(net, x, x),
        lambda net, x: logit_shift_variance(net, x, 1 - x),
        lambda net, x: universal_perturbation(net, x, bound=0.2, passes=1, seed=0, progress=False),
        lambda net, x: reverse_triggers(net, x, classes=5, samples=4, batch_size=4, steps=1, seed=0, progress=False),
    ],
)
def test_detectors_and_patterns_need_images_in_the_precision_of_the_model(call, images):
    for dtype in (torch.float64, torch.bfloat16):
        model = plain().to(dtype)
        with pytest.raises(ValueError, match=f"the model's precision, {dtype}, got torch.float32: use model.float()"):
            call(model, images)
        call(model, images.to(dtype))
    with pytest.raises(ValueError, match=r"the model's precision, torch.float32, got torch.float64: use x.float\(\)"):
        call(plain(), images.double())


@pytest.mark.parametrize(
    ("x", "says"),
    [
        (torch.full((1, 2), torch.inf), "finite"),
        (torch.zeros(1, 2, dtype=torch.int8), "float"),
        (torch.zeros(1, 2), "one device"),
    ],
)
def test_inputs_that_do_not_fit(x, says):
    with pytest.raises(ValueError, match=says):
        check_inputs(nn.Linear(2, 1, device="meta" if says == "one device" else None), x)


# Threads and modes


def test_threads_take_turns_and_the_model_keeps_its_mode(images):
    """In training mode, eight at once: without a lock they see one another's modes and overwrite the batch norm's statistics."""
    model = plain().train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    expected, found = counts(model, images), []
    threads = [threading.Thread(target=lambda: found.append(counts(model, images))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 8 and all(np.array_equal(one, expected) for one in found)
    assert model.training and all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_two_models_that_share_a_module_take_turns(images):
    """While one runs, the other, in training mode, must not start: on leaving, the first would put back modes and precision."""
    shared, inside, left = plain().train(), threading.Event(), []

    def body(net, x):
        inside.set()
        other.join(0.2)  # without the lock the other would now finish
        left.append(other.is_alive())
        return net(x)

    other = threading.Thread(target=lambda: inside.wait() and counts(Wrapped(lambda net, x: net(x), shared), images))
    torch.set_float32_matmul_precision("medium")
    try:
        other.start()
        with evaluating(Wrapped(body, shared)) as network:
            network(images)
            assert left == [True] and torch.backends.mkldnn.matmul.fp32_precision == "ieee"
        other.join()
        assert torch.backends.mkldnn.matmul.fp32_precision == "bf16" and shared.training
    finally:
        torch.set_float32_matmul_precision("highest")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
@pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")
def test_a_forked_process_does_not_wait_for_a_thread_that_it_does_not_have():
    inside, leave = threading.Event(), threading.Event()

    def hold():
        with evaluating(nn.Flatten()):
            inside.set()
            leave.wait()

    holder = threading.Thread(target=hold)
    holder.start()
    inside.wait()
    child = os.fork()
    if child == 0:
        signal.alarm(5)
        try:
            with evaluating(nn.Flatten()):
                os._exit(0)
        finally:  # whatever happens, the child runs no other test
            os._exit(1)
    leave.set()
    holder.join()
    assert os.waitpid(child, 0)[1] == 0


def test_an_interrupt_leaves_no_mixed_modes():
    class Stubborn(nn.Identity):
        def train(self, mode=True):
            if not mode:
                raise KeyboardInterrupt
            return super().train(mode)

    model = nn.Sequential(nn.Dropout(), Stubborn(), nn.Dropout()).train()
    with pytest.raises(KeyboardInterrupt), evaluating(model):
        pass
    assert all(module.training for module in model.modules())


def test_a_model_is_forgotten_when_it_goes(images):
    import gc
    import weakref

    for how in ("eager", "openvino") if find_spec("openvino") else ("eager",):
        model = plain()
        counts(model, images, engine=how)
        gone = weakref.ref(model)
        del model
        gc.collect()
        assert gone() is None


# Digests


def changed(change) -> bool:
    """Whether a change of a network with attributes of many kinds changes its digest."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(2, 2), nn.LSTM(2, 2))
    sparse = torch.eye(2).to_sparse()
    model.register_buffer("adjacency", sparse)
    own = {"flag": False, "sizes": [1, {"a": (2, 3)}], "scale": np.ones(2), "bank": torch.ones(2), "act": torch.relu}
    vars(model).update(own | {"cyclic": [], "empty": torch.ones(2, device="meta"), "other": object(), "same": sparse})
    model.cyclic.append(model.cyclic)
    before = digest_of(model)
    assert digest_of(model) == before
    change(model)
    return digest_of(model) != before


@pytest.mark.parametrize(
    ("change", "seen"),
    [
        (lambda model: setattr(model, "flag", True), True),
        (lambda model: model.sizes[1].update(a=(2, 4)), True),
        (lambda model: model.scale.fill(2), True),
        (lambda model: model.bank.mul_(2), True),
        (lambda model: setattr(model, "act", torch.tanh), True),
        (lambda model: model.adjacency.mul_(2), True),
        (lambda model: setattr(model[0], "start_dim", 2), True),
        (lambda model: model[1].register_forward_hook(print), True),
        (lambda model: model[1].register_forward_pre_hook(print), True),
        (lambda model: setattr(model[0], "__class__", nn.Identity), True),
        (lambda model: model.eval(), False),
        (lambda model: setattr(model, "other", object()), False),
    ],
)
def test_the_digest_sees_plain_attributes_and_hooks(change, seen):
    assert changed(change) == seen


STRENGTH = 0


def helper(x):
    return x


class Using(nn.Module):
    def forward(self, x):
        return helper(x) * STRENGTH


@pytest.mark.parametrize(("name", "value"), [("STRENGTH", 60), ("helper", lambda x: x + 1)])
def test_the_digest_sees_what_forward_uses_by_name(name, value, monkeypatch):
    before = digest_of(Using())
    assert digest_of(Using()) == before
    monkeypatch.setitem(globals(), name, value)
    assert digest_of(Using()) != before


def test_the_digest_is_the_same_in_every_process():
    """Sets of texts have another order with another seed of Python's hashes."""
    code = (
        "from torch import nn; from bslib.calling import digest_of\n"
        "class Net(nn.Module):\n    mode = 'a'\n    def forward(self, x): return x if self.mode in {'a', 'bb', 'ccc'} else -x\n"
        "print(digest_of(Net()))"
    )
    found = {
        subprocess.run(
            [sys.executable, "-c", code], env=os.environ | {"PYTHONHASHSEED": seed}, capture_output=True, check=True
        ).stdout
        for seed in "123"
    }
    assert len(found) == 1


def test_layers_that_merge_in_eval_are_told_to_train_again():
    """As LoRA's do: setting the attribute ``training`` alone would leave them merged."""

    class Merging(nn.Linear):
        merged = False

        def train(self, mode=True):
            self.merged = not mode
            return super().train(mode)

    model = nn.Sequential(Merging(2, 2), nn.Linear(2, 2).eval())
    with evaluating(model):
        assert model[0].merged
    assert not model[0].merged and [part.training for part in (model, *model)] == [True, True, False]


def test_a_precision_for_all_backends_can_still_be_set_afterwards():
    try:
        torch.backends.fp32_precision = "tf32"
        with evaluating(plain()):
            assert torch.backends.mkldnn.conv.fp32_precision == torch.backends.cudnn.conv.fp32_precision == "ieee"
        assert torch.backends.mkldnn.conv.fp32_precision == torch.backends.cudnn.conv.fp32_precision == "tf32"
        torch.backends.fp32_precision = "ieee"
        assert torch.backends.mkldnn.conv.fp32_precision == torch.backends.cudnn.conv.fp32_precision == "ieee"
    finally:
        torch.backends.fp32_precision, torch.backends.cudnn.allow_tf32 = "none", True


def test_an_output_may_be_written_again_and_tf32_be_read():
    class Reusing(nn.Module):
        out = torch.zeros(4, 3)

        def forward(self, x):
            assert torch.backends.cudnn.allow_tf32 is False
            self.out[: len(x)] = x[:, :3]
            return self.out[: len(x)]

    before = torch.backends.cudnn.allow_tf32
    with evaluating(Reusing()) as network:
        first, second = network(torch.ones(2, 3)), network(torch.zeros(2, 3))
    assert first.sum() == 6 and second.sum() == 0 and torch.backends.cudnn.allow_tf32 == before
