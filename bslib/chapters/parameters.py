"""The Parameters chapter (Sec. 3.1, Fig. 2): how W depends on n and sigma, its plan and its numbers."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from bslib.chapters import not_yet_run, records_for
from bslib.entropy import ESTIMATORS, entropy
from bslib.profiles import ParametersSize, profile_named
from bslib.specs import CountsSpec, NetworkSpec, Spec
from bslib.statistics import (
    Estimate,
    Estimates,
    mean_of_networks,
    nested_bootstrap,
    nested_bootstrap_of_means,
    percentile_estimate,
    variation_of_networks,
)
from bslib.store import Record, Records, Store

__all__ = ["ParameterResults", "load", "plan", "quantities"]

Floats = NDArray[np.float64]
#: What has ends has them in intervals too.
POSSIBLE = {
    "share_of_steps_that_shrink": (0.0, 1.0),
    "spread_at_0.01": (0.0, np.inf),
}


def plan(profile: str, *, seed: int = 0) -> list[Spec]:
    """Every spec of the chapter, in the order in which they are worth having.

    Parameters
    ----------
    profile : str
        A name of :data:`bslib.profiles.PROFILES`.
    seed : int
        Seed of the first network; the others follow.

    >>> len(plan("paper")), plan("paper")[0].network
    (30, 'small-fashion')
    """
    return [
        spec
        for size in profile_named(profile).parameters
        for run in range(seed, seed + size.networks)
        for spec in specs_of(size, run)
    ]


def specs_of(size: ParametersSize, seed: int) -> tuple[NetworkSpec, CountsSpec, CountsSpec]:
    """One network, the sweep over n on it, and the sweep over sigma on the same batch with the same noise.

    >>> network, over_n, over_sigma = specs_of(profile_named("paper").parameters[0], seed=3)
    >>> over_n.sigmas, over_sigma.ns, over_sigma.seed
    ((0.1, 0.25), (250,), 3)
    """
    network = size.network_spec(seed)
    over_n = CountsSpec(network=network, points=size.points, sigmas=size.n_sigmas, ns=size.ns, seed=seed)
    over_sigma = CountsSpec(network=network, points=size.points, sigmas=size.sigmas, ns=(size.n,), seed=seed)
    return network, over_n, over_sigma


def load(*, profile: str, seed: int = 0, store: str | Path | Store | None = None) -> tuple[ParameterResults, ParameterResults]:
    """The two rows of Fig. 2 from the records of a store, which is completed first unless it is read-only.

    Parameters
    ----------
    profile, seed
        As for :func:`plan`.
    store
        As for :func:`bslib.store.open_store`; the profile's own choice when not given.

    Returns
    -------
    (ParameterResults, ParameterResults)
        Fashion-MNIST's and CIFAR-10's in ``paper``; a half of which no network is complete is empty.
    """
    size = profile_named(profile)
    records = records_for(plan(profile, seed=seed), store or size.store)
    first, second = size.parameters
    return half_of(first, profile, seed, records), half_of(second, profile, seed, records)


def half_of(size: ParametersSize, profile: str, seed: int, records: Records) -> ParameterResults:
    """What ``records`` hold of one data set: the networks of which all three records are there."""
    runs = [specs_of(size, run) for run in range(seed, seed + size.networks)]
    complete = [tuple(records[spec] for spec in specs) for specs in runs if all(spec in records for spec in specs)]
    return ParameterResults(size, profile, tuple(complete))


@dataclass(frozen=True)
class ParameterResults:
    """One row of Fig. 2: the records of one data set's networks, and the numbers that follow from them.

    Parameters
    ----------
    size : ParametersSize
    profile : str
    runs : tuple of (Record, Record, Record)
        For each network: the network, the sweep over n, the sweep over sigma.
    """

    size: ParametersSize
    profile: str
    runs: tuple[tuple[Record, ...], ...]

    def over_n(self, estimator: str = "plug-in") -> Floats:
        """W at every n, shape (networks, sigmas, ns, points)."""
        return np.stack([entropy(over_n.arrays["counts"], estimator=estimator) for _, over_n, _ in self.runs])

    def over_sigma(self, estimator: str = "plug-in") -> Floats:
        """W at every sigma, shape (networks, sigmas, points)."""
        counts = [over_sigma.arrays["counts"][:, 0] for _, _, over_sigma in self.runs]
        return np.stack([entropy(c, estimator=estimator) for c in counts])

    @property
    def accuracy(self) -> Estimate:
        """Clean accuracy on the whole test set, over networks."""
        results = [network.result for network, _, _ in self.runs]
        return mean_of_networks([r["clean_accuracy"] for r in results], results[0]["test_images"])

    def source(self, sweep: str) -> str:
        """Where the numbers of a figure come from, in one line; ``sweep`` is "n" or "sigma"."""
        network = self.runs[0][0]
        keys = ", ".join(run[1 if sweep == "n" else 2].spec.key[:6] for run in self.runs)
        return (
            f"{network.data['source']}; {len(self.runs)} of {self.size.networks} networks, "
            f"{self.size.points} test images each; profile {self.profile}; records {keys}"
        )

    @property
    def missing(self) -> str | None:
        """What is not yet run, in words with the command that runs it; None where there is something to show."""
        needs = f"{self.size.networks} × {self.size.network} on {self.size.dataset}"
        return None if self.runs else not_yet_run("parameters", self.profile, needs)

    def bias(self) -> dict[str, tuple[Floats, Floats]]:
        """How far each estimator is from the best value at every n: its mean over points without and with rare classes.

        The best value of a point is Grassberger's at the largest n. A rare class is one that was seen, in less than 1 % of
        the samples at the largest n.

        Returns
        -------
        dict of estimator to (without, with)
            Each of shape (sigmas, ns): mean error over the points without and with a rare class, all networks together.
        """
        counts = np.stack([over_n.arrays["counts"] for _, over_n, _ in self.runs])  # (networks, sigmas, ns, points, classes)
        last = counts[:, :, -1]
        rare = ((last > 0) & (last < 0.01 * last.sum(-1, keepdims=True))).any(-1)
        best = entropy(last, estimator="grassberger")
        found = {}
        for name in ESTIMATORS:
            error = entropy(counts, estimator=name) - best[:, :, None]
            found[name] = (_mean_where(error, ~rare), _mean_where(error, rare))
        return found

    def quantities(self) -> dict[str, Estimate]:
        """Every number that the chapter's claims speak of, by name; names end in the data set."""
        if not self.runs:
            return {}
        epochs = float(self.size.epochs)
        found = {f"accuracy.{self.size.dataset}": self.accuracy}
        found[f"epochs.{self.size.dataset}"] = Estimate(epochs, epochs, epochs, len(self.runs))
        found.update(self._quantities_over_n())
        found.update(self._quantities_over_sigma())
        return {name: estimate for name, estimate in found.items() if np.isfinite(estimate.value)}

    def _quantities_over_n(self) -> dict[str, Estimate]:
        w = self.over_n()
        value, draws = nested_bootstrap(list(w), lambda v: np.stack([v.mean(-1), v.std(-1, ddof=1)]))
        n = self.size.ns.index(self.size.n)
        found = {}
        for s, sigma in enumerate(self.size.n_sigmas):
            for m, what in enumerate(["mean", "spread"]):
                quantities = {
                    f"{what}_growth": lambda v, m=m, s=s: v[..., m, s, -1] - v[..., m, s, 0],
                    f"{what}_change_after_{self.size.n}": lambda v, m=m, s=s: _change(v[..., m, s, n], v[..., m, s, -1]),
                }
                for name, of in quantities.items():
                    estimate = percentile_estimate(of(value), of(draws), len(w))
                    found[f"{name}.{self.size.dataset}.{sigma:g}"] = estimate
            if len(w) > 1:
                variation = variation_of_networks(w[:, s, n].mean(-1).tolist())
                found[f"variation_between_networks.{self.size.dataset}.{sigma:g}"] = variation
        return found | self._growth_by_estimator()

    def _growth_by_estimator(self) -> dict[str, Estimate]:
        """How much the mean of W grows with n by a corrected estimator, and how much of its growth is bias."""
        ends = [self.over_n(estimator)[:, :, [0, -1]] for estimator in ("plug-in", "grassberger")]
        both = np.stack(ends, axis=1)  # (networks, 2, sigmas, 2, points)
        value, draws = nested_bootstrap(list(both), lambda v: v[:, :, 1].mean(-1) - v[:, :, 0].mean(-1))
        found = {}
        for s, sigma in enumerate(self.size.n_sigmas):
            quantities = {
                "mean_growth_corrected": lambda v, s=s: v[..., 1, s],
                "mean_growth_from_bias": lambda v, s=s: v[..., 0, s] - v[..., 1, s],
            }
            for name, of in quantities.items():
                found[f"{name}.{self.size.dataset}.{sigma:g}"] = percentile_estimate(of(value), of(draws), len(both))
        return found

    def _quantities_over_sigma(self) -> dict[str, Estimate]:
        w = self.over_sigma()
        value, draws = nested_bootstrap(list(w), lambda v: np.stack([v.mean(-1), v.std(-1, ddof=1)]))
        sigmas = self.size.sigmas
        low = [s for s, sigma in enumerate(sigmas) if sigma in (0.005, 0.01, 0.1, 0.15)]
        quantities = {
            "share_of_steps_that_shrink": lambda v: (np.diff(v[..., 1, :]) > 0).mean(-1),
        }
        if len(low) == 4:
            quantities["range_of_means_0.005_to_0.15"] = lambda v: np.ptp(v[..., 0, low], axis=-1)
        if 0.01 in sigmas:
            at = sigmas.index(0.01)
            quantities["spread_at_0.01"] = lambda v: v[..., 1, at]
        if {0.15, 0.25} <= set(sigmas):
            before, after = sigmas.index(0.15), sigmas.index(0.25)
            quantities["mean_growth_from_0.15_to_0.25"] = lambda v: v[..., 0, after] - v[..., 0, before]
        found = {
            name: percentile_estimate(of(value), of(draws), len(self.runs), within=POSSIBLE.get(name, (-np.inf, np.inf)))
            for name, of in quantities.items()
        }
        if 0.01 in sigmas:
            upper, upper_draws = nested_bootstrap(list(w[:, at]), lambda v: np.quantile(v, 0.75, axis=-1))
            found["upper_quartile_at_0.01"] = percentile_estimate(upper, upper_draws, len(w), within=(0, np.inf))
        if 0.25 in sigmas:
            found["commonest_answer_at_0.25"] = self._share_of_the_commonest_answer(sigmas.index(0.25))
        return {f"{name}.{self.size.dataset}": estimate for name, estimate in found.items()}

    def _share_of_the_commonest_answer(self, at: int) -> Estimate:
        """The share of all noisy copies that get the class which most of them get."""
        shares = []
        for _, _, over_sigma in self.runs:
            counts = over_sigma.arrays["counts"][at, 0]  # (points, classes)
            shares.append(counts[:, counts.sum(0).argmax()] / counts.sum(-1))
        value, draws = nested_bootstrap_of_means(shares)
        return percentile_estimate(value, draws, len(shares), within=(0, 1))


