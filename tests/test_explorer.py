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

from test_parameters import SIZE
from test_surface import FASHION, surface

from bslib.chapters.correlation import results as correlation
from bslib.chapters.parameters import results as parameters
from bslib.chapters.patterns import results as patterns
from bslib.chapters.surface import results as surfaces
from bslib.interactive.explorer import explorer, packed
from bslib.specs import CleanseSpec, CountsSpec, UniversalSpec
from bslib.store import Records, Store


def sent_by(batches: list[dict], data: bytes) -> list[dict]:
    """Each batch's settings, and for each of its points the counts of the classes seen but the most frequent."""
    raw, total = zlib.decompress(data), sum(batch["points"] for batch in batches)
    lengths, (lower, upper) = np.frombuffer(raw[:total], np.uint8), np.frombuffer(raw[total:], np.uint8).reshape(2, -1)
    values = lower + 256 * upper.astype(int)
    assert lengths.sum() == len(values), "nothing is left over"
    rows = iter(np.split(values, np.cumsum(lengths)))
    return [batch | {"rest": [next(rows).tolist() for _ in range(batch["points"])]} for batch in batches]


def rest(counts) -> list[list[int]]:
    """The counts of each point but the largest and the zeros, largest first."""
    return [sorted((int(c) for c in row if c), reverse=True)[1:] for row in counts]


@given(st.lists(st.lists(st.lists(st.integers(0, 65_535), min_size=2, max_size=12), min_size=1, max_size=4)))
def test_packing_loses_only_the_largest_count_and_which_class_is_which(batches):
    whole = [np.array([row + [0] * (12 - len(row)) for row in batch]) for batch in batches]
    sent = sent_by([{"points": len(batch)} for batch in batches], packed(whole))
    assert [batch["rest"] for batch in sent] == [rest(batch) for batch in batches]


def test_a_count_that_does_not_fit_is_refused():
    assert packed([np.array([[65_535, 80_000]])])
    with pytest.raises(ValueError, match="65536 does not fit"):
        packed([np.array([[65_536, 80_000]])])


def test_parameters_sends_both_sweeps_and_no_noise_level_twice_and_notes_what_is_missing(made_up_half):
    half = made_up_half(dataclasses.replace(SIZE, networks=2))
    found = explorer("parameters", {"a": made_up_half(SIZE, networks=0), "b": half})
    name = {"name": "fashion-mnist, small-fashion", "source": half.source}
    assert found.data["parts"] == [name | {"sigma": 0.1, "n": 16}]
    [note] = found.data["notes"]
    assert "bslib run parameters --profile paper" in note and not set(note) & set("*`")
    batches = sent_by(found.data["batches"], found.counts)
    sent = {(batch["part"], batch["network"], batch["sigma"], batch["n"]): batch["rest"] for batch in batches}
    levels = [(sigma, n) for sigma in (0.1, 0.25) for n in (8, 16, 32)] + [(sigma, 16) for sigma in (0.005, 0.01, 0.15, 0.5)]
    assert list(sent) == [(0, network, *level) for network in range(2) for level in levels] and len(batches) == len(sent)
    for network, (_, over_n, over_sigma) in enumerate(half.runs):
        assert sent[0, network, 0.25, 8] == rest(over_n.arrays["counts"][1, 0])
        assert sent[0, network, 0.1, 32] == rest(over_n.arrays["counts"][0, 2])
        assert sent[0, network, 0.5, 16] == rest(over_sigma.arrays["counts"][5, 0])


