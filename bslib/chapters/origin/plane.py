"""The phase diagram: square triggers of different sizes and greys, and numbers of poisons."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import stats

from bslib.chapters.correlation.pairs import pearson
from bslib.chapters.origin.plan import Size, cell_networks_of, cell_specs
from bslib.chapters.outcomes import BeyondResults, attack_on
from bslib.specs import NetworkSpec, Spec
from bslib.statistics import Estimate, Replicates, leave_one_out

__all__ = ["HALF_LEARNED", "Plane", "rank"]

Floats = NDArray[np.float64]
#: The success of a trigger that is only half learned.
HALF_LEARNED = (0.1, 0.9)
AXES = "side", "grey", "poisons"
#: Means that agree in so many decimals are ties: they differ by rounding.
DIGITS = 10


@dataclass(frozen=True)
class Plane(BeyondResults[Size]):
    """The phase diagram: networks with square triggers of different sizes and greys, and numbers of poisons.

    A number of poisons counts once every cell with it has its networks, since the rest would be other squares. Networks, or
    squares, are the repeats: they share one seed.
    """

    chapter: ClassVar[str] = "origin"

    def planned(self) -> list[NetworkSpec]:
        """The planned networks, cell by cell."""
        return cell_networks_of(self.size, self.seed)

    def needed(self, network: NetworkSpec) -> Sequence[Spec]:
        """The network, its success, margins and counts."""
        return cell_specs(self.size, network)

    @cached_property
    def networks(self) -> list[NetworkSpec]:
        """The complete networks, of those numbers of poisons for which none is missing."""
        complete = super().networks
        lacking = {attack_on(network).poisons for network in set(self.planned()).difference(complete)}
        return [network for network in complete if attack_on(network).poisons not in lacking]

    def w(self) -> Floats:
        """Mean W without and with the square, shape (networks, 2, sigmas)."""
        return np.array([self.w_of(network, sigmas=self.size.cell_sigmas).mean(-1) for network in self.networks])

    @cached_property
    def cells(self) -> pd.DataFrame:
        """Success and mean W by square, number of poisons and noise level.

        Returns
        -------
        DataFrame
            Columns side, grey (from 0 to 1), poisons, sigma, networks, success, clean W, W (means over a cell's networks) and
            change (W minus clean W).
        """
        columns = ["side", "grey", "poisons", "sigma", "networks", "success", "clean W", "W"]
        rows = [
            (*self._square(network), sigma, 1, self.success_of(network), *w[:, s])
            for network, w in zip(self.networks, self.w(), strict=True)
            for s, sigma in enumerate(self.size.cell_sigmas)
        ]
        table = pd.DataFrame(rows, columns=columns).groupby(columns[:4], sort=False)
        cells = table.mean().assign(networks=table.size()).reset_index()
        return cells.assign(change=cells["W"] - cells["clean W"])

    def quantities(self) -> dict[str, Estimate]:
        """The quantities of the phase diagram by name."""
        if not self.networks:
            return {}
        data, w = self.size.dataset, self.w()
        success = np.array([self.success_of(network) for network in self.networks])
        axes, cells = np.array([self._square(network) for network in self.networks]).T, np.arange(len(success))
        found = {f"success_rank.{data}.{name}": rank(x, success, cells) for name, x in zip(AXES, axes, strict=True)}
        half = (HALF_LEARNED[0] <= success) & (success <= HALF_LEARNED[1])
        for s, sigma in enumerate(self.size.cell_sigmas):
            if half.any():
                change = w[half, 1, s] - w[half, 0, s]
                found[f"half_learned_less_clean.{data}.{sigma:g}"] = leave_one_out(change[:, None]).estimate()
            means = self.cells[self.cells["sigma"] == sigma].round({"W": DIGITS})
            squares = [square for _, square in means.groupby(["side", "grey"]) if len(square) > 1]
            taus = np.array([stats.kendalltau(square["success"], square["W"]).statistic for square in squares])
            if len(taus := taus[np.isfinite(taus)]):
                found[f"within_square_tau.{data}.{sigma:g}"] = leave_one_out(taus[:, None]).estimate(correlation=True)
        return found

    def _square(self, network: NetworkSpec) -> tuple[int, float, int]:
        """The side, the grey from 0 to 1, and the number of poisons."""
        attack = attack_on(network)
        side, grey = divmod(attack.trigger - 100, 10)
        return side, grey / 9, attack.poisons or 0


def rank(x: Floats, y: Floats, repeats: NDArray[np.int64]) -> Estimate:
    """Spearman's correlation of two numbers of each network, with its jackknife interval over repeats."""
    x, y = x.round(DIGITS), y.round(DIGITS)
    names = np.unique(repeats)
    without = [pearson(*(stats.rankdata(values[repeats != name]) for values in (x, y))) for name in names]
    value = pearson(stats.rankdata(x), stats.rankdata(y))
    return Replicates(np.array(value), np.array(without), len(names)).estimate(correlation=True)
