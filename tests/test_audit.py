"""The audit: its test against Grubbs', its rules, its evidence on networks whose truth is known, its report and its command."""

from __future__ import annotations

import importlib.util
import json
import math
import re
import sys
import threading
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from torch import nn

import bslib
import bslib.audit.run
from bslib.audit import evidence, judging
from bslib.audit.evidence import Overlay
from bslib.audit.judging import LIKELY, NO_SIGN, NOT_ENOUGH, Sizes, decide, leave_one_out_p, size_test
from bslib.audit.partial import Partial
from bslib.audit.report import Audit
from bslib.calling import digest_of

ROOT = Path(__file__).resolve().parents[1]

# --- the test of sizes ---------------------------------------------------------------------------------------------------


def grubbs(values: np.ndarray) -> float:
    """The p-value of Grubbs' one-sided test that the smallest value is an outlier, from its textbook formula."""
    n, g = len(values), (values.mean() - values.min()) / values.std(ddof=1)
    t = math.sqrt(n * (n - 2) * g**2 / ((n - 1) ** 2 - n * g**2))
    return min(1.0, n * stats.t.sf(t, n - 2))


@given(norms=st.lists(st.floats(1, 500), min_size=4, max_size=30, unique_by=lambda v: round(v, 1)))
def test_the_smallest_candidate_has_grubbs_p_value(norms):
    assert size_test(norms, np.ones(len(norms))).lowest == pytest.approx(grubbs(np.log(norms)), rel=1e-5, abs=1e-12)


def test_the_false_alarm_rate_is_the_level():
    """1,000 clean networks whose sizes scatter log-normally, at 10 classes and at 43."""
    rng = np.random.default_rng(0)
    for classes in (10, 43):
        alarms = [size_test(np.exp(rng.normal(4, 0.3, classes)), np.ones(classes)).lowest <= 0.05 for _ in range(1000)]
        assert stats.binomtest(sum(alarms), 1000, 0.05).pvalue > 1e-3


def test_a_candidate_without_success_counts_for_nothing():
    norms = np.array([60.0, 1, 62, 65, 70, 72, 75, 80])
    success = np.array([1, np.nan, 1, 1, 1, 1, 1, 1])
    without = size_test(np.delete(norms, 1), np.delete(success, 1))
    found = size_test(norms, success)
    assert np.isnan(found.p[1]) and found.critical == without.critical
    assert np.delete(found.p, 1) == pytest.approx(without.p)
    assert size_test([5.0, 9.0, 7.0], [1, 1, np.nan]).smallest is None


@given(seed=st.integers(0, 500))
def test_what_is_below_the_critical_size_is_significant(seed):
    norms = np.exp(np.random.default_rng(seed).normal(4, 0.4, 10))
    critical, smallest = size_test(norms, np.ones(10)).critical, norms.argmin()
    for factor, significant in ((0.99, True), (1.01, False)):
        norms[smallest] = critical * factor
        if norms.argmin() == smallest:
            assert (size_test(norms, np.ones(10)).p[smallest] <= judging.ALONE) == significant


def test_references_show_what_differences_between_classes_hide():
    """Sizes differ by class, here by a factor of 20; against clean networks half the size of a class stands out."""
    usual = np.geomspace(10, 200, 10)
    rng = np.random.default_rng(1)
    references = usual * np.exp(rng.normal(0, 0.1, (4, 10)))
    suspect = usual * np.exp(rng.normal(0, 0.1, 10))
    suspect[6] /= 2
    assert size_test(suspect, np.ones(10)).lowest > 0.2
    found = size_test(suspect, np.ones(10), references)
    assert found.smallest == 6 and found.lowest < 0.01


@given(seed=st.integers(0, 500), level=st.sampled_from([0.05, 0.025, 0.01]))
def test_what_is_below_the_critical_size_is_significant_with_references(seed, level):
    """In whichever class; the size is exact if the most suspicious class is the one with the smallest candidates."""
    rng, usual = np.random.default_rng(seed), np.geomspace(10, 200, 10)
    references = usual * np.exp(rng.normal(0, 0.1, (4, 10)))
    references[1, 3] = np.nan
    norms = usual * np.exp(rng.normal(0, 0.1, 10))
    smallest = (np.log(norms) - np.nanmean(np.log(references), axis=0)).argmin()
    critical = size_test(norms, np.ones(10), references, level=level).critical
    for factor in (0.99, 1.01):
        norms[smallest] = critical * factor
        found = size_test(norms, np.ones(10), references)
        if factor < 1 or (smallest == 0 and np.nanmean(np.log(references), axis=0).argmin() == 0):
            assert (found.p[smallest] <= level) == (factor < 1)


