"""The ledger: what the paper claims, the rule by which we judge, and the verdict that our records give.

Claims are data (a TOML file beside each chapter), written before the records are made; verdicts are computed, never typed.
Findings, which the paper does not have, lie in the same files. They were written after the records had been seen, so they prove
nothing by holding; but their numbers come from the records, and one that newer records do not bear out says so.
"""

from __future__ import annotations

import tomllib
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from datetime import timedelta
from importlib import import_module
from importlib.resources import files
from pathlib import Path
from typing import Any

import pandas as pd

from bslib.chapters import CHAPTERS, plan_of, records_for
from bslib.profiles import profile_named
from bslib.progress import bar
from bslib.statistics import Estimate, Estimates
from bslib.store import Store

__all__ = [
    "VERDICTS",
    "Claim",
    "Entry",
    "Finding",
    "Test",
    "as_data",
    "as_markdown",
    "as_page",
    "bounds_text",
    "claims_of",
    "entries",
    "findings_as_markdown",
    "findings_of",
    "format_estimate",
    "headlines",
    "judge",
    "numbers",
    "provenance_table",
    "score",
]

VERDICTS = ("reproduced", "in part", "undecided", "not reproduced", "not yet run")
#: How a bound fares, as :meth:`Test.outcome` says it.
MARKS = {True: "✓", False: "✗", None: "~"}


@dataclass(frozen=True, kw_only=True)
class Test:
    """Bounds on one quantity; at least one of them is given.

    Parameters
    ----------
    quantity : str
        A name that the chapter's ``quantities`` give an :class:`~bslib.statistics.Estimate` for.
    at_least, at_most : float, optional
    given : bool
        Whether it has to hold before the claim can be judged at all.
    """

    __test__ = False  # not one of pytest's

    quantity: str
    at_least: float | None = None
    at_most: float | None = None
    given: bool = False

    def outcome(self, estimate: Estimate) -> bool | None:
        """True where the whole interval is within the bounds, False where all of it is outside, None where it is undecided.

        >>> [Test(quantity="q", at_least=0.0).outcome(Estimate(v, v - 1, v + 1, 5)) for v in (2, 0, -2)]
        [True, None, False]
        """
        low = float("-inf") if self.at_least is None else self.at_least
        high = float("inf") if self.at_most is None else self.at_most
        if low <= estimate.low and estimate.high <= high:
            return True
        return False if estimate.high < low or estimate.low > high else None

    def __str__(self) -> str:
        """The bounds in signs.

        >>> str(Test(quantity="q", at_least=-0.5)), str(Test(quantity="q", at_least=0.3, at_most=0.7))
        ('≥ −0.5', '0.3 to 0.7')
        """
        low, high = (None if end is None else f"{end:g}".replace("-", "\N{MINUS SIGN}") for end in (self.at_least, self.at_most))
        if low and high:
            return f"{low} to {high}"
        return f"≥ {low}" if low else f"≤ {high}"


@dataclass(frozen=True, kw_only=True)
class Claim:
    """One sentence of the paper, and how it is judged.

    Parameters
    ----------
    id, where, says, paper : str
        A name, the place, the claim in our words, the paper's number.
    reading : str
        What we take the words to mean, with a number.
    tests : tuple of Test
    figure : str, optional
        The label of the figure that shows it.
    arithmetic : bool
        Whether it is about how the paper's own numbers fit together, which needs no record and is no replication.
    ours : bool
        Whether the paper does not claim it, and we ask all the same.
    """

    id: str
    where: str
    says: str
    paper: str
    reading: str
    tests: tuple[Test, ...]
    figure: str | None = None
    arithmetic: bool = False
    ours: bool = False


