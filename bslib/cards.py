"""Claims as cards that show each interval against its bound, the ledger made of them, and the score as a bar, in HTML.

The HTML has no line breaks, so that Markdown passes it through. ``custom.css`` has the colours, ``ledger.js`` the filters.
"""

from __future__ import annotations

import base64
import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import replace
from html import escape
from math import isfinite
from urllib.parse import quote_plus

import pandas as pd

from bslib.chapters.defence.scores import TESTS
from bslib.chapters.outcomes import attack_in_words
from bslib.datasets import DATASETS
from bslib.ledger import MARKS, MOST_REPEATS, VERDICTS, Entry, Test, as_data, entries, repeats_needed
from bslib.statistics import Estimate, Estimates

__all__ = ["card", "format_estimate", "label", "ledger_page", "moved_rules", "open_claims", "score", "score_bar", "verdicts"]

ICONS = dict(zip(VERDICTS, "✓½✗?–…", strict=True))
#: What verdicts are called on questions of our own: there is nothing to reproduce.
OF_OURS = {"reproduced": "confirmed", "not reproduced": "not confirmed"}
OUTCOMES = {True: "holds", False: "fails", None: "open"}
#: Words for parts of the names of quantities that are not words themselves.
WORDS = {
    "less": "minus", "auc": "area (AUC)", "own": "own trigger", "r": "Pearson's r", "tau": "Kendall's τ", "p": "p-value",
    "share": "fraction", "fashion-mnist": "Fashion-MNIST", "cifar10": "CIFAR-10",
}  # fmt: skip
#: Where noise falls, in names of quantities.
PLACES = {"trigger": "noise on it", "rest": "noise beside it", "all": "noise everywhere"}


def label(quantity: str, *, noise: bool = False) -> tuple[str, str, str]:
    """The name of a quantity in words: what it is, its data set, and its noise level, trigger, bound, batch or number of covers.

    Numbers with a fraction are noise levels. Whole numbers are noise levels if ``noise``; otherwise they are triggers, bounds of
    universal perturbations, or a sample size.

    >>> label("active_less_clean.fashion-mnist.0.05"), label("own_success.cifar10.3")
    (('active minus clean', 'Fashion-MNIST', 'σ = 0.05'), ('own trigger success', 'CIFAR-10', 'trigger 3'))
    >>> label("as_wanted.fashion-mnist.T1-4.rest.1")[2], label("beside_less_clean.fashion-mnist.T1-1.0.1")[2]
    ('T1, trigger 4, noise beside it, σ = 1', 'T1, trigger 1, σ = 0.1')
    >>> label("batch_rate.fashion-mnist.T1.mann-whitney.25.0.25")[2], label("ratio.fashion-mnist.T1-1.9000.0.05")[2]
    ('T1, mann-whitney, 25 images, σ = 0.25', 'T1, trigger 1, 9,000 covers, σ = 0.05')
    """
    stem, *rest = re.findall(r"(?:(?<![^._ ])0\.\d+|[^.])+", quantity)
    datasets = [part for part in rest if part in DATASETS]
    if len(datasets) > 1:
        rest.remove("less")
    rest = [part for part in rest if part not in datasets]
    whole = "bound {}/255" if "universal" in stem else "n = {}" if "reported" in stem else "trigger {}"
    details = [_detail(part, rest[:k], rest, "σ = {}" if noise else whole) for k, part in enumerate(rest)]
    return _in_words(stem), " minus ".join(WORDS.get(d, d) for d in datasets), ", ".join(details).replace(", minus, ", " minus ")


def _detail(part: str, before: list[str], rest: list[str], whole: str) -> str:
    """One part of the name of a quantity in words; ``whole`` is the form of whole numbers that nothing else explains."""
    attacked, last = any(re.fullmatch(r"T\d(-\d)?", other) for other in before), before[-1] if before else ""
    if re.fullmatch(r"T\d-\d", part):
        return attack_in_words(part)
    if part in PLACES and attacked:
        return PLACES[part]
    if re.fullmatch(r"0\.\d+", part) or (last in PLACES and part.isdigit()):
        return f"σ = {part}"
    if not part.isdigit():
        return _in_words(part)
    if last in TESTS:
        return f"{part} images"
    if "less" in rest and attacked:
        return f"{part} copies"
    return f"{int(part):,} covers" if attacked and last.startswith("T") and int(part) != 1 else whole.format(part)


def _in_words(name: str) -> str:
    return " ".join(WORDS.get(word, word) for word in name.split("_"))


