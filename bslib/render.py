"""Verdicts, findings and provenance as Markdown for the pages of the book, and figure data as downloads."""

from __future__ import annotations

import base64
import json
from collections import Counter
from collections.abc import Iterable, Mapping
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from bslib.chapters import CHAPTERS, plan_of, records_for
from bslib.chapters.base import Results
from bslib.ledger import MARKS, VERDICTS, Claim, Entry, Finding, Test, claims_of, entries, findings_of, judge, measured_of
from bslib.markdown import markdown_table
from bslib.profiles import profile_named
from bslib.statistics import Estimate, Estimates
from bslib.store import Store, published_folder

if TYPE_CHECKING:
    from IPython.display import HTML

__all__ = [
    "bounds_text",
    "coverage_table",
    "downloads",
    "findings",
    "format_estimate",
    "further",
    "headlines",
    "in_short",
    "ledger_page",
    "provenance_table",
    "score",
    "verdicts",
]


def score(ledger: Iterable[Entry]) -> str:
    """A sentence with the number of claims for each verdict, and the number of verdicts that rest on one network.

    >>> score([])
    'no claims'
    """
    ledger = list(ledger)
    claimed = [entry for entry in ledger if not entry.claim.arithmetic and not entry.claim.ours]
    counts = Counter(entry.verdict for entry in claimed)
    if not claimed:
        return "no claims"
    judged = [entry for entry in claimed if entry.verdict != "not yet run"]
    single = sum(min(estimate.networks for estimate in entry.measured.values()) == 1 for entry in judged)
    alone = f", {single} of them judged by a single network" if single else ""
    verdicts = ", ".join(f"{counts[verdict]} {verdict}" for verdict in VERDICTS if counts[verdict])
    arithmetic = sum(entry.claim.arithmetic for entry in ledger)
    apart = [f"{arithmetic} on how the paper's own numbers fit together"] if arithmetic else []
    apart += [f"{asked} that we ask besides"] if (asked := sum(entry.claim.ours for entry in ledger)) else []
    return f"{verdicts}; {len(claimed)} claims in all{alone}" + (f"; and {' and '.join(apart)}" if apart else "")


def verdicts(chapter: str, quantities: Mapping[str, Estimate]) -> str:
    """The verdicts on a chapter's claims as a Markdown table with a legend.

    Small print under each claim gives the paper's number and the rule; under each number, the bounds.

    >>> print(verdicts("parameters", {}).splitlines()[2][:60])
    | The small Fashion-MNIST network reaches an accuracy of aro
    """
    rows = []
    for claim in claims_of(chapter):
        small = f"<small>{claim.where}. The paper: {claim.paper}. Held to: {claim.reading}.</small>"
        rows.append((f"{claim.says}<br>{small}", _with_bounds(claim, quantities), f"**{judge(claim, quantities)}**"))
    marks = "✓ the whole 95 % interval is within the bound, ✗ all of it is outside, ~ neither. What is given has to hold first."
    return f"{markdown_table(['Claim', 'Measured', 'Verdict'], rows)}\n\n<small>{marks}</small>"


def findings(chapter: str, quantities: Mapping[str, Estimate]) -> str:
    """The findings of a chapter as a Markdown list with their numbers. Findings that the records do not support are marked.

    >>> findings("parameters", {})
    '(Not yet run.)'
    """
    return _as_list([f for f in findings_of(chapter) if not f.short], quantities) or "(Not yet run.)"


def in_short(numbers: Mapping[str, Estimates]) -> str:
    """The answers of some chapters in a box in MyST Markdown: their short findings and, for several chapters, the score.

    ``numbers`` is the result of :func:`bslib.ledger.numbers`, or a part of it.

    >>> print(in_short({"surface": Estimates()}))
    :::{admonition} In short
    (Not yet run.)
    :::
    """
    chosen = [(f, own) for name, own in numbers.items() for f in findings_of(name) if f.short]
    chosen.sort(key=lambda pair: pair[0].short)
    lines = [line for finding, own in chosen if (line := _as_list([finding], own, bold=True))]
    if len(numbers) > 1:
        lines.append(f"- **How sure.** {score(entries(numbers))}.")
    return "\n".join([":::{admonition} In short", *(lines or ["(Not yet run.)"]), ":::"])