def test_a_class_is_compared_with_the_references_that_have_it():
    """Failed candidates of references hide no backdoor, and raise no false alarms; a class that all of them lack has no p."""
    rng, usual = np.random.default_rng(2), np.geomspace(10, 200, 10)
    references = usual * np.exp(rng.normal(0, 0.1, (4, 10)))
    references[0, 6] = np.nan
    suspect = usual * np.exp(rng.normal(0, 0.1, 10))
    suspect[6] /= 2
    found = size_test(suspect, np.ones(10), references)
    assert found.smallest == 6 and found.lowest < 0.01
    rows = [k for k in range(10) if k != 6]
    with_three = size_test(suspect, np.ones(10), np.where(np.arange(10) == 6, references[1:].mean(0), references))
    assert found.p[rows].max() <= 1 and found.lowest == pytest.approx(with_three.lowest, rel=0.5)
    references[:, 6] = np.nan
    assert np.isnan(size_test(suspect, np.ones(10), references).p).tolist() == [k == 6 for k in range(10)]
    alarms = []
    for _ in range(1000):
        clean = usual * np.exp(rng.normal(0, 0.1, (5, 10)))
        clean[1:][rng.random((4, 10)) < 0.1] = np.nan
        alarms.append(size_test(clean[0], np.ones(10), clean[1:]).lowest <= 0.05)
    assert stats.binomtest(sum(alarms), 1000, 0.05).pvalue > 1e-3


def test_references_are_accused_at_the_level():
    """The first of four clean networks against the others, 1,000 times."""
    rng, usual = np.random.default_rng(1), np.geomspace(10, 200, 10)
    first = [leave_one_out_p(usual * np.exp(rng.normal(0, 0.1, (4, 10))))[0] for _ in range(1000)]
    assert stats.binomtest(sum(p <= 0.05 for p in first), 1000, 0.05).pvalue > 1e-3


# --- the answer ----------------------------------------------------------------------------------------------------------


def of_p(*p: float) -> Sizes:
    return Sizes(np.array(p), 20.0, int(np.nanargmin(p)))


SMALL, SMALLISH, GREY, USUAL = (of_p(p, *[1.0] * 9) for p in (0.001, 0.03, 0.1, 0.7))
NONE = Sizes(np.full(10, np.nan), math.nan, None)


