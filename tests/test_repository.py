"""The repository keeps its own rules: clean notebooks, a whole lock, contents that resolve, the rows of the house."""

from __future__ import annotations

import ast
import importlib
import json
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from functools import cache
from graphlib import TopologicalSorter
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
PYTHONS = ("3.11.0", "3.12.0", "3.13.0")

# The house, ground first: a module imports only from its own row or from rows above it (CONTRIBUTING.md has the picture).
HOUSE = (
    ("files", "progress", "assets", "markdown", "fields"),
    ("entropy", "calling", "engine", "measure"),
    ("drawings", "threat_models"),
    ("triggers", "poisoning"),
    ("datasets", "networks", "training", "domains"),
    ("patterns", "detectors"),
    ("statistics",),
    ("specs", "store", "profiles", "archive"),
    ("provenance", "treatments", "jobs", "cluster", "runner"),
    ("verify", "plotting"),
    ("chapters",),
    ("ledger", "cost"),
    ("cards",),
    ("render", "interactive", "book", "timings", "audit"),
    ("cli",),
)
ROW = {name: row for row, names in enumerate(HOUSE) for name in names}

READING_SIDE = (
    "bslib",
    "bslib.entropy",
    "bslib.statistics",
    "bslib.specs",
    "bslib.store",
    "bslib.profiles",
    "bslib.chapters.parameters.results",
    "bslib.chapters.patterns.figures",
    "bslib.chapters.defence.figures",
    "bslib.render",
    "bslib.interactive.explorer",
    "bslib.book",
    "bslib.timings",
    "bslib.cli",
)


# Notebooks


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_notebook_has_no_outputs(path: Path) -> None:
    cells = json.loads(path.read_text("utf-8"))["cells"]
    ran = [
        number
        for number, cell in enumerate(cells, 1)
        if cell["cell_type"] == "code" and (cell["outputs"] or cell["execution_count"] is not None)
    ]
    assert not ran, f"cells {ran} have outputs or counts: jupyter nbconvert --clear-output --inplace {path}"


@pytest.mark.parametrize("path", sorted(ROOT.glob("notebooks/0[1-8]_*.ipynb")), ids=lambda path: path.name)
def test_chapter_of_the_paper_ends_with_the_lab_and_every_chapter_offers_the_numbers_of_its_figures(path: Path) -> None:
    cells = json.loads(path.read_text("utf-8"))["cells"]
    sources = ["".join(cell["source"]) for cell in cells]
    assert "bslib.lab(" in sources[-1] or int(path.name[:2]) > 4
    assert "render.downloads(results, figures.FIGURES)" in sources and "render.further(others, figures.FIGURES)" in sources
    chapter = re.search(r"from bslib.chapters.(\w+) import figures", "\n".join(sources)).group(1)
    figures = importlib.import_module(f"bslib.chapters.{chapter}.figures")
    drawn = {name for source in sources for name in re.findall(r"^figures\.(\w+)\(", source)}
    pictures = {"patterns", "reversed_triggers"}  # images have no numbers to take along
    assert {figure.__name__ for figure in figures.FIGURES} == drawn - pictures == set(figures.__all__) - pictures - {"FIGURES"}


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_notebook_has_parameters(path: Path) -> None:
    cells = json.loads(path.read_text("utf-8"))["cells"]
    tagged = [cell for cell in cells if "parameters" in cell["metadata"].get("tags", [])]
    assert len(tagged) == 1, f"{len(tagged)} cells are tagged 'parameters', one is wanted"
    tree = ast.parse("".join(tagged[0]["source"]))
    names = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
    assert {"profile", "seed", "store"} <= names


# The lock