def numbers(*, profile: str, seed: int = 0, store: str | Path | Store | None = None) -> Estimates:
    """The chapter's :func:`quantities`, from a store; the parameters are those of :func:`load`."""
    return quantities(*load(profile=profile, seed=seed, store=store))


def quantities(first: ParameterResults, second: ParameterResults) -> Estimates:
    """The quantities of both halves, and those that compare them; what has no records yet says so."""
    found = Estimates(first.quantities() | second.quantities())
    if first.runs and second.runs:
        shared = [sigma for sigma in first.size.sigmas if sigma in second.size.sigmas]
        name = f"largest_step.{second.size.dataset}.less.{first.size.dataset}"
        # Each half has draws of its own: with one seed for both, they would be resampled in step.
        steps = [_largest_step(half, shared, seed) for seed, half in enumerate((second, first))]
        value, draws = steps[0][0] - steps[1][0], steps[0][1] - steps[1][1]
        found[name] = percentile_estimate(value, draws, min(len(first.runs), len(second.runs)))
    return found


def _largest_step(half: ParameterResults, sigmas: list[float], seed: int) -> tuple[Floats, Floats]:
    """The largest step of mean W between neighbouring sigmas, as a share of its range: value and draws."""
    columns = [half.size.sigmas.index(sigma) for sigma in sigmas]
    found = []
    for means in nested_bootstrap(list(half.over_sigma()[:, columns]), lambda v: v.mean(-1), seed=seed):
        whole = np.ptp(means, axis=-1)
        step = np.abs(np.diff(means)).max(-1)
        found.append(np.divide(step, whole, out=np.full_like(whole, np.nan), where=whole != 0))
    return found[0], found[1]


def _change(early: Floats, late: Floats) -> Floats:
    """How far ``late`` is from ``early``, as a share of ``late``; not defined (NaN) where that is 0."""
    return np.divide(late - early, late, out=np.full_like(late, np.nan), where=late != 0)


def _mean_where(values: Floats, where: NDArray[np.bool_]) -> Floats:
    """Mean of (networks, sigmas, ns, points) over networks and the points ``where`` (networks, sigmas, points): (sigmas, ns)."""
    weight = where[:, :, None].astype(float)
    with np.errstate(invalid="ignore"):
        return (values * weight).sum((0, 3)) / weight.sum((0, 3))
