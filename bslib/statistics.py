"""Estimates with intervals, thin over SciPy: what repeats are, and what is resampled first.

Networks are the repeats of this book: an interval that resamples only points would speak of one network. So intervals resample
networks first, and then the points of each; and since networks are few, they are made as much wider as Student's t is
(:func:`small_sample_factor`).
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
#: The largest score of Levene's test: a little more, and its p-value is too small for a float.
MAX_SCORE = 700.0
#: What a mean leaves of equal numbers: deviations below this are none.
ROUNDING = 1e-12


@dataclass(frozen=True)
class Estimate:
    """A value with a 95 % interval and the number of networks it rests on; a format applies to all three numbers.

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
    """Stands where an :class:`Estimate` will stand once its records exist; says so in any format.

    >>> f"{NotYetRun():+.2f}"
    '(not yet run)'
    """

    def __format__(self, spec: str) -> str:
        return "(not yet run)"


class Estimates(dict[str, Estimate]):
    """Estimates by name; a name without records gives :class:`NotYetRun`, so that prose can be written before the records.

    >>> f"{Estimates()['growth']:.1f}"
    '(not yet run)'
    """

    def __missing__(self, name: str) -> Any:
        return NotYetRun()

    @classmethod
    def of(cls, parts: Iterable[Mapping[str, Estimate]]) -> Estimates:
        """The estimates of several parts, whose names differ."""
        return cls({name: estimate for part in parts for name, estimate in part.items()})


def nested_bootstrap(
    networks: Sequence[Floats],
    statistic: Callable[[Floats], Floats],
    *,
    resamples: int = 1000,
    seed: int = 0,
) -> tuple[Floats, Floats]:
    """A statistic of a batch, averaged over networks, and its bootstrap draws: networks are resampled first, then points.

    Parameters
    ----------
    networks : sequence of R arrays, shape (..., B)
        One value for each point of each network's batch (last axis) in any number of settings, which stay paired.
    statistic : function of an array (..., B) or (..., K, B)
        Returns an array of one shape for every batch; of K batches at once, this shape and K behind it.
    resamples : int
    seed : int

    Returns
    -------
    value : ndarray
        The average over networks of the statistic.
    draws : ndarray, shape (resamples, ...)
        The same for each resample.

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
    """The networks that each resample draws, (resamples, R), and the points of each network each time that it is drawn."""
    rng, r = np.random.default_rng(seed), len(batches)
    chosen, points = np.empty((resamples, r), dtype=np.int64), [[] for _ in batches]  # type: tuple[Any, list[list[Any]]]
    for places in chosen:
        places[:] = rng.integers(r, size=r)
        for b, neighbours in itertools.groupby(places.tolist(), key=batches.__getitem__):
            alike = list(neighbours)  # batches of one length: a single call draws what one for each would
            for k, own in zip(alike, rng.integers(b, size=(len(alike), b)), strict=True):
                points[k].append(own)
    return chosen, [np.array(own) for own in points]


def nested_bootstrap_of_means(networks: Sequence[Floats], *, resamples: int = 1000, seed: int = 0) -> tuple[float, Floats]:
    """The mean over networks of each one's mean, and its :func:`nested_bootstrap`, for one setting and without a loop over draws.

    Parameters
    ----------
    networks : sequence of R arrays, shape (B,)
        One value for each point of each network's batch; the batches may differ in length.
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
    # Every network for every place, of which one is taken: r times the work of the loop, in a thousandth of its calls.
    means = np.stack([w[rng.integers(len(w), size=(resamples, r, len(w)))].mean(-1) for w in networks], axis=-1)
    return float(np.mean([w.mean() for w in networks])), np.take_along_axis(means, chosen, axis=-1).mean((1, 2))


