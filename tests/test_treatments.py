"""What a defender does to a network, by hand and through the runner, which makes a treated network from its base."""

from __future__ import annotations

import copy
import dataclasses

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from bslib import runner, training, treatments
from bslib.datasets import load
from bslib.jobs import compute
from bslib.jobs.base import draw_points
from bslib.networks import build
from bslib.runner import run
from bslib.specs import AttackSpec, NetworkSpec, PredictionsSpec, TreatmentSpec
from bslib.store import Store, missing_specs
from bslib.training import load_weights
from bslib.treatments import prune, treat
from bslib.triggers import pattern

BASE = NetworkSpec(
    dataset="digits", network="small-fashion", seed=3, epochs=2, train_size=300, batch_size=16, learning_rate=0.02,
    attack=AttackSpec(threat_model="T1", trigger=5, target=3),
)  # fmt: skip
TUNED = TreatmentSpec(method="fine-tune", images=64, epochs=1, learning_rate=0.01)
PRUNED = TreatmentSpec(method="prune", images=64, epochs=0, fraction=0.5)
BOTH = dataclasses.replace(PRUNED, epochs=1, learning_rate=0.01)
UNLEARNED = TreatmentSpec(method="unlearn", images=64, epochs=1, learning_rate=0.01, fraction=0.25)


@pytest.fixture(scope="module")
def few():
    digits = load("digits")
    return digits.train_images[:64], digits.train_labels[:64]


def treated(spec: TreatmentSpec, few, seed: int = 0) -> nn.Module:
    network = build("small-fashion", seed=1)
    treat(network, *few, spec, pattern(5), seed)
    return network


def dead(network: nn.Module) -> list[int]:
    """The filters of the last convolution that are zero."""
    last = [module for module in network.modules() if isinstance(module, nn.Conv2d)][-1]
    return torch.nonzero((last.weight.flatten(1) == 0).all(1) & (last.bias == 0)).flatten().tolist()


class Filters(nn.Module):
    """Two convolutions of one pixel; the second has a filter for each weight, so how active it is can be read off."""

    def __init__(self, weights: list[float]) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(1, 1, 1, bias=False), nn.Conv2d(1, len(weights), 1, bias=False)
        with torch.no_grad():
            self.first.weight.fill_(1)
            self.last.weight.copy_(torch.tensor(weights).reshape(-1, 1, 1, 1))

    def forward(self, x):
        return self.last(self.first(x)).mean((2, 3))


@given(st.permutations([-3.0, 0.5, 1.0, 2.0, 4.0]), st.floats(0, 1))
def test_pruning_takes_the_filters_that_are_least_active_and_no_others(weights, fraction):
    network = Filters(weights)
    prune(network, torch.full((3, 1, 4, 4), 100, dtype=torch.uint8), fraction)
    gone = sorted(weights)[: int(fraction * 5)]
    assert network.last.weight.flatten().tolist() == [0 if w in gone else w for w in weights]
    assert network.first.weight.item() == 1 and not network.last._forward_hooks


def test_each_image_counts_once_whatever_its_chunk():
    """One bright image after 500 dark ones: its filter is the least active one."""
    network, images = Filters([1.0, 2.0]), torch.zeros(501, 1, 4, 4, dtype=torch.uint8)
    network.last = nn.Conv2d(1, 2, 1)
    with torch.no_grad():  # 1 or, once, 11 from the first filter; 1.5 from the second
        network.last.weight.copy_(torch.tensor([10.0, 0.0]).reshape(-1, 1, 1, 1))
        network.last.bias.copy_(torch.tensor([1.0, 1.5]))
    images[-1] = 255
    prune(network, images, 0.5)
    assert dead(network) == [0]


def test_pruning_needs_a_convolution():
    with pytest.raises(ValueError, match="needs a network with a convolution"):
        prune(nn.Sequential(nn.Flatten(), nn.Linear(4, 2)), torch.zeros(1, 1, 2, 2, dtype=torch.uint8), 0.5)


@pytest.mark.parametrize(
    ("images", "fraction", "message"),
    [
        (1, 1.5, "fraction must be from 0 to 1, got 1.5"),
        (1, -0.5, "got -0.5"),
        (1, float("nan"), "got nan"),
        (0, 0.5, "got shape"),
    ],
)
def test_what_cannot_be_pruned_is_refused(images, fraction, message):
    network = Filters([1.0, 2.0])
    with pytest.raises(ValueError, match=message):
        prune(network, torch.zeros(images, 1, 4, 4, dtype=torch.uint8), fraction)
    assert (network.last.weight != 0).all()


def test_pruning_leaves_the_mode_as_it_was_and_takes_the_convolution_that_is_called_last():
    network, image = Filters([1.0, 2.0]).train(), torch.zeros(1, 1, 4, 4, dtype=torch.uint8)
    prune(network, image, 0.5)
    assert network.training and network.last.training and (network.last.weight == 0).any()
    late = Filters([1.0, 2.0])
    late.unused, late.first = nn.Conv2d(1, 2, 1), late._modules.pop("first")  # registered last, called first
    prune(late, image, 0.5)
    assert (late.last.weight == 0).any() and (late.first.weight != 0).all() and not late.first._forward_hooks
    late.forward = lambda x: x.mean((2, 3))
    with pytest.raises(ValueError, match="needs a convolution that the network calls"):
        prune(late, image, 0.5)
    nn.utils.parametrizations.weight_norm(network.last)
    with pytest.raises(ValueError, match="a last convolution with weights of its own"):
        prune(network, image, 0.5)


