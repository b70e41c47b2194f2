"""The explorers' script in a browser: its numbers are Python's, at every setting; keyboard, touch, telephone, no scripts.

The pages are made here, of made-up records. The explorers of the built book are looked at in test_pages.
"""

from __future__ import annotations

import csv
import functools
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

pytest.importorskip("anywidget")

from ipywidgets.embed import embed_data
from matplotlib import cbook
from scipy import special, stats
from sklearn.metrics import roc_auc_score, roc_curve

from bslib.chapters.correlation.pairs import correlations
from bslib.chapters.hiding import explorer as hide_and_seek
from bslib.chapters.parameters.plan import Size
from bslib.chapters.patterns.batches import FORMS
from bslib.chapters.patterns.detector import working
from bslib.chapters.patterns.plan import batch_of, cleanse_of, crafted_batch_of, universals_of
from bslib.entropy import ESTIMATORS, entropy
from bslib.interactive.explorer import Explorer, explorer
from bslib.statistics import levene

if TYPE_CHECKING:
    from playwright.sync_api import Browser, BrowserContext, Page, Route

HOST = Path(__file__).parents[2] / "book" / "_static" / "widgets.js"
SITE = "http://explorers.test/"
#: Every setting of every control, one after the other, with the numbers shown and not rounded.
SWEEP = """() => {
    const controls = [...document.querySelectorAll(".explorer .control")], found = [];
    const turn = (k, settings) => {
        if (k == controls.length) {
            const numbers = [...document.querySelectorAll(".explorer .numbers div")].map(entry =>
                [entry.querySelector(".name").textContent, [...entry.querySelectorAll("data")].map(d => Number(d.value))]);
            found.push({settings, numbers: Object.fromEntries(numbers)});
            return;
        }
        const input = controls[k].querySelector("input, select"), range = input.type == "range";
        const choices = range ? Number(input.max) + 1 : input.options.length;
        for (let choice = 0; choice < choices; choice++) {
            input.value = choice;
            input.dispatchEvent(new Event("input"));
            turn(k + 1, {...settings, [controls[k].dataset.name]: controls[k].querySelector("output").textContent});
        }
    };
    turn(0, {});
    return found;
}"""


@pytest.fixture
def show(browser: Browser) -> Iterator[Callable[..., Page]]:
    """A function that opens a page with an explorer; at the end nothing may have failed, or been asked of any site."""
    contexts: list[BrowserContext] = []
    problems: list[str] = []

    def open_page(explorer: Explorer, **more: Any) -> Page:
        state = json.dumps(embed_data(views=[explorer], drop_defaults=False)["manager_state"]).replace("</", "<\\/")
        html = (
            '<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
            f"<title>Explorer</title>{explorer._repr_mimebundle_()[0]['text/html']}"
            f'<script type="application/vnd.jupyter.widget-state+json">{state}</script>'
            f"<script>{HOST.read_text('utf-8')}</script></html>"
        )

        def gate(route: Route) -> None:
            if route.request.url == SITE:
                route.fulfill(body=html, content_type="text/html")
            else:
                problems.append(f"asked: {route.request.url}")
                route.abort()

        contexts.append(context := browser.new_context(**({"viewport": {"width": 900, "height": 800}} | more)))
        context.route("**/*", gate)
        page = context.new_page()
        page.on("console", lambda message: problems.append(f"console: {message.text}"))
        page.on("pageerror", lambda error: problems.append(f"script: {error}"))
        page.goto(SITE)
        if more.get("java_script_enabled", True):
            page.locator(".explorer :is(svg, table)").first.wait_for()
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert problems == []


@pytest.fixture(scope="module")
def half(made_up_half):
    return made_up_half(
        Size(
            dataset="fashion-mnist", network="small-fashion", networks=2, epochs=1, points=30,
            ns=(10, 250), n_sigmas=(0.1, 0.25), sigmas=(0.01, 0.1, 0.25, 0.5), n=10,
        )
    )  # fmt: skip


