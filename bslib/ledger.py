"""The ledger: what the paper claims, the rule by which we judge, and the verdict that our records give.

Claims are data (a TOML file beside each chapter), written before the records are made; verdicts are computed, never typed.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib.resources import files

from bslib.statistics import Estimate

__all__ = ["Claim", "Test", "as_markdown", "claims_of", "judge"]


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
    """The verdict on a claim.

    "reproduced" where all tests hold, "not reproduced" where all fail, "undecided" where none holds and some might, "in part" for
    what is left; "not yet run" where a quantity is missing.

    >>> claim = claims_of("parameters")[0]
    >>> judge(claim, {"accuracy.fashion-mnist": Estimate(0.88, 0.87, 0.89, 5)}), judge(claim, {})
    ('reproduced', 'not yet run')
    """
    if any(test.quantity not in quantities for test in claim.tests):
        return "not yet run"
    outcomes = [test.outcome(quantities[test.quantity]) for test in claim.tests]
    if all(outcome is True for outcome in outcomes):
        return "reproduced"
    if all(outcome is False for outcome in outcomes):
        return "not reproduced"
    return "in part" if any(outcome is True for outcome in outcomes) else "undecided"


def as_markdown(chapter: str, quantities: Mapping[str, Estimate]) -> str:
    """The verdicts on a chapter's claims as a Markdown table, the paper's number and the rule in small print under each claim.

    >>> print(as_markdown("parameters", {}).splitlines()[2][:60])
    | The small Fashion-MNIST network reaches an accuracy of aro
    """
    rows = ["| Claim | Measured | Verdict |", "|---|---|---|"]
    for claim in claims_of(chapter):
        measured = _measured(claim, quantities).values()
        numbers = "<br>".join(map(str, measured)) + _networks_in_words(measured)
        small = f"<small>{claim.where}. The paper: {claim.paper}. Held to: {claim.reading}.</small>"
        rows.append(f"| {claim.says}<br>{small} | {numbers} | **{judge(claim, quantities)}** |")
    return "\n".join(rows)


def _measured(claim: Claim, quantities: Mapping[str, Estimate]) -> dict[str, Estimate]:
    """The quantities that a claim is judged by, as far as they exist, each once."""
    return {test.quantity: quantities[test.quantity] for test in claim.tests if test.quantity in quantities}


def _networks_in_words(measured: Iterable[Estimate]) -> str:
    """How many networks the least supported of some estimates rests on, in small print; nothing where there is no estimate."""
    least = min((estimate.networks for estimate in measured), default=0)
    return f"<br><small>{least} network{'s' if least > 1 else ''}</small>" if least else ""
