"""Statistics of pairs of success and mean W: correlations, residuals after trigger and class, and jackknife replicates."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import stats

from bslib.statistics import Estimate, Replicates

__all__ = [
    "FEWEST_PAIRS", "STRICT", "correlations", "estimates", "p_values", "partial_correlation", "replicates", "residual_rank",
    "residuals",
]  # fmt: skip

Floats = NDArray[np.float64]
#: The columns of :meth:`Correlation.pairs` as arrays, since DataFrames are too slow.
Columns = Mapping[str, NDArray[Any]]
Statistic = Callable[[Columns], float]
#: The stricter rule of exclusion: pairs with a success below this are left out.
STRICT = 0.3
#: The smallest number of pairs for a correlation. By chance, 4 pairs are in perfect order 1 time in 12, 5 pairs 1 time in 60.
FEWEST_PAIRS = 5


def partial_correlation(pairs: pd.DataFrame | Columns, given: Sequence[str] = ("clean W",)) -> float:
    """Partial correlation of success and W: Pearson's r of their residuals after a linear fit on ``given``.

    The mean of each class under each trigger is removed, so only differences between networks remain.

    Parameters
    ----------
    pairs : DataFrame or dict of arrays
        With columns success, W, trigger, class and those of ``given``.
    given : sequence of str

    Returns
    -------
    float
        NaN where too few pairs are left.
    """
    return pearson(*_left_over(pairs, given).T)


def residuals(pairs: pd.DataFrame) -> pd.DataFrame:
    """Residuals of success and W after a linear fit on class and clean W for each trigger; NaN with too few pairs."""
    left = [pd.DataFrame(_left_over(own, ["clean W"]), own.index, ["success", "W"]) for _, own in pairs.groupby("trigger")]
    return pd.concat(left)


def _left_over(pairs: pd.DataFrame | Columns, given: Sequence[str]) -> Floats:
    """Residuals of success and W after a linear fit on trigger x class and ``given``, shape (pairs, 2)."""
    values = np.column_stack([pairs["success"], pairs["W"]]).astype(float)
    kinds = np.column_stack([pairs["trigger"], pairs["class"]])
    dummies = [(kinds == kind).all(1) for kind in np.unique(kinds, axis=0)]
    design = np.vstack([np.ones(len(values)), *dummies, *(pairs[name] for name in given)]).T
    explained, _, rank, _ = np.linalg.lstsq(design, values, rcond=None)
    return values - design @ explained if len(values) > rank + 2 else np.full_like(values, np.nan)


def p_values(*, tau: float, r: float, pairs: int) -> tuple[float, float]:
    """Two-sided p-values of Kendall's tau (its normal approximation) and Pearson's r, from the coefficients and the sample size.

    They show which sample sizes are consistent with the numbers that a paper reports.

    >>> [f"{p:.1g}" for p in p_values(tau=-0.49, r=-0.58, pairs=79)]
    ['2e-10', '2e-08']
    """
    z = 3 * tau * (pairs * (pairs - 1)) ** 0.5 / (2 * (2 * pairs + 5)) ** 0.5
    t = r * ((pairs - 2) / (1 - r**2)) ** 0.5
    return float(2 * stats.norm.sf(abs(z))), float(2 * stats.t.sf(abs(t), pairs - 2))


def replicates(pairs: pd.DataFrame, statistic: Callable[[Columns], Any], *, below: float = 0.0) -> Replicates:
    """A statistic of the pairs with a success of at least ``below``, with the networks of one seed left out at a time.

    Seeds without such a pair count as well: how many pairs are kept is a result, too.
    """
    columns = {name: pairs[name].to_numpy() for name in ("trigger", "class", "success", "W", "clean W")}
    seed_of = pairs["seed"].to_numpy()
    seeds, kept = np.unique(seed_of), columns["success"] >= below
    without = [statistic(_where(columns, kept & (seed_of != seed))) for seed in seeds]
    value = np.array(statistic(_where(columns, kept)), dtype=float)
    return Replicates(value, np.array(without, dtype=float), len(seeds))


def correlations(pairs: pd.DataFrame, below: float) -> dict[str, Any]:
    """Kendall's tau and Pearson's r of the pairs with a success of at least ``below``, with jackknife intervals and p-values.

    The p-values are SciPy's. Like the paper's, they treat pairs as independent, although pairs of one network are not.

    Returns
    -------
    dict
        ``tau`` and ``r`` (Estimate), ``tau p`` and ``r p``, ``pairs`` (the number kept) and ``left out``.
    """
    kept = pairs[pairs["success"] >= below]
    if kept.empty:
        none = Estimate(float("nan"), float("nan"), float("nan"), 0)
        return {"tau": none, "tau p": np.nan, "r": none, "r p": np.nan, "pairs": 0, "left out": len(pairs)}
    found = replicates(pairs, lambda some: [kendall_tau(some), pearson_r(some)], below=below)
    defined = bool(np.isfinite(found.value[0]))
    return {
        "tau": found.at(0).estimate(correlation=True),
        "tau p": float(stats.kendalltau(kept["success"], kept["W"]).pvalue) if defined else float("nan"),
        "r": found.at(1).estimate(correlation=True),
        "r p": float(stats.pearsonr(kept["success"], kept["W"]).pvalue) if defined else float("nan"),
        "pairs": len(kept),
        "left out": len(pairs) - len(kept),
    }


def estimates(pairs: pd.DataFrame, of: Mapping[str, Statistic], below: float = 0.0) -> dict[str, Estimate]:
    """The defined estimates of several statistics, as of :func:`replicates`; names with "spread" are no correlations."""
    if pairs.empty:
        return {}
    found = replicates(pairs, lambda some: [statistic(some) for statistic in of.values()], below=below)
    all_of_them = {name: found.at(k).estimate(correlation="spread" not in name) for k, name in enumerate(of)}
    return {name: estimate for name, estimate in all_of_them.items() if np.isfinite(estimate.value)}


def _where(pairs: Columns, where: NDArray[np.bool_]) -> Columns:
    return {name: column[where] for name, column in pairs.items()}


def kendall_tau(pairs: Columns) -> float:
    """Kendall's tau (b); NaN where it is undefined, and with fewer than ``FEWEST_PAIRS`` pairs."""
    success, w = pairs["success"], pairs["W"]
    return float(stats.kendalltau(success, w, method="asymptotic").statistic) if len(w) >= FEWEST_PAIRS else float("nan")


