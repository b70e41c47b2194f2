"""What explorers send to the page: every count, little of it, words where there is none. What the page does: tests/browser."""

from __future__ import annotations

import dataclasses
import json
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("anywidget")

import test_correlation
import test_patterns
import test_surface

from bslib import widgets
from bslib.chapters.patterns import crafted_batch_of, universals_of
from bslib.entropy import ESTIMATORS
from bslib.profiles import ParametersSize
from bslib.specs import CleanseSpec
from bslib.store import Records

SMALL = ParametersSize(
    dataset="fashion-mnist", network="small-fashion", networks=2, epochs=1, points=30,
    ns=(10, 50, 250), n_sigmas=(0.1, 0.25), sigmas=(0.01, 0.1, 0.25, 0.5), n=50,
)  # fmt: skip


def unpacked(data: bytes, points: list[int], ns: list[int]) -> list[list[list[int]]]:
    """The counts of the classes seen, for each point of each batch."""
    raw, rows = zlib.decompress(data), sum(points)
    values, found = iter(np.frombuffer(raw[rows:], "<u2").tolist()), []
    lengths = iter(raw[:rows])
    for size, n in zip(points, ns, strict=True):
        rest = [[next(values) for _ in range(next(lengths))] for _ in range(size)]
        found.append([[n - sum(row), *row] for row in rest])
    assert next(values, None) is None, "nothing is left over"
    return found


def batches_of(explorer) -> list[dict]:
    directory = explorer.data["batches"]
    counts = unpacked(explorer.counts, [b["points"] for b in directory], [b["n"] for b in directory])
    return [settings | {"counts": own} for settings, own in zip(directory, counts, strict=True)]


def same(sent: list[list[int]], counts: np.ndarray) -> bool:
    """Whether these are those counts, whatever the order of classes."""
    return sent == [sorted((int(c) for c in row if c), reverse=True) for row in counts]


@given(
    st.lists(st.lists(st.lists(st.integers(0, 5000), min_size=1, max_size=12).filter(any), min_size=1, max_size=4), max_size=4)
)
def test_packing_loses_only_which_class_is_which(batches):
    n = 12 * 5000
    whole = [np.array([[*row, *[0] * (12 - len(row)), n - sum(row)] for row in batch]) for batch in batches]
    found = unpacked(widgets.packed(whole), [len(batch) for batch in batches], [n] * len(batches))
    for sent, counts in zip(found, whole, strict=True):
        assert same(sent, counts)
        for estimator in ESTIMATORS.values():
            assert np.allclose([float(estimator(row)) for row in sent], estimator(counts), rtol=0, atol=1e-12)


def test_a_count_that_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="70000 does not fit"):
        widgets.packed([np.array([[70_000, 80_000]])])


def test_parameters_sends_every_noise_level_once(made_up_half):
    half = made_up_half(SMALL)
    explorer = widgets.parameters(half, made_up_half(SMALL, networks=0))
    assert [part["sigma"] for part in explorer.data["parts"]] == [0.1]
    assert len(explorer.data["notes"]) == 1 and "bslib run parameters --profile paper" in explorer.data["notes"][0]
    sent = {(b["network"], b["sigma"], b["n"]): b["counts"] for b in batches_of(explorer)}
    wanted = {(0.1, 10), (0.1, 50), (0.1, 250), (0.25, 10), (0.25, 50), (0.25, 250), (0.01, 50), (0.5, 50)}
    assert set(sent) == {(network, *setting) for network in range(2) for setting in wanted}
    assert len(explorer.data["batches"]) == len(sent)
    for network, (_, over_n, over_sigma) in enumerate(half.runs):
        assert same(sent[network, 0.25, 10], over_n.arrays["counts"][1, 0])
        assert same(sent[network, 0.5, 50], over_sigma.arrays["counts"][3, 0])


def test_surface_sends_three_kinds_of_every_network():
    surface = test_surface.surface(dataclasses.replace(test_surface.FASHION, sigmas=(0.05, 0.1)), networks=2)
    sent = {(b["network"], b["kind"], b["sigma"]): b["counts"] for b in batches_of(widgets.surface(surface))}
    assert len(sent) == 2 * 3 * 2
    for k, kind in enumerate(("clean", "active", "inactive")):
        assert same(sent[1, kind, 0.1], surface.runs[1][-3 + k].arrays["counts"][1, 0])


def test_correlation_sends_the_pairs_at_every_level():
    part = test_correlation.part_of(dataclasses.replace(test_correlation.FASHION, networks=1), sigmas=[0.1, 0.25])
    [sent] = widgets.correlation(part).data["parts"]
    assert [(m["sigma"], m["n"]) for m in sent["means"]] == [(0.1, 50), (0.1, 250), (0.25, 50), (0.25, 250)]
    assert sent["means"][2]["W"] == part.pairs(0.25, n=50)["W"].tolist()
    assert sent["pairs"]["success"] == part.pairs()["success"].tolist()


@pytest.fixture(scope="module")
def detector():
    return test_patterns.part_of(dataclasses.replace(test_patterns.FASHION, networks=1))


def test_patterns_sends_what_is_there(detector):
    gone = crafted_batch_of(detector.size, universals_of(detector.size, detector.networks[0])[0])
    some = test_patterns.without(detector, lambda spec: spec == gone or (isinstance(spec, CleanseSpec) and spec.network.attack))
    sent = batches_of(widgets.patterns(some))
    first = [b for b in sent if b["network"] == 0 and b["sigma"] == 0.1]
    assert [b["carried"] for b in first] == ["clean", "nothing", *["unseen"] * 6, "universal 4", *["reversed"] * 10]
    assert {b["points"] for b in first[:8]} == {60} and {b["points"] for b in first[8:]} == {20}
    backdoored = [b for b in sent if b["network"] == 1 and b["sigma"] == 0.25]
    assert [b["carried"] for b in backdoored] == ["clean", "nothing", "own", *["unseen"] * 5, "universal 10", "universal 4"]
    assert {b["success"] for b in backdoored} == {detector.success(detector.networks[1])}


def test_where_nothing_is_measured_there_are_words_and_no_controls(detector, made_up_half):
    empty = dataclasses.replace(detector, records=Records({}))
    clean_alone = test_patterns.without(detector, lambda spec: getattr(spec, "network", spec) in detector.networks[1:])
    assert clean_alone.networks
    for some in (empty, clean_alone):
        assert "bslib run patterns --profile paper" in widgets.patterns(some, empty).data
    assert "bslib run parameters" in widgets.parameters(made_up_half(SMALL, networks=0)).data
    assert "bslib run surface" in widgets.surface(test_surface.surface(test_surface.FASHION, networks=0)).data
    assert (
        "bslib run correlation"
        in widgets.correlation(test_correlation.Correlation(test_correlation.FASHION, "paper", 0, Records({}))).data
    )


def test_an_explorer_has_words_for_readers_without_scripts(detector):
    explorer = widgets.patterns(detector)
    bundle, _ = explorer._repr_mimebundle_()
    assert bundle["application/vnd.jupyter.widget-view+json"]["model_id"] == explorer.model_id
    assert f'data-widget="{explorer.model_id}"' in bundle["text/html"] and "need scripts" in bundle["text/html"]
    assert "need scripts" in bundle["text/plain"]
    json.dumps(explorer.data)  # nothing of numpy's in it
