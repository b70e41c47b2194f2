"""How W depends on n and sigma: the numbers of the Parameters chapter (Sec. 3.1, Fig. 2)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from bslib.chapters.base import Results
from bslib.chapters.outcomes import defined, divided
from bslib.chapters.outcomes import quantities as quantities_of_parts
from bslib.chapters.parameters.plan import Size
from bslib.entropy import ESTIMATORS, entropy
from bslib.statistics import Estimate, Estimates, leave_one_out, mean_of_networks, variation_of_networks

__all__ = ["ParameterResults", "load", "quantities"]

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class ParameterResults(Results[Size]):
    """One row of Fig. 2: the numbers that follow from the records of one data set.

    A run is a network, the sweep over n and the sweep over sigma.
    """

    chapter: ClassVar[str] = "parameters"

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

    @property
    def source_of_batch(self) -> str:
        """The source line where only a batch of each network is shown."""
        return (
            self.source if self.size.points <= self.size.batch else f"{self.source}; the first {self.size.batch} images are shown"
        )

    def bias(self) -> dict[str, tuple[Floats, Floats]]:
        """The mean error of each estimator at every n, for points without and with rare classes.

        The error is taken against Grassberger's estimate at the largest n. A class is rare if it was seen in less than 1% of
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
        """The quantities of the chapter's claims by name; a name contains the data set."""
        if not self.runs:
            return {}
        epochs = float(self.size.epochs)
        found = {f"accuracy.{self.size.dataset}": self.accuracy}
        found[f"epochs.{self.size.dataset}"] = Estimate(epochs, epochs, epochs, len(self.runs))
        found.update(self._quantities_over_n())
        found.update(self._quantities_over_sigma())
        return defined(found)

    def _quantities_over_n(self) -> dict[str, Estimate]:
        w, n = self.over_n(), self.size.ns.index(self.size.n)
        moments = leave_one_out(w, _moments)  # (ns, 3, sigmas)
        found: dict[str, Estimate] = {}
        for s, sigma in enumerate(self.size.n_sigmas):
            own = {}
            for m, what in enumerate(["mean", "spread"]):
                own[f"{what}_growth"] = moments.at(m, s).estimate(_growth)
                own[f"{what}_change_after_{self.size.n}"] = moments.at(m, s).estimate(lambda v: _change(v[..., n], v[..., -1]))
            own["quartiles_growth"] = moments.at(2, s).estimate(_growth)
            own["relative_spread_growth"] = moments.at(s).estimate(lambda v: _growth(_relative_spread(v)))
            if len(w) > 1:
                own["variation_between_networks"] = variation_of_networks(w[:, s, n].mean(-1).tolist())
            found |= {f"{name}.{self.size.dataset}.{sigma:g}": estimate for name, estimate in own.items()}
        return found | self._growth_by_estimator()

    def _growth_by_estimator(self) -> dict[str, Estimate]:
        """The growth of mean W with n by a bias-corrected estimator, and the part of the plug-in growth that is bias."""
        ends = [self.over_n(estimator)[:, :, [0, -1]] for estimator in ("plug-in", "grassberger")]
        both = np.stack(ends, axis=1)  # (networks, 2, sigmas, 2, points)
        growth = leave_one_out(both, lambda v: v[:, :, 1].mean(-1) - v[:, :, 0].mean(-1))
        found = {}
        for s, sigma in enumerate(self.size.n_sigmas):
            found[f"mean_growth_corrected.{self.size.dataset}.{sigma:g}"] = growth.at(1, s).estimate()
            from_bias = growth.at(s).estimate(lambda v: v[..., 0] - v[..., 1])
            found[f"mean_growth_from_bias.{self.size.dataset}.{sigma:g}"] = from_bias
        return found

    def _quantities_over_sigma(self) -> dict[str, Estimate]:
        w, sigmas = self.over_sigma(), self.size.sigmas
        means, spreads = leave_one_out(w), leave_one_out(w, lambda v: v.std(-1, ddof=1))
        found = {
            "share_of_steps_that_shrink": spreads.estimate(lambda v: (np.diff(v) > 0).mean(-1), within=(0, 1)),
            "smallest_spread_step": spreads.estimate(lambda v: np.diff(v).min(-1)),
        }
        low = [s for s, sigma in enumerate(sigmas) if sigma in (0.005, 0.01, 0.1, 0.15)]
        if len(low) == 4:
            found["range_of_means_0.005_to_0.15"] = means.estimate(lambda v: np.ptp(v[..., low], axis=-1))
        if 0.01 in sigmas:
            at = sigmas.index(0.01)
            found["spread_at_0.01"] = spreads.at(at).estimate(within=(0, np.inf))
            upper = leave_one_out(w[:, at], lambda v: np.quantile(v, 0.75, axis=-1))
            found["upper_quartile_at_0.01"] = upper.estimate(within=(0, np.inf))
        if {0.15, 0.25} <= set(sigmas):
            before, after = sigmas.index(0.15), sigmas.index(0.25)
            found["mean_growth_from_0.15_to_0.25"] = means.estimate(lambda v: v[..., after] - v[..., before])
        if 0.25 in sigmas:
            found["commonest_answer_at_0.25"] = self._share_of_the_commonest_answer(sigmas.index(0.25))
        return {f"{name}.{self.size.dataset}": estimate for name, estimate in found.items()}

    def _share_of_the_commonest_answer(self, at: int) -> Estimate:
        """The fraction of all noisy copies that are predicted as the most frequent class."""
        shares = []
        for _, _, over_sigma in self.runs:
            counts = over_sigma.arrays["counts"][at, 0]  # (points, classes)
            shares.append(counts[:, counts.sum(0).argmax()] / counts.sum(-1))
        return leave_one_out(shares).estimate(within=(0, 1))


