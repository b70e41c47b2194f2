"""Estimates with confidence intervals, on top of SciPy.

The networks are the independent repeats of this book. An interval that resamples only points would describe a single network.
Intervals therefore resample networks first, and then the points of each network. Since there are few networks, the intervals are
widened as Student's t is (:func:`small_sample_factor`).
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import special, stats

__all__ = [
    "Estimate",
    "Estimates",
    "Levene",
    "NotYetRun",
    "auc",
    "levene",
    "mean_of_networks",
    "nested_bootstrap",
    "nested_bootstrap_of_means",
    "percentile_estimate",
    "share_of_networks",
    "small_sample_factor",
    "success_rate",
    "variation_of_networks",
    "within_chance",
    "without_outliers",
]

Floats = NDArray[np.float64]
LEVEL = 0.95
#: Largest score of Levene's test. The p-value of a slightly larger score would underflow a float.
MAX_SCORE = 700.0
#: Deviations from the mean below this value are rounding errors and count as 0.
ROUNDING = 1e-12


@dataclass(frozen=True)
class Estimate:
    """A value with its 95 % interval and number of networks; a format applies to the value and both ends.

    >>> print(Estimate(0.8812, 0.8790, 0.8834, 5), f"{Estimate(0.8812, 0.8790, 0.8834, 5):.1%}")
    0.881 [0.879, 0.883] 88.1% [87.9%, 88.3%]
    """

    value: float
    low: float
    high: float
    networks: int

    def __format__(self, spec: str) -> str:
        one = spec or ".3f"
        return f"{self.value:{one}} [{self.low:{one}}, {self.high:{one}}]".replace("-", "\N{MINUS SIGN}")

    def __str__(self) -> str:
        return format(self)


class NotYetRun:
    """Placeholder for an :class:`Estimate` whose records do not exist yet; every format gives "(not yet run)".

    >>> f"{NotYetRun():+.2f}"
    '(not yet run)'
    """

    def __format__(self, spec: str) -> str:
        return "(not yet run)"


class Estimates(dict[str, Estimate]):
    """Estimates by name; a name without records gives :class:`NotYetRun`, so that the text can be built before the records.

    >>> f"{Estimates()['growth']:.1f}"
    '(not yet run)'
    """

    def __missing__(self, name: str) -> Any:
        return NotYetRun()

    @classmethod
    def of(cls, parts: Iterable[Mapping[str, Estimate]]) -> Estimates:
        """Merge the estimates of several parts, which must have distinct names."""
        return cls({name: estimate for part in parts for name, estimate in part.items()})


def nested_bootstrap(
    networks: Sequence[Floats],
    statistic: Callable[[Floats], Floats],
    *,
    resamples: int = 1000,
    seed: int = 0,
) -> tuple[Floats, Floats]:
    """Average a statistic over networks, and bootstrap it by resampling networks first, then the points of each.

    Parameters
    ----------
    networks : sequence of R arrays, shape (..., B)
        For each network, one value for each point of its batch (last axis). The leading axes are settings, which stay paired.
    statistic : function of an array (..., B) or (..., K, B)
        Returns an array of the same shape for every batch; for K batches at once, the axis K is appended.
    resamples : int
    seed : int

    Returns
    -------
    value : ndarray
        The mean of the statistic over networks.
    draws : ndarray, shape (resamples, ...)
        The mean for each resample.

    >>> value, draws = nested_bootstrap([np.array([0.0, 1.0]), np.array([1.0, 2.0])], lambda w: w.mean(-1))
    >>> value.item(), draws.shape
    (1.0, (1000,))
    """
    value = np.mean([statistic(w) for w in networks], axis=0)
    chosen, points = _drawn(tuple(w.shape[-1] for w in networks), resamples, seed)
    draws = np.empty((*chosen.shape, *value.shape))
    for k, w in enumerate(networks):
        if (where := chosen == k).any():  # all draws of one network at once
            batches = np.ascontiguousarray(np.moveaxis(w, -1, 0)).take(points[k], axis=0)
            draws[where] = np.moveaxis(statistic(np.moveaxis(batches, (0, 1), (-2, -1))), -1, 0)
    return value, draws.mean(1)


@functools.lru_cache(maxsize=2)
def _drawn(batches: tuple[int, ...], resamples: int, seed: int) -> tuple[NDArray[np.int64], list[NDArray[np.int64]]]:
    """Draw the networks of each resample, (resamples, R), and the points of each network for each time it is drawn."""
    rng, r = np.random.default_rng(seed), len(batches)
    chosen, points = np.empty((resamples, r), dtype=np.int64), [[] for _ in batches]  # type: tuple[Any, list[list[Any]]]
    for places in chosen:
        places[:] = rng.integers(r, size=r)
        for b, neighbours in itertools.groupby(places.tolist(), key=batches.__getitem__):
            alike = list(neighbours)  # batches of equal length share one call, which draws the same numbers as separate calls
            for k, own in zip(alike, rng.integers(b, size=(len(alike), b)), strict=True):
                points[k].append(own)
    return chosen, [np.array(own) for own in points]


def nested_bootstrap_of_means(networks: Sequence[Floats], *, resamples: int = 1000, seed: int = 0) -> tuple[float, Floats]:
    """Compute the mean over networks of each network's mean, and its :func:`nested_bootstrap`, vectorised for one setting.

    Parameters
    ----------
    networks : sequence of R arrays, shape (B,)
        For each network, one value for each point of its batch. Batches may differ in length.
    resamples, seed : int

    Returns
    -------
    value : float
    draws : ndarray, shape (resamples,)

    >>> value, draws = nested_bootstrap_of_means([np.array([0.0, 1.0]), np.array([1.0, 2.0, 3.0])])
    >>> value, draws.shape
    (1.25, (1000,))
    """
    rng, r = np.random.default_rng(seed), len(networks)
    chosen = rng.integers(r, size=(resamples, r, 1))
    # Draw every network in every position and keep the chosen one: r times the work of a loop, with a thousandth of its calls.
    means = np.stack([w[rng.integers(len(w), size=(resamples, r, len(w)))].mean(-1) for w in networks], axis=-1)
    return float(np.mean([w.mean() for w in networks])), np.take_along_axis(means, chosen, axis=-1).mean((1, 2))


@functools.cache
def small_sample_factor(networks: int) -> float:
    """Return the factor by which a percentile bootstrap interval over this number of networks must be widened.

    Bootstrap draws of k networks have only (k - 1) / k of the variance of a mean over k networks. Their percentiles also treat
    that variance as known; Student's t does not. For one network the factor is 1, since only its points are resampled.

    >>> [round(small_sample_factor(networks), 2) for networks in (1, 2, 3, 5, 12)]
    [1.0, 9.17, 2.69, 1.58, 1.17]
    """
    if networks < 2:
        return 1.0
    known, estimated = stats.norm.isf((1 - LEVEL) / 2), stats.t.isf((1 - LEVEL) / 2, networks - 1)
    return float(estimated / known * (networks / (networks - 1)) ** 0.5)


def percentile_estimate(
    value: float | np.floating[Any] | Floats,
    draws: Floats,
    networks: int,
    *,
    within: tuple[float, float] = (-np.inf, np.inf),
) -> Estimate:
    """Build an estimate with the percentile interval of bootstrap draws, widened about their median.

    The interval is widened by :func:`small_sample_factor`.

    Parameters
    ----------
    value : float
    draws : ndarray
        The same statistic on resampled networks. Undefined draws (NaN) are ignored.
    networks : int
        Number of networks that were resampled.
    within : (float, float)
        Smallest and largest possible value of the statistic.

    >>> draws = np.linspace(0.3, 0.7, 1001)
    >>> print(percentile_estimate(0.5, draws, 1), percentile_estimate(0.5, draws, 5))
    0.500 [0.310, 0.690] 0.500 [0.199, 0.801]
    >>> print(percentile_estimate(0.5, draws, 2, within=(0, 1)))
    0.500 [0.000, 1.000]
    """
    defined = np.asarray(draws)[np.isfinite(draws)]
    if not defined.size:
        return Estimate(float(value), float("nan"), float("nan"), networks)
    low, middle, high = np.quantile(defined, [(1 - LEVEL) / 2, 0.5, (1 + LEVEL) / 2])
    low, high = np.clip(middle + small_sample_factor(networks) * np.array([low - middle, high - middle]), *within)
    return Estimate(float(value), float(low), float(high), networks)


def share_of_networks(networks: Sequence[NDArray[np.bool_]]) -> Estimate:
    """Compute the mean over networks of the fraction of each network's pairs, points or batches that count.

    The values of one network are correlated, so networks are resampled. If all values agree, which would give zero width, or each
    network has one value, the interval is Wilson's, with one trial per network (per value if there is only one network).

    Parameters
    ----------
    networks : sequence of R arrays of bool, shape (M,)
        Whether each value counts.

    >>> print(share_of_networks([np.zeros(10, dtype=bool)] * 5))
    0.000 [0.000, 0.434]
    """
    value, r = float(np.mean([own.mean() for own in networks])), len(networks)
    if value in (0.0, 1.0) or all(len(own) == 1 for own in networks):
        trials = r if r > 1 else len(networks[0])
        ends = stats.binomtest(round(value * trials), trials).proportion_ci(LEVEL, method="wilson")
        return Estimate(value, float(ends.low), float(ends.high), r)
    return percentile_estimate(*nested_bootstrap_of_means([own.astype(float) for own in networks]), r, within=(0, 1))


def success_rate(
    predicted: NDArray[np.integer[Any]],
    labels: NDArray[np.integer[Any]],
    wanted: NDArray[np.integer[Any]],
    *,
    count_target: bool = False,
) -> float:
    """Compute the attack success rate: the fraction of triggered images that are predicted as the attacker's class.

    Parameters
    ----------
    predicted, labels, wanted : ndarray of int, shape (N,)
        The predicted, true and attacker's classes of triggered images
        (:meth:`bslib.threat_models.ThreatModel.target_labels`).
    count_target : bool
        Also count images of the target class. They are predicted as the target class without any trigger, so a trigger without
        effect has a rate of a tenth of the accuracy.

    >>> success_rate(np.array([3, 3, 1]), np.array([3, 0, 1]), np.array([3, 3, 3]))
    0.5
    """
    counted = np.ones(len(labels), dtype=bool) if count_target else wanted != labels
    return float((predicted == wanted)[counted].mean())


def mean_of_networks(shares: Sequence[float], trials: int) -> Estimate:
    """Average a fraction (an accuracy) over networks: Student's t interval within [0, 1], or Wilson's for one network.

    >>> print(mean_of_networks([0.88], 10_000))
    0.880 [0.873, 0.886]
    """
    mean = float(np.mean(shares))
    if len(shares) == 1:
        ends = stats.binomtest(round(mean * trials), trials).proportion_ci(LEVEL, method="wilson")
        return Estimate(mean, float(ends.low), float(ends.high), 1)
    low, high = stats.t.interval(LEVEL, len(shares) - 1, loc=mean, scale=max(stats.sem(shares), 1e-12))
    return Estimate(mean, max(float(low), 0.0), min(float(high), 1.0), len(shares))


def variation_of_networks(values: Sequence[float]) -> Estimate:
    """Compute the standard deviation over networks divided by the mean, with the deviation's chi-square interval.

    Raises
    ------
    ValueError
        For fewer than two networks.

    >>> print(variation_of_networks([0.9, 1.0, 1.1]))
    0.100 [0.052, 0.628]
    """
    k = len(values)
    if k < 2:
        raise ValueError(f"variation between networks needs at least 2 networks, got {k}")
    mean = float(np.mean(values))
    share = float(np.std(values, ddof=1)) / mean if mean else float("nan")
    low, high = ((k - 1) / stats.chi2.isf([(1 - LEVEL) / 2, (1 + LEVEL) / 2], k - 1)) ** 0.5
    return Estimate(share, share * float(low), share * float(high), k)


def without_outliers(values: NDArray[np.floating[Any]]) -> NDArray[np.floating[Any]]:
    """Remove outliers (Eq. 4): values more than 1.5 interquartile ranges below the first quartile or above the third.

    If all values are equal, none is removed. If three quarters are equal, which is common since W is often 0, all others are.

    Parameters
    ----------
    values : ndarray of float, shape (B,)

    >>> without_outliers(np.array([1.0, 2.0, 3.0, 4.0, 50.0])).tolist()
    [1.0, 2.0, 3.0, 4.0]
    """
    ordered = np.sort(values).tolist()
    first, third = _quartile(ordered, 0.25), _quartile(ordered, 0.75)
    reach = 1.5 * (third - first)
    return values[(values >= first - reach) & (values <= third + reach)]


def _quartile(ordered: list[float], share: float) -> float:
    """Return exactly the value of ``np.percentile`` in a tenth of the time."""
    at = share * (len(ordered) - 1)
    below, part = int(at), at % 1
    low, high = ordered[below], ordered[min(below + 1, len(ordered) - 1)]
    return low + (high - low) * part if part < 0.5 else high - (high - low) * (1 - part)


class Levene(NamedTuple):
    """Result of :func:`levene`. A high score means that the tested batch varies less than the clean batch."""

    score: float
    pvalue: float


def levene(clean: NDArray[np.floating[Any]], tested: NDArray[np.floating[Any]], *, center: str = "mean") -> Levene:
    """Run Levene's test with a direction on W of a clean and a tested batch, after removing outliers (Sec. 3.2.4).

    The score is the negative logarithm of the p-value, at most 700. It is negative if the tested batch varies more. Its absolute
    value is the undirected test of the paper.

    If neither batch varies, the score is 0 and p = 1. If all points of a batch have the same distance from its centre, in both
    batches (for example, one batch is constant and the other takes two values equally often), the statistic is infinite: the
    score is 700, or -700, and p = 0. A batch of one point is constant. Two such batches give score 0 and p = 1.

    Parameters
    ----------
    clean, tested : ndarray of float, shape (B,)
        W of the points of each batch, at least one point each.
    center : {"mean", "median"}
        The original test of Levene, or Brown and Forsythe's variant. The paper does not say which it used.

    Raises
    ------
    ValueError
        For an empty batch, values that are not finite, or an unknown centre.

    >>> levene(np.array([2.0, 4, 6, 8, 10]), np.array([1.0, 2, 3, 4, 5])).pvalue.__round__(4)
    0.1894
    >>> levene(np.zeros(25), np.zeros(25))
    Levene(score=0.0, pvalue=1.0)
    """
    if center not in ("mean", "median"):
        raise ValueError(f"center must be mean or median, got {center!r}")
    kept = [without_outliers(_checked_batch(name, w)) for name, w in (("clean", clean), ("tested", tested))]
    centre_of = np.mean if center == "mean" else np.median
    deviations = [np.abs(batch - centre_of(batch)) for batch in kept]
    means, points = [own.mean() for own in deviations], sum(map(len, deviations))
    less = float(means[0] - means[1])
    if abs(less) < ROUNDING or points < 3:
        return Levene(0.0, 1.0)
    if all(np.ptp(own) < ROUNDING for own in deviations):
        return Levene(float(np.sign(less)) * MAX_SCORE, 0.0)
    # The rest equals stats.levene and stats.f.logsf to the last digit. It skips their checks, which take most of their time.
    middle = sum(len(own) * mean for own, mean in zip(deviations, means, strict=True)) / points
    between = sum(len(own) * np.square(mean - middle) for own, mean in zip(deviations, means, strict=True))
    within = sum(np.square(own - mean).sum() for own, mean in zip(deviations, means, strict=True))
    of_f = 1, points - 2, (points - 2) * between / within
    p = special.fdtrc(*of_f)
    with np.errstate(divide="ignore"):
        log_p = float(np.log(p) if p < 0.5 else np.log1p(-special.fdtr(*of_f)))
    return Levene(float(np.sign(less)) * min(-log_p, MAX_SCORE), float(np.exp(log_p)))


def _checked_batch(name: str, w: NDArray[np.floating[Any]]) -> Floats:
    batch = np.asarray(w, dtype=float)
    if batch.ndim != 1 or not len(batch) or not np.isfinite(batch).all():
        raise ValueError(f"the {name} batch must be finite values of W, shape (B,), got {str(batch.tolist())[:60]}")
    return batch


def auc(scores: ArrayLike, positive: ArrayLike, networks: ArrayLike, *, resamples: int = 1000, seed: int = 0) -> Estimate:
    """Compute the area under the ROC curve, with an interval that resamples networks, each with all its batches.

    The area is the fraction of pairs of a positive and a negative batch in which the positive batch has the higher score; a tie
    counts half. If the scores separate perfectly, they do so in every resample, and the interval has zero width. It then says
    nothing about other networks. The estimate's number of networks is the number with a positive batch or the number with a
    negative batch, whichever is smaller.

    Parameters
    ----------
    scores, positive, networks : array_like, shape (M,)
        The score of each batch, whether it is positive, and its network.

    >>> print(auc([3.0, 2.0, 1.0, 0.0], [True, True, False, False], [0, 1, 0, 1]))
    1.000 [1.000, 1.000]
    """
    from sklearn.metrics import roc_auc_score

    values, found = np.asarray(scores, dtype=float), np.asarray(positive, dtype=bool)
    names, which = np.unique(np.asarray(networks), return_inverse=True)
    value = float(roc_auc_score(found, values))
    difference = values[found][:, None] - values[~found]
    wins = (difference > 0) + 0.5 * (difference == 0)
    drawn = np.random.default_rng(seed).multinomial(len(names), np.full(len(names), 1 / len(names)), size=resamples)
    weights = drawn[:, which[found]], drawn[:, which[~found]]
    with np.errstate(invalid="ignore"):  # a resample without positive or without negative batches gives NaN
        draws = np.einsum("rp,pn,rn->r", weights[0], wins, weights[1], optimize=True) / (weights[0].sum(1) * weights[1].sum(1))
    fewest = min(len(np.unique(which[found])), len(np.unique(which[~found])))
    return percentile_estimate(value, draws, fewest, within=(0, 1))


def within_chance(distances: Floats, freedom: int, unit: str, *, chance: float = 1e-3) -> tuple[bool, str]:
    """Return whether the largest of several distances is within the range of chance, and a description in words.

    Parameters
    ----------
    distances : ndarray
        In units that were estimated with ``freedom`` degrees of freedom.
    freedom : int
    unit : str
        Name of the unit.
    chance : float
        Probability that the largest distance exceeds the bound by chance, with Bonferroni's correction.

    >>> within_chance(np.array([1.0, 2.0]), 100, "standard errors")
    (True, 'at most 2.0 standard errors apart; up to 3.6 is chance')
    """
    bound = float(stats.t.isf(chance / distances.size / 2, freedom))
    return bool(distances.max() <= bound), f"at most {distances.max():.1f} {unit} apart; up to {bound:.1f} is chance"