def test_pruned_filters_stay_dead_when_the_network_is_trained_further(few):
    plain, before = dead(treated(PRUNED, few)), build("small-fashion", seed=1)
    both = treated(BOTH, few)
    assert len(plain) == 6 and dead(both) == plain and not dead(before)
    assert not torch.equal(both[0].weight, before[0].weight), "the others are trained"


def test_each_training_gets_the_images_and_labels_that_its_name_says(few, monkeypatch):
    seen = {}
    monkeypatch.setattr(treatments, "train", lambda network, images, labels, **how: seen.update(x=images, y=labels, **how))
    for spec in (TUNED, BOTH, UNLEARNED):
        treated(spec, few, seed=9)
        carrying = 16 if spec is UNLEARNED else 0
        assert torch.equal(seen["x"][:carrying], pattern(5)(few[0][:carrying])) and torch.equal(
            seen["x"][carrying:], few[0][carrying:]
        )
        assert torch.equal(seen["y"], few[1]), "the labels are true"
        assert (seen["epochs"], seen["learning_rate"], seen["seed"]) == (1, 0.01, 9)
    seen.clear()
    treated(PRUNED, few)
    assert not seen


def test_unlearning_takes_the_backdoor_away(tmp_path):
    store, digits = Store(tmp_path), load("digits")
    base = dataclasses.replace(BASE, epochs=8, train_size=500)
    unlearned = dataclasses.replace(
        base, treatment=dataclasses.replace(UNLEARNED, images=300, epochs=6, learning_rate=0.05, fraction=0.5)
    )
    plan = [spec for network in (base, unlearned) for spec in (network, PredictionsSpec(network=network, trigger=5))]
    run(plan, store, device="cpu", jobs=1, progress=False)
    success = [(store.get(plan[k]).arrays["predicted"] == 3)[digits.test_labels.numpy() != 3].mean() for k in (1, 3)]
    assert success[0] > 0.8 and success[1] < 0.3


# --- through the runner ------------------------------------------------------------------------------------------


def of_base(treatment: TreatmentSpec) -> list:
    network = dataclasses.replace(BASE, treatment=treatment)
    return [network, PredictionsSpec(network=network, trigger=5, images=20)]


@pytest.fixture
def computed(monkeypatch) -> list:
    """The specs that the runner computes, in order."""
    specs = []
    monkeypatch.setattr(runner, "compute", lambda spec, *given, **more: specs.append(spec) or compute(spec, *given, **more))
    return specs


def test_a_base_is_trained_once_for_all_its_treatments_and_they_begin_at_its_weights(tmp_path, computed):
    store, plan = Store(tmp_path), [*of_base(TUNED), *of_base(PRUNED)]
    run(plan, store, device="cpu", jobs=2, progress=False)
    assert computed == [BASE, *plan], "one group, so one job even where two are allowed"
    assert BASE in store and {store.get(plan[k]).result["weights before"] for k in (0, 2)} == {store.get(BASE).result["weights"]}
    network = build("small-fashion", seed=3)
    load_weights(network, store.weights_path(BASE))
    data, chosen = load("digits"), draw_points(1297, 64, 3)
    mine = copy.deepcopy(network)
    treat(mine, data.train_images[chosen], data.train_labels[chosen], TUNED, pattern(5), 3)
    load_weights(network, store.weights_path(plan[0]))
    assert all(torch.equal(a, b) for a, b in zip(mine.parameters(), network.parameters(), strict=True))


def test_a_retrained_base_makes_what_was_treated_stale(tmp_path, computed, monkeypatch):
    store, plan = Store(tmp_path), [BASE, *of_base(TUNED)]
    run(plan, store, device="cpu", jobs=1, progress=False)
    store.weights_path(BASE).unlink()
    assert missing_specs(plan, store) == [], "records alone are still of one network"
    other = training.train
    monkeypatch.setattr("bslib.jobs.network.train", lambda *given, **how: other(*given, **how | {"learning_rate": 0.03}))
    store.put(compute(BASE, store, device="cpu", progress=False))
    assert missing_specs(plan, store) == [plan[1]]
    computed.clear()
    run(plan, store, device="cpu", jobs=1, progress=False)
    assert computed == plan[1:] and missing_specs(plan, store) == []
    assert store.get(plan[1]).result["weights before"] == store.get(BASE).result["weights"]


def test_an_interrupted_run_goes_on_where_it_was(tmp_path, computed, monkeypatch):
    store, plan = Store(tmp_path / "one"), [BASE, *of_base(TUNED), *of_base(BOTH)]
    whole = Store(tmp_path / "two")
    run(plan, whole, device="cpu", jobs=1, progress=False)
    monkeypatch.setattr("bslib.jobs.network.treat", lambda *given, **how: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        run(plan, store, device="cpu", jobs=1, progress=False)
    assert BASE in store and plan[1] not in store
    monkeypatch.setattr("bslib.jobs.network.treat", treat)
    computed.clear()
    run(plan, store, device="cpu", jobs=1, progress=False)
    assert computed == plan[1:], "the base is not trained again"
    assert [store.get(spec).checksum for spec in plan] == [whole.get(spec).checksum for spec in plan]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"method": "anp", "epochs": 0}, "fine-tune, prune or unlearn, got 'anp'"),
        ({"method": "fine-tune", "epochs": 1}, "epochs and a learning rate, got 1 and None"),
        ({"method": "prune", "epochs": 0, "fraction": 1.5}, "a fraction from 0 to 1"),
    ],
)
def test_a_treatment_that_makes_no_sense_is_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        TreatmentSpec(images=10, **fields)