@pytest.fixture(scope="module")
def surface(published_part):
    return published_part("surface", networks=3)


@pytest.fixture(scope="module")
def correlation(published_part):
    return published_part("correlation", networks=3, further=2)


@pytest.fixture(scope="module")
def detector(published_part):
    return published_part("patterns", networks=2, more_triggers=(), triggers=(1, 4))


@pytest.fixture(scope="module")
def hiding(published_part):
    return published_part("hiding", networks=2)


@pytest.fixture(params=["parameters", "surface", "correlation", "patterns", "hiding"])
def chapter(request) -> tuple[str, Any]:
    """A chapter and its results."""
    fixture = {"parameters": "half", "patterns": "detector"}.get(request.param, request.param)
    return request.param, request.getfixturevalue(fixture)


def close(found: dict[str, list[float | None]], wanted: dict[str, list[float]]) -> None:
    """The numbers shown are those, to rounding."""
    assert {name: len(values) for name, values in found.items()} == {name: len(values) for name, values in wanted.items()}
    for name, values in wanted.items():
        shown = np.array(found[name], dtype=float)
        assert np.allclose(shown, values, rtol=1e-9, atol=1e-11, equal_nan=True), (name, shown, values)


def at(sigmas, settings) -> int:
    return list(sigmas).index(float(settings["sigma"]))


# --- the numbers -----------------------------------------------------------------------------------------------------


def test_parameters_has_pythons_numbers(show, half):
    sweep = show(explorer("parameters", {"one": half})).evaluate(SWEEP)
    assert len(sweep) == (2 * 2 + 2) * 3
    for one in sweep:
        settings, s = one["settings"], at(half.size.sigmas, one["settings"])
        if half.size.sigmas[s] in half.size.n_sigmas:
            n = half.size.ns.index(int(settings["n"]))
            w = half.over_n(settings["estimator"])[:, at(half.size.n_sigmas, settings), n]
        else:
            assert settings["n"] == "10", "there is nothing to choose"
            w = half.over_sigma(settings["estimator"])[:, s]
        first, middle, third = np.percentile(w, [25, 50, 75])
        wanted = {"mean": [w.mean()], "spread": [w.std(-1, ddof=1).mean()], "median": [middle], "quartiles": [first, third]}
        close(one["numbers"], wanted | {"outliers": [len(cbook.boxplot_stats(w.ravel(), whis=1.5)[0]["fliers"])]})


def test_origin_has_pythons_numbers_and_a_cell_for_each_square(show, published_part):
    part = published_part("origin")
    page = show(explorer("origin", {"one": part}))
    sweep, cells, squares = page.evaluate(SWEEP), part.plane.cells, len(part.size.sides) * len(part.size.greys)
    assert len(sweep) == 4 * 3
    for one in sweep:
        poisons, sigma = int(one["settings"]["poisons"].replace(",", "")), float(one["settings"]["sigma"])
        own = cells[(cells["poisons"] == poisons) & (cells["sigma"] == sigma)]
        wanted = {"success, mean of the squares": [own["success"].mean()], "change of W, mean": [own["change"].mean()]}
        wanted |= {"smoother with it": [(own["change"] < 0).sum()], "not yet run": [squares - len(own)]}
        close(one["numbers"], wanted)
    # The sweep ends at the most poisons and the largest noise level.
    last = cells[(cells["poisons"] == 9000) & (cells["sigma"] == 0.25)].set_index(["grey", "side"])
    shown = [table.locator("td").all_inner_texts() for table in page.locator("table").all()]
    for texts, column in zip(shown, ("success", "change"), strict=True):
        keys = [(grey / 9, side) for grey in reversed(part.size.greys) for side in part.size.sides]
        assert len(texts) == squares and all(
            (text == "?") == (key not in last.index) for text, key in zip(texts, keys, strict=True)
        )
        found = [
            (float(text.replace("\u2212", "-")), last.loc[key, column])
            for text, key in zip(texts, keys, strict=True)
            if text != "?"
        ]
        assert found and all(abs(text - value) <= 0.0051 for text, value in found)