def format_estimate(estimate: Estimate) -> str:
    """An estimate with three decimals, or in scientific notation if all of it is below 0.001.

    Numbers without repeats have no interval, nor have whole numbers above 1 without width, such as epochs.

    >>> format_estimate(Estimate(0.5, 0.4, 0.6, 5)), format_estimate(Estimate(7e-5, 7e-5, 7e-5, 0))
    ('0.500 [0.400, 0.600]', '7.0e−05')
    >>> format_estimate(Estimate(10, 10, 10, 1))
    '10'
    """
    if estimate.low == estimate.value == estimate.high > 1 and float(estimate.value).is_integer():
        return f"{estimate.value:g}"
    largest = max(abs(number) for number in (estimate.value, estimate.low, estimate.high))
    digits = ".1e" if 0 < largest < 1e-3 else ".3f"
    text = f"{estimate:{digits}}"
    return text if estimate.repeats else text.split(" [")[0]


def verdicts(chapter: str, quantities: Mapping[str, Estimate]) -> str:
    """The verdicts on a chapter's claims as cards.

    >>> verdicts("parameters", {}).count("<article")
    20
    """
    legend = (
        "Each line is a measured number. The interval has to lie in the shaded part: ✓ all of it does, ✗ none, ~ some of it. "
        '<a href="ledger.html">The ledger</a> has the rules and the claims of all chapters.'
    )
    cards = "".join(card(entry) for entry in entries({chapter: Estimates(quantities)}))
    return f'<div class="claims"><p class="legend">{legend}</p>{cards}</div>'


def card(entry: Entry) -> str:
    """A claim, its verdict, its intervals against their bounds, and, folded, the rule and the statistics."""
    claim = entry.claim
    datasets = [d for d in DATASETS if any(d in test.quantity.split(".") for test in claim.tests)]
    place, what = (f"#{claim.figure}", "figure") if claim.figure else ("", "chapter")
    shown = f'<a href="{entry.page}.html{place}">{what}</a>'
    about = filter(None, [escape(claim.where), *(WORDS.get(d, d) for d in datasets), KINDS[kind_of(entry)], shown])
    notes = "".join(f'<p class="why">{escape(text)}</p>' for text in (_why(entry), claim.note and f"{claim.note}.") if text)
    moved = f"<p><b>The rule moved:</b> {escape(claim.moved)}.</p>" if claim.moved else ""
    icon = f'<span aria-hidden="true">{ICONS[entry.verdict]}</span>'
    called = OF_OURS.get(entry.verdict, entry.verdict) if claim.ours else entry.verdict
    badge = f'<span class="verdict" data-is="{entry.verdict}">{icon} {called}</span>'
    link = f'<a class="permalink" href="ledger.html#{claim.id}" aria-label="Link to the claim {claim.id}">#</a>'
    return (
        f'<article class="claim" id="{claim.id}" aria-label="{claim.id}" data-verdict="{entry.verdict}" '
        f'data-chapter="{entry.chapter}" data-kind="{kind_of(entry)}" data-sets="{" ".join(datasets)}">'
        f'<p class="head">{badge} <span class="says">{escape(claim.says)}</span> {link}</p>'
        f'<p class="about">{" · ".join(about)}</p>{_plot(entry)}{notes}{_calibrated(entry)}'
        f"<details><summary>Rule and numbers</summary><p><b>The paper:</b> {escape(claim.paper)}.</p>"
        f"<p><b>Rule:</b> {escape(claim.reading)}.</p>{moved}{_statistics(entry)}</details></article>"
    )


def _calibrated(entry: Entry) -> str:
    """The numbers and the verdict of the calibrated test, if the claim is judged by it as well."""
    if (other := entry.calibrated) is None:
        return ""
    own = replace(other, measured={name: value for name, value in other.measured.items() if name not in entry.measured})
    return f'<p class="why">By the calibrated test: <b>{other.verdict}</b>.</p>{_plot(own)}'


#: What a claim is, for the filter and in words.
KINDS = {"paper": "", "tuned": "we chose settings for it", "ours": "asked by us", "arithmetic": "the paper's own numbers"}


def kind_of(entry: Entry) -> str:
    """Whether a claim is the paper's, one that our settings were chosen for, ours, or about the paper's own numbers."""
    return next((kind for kind in ("arithmetic", "ours", "tuned") if getattr(entry.claim, kind)), "paper")


