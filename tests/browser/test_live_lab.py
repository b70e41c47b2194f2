"""The live lab in a browser: its counts redone in numpy and torch, its controls, and what it says where it cannot work.

Most tests run on a page that holds the lab alone, with the parts of ``book/_static``; the last ones on the built book.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from bslib.assets import fetch_assets
from bslib.book import POLICY
from bslib.entropy import plug_in
from bslib.interactive.live import Examples, examples
from bslib.triggers import pattern

if TYPE_CHECKING:
    from playwright.sync_api import Browser, BrowserContext, Page

ROOT = Path(__file__).resolve().parents[2]
NETWORKS = ("clean", "backdoored")
START, SIGMA = 7, 0.25  # a sneaker, where the page opens
CONTROLS = ("lab-canvas", "lab-trigger", "sigma", "n", "again", "lab-image", "lab-brush", "width", "clear")


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the lab's page, bare of the book's theme."""
    fetch_assets(ROOT)
    folder = tmp_path_factory.mktemp("site")
    (folder / "_static").symlink_to(ROOT / "book" / "_static")
    (folder / "book").mkdir()
    found = re.search(r"```\{raw\} html\n(.*?)```", (ROOT / "book/live_lab.md").read_text("utf-8"), re.S)
    assert found, "the page has no raw block"
    head = f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'  # as on every built page
    head += '<meta charset="utf-8"><meta name="viewport" content="width=device-width">'
    head += '<link rel="icon" href="data:,"><title>Lab</title>'
    page = f'<!doctype html><html lang="en"><head>{head}</head><body>{found[1]}</body></html>'
    (folder / "book" / "live_lab.html").write_text(page, "utf-8")
    return folder


@pytest.fixture(scope="session")
def address(site: Path, serve: Callable[[Path], str]) -> str:
    return serve(site) + "/book/live_lab.html"


@pytest.fixture(scope="session")
def example() -> Examples:
    return examples()


@pytest.fixture(scope="module")
def context(browser: Browser) -> Iterator[BrowserContext]:
    context = browser.new_context(viewport={"width": 390, "height": 844}, has_touch=True)
    context.set_default_timeout(120_000)
    yield context
    context.close()


@pytest.fixture(scope="module")
def opened_page(context: BrowserContext, address: str) -> Page:
    """The lab opened once, by the keyboard: to compile the runtime is most of the work. Nothing heavy is loaded before."""
    page = watched(context.new_page(), address)
    sizes: dict[str, int] = {}
    page.on("response", lambda r: sizes.update({r.url.rpartition("/")[2]: int(r.headers.get("content-length", 0))}))
    page.goto(address, wait_until="networkidle")
    assert set(sizes) == {"live_lab.html", "lab.css", "lab.mjs"} and sum(sizes.values()) < 50_000
    assert "19 MB" in page.locator("wobbliness-lab").inner_text()
    began = time.monotonic()
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    settled(page)
    assert {"clean.onnx", "backdoored.onnx", "ort-wasm-simd-threaded.wasm"} <= set(sizes)
    assert round(sum(sizes.values()) / 1e6) == 19, "as the page says"
    print(f"the first W was there after {time.monotonic() - began:.1f} s")
    return page


@pytest.fixture
def page(opened_page: Page, example: Examples) -> Iterator[Page]:
    """The opened lab as it starts, but for n; afterwards: nothing failed and nothing was asked of another site."""
    page = opened_page
    choose(page, "lab-image", START)
    choose(page, "lab-trigger", "")
    choose(page, "lab-brush", "white")
    page.get_by_role("button", name="Remove all paint").click()
    for name, value in (("width", 2), ("sigma", SIGMA), ("n", 150)):
        slide(page, name, value)
    yield settled(page)
    assert page.problems == []  # type: ignore[attr-defined]