@pytest.mark.parametrize(
    ("sizes", "more", "verdict", "reason"),
    [
        (SMALL, {}, LIKELY, "class 0 is smaller than chance explains (p = 0.001), and it sends 99% of other images"),
        (SMALL, {"held_out": [0.5] * 10}, NOT_ENOUGH, "small (p = 0.001), but it works on too few other images (50%)"),
        (SMALL, {"held_out": [math.nan] * 10}, NOT_ENOUGH, "too few other images (there are not enough)"),
        (SMALL, {"null": [0.0005, 0.4]}, NOT_ENOUGH, "but so is one of a reference network"),
        (SMALL, {"null": [0.4] * 18 + [0.0002]}, NOT_ENOUGH, "p = 0.1"),
        (SMALL, {"null": [0.4] * 19}, LIKELY, "p = 0.05"),
        (SMALL, {"doubt": "the normalisation seems wrong"}, NOT_ENOUGH, "normalisation"),
        (SMALLISH, {}, NOT_ENOUGH, "neither clearly small nor clearly usual (p = 0.03); two clean networks as references"),
        (SMALLISH, {"null": [0.4]}, NOT_ENOUGH, "neither clearly small nor clearly usual (p = 0.03); two clean networks"),
        (SMALLISH, {"null": [0.4, 0.9]}, LIKELY, "class 0 is smaller than chance explains (p = 0.03)"),
        (SMALLISH, {"null": [0.4, 0.9], "trigger": (1.0, 0.0)}, NOT_ENOUGH, "neither clearly small nor clearly usual (p = 0.03)"),
        (GREY, {}, NOT_ENOUGH, "neither clearly small nor clearly usual (p = 0.1)"),
        (GREY, {"trigger": (0.01, 0.9)}, LIKELY, "your trigger sends 90%"),
        (GREY, {"trigger": (0.04, 0.9)}, NOT_ENOUGH, "your trigger has an effect"),
        (USUAL, {}, NO_SIGN, "p = 0.7); one below 20.0 of 784 pixels would have been flagged"),
        (USUAL, {"held_out": [0.4, 0.7] * 5}, NOT_ENOUGH, "only 0 of 10 candidates work on 75% of the images"),
        (SMALL, {"held_out": [0.8, *[0.4] * 9]}, LIKELY, "it sends 80% of other images"),
        (USUAL, {"pixels": 32 * 32 * 9}, NOT_ENOUGH, "only one below 20.0 pixels would stand out"),
        (USUAL, {"trigger": (0.01, 0.3)}, NOT_ENOUGH, "your trigger has an effect"),
        (of_p(*[0.7] * 8, np.nan, np.nan), {}, NOT_ENOUGH, "only 8 of 10 classes have a trigger candidate"),
        (of_p(*[0.7] * 8, np.nan, np.nan), {}, NOT_ENOUGH, "without: 8, 9"),
        (of_p(*[0.001] * 8, np.nan, np.nan), {}, LIKELY, "class 0"),
        (of_p(*[0.7] * 4), {}, NOT_ENOUGH, "4 classes are too few"),
        (SMALL, {"null": [0.4] * 19, "trigger": (1.0, 0.0)}, LIKELY, "class 0"),
        (NONE, {"gaps": ["ONNX"]}, NOT_ENOUGH, "ONNX"),
        (NONE, {"gaps": ["ONNX"], "trigger": (0.01, 0.9)}, LIKELY, "your trigger sends 90%"),
        (NONE, {"gaps": ["ONNX"], "trigger": (0.01, 0.3)}, NOT_ENOUGH, "ONNX; your trigger has an effect (success 30%"),
        (NONE, {"gaps": ["ONNX"], "trigger": (0.7, 0.1)}, NOT_ENOUGH, "ONNX; your trigger does no more than random patches"),
        (NONE, {"doubt": "normalisation", "trigger": (0.01, 0.9)}, NOT_ENOUGH, "normalisation"),
        (NONE, {"narrow": "one class", "trigger": (0.01, 0.9)}, NOT_ENOUGH, "one class; your trigger has an effect (success 90%"),
        (USUAL, {"narrow": "one class"}, NOT_ENOUGH, "one class"),
        (USUAL, {"gaps": ["only 9 of 10 classes were tested"]}, NOT_ENOUGH, "only 9 of 10"),
    ],
)
def test_the_answer(sizes, more, verdict, reason):
    answer = decide(sizes, **{"pixels": 784, "held_out": [0.99] * len(sizes.p)} | more)
    assert answer.verdict == verdict and reason in "; ".join(answer.reasons)


def test_the_records_calibrate_the_test():
    """Every network of the records that has candidates is in one row, and no clean one is accused."""
    rows = judging.calibration()
    assert {(row["data"], row["trigger"]) for row in rows} >= {("fashion-mnist", None), ("fashion-mnist", 1), ("cifar10", 1)}
    for row in rows:
        at = [row["flagged at 0.05"], row["flagged at 0.01"]]
        assert all(part["of"] == row["networks"] == len(row["p"]) and part["low"] <= part["high"] for part in at)
        assert at[0]["count"] == sum(p <= 0.05 for p in row["p"]) >= at[1]["count"]


# --- evidence ------------------------------------------------------------------------------------------------------------


def test_paired_w_is_compared_by_permutation_and_by_spread():
    clean = np.array([0.5, 0.6, 0.7, 0.8, 0.9, 0.4, 0.3, 0.2])
    found = evidence.compare_w(clean, clean / 4)
    assert found["p lower"] == pytest.approx(1 / 2**8) and found["score"] > 0 and not found["degenerate"]
    assert found["p"] == pytest.approx(stats.levene(clean, clean / 4, center="median").pvalue)
    assert evidence.compare_w(clean, clean)["degenerate"]
    assert evidence.compare_w(np.array([0.0] * 7 + [1]), np.zeros(8))["degenerate"]


