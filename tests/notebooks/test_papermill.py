"""Real papermill runs of the notebooks, as a reader would start them; the smoke book executes each one by itself."""

import json
import os
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_notebook
from test_golden import GOLDEN, tables

ROOT = Path(__file__).parents[2]
NOTEBOOKS = sorted(path.name for path in (ROOT / "notebooks").glob("*.ipynb"))
pytestmark = pytest.mark.timeout(1800)  # the first test waits for all notebooks
#: The numbers of all chapters, which a fixture has; a default argument survives that names are cleared.
NUMBERS = """import sys
from importlib import import_module
from pathlib import Path
from bslib import ledger
sys.path.append({tests!r})
from conftest import read_numbers
ledger.numbers = lambda found=read_numbers(Path({file!r})), **_: found
for name, own in ledger.numbers().items():
    import_module(f"bslib.chapters.{{name}}.results").quantities = lambda results, own=own: own"""


def papermill(notebook: Path, out: Path, cwd: Path, *options: str) -> dict:
    """The notebook as papermill's command leaves it; nothing lies in the user's cache before."""
    done = subprocess.run(
        [sys.executable, "-m", "papermill", "--no-progress-bar", *options, notebook, out],
        cwd=cwd,
        env=os.environ | {"BSLIB_CACHE": str(out.parent / "cache")},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(out.read_text())


@pytest.fixture(scope="module")
def executed(tmp_path_factory, published_file) -> dict[str, dict]:
    """Every notebook with its defaults: the paper's profile on the committed records, which computes nothing.

    One kernel executes the code of one after the other, for most of the time of a notebook is its kernel's start; between two of
    them every name is cleared.
    """
    folder = tmp_path_factory.mktemp("joined")
    cells = [new_code_cell(NUMBERS.format(tests=str(ROOT / "tests"), file=str(published_file))), new_code_cell("%reset -f")]
    for name in NOTEBOOKS:
        sources = [c.source for c in nbformat.read(ROOT / "notebooks" / name, as_version=4).cells if c.cell_type == "code"]
        cells += [new_code_cell(source, metadata={"of": name}) for source in [*sources, "%reset -f"]]
    metadata = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    nbformat.write(new_notebook(cells=cells, metadata=metadata), folder / "joined.ipynb")
    once = "--no-request-save-on-cell-execute"  # megabytes after each of hundreds of cells
    found = papermill(folder / "joined.ipynb", folder / "out.ipynb", ROOT / "notebooks", once)["cells"]
    assert not (folder / "cache").exists(), "the published book computes no record"
    return {name: {"cells": [cell for cell in found if cell["metadata"].get("of") == name]} for name in NOTEBOOKS}


def outputs_of(executed: dict) -> list[dict]:
    return [output for cell in executed["cells"] for output in cell.get("outputs", [])]


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_a_notebook_shows_what_it_should(name, executed):
    outputs = outputs_of(executed[name])
    pictures = [o for o in outputs if "image/svg+xml" in o.get("data", {})]
    words = "".join("".join(o.get("data", {}).get("text/markdown", "")) for o in outputs)
    html = "".join("".join(o.get("data", {}).get("text/html", "")) for o in outputs)
    assert pictures or "Not yet run" in words or (name in ("ledger.ipynb", "conclusion.ipynb") and "claims by verdict" in html)
    assert all(o["output_type"] != "error" for o in outputs)
    if name.startswith("02"):  # with nobody to move its sliders, the lab is a picture
        (lab,) = (o for o in outputs if "image/png" in o.get("data", {}))
        assert "W = " in lab["metadata"]["image/png"]["alt"]
    assert tables(executed[name]) == json.loads(GOLDEN.read_text())["tables"].get(name, {})