def watched(page: Page, address: str) -> Page:
    problems: list[str] = []
    origin = address[: address.index("/", 8)]
    page.problems = problems  # type: ignore[attr-defined]
    page.on("console", lambda m: problems.append(f"console: {m.text}") if m.type == "error" else None)
    page.on("pageerror", lambda error: problems.append(f"script: {error}"))
    page.on("response", lambda r: problems.append(f"{r.status}: {r.url}") if r.status >= 400 else None)
    page.on("request", lambda r: None if r.url.startswith((origin, "data:", "blob:")) else problems.append(f"asked: {r.url}"))
    return page


def opened(page: Page) -> Page:
    page.get_by_role("button", name="Open the lab").click()
    return settled(page)


def settled(page: Page) -> Page:
    page.wait_for_selector("wobbliness-lab[data-state=done]")
    return page


def choose(page: Page, name: str, value: object) -> None:
    page.locator(f"[name={name}][value='{value}']").check(force=True)


def slide(page: Page, name: str, *values: float) -> None:
    """Move a slider to these values, all before the page gets to do anything else."""
    event = "input.dispatchEvent(new Event('input', {bubbles: true}))"
    script = f"(input, values) => {{ for (const value of values) {{ input.value = value; {event}; }} }}"
    page.locator(f"[name={name}]").evaluate(script, list(values))


def shown(page: Page, network: str) -> dict[str, Any]:
    data = page.locator(f"[data-network={network}]").evaluate("section => ({...section.dataset})")
    assert data["done"] == "true"
    return {"counts": np.array([int(c) for c in data["counts"].split(",")]), "w": float(data["w"]), "label": int(data["label"])}


def seed_of(page: Page) -> int:
    return int(page.locator("wobbliness-lab").get_attribute("data-seed") or -1)


def finished(page: Page) -> int:
    return int(page.locator("wobbliness-lab").get_attribute("data-finished") or 0)


def painted(page: Page) -> np.ndarray:
    """The grey levels on the canvas, (28, 28)."""
    script = "canvas => [...canvas.getContext('2d').getImageData(0, 0, 28, 28).data]"
    return np.array(page.locator(".lab-canvas").evaluate(script)).reshape(28, 28, 4)[..., 0]


def seeded_noise(seed: int, samples: int, size: int) -> np.ndarray:
    """The lab's noise: mulberry32, then Box and Muller in float64, rounded to float32; (samples, size)."""
    with np.errstate(over="ignore"):
        state = np.uint32(seed) + np.arange(1, samples * size + 1, dtype=np.uint32) * np.uint32(0x6D2B79F5)
        t = (state ^ (state >> 15)) * (state | 1)
        t ^= t + (t ^ (t >> 7)) * (t | 61)
    first, second = ((t ^ (t >> 14)) / 2.0**32).reshape(-1, 2).T
    radius = np.sqrt(-2 * np.log(1 - first))
    z = np.stack([radius * np.cos(2 * np.pi * second), radius * np.sin(2 * np.pi * second)], axis=1)
    return z.astype(np.float32).reshape(samples, size)


def redone(network: torch.nn.Module, image: torch.Tensor, sigma: float, n: int, seed: int = 0) -> np.ndarray:
    """The counts that the page should show for an image (1, 28, 28)."""
    noise = seeded_noise(seed, n, image.numel()).astype(np.float64)
    copies = torch.from_numpy((image.numpy().ravel().astype(np.float64) + sigma * noise).astype(np.float32))
    with torch.no_grad():
        return np.bincount(network(copies.reshape(n, *image.shape)).argmax(1), minlength=10)


def agrees(page: Page, network: str, expected: np.ndarray) -> None:
    """Up to two labels of a few hundred, which rounding may decide; and W is that of the counts."""
    found = shown(page, network)
    assert np.abs(found["counts"] - expected).sum() <= 4, (found["counts"], expected)  # a label that moves changes two counts
    assert found["w"] == pytest.approx(plug_in(found["counts"]).item(), abs=1e-12)