@dataclass(frozen=True, kw_only=True)
class Finding:
    """What the records say and the paper does not.

    Parameters
    ----------
    id : str
    says : str
        The sentence; ``{0}``, ``{1}`` and so on stand for the estimates of its tests, in their order.
    tests : tuple of Test
        What has to hold for the sentence to be true.
    headline : bool
        Whether the landing page has it.
    """

    id: str
    says: str
    tests: tuple[Test, ...]
    headline: bool = False


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A row of the ledger: a claim, what the records say, and the verdict.

    Parameters
    ----------
    chapter, page : str
        The chapter's name, and the name of its notebook.
    claim : Claim
    measured : dict of str to Estimate
        The quantities that the claim is judged by, as far as there are records.
    verdict : str
    """

    chapter: str
    page: str
    claim: Claim
    measured: Mapping[str, Estimate]
    verdict: str


def claims_of(chapter: str) -> list[Claim]:
    """The claims of a chapter, in the paper's order.

    >>> claims_of("parameters")[0].id
    'fashion-accuracy'
    """
    return [Claim(**{**claim, "tests": tuple(Test(**test) for test in claim["tests"])}) for claim in _data(chapter)["claim"]]


def findings_of(chapter: str) -> list[Finding]:
    """The findings of a chapter.

    >>> findings_of("parameters")[0].id
    'growth-is-bias'
    """
    found = _data(chapter).get("finding", [])
    return [Finding(**{**finding, "tests": tuple(Test(**test) for test in finding["tests"])}) for finding in found]


def judge(claim: Claim, quantities: Mapping[str, Estimate]) -> str:
    """The verdict on a claim.

    "reproduced" where all tests hold, "not reproduced" where all fail, "undecided" where none holds and some might, "in part" for
    what is left; "not yet run" where a quantity is missing. What is given counts for none of these: where it does not hold, the
    claim is "undecided".

    >>> claim = claims_of("parameters")[0]
    >>> judge(claim, {"accuracy.fashion-mnist": Estimate(0.88, 0.87, 0.89, 5)}), judge(claim, {})
    ('reproduced', 'not yet run')
    """
    if any(test.quantity not in quantities for test in claim.tests):
        return "not yet run"
    if any(test.given and not test.outcome(quantities[test.quantity]) for test in claim.tests):
        return "undecided"
    outcomes = [test.outcome(quantities[test.quantity]) for test in claim.tests if not test.given]
    if all(outcome is True for outcome in outcomes):
        return "reproduced"
    if all(outcome is False for outcome in outcomes):
        return "not reproduced"
    return "in part" if any(outcome is True for outcome in outcomes) else "undecided"


def numbers(
    *, profile: str, seed: int = 0, store: str | Path | Store | None = None, progress: bool = False
) -> dict[str, Estimates]:
    """The quantities of every chapter that has claims, from the records of a store.

    Parameters
    ----------
    profile, seed
        As for the chapters' plans.
    store
        As for :func:`bslib.store.open_store`. One that can be written to is completed first.
    progress : bool
        Show a bar over the chapters; not in a notebook, whose page it would stay on.

    >>> list(numbers(profile="smoke", store="published"))  # no records of this profile are there
    ['parameters', 'surface', 'correlation', 'patterns']
    """
    with_claims = [name for name in CHAPTERS if files("bslib.chapters").joinpath(f"{name}.toml").is_file()]
    found = {}
    with bar(show=progress, total=len(with_claims), desc="ledger", unit="chapter") as shown:
        for name in with_claims:
            found[name] = import_module(f"bslib.chapters.{name}").numbers(profile=profile, seed=seed, store=store)
            shown.update()
    return found


def entries(numbers: Mapping[str, Estimates]) -> list[Entry]:
    """The whole ledger, chapter by chapter, from what :func:`numbers` gives.

    >>> len(entries({"parameters": Estimates()})), entries({"parameters": Estimates()})[0].verdict
    (16, 'not yet run')
    """
    return [
        Entry(chapter=chapter, page=_data(chapter)["page"], claim=c, measured=_measured(c, own), verdict=judge(c, own))
        for chapter, own in numbers.items()
        for c in claims_of(chapter)
    ]


def score(ledger: Iterable[Entry]) -> str:
    """How many claims of the paper have which verdict, and how many verdicts rest on one network; what else there is, in words.

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


