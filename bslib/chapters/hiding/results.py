"""Hiding a backdoor from W: success, W and what other statistics see, without and with the attacker's noisy images."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import numpy as np
import pandas as pd

from bslib.chapters.hiding.plan import Size
from bslib.chapters.outcomes import (
    BeyondResults,
    Floats,
    area,
    attack_in_words,
    attack_name,
    attack_on,
    copies_as_wanted,
    defined,
    labels_flipped,
    mean_of,
    name_of,
    quantities,
    quantities_of,
    ratio,
    usual_level,
    w_by_candidate,
    w_by_sigma,
)
from bslib.markdown import markdown_table
from bslib.specs import NetworkSpec
from bslib.statistics import Estimate, leave_one_out, share_of_repeats

__all__ = ["Hiding", "load", "quantities"]


@dataclass(frozen=True)
class Hiding(BeyondResults[Size]):
    """The numbers of the chapter on one data set. A group has the networks of one attack with one number of covers.

    Neural Cleanse, which takes longest, may be missing.
    """

    chapter: ClassVar[str] = "hiding"

    @property
    def first(self) -> str:
        """The name of the first attack, which is measured with every number of covers."""
        return attack_name(*self.size.attacks[0])

    @cached_property
    def groups(self) -> dict[tuple[str, int], list[NetworkSpec]]:
        """The networks of each attack and number of covers."""
        found: dict[tuple[str, int], list[NetworkSpec]] = {}
        for network in self.networks:
            found.setdefault((name_of(network), attack_on(network).covers or 0), []).append(network)
        return found

    def by_sigma(self) -> pd.DataFrame:
        """W and the label that the attacker wants, against the noise level, in every group.

        Returns
        -------
        DataFrame
            Columns attack, covers, sigma and, as Estimates: W without and W with the trigger, W beside (noise on all pixels but
            the trigger's), ratio, and wanted (the fraction of noisy copies with the attacker's label).
        """
        rows = []
        for (attack, covers), networks in self.groups.items():
            w = leave_one_out([np.stack([*self.w_of(network), self._w_beside(network)]) for network in networks])
            wanted = leave_one_out([copies_as_wanted(self.counts_of(network)[1]) for network in networks])
            for s, sigma in enumerate(self.size.sigmas):
                parts = {f"W {name}": w.at(k, s).estimate() for k, name in enumerate(("without", "with", "beside"))}
                also = {"ratio": w.at(s).estimate(ratio, within=(0, np.inf)), "wanted": wanted.at(s).estimate(within=(0, 1))}
                rows.append({"attack": attack, "covers": covers, "sigma": sigma} | parts | also)
        return pd.DataFrame(rows)

    def cost(self) -> pd.DataFrame:
        """Success, clean accuracy, and the accuracy lost against the plain attack with the same seed (Estimates), by group."""
        rows = []
        for (attack, covers), networks in self.groups.items():
            plain = {network.seed: self.accuracy_of(network) for network in self.groups.get((attack, 0), [])}
            before = [plain.get(network.seed, np.nan) for network in networks]
            rows.append({"attack": attack, "covers": covers} | self.costs(networks, before))
        return pd.DataFrame(rows)

    def cost_table(self) -> str:
        """:meth:`cost` as a Markdown table."""
        rows = [
            (attack_in_words(attack), f"{number:,}", f"{success:.1%}", f"{accuracy:.1%}", f"{lost:+.1%}")
            for attack, number, success, accuracy, lost in self.cost().itertuples(index=False)
        ]
        return markdown_table(["attack", "covers", "success", "clean accuracy", "accuracy lost"], rows)

    def areas(self) -> pd.DataFrame:
        """How well each score tells triggered from clean images of one network: the mean area under the ROC curve over networks.

        Returns
        -------
        DataFrame
            Columns attack, covers, score ("STRIP", "margin", "flips" or "W"), sigma (0 for the first two), and auc (Estimate).
        """
        rows = []
        for (attack, covers), networks in self.groups.items():
            scores = [[self._scores(network, trigger) for trigger in network.carried] for network in networks]
            for score, sigma in scores[0][0]:
                of_each = [area(clean[score, sigma], with_it[score, sigma]) for clean, with_it in scores]
                found = mean_of(of_each, within=(0, 1))
                rows.append({"attack": attack, "covers": covers, "score": score, "sigma": sigma, "auc": found})
        return pd.DataFrame(rows)

    def _w_beside(self, network: NetworkSpec) -> Floats:
        """W with the trigger under noise on the other pixels alone."""
        return w_by_sigma(self.records[self.size.counts_of(network, *network.triggers, noise_on="rest")])

    def _scores(self, network: NetworkSpec, trigger: int | None) -> dict[tuple[str, float], Floats]:
        """Scores of a network's images without or with its trigger; suspicious images have high ones."""
        size, records = self.size, self.records
        counts, strip = records[size.counts_of(network, trigger)], records[size.strip_of(network, trigger)].arrays["scores"][0]
        flips, w = labels_flipped(counts), w_by_sigma(counts)
        found = {("STRIP", 0.0): -strip, ("margin", 0.0): records[size.margins_of(network, trigger)].arrays["margins"]}
        for s, sigma in enumerate(self.size.sigmas):
            found |= {("flips", sigma): flips[s], ("W", sigma): -w[s]}
        return found

    def cleansed(self) -> pd.DataFrame:
        """What Neural Cleanse finds on each hidden network of the first attack: sizes of masks, and mean W with its patches."""
        rows = []
        for network in self.groups.get((self.first, self.size.covers[-1]), []):
            (crafted, batch), target = self.size.cleanse_specs(network), attack_on(network).target
            assert target is not None  # the size has checked it
            if crafted in self.records and batch in self.records:
                norms = self.records[crafted].arrays["masks"].sum((1, 2, 3))
                w = w_by_candidate(self.records[batch])[usual_level(batch.sigmas)]
                sizes = {"target": norms[target], "smallest other": np.delete(norms, target).min()}
                sizes |= {"index": self.records[crafted].result["anomaly_index"], "W": w[target]}
                rows.append({"network": network.seed} | sizes | {"W of the others": np.delete(w, target).mean()})
        return pd.DataFrame(rows)

    def cleanse_table(self) -> str:
        """:meth:`cleansed` as a Markdown table."""
        head = ("network", "mask of the target", "smallest other", "anomaly index", "W with the target's patch", "with others")
        rows = [(f"{row[0]:.0f}", *(f"{v:.3g}" for v in row[1:])) for row in self.cleansed().to_numpy()]
        return markdown_table(head, rows)

    def quantities(self) -> dict[str, Estimate]:
        """The quantities of the chapter's claims by name."""
        data, group, areas = self.size.dataset, ["attack", "covers"], self.areas()
        found = quantities_of(self.cost(), data, group) | quantities_of(self.by_sigma(), data, [*group, "sigma"])
        for noisy, own in areas.groupby(areas["sigma"] > 0) if len(areas) else ():
            found |= quantities_of(own, data, [*group, "score", *(["sigma"] if noisy else [])])
        masks = self.cleansed()
        if len(masks):
            smallest = [np.array([least]) for least in masks["target"] < masks["smallest other"]]
            found[f"smallest_mask.{data}.{self.first}.{self.size.covers[-1]}"] = share_of_repeats(smallest)
        return defined(found)


load = Hiding.load
