"""Build the book: fetch browser assets, execute notebooks with papermill, and render pages with Jupyter Book.

A build writes to git-ignored folders: ``book/_static/vendor`` and its output folder, in which it copies the pages and executes
the notebooks. Builds with different output folders can therefore run at once. If a notebook fails, the error names the notebook
and the cell, and no page is rendered.
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
from bslib.files import atomic_path, exit_with_parent, locked
from bslib.markdown import markdown_table
from bslib.profiles import PROFILES
from bslib.store import PUBLISHED

__all__ = ["BookError", "build", "execute", "fetch_assets", "find_root", "render", "write_status"]

#: What a page may load: only its own site. The inline scripts and styles are those of Sphinx, MathJax and the explorers.
#: ``file:`` is for pages that are opened without a server, which some browsers do not count as their own site.
POLICY = (
    "default-src 'self' file:; script-src 'self' file: 'unsafe-inline' blob: 'wasm-unsafe-eval'; "
    "style-src 'self' file: 'unsafe-inline'; img-src 'self' file: data:; connect-src 'self'; font-src 'self' file: data:; "
    "object-src 'none'; base-uri 'none'; form-action 'self' file:"
)


def find_root() -> Path:
    """Return the repository: the nearest folder with ``_toc.yml``, from the current folder upwards."""
    here = Path.cwd()
    for folder in (here, *here.parents):
        if (folder / "_toc.yml").is_file():
            return folder
    raise BookError(f"no _toc.yml in {here} or above it: run this inside a clone of the repository")


def execute(
    notebooks: Iterable[str | Path], out: str | Path, parameters: Mapping[str, Any] | None = None, *, cwd: str | Path = "."
) -> list[Path]:
    """Execute notebooks with papermill, as many in parallel as there are cores.

    Copies of an earlier run are removed first. An executed copy appears in ``out`` only after its last cell has run.

    Parameters
    ----------
    notebooks
        The source notebooks; they are not modified.
    out
        The folder for the executed copies, which have the same names as the sources.
    parameters
        Values for the cell tagged ``parameters``.
    cwd
        The folder in which the notebooks run. Default: the current folder.

    Returns
    -------
    list of Path
        The executed copies, in the order of the sources.

    Raises
    ------
    BookError
        If a notebook fails. The message lists every failed notebook with its cell and traceback; the others are still executed.
    """
    _need("papermill", "ipykernel")
    sources = (Path(notebook).resolve() for notebook in notebooks)
    targets = {source: Path(out).resolve() / source.name for source in sources}
    for source in targets:
        if not source.is_file():
            raise BookError(f"no such notebook: {source}")
    for target in targets.values():
        target.unlink(missing_ok=True)
    workers = max(1, min(os.cpu_count() or 1, len(targets)))
    failures = {}
    # Processes, not threads: papermill changes the current folder. Spawned, because a fork would inherit our threads.
    context = multiprocessing.get_context("spawn")
    with (
        concurrent.futures.ProcessPoolExecutor(workers, mp_context=context, initializer=exit_with_parent) as pool,
        tqdm(total=len(targets), desc="executing notebooks", unit="notebook", disable=None) as bar,
    ):
        values, folder = dict(parameters or {}), Path(cwd).resolve()
        tasks = {pool.submit(_execute_one, source, target, values, folder): source for source, target in targets.items()}
        for task in concurrent.futures.as_completed(tasks):
            source = tasks[task]
            if error := task.exception():  # the error of a killed process is not a BookError
                failures[source] = str(error) if isinstance(error, BookError) else f"{source.name}: {error}"
            bar.set_postfix_str(source.name)
            bar.update()
    if failures:
        raise BookError("\n\n".join(failures[source] for source in targets if source in failures))
    return list(targets.values())


def _execute_one(source: Path, target: Path, parameters: dict[str, Any], cwd: Path) -> None:
    """Execute one notebook, in a worker process; raises a BookError that names the failed cell."""
    import nbformat
    import papermill

    with atomic_path(target) as part:
        try:
            notebook = papermill.execute_notebook(
                str(source),
                str(part),
                parameters,
                cwd=str(cwd),
                kernel_name="python3",  # ignore the kernel name saved in the notebook
                language="python",
                progress_bar=False,
                start_timeout=180,
                extra_arguments=["--log-level=CRITICAL"],  # silences the kernel's warnings about encryption
            )
        except papermill.PapermillExecutionError as error:
            cell = _cell_name(error.exec_count, error.source)
            traceback = _plain("\n".join(error.traceback))
            message = f"{source.name}, cell {cell}: {error.ename}: {error.evalue}\n{traceback}"
            raise BookError(message.rstrip()) from None  # papermill's own error does not survive pickling between processes
        except Exception as error:  # the kernel died or did not start: papermill does not report the cell
            raise BookError(f"{source.name}{_last_cell_begun(part)}: {type(error).__name__}: {error}") from None
        # Hide the parameter cells; the status page lists the parameters.
        for cell in notebook.cells:
            if {"parameters", "injected-parameters"} & set(cell.metadata.get("tags", [])):
                cell.metadata.tags.append("remove-cell")
        # No paths of this machine: of a store, for example, the notebook tells only the name.
        notebook.metadata.papermill["input_path"] = Path(os.path.relpath(source, cwd)).as_posix()
        notebook.metadata.papermill["output_path"] = target.name
        text = nbformat.writes(notebook)
        for value in parameters.values():
            if isinstance(value, str) and os.path.isabs(value):
                text = text.replace(json.dumps(value, ensure_ascii=False)[1:-1], Path(value).name or "root")
        part.write_text(text, encoding="utf-8")


def _plain(text: str) -> str:
    """Remove terminal colour codes from text."""
    return re.sub(r"\x1b\[[0-9;]*m", "", text)


def _last_cell_begun(notebook: Path) -> str:
    """Name the code cell that papermill started last, from the saved notebook; empty if it started none."""
    try:
        cells = [cell for cell in json.loads(notebook.read_text())["cells"] if cell["cell_type"] == "code"]
    except ValueError:  # nothing was saved
        return ""
    begun = [n for n, cell in enumerate(cells, 1) if cell["metadata"].get("papermill", {}).get("start_time")]
    return f", cell {_cell_name(begun[-1], ''.join(cells[begun[-1] - 1]['source']))}" if begun else ""


def _cell_name(number: int | None, source: str) -> str:
    """Return ``In [3]`` and the cell's first line of code, since injected parameters shift the numbers by one."""
    lines = [line for line in source.splitlines() if line.strip()]
    return f"In [{number}] `{lines[0].strip() if lines else ''}`"


