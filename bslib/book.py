"""The book: browser assets fetched, notebooks executed through papermill, pages rendered by Jupyter Book.

What a build makes lies in git-ignored folders: ``book/_static/vendor``, ``book/executed`` and ``_build``. There is no
half a book: where a notebook fails, it is named with its cell, and nothing is rendered.
"""

from __future__ import annotations

import concurrent.futures
import importlib.metadata
import importlib.util
import json
import multiprocessing
import os
import platform
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from tqdm import tqdm

from bslib.assets import BookError, fetch_assets
from bslib.files import atomic_path
from bslib.store import PUBLISHED

__all__ = ["BookError", "build", "execute", "fetch_assets", "find_root", "render", "write_status"]


def find_root(start: str | os.PathLike[str] | None = None) -> Path:
    """The repository: the nearest folder that holds ``_toc.yml``, from ``start`` (the current folder) upwards.

    Raises
    ------
    BookError
        If no folder on the way up holds one.
    """
    here = Path(start or ".").resolve()
    for folder in (here, *here.parents):
        if (folder / "_toc.yml").is_file():
            return folder
    raise BookError(f"no _toc.yml in {here} or above it: run this inside a clone of the repository")


def execute(
    notebooks: Iterable[str | os.PathLike[str]],
    out: str | os.PathLike[str],
    parameters: Mapping[str, Any] | None = None,
    jobs: int | None = None,
    *,
    cwd: str | os.PathLike[str] | None = None,
) -> list[Path]:
    """Execute notebooks through papermill, several at once.

    A copy takes its name in ``out`` only after its last cell has run; copies of an earlier run are removed first.

    Parameters
    ----------
    notebooks
        The sources; they are not changed.
    out
        The folder for the executed copies, which keep the names of their sources.
    parameters
        Values for the cell tagged ``parameters``.
    jobs
        How many to execute at the same time; the number of cores unless given.
    cwd
        The folder the notebooks run in; the current one unless given.

    Returns
    -------
    list of Path
        The executed copies, in the order of the sources.

    Raises
    ------
    BookError
        If a notebook fails: each that did, with its cell and the traceback. The others are executed all the same.
    """
    _need("papermill", "ipykernel")
    sources = [Path(notebook).resolve() for notebook in notebooks]
    targets = [Path(out).resolve() / source.name for source in sources]
    for source in sources:
        if not source.is_file():
            raise BookError(f"no such notebook: {source}")
    for target in targets:
        target.unlink(missing_ok=True)
    if not sources:
        return []
    workers = max(1, min(jobs or os.cpu_count() or 1, len(sources)))
    failures = {}
    # Processes, not threads: papermill changes the current folder. Spawned, since a fork would carry over our threads.
    context = multiprocessing.get_context("spawn")
    with (
        concurrent.futures.ProcessPoolExecutor(workers, mp_context=context) as pool,
        tqdm(total=len(sources), desc="executing notebooks", unit="notebook", disable=None) as bar,
    ):
        tasks = {
            pool.submit(_execute_one, source, target, dict(parameters or {}), Path(cwd or ".").resolve()): source
            for source, target in zip(sources, targets, strict=True)
        }
        for task in concurrent.futures.as_completed(tasks):
            source = tasks[task]
            if error := task.exception():  # a process that was killed does not say BookError
                failures[source] = str(error) if isinstance(error, BookError) else f"{source.name}: {error}"
            bar.set_postfix_str(source.name)
            bar.update()
    if failures:
        raise BookError("\n\n".join(failures[source] for source in sources if source in failures))
    return targets


