"""What mitigations do to the surface: success, clean accuracy and W before and after each treatment of a backdoored network."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
import pandas as pd

from bslib.chapters.base import Results
from bslib.chapters.mitigation.plan import Size, specs_of
from bslib.chapters.outcomes import (
    Run,
    accuracy_of,
    attack_on,
    attack_success,
    costs,
    defined,
    name_of,
    network_of,
    quantities,
    quantities_of,
    ratio,
    usual_level,
    w_by_sigma,
)
from bslib.markdown import markdown_table
from bslib.specs import NetworkSpec, Spec
from bslib.statistics import Estimate, leave_one_out, share_of_networks

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
class Mitigation(Results[Size]):
    """The numbers of the chapter on one data set. A group has the networks of one attack after one treatment.

    A run is a network, its success, and counts without and with the trigger; then the same of the network before the treatment.
    """

    chapter: ClassVar[str] = "mitigation"
    described: ClassVar[str] = "backdoored "

    def needed(self, network: NetworkSpec) -> Sequence[Spec]:
        """The network, its success and its counts, and those of the network before the treatment."""
        before = replace(network.untreated, noise=None)
        return [*specs_of(self.size, network), *(specs_of(self.size, before) if before != network else ())]

    @property
    def details(self) -> str:
        """What counts as a network, and the size of the batch."""
        return f", treated or not, {self.size.points} images each"

    @cached_property
    def groups(self) -> dict[tuple[str, str], list[Run]]:
        """The records of the networks of each attack and treatment, in the order of their seeds."""
        found: dict[tuple[str, str], list[Run]] = {}
        for network, run in zip(self.networks, self.runs, strict=True):
            found.setdefault((name_of(network), treatment_of(network)), []).append(run)
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
        rows, s = [], usual_level(self.size.measured)
        for (attack, treatment), runs in self.groups.items():
            w = leave_one_out([np.stack([w_by_sigma(run[k])[s] for k in (2, 3)]) for run in runs])
            of_w: dict[str, Any] = {
                "W without": w.at(0).estimate(),
                "W with": w.at(1).estimate(),
                "less clean": w.estimate(lambda means: means[..., 1] - means[..., 0]),
                "ratio": w.estimate(ratio, within=(0, np.inf)),
            }
            before = [accuracy_of(run[4:] or run) for run in runs]
            rows.append({"attack": attack, "treatment": treatment} | costs(runs, before) | of_w)
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
        rows, s = [], usual_level(self.size.measured)
        names = [NO_TREATMENT, *(f"fine-tune {rate:g}" for rate in self.size.learning_rates)]
        for (attack, treatment), runs in self.groups.items():
            for run in runs if treatment in names else ():
                network = network_of(run)
                (success, w), (was, w_before) = (
                    (attack_success(part[1]), float(w_by_sigma(part[3])[s].mean())) for part in (run, run[4:] or run)
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
                found[f"warns.{data}.{attack}"] = share_of_networks(warned)
        return defined(found)


load = Mitigation.load
