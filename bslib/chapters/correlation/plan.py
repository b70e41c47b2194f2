"""What the chapter on success and smoothness computes (Sec. 3.2.3, Fig. 5)."""

from __future__ import annotations

from dataclasses import dataclass, replace

from bslib.chapters import sizes_of
from bslib.chapters.base import TrainedSize
from bslib.specs import CountsSpec, NetworkSpec, PredictionsSpec, Spec
from bslib.threat_models import threat_model_named

__all__ = ["Size", "clean_counts_of", "counts_of", "networks_of", "plan", "predictions_of", "success_networks_of"]


@dataclass(frozen=True, kw_only=True)
class Size(TrainedSize):
    """The size of the correlation chapter on one data set (one plot of Fig. 5).

    Parameters
    ----------
    threat_model : {"T1", "T2", "T3"}
        Under T2 each class of a network gives a pair of success and mean W, under the others each network.
    triggers : tuple of int
        The patterns that networks are trained on.
    further : int
        Further networks with each trigger, which are measured at the first noise level alone.
    success_only : tuple of int
        So many further networks with each trigger, of which the success alone is measured; none when empty.
    test_images : int, optional
        Images that success is measured on; the whole test set when not given.
    points : int
        Triggered test images behind a pair.
    clean_points : int
        Clean test images of each class or network.
    sigmas, ns
        Noise levels (claims are judged at the first) and numbers of noisy copies (the last is the paper's).
    """

    threat_model: str
    test_images: int | None = None
    triggers: tuple[int, ...] = (3, 5)
    further: int = 0
    success_only: tuple[int, ...] = ()
    clean_points: int
    sigmas: tuple[float, ...] = (0.1, 0.05, 0.25, 0.01, 0.5, 0.2, 0.15, 1.0, 0.75, 0.005)
    ns: tuple[int, ...] = (50, 250)

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.success_only) not in (0, len(self.triggers)):
            raise ValueError(f"success_only {self.success_only} must have a number for each of triggers {self.triggers}, or none")


def plan(profile: str, *, seed: int = 0) -> list[Spec]:
    """All specs of the chapter. Those of the first noise level come before those of the second.

    >>> len(plan("paper"))
    644
    """
    specs: list[Spec] = []
    for size in sizes_of("correlation", profile):
        networks = networks_of(size, seed)
        specs += [
            spec for network in networks for spec in (network, predictions_of(size, network), clean_counts_of(size, network))
        ]
        specs += [counts_of(size, network, sigma) for sigma in size.sigmas for network in networks_of(size, seed, sigma)]
        specs += [spec for network in success_networks_of(size, seed) for spec in (network, predictions_of(size, network))]
    return specs


def networks_of(size: Size, seed: int, sigma: float | None = None) -> list[NetworkSpec]:
    """The backdoored networks that are measured at a noise level, trigger by trigger; by default at the first, which are all.

    The further networks come last, so that the pairs of every level are the first ones of all pairs.
    """
    last = size.networks + (size.further if sigma in (None, size.sigmas[0]) else 0)
    return [
        size.attacked_network(seed + run, size.threat_model, trigger)
        for runs in (range(size.networks), range(size.networks, last))
        for trigger in size.triggers
        for run in runs
    ]


def success_networks_of(size: Size, seed: int) -> list[NetworkSpec]:
    """The networks of which the success alone is measured; their seeds follow those of the other networks."""
    first = seed + size.networks + size.further
    return [
        size.attacked_network(run, size.threat_model, trigger)
        for trigger, networks in zip(size.triggers, size.success_only, strict=False)
        for run in range(first, first + networks)
    ]


def predictions_of(size: Size, network: NetworkSpec) -> PredictionsSpec:
    """The predictions of a network for test images that carry its trigger."""
    assert network.attack is not None
    return PredictionsSpec(network=network, trigger=network.attack.trigger, images=size.test_images)


def counts_of(size: Size, network: NetworkSpec, sigma: float) -> CountsSpec:
    """Class counts of triggered test images at one noise level; under T2, of each class."""
    assert network.attack is not None
    return CountsSpec(
        network=network,
        points=size.points,
        sigmas=(sigma,),
        ns=size.ns,
        seed=network.seed,
        trigger=network.attack.trigger,
        by_class=not threat_model_named(size.threat_model).one_target or None,
        paired=True,
    )


def clean_counts_of(size: Size, network: NetworkSpec) -> CountsSpec:
    """Class counts of some of the same images without the trigger, under the same noise, at the first noise level."""
    return replace(counts_of(size, network, size.sigmas[0]), trigger=None, points=size.clean_points)
