"""Estimates with confidence intervals, on top of SciPy.

The independent repeats of this book are seeds. Networks of one seed, such as one with each trigger, start from the same weights
and see the same test images with the same noise, so they count as one repeat. One rule gives all intervals. The standard error
comes from the jackknife, which leaves out one seed with all its networks at a time, and the interval from Student's t
(:meth:`Replicates.estimate`). For means it is the usual t interval over repeats; the noise of points is part of the variation
between them. Accuracies of a single network, and fractions without variation, get Wilson's interval.
``benchmarks/coverage.py`` measures how often intervals cover.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import special, stats

__all__ = [
    "Estimate", "Estimates", "Levene", "NotYetRun", "Replicates", "anomaly_index", "area_replicates", "auc", "leave_one_out",
    "levene", "mean_of_networks", "p_of_one_more", "share_of_repeats", "success_rate", "variation_of_networks", "wilson",
    "within_chance",
]  # fmt: skip

Floats = NDArray[np.float64]
LEVEL = 0.95
#: Largest score of Levene's test. The p-value of a slightly larger score would underflow a float.
MAX_SCORE = 700.0
#: Deviations from the mean below this value are rounding errors and count as 0.
ROUNDING = 1e-12


@dataclass(frozen=True)
class Estimate:
    """A value with its 95% interval and number of repeats; a format applies to the value and both ends.

    >>> print(Estimate(0.8812, 0.8790, 0.8834, 5), f"{Estimate(0.8812, 0.8790, 0.8834, 5):.1%}")
    0.881 [0.879, 0.883] 88.1% [87.9%, 88.3%]
    """

    value: float
    low: float
    high: float
    repeats: int

    def __format__(self, spec: str) -> str:
        sign, rest = (spec[0], spec[1:]) if spec[:1] in ("+", "-", " ") else ("", spec or ".3f")
        one = f"{sign}z{rest}"  # z: no negative zero
        interval = "" if np.isnan(self.low) else f" [{self.low:{one}}, {self.high:{one}}]"
        return f"{self.value:{one}}{interval}".replace("-", "\N{MINUS SIGN}")

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


class Replicates(NamedTuple):
    """A statistic of some repeats, and its jackknife replicates: the same statistic with one repeat left out.

    Functions of a statistic apply to both. Of a single network :func:`leave_one_out` leaves out one point at a time. The
    interval then describes that network alone.

    Parameters
    ----------
    value : ndarray
    without : ndarray, shape (R, ...)
        One replicate for each of R repeats, or for each point of a single network.
    repeats : int
        R, or fewer where some of them carry only a part of the statistic.
    """

    value: Floats
    without: Floats
    repeats: int

    def estimate(
        self,
        function: Callable[[Floats], Any] = lambda v: v,
        *,
        within: tuple[float, float] = (-np.inf, np.inf),
        correlation: bool = False,
    ) -> Estimate:
        """The estimate of a function of the statistic, with the interval of the jackknife and Student's t.

        For means this is Student's t interval over the repeats' own means. Undefined replicates (NaN) are left out. A fraction
        that no repeat changes gets Wilson's interval with one trial per repeat.

        Parameters
        ----------
        function : callable
            Maps arrays (...) or (R, ...) to numbers () or (R,).
        within : (float, float)
            The smallest and the largest possible value.
        correlation : bool
            Whether the function is a correlation, whose interval is computed on Fisher's z scale.

        >>> means = np.array([1.0, 2.0, 3.0])
        >>> print(leave_one_out([np.array([m]) for m in means], lambda w: w.mean(-1)).estimate())
        2.000 [−0.484, 4.484]
        """
        value, without = float(function(self.value)), np.asarray(function(self.without), dtype=float)
        if correlation:
            of_value, without = _fisher_z(value), _fisher_z(without)
        error, freedom = self._error(without)
        if not np.isfinite(value) or not freedom:
            return Estimate(value, float("nan"), float("nan"), self.repeats)
        if error < ROUNDING and within == (0, 1) and self.repeats > 1:
            return _wilson(value, self.repeats, self.repeats)
        reach = float(stats.t.isf((1 - LEVEL) / 2, freedom)) * error
        if correlation and abs(value) < 1:
            return Estimate(value, float(np.tanh(of_value - reach)), float(np.tanh(of_value + reach)), self.repeats)
        low, high = np.clip([value - reach, value + reach], *((-1, 1) if correlation else within))
        return Estimate(value, float(low), float(high), self.repeats)

    def p_of_correlation(self, other: float, error: float) -> Estimate:
        """The p-value for this correlation and another, independent one being the same, on Fisher's z scale.

        Parameters
        ----------
        other : float
            The other correlation.
        error : float
            Its standard error on that scale.

        Returns
        -------
        Estimate
            Without an interval; NaN where our own error is unknown.
        """
        ours = self._error(_fisher_z(self.without))
        both = _together([ours, (error, np.inf)]) if ours[1] else (float("nan"), 1.0)
        p = float(2 * stats.t.sf(abs(float(_fisher_z(self.value) - _fisher_z(other))) / both[0], both[1]))
        return Estimate(p, p, p, 0)

    def at(self, *index: int) -> Replicates:
        """One entry of a statistic that is an array; the index counts from its last axes."""
        where: Any = (..., *index)
        return self._replace(value=self.value[where], without=self.without[where])

    def minus(self, other: Replicates, function: Callable[[Floats], Any] = lambda v: v) -> Estimate:
        """The estimate of the difference of a function of two independent statistics, with Welch's degrees of freedom."""
        value = float(function(self.value) - function(other.value))
        error, freedom = _together([part._error(np.asarray(function(part.without), dtype=float)) for part in (self, other)])
        reach = float(stats.t.isf((1 - LEVEL) / 2, freedom)) * error if freedom and np.isfinite(value) else float("nan")
        return Estimate(value, value - reach, value + reach, min(self.repeats, other.repeats))

    def _error(self, without: Floats) -> tuple[float, float]:
        """The standard error from replicates of a function of the statistic, without undefined ones; and degrees of freedom."""
        defined = without[np.isfinite(without)]
        if (n := len(defined)) < 2:
            return 0.0, 0.0
        freedom = (n if self.repeats == 1 else min(n, self.repeats)) - 1
        return float(((n - 1) / n * np.square(defined - defined.mean()).sum()) ** 0.5), float(freedom)


