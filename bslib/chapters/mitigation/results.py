"""What mitigations do to the surface: success, clean accuracy and W before and after each treatment of a backdoored network."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
import pandas as pd

from bslib.chapters.mitigation.plan import Size
from bslib.chapters.outcomes import BeyondResults, attack_on, defined, name_of, quantities, quantities_of, ratio, usual_level
from bslib.markdown import markdown_table
from bslib.specs import NetworkSpec, Spec
from bslib.statistics import Estimate, leave_one_out, share_of_repeats

__all__ = ["NO_TREATMENT", "STILL_WORKS", "Mitigation", "load", "quantities", "treatment_of"]

NO_TREATMENT = "none"
#: The backdoor still works while its success is at least this; under the other threat models, this fraction of what it was.
STILL_WORKS, ABSOLUTE = 0.95, frozenset({"T1"})


def treatment_of(network: NetworkSpec) -> str:
    """The name of what was done to a network, such as "fine-tune 0.005" or "noise 0.1"."""
    treatment = network.treatment
    if treatment is None:
        return NO_TREATMENT if network.noise is None else f"noise {network.noise:g}"
    if treatment.method == "prune":
        return f"{'fine-prune' if treatment.epochs else 'prune'} {treatment.fraction:g}"
    return f"fine-tune {treatment.learning_rate:g}" if treatment.method == "fine-tune" else treatment.method


@dataclass(frozen=True)
class Mitigation(BeyondResults[Size]):
    """The numbers of the chapter on one data set. A group has the networks of one attack after one treatment."""

    chapter: ClassVar[str] = "mitigation"

    def needed(self, network: NetworkSpec) -> Sequence[Spec]:
        """The network, its success and its counts, and those of the network before the treatment."""
        before = _before(network)
        return [*self.size.basics(network), *(self.size.basics(before) if before != network else ())]

    @property
    def details(self) -> str:
        """What counts as a network, and the size of the batch."""
        return f", treated or not, {self.size.points} images each"

    @cached_property
    def groups(self) -> dict[tuple[str, str], list[NetworkSpec]]:
        """The networks of each attack and treatment, in the order of their seeds."""
        found: dict[tuple[str, str], list[NetworkSpec]] = {}
        for network in self.networks:
            found.setdefault((name_of(network), treatment_of(network)), []).append(network)
        return found

    def after(self) -> pd.DataFrame:
        """What each treatment leaves.

        Returns
        -------
        DataFrame
            Columns attack, treatment and, as Estimates: success, accuracy, accuracy lost (against the same network before, or for
            training with noise against the one that was trained without), and at the usual noise level W without, W with, less
            clean (their difference) and ratio.
        """
        rows, s = [], usual_level(self.size.sigmas)
        for (attack, treatment), networks in self.groups.items():
            w = leave_one_out([self.w_of(network)[:, s] for network in networks])
            of_w: dict[str, Any] = {
                "W without": w.at(0).estimate(),
                "W with": w.at(1).estimate(),
                "less clean": w.estimate(lambda means: means[..., 1] - means[..., 0]),
                "ratio": w.estimate(ratio, within=(0, np.inf)),
            }
            before = [self.accuracy_of(_before(network)) for network in networks]
            rows.append({"attack": attack, "treatment": treatment} | self.costs(networks, before) | of_w)
        return pd.DataFrame(rows)

    def treatment_table(self) -> str:
        """Success, accuracy lost and ratio of W after each treatment of the first attack, as a Markdown table."""
        table = self.after()
        rows = [
            (row["treatment"], f"{row['success']:.1%}", f"{row['accuracy lost']:+.1%}", f"{row['ratio']:.2f}")
            for row in (table[table["attack"] == table["attack"].iloc[0]].to_dict("records") if len(table) else ())
        ]
        return markdown_table(["treatment", "success", "accuracy lost", "W with / W without"], rows)

    def paths(self) -> pd.DataFrame:
        """Success and mean W with the trigger of each network along the learning rates of fine-tuning, and whether W warns.

        W warns where it has at least doubled while the backdoor still works (``STILL_WORKS``).

        Returns
        -------
        DataFrame
            Columns attack, network (its seed), treatment, success, W, and warns (bool; False before any treatment).
        """
        rows, s = [], usual_level(self.size.sigmas)
        names = [NO_TREATMENT, *(f"fine-tune {rate:g}" for rate in self.size.learning_rates)]
        for (attack, treatment), networks in self.groups.items():
            for network in networks if treatment in names else ():
                (success, w), (was, w_before) = (
                    (self.success_of(own), float(self.w_of(own)[1, s].mean())) for own in (network, _before(network))
                )
                least = STILL_WORKS * (1 if attack_on(network).threat_model in ABSOLUTE else was)
                warns = treatment != NO_TREATMENT and success >= least and w >= 2 * w_before and w > w_before
                row = {"attack": attack, "network": network.seed, "treatment": treatment, "success": success, "W": w}
                rows.append(row | {"warns": warns})
        return pd.DataFrame(rows, columns=["attack", "network", "treatment", "success", "W", "warns"])

    def quantities(self) -> dict[str, Estimate]:
        """The quantities of the chapter's claims by name."""
        data = self.size.dataset
        found = quantities_of(self.after(), data, ["attack", "treatment"])
        for attack, own in self.paths().groupby("attack", sort=False):
            complete = own.groupby("network").filter(lambda path: len(path) == 1 + len(self.size.learning_rates))
            warned = [np.array([path["warns"].any()]) for _, path in complete.groupby("network")]
            if warned:
                found[f"warns.{data}.{attack}"] = share_of_repeats(warned)
        return defined(found)


load = Mitigation.load


def _before(network: NetworkSpec) -> NetworkSpec:
    """The same network without any treatment and trained without noise."""
    return replace(network.untreated, noise=None)