def test_surface_sends_three_kinds_of_every_network():
    part = surface(dataclasses.replace(FASHION, sigmas=(0.05, 0.12, 0.3)), networks=2)
    found = explorer("surface", {"a": part})
    assert [(own["sigma"], own["active"], own["inactive"]) for own in found.data["parts"]] == [(0.12, 1, 4)]
    batches = sent_by(found.data["batches"], found.counts)
    sent = {(batch["network"], batch["kind"], batch["sigma"], batch["n"]): batch["rest"] for batch in batches}
    assert len(sent) == len(batches) == 2 * 3 * 3
    counts = {(spec.network.seed, spec.trigger): part.records[spec] for spec in part.records if isinstance(spec, CountsSpec)}
    for kind, trigger in (("clean", None), ("active", 1), ("inactive", 4)):
        for network, s, sigma in ((0, 2, 0.3), (1, 1, 0.12)):
            assert sent[network, kind, sigma, 8] == rest(counts[network, trigger].arrays["counts"][s, 0])


def test_correlation_sends_the_pairs_at_every_noise_level_and_no_counts():
    found = correlation.load(profile="paper", store="published")
    data = explorer("correlation", found).data
    assert data["batches"] == []
    for sent, part in zip(data["parts"], found.values(), strict=True):
        assert [(m["sigma"], m["n"]) for m in sent["means"]] == [(sigma, n) for sigma in part.sigmas for n in part.size.ns]
        assert sent["means"][1]["W"] == part.pairs(part.sigmas[0], n=part.size.ns[1])["W"].tolist() != sent["means"][0]["W"]
        assert sent["pairs"]["success"] == part.pairs()["success"].tolist() and sent["below"][0] == 0


def test_patterns_sends_what_is_there_of_the_detectors_batches_and_says_what_they_carry(published_part):
    part = published_part("patterns", networks=1, triggers=(1, 4), more_triggers=())
    first, last = part.networks[0], part.networks[-1]
    crafted = {spec.pattern: part.records[spec] for spec in part.records if isinstance(spec, CountsSpec) and 0.1 in spec.sigmas}
    lost = next(p for p in crafted if isinstance(p, UniversalSpec) and p.network == first and p.bound == 10)
    found = Records({spec: record for spec, record in part.records.items() if getattr(spec, "pattern", None) != lost})
    widget = explorer("patterns", {"a": dataclasses.replace(part, records=found)})
    batches = sent_by(widget.data["batches"], widget.counts)
    own = [batch for batch in batches if batch["network"] == 0 and batch["sigma"] == 0.1]
    others = [*(f"universal {bound}" for bound in (26, 4, 8, 16)), *["reversed"] * 10]
    assert [batch["carried"] for batch in own] == ["clean", "nothing", *["unseen"] * 6, *others]
    assert [batch["points"] for batch in own] == [250] * 8 + [100] * 14 and own[0]["own"] is None
    cleanse = next(p for p in crafted if isinstance(p, CleanseSpec) and p.network == first)
    assert own[-1]["rest"] == rest(crafted[cleanse].arrays["counts"][0, 0, -100:])
    own, trigger = [b for b in batches if b["network"] == part.networks.index(last) and b["sigma"] == 0.25], last.attack.trigger
    carried = ["clean", "nothing", *("own" if k == trigger else "unseen" for k in range(1, 7))]
    assert [batch["carried"] for batch in own[:8]] == carried
    assert {(batch["own"], batch["n"]) for batch in own} == {(trigger, 250)}


@pytest.mark.parametrize("module", [parameters, surfaces, correlation, patterns])
def test_where_nothing_is_measured_there_are_words_and_no_controls(module, tmp_path):
    found = module.load(profile="paper", store=Store(tmp_path, writable=False))
    said = explorer(found["cifar10"].chapter, found).data
    assert said == "\n\n".join(part.missing for part in found.values()) and "cifar10" in said


def test_an_explorer_has_words_for_readers_without_scripts_and_nothing_of_numpys():
    found = explorer("surface", {"a": surface(networks=1)})
    bundle, _ = found._repr_mimebundle_()
    assert bundle["application/vnd.jupyter.widget-view+json"]["model_id"] == found.model_id
    assert f'data-widget="{found.model_id}"' in bundle["text/html"] and "need scripts" in bundle["text/html"]
    assert "fashion-mnist, larger-fashion" in bundle["text/plain"] and json.loads(json.dumps(found.data)) == found.data
