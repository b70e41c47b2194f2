"""Where the smoothness comes from, and why it ends: noise on the trigger and beside it, margins, and a phase diagram."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from bslib.chapters import not_yet_run
from bslib.chapters.origin.plan import REGIONS, Size
from bslib.chapters.origin.plane import Plane, rank
from bslib.chapters.outcomes import (
    BeyondResults,
    attack_in_words,
    attack_name,
    attack_on,
    copies_as_wanted,
    defined,
    divided,
    name_of,
    quantities,
    usual_level,
)
from bslib.markdown import markdown_table
from bslib.specs import NetworkSpec
from bslib.statistics import Estimate, Replicates, leave_one_out, mean_of_networks

__all__ = ["PLACES", "Origin", "load", "quantities"]

Floats = NDArray[np.float64]
#: Where noise falls, in the order of :data:`~bslib.chapters.origin.plan.REGIONS`.
PLACES = tuple(region or "all" for region in REGIONS)


@dataclass(frozen=True)
class Origin(BeyondResults[Size]):
    """The numbers of the chapter on one data set. Its networks have the backdoors of the paper; :attr:`plane` has the squares."""

    chapter: ClassVar[str] = "origin"

    @cached_property
    def plane(self) -> Plane:
        """The phase diagram."""
        return Plane(self.size, self.profile, self.seed, self.records)

    def not_yet_run(self) -> str:
        """The message about missing records, which counts the networks of the phase diagram too."""
        parts = (self, self.plane)
        needs = (
            f"{sum(len(part.planned()) for part in parts)} {self.described}networks ({self.size.network}) on {self.size.dataset}"
        )
        held = sum(len(part.networks) for part in parts)
        return not_yet_run(self.chapter, self.profile, needs, held=held, seed=self.seed)

    @cached_property
    def kinds(self) -> dict[str, list[NetworkSpec]]:
        """The networks of each attack that has any, by its name."""
        found: dict[str, list[NetworkSpec]] = {attack_name(*attack): [] for attack in self.size.attacks}
        for network in self.networks:
            found[name_of(network)].append(network)
        return {name: networks for name, networks in found.items() if networks}

    def w(self, name: str) -> Floats:
        """W around the images of an attack, shape (networks, 3 places, without and with the trigger, sigmas, points)."""
        return np.stack([[self.w_of(network, noise_on=region) for region in REGIONS] for network in self.kinds[name]])

    def by_attack(self) -> str:
        """Success, the median margin of triggered images and the change of W at the level nearest to 0.1, as a Markdown table."""
        s, rows = usual_level(self.size.sigmas), []
        change = f"change of W, σ = {self.size.sigmas[s]:g}"
        for name, means in self.means.items():
            changes = (f"{means.estimate(_change(PLACES.index(place), s)):+.3f}" for place in ("all", "rest"))
            margins = [self._margins_of(network) for network in self.kinds[name]]
            margin = leave_one_out(margins, lambda own: np.median(own, axis=-1))
            rows.append((attack_in_words(name), f"{self.success(name):.1%}", f"{margin.estimate():.1f}", *changes))
        head = ["", "success", "median margin", change, "... with noise only beside the trigger"]
        return markdown_table(head, rows, empty="")

    def success(self, name: str) -> Estimate:
        """The success of an attack."""
        networks = self.kinds[name]
        labels = self.records[self.size.predictions_of(networks[0])].arrays["labels"]
        counted = int((labels != attack_on(networks[0]).target).sum())
        return mean_of_networks([self.success_of(network) for network in networks], counted)

    @cached_property
    def means(self) -> dict[str, Replicates]:
        """Mean W of each attack, shape (3 places, without and with the trigger, sigmas), with replicates."""
        return {name: leave_one_out(self.w(name)) for name in self.kinds}

    def by_place(self) -> pd.DataFrame:
        """What noise does to triggered images, by attack, noise level and the pixels that it falls on.

        Returns
        -------
        DataFrame
            Columns attack, sigma, noise on, and Estimates: as wanted (fraction of noisy copies that get the attacker's label,
            of images that have another), clean W, W (with the trigger)
            and change (W minus clean W, under noise on the same pixels).
        """
        rows = []
        for name, means in self.means.items():
            wanted = leave_one_out([self._wanted_by_place(network) for network in self.kinds[name]])
            for p, place in enumerate(PLACES):
                for s, sigma in enumerate(self.size.sigmas):
                    own = {
                        "as wanted": wanted.at(p, s).estimate(within=(0, 1)),
                        "clean W": means.at(p, 0, s).estimate(),
                        "W": means.at(p, 1, s).estimate(),
                        "change": means.estimate(_change(p, s)),
                    }
                    rows.append({"attack": name, "sigma": sigma, "noise on": place} | own)
        return pd.DataFrame(rows)

    def margins(self) -> pd.DataFrame:
        """The median margin of each network's triggered images and their mean W, a row for each network and noise level."""
        rows = [
            (name, network.key[:6], network.seed, sigma, float(np.median(self._margins_of(network))), float(w.mean()))
            for name, networks in self.kinds.items()
            for network in networks
            for sigma, w in zip(self.size.sigmas, self.w_of(network)[1], strict=True)
        ]
        return pd.DataFrame(rows, columns=["attack", "network", "seed", "sigma", "margin", "W"])

    def _margins_of(self, network: NetworkSpec) -> Floats:
        """The logit margins of its triggered images."""
        return self.records[self.size.margins_of(network, *network.triggers)].arrays["margins"]

    def _wanted_by_place(self, network: NetworkSpec) -> Floats:
        """The fraction of noisy copies of its triggered images with the attacker's label, shape (3 places, sigmas, points)."""
        return np.stack([copies_as_wanted(self.counts_of(network, noise_on=region)[1]) for region in REGIONS])

    def quantities(self) -> dict[str, Estimate]:
        """The quantities of the chapter by name."""
        data = self.size.dataset
        found: dict[str, Estimate] = {}
        changes = {"all": "less_clean", "rest": "beside_less_clean"}
        for _, row in self.by_place().iterrows():
            attack, place, sigma = f"{data}.{row['attack']}", row["noise on"], f"{row['sigma']:g}"
            found[f"as_wanted.{attack}.{place}.{sigma}"] = row["as wanted"]
            if place in changes:
                found[f"{changes[place]}.{attack}.{sigma}"] = row["change"]
        for name, means in self.means.items():
            found[f"success.{data}.{name}"] = self.success(name)
            for p, place in enumerate(PLACES[1:], 1):
                for s, level in enumerate(self.size.sigmas):
                    found[f"share_of_all.{data}.{name}.{place}.{level:g}"] = means.estimate(_share(p, s), within=(0, np.inf))
        if len(self.kinds) == len(self.size.attacks):
            table = self.margins()
            for level in self.size.sigmas:
                rows = table[table["sigma"] == level]
                columns = (rows[name].to_numpy() for name in ("margin", "W", "seed"))
                found[f"margin_rank.{data}.{level:g}"] = rank(*columns)
        return defined(found | self.plane.quantities())


load = Origin.load


def _change(place: int, sigma: int) -> Callable[[Floats], Floats]:
    """Mean W with the trigger minus mean W without, under noise on the same pixels."""
    return lambda means: means[..., place, 1, sigma] - means[..., place, 0, sigma]


def _share(place: int, sigma: int) -> Callable[[Floats], Floats]:
    """Mean W with the trigger under noise on a part of the image, divided by that under noise everywhere; NaN where this is 0."""
    return lambda means: divided(means[..., place, 1, sigma], means[..., 0, 1, sigma])