def write_status(executed: str | Path) -> Path:
    """Write a page into the folder of executed notebooks that lists when and with which parameters each was executed."""
    import nbformat

    folder = Path(executed)
    notebooks = {path.name: nbformat.read(path, as_version=4) for path in sorted(folder.glob("[!.]*.ipynb"))}
    packages = ["bslib", "torch", "numpy", "scipy", "matplotlib", "papermill", "jupyter-book"]
    head = ["Notebook", "Executed (UTC)", "Duration", "Parameters", "Code cells"]
    versions = [("Python", platform.python_version()), *((name, _version(name)) for name in packages)]
    parts = [
        "# Execution status",
        "Written when this book was built, from what papermill noted in the executed notebooks.\n"
        "A build in which a notebook fails is not rendered.",
        markdown_table(head, (_status_row(name, notebook) for name, notebook in notebooks.items())),
        "Versions on the machine that rendered these pages; a record names those it was computed with.",
        markdown_table(["Package", "Version"], versions),
    ]
    with atomic_path(folder / "status.md") as part:
        part.write_text("\n\n".join(parts) + "\n", encoding="utf-8")
    return folder / "status.md"


def _status_row(name: str, notebook: Any) -> list[Any]:
    run = notebook.metadata["papermill"]
    cells = sum(cell.cell_type == "code" for cell in notebook.cells)
    began = datetime.fromisoformat(run["start_time"]).strftime("%Y-%m-%d %H:%M:%S")
    values = ", ".join(f"`{key} = {value!r}`" for key, value in run["parameters"].items())
    return [f"[](./{name})", began, f"{run['duration']:.1f} s", values, cells]


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def render(source: str | Path, out: str | Path) -> Path:
    """Render a book with Jupyter Book; each page gets the policy that it loads nothing from other sites.

    Every warning is an error, including unresolved references.

    Parameters
    ----------
    source
        The folder with ``_config.yml``, ``_toc.yml`` and the pages.
    out
        The folder for the pages, which are written to its subfolder ``html``. An existing book is replaced only if rendering
        succeeds.

    Returns
    -------
    Path
        The book's ``index.html``.

    Raises
    ------
    BookError
        If Jupyter Book fails; the message contains its output.
    """
    _need("jupyter_book")
    folder = Path(out).resolve()
    began = time.monotonic()
    pages = _jupyter_book(source, folder / ".work")
    tag = f'<meta http-equiv="Content-Security-Policy" content="{POLICY}" />'
    for page in pages.rglob("*.html"):
        head, found, rest = page.read_text(encoding="utf-8").partition("<head>")
        page.write_text(f"{head}{found}{tag}{rest}" if found else f"{tag}{head}", encoding="utf-8")
    shutil.rmtree(folder / "html", ignore_errors=True)
    pages.replace(folder / "html")
    print(f"Pages rendered in {time.monotonic() - began:.0f} s", flush=True)
    return folder / "html" / "index.html"


