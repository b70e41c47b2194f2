"""The rendered book in a browser: offline, light and dark, on a telephone's width.

``$BSLIB_BUILT`` names the folder with the built pages (``_build/html``); without it these tests are skipped.
"""

from __future__ import annotations

import functools
import gzip
import json
import math
import os
import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

import pytest

from bslib.book import POLICY
from bslib.ledger import VERDICTS

if TYPE_CHECKING:
    from playwright.sync_api import Browser, BrowserContext, Page

BUILT = os.environ.get("BSLIB_BUILT")
PAGES = (
    sorted(
        str(page.relative_to(BUILT))
        for page in Path(BUILT).rglob("*.html")
        if page.relative_to(BUILT).parts[0] not in ("_static", "_sources")
    )
    or ["index.html"]  # a book that is not there is an error of the fixture's
    if BUILT
    else ["no book built"]
)
#: WCAG 2.2, levels A and AA, in axe-core's words.
WCAG = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa"]
#: Pixels of a picture: the reference is six times as tall, and a machine that is busy needs a minute for all of it.
TALLEST = 20_000
TELEPHONE = {"width": 390, "height": 844}
#: Pages with an explorer, if there are records for it.
EXPLORERS = (
    "01_parameters",
    "02_surface_effect",
    "03_accuracy_correlation",
    "04_smoothness_inducing_patterns",
    "05_why_it_smooths",
    "07_hiding_from_w",
)
#: Wait until every image and every font is there. The policy keeps out what polls by eval.
PICTURES = """document.querySelectorAll('img[loading=lazy]').forEach(image => image.loading = 'eager');
Promise.all([document.fonts.ready, ...[...document.images].map(image => image.decode().catch(() => 0))])"""
FORMULAS = """new Promise(done => {
  const ask = () => window.MathJax?.startup?.promise ? MathJax.startup.promise.then(() => done()) : setTimeout(ask, 20);
  ask();
})"""
each_page = pytest.mark.parametrize("page_name", PAGES)
#: Pages that are written by hand, and of those that are made from code, one of each kind.
MADE = [page for page in PAGES if page.startswith(("_modules", "book/executed/api"))]
each_kind_of_page = pytest.mark.parametrize("page_name", [p for p in PAGES if p not in MADE or p.endswith("measure.html")])


