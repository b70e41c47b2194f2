"""What the chapter on mitigations computes: success and W after fine-tuning, pruning, unlearning and training with noise."""

from __future__ import annotations

from dataclasses import dataclass, replace

from bslib.chapters import sizes_of
from bslib.chapters.beyond import Attack, BeyondSize
from bslib.specs import NetworkSpec, Spec, TreatmentSpec

__all__ = ["Size", "networks_of", "plan", "treatments_of"]


@dataclass(frozen=True, kw_only=True)
class Size(BeyondSize):
    """The size of the chapter on one data set.

    Parameters
    ----------
    attacks : tuple of (threat model, trigger)
    images : int
        Clean training images that the defender has.
    treatment_epochs : int
        Passes over them.
    learning_rates : tuple of float
        Peak rates of fine-tuning; the second is also that of fine-pruning and unlearning.
    fractions : tuple of float
        Fractions of the filters of the last convolution that are pruned; fine-pruning has each as well.
    unlearned : float
        Fraction of the defender's images that get the trigger for unlearning.
    noises : tuple of float
        Standard deviations of the noise in training, of networks that are attacked and trained anew.
    followed : int
        Further networks with the first attack, which are only fine-tuned.
    """

    attacks: tuple[Attack, ...] = (("T1", 1), ("T2", 5), ("T3", 2))
    images: int = 3000
    treatment_epochs: int = 5
    learning_rates: tuple[float, ...] = (0.005, 0.02, 0.05)
    fractions: tuple[float, ...] = (0.1, 0.3, 0.5, 0.7, 0.9)
    unlearned: float = 0.2
    noises: tuple[float, ...] = (0.1, 0.25)
    followed: int = 0
    sigmas: tuple[float, ...] = (0.05, 0.1, 0.25)

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.learning_rates) < 2:
            raise ValueError(f"at least two learning rates are needed, got {self.learning_rates}")


def plan(profile: str, *, seed: int = 0) -> list[Spec]:
    """All specs of the chapter; the first network of each attack with every treatment, then the second of each.

    >>> len(plan("smoke"))
    28
    """
    return [
        spec for size in sizes_of("mitigation", profile) for network in networks_of(size, seed) for spec in size.basics(network)
    ]


def treatments_of(size: Size) -> list[TreatmentSpec]:
    """The treatments, each on the defender's images."""
    images, epochs, rate = size.images, size.treatment_epochs, size.learning_rates[1]
    tuned = [TreatmentSpec(method="fine-tune", images=images, epochs=epochs, learning_rate=r) for r in size.learning_rates]
    pruned = [TreatmentSpec(method="prune", images=images, epochs=0, fraction=f) for f in size.fractions]
    both = [replace(treatment, epochs=epochs, learning_rate=rate) for treatment in pruned]
    unlearned = TreatmentSpec(method="unlearn", images=images, epochs=epochs, learning_rate=rate, fraction=size.unlearned)
    return [*tuned, *pruned, *both, unlearned]


def networks_of(size: Size, seed: int) -> list[NetworkSpec]:
    """Each attacked network as it is, after each treatment, and trained with noise; then those that are only fine-tuned."""
    networks = []
    for run in size.seeds(seed):
        for attack in size.attacks:
            network = size.attacked_network(run, *attack)
            networks += [network, *(replace(network, treatment=treatment) for treatment in treatments_of(size))]
            networks += [replace(network, noise=noise) for noise in size.noises]
    tuned = [treatment for treatment in treatments_of(size) if treatment.method == "fine-tune"]
    for run in size.seeds(seed + size.networks, size.followed):
        network = size.attacked_network(run, *size.attacks[0])
        networks += [network, *(replace(network, treatment=treatment) for treatment in tuned)]
    return networks