def findings_as_markdown(chapter: str, quantities: Mapping[str, Estimate]) -> str:
    """The findings of a chapter as a Markdown list with their numbers; those that these records do not bear out say so.

    >>> findings_as_markdown("parameters", {})
    '(Not yet run.)'
    """
    return _as_list(findings_of(chapter), quantities) or "(Not yet run.)"


def headlines(numbers: Mapping[str, Estimates]) -> str:
    """The findings of all chapters that the landing page has, as a Markdown list; ``numbers`` as :func:`numbers` gives them.

    The first sentence of each, which says it without numbers, is bold.

    >>> headlines({"parameters": Estimates()})
    '(Not yet run.)'
    """
    lists = [_as_list([f for f in findings_of(chapter) if f.headline], own, bold=True) for chapter, own in numbers.items()]
    return "\n".join(filter(None, lists)) or "(Not yet run.)"


def _as_list(findings: Iterable[Finding], quantities: Mapping[str, Estimate], *, bold: bool = False) -> str:
    """One line for each finding that has records, the first sentence bold or not."""
    lines = []
    for finding in findings:
        if any(test.quantity not in quantities for test in finding.tests):
            continue
        measured = [quantities[test.quantity] for test in finding.tests]
        holds = all(test.outcome(estimate) for test, estimate in zip(finding.tests, measured, strict=True))
        doubt = "" if holds else "**Not borne out by these records:** "
        says = "**{}.** {}".format(*finding.says.split(". ", 1)) if bold else finding.says
        lines.append(f"- {doubt}{says.format(*map(format_estimate, measured))}{_networks_in_words(measured, ' ')}")
    return "\n".join(lines)


def as_page(ledger: Iterable[Entry]) -> str:
    """The ledger as a table in MyST Markdown, with references to the figures; ``ledger.js`` lets a reader filter and sort it."""
    rows = [":::{container} ledger", "", "| Claim | The paper | Ours | Verdict |", "|---|---|---|---|"]
    for entry in ledger:
        claim, numbers = entry.claim, _with_bounds(entry.claim, entry.measured)
        here = f"{{numref}}`{claim.figure}`" if claim.figure else f"[{entry.chapter}](./{entry.page}.ipynb)"
        says = f"{claim.says}<br><small>{claim.where}; here {here}. Held to: {claim.reading}.</small>"
        rows.append(f"| {says} | {claim.paper} | {numbers} | **{entry.verdict}** |")
    return "\n".join([*rows, ":::"])


