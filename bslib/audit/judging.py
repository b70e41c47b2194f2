"""From evidence to one of three answers, with the false-alarm rate behind it. The rules are constants of this module.

The test asks whether the smallest trigger candidate is too small to be chance. Sizes of candidates differ by factors, so it works
on logarithms: each class is compared with the other classes by Student's t, as in Grubbs' test for an outlier (1950). For a clean
network whose sizes scatter log-normally, the p-value of the smallest, times the number of classes, is the false-alarm rate.
With reference networks, the mean of their log sizes is subtracted class by class first. With fewer than two, the level is
stricter: some classes are easy to reach in every network, which looks like a backdoor.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from bslib.audit.loading import listed
from bslib.chapters import sizes_of
from bslib.chapters.patterns.plan import cleanse_of, networks_of
from bslib.statistics import wilson
from bslib.store import PUBLISHED, open_store

__all__ = ["ANSWERS", "Answer", "Sizes", "calibration", "decide", "leave_one_out_p", "level_of", "size_test"]

Floats = NDArray[np.float64]
LIKELY, NO_SIGN, NOT_ENOUGH = "backdoor likely", "no sign found", "not enough evidence"
#: The answers, and the exit codes of ``bslib audit``.
ANSWERS = {NO_SIGN: 0, LIKELY: 1, NOT_ENOUGH: 3}

#: Level of the size test with at least two clean networks as references, with fewer, and that of a trigger of the user's own.
LEVEL, ALONE, OWN = 0.05, 0.01, 0.025
#: With a p-value above this, "no sign found" is possible. Values in between are not enough evidence.
UNSUSPICIOUS = 0.2
#: The smallest success on images that a candidate was not made from, to count as a backdoor. For "no sign found", half of the
#: candidates must reach it: those made from too few images work on these alone, and their sizes say nothing.
CONFIRMED = 0.75
#: The fewest classes, and the smallest fraction of the pixels that must be detectable, for "no sign found".
FEWEST_CANDIDATES, RESOLVED = 5, 0.01


class Sizes(NamedTuple):
    """Result of :func:`size_test`.

    Parameters
    ----------
    p : ndarray of float, shape (K,)
        p-value of each class, corrected for the number of classes; NaN without a successful candidate.
    critical : float
        A candidate below this size, in pixels, instead of the smallest one would have been significant. With references, this
        is the size for the class whose candidates are usually smallest. NaN with fewer than three successful candidates.
    smallest : int or None
        The most suspicious class.
    """

    p: Floats
    critical: float
    smallest: int | None

    @property
    def lowest(self) -> float:
        """The p-value of the network: that of its most suspicious class; 1 if there is none."""
        return 1.0 if self.smallest is None else float(self.p[self.smallest])


def size_test(norms: ArrayLike, success: ArrayLike, references: ArrayLike | None = None, *, level: float = ALONE) -> Sizes:
    """Test for each class whether its trigger candidate is smaller than those of the other classes.

    Parameters
    ----------
    norms : array_like, shape (K,)
        L1 norms of the masks.
    success : array_like, shape (K,)
        NaN for candidates that never reached the threshold; they are left out.
    references : array_like, shape (R, K), optional
        Norms of clean networks with the same classes; NaN where a candidate failed. A class is compared with those references
        whose candidate of that class succeeded; it has no p-value if there is none.
    level : float
        Level of the critical size, from :func:`level_of`.

    Returns
    -------
    Sizes
        With fewer than three successful candidates, no class has a p-value.

    >>> size_test([10, 60, 62, 65, 70, 72, 75, 80, 85, 90], [1.0] * 10).p.round(4).tolist()[:3]
    [0.0, 1.0, 1.0]
    """
    log = np.log(np.maximum(np.asarray(norms, dtype=float), 1e-6))
    log[np.isnan(np.asarray(success, dtype=float))] = np.nan
    usual = np.zeros(len(log))
    if references is not None:
        logs = np.log(np.maximum(np.asarray(references, dtype=float), 1e-6))
        usual = np.ma.masked_invalid(logs).mean(0).filled(np.nan)
    log = log - usual
    p, used = np.full(len(log), np.nan), np.flatnonzero(~np.isnan(log))
    k = len(used)
    if k < 3:
        return Sizes(p, math.nan, None)
    for c in used:
        others = log[used[used != c]]
        test = stats.ttest_ind_from_stats(log[c], 0, 1, others.mean(), others.std(ddof=1), k - 1, alternative="less")
        p[c] = np.fmin(1.0, k * test.pvalue)  # NaN if all are equal
    smallest = log[used].argmin()
    others = np.delete(log[used], smallest)
    distance = stats.t.ppf(level / k, k - 2) * others.std(ddof=1) * math.sqrt(k / (k - 1))
    return Sizes(p, math.exp(usual[used].min() + others.mean() + distance), int(used[smallest]))


def level_of(references: int, *, trigger: bool = False) -> float:
    """The level of the size test, by the number of reference networks; a trigger of the user's own takes half of the higher one.

    >>> level_of(0), level_of(1, trigger=True), level_of(2), level_of(2, trigger=True)
    (0.01, 0.01, 0.05, 0.025)
    """
    return ALONE if references < 2 else LEVEL - OWN * trigger


def leave_one_out_p(references: ArrayLike) -> list[float]:
    """The p-value of each reference network against the others; a single one is compared with nothing."""
    norms = np.asarray(references, dtype=float)
    return [size_test(own, own, np.delete(norms, at, axis=0) if len(norms) > 1 else None).lowest for at, own in enumerate(norms)]


def calibration() -> list[dict[str, Any]]:
    """The test on the networks of the book's records, whose truth is known.

    The test has no parameter that is fitted to networks, so leaving out the network that is judged changes nothing. Its form was
    chosen with these networks in view, and its level without references with some of those on the page *The audit*.

    Returns
    -------
    list of dict
        For each data set and trigger (None: clean networks), the number of networks, how many are flagged at 5% and at 1%
        with Wilson intervals, and their p-values. Empty without records, outside a clone.
    """
    store, rows = open_store(PUBLISHED), []
    for size in sizes_of("patterns", "paper"):
        found: dict[int | None, list[float]] = {}
        for network in networks_of(size, 0):
            if (spec := cleanse_of(size, network)) in store:
                arrays = store.get(spec).arrays
                p = size_test(arrays["masks"].sum((1, 2, 3)), arrays["success"])
                right = network.attack is None or p.smallest == network.attack.target
                found.setdefault(network.attack.trigger if network.attack else None, []).append(p.lowest if right else 1.0)
        rows += [{"data": size.dataset, "trigger": trigger, **_flagged(p)} for trigger, p in found.items()]
    return rows


def _flagged(p: list[float]) -> dict[str, Any]:
    found: dict[str, Any] = {"networks": len(p), "p": p}
    for level in (LEVEL, ALONE):
        count = sum(value <= level for value in p)
        low, high = wilson(count, len(p))
        found[f"flagged at {level:g}"] = {"count": count, "of": len(p), "low": low, "high": high}
    return found


@dataclass(frozen=True)
class Answer:
    """One of :data:`ANSWERS`, the reasons in sentences, and the p-value and level behind it."""

    verdict: str
    reasons: list[str]
    p: float
    level: float


def decide(
    sizes: Sizes,
    *,
    pixels: int,
    held_out: ArrayLike,
    null: Sequence[float] = (),
    trigger: tuple[float, float] | None = None,
    doubt: str = "",
    gaps: Sequence[str] = (),
    narrow: str = "",
) -> Answer:
    """Answer from the size test, the user's own trigger, and what speaks against believing either.

    Parameters
    ----------
    sizes : Sizes
    pixels : int
        Of one image.
    held_out : array_like, shape (K,)
        Success of each class's candidate on images that it was not made from; NaN without a candidate, or with too few images.
    null : sequence of float
        Leave-one-out p-values of the reference networks. The level depends on how many there are. They are the null distribution
        if they are enough for it.
    trigger : (float, float), optional
        p-value and success of the user's own trigger.
    doubt : str
        A reason for which nothing can be said, such as a wrong normalisation.
    gaps : sequence of str
        Reasons why classes have no candidate. They prevent "no sign found", but not "backdoor likely".
    narrow : str
        A reason why the images say little, such as that most are of one class, of which a trigger may be a natural feature. It
        prevents "no sign found", and "backdoor likely" because of the user's trigger.

    >>> decide(size_test([50.0] * 3, [1.0] * 3), pixels=784, held_out=[1.0] * 3).verdict
    'not enough evidence'
    """
    level = level_of(len(null), trigger=trigger is not None)
    p, success, classes = sizes.lowest, np.asarray(held_out, dtype=float), len(sizes.p)
    confirmed = math.nan if sizes.smallest is None else float(success[sizes.smallest])
    if 1 / (len(null) + 1) <= level:  # with fewer, no network could be accused
        p = (1 + sum(other <= p for other in null)) / (len(null) + 1)
    if doubt:
        return Answer(NOT_ENOUGH, [doubt], p, level)
    if p <= level and all(sizes.lowest < other for other in null) and confirmed >= CONFIRMED:
        reason = f"the trigger candidate of class {sizes.smallest} is smaller than chance explains (p = {p:.2g})"
        return Answer(LIKELY, [f"{reason}, and it sends {confirmed:.0%} of other images to that class"], p, level)
    if trigger is not None and trigger[0] <= OWN and trigger[1] >= CONFIRMED and not narrow:
        reason = f"your trigger sends {trigger[1]:.0%} of the images to one class, more than random patches of its shape do"
        return Answer(LIKELY, [f"{reason} (p = {trigger[0]:.2g})"], trigger[0], OWN)
    gaps = [*gaps, narrow] if narrow else gaps
    reasons = list(gaps)
    if p <= level:
        works = "there are not enough" if math.isnan(confirmed) else f"{confirmed:.0%}"
        usual = confirmed >= CONFIRMED  # then only a reference network speaks against an accusation
        but = "so is one of a reference network" if usual else f"it works on too few other images ({works})"
        reasons.append(f"the candidate of class {sizes.smallest} is small (p = {p:.2g}), but {but}")
    elif p <= UNSUSPICIOUS:
        more = "" if len(null) > 1 else "; two clean networks as references may tell whether this class is always easy to reach"
        reasons.append(f"the candidate of class {sizes.smallest} is neither clearly small nor clearly usual (p = {p:.2g}){more}")
    lost = np.flatnonzero(np.isnan(sizes.p)).tolist()
    if lost and not gaps:
        reason = f"only {classes - len(lost)} of {classes} classes have a trigger candidate that works and can be compared"
        reasons.append(f"{reason}; without: {listed(lost)}")
    known = success[~np.isnan(sizes.p)]
    if (working := int((known >= CONFIRMED).sum())) < len(known) / 2:
        reason = f"only {working} of {len(known)} candidates work on {CONFIRMED:.0%} of the images that they were not made from"
        reasons.append(f"{reason}: more images are needed")
    if classes < FEWEST_CANDIDATES:
        reasons.append(f"{classes} classes are too few to compare")
    if sizes.critical < RESOLVED * pixels:
        reasons.append(f"the candidates' sizes scatter so much that only one below {sizes.critical:.1f} pixels would stand out")
    if trigger is not None and (trigger[0] <= UNSUSPICIOUS or gaps):
        effect = "has an effect" if trigger[0] <= UNSUSPICIOUS else "does no more than random patches of its shape"
        reasons.append(f"your trigger {effect} (success {trigger[1]:.0%}, p = {trigger[0]:.2g})")
    if reasons:
        return Answer(NOT_ENOUGH, reasons, p, level)
    detectable = f"; one below {sizes.critical:.1f} of {pixels} pixels would have been flagged"
    return Answer(NO_SIGN, [f"no trigger candidate is unusually small (p = {p:.2g}){detectable}"], p, level)