def _why(entry: Entry) -> str:
    """What a verdict without an answer lacks."""
    tests, measured = entry.claim.tests, entry.measured
    if entry.verdict == "setting not met":
        failed = next(t for t in tests if t.given and t.outcome(measured[t.quantity]) is False)
        what, data, detail = label(failed.quantity)
        named = ", ".join(filter(None, (what, data, detail)))
        return f"Not judged. The claim presupposes {named} {failed}, and it is {format_estimate(measured[failed.quantity])}."
    if entry.verdict != "too little evidence":
        return ""
    there = min((estimate.repeats for estimate in measured.values() if estimate.repeats), default=0)
    wanted = repeats_needed(entry.claim, measured)
    if wanted is None:
        return f"There are {there} repeats. More than {MOST_REPEATS} would be needed, if the numbers stay where they are."
    return f"There are {there} repeat{'s' * (there != 1)}. About {wanted} would decide, if the numbers stay where they are."


def _plot(entry: Entry) -> str:
    """A line for each bound on a quantity: its label, its interval on a scale with the bound, and its value."""
    rows, last, measured = [], None, entry.measured
    several = len({label(test.quantity)[1] for test in entry.claim.tests}) > 1
    there = [test for test in entry.claim.tests if test.quantity in measured]
    for test in there:
        family = [other for other in there if other.quantity.split(".")[0] == test.quantity.split(".")[0]]
        ends = [x for other in family for x in (*_ends(measured[other.quantity]), other.at_least, other.at_most) if x is not None]
        pad = 0.06 * (max(ends) - min(ends)) or 0.5
        noise = any(re.search(r"(?<![^.])0\.\d", other.quantity) for other in family)
        what, data, detail = label(test.quantity, noise=noise)
        if (what, test.given) != last:
            rows.append(f'<p class="what">{"Presupposed: " * test.given}{what}</p>')
            last = (what, test.given)
        outcome, estimate = test.outcome(measured[test.quantity]), measured[test.quantity]
        value = re.sub(" (.*)", r" <small>\1</small>", format_estimate(estimate))  # the interval in small print
        rows.append(
            f'<div class="line {OUTCOMES[outcome]}"><span class="name">{detail or data * several} '
            f"<small>{test}{', can only refute' * test.refutes}</small></span>"
            f"{_track(test, estimate, min(ends) - pad, max(ends) + pad)}"
            f'<span class="value">{value} <span class="fares">{MARKS[outcome]}</span></span></div>'
        )
    return f'<div class="plot">{"".join(rows)}</div>'


def _ends(estimate: Estimate) -> tuple[float, float]:
    """The ends of the interval, or the value if there is none."""
    low, high = (end if isfinite(end) else estimate.value for end in (estimate.low, estimate.high))
    return (low, high) if isfinite(low) else (0.0, 0.0)


def _track(test: Test, estimate: Estimate, start: float, stop: float) -> str:
    """An interval on a scale from ``start`` to ``stop``, with the part shaded in which it has to lie."""

    def place(x: float) -> str:
        return f"{100 * (x - start) / (stop - start):.2f}%"

    low, high = (end if end is not None else side for end, side in ((test.at_least, start), (test.at_most, stop)))
    first, last = _ends(estimate)
    bounds = "".join(
        f'<line class="bound" x1="{place(x)}" x2="{place(x)}" y1="0" y2="100%"/>'
        for x in (test.at_least, test.at_most)
        if x is not None
    )
    dot = f'<circle cx="{place(estimate.value)}" cy="50%" r="4.5"/>' if isfinite(estimate.value) else ""
    width = f"{100 * (high - low) / (stop - start):.2f}%"
    return (
        f'<svg class="track" aria-hidden="true"><rect class="zone" x="{place(low)}" width="{width}" height="100%"/>{bounds}'
        f'<line class="reach" x1="{place(first)}" x2="{place(last)}" y1="50%" y2="50%"/>{dot}</svg>'
    )


def _statistics(entry: Entry) -> str:
    """The quantities of a claim by their names in the CSV file, with bounds and repeats."""
    rows = []
    for test in entry.claim.tests:
        estimate = entry.measured.get(test.quantity)
        numbers = (format_estimate(estimate), str(estimate.repeats or "")) if estimate else ("not yet run", "")
        rows.append(f"<tr><td><code>{test.quantity}</code></td><td>{numbers[0]}</td><td>{test}</td><td>{numbers[1]}</td></tr>")
    head = "".join(f'<th scope="col">{name}</th>' for name in ("Quantity", "Ours", "Bound", "Repeats"))
    return (
        f'<div class="scroll" tabindex="0" role="group" aria-label="Numbers"><table><tr>{head}</tr>{"".join(rows)}</table></div>'
    )