def test_surface_has_pythons_numbers(show, surface):
    sweep = show(explorer("surface", {"one": surface})).evaluate(SWEEP)
    assert len(sweep) == 3 * (3 + 1) * 10 * 3
    kinds = {"active (trigger 1)": 1, "inactive (trigger 4)": 2, "none": 0}
    w_of = functools.cache(surface.w)
    for one in sweep:
        settings = one["settings"]
        w = w_of(settings["estimator"])[:, :, at(surface.size.sigmas, settings)]
        w = w if settings["network"] == "all" else w[[int(settings["network"].removeprefix("network ")) - 1]]
        wanted = {"mean, clean": [w[:, 0].mean()]}
        if kind := kinds[settings["trigger"]]:
            change = w[:, kind] - w[:, 0]
            change[abs(change) < 1e-12] = 0  # classes in another order: the same counts, another last digit
            wanted |= {"mean, with trigger": [w[:, kind].mean()], "mean difference": [change.mean()]}
            wanted |= {"smoother with it": [100 * (change < 0).mean()], "wobblier with it": [100 * (change > 0).mean()]}
        close(one["numbers"], wanted)


def test_correlation_has_pythons_numbers(show, correlation):
    sweep = show(explorer("correlation", {"one": correlation})).evaluate(SWEEP)
    assert len(sweep) == 10 * 2 * 3
    rules = {"none": 0.0, "success below 0.1": 0.1, "success below 0.3": 0.3}
    pairs = functools.cache(lambda sigma, n: correlation.pairs(float(sigma), n=int(n)))
    for one in sweep:
        sigma, n, below = (one["settings"][name] for name in ("sigma", "n", "below"))
        found = correlations(pairs(sigma, n), rules[below])
        wanted = {"Kendall's τ": [found["tau"].value], "Pearson's r": [found["r"].value]}
        close(one["numbers"], wanted | {"pairs": [found["pairs"]], "left out": [found["left out"]]})


def test_the_main_result_has_pythons_numbers_and_says_the_direction(show, surface):
    page, table = show(explorer("surface", {"one": surface}, view="glance")), surface.by_sigma()
    slider = page.get_by_role("slider")
    for k, row in table.iterrows():
        slider.fill(str(k))
        shown = [float(value.get_attribute("value")) for value in page.locator(".numbers data").all()]
        assert shown == pytest.approx([row["clean"], row["active"]])
        change = row["active minus clean"]
        word = "smoother:" if change.high < 0 else "rougher:" if change.low > 0 else "neither"
        assert word in page.locator(".words").inner_text()


def test_hide_and_seek_has_pythons_numbers(show, hiding):
    page = show(explorer("hiding", {"one": hiding}))
    sweep = page.evaluate(SWEEP)
    assert len(sweep) == 7 * (5 + 4 * 2), "the first attack has five numbers of covers, the other four have two"
    cost, ratios = hiding.cost().set_index(["attack", "covers"]), hiding.by_sigma().set_index(["attack", "covers", "sigma"])
    for one in sweep:
        group = one["settings"]["attack"].replace(", trigger ", "-"), int(one["settings"]["covers"].replace(",", ""))
        own = ratios.loc[(*group, float(one["settings"]["sigma"]))]
        wanted = {"success": [cost.loc[group, "success"].value], "ratio": [own["ratio"].value]}
        wanted |= {"W without the trigger": [own["W without"].value], "W with it": [own["W with"].value]}
        close(one["numbers"], wanted)
    assert page.locator(".explorer svg").first.locator(".mark").count() == 2 * 2 * 2, (
        "two networks, two kinds, two numbers of covers"
    )


