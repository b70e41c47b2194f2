"""W as a detector of triggers: areas under the ROC curve by setting and by trigger, and the quantities (Fig. 6)."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
import pandas as pd

from bslib.chapters.outcomes import mean_of, over_seeds
from bslib.chapters.patterns.batches import FEWEST_SEEDS, FORMS, SUFFIXES, Batches
from bslib.chapters.patterns.plan import batch_of, trained_trigger
from bslib.statistics import Estimate, levene

__all__ = ["EFFECTIVE", "area", "by_trigger", "false_alarms", "quantities", "sensitivity", "working"]

#: The success from which a trigger counts as effective.
EFFECTIVE = 0.9
#: Further noise levels at which the areas are quantities.
COMPARED_SIGMAS = (0.01, 0.25)
#: Pairs of sets of clean points that are drawn for each network.
DRAWS = 200


def area(part: Batches, sigma: float | None = None, *, form: str = "paper", triggers: Sequence[int] | None = None) -> Estimate:
    """The area under the ROC curve of the W detector. Positives are batches with the network's own trigger.

    Negatives are second clean batches, and batches with triggers that the network never saw, of the same networks and of clean
    ones.

    Parameters
    ----------
    sigma, form
        As for :meth:`~bslib.chapters.patterns.batches.Batches.tests`.
    triggers : sequence of int, optional
        The own triggers of the networks that count, besides clean ones; all when not given.
    """
    return part.area_of(part.trained_on(part.tests(sigma, form=form), triggers), "own")


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
    """The area under the ROC curve for every noise level, batch size, form of the test, and for all triggers or those that work.

    The form "no direction" is the paper's without the sign.
    """
    sizes = sorted({batch for batch in (25, 50, 100) if batch < part.size.points} | {part.size.points})
    chosen = {"all": None, "working": working(part)}
    rows = []
    for sigma, batch, form, triggers in itertools.product(part.sigmas, sizes, (*FORMS, "no direction"), chosen):
        tests = part.tests(sigma, batch=batch, form=form if form in FORMS else "paper")
        tests = part.trained_on(tests if form in FORMS else tests.assign(score=tests["score"].abs()), chosen[triggers])
        if "own" in set(tests["carried"]):
            rows.append((sigma, batch, form, triggers, part.area_of(tests, "own")))
    return pd.DataFrame(rows, columns=["sigma", "batch", "form", "triggers", "area"])


def false_alarms(part: Batches, form: str = "paper") -> pd.DataFrame:
    """How often a form of the test tells apart two sets of clean points of one network, drawn at random.

    The noise level is the first. Sets have as many points as a batch with a crafted pattern.

    Returns
    -------
    DataFrame
        Columns network, told_apart (the fraction of draws with p below 0.05) and found (those in which the second set varies
        less, as with a trigger).
    """
    rows, size, sigma, rng = [], part.size.pattern_points, part.size.sigmas[0], np.random.default_rng(part.seed)
    for number, network in enumerate(part.networks):
        w = np.concatenate([part.w(batch_of(part.size, network, carried), sigma) for carried in (None, 0)])
        drawn = rng.permuted(np.broadcast_to(w, (DRAWS, len(w))), axis=1)
        test = levene(drawn[:, :size], drawn[:, size : 2 * size], **FORMS[form])
        low = test.pvalue < 0.05
        rows.append((number, np.mean(low), np.mean(low & (np.asarray(test.score) > 0))))
    return pd.DataFrame(rows, columns=["network", "told_apart", "found"])


def quantities(part: Batches) -> dict[str, Estimate]:
    """The quantities of the W detector, and of the effect of own triggers on mean W."""
    data, first, triggers = part.size.dataset, part.size.sigmas[0], working(part)
    tests = part.tests()
    own = tests[tests["carried"] == "own"]
    found = {f"own_success.{data}": over_seeds(own["success"], part.seeds(own))}
    compared = {*COMPARED_SIGMAS} & {*part.sigmas}
    for form, suffix in SUFFIXES.items():
        clean = false_alarms(part, form)
        for name in ("told_apart", "found"):
            found[f"clean_{name}{suffix}.{data}"] = over_seeds(clean[name], part.seeds(clean))
        for name, some in ({"auc": None} | ({"auc_working": triggers} if triggers else {})).items():
            found[f"{name}{suffix}.{data}"] = area(part, form=form, triggers=some)
            found |= {f"{name}_at{suffix}.{data}.{sigma:g}": area(part, sigma, form=form, triggers=some) for sigma in compared}
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
