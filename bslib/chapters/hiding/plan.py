"""What the chapter on hiding from W computes: attackers who add noisy images with the trigger and their true labels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from bslib.chapters import sizes_of
from bslib.chapters.beyond import Attack, CleansedSize
from bslib.specs import NetworkSpec, Spec
from bslib.threat_models import threat_model_named

__all__ = ["Size", "networks_of", "plan", "specs_of"]


@dataclass(frozen=True, kw_only=True)
class Size(CleansedSize):
    """The size of the chapter on one data set.

    Parameters
    ----------
    attacks : tuple of (threat model, trigger)
        The attackers; each with no covers and with the largest number of them.
    covers : tuple of int
        Numbers of noisy images, ascending; the first attack is measured with each.
    cover_sigmas : tuple of float
        The noise levels of these images.
    """

    attacks: tuple[Attack, ...] = (("T1", 1), ("T1", 4), ("T1", 5), ("T2", 5), ("T3", 2))
    covers: tuple[int, ...] = (50, 250, 1000, 9000)
    cover_sigmas: tuple[float, ...] = (0.05, 0.1, 0.25)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not threat_model_named(self.attacks[0][0]).one_target:
            raise ValueError(f"the first of attacks must have one target class for its mask, got {self.attacks[0]}")


def plan(profile: str, *, seed: int = 0) -> list[Spec]:
    """All specs of the chapter; the first network of each kind, then the second of each.

    >>> len(plan("smoke"))
    47
    """
    specs: list[Spec] = []
    for size in sizes_of("hiding", profile):
        specs += [spec for network in networks_of(size, seed) for spec in specs_of(size, network)]
        for run in size.seeds(seed):
            specs += size.cleanse_specs(network_of(size, run, size.attacks[0], size.covers[-1]))
    return specs


def network_of(size: Size, run: int, attack: Attack, covers: int) -> NetworkSpec:
    """A backdoored network with so many covers."""
    more: dict[str, Any] = {"covers": covers, "cover_sigmas": size.cover_sigmas} if covers else {}
    return size.attacked_network(run, *attack, **more)


def networks_of(size: Size, seed: int) -> list[NetworkSpec]:
    """The first attack with every number of covers, the others with none and the most."""
    return [
        network_of(size, run, attack, covers)
        for run in size.seeds(seed)
        for attack in size.attacks
        for covers in ((0, *size.covers) if attack == size.attacks[0] else (0, size.covers[-1]))
    ]


def specs_of(size: Size, network: NetworkSpec) -> list[Spec]:
    """A network, its success, W and STRIP without and with its trigger, W with noise only beside the trigger, and margins."""
    strip = [size.strip_of(network, trigger) for trigger in network.carried]
    rest = size.counts_of(network, network.carried[1], noise_on="rest")
    return [*size.basics(network), *strip, rest, *(size.margins_of(network, trigger) for trigger in network.carried)]