def _jupyter_book(source: str | Path, out: Path) -> Path:
    """Run Jupyter Book in a process of its own; return the folder with the pages."""
    work = out / "_build"  # Jupyter Book appends "_build" itself
    shutil.rmtree(work / "html", ignore_errors=True)  # otherwise renamed pages would remain under the old name
    # The pipe to its standard input ends when this process does, however it ends.
    main = "import os, threading; threading.Thread(target=lambda: (os.read(0, 1), os._exit(1)), daemon=True).start(); "
    main += "from jupyter_book.cli.main import main; main()"
    command = [sys.executable, "-c", main, "build", ".", "-n", "-W", "--keep-going", f"--path-output={out}"]
    printed = []
    with (
        subprocess.Popen(
            command,
            cwd=source,
            env=os.environ | {"PYTHONUTF8": "1"},
            stdin=subprocess.PIPE,
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
        # Sphinx repeats no warnings for cached pages, so delete the cache to read all pages next time.
        shutil.rmtree(work / ".doctrees", ignore_errors=True)
        raise BookError(f"jupyter-book ended with status {process.returncode}:\n{''.join(printed).rstrip()}")
    return work / "html"


def build(profile: str = "paper", store: str | Path | None = None, seed: int = 0, *, out: str | Path | None = None) -> Path:
    """Execute every notebook of the repository and render the book.

    Parameters
    ----------
    profile, store, seed
        Parameters of the notebooks; ``store`` as for :func:`bslib.store.open_store`. A folder inside the repository is passed as
        a path relative to the root, where the notebooks run.
    out
        The folder for the pages, which are written to its subfolder ``html``. Default: ``_build`` in the repository. A build into
        the same folder waits until this one ends.

    Returns
    -------
    Path
        The book's ``index.html``.

    Raises
    ------
    BookError
        If an asset cannot be fetched, a notebook fails, or rendering fails or gives warnings.
    """
    root = find_root()
    notebooks = sorted((root / "notebooks").glob("[!.]*.ipynb"))
    if not notebooks:
        raise BookError(f"no notebooks in {root / 'notebooks'}")
    if store is not None and store != PUBLISHED:
        folder = Path(store).expanduser().resolve()
        store = str(folder.relative_to(root) if folder.is_relative_to(root) else folder)
    profile = str(profile) if profile in PROFILES else str(Path(profile).resolve())  # notebooks run in another folder
    folder = Path(out or root / "_build").resolve()
    with locked(folder / ".build.lock"):
        fetch_assets(root)
        source = folder / ".work" / "source"
        shutil.rmtree(source, ignore_errors=True)
        shutil.copytree(root / "book", source / "book", ignore=shutil.ignore_patterns("records", "executed", "*.lock"))
        for name in ("_config.yml", "_toc.yml"):
            shutil.copy2(root / name, source)
        executed = source / "book" / "executed"
        began = time.monotonic()
        execute(notebooks, executed, {"profile": profile, "store": store, "seed": seed}, cwd=root)
        print(f"{len(notebooks)} notebooks executed in {time.monotonic() - began:.0f} s", flush=True)
        write_status(executed)
        return render(source, folder)


def _need(*modules: str) -> None:
    """Raise a BookError with installation instructions if a module is missing."""
    if missing := [module for module in modules if importlib.util.find_spec(module) is None]:
        raise BookError(f"building the book needs {', '.join(missing)}: pip install '.[book]' in a clone of it")
