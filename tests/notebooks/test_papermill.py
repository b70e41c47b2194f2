"""Real papermill runs of the notebooks, by themselves, as a reader would start them."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from test_golden import GOLDEN, tables

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("name", sorted(path.name for path in (ROOT / "notebooks").glob("*.ipynb")))
def test_a_notebook_runs_by_itself_from_its_own_folder(name, tmp_path):
    """With its defaults: the paper's profile on the committed records, which computes nothing."""
    out = tmp_path / "out.ipynb"
    subprocess.run(
        [sys.executable, "-m", "papermill", "--no-progress-bar", ROOT / "notebooks" / name, out, "-p", "profile", "paper"],
        cwd=ROOT / "notebooks",
        env=os.environ | {"BSLIB_CACHE": str(tmp_path / "cache")},
        check=True,
        capture_output=True,
    )
    executed = json.loads(out.read_text())
    outputs = [o for cell in executed["cells"] for o in cell.get("outputs", [])]
    pictures = [o for o in outputs if "image/svg+xml" in o.get("data", {})]
    words = "".join("".join(o.get("data", {}).get("text/markdown", "")) for o in outputs)
    html = "".join("".join(o.get("data", {}).get("text/html", "")) for o in outputs)
    assert pictures or "Not yet run" in words or (name in ("ledger.ipynb", "conclusion.ipynb") and "claims by verdict" in html)
    assert all(o["output_type"] != "error" for o in outputs)
    assert not list((tmp_path / "cache").glob("*")), "the published book computes no record"
    assert tables(executed) == json.loads(GOLDEN.read_text())["tables"].get(name, {})


def test_a_notebook_computes_what_its_store_lacks(tmp_path):
    """The README's command, on the notebook that takes least."""
    command = [sys.executable, "-m", "papermill", "--no-progress-bar", ROOT / "notebooks/00_wobbliness.ipynb", "out.ipynb"]
    subprocess.run(
        [*command, "-p", "profile", "smoke", "-p", "store", "my-records"],
        cwd=tmp_path,
        env=os.environ | {"BSLIB_CACHE": str(tmp_path / "cache")},
        check=True,
        capture_output=True,
    )
    assert sorted(path.parent.name for path in (tmp_path / "my-records").glob("*/*.json")) == ["images", "toy"]