load = ParameterResults.load


def quantities(results: Mapping[str, ParameterResults]) -> Estimates:
    """The quantities of every data set, and those that compare the others with the first."""
    found = quantities_of_parts(results)
    first, others = next(iter(results.values()), None), list(results.values())[1:]
    for other in others:
        if first and first.runs and other.runs:
            shared = [sigma for sigma in first.size.sigmas if sigma in other.size.sigmas]
            of_both = [leave_one_out(list(part.over_sigma()[:, _columns(part, shared)])) for part in (other, first)]
            estimate = of_both[0].minus(of_both[1], _largest_step)
            found[f"largest_step.{other.size.dataset}.less.{first.size.dataset}"] = estimate
    return found


def _columns(part: ParameterResults, sigmas: list[float]) -> list[int]:
    return [part.size.sigmas.index(sigma) for sigma in sigmas]


def _largest_step(means: Floats) -> Floats:
    """The largest step between neighbours, as a fraction of the range of all; NaN where that is 0."""
    return divided(np.abs(np.diff(means)).max(-1), np.ptp(means, axis=-1))


def _moments(w: Floats) -> Floats:
    """The mean, the standard deviation and the interquartile range over points, (ns, 3, sigmas), of W (sigmas, ns, points)."""
    low, high = np.quantile(w, [0.25, 0.75], axis=-1)
    return np.stack([w.mean(-1), w.std(-1, ddof=1), high - low]).transpose(2, 0, 1)


def _growth(values: Floats) -> Floats:
    """The last value minus the first (last axis)."""
    return np.asarray(values[..., -1] - values[..., 0])


def _relative_spread(moments: Floats) -> Floats:
    """The standard deviation divided by the mean, from moments (..., 3); NaN where the mean is 0."""
    return divided(moments[..., 1], moments[..., 0])


def _change(early: Floats, late: Floats) -> Floats:
    """The change from ``early`` to ``late`` as a fraction of ``late``; NaN where ``late`` is 0."""
    return divided(late - early, late)


def _mean_where(values: Floats, where: NDArray[np.bool_]) -> Floats:
    """Mean of (networks, sigmas, ns, points) over networks and the points ``where`` (networks, sigmas, points): (sigmas, ns)."""
    weight = where[:, :, None].astype(float)
    with np.errstate(invalid="ignore"):
        return (values * weight).sum((0, 3)) / weight.sum((0, 3))
