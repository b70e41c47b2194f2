"""A browser, and servers of folders, for every test of a page."""

from __future__ import annotations

import contextlib
import functools
import http.server
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from bslib.assets import installed

if TYPE_CHECKING:
    from playwright.sync_api import Browser

playwright = pytest.importorskip("playwright.sync_api")

CHROMIUM = os.environ.get("CHROMIUM", "/usr/bin/chromium")
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture(scope="session")
def built() -> Path:
    """The folder with the built pages."""
    named = os.environ.get("BSLIB_BUILT")
    if not named:
        pytest.skip("no built book: run `bslib book`, then set BSLIB_BUILT=_build/html")
    folder = Path(named).resolve()
    assert (folder / "index.html").is_file(), f"BSLIB_BUILT={named} holds no index.html"
    return folder


@pytest.fixture(scope="session")
def serve() -> Iterator[Callable[[Path], str]]:
    """A function that serves a folder and returns the address."""
    with contextlib.ExitStack() as stack:

        def address(folder: Path) -> str:
            handler = functools.partial(Quiet, directory=str(folder))
            server = stack.enter_context(http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler))
            threading.Thread(target=server.serve_forever, daemon=True).start()
            stack.callback(server.shutdown)
            return f"http://127.0.0.1:{server.server_address[1]}"

        yield address


@pytest.fixture(scope="session")
def origin(built: Path, serve: Callable[[Path], str]) -> str:
    """The address of a server of the built pages."""
    return serve(built)


@pytest.fixture(scope="session")
def axe() -> str:
    """The script of axe-core, which audits a page for accessibility; from the npm registry, by the hash in the lock beside."""
    return installed(Path(__file__).parent, {"axe-core/axe.min.js": "axe"})["axe/axe.min.js"].decode()


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    if not Path(CHROMIUM).exists():
        pytest.skip(f"no browser at {CHROMIUM}: install Debian's chromium, or name another in CHROMIUM")
    with playwright.sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield chromium
        chromium.close()