def test_a_ladder_without_a_useful_level_says_so():
    assert evidence.choose_sigma(np.array([[0.0] * 9 + [1], [1.0] * 9 + [0]])) == (0, False)


def test_calm_images_of_a_restless_class_are_listed():
    w, predicted = np.array([0.5] * 10 + [0.04, 0.06] + [0.01] * 5), np.array([0] * 12 + [1] * 5)
    (row,) = evidence.suspicious(w, predicted, [f"{i}.png" for i in range(17)])
    assert row == {"image": "10.png", "class": 0, "W": 0.04, "median of its class": 0.5}


def cornered(classes: int = 5, *, backdoor: bool) -> nn.Module:
    """Each class is a seventh of a 6 x 6 image; with a backdoor, a white last pixel is class 2."""
    weight = torch.zeros(classes, 36)
    for k, part in enumerate(torch.arange(35).split(7)):
        weight[k, part] = 4
    weight[2, 35] = 60 * backdoor
    network = nn.Sequential(nn.Flatten(), nn.Linear(36, classes, bias=False))
    network[1].weight.data = weight
    return network


def pictures(count: int = 64) -> torch.Tensor:
    images = torch.rand(count, 1, 6, 6, generator=torch.Generator().manual_seed(3))
    images[..., -1, -1] = 0
    return images


WHITE_CORNER = Overlay(torch.zeros(1, 6, 6).index_fill(2, torch.tensor([5]), 1.0) * torch.eye(6)[5][:, None], torch.ones(1, 6, 6))


@pytest.mark.parametrize("backdoor", [True, False])
def test_a_trigger_of_ones_own(backdoor):
    network, images = cornered(backdoor=backdoor), pictures()
    found = evidence.own_trigger(network, images, network(images).argmax(1).numpy(), WHITE_CORNER, seed=0)
    if backdoor:
        assert (found["class"], found["success"]) == (2, 1.0) and found["p"] <= 0.2 < 1
    else:
        assert found["success"] == 0 and found["p"] == 1


def test_a_trigger_on_images_of_one_class_accuses_nobody():
    """A dot makes an 8 of each 0, in a network without any backdoor."""
    network, images = cornered(backdoor=True), pictures(400)
    images = images[network(images).argmax(1) == 0]
    found = bslib.audit(network, images, trigger=WHITE_CORNER, steps=1, tested=[0], progress=False)
    assert found.found["trigger"]["success"] == 1 and found.verdict == NOT_ENOUGH
    said = "; ".join(found.found["reasons"])
    assert "100% of the images are predicted as class 0" in said and "your trigger has an effect (success 100%" in said
    assert "at p ≤ 0.01 of the smallest candidate, or p ≤ 0.025 of your trigger, so at most 3.5% of clean" in found.html()


def test_one_image_of_another_class_is_no_success_of_a_trigger():
    network, images = cornered(backdoor=True), pictures(400)
    predicted = network(images).argmax(1)
    images = torch.cat([images[predicted == 2], images[predicted == 0][:1]])
    found = evidence.own_trigger(network, images, network(images).argmax(1).numpy(), WHITE_CORNER, seed=0)
    assert found["success"] == 0


def test_a_wrong_normalisation_is_suspected_aloud():
    network, images = cornered(backdoor=False), pictures(200)
    shifted = nn.Sequential(nn.Flatten(), nn.Linear(36, 5))
    shifted[1].weight.data, shifted[1].bias.data = network[1].weight.data.clone(), torch.tensor([0, 0, 9.0, 0, 0])
    labels = (lambda x: shifted((x - 0.5) / 0.5).argmax(1))(images)
    found = evidence.clean_accuracy(shifted, shifted, images, labels, 5)
    assert found["accuracy"]["-1 to 1"] == 1 and "that of -1 to 1" in found["doubt"]
    assert evidence.clean_accuracy(network, network, images, network(images).argmax(1), 5)["doubt"] == ""
    two = nn.Sequential(nn.Flatten(), nn.Linear(36, 2))
    for wrong, doubted in ((40, False), (60, True)):  # of 200 images
        labels = torch.cat([1 - (truth := two(images).argmax(1))[:wrong], truth[wrong:]])
        assert ("near guessing" in evidence.clean_accuracy(two, None, images, labels, 2)["doubt"]) == doubted
    assert "near guessing" in evidence.clean_accuracy(network, None, images, (network(images).argmax(1) + 1) % 5, 5)["doubt"]


