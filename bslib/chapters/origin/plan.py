"""What the chapter on the origin of the smoothness computes: noise on the trigger and elsewhere, margins, and a phase diagram."""

from __future__ import annotations

from dataclasses import dataclass

from bslib.chapters import sizes_of
from bslib.chapters.beyond import Attack, BeyondSize
from bslib.drawings import square
from bslib.specs import NetworkSpec, Spec

__all__ = ["REGIONS", "Size", "cell_networks_of", "cell_specs", "networks_of", "plan", "specs_of"]

#: The pixels that noise falls on, as in :class:`~bslib.specs.carrying.CountsSpec`: all, the trigger's, or all others.
REGIONS = (None, "trigger", "rest")


@dataclass(frozen=True, kw_only=True)
class Size(BeyondSize):
    """The size of the chapter on one data set.

    Parameters
    ----------
    attacks : tuple of (threat model, trigger)
        The backdoors around which noise is restricted to the trigger or to the rest.
    sides, greys, poisons : tuple of int
        The square triggers of the phase diagram (:func:`bslib.drawings.square`), and numbers of poisoned images.
    cell_networks : int
        Networks for each square and number of poisons.
    cell_sigmas : tuple of float
        Noise levels there.
    """

    attacks: tuple[Attack, ...] = (("T1", 1), ("T1", 4), ("T2", 3), ("T2", 5), ("T3", 1), ("T3", 2), ("T3", 4))
    sides: tuple[int, ...] = (1, 2, 3, 5, 8)
    greys: tuple[int, ...] = (2, 4, 6, 9)
    poisons: tuple[int, ...] = (50, 250, 1000, 9000)
    cell_networks: int = 1
    cell_sigmas: tuple[float, ...] = (0.05, 0.1, 0.25)


def plan(profile: str, *, seed: int = 0) -> list[Spec]:
    """All specs of the chapter: the backdoors of the paper first, then the phase diagram, a network of each cell at a time.

    >>> len(plan("smoke"))
    68
    """
    specs: list[Spec] = []
    for size in sizes_of("origin", profile):
        specs += [spec for network in networks_of(size, seed) for spec in specs_of(size, network)]
        specs += [spec for network in cell_networks_of(size, seed) for spec in cell_specs(size, network)]
    return specs


def networks_of(size: Size, seed: int) -> list[NetworkSpec]:
    """The networks with the backdoors of the paper: the first of each kind, then the second of each."""
    return [size.attacked_network(run, *attack) for run in size.seeds(seed) for attack in size.attacks]


def specs_of(size: Size, network: NetworkSpec) -> list[Spec]:
    """A network, its success, margins, and W without and with its trigger, with noise on each of :data:`REGIONS`."""
    counts = [size.counts_of(network, trigger, noise_on=region) for region in REGIONS[1:] for trigger in network.carried]
    return [*size.basics(network), *(size.margins_of(network, trigger) for trigger in network.carried), *counts]


def cell_networks_of(size: Size, seed: int) -> list[NetworkSpec]:
    """The networks of the phase diagram, all with one target class: a network of each cell, then a second of each."""
    return [
        size.attacked_network(run, "T1", square(side, grey), poisons=poisons)
        for run in size.seeds(seed, size.cell_networks)
        for poisons in size.poisons
        for side in size.sides
        for grey in size.greys
    ]


def cell_specs(size: Size, network: NetworkSpec) -> list[Spec]:
    """A network of the phase diagram, the success of its square, margins, and W without and with it."""
    counts = [size.counts_of(network, trigger, sigmas=size.cell_sigmas) for trigger in network.carried]
    return [network, size.predictions_of(network), *(size.margins_of(network, trigger) for trigger in network.carried), *counts]
