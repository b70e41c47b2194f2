"""The chapter on the success of a trigger and the smoothness around it (Sec. 3.2.3, Fig. 5): its plan and its numbers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import stats

from bslib.chapters import not_yet_run, records_for
from bslib.entropy import entropy
from bslib.profiles import CorrelationSize, profile_named
from bslib.specs import AttackSpec, CountsSpec, NetworkSpec, PredictionsSpec, Spec
from bslib.statistics import (
    Estimate,
    Estimates,
    nested_bootstrap_of_means,
    percentile_estimate,
    share_of_networks,
    success_rate,
)
from bslib.store import Record, Records, Store
from bslib.threat_models import threat_model_named

__all__ = ["Correlation", "load", "p_values", "plan", "quantities"]

Floats = NDArray[np.float64]
#: Pairs as arrays by the names of :meth:`Correlation.pairs`: a bootstrap makes them too often for tables.
Columns = Mapping[str, NDArray[Any]]
Statistic = Callable[[Columns], float]
RANDOM_GUESS = 0.1
#: Pairs with a success below this are left out: none, the paper's rule, and a stricter one.
EXCLUDE_BELOW = (0.0, RANDOM_GUESS, 0.3)
#: A correlation needs as many: in perfect order lie 4 pairs by chance 1 time in 12, up or down, 5 pairs 1 time in 60.
FEWEST_PAIRS = 5
#: A small and a larger noise level at which Kendall's tau is a quantity too.
COMPARED_SIGMAS = (0.01, 0.25)


def plan(profile: str, *, seed: int = 0) -> list[Spec]:
    """Every spec of the chapter: all that is needed for the first noise level comes before the second.

    >>> len(plan("paper"))
    442
    """
    specs: list[Spec] = []
    for size in profile_named(profile).correlation:
        networks = networks_of(size, seed)
        specs += [
            spec for network in networks for spec in (network, predictions_of(size, network), clean_counts_of(size, network))
        ]
        specs += [counts_of(size, network, sigma) for sigma in size.sigmas for network in networks]
    return specs


def networks_of(size: CorrelationSize, seed: int) -> list[NetworkSpec]:
    """So many backdoored networks for each trigger."""
    return [
        size.attacked_network(run, size.threat_model, trigger)
        for trigger in size.triggers
        for run in range(seed, seed + size.networks)
    ]


def predictions_of(size: CorrelationSize, network: NetworkSpec) -> PredictionsSpec:
    """What a network calls test images that carry its trigger."""
    assert network.attack is not None
    return PredictionsSpec(network=network, trigger=network.attack.trigger, images=size.test_images)


def counts_of(size: CorrelationSize, network: NetworkSpec, sigma: float) -> CountsSpec:
    """W around triggered test images, of each class under T2, at one noise level."""
    assert network.attack is not None
    return CountsSpec(
        network=network,
        points=size.points,
        sigmas=(sigma,),
        ns=size.ns,
        seed=network.seed,
        trigger=network.attack.trigger,
        by_class=not threat_model_named(size.threat_model).one_target or None,
        paired=True,
    )


def clean_counts_of(size: CorrelationSize, network: NetworkSpec) -> CountsSpec:
    """W around some of the same images without the trigger, under the same noise, at the first noise level."""
    return CountsSpec(
        network=network,
        points=size.clean_points,
        sigmas=size.sigmas[:1],
        ns=size.ns,
        seed=network.seed,
        by_class=not threat_model_named(size.threat_model).one_target or None,
        paired=True,
    )


def load(*, profile: str, seed: int = 0, store: str | Path | Store | None = None) -> tuple[Correlation, Correlation]:
    """The two plots of Fig. 5 from the records of a store, which is completed first unless it is read-only.

    Parameters
    ----------
    profile, seed
        As for :func:`plan`.
    store
        As for :func:`bslib.store.open_store`; the profile's own choice when not given.
    """
    size = profile_named(profile)
    records = records_for(plan(profile, seed=seed), store or size.store)
    first, second = (Correlation(part, profile, seed, records) for part in size.correlation)
    return first, second


@dataclass(frozen=True)
class Correlation:
    """One data set's part of the chapter, as far as there are records.

    Parameters
    ----------
    size : CorrelationSize
    profile : str
    seed : int
    records : Records
    """

    size: CorrelationSize
    profile: str
    seed: int
    records: Records

    @cached_property
    def networks(self) -> list[NetworkSpec]:
        """The networks that are measured at the first noise level, with their predictions."""
        first = self.size.sigmas[0]
        return [
            network
            for network in networks_of(self.size, self.seed)
            if all(
                spec in self.records
                for spec in (
                    network,
                    predictions_of(self.size, network),
                    counts_of(self.size, network, first),
                    clean_counts_of(self.size, network),
                )
            )
        ]

    @cached_property
    def sigmas(self) -> list[float]:
        """The noise levels at which each of these networks is measured, ascending."""
        return sorted(
            sigma
            for sigma in self.size.sigmas
            if self.networks and all(counts_of(self.size, network, sigma) in self.records for network in self.networks)
        )

    @property
    def source(self) -> str:
        """Where the numbers of a figure come from, in one line."""
        networks = self.networks
        wanted = len(self.size.triggers) * self.size.networks
        return (
            f"{self.records[networks[0]].data['source']}, {self.size.threat_model}; {len(networks)} of {wanted} networks, "
            f"{self.size.points} images a pair; profile {self.profile}; networks {networks[0].key[:6]} ... {networks[-1].key[:6]}"
        )

    @property
    def missing(self) -> str | None:
        """What is not yet run, in words with the command that runs it; None where there is something to show."""
        needs = f"{len(self.size.triggers) * self.size.networks} backdoored × {self.size.network} on {self.size.dataset}"
        return None if self.networks else not_yet_run("correlation", self.profile, needs, seed=self.seed)

    def pairs(self, sigma: float | None = None, *, n: int | None = None) -> pd.DataFrame:
        """A row for each pair: network, trigger, class, success, mean W, clean mean W, and what is behind them.

        ``wanted`` and ``true`` are the shares of the noisy copies that are called what the attacker wants and what they are;
        ``images``, ``values`` and ``clean values`` are the images behind the success, and W of those behind the means.

        Parameters
        ----------
        sigma : float, optional
            The first noise level of the size when not given.
        n : int, optional
            The largest number of noisy copies when not given.
        """
        at = self.size.ns.index(n or self.size.ns[-1])
        rows: list[dict[str, Any]] = []
        for number, network in enumerate(self.networks):
            assert network.attack is not None
            predictions = self.records[predictions_of(self.size, network)].arrays
            triggered = self.records[counts_of(self.size, network, self.size.sigmas[0] if sigma is None else sigma)]
            clean = self.records[clean_counts_of(self.size, network)]
            classes, attack = triggered.arrays["counts"].shape[-1], network.attack
            for label in [None] if attack.target is not None else range(classes):
                images = slice(None) if label is None else predictions["labels"] == label
                hits = [predictions["predicted"][images], predictions["labels"][images]]
                w = _w_of_class(triggered, at, label)
                without = _w_of_class(clean, at, label)
                wanted, true = _noisy_copies(triggered, at, label, attack)
                rows.append(
                    {
                        "network": number,
                        "trigger": network.attack.trigger,
                        "class": -1 if label is None else label,
                        "success": success_rate(hits[0], hits[1], attack.target_labels(hits[1], classes)),
                        "images": int((hits[1] != network.attack.target).sum()),  # those that success is a share of
                        "W": float(w.mean()),
                        "clean W": float(without.mean()),
                        "wanted": wanted,
                        "true": true,
                        "values": w,
                        "clean values": without,
                    }
                )
        return pd.DataFrame(rows)

    def correlation(
        self, sigma: float | None = None, *, n: int | None = None, exclude_below: float = RANDOM_GUESS, resamples: int = 1000
    ) -> dict[str, Any]:
        """Kendall's tau and Pearson's r of success and mean W, with SciPy's p-values and bootstrap intervals.

        The intervals resample networks, then the images behind each pair. The p-values are SciPy's and take pairs as independent,
        as the paper does, although those of one network are not.

        Returns
        -------
        dict
            ``tau`` and ``r`` (Estimate), ``tau p`` and ``r p``, ``pairs`` (how many were kept), ``left out``.
        """
        return _correlations([self.pairs(sigma, n=n)], [exclude_below], resamples)[0][0]

    def sensitivity(self, resamples: int = 200) -> pd.DataFrame:
        """The correlation at every noise level measured, for each number of noisy copies and several exclusion rules.

        Returns
        -------
        DataFrame
            Columns sigma, n and exclude below, and those of :meth:`correlation`. The paper's n goes with every rule, the others
            with the paper's rule alone.
        """
        usual = self.size.ns[-1]
        rows: list[dict[str, Any]] = []
        for n, rules in [(usual, EXCLUDE_BELOW)] + [(n, (RANDOM_GUESS,)) for n in self.size.ns[:-1]]:
            found = _correlations([self.pairs(sigma, n=n) for sigma in self.sigmas], rules, resamples)
            for sigma, by_rule in zip(self.sigmas, found, strict=True):
                rows += [{"sigma": sigma, "n": n, "exclude below": r} | one for r, one in zip(rules, by_rule, strict=True)]
        rows.sort(key=lambda row: row["sigma"])
        return pd.DataFrame(rows)

    def breakdown(self, resamples: int = 500) -> dict[str, Estimate]:
        """Pearson's r of success and mean W within parts of the pairs, and of mean W with and without the trigger, by name."""
        if not self.networks:
            return {}
        of: dict[str, Statistic] = {"all pairs": _r}
        for trigger in self.size.triggers:
            of[f"trigger {trigger} alone"] = partial(_r_alone, trigger)
        of["what trigger and class explain taken out"] = partial(partial_correlation, given=())
        of["and what clean W explains"] = partial_correlation
        of["W with the trigger, and without"] = lambda p: _pearson(p["W"], p["clean W"])
        pairs = self.pairs()
        draws = _bootstrap([pairs], lambda p: _each(of, _kept(p)), resamples)[:, 0]
        values = _each(of, _kept(_columns(pairs)))
        networks = int(pairs["network"].nunique())
        return {
            name: _around(value, draws[:, k], networks)
            for k, (name, value) in enumerate(zip(of, values, strict=True))
            if np.isfinite(value)
        }

    def by_trigger(self, resamples: int = 500) -> pd.DataFrame:
        """What noise does to each trigger, in pairs that are kept and in those left out.

        Returns
        -------
        DataFrame
            A row for each trigger and kind of pair, with columns trigger, pairs, success, wanted and true (means over the pairs,
            see :meth:`pairs`) and "W less clean W" (Estimate).
        """
        rows, pairs = {}, self.pairs() if self.networks else pd.DataFrame(columns=["trigger", "success"])
        for (trigger, kept), own in pairs.groupby(["trigger", pairs["success"] >= RANDOM_GUESS]):
            draws = _bootstrap([own.reset_index(drop=True)], lambda p: (p["W"] - p["clean W"]).mean(), resamples)
            less = percentile_estimate(float((own["W"] - own["clean W"]).mean()), draws, int(own["network"].nunique()))
            means = own[["success", "wanted", "true"]].mean()
            name = f"trigger {trigger}, {'kept' if kept else 'left out'}"
            rows[name] = {"trigger": trigger, "pairs": len(own), **means, "W less clean W": less}
        return pd.DataFrame.from_dict(rows, orient="index")

    def trigger_table(self) -> str:
        """:meth:`by_trigger` as a Markdown table."""
        rows = [
            "| pairs | | success without noise | noisy copies called as wanted | called what they are | W less clean W |",
            "|---|---|---|---|---|---|",
        ]
        rows += [
            f"| {name} | {row['pairs']} | {row['success']:.0%} | {row['wanted']:.0%} | {row['true']:.0%} "
            f"| {row['W less clean W']:+.3f} |"
            for name, row in self.by_trigger().iterrows()
        ]
        return "\n".join(rows) if len(rows) > 2 else "(Not yet run.)"

    def quantities(self) -> dict[str, Estimate]:
        """Every number that the chapter's claims speak of, by name."""
        if {network.attack and network.attack.trigger for network in self.networks} != set(self.size.triggers):
            return {}  # half of the triggers would give another correlation, not an early one
        pairs, data = self.pairs(), self.size.dataset
        networks = int(pairs["network"].nunique())
        of: dict[str, Statistic] = {
            f"tau.{data}": _tau,
            f"r.{data}": _r,
            f"spread_of_low_less_high.{data}": lambda p: _spread(p["W"], p["success"] < 0.4),
            f"spread_of_wobbly_less_smooth.{data}": lambda p: _spread(p["success"], p["W"] > _median(p["W"])),
            f"partial_r.{data}": partial_correlation,
        }
        for wanted in self.size.triggers:
            of[f"r_alone.{data}.{wanted}"] = partial(_r_alone, wanted)
        draws = _bootstrap([pairs], lambda p: _each(of, _kept(p)), 500)[:, 0]
        found = {}
        for k, (name, value) in enumerate(zip(of, _each(of, _kept(_columns(pairs))), strict=True)):
            if np.isfinite(value):
                found[name] = _around(value, draws[:, k], networks, correlation=not name.startswith("spread"))
        compared = [sigma for sigma in COMPARED_SIGMAS if sigma in self.sigmas]
        at_each = _correlations([self.pairs(sigma) for sigma in compared], [RANDOM_GUESS], 500)
        for sigma, [at] in zip(compared, at_each, strict=True):
            if np.isfinite(at["tau"].value):
                found[f"tau_at.{data}.{sigma:g}"] = at["tau"]
        for pairs_of, row in self.by_trigger().iterrows():
            if str(pairs_of).endswith("kept"):
                found[f"less_clean.{data}.{row['trigger']}"] = row["W less clean W"]
        for trigger, own in pairs.groupby("trigger"):
            below = [of_one.to_numpy() < RANDOM_GUESS for _, of_one in own["success"].groupby(own["network"])]
            found[f"left_out.{data}.{trigger}"] = share_of_networks(below)
            success = [of_one.to_numpy() for _, of_one in own["success"].groupby(own["network"])]
            found[f"success.{data}.{trigger}"] = percentile_estimate(
                *nested_bootstrap_of_means(success), len(success), within=(0, 1)
            )
        return found