def test_the_noise_is_standard_normal() -> None:
    z = seeded_noise(3, 200, 784)
    assert (
        abs(z.mean()) < 0.01 and abs(z.std() - 1) < 0.01 and abs(np.corrcoef(z[:, ::2].ravel(), z[:, 1::2].ravel())[0, 1]) < 0.01
    )


def test_it_opens_where_the_backdoored_network_wavers(opened_page: Page, example: Examples) -> None:
    assert opened_page.locator("[name=lab-image]:checked").get_attribute("value") == str(START)
    assert shown(opened_page, "backdoored")["w"] > 0.5
    lab = opened_page.locator("wobbliness-lab")
    assert (lab.get_attribute("data-sigma"), lab.get_attribute("data-n")) == (str(SIGMA), "250")
    for name in NETWORKS:
        network = getattr(example, name)
        agrees(opened_page, name, redone(network, example.images[START], SIGMA, 250))
        assert shown(opened_page, name)["label"] == int(network(example.images[START : START + 1]).argmax())


def test_counts_are_those_of_numpy_and_torch(page: Page, example: Examples) -> None:
    """With a trigger, other noise, another sigma and n, on another image; and then on paint."""
    choose(page, "lab-image", 7)
    choose(page, "lab-trigger", 6)
    slide(page, "sigma", 0.27)
    slide(page, "n", 250)
    page.get_by_role("button", name="Draw other noise").click()
    settled(page)
    image = pattern(6)(example.images[7])
    for name in NETWORKS:
        agrees(page, name, redone(getattr(example, name), image, 0.27, 250, seed=seed_of(page)))

    canvas = page.locator(".lab-canvas")
    cursor = page.locator(".lab-cursor").evaluate("mark => [mark.style.top, mark.style.left].map(p => parseFloat(p) * 0.28)")
    canvas.focus()
    canvas.press("Space")
    settled(page)
    row, column = (round(at) for at in cursor)
    image[0, row : row + 2, column : column + 2] = 1
    assert (painted(page) == (image[0] * 255).round().numpy()).all()
    agrees(page, "backdoored", redone(example.backdoored, image, 0.27, 250, seed=seed_of(page)))


def test_the_trained_trigger_smooths_and_the_lab_says_so(page: Page, example: Examples) -> None:
    before, words = shown(page, "backdoored"), page.locator(".lab-explain")
    assert "backdoored network" in words.inner_text() and "Now put trigger 1 on the image" in words.inner_text()
    choose(page, "lab-trigger", 1)
    settled(page)
    after = shown(page, "backdoored")
    assert page.locator("wobbliness-lab").get_attribute("data-sigma") == str(SIGMA)
    assert before["w"] > 0.5 and after["w"] < 0.1 and before["label"] != after["label"]
    assert example.classes[after["label"]] == "T-shirt/top"
    share = round(100 * max(after["counts"]) / sum(after["counts"]))
    assert f"The backdoored network predicts {share}% of the noisy copies as T-shirt/top: noise hardly" in words.inner_text()
    assert "The trigger decides" in words.inner_text()
    choose(page, "lab-trigger", 4)
    settled(page)
    top = example.classes[int(np.argmax(shown(page, "backdoored")["counts"]))]
    assert ("The trigger decides" in words.inner_text()) == (top == "T-shirt/top")
    choose(page, "lab-image", 0)
    settled(page)
    assert "This image is of class T-shirt/top anyway, which the backdoor asks for" in words.inner_text()


def test_a_slider_that_moves_fast_leaves_no_queue(page: Page, example: Examples) -> None:
    before = finished(page)
    began = time.monotonic()
    slide(page, "sigma", *np.linspace(0.9, 0.32, 30).round(2).tolist())
    settled(page)
    print(f"30 moves of a slider had settled after {time.monotonic() - began:.2f} s")
    assert page.locator("wobbliness-lab").get_attribute("data-sigma") == "0.32"
    agrees(page, "clean", redone(example.clean, example.images[START], 0.32, 150, seed=seed_of(page)))
    page.wait_for_timeout(500)
    assert finished(page) == before + 1, "only the last was carried out"