def _execute_one(source: Path, target: Path, parameters: dict[str, Any], cwd: Path) -> None:
    """Execute one notebook, in a process of its own; a BookError says in which cell it failed."""
    import nbformat
    import papermill

    with atomic_path(target) as part:
        try:
            notebook = papermill.execute_notebook(
                str(source),
                str(part),
                parameters,
                cwd=str(cwd),
                kernel_name="python3",  # whatever the one who saved it called theirs
                language="python",
                progress_bar=False,
                start_timeout=180,
                extra_arguments=["--log-level=CRITICAL"],  # of the kernel: its remarks on encryption
            )
        except papermill.PapermillExecutionError as error:
            cell = _cell_name(error.exec_count, error.source)
            traceback = _plain("\n".join(error.traceback))
            message = f"{source.name}, cell {cell}: {error.ename}: {error.evalue}\n{traceback}"
            raise BookError(message.rstrip()) from None  # papermill's own error does not survive the way back
        except Exception as error:  # the kernel died, or never came up: papermill does not say in which cell
            raise BookError(f"{source.name}{_last_cell_begun(part)}: {type(error).__name__}: {error}") from None
        # What the parameters were is on the status page; the reader of a chapter need not pass them first.
        for cell in notebook.cells:
            if {"parameters", "injected-parameters"} & set(cell.metadata.get("tags", [])):
                cell.metadata.tags.append("remove-cell")
        # Paths as a reader can use them, not those of this machine.
        notebook.metadata.papermill["input_path"] = Path(os.path.relpath(source, cwd)).as_posix()
        notebook.metadata.papermill["output_path"] = Path(os.path.relpath(target, cwd)).as_posix()
        nbformat.write(notebook, part)


def _plain(text: str) -> str:
    """Text without a terminal's colours."""
    return re.sub(r"\x1b\[[0-9;]*m", "", text)


def _last_cell_begun(notebook: Path) -> str:
    """Name the code cell that papermill began last, from what it has saved; empty where it began none."""
    try:
        cells = [cell for cell in json.loads(notebook.read_text())["cells"] if cell["cell_type"] == "code"]
    except ValueError:  # nothing was saved
        return ""
    begun = [n for n, cell in enumerate(cells, 1) if cell["metadata"].get("papermill", {}).get("start_time")]
    return f", cell {_cell_name(begun[-1], ''.join(cells[begun[-1] - 1]['source']))}" if begun else ""


def _cell_name(number: int | None, source: str) -> str:
    """``In [3]`` and the first line of code in it: numbers shift by one where parameters were injected."""
    lines = [line for line in source.splitlines() if line.strip()]
    return f"In [{number}] `{lines[0].strip() if lines else ''}`"


