"""W beside other detectors: their scores for the same triggers and crafted patterns on the same networks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd

from bslib.chapters.patterns import plan
from bslib.chapters.patterns.batches import Batches
from bslib.detectors import DETECTORS
from bslib.markdown import markdown_table
from bslib.specs import CleanseSpec, DetectorSpec, NetworkSpec, UniversalSpec
from bslib.statistics import Estimate, area_replicates, levene

__all__ = ["detectors", "detectors_table", "others", "quantities"]


def others(part: Batches) -> pd.DataFrame:
    """The scores of W and of other detectors for the same patterns on the same networks; high scores are suspicious.

    Returns
    -------
    DataFrame
        Columns network; carried: "own", "unseen", "universal", or for the candidate of Neural Cleanse with the smallest mask
        "reversed, clean" on a clean network and "reversed, backdoored" on another, where it may be the trigger; "W", Levene's
        score; and for each other detector how much lower its score is than on clean images, or its negative score, NaN where
        it lacks records of a network.
    """
    rows = []
    for number, network in enumerate(part.networks):
        crafted = [*plan.universal_specs(part.size, network), *plan.cleanse_specs(part.size, network)]
        measured = [name for name in DETECTORS if _has_scores(part, network, name)]
        if not measured or any(spec not in part.records for spec in crafted):
            continue
        smallest = int(part.records[plan.cleanse_of(part.size, network)].arrays["masks"].sum((1, 2, 3)).argmin())
        for what in plan.carried_of(part.size, network):
            spec = plan.score_of(part.size, network, measured[0], **what)
            at = smallest if isinstance(spec.pattern, CleanseSpec) else 0
            found = {DETECTORS[name].label: _suspicion(part, network, name, at, what) for name in measured}
            rows.append({"network": number, "carried": _carried(spec), "W": _w_score(part, spec, at)} | found)
    return pd.DataFrame(rows, columns=["network", "carried", "W", *(detector.label for detector in DETECTORS.values())])


def _has_scores(part: Batches, network: NetworkSpec, detector: str) -> bool:
    scores = plan.scores_specs(part.size, network)
    return all(spec in part.records for spec in scores if spec.detector == detector)


def _carried(spec: DetectorSpec) -> str:
    attack = spec.network.attack
    if isinstance(spec.pattern, UniversalSpec):
        return "universal"
    if spec.pattern is not None:
        return "reversed, clean" if attack is None else "reversed, backdoored"
    return "own" if attack is not None and attack.trigger == spec.trigger else "unseen"


def _suspicion(part: Batches, network: NetworkSpec, detector: str, at: int, what: Mapping[str, Any]) -> float:
    score = float(part.records[plan.score_of(part.size, network, detector, **what)].arrays["scores"][at].mean())
    if not DETECTORS[detector].against_clean:
        return -score
    return float(part.records[plan.score_of(part.size, network, detector)].arrays["scores"].mean()) - score


def _w_score(part: Batches, spec: DetectorSpec, at: int) -> float:
    """Levene's score of the batch that carries what ``spec`` carries, or the candidate ``at``, with ``pattern_points`` points."""
    sigma, points = part.size.sigmas[0], part.size.pattern_points
    if spec.pattern is None:
        counted = plan.batch_of(part.size, spec.network, spec.trigger)
    else:
        counted = plan.crafted_batch_of(part.size, spec.pattern)
    return levene(part.clean_w(spec.network, sigma), part.w(counted, sigma)[at * points : (at + 1) * points]).score


def detectors(part: Batches) -> pd.DataFrame:
    """The area under the ROC curve of each detector for own triggers, universal perturbations and candidates.

    Negatives are batches with triggers that the network was not trained on.

    Returns
    -------
    DataFrame
        A row for each detector, a column for each pattern, of Estimates.
    """
    scores, table = others(part), {}
    names = [name for name in scores.columns[2:] if scores[name].notna().any()]
    for carried in ("own", "universal", "reversed, clean", "reversed, backdoored"):
        some = scores[scores["carried"].isin([carried, "unseen"])]
        if set(some["carried"]) == {carried, "unseen"}:
            table[carried] = {name: part.area_of(some[some[name].notna()], carried, name) for name in names}
    return pd.DataFrame(table)


def detectors_table(part: Batches) -> str:
    """:func:`~bslib.chapters.patterns.others.detectors` as a Markdown table."""
    table = detectors(part)
    rows = [(name, *(f"{area:.2f}" for area in row)) for name, row in table.iterrows()]
    return markdown_table(["area under the ROC curve", *table.columns], rows)


def quantities(part: Batches) -> dict[str, Estimate]:
    """The area of each detector for each pattern, and that of each other detector for own triggers minus that of W."""
    data, table, scores = part.size.dataset, detectors(part), others(part)
    found = {f"detector_auc.{data}.{name}.{carried}": table[carried][name] for carried in table for name in table.index}
    some = scores[scores["carried"].isin(["own", "unseen"])]
    for name in table.index[1:] if "own" in table else ():
        both = some[some[name].notna()]
        area, of_w = (area_replicates(both[of], both["carried"] == "own", part.seeds(both)) for of in (name, "W"))
        difference = area._replace(value=area.value - of_w.value, without=area.without - of_w.without)
        found[f"detector_auc.{data}.{name}.less.W.own"] = difference.estimate(within=(-1, 1))
    return found
