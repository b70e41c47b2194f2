"""W from class counts: Eq. 3 of the paper, estimators that correct its bias, and intervals.

*Class counts* are how often each class was predicted for noisy copies of an image (last axis: classes). The functions here take
class counts as numpy arrays and do not need the network.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import special

__all__ = ["ESTIMATORS", "entropy", "entropy_interval", "grassberger", "miller_madow", "plug_in"]

Floats = NDArray[np.float64]


def plug_in(counts: ArrayLike) -> Floats:
    r"""The paper's estimator: the entropy of the observed frequencies, in nats (Eq. 3).

    .. math:: W = -\sum_k \hat p_k \log \hat p_k, \qquad \hat p_k = \text{counts}_k / n

    Its bias is about :math:`-(K - 1) / 2n`, where K is the number of classes that can occur (Miller 1955).

    Parameters
    ----------
    counts : array_like of int, shape (..., C)
        How often each of C classes was predicted.

    Returns
    -------
    ndarray of float, shape (...)

    >>> plug_in([[250, 0], [125, 125]]).round(4).tolist()
    [0.0, 0.6931]
    """
    counts = _checked(counts)
    return special.entr(counts / counts.sum(-1, keepdims=True)).sum(-1)


def miller_madow(counts: ArrayLike) -> Floats:
    r"""The plug-in entropy plus :math:`(K - 1) / 2n`, with K the number of classes *observed* (Miller 1955), in nats.

    Classes too rare to be observed are not in K, so part of the bias remains if there are any. The value is not clipped at
    :math:`\log C`.

    Parameters and return value as for :func:`plug_in`.

    >>> miller_madow([5, 5]).round(4).item(), miller_madow([10, 0]).item()
    (0.7431, 0.0)
    """
    counts = _checked(counts)
    seen = np.count_nonzero(counts, axis=-1)
    return plug_in(counts) + (seen - 1) / (2 * counts.sum(-1))


def grassberger(counts: ArrayLike) -> Floats:
    r"""Grassberger's estimator (2003) for a fixed number of samples, in nats; its remaining bias comes from rare classes.

    .. math:: \psi(n) - \frac{1}{n} \sum_k c_k\, G(c_k), \qquad
        G(c) = \psi(c) + \frac{(-1)^c}{2} \left[ \psi\left(\frac{c+1}{2}\right) - \psi\left(\frac{c}{2}\right) \right]

    with the counts :math:`c_k` and the digamma function :math:`\psi`. For an infinite number of samples, :math:`\psi(n)` becomes
    the :math:`\log n` of his paper (Schuermann 2004). If only one class was observed, the value is set to 0; the formula would
    give :math:`\pm 1/2n`.

    Parameters and return value as for :func:`plug_in`.

    >>> grassberger([5, 3, 2]).round(4).item(), grassberger([10, 0]).item()
    (1.1888, 0.0)
    """
    counts = _checked(counts)
    n = counts.sum(-1)
    c = np.maximum(counts, 1)  # avoids the infinite digamma of an unobserved class, which contributes 0
    sign = 1 - 2 * (c % 2)
    g = special.digamma(c) + sign / 2 * (special.digamma((c + 1) / 2) - special.digamma(c / 2))
    value = special.digamma(n) - (counts * g).sum(-1) / n
    return np.where(counts.max(-1) == n, 0.0, value)


#: Estimators by name. The first is the paper's.
ESTIMATORS: dict[str, Callable[[ArrayLike], Floats]] = {
    "plug-in": plug_in,
    "miller-madow": miller_madow,
    "grassberger": grassberger,
}


def entropy(counts: ArrayLike, *, estimator: str = "plug-in") -> Floats:
    """Estimate the entropy of the class probabilities from ``counts``, in nats: the wobbliness W (Eq. 3).

    Parameters
    ----------
    counts : array_like of int, shape (..., C)
        How often each of C classes was predicted.
    estimator : {"plug-in", "miller-madow", "grassberger"}
        The paper's estimator, or one that corrects its bias.

    Returns
    -------
    ndarray of float, shape (...)
        0 where a single class was predicted, ``log C`` where all are equally frequent.

    Raises
    ------
    ValueError
        For an unknown estimator, or counts that are negative, fractional or empty.

    >>> entropy([125, 125]).round(4).item()
    0.6931
    """
    if not isinstance(estimator, str) or estimator not in ESTIMATORS:
        raise ValueError(f"estimator must be one of {', '.join(ESTIMATORS)}, got {estimator!r}")
    return ESTIMATORS[estimator](counts)


def entropy_interval(counts: ArrayLike, *, level: float = 0.95) -> tuple[Floats, Floats]:
    r"""Compute an interval for the entropy at one point from its counts, the Monte-Carlo error of W, in nats.

    It uses the second-order delta method around the Miller-Madow estimate, with K the number of classes observed:

    .. math:: \operatorname{var}(W) \approx \frac{\sum_k \hat p_k \log^2 \hat p_k - W^2}{n} + \frac{K - 1}{2 n^2}

    If all n samples fall into one class, this is 0, although other classes may exist. The upper end is therefore at least the
    largest entropy consistent with the exact binomial bound :math:`q = 1 - (1 - \text{level})^{1/n}` on the total probability of
    the classes that n samples can miss.

    Parameters
    ----------
    counts : array_like of int, shape (..., C)
        How often each of C classes was predicted.
    level : float
        Confidence level.

    Returns
    -------
    low, high : ndarray of float, shape (...)
        Within [0, log C].

    >>> [round(float(end), 3) for end in entropy_interval([125, 125])]
    [0.69, 0.693]
    >>> [round(float(end), 3) for end in entropy_interval([250, 0])]
    [0.0, 0.065]
    """
    counts = _checked(counts)
    n, classes = counts.sum(-1), counts.shape[-1]
    p = counts / n[..., None]
    first = special.xlogy(special.xlogy(p, p), p).sum(-1) - plug_in(counts) ** 2
    second = (np.count_nonzero(counts, axis=-1) - 1) / (2 * n**2)
    half = special.ndtri((1 + level) / 2) * np.sqrt(np.maximum(first, 0) / n + second)
    q = np.minimum(1 - (1 - level) ** (1 / n), 1 - 1 / classes)
    missed = special.entr(q) + special.entr(1 - q) + q * math.log(max(classes - 1, 1))
    centre, ceiling = miller_madow(counts), math.log(classes)
    return np.clip(centre - half, 0, ceiling), np.clip(np.maximum(centre + half, missed), 0, ceiling)


def _checked(counts: Any) -> NDArray[Any]:
    counts = np.asarray(counts)
    if counts.ndim == 0 or counts.shape[-1] == 0:
        raise ValueError(f"counts must have shape (..., C) with at least one class, got shape {counts.shape}")
    if (
        not np.issubdtype(counts.dtype, np.number)
        or not np.isfinite(counts).all()
        or np.any(np.mod(counts, 1) != 0)
        or np.any(counts < 0)
    ):
        raise ValueError("counts must be whole numbers of 0 or more: how often each class was predicted")
    if np.any(counts.sum(-1) < 1):
        raise ValueError("counts must hold at least one sample for each point; some points have none")
    return counts.astype(np.float64)