def crafted_scores(part, kind: str, bound, sigma: float, batch: int, form: str) -> tuple[np.ndarray, np.ndarray]:
    """Scores of patterns crafted afterwards and of second clean batches, from the records; and which are which."""
    positive, scores = [], []
    points = part.size.pattern_points

    def w_of(spec):
        return entropy(part.records[spec].arrays["counts"][spec.sigmas.index(sigma), 0])

    for network in part.networks:
        clean, nothing = (w_of(batch_of(part.size, network, trigger, sigma))[:points] for trigger in (None, 0))
        patterns = {u.bound: u for u in universals_of(part.size, network)}
        crafted = patterns[bound] if kind == "universal" else cleanse_of(part.size, network)
        found = w_of(crafted_batch_of(part.size, crafted, sigma)).reshape(-1, points)
        for tested, own in [(nothing, False), *((w, True) for w in found)]:
            for start in range(0, points - batch + 1, batch):
                scores.append(levene(clean[start : start + batch], tested[start : start + batch], **FORMS[form]).score)
                positive.append(own)
    return np.array(positive), np.array(scores)


def test_patterns_has_pythons_numbers(show, detector):
    sweep = show(explorer("patterns", {"one": detector})).evaluate(SWEEP)
    choices = {one["settings"]["pattern"] for one in sweep}
    own = {"own triggers": None, "own triggers that work": None, "own trigger 1": 1, "own trigger 4": 4}
    universal = {f"universal perturbations, bound {bound}/255": bound for bound in (4, 8, 10, 16, 26)}
    assert choices == {*own, *universal, "patches of Neural Cleanse"}
    assert len(sweep) == (4 * 3 * 6 + 6 * 5) * 4  # 5 to 250 points at each of three levels, or 5 to 100 at the first
    of = functools.cache(lambda sigma, batch, form: detector.tests(sigma, batch=batch, form=form))
    crafted = functools.cache(functools.partial(crafted_scores, detector))
    for one in sweep:
        pattern, form = one["settings"]["pattern"], one["settings"]["form"]
        sigma, batch = float(one["settings"]["sigma"]), int(one["settings"]["size"])
        form, signed = next((known for known in ("median", "calibrated") if known in form), "paper"), "no direction" not in form
        if pattern in own:
            tests = of(sigma, batch, form)
            wanted = [own[pattern]] if own[pattern] else working(detector) if "work" in pattern else detector.size.trained
            tests = detector.trained_on(tests, wanted)
            positive, scores = tests["carried"] == "own", tests["score"] if signed else tests["score"].abs()
        else:
            kind = "universal" if pattern in universal else "reversed"
            positive, scores = crafted(kind, universal.get(pattern), sigma, batch, form)
            scores = scores if signed else abs(scores)
        wanted = roc_auc_score(positive, scores), positive.sum(), (~positive).sum()
        names = ("area under the curve", "batches to be found", "others")
        shown = [one["numbers"][name][0] for name in names]
        # Batches of the same few values in another order have the same score but for rounding: a tie in one of the two.
        assert shown == pytest.approx(wanted, abs=1e-2), one["settings"]