def write_status(executed: str | os.PathLike[str]) -> Path:
    """Write ``status.md``, the page that says when and with what each executed notebook was made.

    Parameters
    ----------
    executed
        The folder with the executed copies; the page is written into it.

    Returns
    -------
    Path
        The page.
    """
    import nbformat

    folder = Path(executed)
    rows = []
    for path in sorted(folder.glob("[!.]*.ipynb")):
        notebook = nbformat.read(path, as_version=4)
        run = notebook.metadata.get("papermill", {})
        cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
        if not run.get("end_time"):
            rows.append(f"| [](./{path.name}) | | | | {len(cells)} | **not executed** |")
            continue
        began = datetime.fromisoformat(run["start_time"]).strftime("%Y-%m-%d %H:%M:%S")
        values = ", ".join(f"`{name} = {value!r}`" for name, value in run.get("parameters", {}).items())
        result = "**failed**" if run.get("exception") else "completed"
        rows.append(f"| [](./{path.name}) | {began} | {run['duration']:.1f} s | {values} | {len(cells)} | {result} |")
    packages = ["bslib", "torch", "numpy", "scipy", "matplotlib", "papermill", "jupyter-book"]
    lines = [
        "# Execution status",
        "",
        "Written when this book was built, from what papermill noted in the executed notebooks.",
        "A build in which a notebook fails is not rendered.",
        "",
        "| Notebook | Executed (UTC) | Duration | Parameters | Code cells | Status |",
        "|---|---|---|---|---|---|",
        *rows,
        "",
        "Versions on the machine that rendered these pages; a record names those it was computed with.",
        "",
        "| Package | Version |",
        "|---|---|",
        f"| Python | {platform.python_version()} |",
        *(f"| {name} | {_version(name)} |" for name in packages),
        "",
    ]
    with atomic_path(folder / "status.md") as part:
        part.write_text("\n".join(lines), encoding="utf-8")
    return folder / "status.md"


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def render(out: str | os.PathLike[str] | None = None, *, strict: bool = True) -> Path:
    """Render the book with Jupyter Book: the repository's ``_config.yml`` and ``_toc.yml``.

    Parameters
    ----------
    out
        The folder that gets the pages, in ``html``; ``_build`` of the repository unless given. A book that is there is
        replaced only by a whole one.
    strict
        Take every warning, an unresolved reference included, as an error.

    Returns
    -------
    Path
        The book's ``index.html``.

    Raises
    ------
    BookError
        If Jupyter Book fails, with what it printed.
    """
    _need("jupyter_book")
    root = find_root()
    folder = Path(out).resolve() if out is not None else root / "_build"
    work = folder / ".work" / "_build"  # Jupyter Book adds the second name
    shutil.rmtree(work / "html", ignore_errors=True)  # a page that was renamed leaves no ghost
    main = "from jupyter_book.cli.main import main; main()"
    command = [sys.executable, "-c", main, "build", ".", "-n", f"--path-output={work.parent}"]
    printed = []
    began = time.monotonic()
    with (
        subprocess.Popen(
            [*command, *(["-W", "--keep-going"] if strict else [])],
            cwd=root,
            env=os.environ | {"PYTHONUTF8": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            encoding="utf-8",
        ) as process,
        tqdm(desc="rendering pages", bar_format="{desc}: {elapsed} {postfix}", disable=None) as bar,
    ):
        assert process.stdout is not None  # it is a pipe
        for line in map(_plain, process.stdout):
            printed.append(line)
            bar.set_postfix_str(line.strip()[:60])
    if process.returncode:
        # Sphinx does not warn again about a page that it has read before: read all of them next time.
        shutil.rmtree(work / ".doctrees", ignore_errors=True)
        raise BookError(f"jupyter-book ended with status {process.returncode}:\n{''.join(printed).rstrip()}")
    shutil.rmtree(folder / "html", ignore_errors=True)
    (work / "html").replace(folder / "html")
    print(f"Pages rendered in {time.monotonic() - began:.0f} s", flush=True)
    return folder / "html" / "index.html"


def build(
    profile: str = "paper",
    store: str | os.PathLike[str] | None = None,
    seed: int = 0,
    *,
    out: str | os.PathLike[str] | None = None,
    jobs: int | None = None,
) -> Path:
    """Execute every notebook of the repository and render the book.

    Parameters
    ----------
    profile, store, seed
        What the notebooks' parameters are set to; the store as :func:`bslib.store.open_store` takes it. A folder inside
        the repository is named by its path from the root, where the notebooks run.
    out
        The folder that gets the pages, in ``html``; ``_build`` of the repository unless given.
    jobs
        How many notebooks to execute at the same time; the number of cores unless given.

    Returns
    -------
    Path
        The book's ``index.html``.

    Raises
    ------
    BookError
        If an asset cannot be fetched, a notebook fails, or a page is not rendered cleanly.
    """
    root = find_root()
    notebooks = sorted((root / "notebooks").glob("[!.]*.ipynb"))
    if not notebooks:
        raise BookError(f"no notebooks in {root / 'notebooks'}")
    Path(out or root / "_build").mkdir(parents=True, exist_ok=True)  # found out before the work if it cannot be
    fetch_assets(root)
    if store is not None and store != PUBLISHED:
        folder = Path(store).expanduser().resolve()
        store = str(folder.relative_to(root) if folder.is_relative_to(root) else folder)
    executed = root / "book" / "executed"
    shutil.rmtree(executed, ignore_errors=True)
    began = time.monotonic()
    execute(notebooks, executed, {"profile": str(profile), "store": store, "seed": seed}, jobs, cwd=root)
    print(f"{len(notebooks)} notebooks executed in {time.monotonic() - began:.0f} s", flush=True)
    write_status(executed)
    return render(out)


def _need(*modules: str) -> None:
    """Say how to install what is missing, before anything is begun."""
    if missing := [module for module in modules if importlib.util.find_spec(module) is None]:
        raise BookError(f"building the book needs {', '.join(missing)}: pip install '.[book]' in a clone of it")
