"""How well a score tells triggered from clean images, and tests of a batch of W against a clean batch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from bslib.statistics import levene

__all__ = ["TESTS", "detection_rate", "flagged", "permutation_test"]

Floats = NDArray[np.float64]
#: Random assignments of a permutation test.
PERMUTATIONS = 999


def detection_rate(clean: Floats, triggered: Floats, *, alarms: float = 0.05) -> float:
    """The fraction of triggered images above the threshold that a fraction ``alarms`` of the clean images exceed.

    Images at the threshold itself are flagged at random, as often as it takes to reach ``alarms``. W is often 0, so many are.

    >>> detection_rate(np.zeros(100), np.array([0.0, 1.0]))
    0.525
    """
    allowed = alarms * len(clean)
    threshold = np.sort(clean)[::-1][int(allowed + 1e-9)]
    at_random = (allowed - (clean > threshold).sum()) / (clean == threshold).sum()
    return float((triggered > threshold).mean() + at_random * (triggered == threshold).mean())


def flagged(scores: Floats, positive: NDArray[np.bool_], seeds: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Whether each network is flagged by a threshold that networks with other seeds set: that of the best balanced accuracy.

    >>> flagged(np.array([1.0, 2.0, 6.0, 7.0]), np.array([False, False, True, True]), np.arange(4)).tolist()
    [False, False, True, True]
    """
    flags = np.zeros(len(scores), dtype=bool)
    for k in range(len(scores)):
        others, own = scores[seeds != seeds[k]], positive[seeds != seeds[k]]
        ordered = np.unique(others)
        thresholds = (ordered[1:] + ordered[:-1]) / 2
        if len(thresholds):  # networks that all have one score set none
            balance = [(others > t)[own].mean() - (others > t)[~own].mean() for t in thresholds]
            flags[k] = scores[k] > thresholds[int(np.argmax(balance))]
    return flags


def permutation_test(clean: Floats, tested: Floats) -> Floats:
    """The p-values of one-sided permutation tests of whether the mean of a tested batch is lower than that of a clean batch.

    Parameters
    ----------
    clean, tested : ndarray of float, shape (..., B)

    Returns
    -------
    ndarray of float, shape (...)
        The random assignments of points are the same for all batches and every call.
    """
    pooled, points = np.concatenate([tested, clean], axis=-1), tested.shape[-1]
    order = np.random.default_rng(0).permuted(np.tile(np.arange(pooled.shape[-1]), (PERMUTATIONS, 1)), axis=1)
    chosen = (order < points).astype(float)
    lower = pooled @ chosen.T <= tested.sum(-1)[..., None] + 1e-9
    return (lower.sum(-1) + 1) / (PERMUTATIONS + 1)


def _levene(clean: Floats, tested: Floats) -> Floats:
    """The paper's test, after its outlier rule."""
    return levene(clean, tested).pvalue


def _without_nan(test: Callable[..., Any], **how: Any) -> Callable[[Floats, Floats], Floats]:
    """A test of SciPy as a function of clean and tested batches; p is 1 where all values are equal, which leaves it undefined."""

    def p_values(clean: Floats, tested: Floats) -> Floats:
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.nan_to_num(test(tested, clean, axis=-1, **how).pvalue, nan=1.0)

    return p_values


#: The tests of batches: functions of W (..., B) of clean and tested batches that return p-values (...).
#:
#: :meta hide-value:
TESTS: dict[str, Callable[[Floats, Floats], Floats]] = {
    "levene": _levene,
    "brown-forsythe": _without_nan(stats.levene, center="median"),
    "mann-whitney": _without_nan(stats.mannwhitneyu, alternative="less", method="asymptotic"),
    "permutation": permutation_test,
    "two-sided": _without_nan(stats.mannwhitneyu, alternative="two-sided", method="asymptotic"),
}
