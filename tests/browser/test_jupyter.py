"""The last cell of a chapter in a real JupyterLab says what Python says, and the chapter's explorer is alive there."""

from __future__ import annotations

import json
import os
import re
import secrets
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import nbformat
import pytest

import bslib
from bslib.entropy import plug_in
from bslib.interactive.live import Examples, examples

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

ROOT = Path(__file__).resolve().parents[2]
#: A chapter, as far as its explorer needs it.
EXPLORER = """from bslib.chapters.surface.results import load
from bslib.interactive.explorer import explorer
explorer("surface", load(profile="paper", store="published"))"""
START = 7


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str]]:
    """The address of a JupyterLab and its token; it has a notebook with the lab of the chapter on the surface."""
    folder = tmp_path_factory.mktemp("jupyter")
    chapter = nbformat.read(ROOT / "notebooks" / "02_surface_effect.ipynb", as_version=4)
    cells = [nbformat.v4.new_code_cell(source) for source in (chapter.cells[-1].source, EXPLORER)]
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=chapter.metadata), folder / "chapter.ipynb")
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    token = secrets.token_hex(16)
    own = {f"JUPYTER_{name}_DIR": str(folder / name) for name in ("CONFIG", "RUNTIME", "DATA")}
    # The kernel has bslib from where this test has it.
    environment = {**os.environ, **own, "PYTHONPATH": str(ROOT), "JUPYTER_PREFER_ENV_PATH": "1", "OMP_NUM_THREADS": "1"}
    options = {
        "ServerApp.port": port, "ServerApp.port_retries": 0, "ServerApp.root_dir": folder,
        "IdentityProvider.token": token, "ServerApp.allow_root": True,
        "ServerApp.open_browser": False, "LabApp.expose_app_in_browser": True, "LabApp.news_url": None,
    }  # fmt: skip
    command = [sys.executable, "-m", "jupyterlab", *(f"--{name}={value}" for name, value in options.items())]
    with (folder / "log.txt").open("w") as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
    address = f"http://127.0.0.1:{port}"
    try:
        wait_for(f"{address}/api/status?token={token}", process, folder / "log.txt")
        yield address, token
    finally:
        process.terminate()
        process.wait(30)


def wait_for(address: str, process: subprocess.Popen[bytes], log: Path) -> None:
    waited = time.monotonic() + 240
    while time.monotonic() < waited:
        assert process.poll() is None, log.read_text()
        try:
            with urllib.request.urlopen(address) as answer:
                assert "started" in json.load(answer)
                return
        except OSError:
            time.sleep(0.2)
    raise AssertionError(log.read_text())


@pytest.fixture(scope="module")
def page(browser: Browser, server: tuple[str, str]) -> Iterator[Page]:
    """The notebook, open and executed."""
    address, token = server
    context = browser.new_context(viewport={"width": 1200, "height": 1600})
    context.set_default_timeout(240_000)  # the kernel imports torch, beside other tests
    page = context.new_page()
    asked: list[str] = []
    page.on("request", lambda r: None if r.url.startswith((address, "data:", "blob:")) else asked.append(r.url))
    page.goto(f"{address}/lab/tree/chapter.ipynb?token={token}&reset")
    page.wait_for_selector(".jp-Notebook .jp-Cell")
    page.wait_for_selector("text=Python 3 (ipykernel) | Idle")
    page.evaluate("window.jupyterapp.commands.execute('notebook:run-all-cells')")
    yield page
    context.close()
    assert asked == []


@pytest.fixture(scope="module")
def example() -> Examples:
    return examples()


def in_words(example: Examples, sigma: float, *, stamped: bool = False) -> str:
    """What the panel's picture says when all is counted, from class_counts."""
    image = example.images[START : START + 1]
    image = example.trigger(image) if stamped else image
    said = f"Image {START}, trigger {'trigger' if stamped else 'none'}, σ = {sigma:g}, 250 of 250 noisy copies."
    for name in ("clean", "backdoored"):
        counts = bslib.class_counts(getattr(example, name), image, sigma, 250, seed=0, ids=[START], progress=False)[0, 0]
        order = sorted(range(len(counts)), key=lambda k: -counts[k])
        seen = ", ".join(f"{example.classes[k]} {counts[k]}" for k in order if counts[k])
        said += f" {name}: W = {plug_in(counts):.3f}; {seen}."
    return said


def shown(page: Page, words: str) -> dict[str, tuple[str, set[str]]]:
    """What the panel's picture says when it has come to the setting that these words begin with."""
    begin = words.split(" clean: ")[0]
    found = page.locator(f'.jp-OutputArea img[alt^="{begin}"]').get_attribute("alt")
    assert found is not None and set(told(found)) == {"clean", "backdoored"}
    return told(found)


def told(words: str) -> dict[str, tuple[str, set[str]]]:
    """W and the counts of each network, in any order."""
    found = re.findall(r"(\w+): W = ([\d.]+); (.+?)\.(?= \w+: |$)", words)
    return {name: (w, set(seen.split(", "))) for name, w, seen in found}


def test_the_last_cell_of_a_chapter_is_alive(page: Page, example: Examples) -> None:
    start, moved, stamped = in_words(example, 0.25), in_words(example, 0.4), in_words(example, 0.25, stamped=True)
    assert shown(page, start) == told(start)
    handle = page.locator(".widget-slider", has_text="Noise").locator(".noUi-handle")
    handle.focus()
    for _ in range(15):
        page.keyboard.press("ArrowRight")
    assert shown(page, moved) == told(moved)
    for _ in range(15):
        page.keyboard.press("ArrowLeft")
    page.locator(".widget-dropdown", has_text="Trigger").get_by_role("combobox").select_option("trigger")
    assert shown(page, stamped) == told(stamped)


def test_the_explorer_is_alive(page: Page) -> None:
    explorer = page.locator(".explorer").first
    explorer.scroll_into_view_if_needed()
    numbers = explorer.locator(".numbers")
    before = numbers.inner_text()
    slider = explorer.locator("input[type=range]").first
    slider.focus()
    page.keyboard.press("ArrowRight")
    page.wait_for_function("before => document.querySelector('.explorer .numbers').innerText != before", arg=before)
    assert numbers.inner_text() != before