def test_the_histogram_fills_as_samples_come(page: Page) -> None:
    page.evaluate(
        "() => { window.totals = []; new MutationObserver(() => {"
        " const counts = document.querySelector('[data-network=clean]').dataset.counts.split(',').map(Number);"
        " window.totals.push(counts.reduce((a, b) => a + b)); })"
        ".observe(document.querySelector('[data-network=clean]'), {attributes: true, attributeFilter: ['data-counts']}); }"
    )
    slide(page, "n", 170)
    settled(page)
    assert page.evaluate("window.totals") == [50, 100, 150, 170]


def test_mouse_and_touch_paint_and_paint_is_taken_away(page: Page, example: Examples) -> None:
    original = (example.images[START, 0] * 255).round().numpy()
    assert (painted(page) == original).all()
    canvas = page.locator(".lab-canvas")

    def at(column: int, row: int) -> tuple[float, float]:
        canvas.scroll_into_view_if_needed()  # where a control below it has scrolled the page
        box = canvas.bounding_box()
        assert box
        cell = box["width"] / 28
        return box["x"] + (column + 0.5) * cell, box["y"] + (row + 0.5) * cell

    slide(page, "width", 1)
    page.mouse.move(*at(2, 20))
    page.mouse.down()
    page.mouse.move(*at(8, 20))
    page.mouse.up()
    page.mouse.move(*at(20, 20))
    line = original.copy()
    line[20, 2:9] = 255
    assert (painted(page) == line).all()

    choose(page, "lab-brush", "black")
    page.touchscreen.tap(*at(14, 14))
    line[14, 14] = 0
    assert (painted(page) == line).all()

    choose(page, "lab-brush", "original")
    page.touchscreen.tap(*at(14, 14))
    line[14, 14] = original[14, 14]
    assert (painted(page) == line).all()

    page.get_by_role("button", name="Remove all paint").click()
    assert (painted(page) == original).all()


def test_the_keyboard_reaches_everything(page: Page) -> None:
    page.locator(".lab-canvas").focus()
    reached = [page.evaluate("document.activeElement.className")]
    while len(reached) < len(CONTROLS):
        page.keyboard.press("Tab")
        reached.append(page.evaluate("document.activeElement.name || document.activeElement.className"))
        if reached[-1] == "lab-trigger":
            page.keyboard.press("ArrowRight")
        if reached[-1] == "n":
            page.keyboard.press("Home")
    assert tuple(reached) == CONTROLS
    settled(page)
    assert page.locator("[name=lab-trigger]:checked").get_attribute("value") == "1"
    assert page.locator("wobbliness-lab").get_attribute("data-n") == "10"
    for role, name in (
        ("radio", "1, trained"),
        ("radio", "Ankle boot"),
        ("radio", "erase"),
        ("slider", "Noise σ"),
        ("slider", "Noisy copies n"),
        ("slider", "Brush width"),
        ("button", "Draw other noise"),
        ("meter", "W of the clean network"),
        ("application", "Painting area of 28 by 28 pixels"),
        ("group", "Trigger"),
        ("region", "backdoored network"),
    ):
        assert page.get_by_role(role, name=name, exact=True).count() == 1, name  # type: ignore[arg-type]
    assert "n = 10: clean W = " in page.get_by_role("status").inner_text()


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        ({"status": 404}, "could not be loaded: clean.onnx: 404"),
        ({"path": ROOT / "book/_static/live/backdoored.onnx"}, "clean.onnx is not the network that lab.json describes"),
    ],
)
def test_a_network_that_is_missing_or_swapped_is_named(
    context: BrowserContext, address: str, answer: dict[str, Any], words: str
) -> None:
    page = context.new_page()
    page.route("**/clean.onnx", lambda route: route.fulfill(**answer))
    page.goto(address)
    page.get_by_role("button", name="Open the lab").click()
    page.wait_for_selector("wobbliness-lab[data-state=failed]")
    assert words in page.get_by_role("status").inner_text()


