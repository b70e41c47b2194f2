"""The success of a trigger and the smoothness around it: the numbers of Sec. 3.2.3 (Fig. 5)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, ClassVar

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from bslib.chapters.base import Results
from bslib.chapters.correlation.pairs import (
    FEWEST_PAIRS,
    STRICT,
    Columns,
    Statistic,
    correlations,
    estimates,
    kendall_tau,
    p_values,
    partial_correlation,
    pearson,
    pearson_r,
    replicates,
    residual_rank,
    spread_difference,
)
from bslib.chapters.correlation.plan import Size, clean_counts_of, counts_of, networks_of, predictions_of, success_networks_of
from bslib.chapters.outcomes import defined
from bslib.entropy import entropy
from bslib.markdown import markdown_table
from bslib.specs import AttackSpec, NetworkSpec, Spec
from bslib.statistics import Estimate, Estimates, leave_one_out, share_of_repeats, success_rate
from bslib.store import Record

__all__ = ["Correlation", "load", "quantities"]

Floats = NDArray[np.float64]
#: What the paper reports for each threat model: Kendall's tau, Pearson's r, and the number of pairs behind them.
#: T1's p-values fit 20 networks, not the 17 that the paper names; with 20 no verdict differs.
REPORTED = {"T1": (-0.50, -0.77, 17), "T2": (-0.49, -0.58, 79)}
#: Further noise levels at which Kendall's tau is a quantity.
COMPARED_SIGMAS = (0.01, 0.25)


@dataclass(frozen=True)
class Correlation(Results[Size]):
    """The numbers of the correlation chapter on one data set. A network counts once it is measured at the first noise level."""

    chapter: ClassVar[str] = "correlation"
    described: ClassVar[str] = "backdoored "

    def needed(self, network: NetworkSpec) -> Sequence[Spec]:
        """The network, its predictions, and counts at the first noise level with the trigger and without."""
        first = counts_of(self.size, network, self.size.sigmas[0])
        return network, predictions_of(self.size, network), first, clean_counts_of(self.size, network)

    @property
    def random_guess(self) -> float:
        """The success of guessing: pairs below it are left out, as in the paper."""
        return 1 / self.size.classes

    @property
    def rules(self) -> tuple[float, ...]:
        """Thresholds of success below which pairs are left out: none, the paper's, and a stricter one."""
        return 0.0, self.random_guess, STRICT

    @cached_property
    def sigmas(self) -> list[float]:
        """The noise levels at which each of these networks is measured that should be, ascending."""
        return sorted(
            sigma
            for sigma in self.size.sigmas
            if self.networks
            and all(counts_of(self.size, network, sigma) in self.records for _, network in self._measured_at(sigma))
        )

    def _measured_at(self, sigma: float) -> list[tuple[int, NetworkSpec]]:
        """The complete networks that are planned at a noise level, with their numbers."""
        planned = {*networks_of(self.size, self.seed, sigma)}
        return [(number, network) for number, network in enumerate(self.networks) if network in planned]

    @property
    def details(self) -> str:
        """The threat model, the number of images of a pair, and how many networks are measured at one noise level alone."""
        further = len(self.networks) - len(self._measured_at(self.size.sigmas[-1]))
        alone = f", {further} of them at σ = {self.size.sigmas[0]:g} alone" if further else ""
        return f" under {self.size.threat_model}{alone}, {self.size.points} images behind each pair"

    def pairs(self, sigma: float | None = None, *, n: int | None = None) -> pd.DataFrame:
        """The pairs of success and mean W, one row each.

        Columns: network, seed, trigger, class (-1 for all), success, images (the number behind the success), W and clean W
        (means), wanted and true (fractions of noisy copies that are predicted as the
        attacker's label and as their true class).

        Parameters
        ----------
        sigma : float, optional
            The first noise level of the size when not given.
        n : int, optional
            The largest number of noisy copies when not given.
        """
        at = self.size.ns.index(n or self.size.ns[-1])
        sigma = self.size.sigmas[0] if sigma is None else sigma
        rows: list[dict[str, Any]] = []
        for number, network in self._measured_at(sigma):
            assert network.attack is not None
            triggered = self.records[counts_of(self.size, network, sigma)]
            clean = self.records[clean_counts_of(self.size, network)]
            for label, success, images in self._successes(network):
                w = _w_of_class(triggered, at, label)
                without = _w_of_class(clean, at, label)
                wanted, true = _noisy_copies(triggered, at, label, network.attack)
                rows.append(
                    {
                        "network": number,
                        "seed": network.seed,
                        "trigger": network.attack.trigger,
                        "class": -1 if label is None else label,
                        "success": success,
                        "images": images,
                        "W": float(w.mean()),
                        "clean W": float(without.mean()),
                        "wanted": wanted,
                        "true": true,
                    }
                )
        return pd.DataFrame(rows)

    def _successes(self, network: NetworkSpec) -> Iterator[tuple[int | None, float, int]]:
        """The class (None for all), the success and its denominator in images, for each pair of a network."""
        attack, predictions = network.attack, self.records[predictions_of(self.size, network)].arrays
        assert attack is not None
        for label in [None] if attack.target is not None else range(self.size.classes):
            images = slice(None) if label is None else predictions["labels"] == label
            predicted, labels = predictions["predicted"][images], predictions["labels"][images]
            success = success_rate(predicted, labels, attack.target_labels(labels, self.size.classes))
            yield label, success, int((labels != attack.target).sum())

    def left_out(self, trigger: int) -> Estimate:
        """The fraction of a trigger's pairs that are left out, also of networks whose success alone is measured."""
        further = [
            network for network in success_networks_of(self.size, self.seed) if predictions_of(self.size, network) in self.records
        ]
        networks = [network for network in [*self.networks, *further] if network.attack and network.attack.trigger == trigger]
        below = [[success < self.random_guess for _, success, _ in self._successes(network)] for network in networks]
        return share_of_repeats([np.array(of_one) for of_one in below])

    def sensitivity(self) -> pd.DataFrame:
        """The correlation at every measured noise level, for several numbers of noisy copies and exclusion rules.

        Returns
        -------
        DataFrame
            Columns sigma, n and exclude below, and those of :func:`~bslib.chapters.correlation.pairs.correlations`. The paper's
            n is combined with every rule, the other n with the paper's rule alone.
        """
        usual = self.size.ns[-1]
        rows: list[dict[str, Any]] = []
        for n, rules in [(usual, self.rules)] + [(n, (self.random_guess,)) for n in self.size.ns[:-1]]:
            for sigma in self.sigmas:
                pairs = self.pairs(sigma, n=n)
                rows += [{"sigma": sigma, "n": n, "exclude below": rule} | correlations(pairs, rule) for rule in rules]
        rows.sort(key=lambda row: row["sigma"])
        return pd.DataFrame(rows)

    def breakdown(self) -> dict[str, Estimate]:
        """Pearson's r of success and mean W within subsets of the pairs, and of mean W with and without the trigger."""
        if not self.networks:
            return {}
        pairs, guess = self.pairs(), self.random_guess
        found = estimates(pairs, {"all pairs": pearson_r}, guess)
        by_class = partial(partial_correlation, given=())
        for trigger in self.size.triggers:
            of: dict[str, Statistic] = {
                f"trigger {trigger} alone": pearson_r,
                f"trigger {trigger}, class taken out": by_class,
                f"trigger {trigger}, class and W without the trigger taken out": partial_correlation,
            }
            found |= estimates(pairs[pairs["trigger"] == trigger], of, guess)
        of = {
            "all pairs, trigger and class taken out": by_class,
            "all pairs, trigger, class and W without the trigger taken out": partial_correlation,
            "W with the trigger against W without it": lambda p: pearson(p["W"], p["clean W"]),
        }
        return found | estimates(pairs, of, guess)

    def by_trigger(self) -> pd.DataFrame:
        """The effect of noise on each trigger, for pairs that are kept and for pairs that are left out.

        Returns
        -------
        DataFrame
            A row for each trigger and kind of pair, with columns trigger, pairs, success, wanted and true (means over the pairs,
            see :meth:`pairs`) and "W minus clean W" (Estimate).
        """
        rows, pairs = {}, self.pairs() if self.networks else pd.DataFrame(columns=["trigger", "success"])
        for (trigger, kept), own in pairs.groupby(["trigger", pairs["success"] >= self.random_guess]):
            of_trigger = pairs[pairs["trigger"] == trigger]
            less = replicates(of_trigger, partial(self._less_clean, kept=bool(kept))).estimate()
            means = own[["success", "wanted", "true"]].mean()
            name = f"trigger {trigger}, {'kept' if kept else 'left out'}"
            rows[name] = {"trigger": trigger, "pairs": len(own), **means, "W minus clean W": less}
        return pd.DataFrame.from_dict(rows, orient="index")

    def _less_clean(self, pairs: Columns, *, kept: bool) -> float:
        """Mean W minus mean clean W of the pairs that are kept, or of those that are left out."""
        counted = (pairs["success"] >= self.random_guess) == kept
        return float((pairs["W"] - pairs["clean W"])[counted].mean()) if counted.any() else float("nan")

    def trigger_table(self) -> str:
        """:meth:`by_trigger` as a Markdown table."""
        copies = "noisy copies with the attacker's label", "with their true label"
        head = ["", "pairs", "success without noise", *copies, "W minus W without the trigger"]
        rows = [
            (
                name,
                row["pairs"],
                *(f"{row[part]:.0%}" for part in ("success", "wanted", "true")),
                f"{row['W minus clean W']:+.3f}",
            )
            for name, row in self.by_trigger().iterrows()
        ]
        return markdown_table(head, rows)

    def quantities(self) -> dict[str, Estimate]:
        """The quantities of the chapter's claims by name."""
        if {network.attack and network.attack.trigger for network in self.networks} != set(self.size.triggers):
            return {}  # with a part of the triggers the correlation would mean something else
        pairs, data = self.pairs(), self.size.dataset
        of: dict[str, Statistic] = {
            f"tau.{data}": kendall_tau,
            f"r.{data}": pearson_r,
            f"spread_of_low_less_high.{data}": lambda p: spread_difference(p["W"], p["success"] < 0.4),
            f"partial_r.{data}": partial_correlation,
            f"r_without.{data}": lambda p: pearson(p["success"], p["clean W"]),
            f"residual_rank.{data}": residual_rank,
        }
        guess = self.random_guess
        found = estimates(pairs, of, guess) | self._as_reported(pairs)
        for one in self.size.triggers:
            alone: dict[str, Statistic] = {f"r_alone.{data}.{one}": pearson_r, f"partial_r.{data}.{one}": partial_correlation}
            found |= estimates(pairs[pairs["trigger"] == one], alone, guess)
        for half in ("smooth", "rough"):
            found[f"{half}_failures.{data}"] = replicates(pairs, partial(failures, half=half)).estimate(within=(0, 1))
        for sigma in (sigma for sigma in COMPARED_SIGMAS if sigma in self.sigmas):
            tau = correlations(self.pairs(sigma), self.random_guess)["tau"]
            if np.isfinite(tau.value):
                found[f"tau_at.{data}.{sigma:g}"] = tau
        for pairs_of, row in self.by_trigger().iterrows():
            if str(pairs_of).endswith("kept"):
                found[f"less_clean.{data}.{row['trigger']}"] = row["W minus clean W"]
        for trigger in self.size.triggers:
            found[f"left_out.{data}.{trigger}"] = self.left_out(trigger)
            own = pairs[pairs["trigger"] == trigger].groupby("network")["success"]
            found[f"success.{data}.{trigger}"] = leave_one_out([of_one.to_numpy() for _, of_one in own]).estimate(within=(0, 1))
        return found

    def _as_reported(self, pairs: pd.DataFrame) -> dict[str, Estimate]:
        """The p-values for our correlations and the paper's being the same; its standard errors follow from its pairs."""
        if self.size.threat_model not in REPORTED or (pairs["success"] >= self.random_guess).sum() < FEWEST_PAIRS:
            return {}
        *reported, number = REPORTED[self.size.threat_model]
        errors = ((0.437 / (number - 4)) ** 0.5, (number - 3) ** -0.5)  # of tau (Fieller et al., 1957) and of r
        found = {}
        for name, statistic, value, error in zip(("tau", "r"), (kendall_tau, pearson_r), reported, errors, strict=True):
            ours = replicates(pairs, statistic, below=self.random_guess)
            found[f"p_of_{name}.{self.size.dataset}"] = ours.p_of_correlation(value, error)
        return defined(found)