def test_the_scripts_functions_are_pythons(show, half):
    """Beyond what the controls reach: hard cases of the test, of the tail of F, of the estimators."""
    rng = np.random.default_rng(0)
    zeros = [0.0] * 6
    sizes = [(5, 5, 1), (25, 20, 0.1), (250, 250, 1), (100, 100, 9), (250, 100, 0.001), (2, 1, 1), (3, 2, 1)]
    batches = [(rng.gamma(0.3, size=a).tolist(), (scale * rng.gamma(0.3, size=b)).tolist()) for a, b, scale in sizes]
    batches += [(zeros, zeros), (zeros, [0.0, 1.0] * 3), ([0.0, 1.0] * 3, zeros), ([1.0], [2.0]), ([0.1] * 9, [0.3] * 9)]
    tails = [[f, d] for f in (1e-9, 0.3, 1, 4, 50, 900, 1e5) for d in (1, 2, 7, 48, 498)]
    counts = [[250], [249, 1], [125, 125], [7, 2, 1], [3, 3, 2, 1, 1], [999, 600, 1], [20_000, 30_000]]
    xs = [0.5, 1, 1.5, 2, 9.5, 10, 125, 125.5, 30_000]
    scores = [rng.integers(0, 5, 30).tolist(), rng.integers(0, 4, 40).tolist()]
    page = show(explorer("parameters", {"one": half}))
    found = page.evaluate(
        """async ([esm, batches, tails, counts, xs, scores]) => {
            const m = await import(URL.createObjectURL(new Blob([esm], {type: "text/javascript"})));
            return {
                scores: batches.flatMap(pair => [["mean"], ["median"], ["median", true]].map(form => m.levene(...pair, ...form))),
                tails: tails.map(([f, d]) => m.logTailOfF(f, d)),
                w: Object.values(m.estimators).map(estimator => counts.map(estimator)),
                digamma: xs.map(m.digamma), gamma: xs.map(m.logGamma),
                roc: m.roc(...scores), auc: m.auc(...scores),
                undefined: [m.kendall([1, 2, 3, 4], [1, 2, 4, 3]), m.pearson([1, 1, 1, 1, 1], [1, 2, 3, 4, 5]),
                            m.kendall([1, 2, 3, 4, 5], [4, 4, 4, 4, 4])],
            };
        }""",
        [Explorer._esm, batches, tails, counts, xs, scores],
    )
    wanted = [levene(np.array(a), np.array(b), **form).score for a, b in batches for form in FORMS.values()]
    assert 0.0 in wanted and 700.0 in wanted and -700.0 in wanted
    assert np.allclose(found["scores"], wanted, rtol=1e-9, atol=1e-12)
    with np.errstate(divide="ignore"):
        wanted = [stats.f.logsf(f, 1, d) for f, d in tails]
    there = np.isfinite(wanted)
    assert there.sum() > 30 and np.allclose(np.array(found["tails"])[there], np.array(wanted)[there], rtol=1e-9, atol=1e-14)
    assert (np.array(found["tails"])[~there] < -700).all()
    for w, estimator in zip(found["w"], ESTIMATORS.values(), strict=True):
        assert np.allclose(w, [float(estimator(row)) for row in counts], rtol=1e-12, atol=1e-14)
    assert np.allclose(found["digamma"], special.digamma(xs), rtol=1e-14)
    assert np.allclose(found["gamma"], special.gammaln(xs), rtol=1e-13, atol=1e-14)
    false, true, _ = roc_curve([1] * 30 + [0] * 40, [*scores[0], *scores[1]], drop_intermediate=False)
    assert np.allclose(found["roc"], np.transpose([false, true]))
    assert found["auc"] == pytest.approx(roc_auc_score([1] * 30 + [0] * 40, [*scores[0], *scores[1]]))
    assert np.isnan(found["undefined"]).all()


# --- the reader ------------------------------------------------------------------------------------------------------


def test_controls_have_names_and_follow_the_keyboard(show, half):
    page = show(explorer("parameters", {"one": half}))
    sigma, copies = page.get_by_label("Noise level σ"), page.get_by_label("Noisy copies n")
    numbers = page.locator(".numbers")
    assert numbers.get_attribute("aria-live") == "polite"
    assert (sigma.get_attribute("aria-valuetext"), copies.get_attribute("aria-valuetext")) == ("0.1", "10")
    before = numbers.inner_text()
    sigma.focus()
    page.keyboard.press("ArrowRight")
    assert sigma.get_attribute("aria-valuetext") == "0.25" and numbers.inner_text() != before
    page.keyboard.press("End")
    assert sigma.get_attribute("aria-valuetext") == "0.5"
    assert copies.is_hidden() and page.locator("[data-name=n]").inner_text().split("\n")[-1] == "10", "no dead control"
    page.keyboard.press("Home")
    page.keyboard.press("ArrowRight")
    assert copies.is_visible()
    page.keyboard.press("Tab")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.labels[0].textContent") == "Estimator"
    page.keyboard.press("ArrowDown")
    assert page.locator("[data-name=estimator] output").text_content() == "miller-madow"
    assert page.locator("[data-name=part] select").is_hidden(), "one data set: nothing to choose"
    for control in page.locator(".control :is(input, select)").all():
        assert control.get_attribute("data-lm-suppress-shortcuts") == "true"