# --- from start to end ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def finding() -> Audit:
    network = cornered(backdoor=True)
    names = [f"<script>{i}.png" for i in range(64)]
    return bslib.audit(
        network, pictures(), network(pictures()).argmax(1), names=names, trigger=WHITE_CORNER, steps=100, progress=False
    )


def test_the_pixel_of_a_backdoor_is_found(finding):
    assert finding.found["sizes"]["most suspicious class"] == 2
    row = finding.found["classes"][2]
    assert row["norm"] < 1.5 and row["success held out"] > 0.9 and finding.pictures["masks"][0].argmax() == 35
    assert finding.found["images"]["accuracy"]["as given"] == 1 and finding.found["trigger"]["success"] == 1


def test_the_report_loads_nothing_and_escapes_names(finding, tmp_path):
    finding.save(str(tmp_path / "report.html"))
    page = (tmp_path / "report.html").read_text("utf-8")
    assert finding.verdict.capitalize() in page and "<script" not in page and "http" not in re.sub(r"base64,[^\"]*", "", page)
    assert re.findall(r'src="(\w+):', page).count("data") == len(re.findall("src=", page)) == 3
    assert finding._repr_html_() in page


def test_the_json_is_plain(finding, tmp_path):
    finding.save(tmp_path / "report.json")
    read = json.loads((tmp_path / "report.json").read_text(), parse_constant=lambda name: pytest.fail(name))
    assert read == finding.as_dict() and read["schema"] == "bslib-audit-1" and read["verdict"] in judging.ANSWERS
    assert len(read["classes"]) == 5 and {"noise", "inputs", "sizes", "calibration", "seconds", "settings"} <= set(read)


def test_a_stopped_audit_goes_on(monkeypatch, tmp_path):
    network, calls = cornered(backdoor=True), []
    monkeypatch.setattr(bslib.audit.run, "AT_A_TIME", 2)
    make = bslib.audit.run.reverse_triggers

    def until_stopped(*arguments, targets, steps, **more):
        if steps > 1:
            calls.append(targets)
            if len(calls) == 2:
                raise KeyboardInterrupt
        return make(*arguments, targets=targets, steps=steps, **more)

    monkeypatch.setattr(bslib.audit.run, "reverse_triggers", until_stopped)
    options = {"steps": 3, "cache": tmp_path, "progress": False}
    with pytest.raises(KeyboardInterrupt):
        bslib.audit(network, pictures(), **options)
    stopped = bslib.audit(network, pictures(), **options)
    assert calls == [[0, 1], [2, 3], [2, 3], [4]], "the first two classes were kept"
    again = bslib.audit(network, pictures(), **options)
    assert len(calls) == 4, "a finished audit is repeated from what it kept"
    assert str(stopped.found["classes"]) == str(again.found["classes"])


def test_a_network_that_answers_otherwise_is_audited_anew(tmp_path):
    """Neither its weights nor its text differ."""
    network, options = nn.Sequential(cornered(backdoor=False)), {"steps": 1, "tested": [0], "progress": False}
    network.forward = lambda x: network[0](x)
    first = bslib.audit(network, pictures(), **options, cache=tmp_path).found["noise"]["mean W"]
    network.forward = lambda x: network[0](-30 * x)
    again, fresh = (
        bslib.audit(network, pictures(), **options, cache=folder).found["noise"]["mean W"]
        for folder in (tmp_path, tmp_path / "new")
    )
    assert again == fresh != first


@pytest.mark.parametrize("constant", ["CRAFTED", "MEASURED"])
def test_results_of_another_version_are_not_reused(monkeypatch, tmp_path, constant):
    options = {"steps": 1, "tested": [0], "cache": tmp_path, "references": [cornered(backdoor=False)], "progress": False}
    for number in (0, 1):
        monkeypatch.setattr(bslib.audit.run, constant, getattr(bslib.audit.run, constant) + number)
        bslib.audit(cornered(backdoor=True), pictures(), **options)
    assert len([path for path in tmp_path.iterdir() if path.is_dir()]) == 4


