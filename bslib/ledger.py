"""The ledger: what the paper claims, the rule by which we judge, and the verdict that our records give.

Claims are data (a TOML file beside each chapter), written before the records are made; verdicts are computed, never typed.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files

import pandas as pd

from bslib.statistics import Estimate

__all__ = ["Claim", "Test", "as_markdown", "claims_of", "judge", "verdicts"]


@dataclass(frozen=True, kw_only=True)
class Test:
    """Bounds on one quantity; at least one of them is given.

    Parameters
    ----------
    quantity : str
        A name that the chapter's ``quantities`` give an :class:`~bslib.statistics.Estimate` for.
    at_least, at_most : float, optional
    """

    __test__ = False  # not one of pytest's

    quantity: str
    at_least: float | None = None
    at_most: float | None = None

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
    """

    id: str
    where: str
    says: str
    paper: str
    reading: str
    tests: tuple[Test, ...]


def claims_of(chapter: str) -> list[Claim]:
    """The claims of a chapter, in the paper's order.

    >>> claims_of("parameters")[0].id
    'fashion-accuracy'
    """
    text = files("bslib.chapters").joinpath(f"{chapter}.toml").read_text(encoding="utf-8")
    return [Claim(**{**claim, "tests": tuple(Test(**test) for test in claim["tests"])}) for claim in tomllib.loads(text)["claim"]]


def judge(claim: Claim, quantities: Mapping[str, Estimate]) -> str:
    """The verdict: "reproduced" where all tests hold, "not reproduced" where all fail, "in part" between, or "not yet run".

    >>> claim = claims_of("parameters")[0]
    >>> judge(claim, {"accuracy.fashion-mnist": Estimate(0.88, 0.87, 0.89, 5)}), judge(claim, {})
    ('reproduced', 'not yet run')
    """
    if any(test.quantity not in quantities for test in claim.tests):
        return "not yet run"
    outcomes = [test.outcome(quantities[test.quantity]) for test in claim.tests]
    if all(outcome is True for outcome in outcomes):
        return "reproduced"
    return "not reproduced" if all(outcome is False for outcome in outcomes) else "in part"


def as_markdown(chapter: str, quantities: Mapping[str, Estimate]) -> str:
    """The verdicts on a chapter's claims as a Markdown table, the paper's number and the rule in small print under each claim.

    >>> print(as_markdown("parameters", {}).splitlines()[2][:60])
    | The small Fashion-MNIST network reaches an accuracy of aro
    """
    rows = ["| Claim | Measured | Verdict |", "|---|---|---|"]
    for claim in claims_of(chapter):
        numbers = "<br>".join(str(e) for e in _measured(claim, quantities).values())
        small = f"<small>{claim.where}. The paper: {claim.paper}. Held to: {claim.reading}.</small>"
        rows.append(f"| {claim.says}<br>{small} | {numbers} | **{judge(claim, quantities)}** |")
    return "\n".join(rows)


def verdicts(chapter: str, quantities: Mapping[str, Estimate]) -> pd.DataFrame:
    """A row for each claim of a chapter: what the paper says, what was measured, the verdict.

    Parameters
    ----------
    chapter : str
    quantities : mapping of str to Estimate
        Those of a profile at the paper's sizes; others share no name with the claims and so leave them "not yet run".

    Returns
    -------
    pandas.DataFrame
        Columns Claim, Paper, Rule, Measured, Networks, Verdict.
    """
    rows = []
    for claim in claims_of(chapter):
        measured = _measured(claim, quantities)
        rows.append(
            {
                "Claim": claim.says,
                "Paper": claim.paper,
                "Rule": claim.reading,
                "Measured": "; ".join(map(str, measured.values())) or "",
                "Networks": min((e.networks for e in measured.values()), default=0),
                "Verdict": judge(claim, quantities),
            }
        )
    return pd.DataFrame(rows)


def _measured(claim: Claim, quantities: Mapping[str, Estimate]) -> dict[str, Estimate]:
    """The quantities that a claim is judged by, as far as they exist, each once."""
    return {test.quantity: quantities[test.quantity] for test in claim.tests if test.quantity in quantities}