def headlines(numbers: Mapping[str, Estimates]) -> str:
    """The headline findings of all chapters as a Markdown list, for the landing page.

    ``numbers`` is what :func:`bslib.ledger.numbers` gives. The first sentence of each finding is bold.

    >>> headlines({"parameters": Estimates()})
    '(Not yet run.)'
    """
    lists = [_as_list([f for f in findings_of(chapter) if f.headline], own, bold=True) for chapter, own in numbers.items()]
    return "\n".join(filter(None, lists)) or "(Not yet run.)"


def ledger_page(ledger: Iterable[Entry]) -> str:
    """The ledger as a MyST Markdown table with references to figures; ``ledger.js`` filters and sorts it."""
    rows = []
    for entry in ledger:
        claim = entry.claim
        here = f"{{numref}}`{claim.figure}`" if claim.figure else f"[{entry.chapter}](./{entry.page}.ipynb)"
        says = f"{claim.says}<br><small>{claim.where}; here {here}. Held to: {claim.reading}.</small>"
        rows.append((says, claim.paper, _with_bounds(claim, entry.measured), f"**{entry.verdict}**"))
    return f":::{{container}} ledger\n\n{markdown_table(['Claim', 'The paper', 'Ours', 'Verdict'], rows, empty='')}\n:::"


def downloads(results: Mapping[str, Results[Any]], drawings: Iterable[Any]) -> HTML:
    """Links to the tables of the figures as CSV files, for each data set. The links contain the files.

    Parameters
    ----------
    results : mapping of str to Results
        As a chapter's ``load`` gives them.
    drawings : iterable of callable
        The chapter's ``FIGURES``.
    """
    from IPython.display import HTML

    lines = []
    for dataset, part in results.items():
        tables = {} if part.missing else {drawing.__name__: flat(drawing.table(part)) for drawing in drawings}
        links = [_csv_link(f"{name}-{dataset}", table) for name, table in tables.items() if not table.empty]
        lines.append(f"{dataset}: {' · '.join(links) or 'no numbers yet'}")
    return HTML("".join(f'<p class="downloads">{line}</p>' for line in lines))


def _csv_link(name: str, table: pd.DataFrame) -> str:
    content = base64.b64encode(table.to_csv(index=False, float_format="%.6g").encode()).decode()
    return f'<a download="{name}.csv" href="data:text/csv;base64,{content}">{name.rsplit("-", 1)[0]}</a>'


def further(others: Iterable[Results[Any]], drawings: Iterable[Any]) -> None:
    """Display the figures of data sets that a chapter's text does not mention.

    Parameters
    ----------
    others : iterable of Results
    drawings : iterable of callable
        The chapter's ``FIGURES``.
    """
    from IPython.display import Markdown, display

    for part in others:
        display(Markdown(f"**{part.size.dataset}**"), *[drawing(part) for drawing in drawings])


def flat(table: pd.DataFrame) -> pd.DataFrame:
    """Replace columns of estimates by columns of numbers: value, low, high and networks.

    >>> flat(pd.DataFrame({"sigma": [0.1], "AUC": [Estimate(0.9, 0.8, 1.0, 5)]})).to_dict("records")
    [{'sigma': 0.1, 'AUC': 0.9, 'AUC low': 0.8, 'AUC high': 1.0, 'AUC networks': 5}]
    """
    columns: dict[str, Any] = {}
    for name, column in table.items():
        if len(column) and isinstance(column.iloc[0], Estimate):
            columns[str(name)] = [e.value for e in column]
            for part in ("low", "high", "networks"):
                columns[f"{name} {part}"] = [getattr(e, part) for e in column]
        else:
            columns[str(name)] = column.to_list()
    return pd.DataFrame(columns)


