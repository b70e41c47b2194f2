"""Keys that must never change by accident, and specs that survive JSON."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bslib.specs import AttackSpec, CountsSpec, ImagesSpec, NetworkSpec, PredictionsSpec, Spec, ToySpec, spec_from

NETWORK = NetworkSpec(dataset="digits", network="small-fashion", seed=0, epochs=1)
COUNTS = CountsSpec(network=NETWORK, points=5, sigmas=(0.1, 0.25), ns=(10, 25), seed=0)
IMAGES = ImagesSpec(dataset="digits", images=12, seed=0)
ATTACK = AttackSpec(threat_model="T1", trigger=1, target=3)
PREDICTIONS = PredictionsSpec(network=NETWORK)
TOY = ToySpec(points=((0.0, 0.5),), sigma=0.12, n=250, seed=0)

# Committed records are found by these: a change here makes every one of them unreachable.
KEYS = {
    NETWORK: "915ae5b3dfbda664946c",
    COUNTS: "894e5d4de7eb99d48437",
    IMAGES: "a5248f3d653205530bd1",
    TOY: "f18301dbf3790c16db47",
    ATTACK: "6dc48b6eeee3627c64bf",
    PREDICTIONS: "c3a228bc85b1e54b7c18",
}

# For each field another value than above.
OTHERS = {
    NETWORK: {
        "dataset": "cifar10",
        "network": "resnet18",
        "seed": 1,
        "epochs": 2,
        "train_size": 200,
        "learning_rate": 0.1,
        "batch_size": 64,
        "weight_decay": 0.0,
        "augment": True,
        "attack": ATTACK,
    },
    COUNTS: {
        "network": dataclasses.replace(NETWORK, seed=1),
        "points": 6,
        "sigmas": (0.1,),
        "ns": (10, 26),
        "seed": 1,
        "trigger": 1,
        "by_class": True,
        "paired": True,
    },
    ATTACK: {"threat_model": "T2", "trigger": 2, "target": 4},
    PREDICTIONS: {"network": dataclasses.replace(NETWORK, seed=1), "trigger": 1, "images": 10},
    IMAGES: {"dataset": "digits-rgb", "images": 11, "seed": 1, "stamped": True},
    TOY: {"points": ((0.5, 0.0),), "sigma": 0.13, "n": 251, "seed": 1},
}

names = st.sampled_from(["digits", "fashion-mnist", "cifar10"])
whole = st.integers(0, 10_000)
networks = st.builds(
    NetworkSpec,
    dataset=names,
    network=st.sampled_from(["small-fashion", "resnet18"]),
    seed=whole,
    epochs=whole,
    train_size=st.none() | whole,
    learning_rate=st.floats(0, 1),
    augment=st.booleans(),
)
some_specs = st.one_of(
    networks,
    st.builds(
        CountsSpec,
        network=networks,
        points=whole,
        sigmas=st.lists(st.floats(0, 2), max_size=4).map(tuple),
        ns=st.lists(whole, max_size=4).map(tuple),
        seed=whole,
    ),
    st.builds(
        ToySpec,
        points=st.lists(st.tuples(st.floats(-1, 1), st.floats(-1, 1)), max_size=3).map(tuple),
        sigma=st.floats(0, 2),
        n=whole,
        seed=whole,
    ),
)


@pytest.mark.parametrize("spec", KEYS, ids=lambda spec: spec.kind)
def test_keys_are_what_they_were(spec):
    assert spec.key == KEYS[spec]


@pytest.mark.parametrize("spec", KEYS, ids=lambda spec: spec.kind)
def test_every_field_changes_the_key(spec):
    assert set(OTHERS[spec]) == {field.name for field in dataclasses.fields(spec)}
    keys = [dataclasses.replace(spec, **{name: value}).key for name, value in OTHERS[spec].items()]
    assert len({spec.key, *keys}) == len(keys) + 1


def test_the_kind_changes_the_key():
    @dataclass(frozen=True, kw_only=True)
    class PicturesSpec(ImagesSpec):
        kind = "pictures"

    assert PicturesSpec(dataset="digits", images=12, seed=0).key != IMAGES.key


def test_a_field_added_later_leaves_old_keys():
    @dataclass(frozen=True, kw_only=True)
    class Grown(NetworkSpec):
        trigger: str | None = None

    fields = {"dataset": "digits", "network": "small-fashion", "seed": 0, "epochs": 1}
    assert Grown(**fields).key == NETWORK.key != Grown(**fields, trigger="1").key
    assert "trigger" not in Grown(**fields).as_dict() and "train_size" not in NETWORK.as_dict()


@given(spec=some_specs)
def test_json_and_back(spec):
    again = spec_from(json.loads(json.dumps(spec.as_dict())))
    assert again == spec and again.key == spec.key and hash(again) == hash(spec) and type(again) is type(spec)


def test_equal_specs_have_one_key():
    whole, floating = (dataclasses.replace(COUNTS, sigmas=sigmas) for sigmas in ((0.5, 1), (0.5, 1.0)))
    assert whole == floating and whole.key == floating.key


@pytest.mark.parametrize("kind", ["pictures", None, 3])
def test_unknown_kind_is_refused(kind):
    with pytest.raises(ValueError) as caught:
        spec_from({"kind": kind, "seed": 0})
    assert repr(kind) in str(caught.value) and "counts" in str(caught.value)


@pytest.mark.parametrize("spec", KEYS, ids=lambda spec: spec.kind)
def test_unknown_field_is_refused(spec):
    with pytest.raises(
        ValueError, match=rf"{spec.kind} spec has no field flavour; it has {min(f.name for f in dataclasses.fields(spec))}"
    ):
        spec_from({**spec.as_dict(), "flavour": "sweet"})


def test_unknown_field_of_the_network_within_is_refused():
    data = COUNTS.as_dict()
    data["network"]["depth"] = 3
    with pytest.raises(ValueError, match="a network spec has no field depth"):
        spec_from(data)


def test_specs_are_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        NETWORK.seed = 1
    assert not hasattr(Spec, "kind")
