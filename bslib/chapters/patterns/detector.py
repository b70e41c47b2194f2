"""W as a detector of triggers: areas under the ROC curve by setting and by trigger, and the quantities (Fig. 6)."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import pandas as pd

from bslib.chapters.outcomes import mean_of, over_seeds
from bslib.chapters.patterns.batches import FEWEST_SEEDS, Batches
from bslib.chapters.patterns.plan import batch_of, trained_trigger
from bslib.statistics import Estimate

__all__ = ["EFFECTIVE", "area", "by_trigger", "quantities", "sensitivity", "working"]

#: The success from which a trigger counts as effective.
EFFECTIVE = 0.9
#: Further noise levels at which the areas are quantities.
COMPARED_SIGMAS = (0.01, 0.25)


def area(part: Batches, sigma: float | None = None, *, center: str = "mean", triggers: Sequence[int] | None = None) -> Estimate:
    """The area under the ROC curve of the W detector. Positives are batches with the network's own trigger.

    Negatives are second clean batches, and batches with triggers that the network never saw, of the same networks and of clean
    ones.

    Parameters
    ----------
    sigma, center
        As for :meth:`~bslib.chapters.patterns.batches.Batches.tests`.
    triggers : sequence of int, optional
        The own triggers of the networks that count, besides clean ones; all when not given.
    """
    return part.area_of(part.trained_on(part.tests(sigma, center=center), triggers), "own")


def by_trigger(part: Batches) -> pd.DataFrame:
    """How well each trained-in trigger works and is found: success, and the area under the ROC curve at each noise level.

    Returns
    -------
    DataFrame
        A row for each trigger with enough networks and each noise level: trigger, success, sigma and auc, two Estimates.
    """
    rows = [
        (trigger, success, sigma, area(part, sigma, triggers=[trigger]))
        for trigger, success in _successes(part).items()
        for sigma in part.sigmas
    ]
    return pd.DataFrame(rows, columns=["trigger", "success", "sigma", "auc"])


def _successes(part: Batches) -> dict[int, Estimate]:
    """The average success of each trained-in trigger with enough networks."""
    found = {}
    for trigger in part.size.trained:
        some = [part.success(network) for network in part.networks if trained_trigger(network) == trigger]
        if len(some) >= FEWEST_SEEDS:
            found[trigger] = mean_of(some, within=(0, 1))
    return found


def working(part: Batches) -> list[int]:
    """The triggers that meet the setting of the paper's claim: an average success of at least 90%.

    None as long as a planned trigger has too few networks, since the claim is about all that work.
    """
    success = _successes(part)
    if {*success} != {*part.size.trained}:
        return []
    return sorted(trigger for trigger, average in success.items() if average.value >= EFFECTIVE)


def sensitivity(part: Batches) -> pd.DataFrame:
    """The area under the ROC curve for every noise level, batch size, centre and sign, of all own triggers or those that work."""
    sizes = sorted({batch for batch in (25, 50, 100) if batch < part.size.points} | {part.size.points})
    chosen = {"all": None, "working": working(part)}
    settings = itertools.product(part.sigmas, sizes, ("mean", "median"), (True, False), chosen)
    rows = []
    for sigma, batch, center, signed, triggers in settings:
        tests = part.trained_on(part.tests(sigma, batch=batch, center=center), chosen[triggers])
        if "own" in set(tests["carried"]):
            found = part.area_of(tests if signed else tests.assign(score=tests["score"].abs()), "own")
            rows.append((sigma, batch, center, signed, triggers, found))
    return pd.DataFrame(rows, columns=["sigma", "batch", "center", "signed", "triggers", "area"])


def quantities(part: Batches) -> dict[str, Estimate]:
    """The quantities of the W detector, and of the effect of own triggers on mean W."""
    data, first = part.size.dataset, part.size.sigmas[0]
    tests, calibrated = part.tests(), part.tests(center="median", outliers=True)
    own = tests[tests["carried"] == "own"]
    nothing = tests[tests["carried"] == "nothing"]
    told_apart, by_calibrated = (table["p"][nothing.index] < 0.05 for table in (tests, calibrated))
    seeds = part.seeds(nothing)
    found = {
        f"auc.{data}": area(part),
        f"clean_told_apart.{data}": over_seeds(told_apart, seeds),
        f"clean_told_apart_calibrated.{data}": over_seeds(by_calibrated, seeds),
        f"clean_told_apart_less_calibrated.{data}": over_seeds(told_apart * 1.0 - by_calibrated, seeds, within=(-1, 1)),
        f"own_success.{data}": over_seeds(own["success"], part.seeds(own)),
    }
    compared = {*COMPARED_SIGMAS} & {*part.sigmas}
    found |= {f"auc_at.{data}.{sigma:g}": area(part, sigma) for sigma in compared}
    if triggers := working(part):
        found[f"auc_working.{data}"] = area(part, triggers=triggers)
        found |= {f"auc_working_at.{data}.{sigma:g}": area(part, sigma, triggers=triggers) for sigma in compared}
    for trigger, success, sigma, found_by_w in by_trigger(part).itertuples(index=False):
        if sigma == first:
            found[f"own_success.{data}.{trigger}"] = success
            found[f"auc_own.{data}.{trigger}"] = found_by_w
            found[f"own_less_clean.{data}.{trigger}"] = _less_clean(part, trigger)
        if sigma in compared:
            found[f"auc_own_at.{data}.{sigma:g}.{trigger}"] = found_by_w
    return found


def _less_clean(part: Batches, trigger: int) -> Estimate:
    """Mean W with the own trigger minus mean W without, over the networks with this trigger."""
    first, networks = part.size.sigmas[0], [network for network in part.networks if trained_trigger(network) == trigger]
    means = ([part.w(batch_of(part.size, n, carried), first).mean() for carried in (trigger, None)] for n in networks)
    return mean_of(with_it - without for with_it, without in means)