def test_a_pair_says_what_it_is_to_keyboard_and_pointer(show, correlation):
    page = show(explorer("correlation", {"one": correlation}), has_touch=True)
    pairs = correlation.pairs()
    widest = pairs.loc[pairs["W"].idxmax()]
    points, detail = page.get_by_role("listbox"), page.locator(".detail")
    points.focus()
    page.keyboard.press("End")
    number, trigger, label = (int(widest[name]) for name in ("network", "trigger", "class"))
    name = f"network {number + 1}, trigger {trigger}, class {label}"
    said = f"{name}: success {100 * widest['success']:.1f}%, mean W {widest['W']:.3f}"
    assert detail.inner_text() == said + (", left out" if widest["success"] < 0.1 else "")
    chosen = page.locator("[role=option][aria-selected=true]")
    assert chosen.count() == 1 and points.get_attribute("aria-activedescendant") == chosen.get_attribute("id")
    assert chosen.get_attribute("aria-label") == detail.inner_text()
    page.keyboard.press("ArrowLeft")
    assert points.get_attribute("aria-activedescendant").endswith(f"-{len(pairs) - 2}")
    smallest = page.locator("[role=option]").last
    for reach in (smallest.hover, smallest.tap):
        points.focus()
        page.keyboard.press("Home")
        reach(force=True)
        assert detail.inner_text() == smallest.get_attribute("aria-label")
    hollow = page.locator("[role=option].hollow")
    assert hollow.count() == (pairs["success"] < 0.1).sum() > 0
    assert all(one.get_attribute("aria-label").endswith("left out") for one in hollow.all())


def test_it_fits_a_telephone_and_a_turned_one_and_its_data_come_as_csv(show, chapter, tmp_path):
    name, part = chapter
    page = show(explorer(name, {"one": part}), viewport={"width": 390, "height": 844})
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    page.set_viewport_size({"width": 844, "height": 390})
    page.wait_for_function(
        "document.querySelector('.explorer svg').clientWidth > 374 || document.querySelectorAll('.explorer svg').length > 1"
    )
    page.set_viewport_size({"width": 390, "height": 844})
    page.wait_for_function("document.documentElement.scrollWidth <= 390")
    with page.expect_download() as download:
        page.get_by_role("button", name="Data as CSV").click()
    assert download.value.suggested_filename == f"{name}.csv"
    download.value.save_as(tmp_path / "data.csv")
    with (tmp_path / "data.csv").open(newline="") as file:
        head, *rows = csv.reader(file)
    column, wanted = {
        "parameters": ("W", lambda: part.over_n()[:, 0, 0].ravel()),
        "surface": ("W active", lambda: part.w()[:, 1, part.size.sigmas.index(0.1)].ravel()),
        "correlation": ("mean W", lambda: part.pairs()["W"]),
        "patterns": ("score", lambda: part.tests().sort_values("carried", key=lambda c: c != "own", kind="stable")["score"]),
        "hiding": ("W with", lambda: [m["with"] for m in hide_and_seek.content([part])[0][0]["means"] if m["attack"] == "T1-1"]),
    }[name]
    assert np.allclose([float(row[head.index(column)]) for row in rows], wanted(), rtol=1e-9, atol=1e-12)
    assert {len(row) for row in rows} == {len(head)}


def test_without_scripts_there_are_words(show, half):
    page = show(explorer("parameters", {"one": half}), java_script_enabled=False)
    assert "need scripts" in page.locator("body").inner_text()
    assert "need scripts" not in show(explorer("parameters", {"one": half})).locator("body").inner_text()


def test_a_data_set_without_records_is_a_sentence(show, half, made_up_half):
    page = show(explorer("parameters", {"one": half, "two": made_up_half(half.size, networks=0)}))
    assert "Not yet run." in page.locator(".explorer").inner_text()
    assert page.locator("[data-name=part] select").is_hidden()
