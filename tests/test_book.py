"""The book's building blocks on tiny notebooks and a false npm: no network, no rendering."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path

import pytest

nbformat = pytest.importorskip("nbformat")
pytest.importorskip("papermill")

from bslib import assets, book  # noqa: E402


@pytest.fixture
def notebook(tmp_path: Path) -> Callable[..., Path]:
    """A function that writes a notebook of code cells, the first of them its parameters."""

    def write(name: str, *cells: str) -> Path:
        made = nbformat.v4.new_notebook()
        parameters = nbformat.v4.new_code_cell("seed = 0", metadata={"tags": ["parameters"]})
        made.cells = [
            nbformat.v4.new_markdown_cell(f"# {name}"),
            parameters,
            *(nbformat.v4.new_code_cell(textwrap.dedent(cell)) for cell in cells),
        ]
        path = tmp_path / "sources" / f"{name}.ipynb"
        path.parent.mkdir(exist_ok=True)
        nbformat.write(made, path)
        return path

    return write


def printed(path: Path) -> str:
    cells = nbformat.read(path, as_version=4).cells
    outputs = [output for cell in cells for output in cell.get("outputs", [])]
    return "".join(output.text for output in outputs if output.output_type == "stream")


@pytest.mark.timeout(300)
def test_two_notebooks_are_executed_at_once_with_the_parameters(
    notebook: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    # Each waits for a file that the other writes: one after the other, neither would end well.
    meet = """
        import pathlib, time
        pathlib.Path("{mine}").touch()
        for _ in range(1200):
            if pathlib.Path("{other}").exists():
                break
            time.sleep(0.1)
        else:
            raise TimeoutError("the other notebook does not run")
        print(seed)
        """
    sources = [notebook("one", meet.format(mine="1", other="2")), notebook("two", meet.format(mine="2", other="1"))]
    before = [source.read_bytes() for source in sources]
    made = book.execute(sources, tmp_path / "out", {"seed": 7}, cwd=tmp_path)
    assert made == [tmp_path / "out" / "one.ipynb", tmp_path / "out" / "two.ipynb"]
    assert [printed(path) for path in made] == ["7\n", "7\n"]
    assert [source.read_bytes() for source in sources] == before
    assert (tmp_path / "1").exists(), "the notebooks run in cwd"
    noted = nbformat.read(made[0], as_version=4).metadata.papermill
    assert noted["parameters"] == {"seed": 7}
    assert (noted["input_path"], noted["output_path"]) == ("sources/one.ipynb", "one.ipynb")


@pytest.mark.timeout(300)
def test_failing_notebooks_are_named_with_their_cells_and_leave_nothing(
    notebook: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: 1)
    out = tmp_path / "out"
    out.mkdir()
    sources = [
        notebook("wrong", "x = 0", "y = 1\n1 / x", "print('not reached')"),
        notebook("dead", "import os\nos._exit(1)"),  # is executed although another one has failed
    ]
    (out / "wrong.ipynb").write_text("of an earlier run")
    with pytest.raises(book.BookError) as caught:
        book.execute(sources, out, {"seed": 1}, cwd=tmp_path)
    message = str(caught.value)
    # In [1] are the defaults, In [2] the injected parameters.
    assert "wrong.ipynb, cell In [4] `y = 1`: ZeroDivisionError: division by zero" in message
    assert "dead.ipynb, cell In [3] `import os`: DeadKernelError" in message
    assert "\x1b" not in message
    assert not list(out.iterdir())


def test_a_notebook_that_does_not_exist_is_an_error_before_any_is_executed(notebook: Callable[..., Path], tmp_path: Path) -> None:
    with pytest.raises(book.BookError, match=r"no such notebook: .*missing\.ipynb"):
        book.execute([notebook("good"), tmp_path / "missing.ipynb"], tmp_path / "out")
    assert not (tmp_path / "out").exists()


RUNNING = "import os, pathlib, time\npathlib.Path('{name}').write_text(str(os.getpid()))\ntime.sleep(120)"


def gone(pid: int) -> bool:
    """Whether a process has ended; one that nobody has waited for has."""
    status = Path(f"/proc/{pid}/stat")
    return not status.exists() or status.read_text().rpartition(")")[2].split()[0] == "Z"


def killed_at_work(code: str, tmp_path: Path, number: signal.Signals, pid: Path) -> None:
    """Run code in a process of its own, kill that once another has noted its pid, and see that all of them end."""
    process = subprocess.Popen([sys.executable, "-c", code], cwd=tmp_path, start_new_session=True, stderr=subprocess.DEVNULL)
    waited = time.monotonic() + 120
    while not (pid.exists() and pid.read_text()):
        assert process.poll() is None and time.monotonic() < waited
        time.sleep(0.05)
    started = int(pid.read_text())
    assert not gone(started)
    process.send_signal(number)
    process.wait()
    waited = time.monotonic() + 30
    while not gone(started):
        assert time.monotonic() < waited, "processes of the build are still there"
        time.sleep(0.05)
    with pytest.raises(ProcessLookupError):  # nor is any worker
        while time.monotonic() < waited:
            os.killpg(process.pid, 0)
            time.sleep(0.05)


@pytest.mark.timeout(300)
def test_workers_and_kernels_end_with_a_build_that_is_told_to(notebook: Callable[..., Path], tmp_path: Path) -> None:
    code = f"from bslib.book import execute; execute([{str(notebook('one', RUNNING.format(name='one')))!r}], 'out')"
    killed_at_work(code, tmp_path, signal.SIGTERM, tmp_path / "one")
    assert not list((tmp_path / "out").glob("[!.]*")), "a notebook that was not executed to its end"


@pytest.mark.timeout(300)
def test_the_renderer_ends_with_a_build_that_is_killed(clone: Path, tmp_path: Path) -> None:
    (clone / "book" / "slow.py").write_text(f"{RUNNING.format(name=tmp_path / 'sphinx')}\ndef setup(app): pass\n")
    with (clone / "_config.yml").open("a") as config:
        config.write("  local_extensions: {slow: book}\n")
    code = f"from bslib.book import render; render({str(clone)!r}, 'out')"
    killed_at_work(code, tmp_path, signal.SIGKILL, tmp_path / "sphinx")


@pytest.fixture
def clone(notebook: Callable[..., Path], tmp_path: Path) -> Path:
    """A repository with one notebook, which prints its parameter, and a book of it."""
    root = tmp_path / "tiny"
    (root / "book").mkdir(parents=True)
    (root / "notebooks").mkdir()
    notebook("page", "import time\ntime.sleep(1)\nprint(f'the profile is {profile}, the store {store}')").rename(
        root / "notebooks" / "page.ipynb"
    )
    (root / "_toc.yml").write_text("format: jb-book\nroot: book/executed/page\nchapters:\n- file: book/executed/status\n")
    (root / "_config.yml").write_text("execute: {execute_notebooks: 'off'}\nsphinx:\n  config: {html_copy_source: true}\n")
    return root


def test_a_profile_of_ones_own_is_found_where_the_build_is_started(clone: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def execute(sources: list[Path], out: Path, parameters: dict[str, object], *, cwd: Path) -> None:
        raise book.BookError(f"{parameters['profile']} in {cwd}")

    monkeypatch.setattr(book, "fetch_assets", lambda root: None)
    monkeypatch.setattr(book, "execute", execute)
    monkeypatch.chdir(clone / "book")
    with pytest.raises(book.BookError, match=f"^{clone}/book/own.toml in {clone}$"):
        book.build("own.toml")


@pytest.mark.timeout(300)
def test_two_builds_in_one_clone_do_not_collide(clone: Path, tmp_path: Path) -> None:
    """Each has a folder of its own; nothing else in the clone changes, and no page has a path of this machine."""
    code = "import sys; from bslib import book; book.fetch_assets = lambda root: None\n"
    code += "book.build(*sys.argv[1:3], out=sys.argv[1])"
    before, store = files_below(clone), tmp_path / "somewhere" / "my-records"
    running = [subprocess.Popen([sys.executable, "-c", code, name, store], cwd=clone) for name in ("one", "two")]
    assert [process.wait(240) for process in running] == [0, 0]
    for name in ("one", "two"):
        text = (clone / name / "html/book/executed/page.html").read_text()
        assert f"the profile is {name}, the store my-records" in text
        pages = [path for path in (clone / name / "html").rglob("*") if path.suffix in (".html", ".ipynb", ".js", ".md")]
        assert not [path for path in pages if str(tmp_path) in path.read_text()]
    assert {name for name in files_below(clone) if not name.startswith(("one/", "two/"))} == before
    left = re.search(r"^BUILT := _build/(.*)$", (Path(__file__).parents[1] / "Makefile").read_text(), re.MULTILINE)
    assert left and (clone / "one" / left[1] / "book/executed/page.ipynb").is_file(), "make pdf looks there"


def test_status_page_says_what_papermill_noted(tmp_path: Path) -> None:
    done = nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell("# Done"), nbformat.v4.new_code_cell("1")])
    done.metadata.papermill = {
        "start_time": "2026-02-03T04:05:06.789+00:00",
        "end_time": "2026-02-03T04:05:18.123+00:00",
        "duration": 11.334,
        "exception": None,
        "parameters": {"profile": "smoke", "seed": 3},
    }
    nbformat.write(done, tmp_path / "done.ipynb")
    page = book.write_status(tmp_path)
    assert page == tmp_path / "status.md"
    rows = [line for line in page.read_text().splitlines() if "ipynb" in line]
    values = "2026-02-03 04:05:06 | 11.3 s | `profile = 'smoke'`, `seed = 3` | 1"
    assert rows == [f"| [](./done.ipynb) | {values} |"]
    version = sys.version.split()[0]
    assert f"| Python | {version} |" in page.read_text()


@pytest.fixture
def registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A lock and an npm, first on the path: it installs the folder ``served`` and notes its calls in ``calls``."""
    monkeypatch.setattr(assets, "FILES", {"toy/*.js": "toy", "toy/fonts/*.woff": "toy/fonts"})
    folder = tmp_path / "registry"
    for name, content in {"toy/a.js": "a", "toy/fonts/b.woff": "b", "toy/unwanted": "-"}.items():
        (folder / "served" / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / "served" / name).write_text(content)
    lock = tmp_path / "clone" / "book" / "vendor"
    lock.mkdir(parents=True)
    for name in ("package.json", "package-lock.json"):
        (lock / name).write_text("{}")
    npm = folder / "npm"
    npm.write_text(
        f"#!{sys.executable}\n"
        "import pathlib, shutil, sys\n"
        "here = pathlib.Path(__file__).parent\n"
        "with (here / 'calls').open('a') as calls: calls.write(' '.join(sys.argv[1:3]) + '\\n')\n"
        "if not (here / 'served').exists(): sys.exit('npm error network: there is none')\n"
        "assert pathlib.Path('package-lock.json').is_file()\n"
        "shutil.copytree(here / 'served', 'node_modules')\n"
    )
    npm.chmod(0o755)
    monkeypatch.setenv("PATH", str(folder), prepend=os.pathsep)
    return folder


