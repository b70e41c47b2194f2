"""What a trigger, a threat model or a data set is, is said in one place: whoever changes it there is followed."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure

from bslib import drawings, plotting
from bslib.chapters import plan_of, sizes_of
from bslib.chapters.correlation import plan as correlation
from bslib.datasets import load
from bslib.drawings import DRAWINGS, changed_digests, drawing, square
from bslib.jobs import compute
from bslib.profiles import PROFILES
from bslib.specs import AttackSpec, CountsSpec, ImagesSpec, NetworkSpec
from bslib.store import PUBLISHED, Record, Store, missing_specs, open_store
from bslib.triggers import pattern

REDRAWN = ("##", "##", "  ")


def network(trigger: int | None) -> NetworkSpec:
    attack = None if trigger is None else AttackSpec(threat_model="T1", trigger=trigger, target=1)
    return NetworkSpec(dataset="digits", network="small-fashion", seed=0, epochs=1, attack=attack)


def counts(trigger: int | None, carried: int | None = None) -> CountsSpec:
    return CountsSpec(network=network(trigger), points=3, sigmas=(0.1,), ns=(5,), seed=0, trigger=carried)


PICTURES = ImagesSpec(dataset="digits", images=6, seed=0, stamped=True)


def test_a_trigger_that_is_drawn_anew_makes_its_records_stale(monkeypatch, tmp_path):
    plan = [network(None), network(1), network(2), counts(None), counts(None, 2), counts(1), counts(1, 2), counts(2), PICTURES]
    store = Store(tmp_path)
    for spec in plan:
        store.put(Record(spec, {"weights": "same"}))
    assert missing_specs(plan, store) == []
    monkeypatch.setitem(DRAWINGS, 2, REDRAWN)
    assert missing_specs(plan, store) == [network(2), counts(None, 2), counts(1, 2), counts(2), PICTURES]
    for spec in missing_specs(plan, store):
        store.put(Record(spec, {"weights": "same", "triggers": changed_digests(spec.triggers)}))
    assert missing_specs(plan, store) == []
    monkeypatch.undo()
    assert missing_specs(plan, store) == [network(2), counts(None, 2), counts(1, 2), counts(2), PICTURES]


def test_the_published_records_are_of_the_drawings_of_today(monkeypatch):
    store = open_store(PUBLISHED)
    specs = plan_of("surface", "paper")
    kept = [spec for spec in specs if spec in store]
    assert kept and missing_specs(kept, store) == []
    monkeypatch.setitem(DRAWINGS, 5, REDRAWN)
    assert {spec.kind for spec in missing_specs(kept, store)} == {"predictions", "images"}


def test_a_record_names_triggers_that_are_not_drawn_as_at_first(monkeypatch, tmp_path):
    assert "triggers" not in compute(PICTURES, Store(tmp_path), device="cpu", progress=False).result
    monkeypatch.setitem(DRAWINGS, 2, REDRAWN)
    found = compute(PICTURES, Store(tmp_path), device="cpu", progress=False).result
    assert found["triggers"] == {"2": drawings.digest(2)}


def test_a_seventh_trigger_is_nobody_else_s_record():
    assert set(changed_digests(DRAWINGS)) == set()
    assert drawings.PAPERS == tuple(DRAWINGS) == (1, 2, 3, 4, 5, 6)


def test_a_square_has_its_side_and_grey_and_a_number_of_its_own():
    numbers = {square(side, grey): (side, grey) for side in range(1, 9) for grey in range(1, 10)}
    assert len(numbers) == 72 and not set(numbers) & set(DRAWINGS)
    for number, (side, grey) in numbers.items():
        rows = drawing(number)
        assert rows == (f"{grey}" * side + " ",) * side + (" " * (side + 1),)
        trigger = pattern(number)
        assert int(trigger.mask.sum()) == side**2 and trigger.values[:, trigger.mask].unique().tolist() == pytest.approx(
            [grey / 9]
        )
    assert all(drawing(number) == rows for number, rows in DRAWINGS.items())


@pytest.mark.parametrize(("side", "grey"), [(0, 9), (9, 9), (3, 0), (3, 10), ("3", 9), (2.5, 9)])
def test_a_square_that_there_is_not_is_refused(side, grey):
    with pytest.raises(ValueError, match=f"got {side!r} and {grey!r}"):
        square(side, grey)


@pytest.mark.parametrize("number", [0, 99, 100, 110, 109, 190, 199, -1, "1", None, 1.5])
def test_a_number_without_a_drawing_is_refused(number):
    with pytest.raises(ValueError, match=f"the number of a square such as 139, got {number!r}"):
        drawing(number)


def test_records_of_squares_name_their_drawing():
    number = square(2, 4)
    assert changed_digests([1, number]) == {str(number): drawings.digest(number)}


@pytest.mark.parametrize("threat_model", ["T1", "T2", "T3"])
def test_a_correlation_is_planned_under_every_threat_model(threat_model):
    size = replace(sizes_of("correlation", "smoke")[0], threat_model=threat_model)
    (first, *_) = correlation.networks_of(size, seed=13)
    assert first.attack.target == (None if threat_model == "T2" else 3)
    assert correlation.counts_of(size, first, 0.1).by_class == (True if threat_model == "T2" else None)


def test_pairs_of_every_trigger_have_a_style():
    axis = Figure().subplots()
    pairs = pd.DataFrame({"trigger": [1, 2, 3, 4, 5, 6, 7], "W": np.arange(7.0), "success": 1.0})
    plotting.scatter_pairs(axis, pairs, "W", "success")
    assert len({tuple(points.get_facecolor()[0]) for points in axis.collections if len(points.get_offsets())}) == 6


@pytest.mark.parametrize("profile", PROFILES)
def test_sizes_know_the_classes_of_their_data(profile, monkeypatch):
    sizes = [s for part in ("parameters", "surface", "correlation", "patterns") for s in sizes_of(part, profile)]
    for dataset in {size.dataset for size in sizes} - {"cifar10"}:
        assert {size.classes for size in sizes if size.dataset == dataset} == {len(load(dataset).classes)}
