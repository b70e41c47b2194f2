"""The lab in a notebook, without a browser: its counts are those of class_counts, and no move of a slider waits in a queue."""

from __future__ import annotations

import base64
import re
import threading
from types import SimpleNamespace

import ipywidgets as widgets
import numpy as np
import pytest
import torch
from torch import nn

import bslib
import bslib.interactive.panel
from bslib.entropy import plug_in
from bslib.triggers import Trigger, pattern

TRIGGER = Trigger(mask=torch.ones(2, 2, dtype=torch.bool), values=torch.ones(1, 2, 2))


def network(classes: int = 4, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, classes))


class Slow(nn.Module):
    """A network that waits before each batch until it may go on, and counts the batches."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.go, self.seen = network(), threading.Event(), threading.Event()
        self.done = SimpleNamespace(batches=0)  # a number of its own would make it another network after each pass

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.seen.set()
        assert self.go.wait(60)
        self.done.batches += 1
        return self.inner(x)


def waiting_panel(images: torch.Tensor, n: int = 250):
    """A slow network and its panel: the first counts are there, and the next batch has to wait."""
    model = Slow()
    model.go.set()
    panel = bslib.lab(model, images, n=n)
    panel.wait(60)
    model.go.clear()
    model.seen.clear()
    return model, panel


@pytest.fixture(autouse=True)
def in_a_notebook(monkeypatch):
    monkeypatch.setattr(bslib.interactive.panel, "get_ipython", object)


@pytest.fixture
def images() -> torch.Tensor:
    return torch.rand(3, 1, 8, 8, generator=torch.Generator().manual_seed(1))


def expected(model, images, index, sigma, n, *, trigger=None, seed=0):
    image = images[index : index + 1]
    image = image if trigger is None else trigger(image)
    return bslib.class_counts(model, image, sigma, n, seed=seed, ids=[index], progress=False)[0, 0]


def test_counts_follow_the_sliders(images):
    model = network()
    panel = bslib.lab(model, images, sigma=0.2, n=130, trigger=TRIGGER, seed=5)
    answer = panel.wait(60)
    assert (answer.counts["network"] == expected(model, images, 0, 0.2, 130, seed=5)).all()
    assert answer.predicted["network"] == int(model(images[:1]).argmax())
    panel.sigma.value = 0.5
    panel.index.value = 2
    panel.n.value = 300
    panel.trigger.value = "trigger"
    answer = panel.wait(60)
    assert (answer.counts["network"] == expected(model, images, 2, 0.5, 300, trigger=TRIGGER, seed=5)).all()
    assert answer.question == (2, "trigger", 0.5, 300) and (answer.image == TRIGGER(images[2])).all()
    assert panel.progress.value == panel.progress.max == 300
    assert f"W = {plug_in(answer.counts['network']):.3f}" in panel.picture.value


def test_several_networks_and_triggers_by_name(images):
    models = {"one": network(seed=1), "two": network(seed=2)}
    triggers = {"white": TRIGGER, "four pixels": pattern(1)}
    panel = bslib.lab(models, images, trigger=triggers, classes=["a", "b", "c", "d"], index=1, n=70)
    assert panel.trigger.options == ("none", "white", "four pixels")
    panel.trigger.value = "four pixels"
    answer = panel.wait(60)
    for name, model in models.items():
        assert (answer.counts[name] == expected(model, images, 1, 0.1, 70, trigger=pattern(1))).all()


def test_thirty_moves_leave_no_queue(images):
    model, panel = waiting_panel(images, n=640)
    before = model.done.batches
    for value in np.linspace(0.9, 0.32, 30).round(2):
        panel.sigma.value = value
    assert model.seen.wait(60)
    model.go.set()
    answer = panel.wait(60)
    assert answer.question.sigma == 0.32
    assert (answer.counts["network"] == expected(model.inner, images, 0, 0.32, 640)).all()
    assert model.done.batches - before <= 2 * 3 + 9, (
        "at most one batch of the first move, then the last; each is tried with one pass"
    )


def test_the_button_stops_and_a_move_starts_again(images):
    model, panel = waiting_panel(images, n=1000)
    panel.sigma.value = 0.3
    assert model.seen.wait(60)
    panel.stop.click()
    model.go.set()
    answer = panel.wait(60)
    assert answer.samples == 64 and answer.question.sigma == 0.3 and panel.progress.value == 64
    assert "64 of 1000 noisy copies" in panel.picture.value
    panel.sigma.value = 0.4
    assert panel.wait(60).samples == 1000


def test_waiting_has_an_end(images):
    model, panel = waiting_panel(images)
    panel.sigma.value = 0.3
    with pytest.raises(TimeoutError, match=r"not there after 0\.05 seconds"):
        panel.wait(0.05)
    model.go.set()
    panel.wait(60)


def test_a_network_that_fails_says_why(images):
    class Failing(nn.Module):
        broken = False

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if self.broken:
                raise RuntimeError("no <memory> left")
            return x.flatten(1)[:, :3]

    model = Failing()
    panel = bslib.lab(model, images)
    panel.wait(60)
    model.broken = True
    panel.sigma.value = 0.4
    with pytest.raises(RuntimeError, match="no <memory> left"):
        panel.wait(60)
    assert "no &lt;memory&gt; left" in panel.picture.value
    model.broken = False
    panel.sigma.value = 0.5
    assert panel.wait(60).question.sigma == 0.5


def test_logits_that_noise_makes_nan_are_an_error(images):
    """A gamma curve, which takes no pixels below 0."""

    class Gamma(nn.Module):
        def forward(self, x):
            return (x ** (1 / 2.2)).flatten(1)[:, :3]

    panel = bslib.lab(Gamma(), 0.4 * images + 0.4, sigma=0.01, n=100)
    panel.wait(60)
    panel.sigma.value = 0.4
    with pytest.raises(RuntimeError, match=r"the model's logits hold NaN.*or noise left its range"):
        panel.wait(60)


def test_everything_has_a_label_and_the_picture_words(images):
    panel = bslib.lab(network(), images, trigger=TRIGGER)
    panel.wait(60)
    inputs = [panel.index, panel.trigger, panel.sigma, panel.n, panel.stop, panel.progress]
    assert all(widget.description for widget in inputs) and len({widget.description for widget in inputs}) == 6
    assert isinstance(panel, widgets.Widget)
    alt, picture = re.fullmatch(r'<img alt="([^"]+)" src="data:image/png;base64,([^"]+)".*>', panel.picture.value).groups()
    assert "network: W = " in alt and base64.b64decode(picture).startswith(b"\x89PNG")


def test_sliders_reach_the_values_asked_for(images):
    panel = bslib.lab(network(), images, sigma=2.5, n=3)
    assert panel.wait(60).question == (0, "none", 2.5, 3)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"images": torch.rand(3, 64)}, r"images must have shape \(B, C, H, W\) with 1 or 3 channels, got \(3, 64\)"),
        ({"images": "pictures"}, "got str"),
        ({"index": 3}, "index must be a whole number from 0 to 2, got 3"),
        ({"index": 1.0}, "index must be a whole number from 0 to 2, got 1.0"),
        ({"trigger": "a"}, "trigger must be a Trigger, or triggers by name, got str"),
        ({"n": 0}, "n must be a whole number of 1 or more, got 0"),
        ({"n": 2.5}, r"n must be a whole number of 1 or more, got 2\.5"),
        ({"sigma": -0.1}, "sigma must be a finite number of 0 or more"),
        ({"sigma": [0.1, 0.2]}, r"sigma must be a number, got \[0.1, 0.2\]"),
        ({"classes": ["a", "b"]}, "classes must name each of the 4 outputs of the network, got a, b"),
        ({"classes": 5}, "classes must name each of the 4 outputs of the network, got 5"),
        ({"trigger": Trigger(torch.ones(9, 9, dtype=torch.bool), torch.ones(1, 9, 9))}, "larger than the images"),
        ({"model": {"a": network(3), "b": network(4)}}, "the networks must have the same classes, got 3, 4"),
        ({"model": {}}, "at least one network"),
        ({"trigger": {"none": TRIGGER}}, "trigger must not be named 'none', which is the menu's entry"),
        ({"model": len}, "model must be a torch.nn.Module"),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_is_shown(images, change, words):
    arguments = {"model": network(), "images": images} | change
    with pytest.raises(ValueError, match=words):
        bslib.lab(arguments.pop("model"), arguments.pop("images"), **arguments)


@pytest.mark.parametrize("watched", [True, False])
def test_a_front_end_gets_the_sliders_and_papermill_does_not(watched, monkeypatch):
    """A front end says with each cell whether somebody can be asked: JupyterLab says yes, papermill no."""
    kernel = SimpleNamespace(get_parent=lambda channel: {"content": {"allow_stdin": watched}})
    monkeypatch.setattr(bslib.interactive.panel, "get_ipython", lambda: SimpleNamespace(kernel=kernel))
    shown = bslib.lab(network(), torch.rand(2, 1, 8, 8), n=100)
    assert isinstance(shown, widgets.VBox if watched else bslib.interactive.panel.Image)