def files_below(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_assets_are_fetched_once_and_again_when_one_is_missing_or_the_lock_changes(registry: Path, tmp_path: Path) -> None:
    root, calls = tmp_path / "clone", registry / "calls"
    vendor = root / "book" / "_static" / "vendor"
    for _ in range(2):
        assert assets.fetch_assets(root) == vendor
    assert calls.read_text() == "ci --ignore-scripts\n"
    assert files_below(vendor) == {"stamp.json", "toy/a.js", "toy/fonts/b.woff"}
    (vendor / "toy" / "a.js").unlink()
    assets.fetch_assets(root)
    assert (vendor / "toy" / "a.js").read_bytes() == b"a"
    (root / "book" / "vendor" / "package-lock.json").write_text("{ }")
    assets.fetch_assets(root)
    assert len(calls.read_text().splitlines()) == 3


@pytest.mark.skipif(shutil.which("npm") is None, reason="needs npm")
def test_a_package_that_is_not_the_pinned_one_is_refused(tmp_path: Path) -> None:
    """By the real npm, with one character of axe-core's hash changed."""
    for name in ("package.json", "package-lock.json"):
        shutil.copy(Path(__file__).parent / "browser" / name, tmp_path)
    lock = tmp_path / "package-lock.json"
    lock.write_text(lock.read_text().replace("sha512-FH", "sha512-FI"))
    with pytest.raises(assets.BookError, match="EINTEGRITY"):
        assets.installed(tmp_path, {"axe-core/axe.min.js": "axe"})


def test_a_file_that_no_package_has_is_named(registry: Path, tmp_path: Path) -> None:
    with pytest.raises(assets.BookError, match=r"no file toy/c\.js"):
        assets.installed(tmp_path / "clone" / "book" / "vendor", {"toy/c.js": "toy"})


def test_without_a_registry_the_error_is_one_line_with_the_reason(
    registry: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.rmtree(registry / "served")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)  # no second npm
    with pytest.raises(assets.BookError, match=r"cannot fetch .*package-lock\.json .*there is none") as caught:
        assets.fetch_assets(tmp_path / "clone")
    assert "\n" not in str(caught.value)


def test_root_is_found_from_below_and_its_absence_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    below = tmp_path / "clone" / "book" / "pages"
    below.mkdir(parents=True)
    (tmp_path / "clone" / "_toc.yml").touch()
    monkeypatch.chdir(below)
    assert book.find_root() == tmp_path / "clone"
    monkeypatch.chdir(tmp_path)
    with pytest.raises(book.BookError, match=r"no _toc\.yml in .*run this inside a clone"):
        book.find_root()