def numbers(*, profile: str, seed: int = 0, store: str | Path | Store | None = None) -> Estimates:
    """The chapter's :func:`quantities`, from a store; the parameters are those of :func:`load`."""
    return quantities(*load(profile=profile, seed=seed, store=store))


def quantities(first: Correlation, second: Correlation) -> Estimates:
    """The quantities of both data sets, and the p-values that fit the paper's own; what has no records yet says so."""
    reported = {(17, -0.50, -0.77), (20, -0.50, -0.77), (79, -0.49, -0.58)}
    exact = {f"reported_p_of_r.{pairs}": p_values(tau=tau, r=r, pairs=pairs)[1] for pairs, tau, r in reported}
    return Estimates(first.quantities() | second.quantities() | {name: Estimate(p, p, p, 0) for name, p in exact.items()})


def partial_correlation(pairs: pd.DataFrame | Columns, given: Sequence[str] = ("clean W",)) -> float:
    """Pearson's r of success and W after what trigger and class together, and ``given`` (linearly), explain is taken out.

    The mean of each class under each trigger goes, so that what is left are differences between networks.

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
    return _pearson(*_left_over(pairs, given).T)


def residuals(pairs: pd.DataFrame, given: Sequence[str] = ("clean W",)) -> pd.DataFrame:
    """What trigger and class together, and ``given`` (linearly), do not explain of success and W; NaN where few pairs are left.

    Parameters
    ----------
    pairs, given
        As for :func:`partial_correlation`.
    """
    return pd.DataFrame(_left_over(pairs, given), index=pairs.index, columns=["success", "W"])


def _left_over(pairs: pd.DataFrame | Columns, given: Sequence[str]) -> Floats:
    """The :func:`residuals` as an array, shape (pairs, 2)."""
    values = np.column_stack([pairs["success"], pairs["W"]]).astype(float)
    groups = np.asarray(10 * pairs["trigger"] + pairs["class"])  # a class is a digit, or -1 for all pairs
    dummies = np.unique(groups)[:, None] == groups
    design = np.vstack([np.ones(len(values)), dummies, *(pairs[name] for name in given)]).T
    explained, _, rank, _ = np.linalg.lstsq(design, values, rcond=None)
    return values - design @ explained if len(values) > rank + 2 else np.full_like(values, np.nan)


def p_values(*, tau: float, r: float, pairs: int) -> tuple[float, float]:
    """Two-sided p-values of Kendall's tau (its normal approximation) and Pearson's r, from the coefficients and the sample size.

    They tell which sample sizes fit the numbers that a paper reports.

    >>> [f"{p:.1g}" for p in p_values(tau=-0.49, r=-0.58, pairs=79)]
    ['2e-10', '2e-08']
    """
    z = 3 * tau * (pairs * (pairs - 1)) ** 0.5 / (2 * (2 * pairs + 5)) ** 0.5
    t = r * ((pairs - 2) / (1 - r**2)) ** 0.5
    return float(2 * stats.norm.sf(abs(z))), float(2 * stats.t.sf(abs(t), pairs - 2))


def _w_of_class(record: Record, at: int, label: int | None) -> Floats:
    counts = record.arrays["counts"][0, at]
    return entropy(counts if label is None else counts[record.arrays["labels"] == label])


def _noisy_copies(record: Record, at: int, label: int | None, attack: AttackSpec) -> tuple[float, float]:
    """The fractions of the noisy copies that are predicted as what the attacker wants, and as their true class."""
    counts, labels = record.arrays["counts"][0, at], record.arrays["labels"]
    if label is not None:
        counts, labels = counts[labels == label], labels[labels == label]
    wanted = attack.target_labels(labels, counts.shape[1])
    rows = np.arange(len(counts))
    return float(counts[rows, wanted].sum() / counts.sum()), float(counts[rows, labels].sum() / counts.sum())


def _bootstrap(tables: Sequence[pd.DataFrame], statistic: Callable[[Columns], Any], resamples: int, seed: int = 0) -> Floats:
    """Draws of a statistic of pairs: networks are resampled first, then the images behind W and success of each pair.

    The tables hold the same pairs at different settings and are drawn in step; the result has shape (resamples, tables, ...).
    """
    rng, pairs = np.random.default_rng(seed), tables[0]
    of_network = list(pairs.groupby("network").indices.values())
    columns = {name: pairs[name].to_numpy() for name in ("trigger", "class", "success", "images")}
    values = [(np.stack(table["values"].to_list()), np.stack(table["clean values"].to_list())) for table in tables]
    draws = []
    for _ in range(resamples):
        rows = np.concatenate([of_network[k] for k in rng.integers(len(of_network), size=len(of_network))])
        drawn = {name: column[rows] for name, column in columns.items()}
        points = [rows[:, None] * w.shape[1] + rng.integers(w.shape[1], size=(len(rows), w.shape[1])) for w in values[0]]
        drawn["success"] = rng.binomial(drawn["images"], drawn["success"]) / drawn["images"]
        means = [[w.take(where).mean(1) for w, where in zip(both, points, strict=True)] for both in values]
        draws.append([statistic(drawn | {"W": w, "clean W": clean}) for w, clean in means])
    return np.array(draws, dtype=float)


def _around(value: float, draws: Floats, networks: int, *, correlation: bool = True) -> Estimate:
    """An estimate whose draws are moved so that their median is the value; correlations on Fisher's scale, which has no ends.

    Drawing images anew adds the noise of few images once more to what has it already, which takes every correlation in the draws
    nearer to 0 than it is. Their spread is what the interval needs.
    """
    defined = draws[np.isfinite(draws)]
    if not defined.size:
        return percentile_estimate(value, defined, networks)
    if not correlation:
        return percentile_estimate(value, defined + (value - np.median(defined)), networks)
    if abs(value) == 1:  # at an end of Fisher's scale, to which nothing can be moved
        return percentile_estimate(value, defined, networks, within=(-1, 1))
    z, of_value = (np.arctanh(np.clip(r, -1 + 1e-9, 1 - 1e-9)) for r in (defined, value))
    on_the_scale = percentile_estimate(of_value, z + (of_value - np.median(z)), networks)
    return Estimate(value, float(np.tanh(on_the_scale.low)), float(np.tanh(on_the_scale.high)), networks)


def _correlations(tables: Sequence[pd.DataFrame], rules: Sequence[float], resamples: int) -> list[list[dict[str, Any]]]:
    """What :meth:`Correlation.correlation` gives for each table of the same pairs by each exclusion rule, from the same draws."""
    if not tables:
        return []
    draws = _bootstrap(tables, lambda p: [(_tau(kept), _r(kept)) for kept in (_kept(p, below) for below in rules)], resamples)
    return [[_correlation(pairs, below, draws[:, t, k]) for k, below in enumerate(rules)] for t, pairs in enumerate(tables)]


def _correlation(pairs: pd.DataFrame, below: float, draws: Floats) -> dict[str, Any]:
    networks, kept = int(pairs["network"].nunique()), _kept(_columns(pairs), below)
    success, w, tau = kept["success"], kept["W"], _tau(kept)
    defined = np.isfinite(tau)
    return {
        "tau": _around(tau, draws[:, 0], networks),
        "tau p": float(stats.kendalltau(success, w).pvalue) if defined else float("nan"),
        "r": _around(_r(kept), draws[:, 1], networks),
        "r p": float(stats.pearsonr(success, w).pvalue) if defined else float("nan"),
        "pairs": len(w),
        "left out": len(pairs) - len(w),
    }


def _each(of: Mapping[str, Statistic], pairs: Columns) -> list[float]:
    """Every statistic of the same pairs."""
    return [f(pairs) for f in of.values()]


def _columns(pairs: pd.DataFrame) -> Columns:
    return {name: pairs[name].to_numpy() for name in ("trigger", "class", "success", "W", "clean W")}


def _where(pairs: Columns, where: NDArray[np.bool_]) -> Columns:
    return {name: column[where] for name, column in pairs.items()}


def _kept(pairs: Columns, below: float = RANDOM_GUESS) -> Columns:
    return _where(pairs, pairs["success"] >= below)


def _tau(pairs: Columns) -> float:
    """Kendall's tau (b); NaN where it is not defined. SciPy's takes five times as long, and gives the same to the last digit."""
    success, w = pairs["success"], pairs["W"]
    if len(w) < FEWEST_PAIRS or not (np.ptp(success) > 0 and np.ptp(w) > 0):
        return float("nan")
    x, y = (np.sign(np.subtract.outer(values, values)) for values in (success, w))
    concordant, *untied = (np.vdot(a, b) / 2 for a, b in ((x, y), (x, x), (y, y)))
    return float(np.clip(concordant / np.sqrt(untied[0]) / np.sqrt(untied[1]), -1, 1))


def _r(pairs: Columns) -> float:
    return _pearson(pairs["success"], pairs["W"]) if len(pairs["W"]) >= FEWEST_PAIRS else float("nan")


def _r_alone(trigger: int, pairs: Columns) -> float:
    return _r(_where(pairs, pairs["trigger"] == trigger))


def _pearson(x: Floats, y: Floats) -> float:
    if len(x) < 2 or not (np.ptp(x) > 1e-12 and np.ptp(y) > 1e-12):  # NaN included
        return float("nan")
    return float(np.corrcoef(x, y)[0, 1])


def _median(values: Floats) -> float:
    return float(np.median(values)) if len(values) else float("nan")


def _spread(values: Floats, where: NDArray[np.bool_]) -> float:
    """The standard deviation of the values ``where``, less that of the others; NaN where either are two or fewer."""
    if min(where.sum(), (~where).sum()) < 3:
        return float("nan")
    return float(values[where].std(ddof=1) - values[~where].std(ddof=1))
