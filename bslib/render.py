"""Findings and provenance as Markdown for the pages of the book, and figure data as downloads."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from bslib.cards import file_link, format_estimate
from bslib.chapters import CHAPTERS, plan_of, records_for
from bslib.chapters.base import Results
from bslib.ledger import MARKS, Claim, Finding, findings_of
from bslib.markdown import markdown_table
from bslib.profiles import profile_named
from bslib.specs import CountsSpec, DomainSpec, NetworkSpec
from bslib.statistics import Estimate, Estimates
from bslib.store import Records, Store, published_folder

if TYPE_CHECKING:
    from IPython.display import HTML

__all__ = [
    "bounds_text", "coverage_table", "downloads", "evidence_in_words", "findings", "further", "headlines", "in_short", "networks",
    "provenance_table",
]  # fmt: skip


def findings(chapter: str, quantities: Mapping[str, Estimate]) -> str:
    """The findings of a chapter as a Markdown list with their numbers. Findings that the records do not support are marked.

    >>> findings("parameters", {})
    '(Not yet run.)'
    """
    return _as_list([f for f in findings_of(chapter) if not f.short], quantities) or "(Not yet run.)"


def in_short(numbers: Mapping[str, Estimates], *, evidence: str = "") -> str:
    """The short findings of some chapters in a box in MyST Markdown, with intervals unless there is a line of evidence.

    Parameters
    ----------
    numbers : mapping of str to Estimates
        The result of :func:`bslib.ledger.numbers`, or a part of it.
    evidence : str
        A last line, from :func:`evidence_in_words`.

    >>> print(in_short({"surface": Estimates()}))
    :::{admonition} In short
    (Not yet run.)
    :::
    """
    one = len(numbers) == 1
    chosen = [(f, own) for name, own in numbers.items() for f in findings_of(name) if f.short and (one or f.short < 10)]
    chosen.sort(key=lambda pair: pair[0].short)
    lines = [line for finding, own in chosen if (line := _as_list([finding], own, bold=True, intervals=not evidence))]
    if evidence:
        lines.append(f"- **How much evidence.** {evidence}")
    return "\n".join([":::{admonition} In short", *(lines or ["(Not yet run.)"]), ":::"])


def evidence_in_words(*, profile: str, seed: int = 0, store: str | Path | Store | None = None) -> str:
    """The numbers of networks and inputs that are measured; the parameters are those of :func:`bslib.ledger.numbers`."""
    networks, treated, inputs = Counter[str](), Counter[str](), 0
    for record in _records(profile, seed, store)[0].values():
        if isinstance(record.spec, NetworkSpec):
            (networks if record.spec.treatment is None else treated)[record.data["source"]] += 1
        elif isinstance(record.spec, CountsSpec):
            inputs += record.arrays["counts"].shape[2]
        elif isinstance(record.spec, DomainSpec):
            networks[record.data["source"]] += 1
            inputs += 2 * record.spec.points  # with and without the trigger
    copies = {name: f" and {count} copies of some of them after a treatment" * (count > 0) for name, count in treated.items()}
    said = (f"{n} networks on {name}{copies.get(name, '')}" for name, n in networks.items())
    return f"{'; '.join(said)}. W was measured {inputs:,} times: one network, one input, with or without a trigger."


def headlines(numbers: Mapping[str, Estimates]) -> str:
    """The headline findings of all chapters as a Markdown list, for the landing page.

    ``numbers`` is what :func:`bslib.ledger.numbers` gives. The first sentence of each finding is bold.

    >>> headlines({"parameters": Estimates()})
    '(Not yet run.)'
    """
    lists = [_as_list([f for f in findings_of(chapter) if f.headline], own, bold=True) for chapter, own in numbers.items()]
    return "\n".join(filter(None, lists)) or "(Not yet run.)"


def downloads(results: Mapping[str, Results[Any]], drawings: Iterable[Any]) -> HTML:
    """Links to the tables of a chapter's ``FIGURES`` as CSV files, for each data set. The links contain the files.

    ``results`` is what the chapter's ``load`` gives.
    """
    from IPython.display import HTML

    lines = []
    for dataset, part in results.items():
        tables = {} if part.missing else {drawing.__name__: flat(drawing.table(part)) for drawing in drawings}
        files = {name: table.to_csv(index=False, float_format="%.6g") for name, table in tables.items() if not table.empty}
        links = [file_link(f"{name}-{dataset}.csv", content, name) for name, content in files.items()]
        lines.append(f"{dataset}: {' · '.join(links) or 'no numbers yet'}")
    return HTML("".join(f'<p class="downloads">{line}</p>' for line in lines))


def networks(results: Mapping[str, Results[Any]]) -> str:
    """What the networks of a chapter are, as a Markdown table for each data set with records.

    ``results`` is what a chapter's ``load`` gives.
    """
    parts = [f"**{part.size.dataset}**\n\n{part.about_networks()}" for part in results.values() if part.networks]
    return "\n\n".join(parts) or "(Not yet run.)"


def further(others: Iterable[Results[Any]], drawings: Iterable[Any]) -> None:
    """Display a chapter's ``FIGURES`` of data sets that its text does not mention."""
    from IPython.display import Markdown, display

    for part in others:
        display(Markdown(f"**{part.size.dataset}**"), *[drawing(part) for drawing in drawings])