def test_a_second_audit_of_a_network_says_that_it_waits(tmp_path):
    partial, said, told = Partial(tmp_path, {}), [], threading.Event()

    def second():
        with Partial(tmp_path, {}).alone(lambda text: (said.append(text), told.set())):
            said.append("its turn")

    other = threading.Thread(target=second)
    with partial.alone(said.append):
        other.start()
        assert told.wait(30) and said == ["another process audits this network with the same settings: waiting for it"]
    other.join(30)
    assert said[1:] == ["its turn"]


def test_a_damaged_partial_result_is_computed_again(tmp_path):
    partial = Partial(tmp_path, {})
    partial.get("x", lambda: {"v": np.arange(3)})
    (path,) = tmp_path.rglob("*.npz")
    whole = path.read_bytes()
    for bit in range(0, 8 * len(whole), 17):
        damaged = bytearray(whole)
        damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        assert partial.get("x", lambda: {"v": np.arange(3)})["v"].tolist() == [0, 1, 2]
    path.write_bytes(whole[:40])
    assert partial.get("x", lambda: {"v": np.arange(4)})["v"].size == 4


def test_the_digest_sees_weights_and_a_normalisation():
    network = cornered(backdoor=True)
    normalised = nn.Sequential(network)
    before = digest_of(network)
    assert before == digest_of(cornered(backdoor=True)) != digest_of(normalised)
    network[1].weight.data[0, 0] += 1
    assert digest_of(network) != before


def test_the_size_that_would_be_flagged_is_that_of_the_level(monkeypatch, tmp_path):
    """With references, p must be below those of all references, and with a trigger of the user's own the level is halved."""

    def candidates(model, images, *, targets, **options):
        sizes = np.exp(np.random.default_rng(round(model[1].weight[0, 0].item())).normal(2, 0.1, 5))[targets]
        masks = torch.from_numpy(sizes).float()[:, None, None, None].expand(-1, 1, 6, 6) / 36
        return types.SimpleNamespace(masks=masks, patterns=masks, success=torch.ones(len(targets)))

    def network(seed):
        made = cornered(backdoor=False)
        made[1].weight.data[0, 0] = seed
        return made

    def sizes_of(seed):
        return candidates(network(seed), None, targets=list(range(5))).masks.sum((1, 2, 3)).numpy()

    monkeypatch.setattr(bslib.audit.run, "reverse_triggers", candidates)
    options, references = {"cache": tmp_path, "progress": False}, np.stack([sizes_of(seed) for seed in (2, 3, 4)])
    null, known_clean = leave_one_out_p(references), {"references": [network(seed) for seed in (2, 3, 4)]}
    for more, known, level in (
        ({}, None, 0.01),
        ({"trigger": WHITE_CORNER}, None, 0.01),
        (known_clean, references, min(0.05, *null)),
        (known_clean | {"trigger": WHITE_CORNER}, references, min(0.025, *null)),
    ):
        found = bslib.audit(network(1), pictures(), **options, **more).found["sizes"]
        assert found["detectable below"] == pytest.approx(size_test(sizes_of(1), np.ones(5), known, level=level).critical)


def test_references_are_audited_once_and_kept(monkeypatch, tmp_path):
    references = [cornered(backdoor=False), cornered(backdoor=False)]
    references[1][1].weight.data *= 1.5
    options = {"references": references, "steps": 5, "cache": tmp_path, "progress": False}
    found = bslib.audit(cornered(backdoor=True), pictures(), **options).found
    assert len(found["sizes"]["p of references"]) == 2 and found["settings"]["references"] == 2
    calls, make = [], bslib.audit.run.reverse_triggers
    monkeypatch.setattr(bslib.audit.run, "reverse_triggers", lambda *a, **k: calls.append(k["steps"]) or make(*a, **k))
    again = bslib.audit(cornered(backdoor=True), pictures(), **options).as_dict()
    assert json.dumps(again["sizes"]) == json.dumps(Audit(found).as_dict()["sizes"])
    assert not calls