load = Correlation.load


def quantities(results: Mapping[str, Correlation]) -> Estimates:
    """The quantities of every data set, and the p-values of the correlations that the paper reports."""
    reported = {(17, -0.50, -0.77), (20, -0.50, -0.77), (79, -0.49, -0.58)}
    exact = {f"reported_p_of_r.{pairs}": p_values(tau=tau, r=r, pairs=pairs)[1] for pairs, tau, r in reported}
    found = Estimates.of(part.quantities() for part in results.values())
    return Estimates(found | {name: Estimate(p, p, p, 0) for name, p in exact.items()})


def _w_of_class(record: Record, at: int, label: int | None) -> Floats:
    counts = record.arrays["counts"][0, at]
    return entropy(counts if label is None else counts[record.arrays["labels"] == label])


def failures(pairs: Columns, half: str) -> float:
    """The fraction of pairs with hardly any success (below 0.1) in the smooth or the rough half; NaN without pairs."""
    success, w = pairs["success"], pairs["W"]
    chosen = success[(w <= np.median(w)) == (half == "smooth")] if len(w) else success
    return float((chosen < 0.1).mean()) if len(chosen) else float("nan")


def _noisy_copies(record: Record, at: int, label: int | None, attack: AttackSpec) -> tuple[float, float]:
    """The fractions of noisy copies that are predicted as the attacker's label, and as their true class."""
    counts, labels = record.arrays["counts"][0, at], record.arrays["labels"]
    if label is not None:
        counts, labels = counts[labels == label], labels[labels == label]
    wanted = attack.target_labels(labels, counts.shape[1])
    rows = np.arange(len(counts))
    return float(counts[rows, wanted].sum() / counts.sum()), float(counts[rows, labels].sum() / counts.sum())
