"""The ledger: the paper's claims, the rules by which they are judged, and the verdicts that follow from the records.

Claims are data (a TOML file beside each chapter), written before the records are made; verdicts are computed, never typed.
Findings, which the paper does not have, lie in the same files. They were written after the records had been seen, so they prove
nothing. Their numbers come from the records, and a finding that newer records do not support is marked.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from importlib import import_module
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

from scipy import stats

from bslib.chapters import CHAPTERS
from bslib.progress import bar
from bslib.statistics import Estimate, Estimates
from bslib.store import Store

__all__ = [
    "MOST_REPEATS", "VERDICTS", "Claim", "Entry", "Finding", "Test", "as_data", "claims_of", "entries", "findings_of", "judge",
    "numbers", "repeats_needed",
]  # fmt: skip

VERDICTS = ("reproduced", "in part", "not reproduced", "too little evidence", "setting not met", "not yet run")
#: The mark for each outcome of :meth:`Test.outcome`.
MARKS = {True: "✓", False: "✗", None: "~"}
#: With more repeats than this, a claim counts as out of reach.
MOST_REPEATS = 500


@dataclass(frozen=True, kw_only=True)
class Test:
    """A lower or an upper bound on one quantity, or both.

    Parameters
    ----------
    quantity : str
        A name that the chapter's ``quantities`` give an :class:`~bslib.statistics.Estimate` for.
    at_least, at_most : float, optional
    given : bool
        Whether it has to hold before the claim can be judged at all.
    refutes : bool
        Whether it can only speak against the claim, as a p-value does: that nothing differs is no evidence for a claim.
    """

    __test__ = False  # not one of pytest's

    quantity: str
    at_least: float | None = None
    at_most: float | None = None
    given: bool = False
    refutes: bool = False

    def outcome(self, estimate: Estimate) -> bool | None:
        """True if the whole interval is within the bounds, False if all of it is outside, None if it is undecided.

        >>> [Test(quantity="q", at_least=0.0).outcome(Estimate(v, v - 1, v + 1, 5)) for v in (2, 0, -2)]
        [True, None, False]
        """
        low = float("-inf") if self.at_least is None else self.at_least
        high = float("inf") if self.at_most is None else self.at_most
        if low <= estimate.low and estimate.high <= high:
            return True
        return False if estimate.high < low or estimate.low > high else None

    def __str__(self) -> str:
        """The bounds as text.

        >>> str(Test(quantity="q", at_least=-0.5)), str(Test(quantity="q", at_least=0.3, at_most=0.7))
        ('≥ −0.5', '0.3 to 0.7')
        """
        low, high = (None if end is None else f"{end:g}".replace("-", "\N{MINUS SIGN}") for end in (self.at_least, self.at_most))
        if low and high:
            return f"{low} to {high}"
        return f"≥ {low}" if low else f"≤ {high}"


@dataclass(frozen=True, kw_only=True)
class Claim:
    """A claim of the paper, and the rule by which it is judged.

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
    tuned : bool
        Whether we chose our settings so that it holds, on other networks or on these. It is counted apart.
    calibrated : bool
        Whether it rests on the paper's test on W and is judged by the calibrated one as well.
    moved : str
        How the rule changed after the records had been made, when, and what the verdict was before.
    note : str, optional
        What a reader of the verdict should know.
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
    tuned: bool = False
    calibrated: bool = False
    moved: str = ""
    note: str | None = None