def pearson_r(pairs: Columns) -> float:
    """Pearson's r of success and W; NaN with fewer than ``FEWEST_PAIRS`` pairs."""
    return pearson(pairs["success"], pairs["W"]) if len(pairs["W"]) >= FEWEST_PAIRS else float("nan")


def pearson(x: Floats, y: Floats) -> float:
    """Pearson's r; NaN if either array is constant or has fewer than two values."""
    if len(x) < 2 or not (np.ptp(x) > 1e-12 and np.ptp(y) > 1e-12):  # NaN included
        return float("nan")
    return float(np.corrcoef(x, y)[0, 1])


def residual_rank(pairs: Columns) -> float:
    """Spearman's correlation of W and the distance of success from its linear fit on W; NaN with too few pairs.

    It is positive where success varies more the larger W is.
    """
    success, w = pairs["success"], pairs["W"]
    if len(w) < FEWEST_PAIRS or not (np.ptp(success) > 0 and np.ptp(w) > 0):
        return float("nan")
    distance = np.abs(success - np.polyval(np.polyfit(w, success, 1), w))
    return float(stats.spearmanr(distance, w).statistic)


def spread_difference(values: Floats, where: NDArray[np.bool_]) -> float:
    """The standard deviation of the values ``where`` minus that of the others; NaN with fewer than three of either."""
    if min(where.sum(), (~where).sum()) < 3:
        return float("nan")
    return float(values[where].std(ddof=1) - values[~where].std(ddof=1))