def _fisher_z(correlation: ArrayLike) -> Floats:
    """Correlations on Fisher's z scale; those of 1 and -1 stay finite."""
    return np.arctanh(np.clip(np.asarray(correlation, dtype=float), -1 + 1e-9, 1 - 1e-9))


def _together(errors: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """The error of a sum of independent parts, and Satterthwaite's degrees of freedom; parts without freedom are left out."""
    known = [(error, freedom) for error, freedom in errors if freedom]
    variance = sum(error**2 for error, _ in known)
    if not variance:
        return 0.0, sum(freedom for _, freedom in known)
    shares = sum((error**2 / variance) ** 2 / freedom for error, freedom in known)
    return variance**0.5, 1 / shares if shares else float("inf")


def wilson(count: float, of: int) -> tuple[float, float]:
    """Return the ends of Wilson's 95% interval of a fraction; the count need not be whole, as of an area under an ROC curve.

    >>> wilson(0, 5)
    (0.0, 0.434...)
    """
    z2 = float(stats.norm.isf((1 - LEVEL) / 2)) ** 2
    share, shrunk = count / of, 1 + z2 / of
    centre, reach = share + z2 / (2 * of), (z2 * (share * (1 - share) / of + z2 / (4 * of**2))) ** 0.5
    return max(0.0, (centre - reach) / shrunk), min(1.0, (centre + reach) / shrunk)


def _wilson(value: float, trials: int, repeats: int) -> Estimate:
    """A fraction with Wilson's interval."""
    low, high = wilson(value * trials, trials)
    return Estimate(value, min(value, low), max(value, high), repeats)


def leave_one_out(repeats: Sequence[Floats] | Floats, statistic: Callable[[Floats], Floats] = lambda w: w.mean(-1)) -> Replicates:
    """Average a statistic over repeats, and compute its jackknife replicates.

    Parameters
    ----------
    repeats : sequence of R arrays, shape (..., B), or one array (R, ..., B)
        For each repeat, one value for each point of its batch (last axis). Batches may differ in length.
    statistic : callable
        Maps an array (..., B) to an array, for example of means.

    >>> leave_one_out([np.array([0.0, 1.0]), np.array([1.0, 2.0])]).without.tolist()
    [1.5, 0.5]
    """
    of_each = np.stack([statistic(np.asarray(w, dtype=float)) for w in repeats])
    r = len(of_each)
    if r > 1:
        return Replicates(of_each.mean(0), (of_each.sum(0) - of_each) / (r - 1), r)
    (w,) = repeats
    points = np.stack([statistic(np.delete(w, b, axis=-1)) for b in range(w.shape[-1])]) if w.shape[-1] > 1 else of_each[:0]
    return Replicates(of_each[0], points, 1)


def share_of_repeats(repeats: Sequence[NDArray[np.bool_]]) -> Estimate:
    """Compute the mean over repeats of the fraction of each one's pairs, points or batches that count.

    If all values agree, which would give zero width, or each repeat has one value, the interval is Wilson's, with one trial per
    repeat (per value if there is only one repeat).

    Parameters
    ----------
    repeats : sequence of R arrays of bool, shape (M,)
        Whether each value counts.

    >>> print(share_of_repeats([np.zeros(10, dtype=bool)] * 5))
    0.000 [0.000, 0.434]
    """
    value, r = float(np.mean([own.mean() for own in repeats])), len(repeats)
    if value in (0.0, 1.0) or all(len(own) == 1 for own in repeats):
        return _wilson(value, r if r > 1 else len(repeats[0]), r)
    return leave_one_out([own.astype(float) for own in repeats]).estimate(within=(0, 1))


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
    if len(shares) == 1:
        return _wilson(float(shares[0]), trials, 1)
    return leave_one_out([np.array([share]) for share in shares]).estimate(within=(0, 1))


def p_of_one_more(values: Sequence[float], value: float) -> Estimate:
    """The p-value for one more network having this value, from the values of some: Student's t for a single prediction.

    The paper reports one network where we measured several. The interval of our mean narrows with every network, and the paper's
    network may lie outside of it although nothing differs.

    Parameters
    ----------
    values : sequence of R floats
        One for each network; with fewer than two, or without variation, the result is NaN.
    value : float
        That of the one network.

    >>> print(p_of_one_more([0.1, 0.2, 0.3], 0.2))
    1.000 [1.000, 1.000]
    """
    k = len(values)
    spread = float(np.std(values, ddof=1)) * (1 + 1 / k) ** 0.5 if k > 1 else 0.0
    p = float(2 * stats.t.sf(abs(value - float(np.mean(values))) / spread, k - 1)) if spread else float("nan")
    return Estimate(p, p, p, 0)


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


def _inside(values: NDArray[np.floating[Any]]) -> NDArray[np.bool_]:
    """Whether each value of a batch, shape (..., B), is within 1.5 interquartile ranges of its quartiles (Eq. 4).

    If three quarters are equal, which is common since W is often 0, all others are outside.
    """
    first, third = np.percentile(values, [25, 75], axis=-1, keepdims=True)
    reach = 1.5 * (third - first)
    return (values >= first - reach) & (values <= third + reach)


class Levene(NamedTuple):
    """Result of :func:`levene`: floats, or arrays. A high score means that a tested batch varies less than the clean one."""

    score: Any
    pvalue: Any


def levene(
    clean: NDArray[np.floating[Any]], tested: NDArray[np.floating[Any]], *, center: str = "mean", outliers: bool = False
) -> Levene:
    """Run Levene's test with a direction on W of a clean and a tested batch, without outliers (Sec. 3.2.4).

    The score is the negative logarithm of the p-value, at most 700. It is negative if the tested batch varies more. Its absolute
    value is the undirected test of the paper.

    If neither batch varies, the score is 0 and p = 1. If all points of a batch have the same distance from its centre, in both
    batches (for example, one batch is constant and the other takes two values equally often), the statistic is infinite: the
    score is 700, or -700, and p = 0. A batch of one point is constant. Two such batches give score 0 and p = 1.

    Parameters
    ----------
    clean, tested : ndarray of float, shape (..., B)
        W of the points of each batch, at least one point each. The leading dimensions count batches and are broadcast.
    center : {"mean", "median"}
        The original test of Levene, or Brown and Forsythe's variant. The paper does not say which it used.
    outliers : bool
        Whether outliers stay. The paper removes them; then p is no p-value, since the removal makes batches differ.

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
    batches = [_checked_batch(name, w) for name, w in (("clean", clean), ("tested", tested))]
    groups = [_deviations(batch, center, outliers) for batch in batches]
    means, sizes, within, constant = zip(*groups, strict=True)
    points, less = sum(sizes), means[0] - means[1]
    # stats.levene and stats.f.logsf, for many pairs at once.
    middle = sum(size * mean for size, mean in zip(sizes, means, strict=True)) / points
    between = sum(size * np.square(mean - middle) for size, mean in zip(sizes, means, strict=True))
    with np.errstate(divide="ignore", invalid="ignore"):
        of_f = 1, points - 2, (points - 2) * between / sum(within)
        p = special.fdtrc(*of_f)
        log_p = np.where(p < 0.5, np.log(p), np.log1p(-special.fdtr(*of_f)))
    log_p = np.where(constant[0] & constant[1], -np.inf, log_p)
    log_p = np.where((abs(less) < ROUNDING) | (points < 3), 0.0, log_p)
    score, pvalue = np.sign(less) * np.minimum(np.abs(log_p), MAX_SCORE), np.exp(log_p)
    return Levene(score, pvalue) if np.ndim(score) else Levene(float(score), float(pvalue))


def _deviations(batch: Floats, center: str, outliers: bool) -> tuple[NDArray[Any], ...]:
    """Of the distances from a batch's centre: mean, number, sum of squares around the mean, and whether all are equal."""
    values = batch if outliers else np.where(_inside(batch), batch, np.nan)
    centre = (np.nanmean if center == "mean" else np.nanmedian)(values, axis=-1, keepdims=True)
    distances = np.abs(values - centre)
    mean, number = np.nanmean(distances, axis=-1), np.isfinite(distances).sum(-1)
    around = np.nansum(np.square(distances - mean[..., None]), axis=-1)
    return mean, number, around, np.nanmax(distances, axis=-1) - np.nanmin(distances, axis=-1) < ROUNDING


def _checked_batch(name: str, w: NDArray[np.floating[Any]]) -> Floats:
    batch = np.asarray(w, dtype=float)
    if not batch.ndim or not batch.shape[-1] or not np.isfinite(batch).all():
        raise ValueError(f"the {name} batch must be finite values of W, shape (..., B), got {str(batch.tolist())[:60]}")
    return batch


def auc(scores: ArrayLike, positive: ArrayLike, repeats: ArrayLike) -> Estimate:
    """Compute the area under the ROC curve and its interval; the parameters are those of :func:`area_replicates`.

    If the scores separate perfectly, they still do without any one repeat. The interval is then Wilson's, with one trial per
    repeat.

    >>> print(auc([3.0, 2.0, 1.0, 0.0], [True, True, False, False], [0, 1, 0, 1]))
    1.000 [0.342, 1.000]
    """
    return area_replicates(scores, positive, repeats).estimate(within=(0, 1))


def area_replicates(scores: ArrayLike, positive: ArrayLike, repeats: ArrayLike) -> Replicates:
    """Compute the area under the ROC curve, and the areas without one repeat and all its batches.

    The area is the fraction of pairs of a positive and a negative batch in which the positive batch has the higher score; a tie
    counts half. The number of repeats is the number with a positive batch or the number with a negative batch, whichever is
    smaller.

    Parameters
    ----------
    scores, positive, repeats : array_like, shape (M,)
        The score of each batch, whether it is positive, and the seed of its network.
    """
    values, found = np.asarray(scores, dtype=float), np.asarray(positive, dtype=bool)
    names, which = np.unique(np.asarray(repeats), return_inverse=True)
    difference = values[found][:, None] - values[~found]
    wins = (difference > 0) + 0.5 * (difference == 0)
    weights = np.vstack([np.ones(len(names)), 1 - np.eye(len(names))])  # all repeats, then all but one
    of_positive, of_negative = weights[:, which[found]], weights[:, which[~found]]
    with np.errstate(invalid="ignore"):  # without any positive or any negative batch the area is NaN
        areas = np.einsum("rp,pn,rn->r", of_positive, wins, of_negative, optimize=True)
        areas = areas / (of_positive.sum(1) * of_negative.sum(1))
    fewest = min(len(np.unique(which[found])), len(np.unique(which[~found])))
    return Replicates(areas[0], areas[1:] if fewest > 1 else areas[:0], fewest)


def anomaly_index(norms: ArrayLike, success: ArrayLike | None = None) -> float:
    """Return how far the smallest norm is below the median, in median absolute deviations times 1.4826 (Neural Cleanse).

    Above 2, the authors classify the network as backdoored. The median of an even number of norms is the mean of the middle two.

    Parameters
    ----------
    norms : array_like, shape (K,)
        L1 norms of the masks.
    success : array_like, shape (K,), optional
        As in :class:`bslib.patterns.neural_cleanse.Candidates`. Masks with NaN never reached the threshold and are ignored.

    Returns
    -------
    float
        0 if no norm is below the median or fewer than three masks reached the threshold; infinite if the smallest norm is below
        the median but fewer than half of the norms deviate from it.

    Raises
    ------
    ValueError
        For fewer than three classes. The index of any two norms is 0.674.

    >>> round(anomaly_index([10, 60, 62, 65, 70, 72, 75, 80, 85, 90]), 6)
    4.571548
    """
    values = np.asarray(norms, dtype=float)
    if values.size < 3:
        raise ValueError(f"an anomaly index compares at least three classes, got {values.size}")
    if success is not None:
        values = values[~np.isnan(np.asarray(success, dtype=float))]
    if values.size < 3:
        return 0.0
    median = np.median(values)
    below = float(median - values.min())
    deviation = float(1.4826 * np.median(np.abs(values - median)))
    return below / deviation if deviation else float("inf") if below else 0.0


def within_chance(distances: Floats, freedom: int, unit: str) -> tuple[bool, str]:
    """Return whether the largest of several distances is within the range of chance, and a description in words.

    By chance it exceeds the bound once in a thousand times, with Bonferroni's correction.

    Parameters
    ----------
    distances : ndarray
        In units that were estimated with ``freedom`` degrees of freedom.
    freedom : int
    unit : str
        Name of the unit.

    >>> within_chance(np.array([1.0, 2.0]), 100, "standard errors")
    (True, 'at most 2.0 standard errors apart; up to 3.6 is chance')
    """
    bound = float(stats.t.isf(1e-3 / distances.size / 2, freedom))
    return bool(distances.max() <= bound), f"at most {distances.max():.1f} {unit} apart; up to {bound:.1f} is chance"
