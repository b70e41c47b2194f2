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


def arguments(*more: object) -> list[str]:
    return [str(SCRIPT), "--quick", "--rounds", "1", "--threads", str(torch.get_num_threads()), *map(str, more)]


@pytest.fixture(scope="module")
def script() -> ModuleType:
    """The script as a module."""
    spec = importlib.util.spec_from_file_location("speed", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def written(script, tmp_path_factory):
    """The file of a quick run of one part, in this process, and of the command for the others; and what it held in between."""
    path = tmp_path_factory.mktemp("book") / "bench" / "quick.json"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", arguments("--json", path, "--only", "peak"))
        script.main()
    before = json.loads(path.read_text())
    command = [sys.executable, *arguments("--json", path, "--only", "W", "labels", "epoch", "memory", "scaling")]
    environment = {**os.environ, "PYTHONPATH": str(SCRIPT.parents[1]), "PYTHONWARNINGS": "ignore"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=240)
    assert done.returncode == 0, done.stderr
    return path, before, json.loads(path.read_text())


def test_a_later_run_keeps_the_parts_of_an_earlier_one(written):
    _, before, result = written
    assert list(before["measured"]) == ["peak"]
    assert list(result["measured"]) == ["peak", "W", "labels", "epoch", "memory", "scaling"]
    assert [row for row in result["rows"] if row["part"] in before["measured"]] == before["rows"]
    assert {row["part"] for row in result["rows"]} == set(result["measured"])


def test_a_file_of_another_machine_is_refused(script, tmp_path, monkeypatch, capsys):
    (tmp_path / "other.json").write_text(json.dumps({"machine": {"device": "another"}, "settings": {}}))
    monkeypatch.setattr(sys, "argv", arguments("--json", tmp_path / "other.json", "--only", "memory"))
    with pytest.raises(SystemExit) as refused:
        script.main()
    assert refused.value.code == 2 and "another machine" in capsys.readouterr().err


def test_the_page_reads_what_was_written(written, monkeypatch):
    path, _, result = written
    monkeypatch.setattr(timings, "published_folder", lambda: path.parents[1] / "records")
    results = timings.committed()
    assert results == {"quick": result}
    (axis,) = timings.figure(results).axes
    bars = [row for row in timings.rows(result) if row["what"] == "W" and row["contender"] in ("default", "float32")]
    assert sorted(bar.get_width() for bar in axis.patches) == sorted(row["speed-up"] for row in bars)
    assert len(axis.get_yticks()) == 3 and "larger Fashion network" in timings.prose(results)
    assert len(timings.table(result).splitlines()) == 4 + len(result["rows"])
    assert timings.tables(results).count("<details>") == 1 and timings.figure({}) is None


def test_every_network_can_be_built(script):
    with torch.device("meta"):
        outputs = [list(script.untrained(name).parameters())[-1].shape for name in script.SETUPS]
    assert outputs == [(10,)] * len(script.SETUPS) and set(script.QUICK) < set(script.SETUPS)


def test_textbook_counts_are_those_of_hand(script):
    images = torch.tensor([[0.0, 5.0, 0.0], [0.0, 0.0, 5.0]])
    assert script.textbook_counts(nn.Identity(), images, 0.1, 7, 3).tolist() == [[0, 7, 0], [0, 0, 7]]