def flat(table: pd.DataFrame) -> pd.DataFrame:
    """Replace columns of estimates by columns of numbers: value, low, high and repeats.

    >>> flat(pd.DataFrame({"sigma": [0.1], "AUC": [Estimate(0.9, 0.8, 1.0, 5)]})).to_dict("records")
    [{'sigma': 0.1, 'AUC': 0.9, 'AUC low': 0.8, 'AUC high': 1.0, 'AUC repeats': 5}]
    """
    columns: dict[str, Any] = {}
    for name, column in table.items():
        if len(column) and isinstance(column.iloc[0], Estimate):
            for part in ("value", "low", "high", "repeats"):
                columns[f"{name} {part}".removesuffix(" value")] = [getattr(e, part) for e in column]
        else:
            columns[str(name)] = column.to_list()
    return pd.DataFrame(columns)


def provenance_table(*, profile: str, seed: int = 0, store: str | Path | Store | None = None) -> str:
    """The provenance of a profile's records as a Markdown table: data, computing time, processors, versions and dates.

    The parameters are those of :func:`bslib.ledger.numbers`.
    """
    records, planned = _records(profile, seed, store)
    table = pd.DataFrame(
        {
            "data": f"{r.data['source']} ({r.data['fingerprint'][:8]})" if r.data else "points made up in the plane",
            "kind": r.spec.kind,
            **r.provenance,
            "date": r.provenance["date"][:10],
        }
        for r in records.values()
    )
    head = ["Data (fingerprint)", "Kind of record", "Records", "Computing time", "On", "torch", "bslib", "Dates"]
    rows = []
    for (data, kind), own in table.groupby(["data", "kind"]) if len(table) else ():
        of = (_listed(sorted(own[name].unique())) for name in ("device", "torch", "code", "date"))
        rows.append((data, kind, len(own), timedelta(seconds=round(own["seconds"].sum())), *of))
    took = timedelta(seconds=round(table["seconds"].sum()) if len(table) else 0)
    there = f"{len(records)} of the {planned} records of profile {profile} are there; computing them took {took}."
    return f"{markdown_table(head, rows, empty='')}\n\n{there}"


def _listed(texts: list[str]) -> str:
    return "<br>".join(texts if len(texts) <= 4 else [*texts[:3], f"and {len(texts) - 3} more"])


def _records(profile: str, seed: int, store: str | Path | Store | None) -> tuple[Records, int]:
    """The records of a profile that exist, and the number of those that it plans."""
    plan = [spec for chapter in CHAPTERS for spec in plan_of(chapter, profile, seed=seed)]
    return records_for(plan, store or profile_named(profile).store), len(set(plan))


def coverage_table() -> str:
    """How often intervals contain the truth in simulated experiments as a Markdown table (``benchmarks/coverage.py``).

    >>> coverage_table().splitlines()[2]
    '| intervals of | 3 seeds | 5 seeds | 7 seeds | 12 seeds |'
    """
    result = json.loads((published_folder().parent / "coverage.json").read_text("utf-8"))
    table = pd.DataFrame(result["rows"]).pivot(index="quantity", columns="seeds", values="coverage")
    rows = [(name, *(f"{fraction:.1%}" for fraction in row)) for name, row in table.iterrows()]
    head = ["intervals of", *(f"{seeds} seeds" for seeds in table.columns)]
    question = (
        "Does a 95% interval contain the true value in 95% of all experiments? We simulated "
        f"{result['runs']:,} experiments of each kind, whose true value we know. This fraction of the intervals contained it. "
        "*By network* counts the two networks of a seed as independent repeats:"
    )
    return f"{question}\n\n{markdown_table(head, rows)}"


def bounds_text(claim: Claim, quantities: Mapping[str, Estimate]) -> dict[str, str]:
    """The bounds of each quantity of a claim, with a mark for the outcome.

    ✓: the whole interval is within the bound; ✗: all of it is outside; ~: neither. Preconditions are in parentheses.

    >>> from bslib.ledger import claims_of
    >>> bounds_text(claims_of("parameters")[0], {"accuracy.fashion-mnist": Estimate(0.88, 0.87, 0.89, 5)})
    {'accuracy.fashion-mnist': '0.865 to 0.895 ✓'}
    """
    texts: dict[str, list[str]] = {}
    for test in claim.tests:
        if test.quantity in quantities:
            text = f"{test} {MARKS[test.outcome(quantities[test.quantity])]}"
            texts.setdefault(test.quantity, []).append(f"(given {text})" if test.given else text)
    return {name: ", ".join(parts) for name, parts in texts.items()}


def _as_list(some: Iterable[Finding], quantities: Mapping[str, Estimate], *, bold: bool = False, intervals: bool = True) -> str:
    """One line for each finding that has records, optionally with a bold first sentence; the fewest repeats go with intervals."""
    lines = []
    for finding in some:
        if any(test.quantity not in quantities for test in finding.tests):
            continue
        measured = [quantities[test.quantity] for test in finding.tests]
        holds = all(test.outcome(estimate) for test, estimate in zip(finding.tests, measured, strict=True))
        doubt = "" if holds else "**Not borne out by these records:** "
        numbers = [format_estimate(e) if intervals else f"{e:.2f}".split(" [")[0] for e in measured]
        least = min((e.repeats for e in measured), default=0) if intervals else 0
        repeats = f" <small>{least} repeat{'s' * (least > 1)}</small>" if least else ""
        says = "**{}.** {}".format(*finding.says.split(". ", 1)) if bold else finding.says
        lines.append(f"- {doubt}{says.format(*numbers)}{repeats}")
    return "\n".join(lines)