@cache
def lock() -> list[tuple[Requirement, int]]:
    """Every entry of requirements.txt, and how many hashes it has."""
    text = (ROOT / "requirements.txt").read_text("utf-8").replace("\\\n", " ")
    lines = [line for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    return [(Requirement(line.split(" --hash=")[0]), line.count("--hash=")) for line in lines]


def locked_version(name: str, python: str) -> str:
    """The version that the lock gives a Python."""
    environment = {"python_version": python.rpartition(".")[0], "python_full_version": python}
    found = [
        entry
        for entry, _ in lock()
        if canonicalize_name(entry.name) == canonicalize_name(name)
        and (entry.marker is None or entry.marker.evaluate(environment))
    ]
    assert len(found) == 1, f"{name} has {len(found)} entries for Python {python}"
    (pin,) = found[0].specifier
    assert pin.operator == "==", str(found[0])
    return pin.version


def test_lock_has_hashes() -> None:
    assert [entry.name for entry, hashes in lock() if hashes == 0] == []


def test_lock_covers_every_dependency() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    extras = chain.from_iterable(project["optional-dependencies"].values())
    for requirement in map(Requirement, [*project["dependencies"], *extras]):
        for python in PYTHONS:
            version = locked_version(requirement.name, python)
            assert requirement.specifier.contains(version, prereleases=True), f"{requirement}: the lock has {version}"


@pytest.mark.parametrize("python", PYTHONS)
def test_torch_and_torchvision_are_a_pair(python: str) -> None:
    assert (locked_version("torch", python), locked_version("torchvision", python)) == ("2.15.0", "0.29.2")


# The book


def toc_files(entry: Any) -> Iterator[str]:
    """Every page that an entry of _toc.yml names, at any depth."""
    if isinstance(entry, dict):
        for key, value in entry.items():
            if key in ("root", "file"):
                yield value
            else:
                yield from toc_files(value)
    elif isinstance(entry, list):
        for part in entry:
            yield from toc_files(part)


def test_toc_resolves() -> None:
    pages = list(toc_files(yaml.safe_load((ROOT / "_toc.yml").read_text("utf-8"))))
    assert pages and len(pages) == len(set(pages))
    executed = {page.removeprefix("book/executed/") for page in pages if page.startswith("book/executed/")}
    assert executed - {"status"} == {path.stem for path in NOTEBOOKS}
    written = [page for page in pages if not page.startswith("book/executed/")]
    suffixes = ("", ".md", ".rst", ".ipynb")
    assert [page for page in written if not any((ROOT / (page + suffix)).is_file() for suffix in suffixes)] == []


@pytest.mark.skipif("BSLIB_BUILT" not in os.environ, reason="BSLIB_BUILT names no built book: make test builds one")
def test_smoke_book_is_built() -> None:
    assert (Path(os.environ["BSLIB_BUILT"]) / "index.html").is_file(), "the book was not built"


# The house


def room(module: str) -> str:
    """The name under which a module stands in the house: bslib.chapters.parameters is in chapters."""
    return module.split(".")[1] if "." in module else "bslib"


@cache
def modules() -> dict[str, Path]:
    """Every module of bslib by its dotted name."""
    found = {}
    for path in sorted((ROOT / "bslib").rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports(module: str, path: Path) -> Iterator[tuple[str, bool]]:
    """Every module of bslib that a module imports, and whether lazily: in a function, or for the type checker alone."""
    known = modules()
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    tree = ast.parse(path.read_text("utf-8"))
    lazy: set[int] = set()
    for node in ast.walk(tree):
        function = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        if function or (isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)):
            lazy.update(map(id, ast.walk(node)))
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            levels = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            base = ".".join(levels + ([node.module] if node.module else []))
            names = [inner if (inner := f"{base}.{alias.name}") in known else base for alias in node.names]
        else:
            continue
        for name in names:
            if name.split(".")[0] == "bslib":
                yield name, id(node) in lazy


def test_every_module_has_a_row() -> None:
    assert sorted({room(module) for module in modules()} - {"bslib", *ROW}) == []


def test_no_module_imports_upward() -> None:
    wrong = []
    for module, path in modules().items():
        for target, lazy in imports(module, path):
            here, there = room(module), room(target)
            by_row = there in ROW and ROW[there] <= ROW.get(here, -1)
            by_name = lazy and module == "bslib"  # the package hands out names from every row
            if not (by_row or by_name):
                wrong.append(f"{module} imports {target}" + (" lazily" if lazy else ""))
    assert wrong == []


def test_no_module_imports_in_a_circle() -> None:
    graph: dict[str, set[str]] = {}
    for module, path in modules().items():
        targets = {target for target, _ in imports(module, path)}
        graph[module] = set() if module == "bslib" else targets - {"bslib"}
    order = list(TopologicalSorter(graph).static_order())  # raises CycleError, which names the circle
    assert set(order) >= set(graph)


def test_no_module_needs_a_unix_at_import() -> None:
    """On Windows these do not exist."""
    unix = {"fcntl", "resource", "pwd", "grp", "termios", "pty", "syslog"}
    found = []
    for module, path in modules().items():
        for node in ast.parse(path.read_text("utf-8")).body:
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [str(node.module)] if isinstance(node, ast.ImportFrom) else []
            found += [f"{module} imports {name}" for name in names if name in unix]
    assert found == []


def test_reading_side_leaves_torch_alone() -> None:
    script = (
        "import importlib, sys\n"
        "for name in sys.argv[1:]:\n"
        "    importlib.import_module(name)\n"
        "    if found := {'torch', 'papermill'} & set(sys.modules): sys.exit(f'importing {name} imports {found}')\n"
    )
    done = subprocess.run([sys.executable, "-c", script, *READING_SIDE], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr


def test_the_landing_page_cites_what_the_citation_file_does() -> None:
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text("utf-8"))
    (paper,) = cited["references"]
    page = "".join(json.loads((ROOT / "notebooks" / "intro.ipynb").read_text("utf-8"))["cells"][-1]["source"])
    assert (
        paper["doi"] in page
        and cited["title"] in page
        and f"{{{cited['version']}}}" in page
        and cited["authors"][0]["name"] in page
    )
    names = " and ".join(f"{author['family-names']}, {author['given-names']}" for author in paper["authors"])
    assert paper["title"] in page and names in page and f"{{{paper['year']}}}" in page
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    assert project["version"] == cited["version"]
