"""What the chapter on other domains computes: backdoored networks for tables, texts and tones."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from bslib.chapters import sizes_of
from bslib.chapters.beyond import FIRST_SEED
from bslib.fields import check_fields
from bslib.specs import DomainSpec, Spec

__all__ = ["THREATS", "Size", "plan", "specs_of"]

#: The threat models: the paper's T1, and one like its T3, whose 250 poisons are more than a small training set has.
THREATS: dict[str, dict[str, Any]] = {"T1": {"threat_model": "T1"}, "T3-like": {"threat_model": "T3", "poison_fraction": 0.01}}


@dataclass(frozen=True, kw_only=True)
class Size:
    """The size of the chapter on one data set.

    Parameters
    ----------
    dataset, network : str
        Names in :mod:`bslib.domains`.
    networks : int
        How many for each threat model.
    epochs, points, sigmas, n
        As for :class:`~bslib.specs.others.DomainSpec`.
    """

    dataset: str
    network: str
    networks: int
    epochs: int
    points: int = 150
    sigmas: tuple[float, ...] = (0.05, 0.1, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 4.0)
    n: int = 250

    def __post_init__(self) -> None:
        check_fields(self, "a size of domains")


def plan(profile: str, *, seed: int = 0) -> list[Spec]:
    """All specs of the chapter.

    >>> len(plan("paper"))
    62
    """
    return [spec for size in sizes_of("domains", profile) for threat in THREATS for spec in specs_of(size, threat, seed)]


def specs_of(size: Size, threat: str, seed: int) -> list[DomainSpec]:
    """The networks of a data set under one of :data:`THREATS`, each with what is measured on it."""
    return [
        DomainSpec(
            dataset=size.dataset,
            network=size.network,
            seed=run,
            epochs=size.epochs,
            points=size.points,
            sigmas=size.sigmas,
            n=size.n,
            **THREATS[threat],
        )
        for run in range(FIRST_SEED + seed, FIRST_SEED + seed + size.networks)
    ]
