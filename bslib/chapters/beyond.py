"""What the chapters beyond the paper share: their networks, and the batches that W is measured on.

These networks have seeds of their own, from :data:`FIRST_SEED` on; only the number of epochs under T3 was chosen on two of these
seeds, by success alone. Every network is trained for the same number of epochs under every threat model, so that success and W
can be compared across them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from bslib.chapters.base import TrainedSize
from bslib.specs import CleanseSpec, CountsSpec, DetectorSpec, MarginsSpec, NetworkSpec, PredictionsSpec, Spec

__all__ = ["FIRST_SEED", "Attack", "BeyondSize", "CleansedSize", "nearest"]

#: The seed of the first network of each kind.
FIRST_SEED = 100
#: A threat model and a trigger.
Attack = tuple[str, int]


@dataclass(frozen=True, kw_only=True)
class BeyondSize(TrainedSize):
    """The networks and batches of a chapter beyond the paper on one data set.

    Parameters
    ----------
    points : int
        Test images in a batch.
    sigmas, n
        Noise levels and noisy copies.
    test_images : int, optional
        Images that success is measured on; the whole test set when not given.
    """

    points: int = 250
    sigmas: tuple[float, ...] = (0.01, 0.05, 0.1, 0.15, 0.25, 0.5, 1.0)
    n: int = 250
    test_images: int | None = None

    def seeds(self, seed: int, networks: int | None = None) -> range:
        """The seeds of the networks of one kind."""
        return range(FIRST_SEED + seed, FIRST_SEED + seed + (self.networks if networks is None else networks))

    def counts_of(self, network: NetworkSpec, trigger: int | None, **more: Any) -> CountsSpec:
        """Class counts of a batch; every batch of a network has the same images and the same noise, whatever it carries."""
        fields: dict[str, Any] = {"points": self.points, "sigmas": self.sigmas, "ns": (self.n,), "seed": network.seed}
        return CountsSpec(network=network, trigger=trigger, held_out=True, paired=True, **(fields | more))

    def predictions_of(self, network: NetworkSpec) -> PredictionsSpec:
        """The success of a backdoored network's trigger."""
        (trigger,) = network.triggers
        return PredictionsSpec(network=network, trigger=trigger, images=self.test_images)

    def margins_of(self, network: NetworkSpec, trigger: int | None) -> MarginsSpec:
        """The logit margins of the same images."""
        return MarginsSpec(network=network, trigger=trigger, points=self.points, seed=network.seed)

    def strip_of(self, network: NetworkSpec, trigger: int | None) -> DetectorSpec:
        """STRIP's scores of the same images."""
        overlays, seed = min(100, self.points), network.seed
        return DetectorSpec(detector="strip", network=network, trigger=trigger, points=self.points, overlays=overlays, seed=seed)

    def basics(self, network: NetworkSpec) -> list[Spec]:
        """A backdoored network, the success of its trigger, and W without and with it."""
        counts = [self.counts_of(network, trigger) for trigger in network.carried]
        return [network, self.predictions_of(network), *counts]


@dataclass(frozen=True, kw_only=True)
class CleansedSize(BeyondSize):
    """The size of a chapter that also runs Neural Cleanse.

    Parameters
    ----------
    crafted_on, samples, steps, checked
        As in the patterns chapter.
    candidate_points : int
        Test images that W around a candidate is measured on.
    candidate_sigmas : tuple of float
        Noise levels there.
    """

    crafted_on: int = 500
    samples: int = 64
    steps: int = 1000
    checked: int = 5000
    candidate_points: int = 100
    candidate_sigmas: tuple[float, ...] = (0.05, 0.1, 0.25)

    def cleanse_specs(self, network: NetworkSpec) -> tuple[CleanseSpec, CountsSpec]:
        """Neural Cleanse on a network, and class counts of held-out images with each candidate."""
        how = {"images": self.crafted_on, "samples": self.samples, "steps": self.steps, "checked": self.checked}
        crafted = CleanseSpec(network=network, seed=network.seed, **how)
        batch: dict[str, Any] = {"points": self.candidate_points, "sigmas": self.candidate_sigmas, "ns": (self.n,)}
        return crafted, CountsSpec(network=network, seed=network.seed, pattern=crafted, held_out=True, **batch)


def nearest(levels: Sequence[float], wanted: float = 0.1) -> float:
    """The noise level nearest to one; by default to the one at which the chapters compare networks.

    >>> nearest((0.05, 0.15, 0.5), 0.4)
    0.5
    """
    return min(levels, key=lambda level: abs(level - wanted))