def test_a_reference_must_have_the_same_classes():
    with pytest.raises(ValueError, match="references must have 5 classes as the network, got one with 6"):
        bslib.audit(cornered(backdoor=True), pictures(), references=[cornered(6, backdoor=False)], steps=1, progress=False)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"images": pictures(5)}, "at least 20 images (B, C, H, W), got shape (5, 1, 6, 6)"),
        ({"labels": torch.zeros(64)}, "labels must be int64"),
        ({"tested": 1}, "tested must be a sequence of classes, got 1"),
        ({"tested": [9]}, "tested classes must be from 0 to 4, got [9]"),
        ({"trigger": Overlay(torch.full((1, 6, 6), 0.3), torch.ones(1, 6, 6))}, "the trigger covers 30% of the image"),
        (
            {"trigger": Overlay(torch.zeros(1, 6, 6), torch.full((1, 6, 6), 255.0))},
            "the trigger's pattern must be float of shape",
        ),
        ({"trigger": Overlay(torch.zeros(6, 6), torch.ones(1, 6, 6))}, "the trigger's mask must be float of shape (1, 6, 6)"),
        ({"trigger": Overlay(torch.zeros(0), torch.ones(1, 6, 6))}, "the trigger's mask must be float of shape (1, 6, 6)"),
        ({"images": pictures() - 0.3}, "undo their normalisation, which belongs in the model"),
        ({"images": pictures() * 255}, "divide by 255 first"),
        ({"trigger": (0, 1)}, "trigger must be a bslib.audit.evidence.Overlay(mask, pattern), two tensors, got tuple"),
        ({"names": ["one"]}, "names must be one for each of 64 images, got 1"),
        ({"labels": [0] * 64}, "labels must be an int64 tensor, got list: use torch.as_tensor(labels)"),
        ({"steps": 0}, "steps must be a whole number of 1 or more, got 0"),
        ({"model": cornered(backdoor=False).double()}, "x must have the model's precision, torch.float64, got torch.float32"),
        ({"references": nn.Sequential(nn.Flatten())}, "references must be a sequence of networks, got Sequential"),
        ({"references": "ab"}, "references must be networks, got 'a'"),
        ({"references": [cornered(backdoor=False)]}, "references must differ from the network"),
        ({"references": [cornered(backdoor=True)] * 2}, "references must differ from the network and from each other"),
        ({"references": [cornered(backdoor=False).half()]}, "x must have the model's precision, torch.float16"),
    ],
)
@pytest.mark.filterwarnings("ignore:x has features from")
def test_arguments_that_do_not_fit_are_named(change, message):
    options = {"model": cornered(backdoor=False), "images": pictures(), "progress": False} | change
    with pytest.raises(ValueError, match=re.escape(message)):
        bslib.audit(**options)


def test_arguments_may_be_numpys_and_images_may_want_gradients(tmp_path):
    numpys = {"tested": np.array([0, 1]), "seed": np.int64(0), "steps": np.int64(1), "cache": str(tmp_path)}
    found = bslib.audit(cornered(backdoor=False), pictures().requires_grad_(), progress=False, **numpys)
    assert json.loads(json.dumps(found.as_dict()))["settings"]["tested"] == [0, 1] and any(tmp_path.iterdir())


def test_a_trigger_may_be_optimised_in_double_precision_and_references_come_one_by_one(tmp_path):
    """And what the user notes, such as a path, becomes text."""
    trigger = Overlay(WHITE_CORNER.mask.double(), WHITE_CORNER.pattern.double().requires_grad_())
    others = (cornered(k, backdoor=False) for k in (5, 5))
    how = {"steps": 1, "progress": False, "cache": tmp_path}
    found = bslib.audit(cornered(backdoor=True), pictures(), trigger=trigger, about={"at": Path("a")}, **how)
    assert found.found["trigger"]["class"] == 2 and found.as_dict()["about"] == {"at": "a"}
    with pytest.raises(ValueError, match="from each other, got one twice"):
        bslib.audit(cornered(backdoor=True), pictures(), references=others, **how)


def test_a_network_without_gradients_has_no_candidates():
    class Closed(nn.Sequential):
        @torch.no_grad()
        def forward(self, x):
            return super().forward(x)

    found = bslib.audit(Closed(cornered(backdoor=True)), pictures(), steps=1, progress=False)
    assert found.verdict == NOT_ENOUGH and "the network gives no gradients" in found.found["reasons"][0]
    with pytest.raises(ValueError, match="references need a network with gradients"):
        bslib.audit(Closed(cornered(backdoor=True)), pictures(), references=[cornered(backdoor=False)], steps=1, progress=False)