@dataclass(frozen=True, kw_only=True)
class Finding:
    """A statement about the records that the paper does not make.

    Parameters
    ----------
    id : str
    says : str
        The sentence; ``{0}``, ``{1}`` and so on stand for the estimates of its tests, in their order.
    tests : tuple of Test
        What has to hold for the sentence to be true.
    headline : bool
        Whether the landing page has it.
    short : int
        Its place among the lines with which its chapter begins, and below 10 the landing page; 0 for none.
    """

    id: str
    says: str
    tests: tuple[Test, ...]
    headline: bool = False
    short: int = 0


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A row of the ledger: a claim, the measured quantities and the verdict.

    Parameters
    ----------
    chapter, page : str
        The chapter's name, and the name of its notebook.
    claim : Claim
    measured : dict of str to Estimate
        The quantities that the claim is judged by, as far as there are records.
    verdict : str
    calibrated : Entry, optional
        The same by the calibrated test, of a claim that is judged by it as well.
    """

    chapter: str
    page: str
    claim: Claim
    measured: Mapping[str, Estimate]
    verdict: str
    calibrated: Entry | None = None


def claims_of(chapter: str) -> list[Claim]:
    """The claims of a chapter, in the paper's order.

    >>> claims_of("parameters")[0].id
    'fashion-accuracy'
    """
    return [Claim(**_with_tests(claim)) for claim in _data(chapter)["claim"]]


def findings_of(chapter: str) -> list[Finding]:
    """The findings of a chapter.

    >>> findings_of("parameters")[0].id
    'short-copies'
    """
    return [Finding(**_with_tests(finding)) for finding in _data(chapter).get("finding", [])]


def judge(claim: Claim, quantities: Mapping[str, Estimate]) -> str:
    """The verdict on a claim.

    "reproduced" if all tests hold; "in part" if some hold; "not reproduced" if none holds and some fail; "too little evidence" if
    none holds or fails. A test that can only refute does not count if it holds. Preconditions come first: "setting not met" if
    one fails, "too little evidence" if one is undecided. "not yet run" if a quantity is missing.

    >>> claim = claims_of("parameters")[0]
    >>> judge(claim, {"accuracy.fashion-mnist": Estimate(0.88, 0.87, 0.89, 5)}), judge(claim, {})
    ('reproduced', 'not yet run')
    """
    if any(test.quantity not in quantities for test in claim.tests):
        return "not yet run"
    known = [(t, t.outcome(quantities[t.quantity])) for t in claim.tests]
    outcomes = {given: [o for t, o in known if t.given == given and not (t.refutes and o)] for given in (True, False)}
    if False in outcomes[True]:
        return "setting not met"
    if None in outcomes[True]:
        return "too little evidence"
    if True in outcomes[False]:
        return "reproduced" if set(outcomes[False]) == {True} else "in part"
    return "not reproduced" if False in outcomes[False] else "too little evidence"


def repeats_needed(claim: Claim, quantities: Mapping[str, Estimate]) -> int | None:
    """About how many repeats would decide a claim on which there is too little evidence; None if out of reach.

    Assumes that values and the variation between repeats stay as they are. Then Student's t interval shrinks like t / sqrt(n),
    and Wilson's interval of a fraction on which all repeats agree like 1 / n. All preconditions and one other test have to be
    decided.

    >>> claim = claims_of("parameters")[0]
    >>> repeats_needed(claim, {"accuracy.fashion-mnist": Estimate(0.87, 0.86, 0.88, 5)})
    13
    """
    undecided = [t for t in claim.tests if not t.refutes and t.outcome(quantities[t.quantity]) is None]
    wanted = {given: [_needed(t, quantities[t.quantity]) for t in undecided if t.given == given] for given in (True, False)}
    if len(wanted[False]) < sum(not test.given and not test.refutes for test in claim.tests):
        wanted[False] = []  # another test is decided already
    needed = max([*wanted[True], *sorted(wanted[False])[:1]], default=0)
    return needed if needed <= MOST_REPEATS else None


def _needed(test: Test, estimate: Estimate) -> int:
    """The number of repeats at which the interval no longer crosses a bound, at most ``MOST_REPEATS + 1``."""
    ends = [end for end in (test.at_least, test.at_most) if end is not None]
    below, above = estimate.value - estimate.low, estimate.high - estimate.value
    if not below >= 0:  # no interval, so nothing is known of the variation
        return MOST_REPEATS + 1
    if estimate.low in (-1, 0) or estimate.high == 1:  # cut off at a natural limit
        below = above = max(below, above)
    inside = [end for end in ends if estimate.low <= end <= estimate.high]
    crossed = [(abs(end - estimate.value), below if end < estimate.value else above) for end in inside]
    repeats = range(max(estimate.repeats, 2), MOST_REPEATS + 1)
    alike = estimate.value in (estimate.low, estimate.high)

    def width(n: int) -> float:
        return 1 / (n + 1.96**2) if alike else float(stats.t.ppf(0.975, n - 1)) / n**0.5

    decided = (n for n in repeats if all(reach * width(n) < gap * width(repeats[0]) for gap, reach in crossed))
    return next(decided, MOST_REPEATS + 1)


def numbers(
    *, profile: str, seed: int = 0, store: str | Path | Store | None = None, progress: bool = False
) -> dict[str, Estimates]:
    """The quantities of every chapter with claims, from the records of a store.

    Parameters
    ----------
    profile, seed
        As for the chapters' plans.
    store
        As for :func:`bslib.store.open_store`. One that can be written to is completed first.
    progress : bool
        Show a bar over the chapters; not in a notebook, whose page it would stay on.

    >>> list(numbers(profile="smoke", store="published"))[:4]  # no records of this profile are there
    ['parameters', 'surface', 'correlation', 'patterns']
    """
    with_claims = [name for name in CHAPTERS if _claims_file(name).is_file()]
    found = {}
    with bar(show=progress, total=len(with_claims), desc="ledger", unit="chapter") as shown:
        for name in with_claims:
            chapter = import_module(f"bslib.chapters.{name}.results")
            found[name] = chapter.quantities(chapter.load(profile=profile, seed=seed, store=store))
            shown.update()
    return found


def entries(numbers: Mapping[str, Estimates]) -> list[Entry]:
    """The whole ledger, chapter by chapter, from the result of :func:`numbers`.

    >>> len(entries({"parameters": Estimates()})), entries({"parameters": Estimates()})[0].verdict
    (20, 'not yet run')
    """
    found = []
    for chapter, own in numbers.items():
        page = _data(chapter)["page"]
        for claim in claims_of(chapter):
            other = _entry(chapter, page, _by_calibrated(claim), own) if claim.calibrated else None
            found.append(replace(_entry(chapter, page, claim, own), calibrated=other))
    return found


def _entry(chapter: str, page: str, claim: Claim, own: Estimates) -> Entry:
    return Entry(chapter=chapter, page=page, claim=claim, measured=measured_of(claim, own), verdict=judge(claim, own))


def _by_calibrated(claim: Claim) -> Claim:
    """The claim with the quantities of the calibrated test, under the same bounds; preconditions do not rest on the test."""
    tests = (t if t.given else replace(t, quantity=t.quantity.replace(".", "_calibrated.", 1)) for t in claim.tests)
    return replace(claim, tests=tuple(tests))


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
            "measured": _all_plain(entry.measured),
            "bounds": [asdict(test) for test in entry.claim.tests],
            "verdict": entry.verdict,
            "verdict by the calibrated test": entry.calibrated and entry.calibrated.verdict,
            "measured by the calibrated test": _all_plain(entry.calibrated.measured) if entry.calibrated else None,
            "arithmetic": entry.claim.arithmetic,
            "ours": entry.claim.ours,
            "tuned": entry.claim.tuned,
            "moved": entry.claim.moved,
        }
        for entry in ledger
    ]


def measured_of(claim: Claim, quantities: Mapping[str, Estimate]) -> dict[str, Estimate]:
    """The quantities of a claim that exist, each once."""
    return {test.quantity: quantities[test.quantity] for test in claim.tests if test.quantity in quantities}


def _data(chapter: str) -> dict[str, Any]:
    return tomllib.loads(_claims_file(chapter).read_text(encoding="utf-8"))


def _with_tests(data: dict[str, Any]) -> dict[str, Any]:
    return data | {"tests": tuple(Test(**test) for test in data["tests"])}


def _claims_file(chapter: str) -> Traversable:
    return files("bslib.chapters").joinpath(chapter, "claims.toml")


def _all_plain(measured: Mapping[str, Estimate]) -> dict[str, dict[str, float | None]]:
    """Estimates for JSON, which has no NaN."""
    return {
        name: {key: None if number != number else number for key, number in asdict(estimate).items()}
        for name, estimate in measured.items()
    }