def provenance_table(*, profile: str, seed: int = 0, store: str | Path | Store | None = None) -> str:
    """Where the records of a profile come from, as a Markdown table: data, amount of work, processors, versions and dates.

    The parameters are those of :func:`numbers`.
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
    rows = [
        "| Data (fingerprint) | Kind of record | Records | Computing time | On | torch | bslib | Dates |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for (data, kind), own in table.groupby(["data", "kind"]) if len(table) else ():
        of = {name: "<br>".join(sorted(own[name].unique())) for name in ("device", "torch", "code", "date")}
        took = timedelta(seconds=round(own["seconds"].sum()))
        rows.append(f"| {data} | {kind} | {len(own)} | {took} | {of['device']} | {of['torch']} | {of['code']} | {of['date']} |")
    total = timedelta(seconds=round(table["seconds"].sum()) if len(table) else 0)
    return "\n".join(
        [*rows, "", f"{len(records)} of the {len(set(plan))} records of profile {profile} are there; they took {total}."]
    )


def as_data(ledger: Iterable[Entry]) -> list[dict[str, Any]]:
    """The ledger as plain data, for JSON."""
    return [
        {
            "id": entry.claim.id,
            "chapter": entry.chapter,
            "where": entry.claim.where,
            "says": entry.claim.says,
            "paper": entry.claim.paper,
            "held to": entry.claim.reading,
            "measured": {name: asdict(estimate) for name, estimate in entry.measured.items()},
            "bounds": [asdict(test) for test in entry.claim.tests],
            "verdict": entry.verdict,
            "arithmetic": entry.claim.arithmetic,
            "ours": entry.claim.ours,
        }
        for entry in ledger
    ]


def as_markdown(chapter: str, quantities: Mapping[str, Estimate]) -> str:
    """The verdicts on a chapter's claims as a Markdown table, what its marks mean beneath.

    The paper's number and the rule stand in small print under each claim, and the bounds under each number.

    >>> print(as_markdown("parameters", {}).splitlines()[2][:60])
    | The small Fashion-MNIST network reaches an accuracy of aro
    """
    rows = ["| Claim | Measured | Verdict |", "|---|---|---|"]
    for claim in claims_of(chapter):
        numbers = _with_bounds(claim, quantities)
        small = f"<small>{claim.where}. The paper: {claim.paper}. Held to: {claim.reading}.</small>"
        rows.append(f"| {claim.says}<br>{small} | {numbers} | **{judge(claim, quantities)}** |")
    marks = "✓ the whole 95 % interval is within the bound, ✗ all of it is outside, ~ neither. What is given has to hold first."
    return "\n".join([*rows, "", f"<small>{marks}</small>"])


def _measured(claim: Claim, quantities: Mapping[str, Estimate]) -> dict[str, Estimate]:
    """The quantities that a claim is judged by, as far as they exist, each once."""
    return {test.quantity: quantities[test.quantity] for test in claim.tests if test.quantity in quantities}


def bounds_text(claim: Claim, quantities: Mapping[str, Estimate]) -> dict[str, str]:
    """For each number that a claim is judged by, as far as it exists, its bounds and how they fare.

    ✓ where the whole interval is within a bound, ✗ where all of it is outside, ~ where it is neither. What is given stands in
    parentheses.

    >>> bounds_text(claims_of("parameters")[0], {"accuracy.fashion-mnist": Estimate(0.88, 0.87, 0.89, 5)})
    {'accuracy.fashion-mnist': '0.865 to 0.895 ✓'}
    """

    def fares(test: Test) -> str:
        text = f"{test} {MARKS[test.outcome(quantities[test.quantity])]}"
        return f"(given {text})" if test.given else text

    return {
        name: ", ".join(fares(test) for test in claim.tests if test.quantity == name) for name in _measured(claim, quantities)
    }


def _with_bounds(claim: Claim, quantities: Mapping[str, Estimate]) -> str:
    """The numbers of a claim for a cell of a table, the bounds in small print beneath each."""
    bounds = bounds_text(claim, quantities)
    lines = [f"{format_estimate(quantities[name])}<br><small>{bounds[name]}</small>" for name in bounds]
    return "<br>".join(lines) + _networks_in_words(quantities[name] for name in bounds)


def _networks_in_words(measured: Iterable[Estimate], before: str = "<br>") -> str:
    """How many networks the least supported of some estimates rests on, in small print; nothing where there is no estimate."""
    least = min((estimate.networks for estimate in measured), default=0)
    return f"{before}<small>{least} network{'s' if least > 1 else ''}</small>" if least else ""


def format_estimate(estimate: Estimate) -> str:
    """An estimate with three decimals, or in powers of ten where all of it is below a thousandth.

    Arithmetic has no interval, nor has what was set and not measured: a whole number above 1 without any width, such as epochs.

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


def _data(chapter: str) -> dict[str, Any]:
    text = files("bslib.chapters").joinpath(f"{chapter}.toml").read_text(encoding="utf-8")
    return tomllib.loads(text)