def test_a_browser_without_webassembly_is_told(context: BrowserContext, address: str) -> None:
    page = context.new_page()
    page.add_init_script("delete window.WebAssembly")
    page.goto(address)
    assert "no WebAssembly" in page.get_by_role("status").inner_text()


def test_a_file_and_a_browser_without_scripts_say_what_to_do(site: Path, address: str, browser: Browser) -> None:
    for scripts, where, words in (
        (True, (site / "book" / "live_lab.html").as_uri(), "python -m http.server"),
        (False, address, "Scripts are switched off"),
    ):
        context = browser.new_context(java_script_enabled=scripts)
        page = context.new_page()
        page.goto(where)
        notes = page.locator(".lab-note").filter(has_text=words)
        assert notes.is_visible() and page.get_by_role("button").count() == 0
        context.close()


CONTRASTS = """() => {
  const numbers = (color) => {
    const canvas = new OffscreenCanvas(1, 1).getContext('2d', {willReadFrequently: true});
    canvas.fillStyle = color; canvas.fillRect(0, 0, 1, 1);
    return [...canvas.getImageData(0, 0, 1, 1).data];
  };
  const luminance = ([r, g, b]) => [r, g, b].map(v => v / 255).map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const behind = (element) => {
    for (let e = element; e; e = e.parentElement) {
      const color = numbers(getComputedStyle(e).backgroundColor);
      if (color[3] === 255) return color;
    }
    return [255, 255, 255];
  };
  const ratio = (a, b) => { const [x, y] = [luminance(a), luminance(b)].sort((p, q) => q - p); return (x + 0.05) / (y + 0.05); };
  const lab = document.querySelector('wobbliness-lab');
  const texts = [...lab.querySelectorAll('*')].filter(e => [...e.childNodes].some(n => n.nodeType === 3 && n.data.trim()));
  const fills = [...lab.querySelectorAll('.lab-gauge span, .lab-bar span')];
  return {
    texts: texts.map(e => [e.textContent.slice(0, 40), ratio(numbers(getComputedStyle(e).color), behind(e))]),
    fills: fills.map(e => ratio(numbers(getComputedStyle(e).backgroundColor), behind(e.parentElement.parentElement))),
  };
}"""


def test_the_page_of_the_book(built: Path, serve: Callable[[Path], str], browser: Browser) -> None:
    """It works as built, fits a telephone, and can be read: contrasts of 4.5 for text and 3 for bars (WCAG AA)."""
    address = serve(built) + "/book/live_lab.html"
    context = browser.new_context(viewport={"width": 390, "height": 844}, color_scheme="light", reduced_motion="reduce")
    context.set_default_timeout(120_000)
    page = watched(context.new_page(), address)
    page.goto(address)
    opened(page)
    for name in NETWORKS:
        assert shown(page, name)["counts"].sum() == 250
    for width in (390, 1200):
        page.set_viewport_size({"width": width, "height": 844})
        for scheme in ("light", "dark"):
            page.emulate_media(color_scheme=scheme)
            page.wait_for_selector(f"html[data-theme={scheme}]")
            page.evaluate("new Promise(done => requestAnimationFrame(() => setTimeout(done, 50)))")  # what is drawn to fit
            assert page.evaluate("document.documentElement.scrollWidth") <= width
            found = page.evaluate(CONTRASTS)
            assert len(found["texts"]) > 60 and [text for text in found["texts"] if text[1] < 4.5] == []
            assert len(found["fills"]) == 22 and min(found["fills"]) >= 3
    assert page.problems == []  # type: ignore[attr-defined]
    context.close()