@functools.cache
def small_sample_factor(networks: int) -> float:
    """How much wider an interval has to be than what is cut from bootstrap draws of so few networks.

    Draws of k networks have only (k - 1) / k of the variance of a mean over k networks, and their percentiles take what is left
    for known, where Student's t does not. One network is not drawn anew, only its points: nothing is made wider.

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
    """An estimate whose interval is cut from bootstrap draws and made wider about their median, by :func:`small_sample_factor`.

    Parameters
    ----------
    value : float
    draws : ndarray
        Of the same statistic, on resampled networks; a draw that is not defined (NaN) takes no part.
    networks : int
        How many there were to draw from.
    within : (float, float)
        The smallest and the largest value that the statistic can have.

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
    """The mean over networks of a share of each one's pairs, points or batches.

    They are alike on one network, so networks are resampled. Where all agree, resampling would leave no width: then, and where
    each network has one value, the interval is Wilson's, with as many trials as there are networks (a single network's values).

    Parameters
    ----------
    networks : sequence of R arrays of bool, shape (M,)
        Whether each of a network's values counts.

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
    """The fraction of triggered images that are predicted as what the attacker wants.

    Parameters
    ----------
    predicted, labels, wanted : ndarray of int, shape (N,)
        The predicted classes of triggered images, their true ones, and those that the attacker wants
        (:meth:`bslib.threat_models.ThreatModel.target_labels`).
    count_target : bool
        Count images of the target class too. They are predicted as what the attacker wants without any trigger, so an unused
        trigger reaches a tenth of the accuracy.

    >>> success_rate(np.array([3, 3, 1]), np.array([3, 0, 1]), np.array([3, 3, 3]))
    0.5
    """
    counted = np.ones(len(labels), dtype=bool) if count_target else wanted != labels
    return float((predicted == wanted)[counted].mean())


def mean_of_networks(shares: Sequence[float], trials: int) -> Estimate:
    """The mean of a share (an accuracy) over networks: Student's t within [0, 1], or for one network the binomial interval.

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
    """The standard deviation over networks as a share of the mean, with the chi-square interval of the former.

    Raises
    ------
    ValueError
        For fewer than two networks, which have no variation.

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
    """The values that are no outliers (Eq. 4): at most 1.5 interquartile ranges below the first quartile or above the third.

    Where all values are equal, nothing is removed. Where three quarters of them are, and W is often 0, all others are.

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
    """What ``np.percentile`` gives, to the last digit and in a tenth of the time."""
    at = share * (len(ordered) - 1)
    below, part = int(at), at % 1
    low, high = ordered[below], ordered[min(below + 1, len(ordered) - 1)]
    return low + (high - low) * part if part < 0.5 else high - (high - low) * (1 - part)


class Levene(NamedTuple):
    """What :func:`levene` found: high scores say that the tested batch varies less than the clean one."""

    score: float
    pvalue: float


def levene(clean: NDArray[np.floating[Any]], tested: NDArray[np.floating[Any]], *, center: str = "mean") -> Levene:
    """Levene's test on W of a clean and of a tested batch, after the outlier rule, with a direction (Sec. 3.2.4).

    The score is the negative logarithm of the p-value, at most 700, with a minus sign where the tested batch varies more. Its
    absolute value is the test without a direction, as the paper has it.

    Where neither batch varies there is no evidence: score 0, p = 1. Where each batch deviates from its centre by one amount only
    (one is constant, say, and the other takes two values equally often) the statistic has no bound: the score is 700 and p = 0.
    A batch of one point is constant; two such leave nothing to test: score 0, p = 1.

    Parameters
    ----------
    clean, tested : ndarray of float, shape (B,)
        W of the points of each batch, at least one each.
    center : {"mean", "median"}
        Levene's own form of the test, or Brown and Forsythe's; the paper does not say which it used.

    Raises
    ------
    ValueError
        For an empty batch, values that are not finite, or another centre.

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
    # What follows is stats.levene and stats.f.logsf to the last digit, without their checks, which take most of their time.
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
    """The area under the ROC curve, with an interval that resamples networks, each with all its batches.

    It is the share of pairs, one batch that is positive and one that is not, in which the positive one has the higher score; a
    tie counts half. Where the scores of this sample separate perfectly, so do those of every resample, and the interval has no
    width: it cannot tell what other networks would do. It rests on as many networks as have a positive batch, or a negative one
    where those are fewer.

    Parameters
    ----------
    scores, positive, networks : array_like, shape (M,)
        A batch's score, whether it is one that should be found, and which network it belongs to.

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
    with np.errstate(invalid="ignore"):  # a resample without a positive or without a negative batch has no area
        draws = np.einsum("rp,pn,rn->r", weights[0], wins, weights[1], optimize=True) / (weights[0].sum(1) * weights[1].sum(1))
    fewest = min(len(np.unique(which[found])), len(np.unique(which[~found])))
    return percentile_estimate(value, draws, fewest, within=(0, 1))


def within_chance(distances: Floats, freedom: int, unit: str, *, chance: float = 1e-3) -> tuple[bool, str]:
    """Whether the largest of several distances is no larger than chance allows, and that in words.

    Parameters
    ----------
    distances : ndarray
        In units that were estimated with ``freedom`` degrees of freedom.
    freedom : int
    unit : str
        The name of the units.
    chance : float
        The probability that the largest distance exceeds the bound by chance; Bonferroni's correction for several.

    >>> within_chance(np.array([1.0, 2.0]), 100, "standard errors")
    (True, 'at most 2.0 standard errors apart; up to 3.6 is chance')
    """
    bound = float(stats.t.isf(chance / distances.size / 2, freedom))
    return bool(distances.max() <= bound), f"at most {distances.max():.1f} {unit} apart; up to {bound:.1f} is chance"