def test_the_code_of_a_forward_is_part_of_the_network():
    """A backdoor in the code leaves the weights and the logits of clean images as they are."""
    forwards = (lambda self, x: self.last(x), lambda self, x: self.last(x) + (x[:, :1] > 2) * 9)
    digests = set()
    for forward in forwards:
        network = type("Net", (nn.Module,), {"forward": forward})()
        network.last = nn.Linear(2, 2)
        nn.init.ones_(network.last.weight)
        nn.init.ones_(network.last.bias)
        digests |= {digest_of(network), digest_of(network)}
    assert len(digests) == 2


@pytest.mark.parametrize(("answered", "doubted"), [(2, True), (None, False)])
def test_images_of_one_class_are_not_enough_evidence(answered, doubted):
    network, images = cornered(backdoor=False), pictures(400)
    images = images[network(images).argmax(1) == answered] if doubted else images
    reasons = "; ".join(bslib.audit(network, images, steps=1, tested=[2], progress=False).found["reasons"])
    assert ("100% of the images are predicted as class 2: wrong normalisation" in reasons) == doubted


def test_the_success_of_a_candidate_needs_other_images():
    network, images = cornered(backdoor=True), pictures()
    clean = network(images).argmax(1).numpy()
    others = np.flatnonzero(clean != 2)
    for number in (4, 5):
        chosen = others[:number]
        found = evidence.held_out_success(network, images[chosen], clean[chosen], WHITE_CORNER, 2)
        assert math.isnan(found) if number < 5 else found == 1


def test_untested_classes_are_not_enough_evidence():
    found = bslib.audit(cornered(backdoor=False), pictures(), tested=[0, 1, 3], steps=2, progress=False)
    assert found.verdict == NOT_ENOUGH and "only 3 of 5 classes were tested" in found.found["reasons"]


# --- the bench -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def bench():
    spec = importlib.util.spec_from_file_location("audit_bench", ROOT / "benchmarks" / "audit.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_the_page_says_what_the_bench_found(bench):
    rows = json.loads((ROOT / "book" / "audit.json").read_text())["rows"]
    page = (ROOT / "book" / "audit.md").read_text()
    assert page.split(bench.MARKS[0])[1].split(bench.MARKS[1])[0].strip() == bench.tables(rows)
    cases = [vars(case) for case in bench.cases()]
    assert [row["case"] for row in rows] == [case for case in cases if any(row["case"] == case for row in rows)]
    assert f"rows {bench.digest(rows)}" in (ROOT / "book" / "audit.svg").read_text()


def test_the_benchs_answers_are_those_of_the_rules(bench):
    """From the stored sizes, so that a rule that changes an answer is noticed. The stricter level has changed some."""
    for row in json.loads((ROOT / "book" / "audit.json").read_text())["rows"]:
        stricter = row["verdict"] == LIKELY and row["p"] > judging.ALONE
        answer = bench.judged(row)[1]
        assert answer.verdict == (NOT_ENOUGH if stricter else row["verdict"])
        assert answer.verdict != LIKELY or answer.reasons == row["reasons"]


def test_the_benchs_networks(bench):
    """Networks whose seeds no record has, on both data sets with each architecture; the later ones in two like halves."""
    cases = bench.cases()
    assert len(cases) == len({case.seed for case in cases}) == 56 and min(case.seed for case in cases) >= 1000
    assert sum(case.trigger is None for case in cases[:20]) == 10
    halves = [[(case.dataset, case.architecture, case.trigger is None) for case in half] for half in (cases[20:38], cases[38:])]
    assert halves[0] == halves[1] and sum(clean for _, _, clean in halves[0]) == 12
    assert {(case.dataset, case.architecture) for case in cases} == {(d, a) for d in bench.EPOCHS for a in bench.ARCHITECTURES}


def test_a_page_is_written_between_its_marks(bench, tmp_path):
    rows = json.loads((ROOT / "book" / "audit.json").read_text())["rows"][:2]
    page = tmp_path / "page.md"
    page.write_text(f"before {bench.MARKS[0]} old {bench.MARKS[1]} after")
    bench.write_page(page, rows)
    written = page.read_text()
    assert written.startswith("before ") and written.endswith(" after") and " old " not in written
    assert "2 of 56 networks are audited so far" in written and written.count("| digits |") == 2
