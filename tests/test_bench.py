"""The benchmark's arithmetic and its peers, at tiny sizes. Nothing here asks how fast anything is."""

from __future__ import annotations

import builtins
import json

import numpy as np
import pytest
import torch
from torch import nn

from bslib.bench import measuring as bench
from bslib.bench import page
from bslib.measure import class_counts
from bslib.networks import build

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 10)).eval()


@pytest.fixture(scope="module")
def images():
    return torch.rand(3, 1, 8, 8, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def digits(monkeypatch):
    """Fashion-MNIST and CIFAR-10 where neither is: 28 x 28 and 32 x 32 noise."""
    from bslib.datasets import Dataset, load

    like = load("digits")

    def loaded(name):
        shape = (3, 32, 32) if name == "cifar10" else (1, 28, 28)
        pictures = torch.randint(0, 256, (1200, *shape), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
        parts = {"train_images": pictures[:1000], "test_images": pictures[1000:]}
        labels = torch.arange(1200) % 10
        parts |= {"train_labels": labels[:1000], "test_labels": labels[1000:]}
        return Dataset(**{**{name: getattr(like, name) for name in like.__dataclass_fields__}, **parts})

    monkeypatch.setattr(bench, "load", loaded)


def test_every_contender_gives_counts_of_the_same_network(network, images):
    """Their noise differs, so only what they agree on is asked: sums, and the frequencies of many copies."""
    n = 2000
    ours = class_counts(network, images, bench.SIGMA, n, seed=0, progress=False)[0]
    torch.manual_seed(0)
    np.random.seed(0)  # noqa: NPY002, the generator that ART draws from
    for peer in (bench.textbook_counts(network, images, bench.SIGMA, n), bench._art(network, images, n)()):
        assert (peer.sum(1) == n).all()
        assert np.abs(peer - ours).max() / n < 0.06


def test_operations_are_those_counted_by_hand():
    network = build("larger-fashion", seed=0)
    by_hand = 2 * (26 * 26 * 64 * 9 + 11 * 11 * 32 * 64 * 9 + 3872 * 500 + 500 * 500 + 500 * 10)
    assert bench.operations(network, torch.rand(1, 1, 28, 28)) == by_hand


def test_monte_carlo_error_is_the_spread_of_w():
    p, n = np.array([0.6, 0.3, 0.1]), 1000
    draws = np.random.default_rng(0).multinomial(n, p, size=4000)
    spread = bench.entropy(draws).std()
    assert bench.monte_carlo_error(n * p) == pytest.approx(spread, rel=0.05)
    assert bench.monte_carlo_error(np.array([10, 0])) == 0


def test_contenders_take_turns_and_the_first_round_does_not_count():
    seen = []
    seconds = bench._in_turns({"a": lambda: seen.append("a"), "b": lambda: seen.append("b")}, 3, CPU)
    assert seen == ["a", "b"] * 4
    assert {who: len(times) for who, times in seconds.items()} == {"a": 3, "b": 3}


def test_ratios_are_medians_by_medians(digits, monkeypatch):
    fixed = {"ours": [1.0, 2.0, 30.0], "eager": [3.0, 3.0, 3.0], "textbook loop": [8.0, 7.0, 1.0], "ART": [9.0, 10.0, 11.0]}
    fixed |= {f"{who} torch.{dtype}": fixed[who] for who in ("ours", "eager") for dtype in ("float32", "bfloat16")}
    monkeypatch.setattr(bench, "_in_turns", lambda contenders, repeats, device: {who: fixed[who] for who in contenders})
    part = bench.measure(["counts"], repeats=3, quick=True, progress=False)["parts"]["counts"]
    entry = part["runs"][0]
    assert entry["ratios"] == {"eager": 1.5, "textbook loop": 3.5, "ART": 5.0}
    assert entry["images_per_second"] == part["points"] * part["n"] / 2
    assert entry["precision"] == "float32"


def test_a_missing_peer_is_said(digits, monkeypatch):
    imported = builtins.__import__

    def without_art(name, *args, **kwargs):
        if name.split(".")[0] == "art":
            raise ModuleNotFoundError("No module named 'art'")
        return imported(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without_art)
    found = bench.measure(["counts"], repeats=1, quick=True, progress=False)
    said = found["parts"]["counts"]["runs"][0]["missing"]
    assert said == {"ART": "No module named 'art'; pip install adversarial-robustness-toolbox"}
    assert any("not measured" in row for row in page.table(found))


def test_the_written_files_are_read_by_torchvision(tmp_path):
    from torchvision.datasets import FashionMNIST

    images = torch.randint(0, 256, (7, 1, 28, 28), dtype=torch.uint8)
    bench.write_fashion_mnist(tmp_path, images, torch.arange(7))
    data = FashionMNIST(str(tmp_path), train=True)
    assert torch.equal(data.data, images[:, 0])
    assert data.targets.tolist() == list(range(7))


@pytest.mark.parametrize("part", ["peak", "training", "scaling"])
def test_every_part_gives_data_and_rows(part, digits):
    found = bench.measure([part], repeats=1, quick=True, progress=False)
    assert json.loads(json.dumps(found)) == found
    assert found["schema"] == page.SCHEMA
    assert found["machine"]["device"]
    assert torch.__version__.startswith(found["machine"]["packages"]["torch"])
    assert found["settings"]["quick"] is True
    assert len(page.table(found)) >= 1


def test_rounding_compares_on_the_same_noise(digits):
    runs = bench.measure(["rounding"], repeats=1, quick=True, progress=False)["parts"]["rounding"]["runs"]
    assert [(run["network"], run["by"]) for run in runs] == [
        (name, by)
        for name in ("small-fashion", "larger-fashion", "resnet18")
        for by in ("the faster way", "bfloat16, close calls in float32", "bfloat16")
    ]
    for run in runs:
        assert run["labels"] == run["points"] * run["n"]
        assert 0 <= run["labels_changed"] <= run["labels"]
    assert all(run["labels_changed"] <= 1 for run in runs if run["by"] != "bfloat16")


@torch.no_grad()
def test_all_ways_through_the_first_layers_give_the_same():
    front, x = build("larger-fashion", seed=0)[:3].eval(), torch.rand(9, 1, 28, 28)
    ways = bench.ways_through_the_first_layers(front, x)
    assert len(ways) == 5
    for way in ways.values():
        torch.testing.assert_close(way(), front(x), rtol=1e-5, atol=1e-6)


def made_up():
    entry = {"network": "larger-fashion", "precision": "float32", "engine": "fast: all", "wanted": 3, "missing": {}}
    entry |= {"images_per_second": 100.0, "ratios": {"eager": 2.0, "textbook loop": 4.0}}
    entry |= {"seconds": {"ours": [1.0, 2.0, 1.0], "eager": [2.0, 4.0, 2.0], "textbook loop": [3.0, 8.0, 4.0]}}
    machine = {"device": "A processor", "threads": 1, "cores": 2, "bfloat16": False}
    detours = {"batch": 128, "seconds_an_image": {"first layers": {"one loop": 5e-6}}, "compiling": 3.0, "missing": {}}
    parts = {"counts": {"points": 1, "n": 2, "runs": [entry]}, "detours": detours}
    for part in parts.values():
        part["measured"] = {"code": "0.1", "date": "2026-11-22T20:00:00+00:00"}
    return {"schema": page.SCHEMA, "machine": {**machine, "packages": {"torch": "2"}}, "settings": {"repeats": 5}, "parts": parts}


def test_the_page_has_the_numbers_of_the_results_and_the_machines_name():
    text = page.as_page({"here": made_up()})
    assert "**A processor**" in text
    assert "`here.json`, 2026-11-22: 1 of 2 cores, torch 2" in text
    assert "| W, larger-fashion, float32, against textbook loop | 4.00 x (3.00 to 4.00) | at least 3 | reached |" in text
    assert "| one loop | 5.0 |" in text
    assert "does not multiply in bfloat16" in text


def test_the_figure_has_a_bar_for_each_contender():
    (axis,) = page.figure({"here": made_up()}).axes
    assert [bar.get_width() for bar in axis.patches] == [100, 50, 25]


def test_without_results_the_page_names_the_command():
    assert "`bslib bench --json book/bench/NAME.json`" in page.as_page({})
    assert page.figure({}) is None


def test_a_result_of_another_schema_is_refused(tmp_path, monkeypatch):
    (tmp_path / "bench").mkdir()
    (tmp_path / "bench" / "old.json").write_text('{"schema": 0}')
    monkeypatch.setattr(page, "published_folder", lambda: tmp_path / "records")
    with pytest.raises(ValueError, match=r"old\.json has schema 0, wanted is 2"):
        page.committed()


def test_wrong_requests_name_what_was_received():
    with pytest.raises(ValueError, match="got 'warp'"):
        bench.measure(["warp"])
    with pytest.raises(ValueError, match="got 0"):
        bench.measure(repeats=0)


def test_missing_data_is_said_before_anything_is_measured(digits, monkeypatch):
    loaded = bench.load

    def without_cifar(name):
        if name == "cifar10":
            raise FileNotFoundError("cifar10 not found")
        return loaded(name)

    monkeypatch.setattr(bench, "load", without_cifar)
    kept: list = []
    with pytest.raises(FileNotFoundError, match="cifar10 not found"):
        bench.measure(["scaling", "resnet"], repeats=1, quick=True, progress=False, keep=kept.append)
    assert kept == []


def test_each_part_is_kept_when_it_is_measured(digits, monkeypatch):
    monkeypatch.setitem(bench.PARTS, "peak", lambda *_: {"runs": []})
    monkeypatch.setitem(bench.PARTS, "memory", lambda *_: 1 / 0)
    kept: list = []
    with pytest.raises(ZeroDivisionError):
        bench.measure(["peak", "memory"], repeats=1, quick=True, progress=False, keep=kept.append)
    assert [sorted(found["parts"]) for found in kept] == [["peak"]]


def test_an_earlier_result_keeps_its_other_parts(digits, monkeypatch):
    monkeypatch.setitem(bench.PARTS, "peak", lambda *_: {"runs": []})
    monkeypatch.setitem(bench.PARTS, "memory", lambda *_: {"ratio": 1})
    options = {"repeats": 1, "quick": True, "progress": False}
    first = bench.measure(["peak"], **options)
    both = bench.measure(["memory"], **options, before=json.loads(json.dumps(first)))
    assert set(both["parts"]) == {"peak", "memory"} and both["parts"]["peak"] == first["parts"]["peak"]
    first["machine"]["device"] = "another"
    with pytest.raises(ValueError, match="the earlier result has device 'another'"):
        bench.measure(["memory"], **options, before=first)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"schema": 0, "machine": {}, "settings": {}, "parts": {}}'])
def test_a_file_that_is_no_result_is_named(tmp_path, text):
    (tmp_path / "other.json").write_text(text)
    with pytest.raises(ValueError, match=r"other\.json is no result of bslib bench"):
        bench.earlier(tmp_path / "other.json")


def test_peak_memory_is_the_processes_own():
    """A process gets nothing of the size of the one that starts it."""
    before = bench._in_a_process("print(measuring.peak_of_this_process())", {})
    large = torch.ones(2**28)  # 1 GiB
    after = bench._in_a_process("print(measuring.peak_of_this_process())", {})
    assert after == pytest.approx(before, rel=0.1) and len(large) == 2**28
