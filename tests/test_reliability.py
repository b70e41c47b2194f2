"""The promises of the page *Reliability*, in their short form, and that each test that the page names is there."""

from __future__ import annotations

import ast
import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SPEC = importlib.util.spec_from_file_location("reliability", ROOT / "benchmarks" / "reliability.py")
reliability = importlib.util.module_from_spec(SPEC)
sys.modules["reliability"] = reliability
SPEC.loader.exec_module(reliability)

READERS = ("records", "archives", "checkpoints", "weights", "idx files", "images", "profiles", "live lab")
CHANGES = ("replacing a record", "importing", "importing in place")


@pytest.fixture(scope="module")
def readers(tmp_path_factory):
    return reliability.targets(tmp_path_factory.mktemp("readers"))


@pytest.mark.parametrize("name", READERS)
def test_readers_of_files_keep_their_promises(name, readers):
    """Four seconds of fuzzing, all together; the script does it for longer."""
    if name == "live lab":
        pytest.importorskip("onnx")
    failures: list[str] = []
    found = reliability.fuzz(name, readers[name], 4 / len(READERS), 1, failures)
    assert failures == [] and found["inputs"] > 0 and set(readers) == set(READERS)


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
@pytest.mark.parametrize("name", CHANGES)
def test_a_kill_at_any_file_operation_leaves_the_old_or_the_new(name, tmp_path):
    failures: list[str] = []
    assert reliability.interrupt(name, reliability.changes(tmp_path)[name], "SIGKILL", failures, every=3) >= 5
    assert failures == [] and set(reliability.changes(tmp_path / "again")) == set(CHANGES)


@pytest.mark.parametrize("code", ["ENOSPC", "EIO"])
def test_a_failure_of_any_file_operation_leaves_the_old_or_the_new(code, tmp_path):
    failures: list[str] = []
    change = reliability.changes(tmp_path)["replacing a record"]
    assert reliability.interrupt("replacing a record", change, code, failures) >= 10 and failures == []


def test_a_promise_that_is_broken_is_told(tmp_path, monkeypatch):
    """By a reader that notices nothing, one that fails as it may not, and a change that removes the old record first."""
    monkeypatch.setattr(reliability, "ROOT", tmp_path)
    for read in (lambda place: (place / "a").read_bytes(), lambda place: 1 // ((place / "a").read_bytes() == b"12345")):
        failures: list[str] = []
        reliability.fuzz("a", reliability.Target({"a": b"12345"}, read, True), 1, 0, failures)
        assert failures
    failures = []
    new = reliability.records("new")[1]

    def careless(store):
        store.remove(new.spec)
        store.put(new)

    reliability.interrupt("careless", reliability.Change(reliability.filled, careless), "EIO", failures)
    assert any("neither the old nor the new record" in failure for failure in failures)


MEMORY = """
import torch
from pathlib import Path
from bslib.measure import class_counts
def peak():
    return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) / 2**10
few, many = torch.nn.Linear(8, 3), torch.nn.Linear(8, 500)
peaks = [peak() for n in (64, 6400) if class_counts(few, torch.rand(100, 8), 0.1, n, seed=0, progress=False) is not None]
start = peak()
counts = class_counts(many, torch.rand(40_000, 8), 0.1, 1, seed=0, progress=False)
print(peaks[1] - peaks[0], (peak() - start) / (counts.nbytes / 2**20))
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux")
def test_memory_depends_on_the_result_and_the_batch_alone():
    done = subprocess.run([sys.executable, "-c", MEMORY], capture_output=True, text=True, check=True)
    growth, shares = map(float, done.stdout.split())
    assert growth < 20, "MiB more for a hundred times the copies"
    assert shares < 1.9, "times the size of the result; another copy of it would make it 2"


def test_each_promise_names_a_test_that_is_there():
    page = (ROOT / "book" / "reliability.md").read_text("utf-8")
    named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", page)
    rows = [line for line in page.splitlines() if line.startswith("| ") and not line.startswith("| what")]
    assert len(rows) > 20 and all("::" in row for row in rows)
    for path, test in named:
        names = {node.name for node in ast.parse((ROOT / path).read_text("utf-8")).body if isinstance(node, ast.FunctionDef)}
        assert test in names, f"{path}::{test}"


def test_the_committed_counts_are_of_no_broken_promise():
    found = json.loads((ROOT / "book" / "reliability.json").read_text("utf-8"))
    assert found["failures"] == [] and set(found["fuzzed"]) == set(READERS)
    assert {name for counts in found["interrupted"].values() for name in counts} == set(CHANGES)
    assert found.get("runs", {"kills": 1})["kills"] > 0, "a part that has not been counted is left out"
    assert sum(row["inputs"] for row in found["fuzzed"].values()) > 10_000
