"""Keys that must never change by accident, and specs that survive JSON."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bslib.specs import (
    AttackSpec,
    CleanseSpec,
    CountsSpec,
    DetectorSpec,
    ImagesSpec,
    MarginsSpec,
    NetworkSpec,
    PredictionsSpec,
    Spec,
    ToySpec,
    TreatmentSpec,
    UniversalSpec,
    spec_from,
)

NETWORK = NetworkSpec(dataset="digits", network="small-fashion", seed=0, epochs=1)
COUNTS = CountsSpec(network=NETWORK, points=5, sigmas=(0.1, 0.25), ns=(10, 25), seed=0)
IMAGES = ImagesSpec(dataset="digits", images=12, seed=0)
TREATMENT = TreatmentSpec(method="prune", images=10, epochs=0, fraction=0.5)
MARGINS = MarginsSpec(network=NETWORK, points=5, seed=0)
ATTACK = AttackSpec(threat_model="T1", trigger=1, target=3)
PREDICTIONS = PredictionsSpec(network=NETWORK)
TOY = ToySpec(points=((0.0, 0.5),), sigma=0.12, n=250, seed=0)
UNIVERSAL = UniversalSpec(network=NETWORK, images=20, bound=10, passes=2, batch_size=5, seed=0)
CLEANSE = CleanseSpec(network=NETWORK, images=20, samples=8, steps=3, checked=10, seed=0)
DETECTOR = DetectorSpec(detector="strip", network=NETWORK, points=4, overlays=3, seed=0)

# Committed records are found by these: a change here makes every one of them unreachable.
KEYS = {
    NETWORK: "915ae5b3dfbda664946c",
    COUNTS: "894e5d4de7eb99d48437",
    IMAGES: "a5248f3d653205530bd1",
    TOY: "f18301dbf3790c16db47",
    ATTACK: "6dc48b6eeee3627c64bf",
    PREDICTIONS: "c3a228bc85b1e54b7c18",
    UNIVERSAL: "7f9864d1cd642ffcd020",
    CLEANSE: "340eb8b14513421e1457",
    DETECTOR: "b222a6c7bd9399257f2a",
}

# For each field another value than above.
OTHER_NETWORK = dataclasses.replace(NETWORK, seed=1)
OTHERS = {
    NETWORK: {
        "dataset": "cifar10", "network": "resnet18", "seed": 1, "epochs": 2, "train_size": 200, "learning_rate": 0.1,
        "batch_size": 64, "weight_decay": 0.0, "augment": True, "attack": ATTACK, "noise": 0.1,
        ("attack", "treatment"): (ATTACK, TREATMENT),
    },
    COUNTS: {
        "network": OTHER_NETWORK, "points": 6, "sigmas": (0.1,), "ns": (10, 26), "seed": 1, "trigger": 1, "by_class": True,
        "paired": True, "held_out": True, "pattern": UNIVERSAL, ("noise_on", "trigger"): ("rest", 1),
    },
    ATTACK: {"threat_model": "T2", "trigger": 2, "target": 4, "poisons": 50, ("covers", "cover_sigmas"): (5, (0.1,))},
    TREATMENT: {"method": "unlearn", "images": 11, ("epochs", "learning_rate"): (2, 0.01), "fraction": 0.2},
    MARGINS: {"network": OTHER_NETWORK, "trigger": 1, "points": 6, "seed": 1},
    PREDICTIONS: {"network": OTHER_NETWORK, "trigger": 1, "images": 10},
    IMAGES: {"dataset": "digits-rgb", "images": 11, "seed": 1, "stamped": True},
    UNIVERSAL: {"network": OTHER_NETWORK, "images": 21, "bound": 11, "passes": 3, "batch_size": 6, "seed": 1},
    CLEANSE: {"network": OTHER_NETWORK, "images": 21, "samples": 9, "steps": 4, "checked": 11, "seed": 1},
    DETECTOR: {
        "detector": "logit_shift", "network": OTHER_NETWORK, "points": 5, "overlays": 4, "seed": 1, "trigger": 1,
        "pattern": CLEANSE,
    },
    TOY: {"points": ((0.5, 0.0),), "sigma": 0.13, "n": 251, "seed": 1},
}  # fmt: skip

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
patterns = st.one_of(
    st.builds(UniversalSpec, network=networks, images=whole, bound=whole, passes=whole, batch_size=whole, seed=whole),
    st.builds(CleanseSpec, network=networks, images=whole, samples=whole, steps=whole, checked=whole, seed=whole),
)
# A trigger, or a pattern that was crafted for the network, or nothing.
carried = st.one_of(
    st.fixed_dictionaries({"network": networks, "trigger": st.none() | whole}),
    patterns.map(lambda pattern: {"network": pattern.network, "pattern": pattern}),
)


def carrying(kind, **fields):
    return st.builds(lambda what, **more: kind(**what, **more), carried, points=whole, seed=whole, **fields)


some_specs = st.one_of(
    networks,
    patterns,
    carrying(
        CountsSpec,
        sigmas=st.lists(st.floats(0, 2), max_size=4).map(tuple),
        ns=st.lists(whole, max_size=4).map(tuple),
        held_out=st.none() | st.booleans(),
    ),
    carrying(DetectorSpec, detector=st.just("strip"), overlays=whole),
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


def changes_of(spec) -> list[dict]:
    """What to replace in a spec, one field at a time, or two that go together."""
    pairs = ((name, value) if isinstance(name, tuple) else ((name,), (value,)) for name, value in OTHERS[spec].items())
    return [dict(zip(names, values, strict=True)) for names, values in pairs]


@pytest.mark.parametrize("spec", KEYS, ids=lambda spec: spec.kind)
def test_every_field_changes_the_key(spec):
    changes = changes_of(spec)
    assert {name for change in changes for name in change} == {field.name for field in dataclasses.fields(spec)}
    keys = [dataclasses.replace(spec, **change).key for change in changes]
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


def test_what_is_carried_changes_the_key():
    """Any field of the pattern, and whether the same numbers speak of one kind of pattern or of another."""
    for spec in (COUNTS, DETECTOR):
        carried = [UNIVERSAL, CLEANSE]
        carried += [dataclasses.replace(p, **change) for p in carried for change in changes_of(p)]
        keys = {dataclasses.replace(spec, network=pattern.network, pattern=pattern).key for pattern in carried}
        assert len({spec.key, *keys}) == len(carried) + 1


def test_what_cannot_be_meant_is_refused():
    other = dataclasses.replace(UNIVERSAL, network=dataclasses.replace(NETWORK, seed=1))
    for spec in (COUNTS, DETECTOR):
        with pytest.raises(ValueError, match="trigger 1 and a universal spec"):
            dataclasses.replace(spec, trigger=1, pattern=UNIVERSAL)
        with pytest.raises(ValueError, match="crafted for another network"):
            dataclasses.replace(spec, pattern=other)
    with pytest.raises(ValueError, match="choose one"):
        dataclasses.replace(COUNTS, by_class=True, held_out=True)
    with pytest.raises(ValueError, match="many times"):
        dataclasses.replace(COUNTS, paired=True, pattern=CLEANSE)


@pytest.mark.parametrize("spec", [COUNTS, dataclasses.replace(DETECTOR, pattern=CLEANSE), UNIVERSAL])
def test_what_is_no_network_or_no_pattern_is_refused_by_name(spec):
    """As a damaged record would have it: an error that reading it answers, instead of a traceback."""
    data = json.loads(json.dumps(spec.as_dict()))
    for wrong in ("x", 3, data | {"pattern": None}):
        with pytest.raises(ValueError, match=f"the network of a {spec.kind} spec must be a network spec, got|has no field"):
            spec_from(data | {"network": wrong})
        if spec.kind != "universal":
            with pytest.raises(
                ValueError, match=f"the pattern of a {spec.kind} spec must be a universal or a cleanse spec, got|has no"
            ):
                spec_from(data | {"pattern": NETWORK.as_dict() if isinstance(wrong, dict) else wrong})


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


def test_unknown_fields_are_refused_at_any_depth():
    plain = json.dumps(dataclasses.replace(DETECTOR, pattern=CLEANSE).as_dict())
    for kind, known in (("detector", "detector, network"), ("network", "attack, augment"), ("cleanse", "checked, images")):
        data = json.loads(plain.replace(f'"kind": "{kind}"', f'"kind": "{kind}", "flavour": "sweet"', 1))
        with pytest.raises(ValueError, match=f"a {kind} spec has no field flavour; it has {known}"):
            spec_from(data)


def test_specs_are_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        NETWORK.seed = 1
    assert not hasattr(Spec, "kind")