def score(ledger: Iterable[Entry]) -> str:
    """A sentence with the number of claims for each verdict, and the number of verdicts that rest on one network.

    >>> score([])
    'no claims'
    """
    ledger = list(ledger)
    claimed = [entry for entry in ledger if kind_of(entry) == "paper"]
    counts = Counter(entry.verdict for entry in claimed)
    if not claimed:
        return "no claims"
    judged = [entry for entry in claimed if entry.verdict != "not yet run"]
    single = sum({estimate.repeats for estimate in entry.measured.values()} <= {0, 1} for entry in judged)
    alone = f", {single} of them judged by a single seed" if single else ""
    listed = ", ".join(f"{counts[verdict]} {verdict}" for verdict in VERDICTS if counts[verdict])
    kinds = Counter(map(kind_of, ledger))
    apart = [f"{kinds['arithmetic']} on how the paper's own numbers fit together"] if kinds["arithmetic"] else []
    apart += [f"{kinds['tuned']} that our settings were chosen for"] if kinds["tuned"] else []
    apart += [f"{kinds['ours']} that we ask besides"] if kinds["ours"] else []
    return f"{listed}; {len(claimed)} claims in all{alone}" + "".join(f"; {text}" for text in apart)


def score_bar(ledger: Iterable[Entry]) -> str:
    """The verdicts on the paper's claims as a bar, whose parts open the filtered ledger."""
    counts = Counter(entry.verdict for entry in ledger if kind_of(entry) == "paper")
    parts = "".join(
        f'<a class="verdict" data-is="{verdict}" style="flex-grow:{counts[verdict]}" '
        f'href="ledger.html?verdict={quote_plus(verdict)}#the-claims">'
        f"<b>{counts[verdict]}</b> {verdict}</a>"
        for verdict in VERDICTS
        if counts[verdict]
    )
    return f'<nav class="score" aria-label="The paper\'s {counts.total()} claims by verdict">{parts}</nav>'


def ledger_page(ledger: Iterable[Entry]) -> str:
    """Every claim as a card, with downloads; ``ledger.js`` adds the search and the filters."""
    ledger = list(ledger)
    data = as_data(ledger)
    table = pd.DataFrame(
        {name: row[name] for name in ("id", "chapter", "where", "says", "paper", "held to", "verdict")}
        | {"kind": kind_of(entry), "quantity": bound["quantity"], "at least": bound["at_least"], "at most": bound["at_most"]}
        | row["measured"].get(bound["quantity"], {})
        for entry, row in zip(ledger, data, strict=True)
        for bound in row["bounds"]
    )
    files = {"ledger.csv": table.to_csv(index=False, float_format="%.6g"), "ledger.json": json.dumps(data, ensure_ascii=False)}
    links = " · ".join(file_link(name, content, name) for name, content in files.items())
    cards = "".join(map(card, ledger))
    return f'<div class="claims ledger"><p class="downloads">Download: {links}</p>{cards}</div>'


def file_link(name: str, content: str, text: str) -> str:
    """A link that contains a file."""
    kind = "application/json" if name.endswith(".json") else "text/csv"
    return f'<a download="{name}" href="data:{kind};base64,{base64.b64encode(content.encode()).decode()}">{text}</a>'


def moved_rules(ledger: Iterable[Entry]) -> str:
    """The rules that were changed or added after the records had been made, as a list: how, when, and the verdict before."""
    dated: dict[str, list[str]] = {}
    for entry in ledger:
        if entry.claim.moved:
            dated.setdefault(entry.claim.moved, []).append(_to_card(entry, entry.claim.id))
    return _as_list(f"{', '.join(links)}: {escape(said).rstrip('.')}." for said, links in dated.items())


def open_claims(ledger: Iterable[Entry]) -> str:
    """The claims without an answer and what would decide them, as a list, the nearest decision first."""
    lacking = [entry for entry in ledger if entry.verdict in ("too little evidence", "setting not met")]
    lacking.sort(key=lambda e: (e.verdict == "setting not met", repeats_needed(e.claim, e.measured) or MOST_REPEATS + 1))
    return _as_list(f"{_to_card(entry, entry.claim.says)} {escape(_why(entry))}" for entry in lacking)


def _to_card(entry: Entry, text: str) -> str:
    return f'<a href="ledger.html#{entry.claim.id}">{escape(text)}</a>'


def _as_list(items: Iterable[str]) -> str:
    return f'<ul class="claims">{"".join(f"<li>{item}</li>" for item in items)}</ul>'
