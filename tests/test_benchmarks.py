"""The benchmark at tiny sizes: every part gives rows, and the page reads them. Nothing here asks how fast anything is."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import nn

from bslib import timings

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "speed.py"


def speed(*arguments: object) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(SCRIPT.parents[1]), "PYTHONWARNINGS": "ignore"}
    command = [sys.executable, str(SCRIPT), "--quick", "--rounds", "1", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=240)


def script() -> ModuleType:
    """The script as a module."""
    spec = importlib.util.spec_from_file_location("speed", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """The file of a quick run of one part and then of the others, and what it held after each."""
    path = tmp_path_factory.mktemp("book") / "bench" / "quick.json"
    first = speed("--json", path, "--only", "epoch")
    assert first.returncode == 0, first.stderr
    before = json.loads(path.read_text())
    second = speed("--json", path, "--only", "W", "labels", "peak", "memory", "scaling")
    assert second.returncode == 0, second.stderr
    return path, before, json.loads(path.read_text())


def test_a_later_run_keeps_the_parts_of_an_earlier_one(written):
    _, before, result = written
    assert list(before["measured"]) == ["epoch"]
    assert list(result["measured"]) == ["epoch", "W", "labels", "peak", "memory", "scaling"]
    assert [row for row in result["rows"] if row["part"] in before["measured"]] == before["rows"]
    assert {row["part"] for row in result["rows"]} == set(result["measured"])


def test_a_file_of_another_machine_is_refused(written, tmp_path, monkeypatch, capsys):
    result = written[2]
    (tmp_path / "other.json").write_text(json.dumps(result | {"machine": {"device": "another"}}))
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), "--quick", "--json", str(tmp_path / "other.json"), "--only", "memory"])
    monkeypatch.setattr(torch, "set_num_threads", lambda threads: None)  # those of this process stay
    with pytest.raises(SystemExit) as refused:
        script().main()
    assert refused.value.code == 2 and "another machine" in capsys.readouterr().err


def test_the_page_reads_what_was_written(written, monkeypatch):
    path, _, result = written
    monkeypatch.setattr(timings, "published_folder", lambda: path.parents[1] / "records")
    results = timings.committed()
    assert results == {"quick": result}
    (axis,) = timings.figure(results).axes
    bars = [row for row in timings.rows(result) if row["what"] == "W" and row["contender"] in timings.AIMS]
    assert sorted(bar.get_width() for bar in axis.patches) == sorted(row["speed-up"] for row in bars)
    assert len(axis.get_yticks()) == 7 and "larger Fashion network" in timings.prose(results)
    assert len(timings.table(result).splitlines()) == 4 + len(result["rows"])
    assert timings.tables(results).count("<details>") == 1 and timings.figure({}) is None


def test_aims_stand_in_the_table_of_a_machine_with_amx():
    row = {"what": "W", "network": "larger-fashion", "contender": "default", "units": 4, "seconds": [2.0], "engine": "eager"}
    result = {"machine": {"amx": True}, "measured": {}, "rows": [row]}
    assert timings.table(result).endswith("| 4 | 2 |  | 7 |  | eager |")
    assert "aim" not in timings.table(result | {"machine": {"amx": False}})


def test_textbook_counts_are_those_of_hand():
    images = torch.tensor([[0.0, 5.0, 0.0], [0.0, 0.0, 5.0]])
    assert script().textbook_counts(nn.Identity(), images, 0.1, 7, 3).tolist() == [[0, 7, 0], [0, 0, 7]]