class Parsed(HTMLParser):
    """The ids of a page and what it points to."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.ids: set[str] = set()
        self.targets: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if name in ("id", "name") and value:
                self.ids.add(value)
            if name in ("href", "src") and value is not None:
                self.targets.append(value)


@pytest.fixture(scope="session")
def parsed(built: Path) -> dict[Path, Parsed]:
    return {built / name: Parsed((built / name).read_text(encoding="utf-8")) for name in PAGES}


@each_page
def test_internal_links_lead_somewhere(page_name: str, built: Path, parsed: dict[Path, Parsed]) -> None:
    page = built / page_name
    broken = []
    for target in parsed[page].targets:
        url = urlsplit(target)
        if url.scheme or url.netloc:
            continue
        path = (page.parent / unquote(url.path)).resolve() if url.path else page
        no_such_place = url.fragment and path in parsed and unquote(url.fragment) not in parsed[path].ids
        if not path.is_file() or no_such_place:
            broken.append(target)
    assert not broken


@each_page
def test_each_page_has_the_policy_before_anything_that_it_loads(page_name: str, built: Path) -> None:
    """That the policy is not violated: a violation is an error on the console, and the tests of pages allow none."""
    text = (built / page_name).read_text(encoding="utf-8")
    policy = text.index(f'<meta http-equiv="Content-Security-Policy" content="{POLICY}" />')
    assert not re.search("<(script|link|style|img)", text[:policy])


def test_the_policy_keeps_out_other_sites_frames_and_forms(origin: str, browser: Browser) -> None:
    page = browser.new_page()
    try:
        page.goto(f"{origin}/book/reproduce.html")
        page.evaluate(
            "window.violated = []; addEventListener('securitypolicyviolation', e => violated.push(e.effectiveDirective))"
        )
        for attempt in (
            "fetch('https://example.org').catch(() => 0)",
            "document.body.append(Object.assign(document.createElement('img'), {src: 'https://example.org/a.png'}))",
            "document.body.append(Object.assign(document.createElement('script'), {src: 'https://example.org/a.js'}))",
            "document.body.append(Object.assign(document.createElement('iframe'), {src: 'https://example.org'}))",
            "document.body.append(Object.assign(document.createElement('object'), {data: 'a.pdf'}))",
            "document.head.append(Object.assign(document.createElement('base'), {href: 'https://example.org'}))",
            "{ const f = Object.assign(document.createElement('form'), {action: 'https://example.org'}); document.body.append(f);"
            " f.submit() }",
        ):
            page.evaluate(attempt)
        for _ in range(100):  # wait_for_function would poll by eval, which the policy keeps out as well
            if page.evaluate("violated.length") == 7:
                break
            page.wait_for_timeout(50)
        directives = {"connect-src", "img-src", "script-src-elem", "frame-src", "object-src", "base-uri", "form-action"}
        assert set(page.evaluate("violated")) == directives
    finally:
        page.close()


def test_a_page_works_without_a_server(built: Path, browser: Browser) -> None:
    page, problems = browser.new_page(), []
    page.on("console", lambda m: problems.append(m.text) if m.type == "error" else None)
    try:
        page.goto((built / "book/executed/01_parameters.html").as_uri())
        page.locator(".explorer svg").first.wait_for()
        page.evaluate(FORMULAS)
        assert page.locator("mjx-container").count() and problems == []
    finally:
        page.close()


@each_page
def test_no_object_is_shown_by_its_name(page_name: str, built: Path) -> None:
    """As a figure is where nothing has told the notebook how to draw it."""
    text = (built / page_name).read_text(encoding="utf-8")
    assert "&lt;Figure size" not in text and " object at 0x" not in text


@pytest.fixture(scope="module")
def telephone(browser: Browser) -> Iterator[BrowserContext]:
    """A narrow window, whose pages share one cache."""
    context = browser.new_context(viewport=TELEPHONE, color_scheme="light", reduced_motion="reduce")
    yield context
    context.close()


@each_kind_of_page
def test_page_on_a_narrow_screen_and_audited_on_a_wide_one(
    page_name: str, built: Path, origin: str, telephone: BrowserContext, axe: str
) -> None:
    """At 390 px nothing fails or is asked of another site, nothing is cut off, every image and formula is there.

    At 1200 px axe-core finds nothing, and no low contrast after the reader's system has turned dark.
    """
    is_redirect = 'http-equiv="Refresh"' in (built / page_name).read_text(encoding="utf-8")
    page = telephone.new_page()
    try:
        problems: list[str] = []
        page.on("console", lambda m: problems.append(f"console: {m.text}") if m.type == "error" else None)
        page.on("pageerror", lambda error: problems.append(f"script: {error}"))
        page.on("requestfailed", lambda request: problems.append(f"failed: {request.url}"))
        page.on("response", lambda r: problems.append(f"{r.status}: {r.url}") if r.status >= 400 else None)
        own = (origin + "/", "data:", "blob:")
        page.on("request", lambda r: None if r.url.startswith(own) else problems.append(f"asked of another site: {r.url}"))
        page.goto(f"{origin}/{page_name}", wait_until="load")
        if is_redirect:
            page.wait_for_url(lambda url: url != f"{origin}/{page_name}")
        page.evaluate(PICTURES)
        assert page.evaluate("document.documentElement.dataset.theme") == "light"
        if page.locator(".math").count():
            page.evaluate(FORMULAS)
            raw = page.evaluate(
                "[...document.querySelectorAll('.math')].filter(m => !m.querySelector('mjx-container')"
                " || m.querySelector('mjx-merror')).map(m => m.textContent)"
            )
            assert not raw, "formulas that were not rendered"
            assert page.evaluate("[...document.fonts].some(f => f.family.includes('MJX') && f.status == 'loaded')")
        images = page.evaluate(
            "[...document.images].map(i => ({src: i.src, alt: i.alt.trim(), drawn: i.complete && i.naturalWidth > 0}))"
        )
        assert [image["src"] for image in images if not image["drawn"]] == []
        assert [image["src"] for image in images if not image["alt"]] == []
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
        if Path(page_name).stem in EXPLORERS:
            check_explorer(page)
        assert sent(page, origin, built) < 2e6
        if not is_redirect:
            page.set_viewport_size({"width": 1200, "height": 900})
            page.evaluate(axe)
            picture = built.parent / "screenshots" / page_name.replace("/", "-")
            audit(page, WCAG, picture.with_suffix(".png"))
            page.emulate_media(color_scheme="dark")
            page.wait_for_selector("html[data-theme=dark]")
            audit(page, ["color-contrast"], picture.with_suffix(".dark.png"))
        assert problems == []
    finally:
        page.close()


def check_explorer(page: Page) -> None:
    """The explorer of a page shows numbers and lives on after its controls are moved, or says that there are no records."""
    if page.locator("[data-widget]").count():
        page.locator(".explorer :is(svg, table)").first.wait_for()
        numbers = [float(value) for value in page.locator(".explorer data").evaluate_all("all => all.map(d => d.value)")]
        assert len(numbers) > 3 and any(map(math.isfinite, numbers))
        page.locator(".explorer input[type=range]:visible").first.focus()
        page.keyboard.press("Home")
        page.keyboard.press("End")
        assert page.locator(".explorer :is(svg, table)").count() and "need scripts" not in page.locator("main").inner_text()
    else:
        assert "Not yet run." in page.locator("main").inner_text()
        assert not page.locator("script[src*='widgets.js']").count()


def sent(page: Page, origin: str, built: Path) -> int:
    """The bytes that a server sends, compressed, to a reader who has seen nothing of the book."""
    urls = page.evaluate("[location.href, ...performance.getEntriesByType('resource').map(entry => entry.name)]")
    paths = {unquote(urlsplit(url).path).lstrip("/") for url in urls if url.startswith(origin)}
    assert len(paths) > 3
    return sum(compressed(built / path) for path in paths)


@functools.cache
def compressed(path: Path) -> int:
    return len(gzip.compress(path.read_bytes()))


def audit(page: Page, rules: list[str], picture: Path) -> None:
    """No violation of these rules is found by axe-core. A page with one is kept as a picture."""
    page.evaluate("new Promise(done => requestAnimationFrame(() => setTimeout(done, 50)))")  # what is drawn to fit
    # The details of what passes would take as long as the audit.
    found = page.evaluate("rules => axe.run(document, {resultTypes: ['violations'], runOnly: rules})", rules)
    assert found["passes"], "nothing was audited"
    if found["violations"]:
        clip = {"x": 0, "y": 0, "width": 1200, "height": page.evaluate(f"Math.min(document.body.scrollHeight, {TALLEST})")}
        page.screenshot(path=picture, full_page=True, clip=clip, timeout=120_000)
    assert [(violation["id"], node["html"]) for violation in found["violations"] for node in violation["nodes"]] == []


def test_the_filters_of_the_ledger_live_in_the_address(origin: str, browser: Browser) -> None:
    page = browser.new_page()
    try:
        page.goto(f"{origin}/book/executed/ledger.html")
        cards = page.locator(".ledger .claim")
        total, status = cards.count(), page.locator(".ledger-count")
        assert total >= 48 and status.inner_text() == f"{total} of {total} claims"
        page.locator(".ledger").get_by_label("Data set").select_option("cifar10")
        page.locator(".ledger input").fill("trigger")
        shown = page.locator(".ledger .claim:visible")
        assert 0 < shown.count() < total and status.inner_text() == f"{shown.count()} of {total} claims"
        assert all(
            "cifar10" in card.get_attribute("data-sets") and "trigger" in card.text_content().lower() for card in shown.all()
        )
        ids = [card.get_attribute("id") for card in shown.all()]
        page.goto(page.url)
        assert [card.get_attribute("id") for card in page.locator(".ledger .claim:visible").all()] == ids
        segments = page.locator(".score a").all()
        for href, text in [(segment.get_attribute("href"), segment.inner_text()) for segment in (segments[0], segments[-1])]:
            count, verdict = text.split(maxsplit=1)
            page.goto(f"{origin}/book/executed/{href}")
            assert verdict in VERDICTS and page.locator(".ledger .claim:visible").count() == int(count)
            assert all(card.get_attribute("data-verdict") == verdict for card in page.locator(".ledger .claim:visible").all())
        first = cards.first.get_attribute("id")
        page.goto(f"{origin}/book/executed/ledger.html#{first}")
        assert page.locator(".claim:target").get_attribute("id") == first
    finally:
        page.close()


def test_downloaded_notebooks_have_words_for_roles_and_captions_for_figures(built: Path) -> None:
    notebooks = sorted((built / "_sources").rglob("*.ipynb"))
    assert len(notebooks) >= 7
    for path in notebooks:
        cells = json.loads(path.read_text("utf-8"))["cells"]
        words = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown"]
        assert [text for text in words if re.search(r"\{[\w:]+\}`|^:::", text, re.MULTILINE)] == [], path.name
        named = [cell for cell in cells if cell["metadata"].get("mystnb", {}).get("figure")]
        captions = [text for text in words if text.startswith("**Figure ")]
        assert len(captions) == len(named)


def test_words_of_the_glossary_say_what_they_mean_on_hover(origin: str, browser: Browser) -> None:
    page = browser.new_page()
    try:
        page.goto(f"{origin}/book/executed/02_surface_effect.html")
        found = page.locator("a.term").all()
        words = [link.inner_text().lower() for link in found]
        assert "trigger" in words and len(set(words)) == len(words)
        assert all(len(link.get_attribute("title") or "") > 10 for link in found)
        meaning = found[words.index("trigger")].get_attribute("title")
        page.goto(f"{origin}/book/glossary.html#term-trigger")
        assert meaning == page.locator("dt#term-trigger + dd").inner_text().strip()
    finally:
        page.close()


def test_the_first_screen_answers(origin: str, browser: Browser) -> None:
    """Without scrolling: what was found, the verdicts, and a control that works; on a telephone in two screens."""
    for width, height in ((1280, 800), (390, 2 * 844)):
        page = browser.new_page(viewport={"width": width, "height": height})
        try:
            page.goto(f"{origin}/index.html")
            page.wait_for_selector(".explorer")
            slider = page.locator(".explorer input[type=range]")
            for part in (
                page.locator("h1 + p strong"),
                page.locator("nav.score a").last,
                page.locator(".admonition").first,
                slider,
            ):
                box = part.bounding_box()
                assert box and box["y"] + (0 if part is not slider else box["height"]) < height
            before = page.locator(".explorer .numbers").inner_text()
            slider.press("End")
            assert page.locator(".explorer .numbers").inner_text() != before
        finally:
            page.close()


def test_print_leaves_out_what_needs_a_screen(origin: str, browser: Browser) -> None:
    page = browser.new_page()
    try:
        page.goto(f"{origin}/book/executed/02_surface_effect.html")
        screen_only = page.locator("details.hide, div.explorer-place, p.downloads, section#in-the-lab")
        assert screen_only.count() >= 4
        page.emulate_media(media="print")
        assert [found.inner_text() for found in screen_only.all() if found.is_visible()] == []
        assert page.locator("figure img").first.is_visible() and page.get_by_role("heading", name="What holds").is_visible()
    finally:
        page.close()