def provenance_table(*, profile: str, seed: int = 0, store: str | Path | Store | None = None) -> str:
    """The provenance of a profile's records as a Markdown table: data, computing time, processors, versions and dates.

    The parameters are those of :func:`bslib.ledger.numbers`.
    """
    plan = [spec for chapter in CHAPTERS for spec in plan_of(chapter, profile, seed=seed)]
    records = records_for(plan, store or profile_named(profile).store)
    table = pd.DataFrame(
        {
            "data": f"{r.data['source']} ({r.data['fingerprint'][:8]})" if r.data else "made up in the plane",
            "kind": r.spec.kind,
            "seconds": r.provenance["seconds"],
            "device": r.provenance["device"],
            "torch": r.provenance["torch"],
            "code": r.provenance["code"],
            "date": r.provenance["date"][:10],
        }
        for r in records.values()
    )
    head = ["Data (fingerprint)", "Kind of record", "Records", "Computing time", "On", "torch", "bslib", "Dates"]
    rows = []
    for (data, kind), own in table.groupby(["data", "kind"]) if len(table) else ():
        of = ("<br>".join(sorted(own[name].unique())) for name in ("device", "torch", "code", "date"))
        rows.append((data, kind, len(own), timedelta(seconds=round(own["seconds"].sum())), *of))
    took = timedelta(seconds=round(table["seconds"].sum()) if len(table) else 0)
    there = f"{len(records)} of the {len(set(plan))} records of profile {profile} are there; they took {took}."
    return f"{markdown_table(head, rows, empty='')}\n\n{there}"


def coverage_table() -> str:
    """How often intervals contain the truth in simulated experiments, as a Markdown table (``benchmarks/coverage.py``)."""
    result = json.loads((published_folder().parent / "coverage.json").read_text("utf-8"))
    table = pd.DataFrame(result["rows"]).pivot(index="quantity", columns="networks", values="coverage")
    rows = [(name, *(f"{fraction:.1%}" for fraction in row)) for name, row in table.iterrows()]
    head = ["intervals of", *(f"{networks} networks" for networks in table.columns)]
    return f"{markdown_table(head, rows)}\n\nEach from {result['runs']} experiments with networks and points made up at random."


def bounds_text(claim: Claim, quantities: Mapping[str, Estimate]) -> dict[str, str]:
    """The bounds of each quantity of a claim, with a mark for the outcome.

    ✓: the whole interval is within the bound; ✗: all of it is outside; ~: neither. Preconditions are in parentheses.

    >>> bounds_text(claims_of("parameters")[0], {"accuracy.fashion-mnist": Estimate(0.88, 0.87, 0.89, 5)})
    {'accuracy.fashion-mnist': '0.865 to 0.895 ✓'}
    """

    def fares(test: Test) -> str:
        text = f"{test} {MARKS[test.outcome(quantities[test.quantity])]}"
        return f"(given {text})" if test.given else text

    return {
        name: ", ".join(fares(test) for test in claim.tests if test.quantity == name) for name in measured_of(claim, quantities)
    }


def format_estimate(estimate: Estimate) -> str:
    """An estimate with three decimals, or in scientific notation if all of it is below 0.001.

    Numbers without networks have no interval, nor have whole numbers above 1 without width, such as epochs.

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
    return text if estimate.networks else text.split(" [")[0]


def _as_list(some: Iterable[Finding], quantities: Mapping[str, Estimate], *, bold: bool = False) -> str:
    """One line for each finding that has records, optionally with a bold first sentence."""
    lines = []
    for finding in some:
        if any(test.quantity not in quantities for test in finding.tests):
            continue
        measured = [quantities[test.quantity] for test in finding.tests]
        holds = all(test.outcome(estimate) for test, estimate in zip(finding.tests, measured, strict=True))
        doubt = "" if holds else "**Not borne out by these records:** "
        says = "**{}.** {}".format(*finding.says.split(". ", 1)) if bold else finding.says
        lines.append(f"- {doubt}{says.format(*map(format_estimate, measured))}{_networks_in_words(measured, ' ')}")
    return "\n".join(lines)


def _with_bounds(claim: Claim, quantities: Mapping[str, Estimate]) -> str:
    """The numbers of a claim for a table cell, with the bounds in small print."""
    bounds = bounds_text(claim, quantities)
    lines = [f"{format_estimate(quantities[name])}<br><small>{bounds[name]}</small>" for name in bounds]
    return "<br>".join(lines) + _networks_in_words(quantities[name] for name in bounds)


def _networks_in_words(measured: Iterable[Estimate], before: str = "<br>") -> str:
    """The smallest number of networks behind some estimates, in small print; empty without estimates."""
    least = min((estimate.networks for estimate in measured), default=0)
    return f"{before}<small>{least} network{'s' if least > 1 else ''}</small>" if least else ""
