"""What the chapter on W as a defence computes: W, margins and STRIP of the same images; batches; Neural Cleanse's candidates."""

from __future__ import annotations

from dataclasses import dataclass

from bslib.chapters import sizes_of
from bslib.chapters.beyond import Attack, CleansedSize, nearest
from bslib.specs import CountsSpec, NetworkSpec, Spec

__all__ = [
    "Size", "clean_networks_of", "cleansed_networks_of", "networks_of", "plan", "second_batch_of", "specs_of",
]  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Size(CleansedSize):
    """The size of the chapter on one data set.

    Parameters
    ----------
    attacks : tuple of (threat model, trigger)
        The backdoors that are to be found.
    clean_networks : int
        Networks without a backdoor.
    ns : tuple of int
        Numbers of noisy copies at which W is compared; the last is ``n``.
    cleansed : tuple of (threat model, trigger)
        The backdoors on which Neural Cleanse runs, as it does on every clean network; each one of ``attacks``.
    """

    attacks: tuple[Attack, ...] = (("T1", 1), ("T1", 4), ("T2", 3), ("T2", 5), ("T3", 1), ("T3", 2), ("T3", 4))
    clean_networks: int = 10
    ns: tuple[int, ...] = (10, 25, 50, 100, 250)
    cleansed: tuple[Attack, ...] = (("T1", 1), ("T3", 2))

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.ns[-1:] != (self.n,):
            raise ValueError(f"the last of ns must be n, {self.n}, got {self.ns}")
        if not {*self.cleansed} <= {*self.attacks}:
            raise ValueError(f"cleansed must be among attacks {self.attacks}, got {self.cleansed}")


def plan(profile: str, *, seed: int = 0) -> list[Spec]:
    """All specs of the chapter: images and batches first, then Neural Cleanse.

    >>> len(plan("smoke"))
    29
    """
    specs: list[Spec] = []
    for size in sizes_of("defence", profile):
        specs += [spec for network in networks_of(size, seed) for spec in specs_of(size, network)]
        for network in cleansed_networks_of(size, seed):
            specs += [*size.cleanse_specs(network), size.counts_of(network, None)]
    return list(dict.fromkeys(specs))


def networks_of(size: Size, seed: int) -> list[NetworkSpec]:
    """The backdoored networks, the first of each kind, then the second of each; and the clean ones."""
    backdoored = [size.attacked_network(run, *attack) for run in size.seeds(seed) for attack in size.attacks]
    return [*backdoored, *clean_networks_of(size, seed)]


def clean_networks_of(size: Size, seed: int) -> list[NetworkSpec]:
    """The clean networks."""
    return [size.network_spec(run) for run in size.seeds(seed, size.clean_networks)]


def cleansed_networks_of(size: Size, seed: int) -> list[NetworkSpec]:
    """The networks on which Neural Cleanse runs: a clean one, then one of each kind, and so on."""
    backdoored = [size.attacked_network(run, *attack) for run in size.seeds(seed) for attack in size.cleansed]
    return [*clean_networks_of(size, seed), *backdoored]


def specs_of(size: Size, network: NetworkSpec) -> list[Spec]:
    """A backdoored network: W for every number of copies, margins and STRIP without and with its trigger, and a clean batch.

    Of a clean network two clean batches.
    """
    if network.attack is None:
        return [network, size.counts_of(network, None), second_batch_of(size, network)]
    specs: list[Spec] = [network, size.predictions_of(network)]
    for trigger in network.carried:
        specs += [size.counts_of(network, trigger), ladder_of(size, network, trigger)]
        specs += [size.margins_of(network, trigger), size.strip_of(network, trigger)]
    return [*specs, second_batch_of(size, network)]


def ladder_of(size: Size, network: NetworkSpec, trigger: int | None) -> CountsSpec:
    """Class counts at each number of noisy copies, at one noise level."""
    return size.counts_of(network, trigger, sigmas=(nearest(size.sigmas),), ns=size.ns)


def second_batch_of(size: Size, network: NetworkSpec) -> CountsSpec:
    """Counts of a second clean batch, for the false alarms of a test on two; a few images are in both, since both are drawn."""
    return size.counts_of(network, None, seed=network.seed + 10_000)
