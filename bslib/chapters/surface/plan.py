"""What the chapter on the surface effect computes (Secs. 3.2.1 and 3.2.2, Figs. 3 and 4)."""

from __future__ import annotations

from dataclasses import dataclass, replace

from bslib.chapters import sizes_of
from bslib.chapters.base import SIGMAS, TrainedSize
from bslib.drawings import PAPERS
from bslib.specs import CountsSpec, ImagesSpec, NetworkSpec, PredictionsSpec, Spec
from bslib.threat_models import threat_model_named

__all__ = ["CONDITIONS", "Size", "networks_of", "pictures_of", "plan", "specs_of"]

#: What the images of a batch carry, in the order of the first axis of :meth:`~bslib.chapters.surface.results.Surface.w`.
CONDITIONS = ("clean", "active", "inactive")


@dataclass(frozen=True, kw_only=True)
class Size(TrainedSize):
    """The size of the surface chapter on one data set (Fig. 4).

    Parameters
    ----------
    threat_model : str
        One with one target class.
    active, inactive : int
        The pattern that the networks are trained on, and one that they never see.
    test_images : int, optional
        Images that accuracies and success are measured on; the whole test set when not given.
    points : int
        Test images around which W is measured, clean and with either trigger.
    batch : int
        Points in one of the paper's box plots.
    sigmas, n
        Noise levels and noisy copies.
    """

    threat_model: str = "T1"
    test_images: int | None = None
    active: int = 1
    inactive: int = 4
    batch: int
    sigmas: tuple[float, ...] = SIGMAS
    n: int = 250

    def __post_init__(self) -> None:
        super().__post_init__()
        if not threat_model_named(self.threat_model).one_target:
            raise ValueError(f"the surface chapter needs a threat model with one target class, got {self.threat_model}")
        if self.points < 4 * self.batch:
            raise ValueError(
                f"Fig. 4 has four batches of different images: points must be {4 * self.batch} or more, got {self.points}"
            )

    @property
    def triggers(self) -> tuple[int, ...]:
        """The triggers whose success is measured: the paper's, and the two of this size."""
        return tuple(dict.fromkeys((*PAPERS, self.active, self.inactive)))


def plan(profile: str, *, seed: int = 0) -> list[Spec]:
    """All specs of the chapter, the most useful first.

    >>> len(plan("paper"))
    365
    """
    sizes = sizes_of("surface", profile)
    pictures: list[Spec] = [pictures_of(size, seed) for size in sizes]
    return (
        pictures[:1]
        + [spec for size in sizes for network in networks_of(size, seed) for spec in specs_of(size, network)]
        + pictures[1:]
    )


def pictures_of(size: TrainedSize, seed: int) -> ImagesSpec:
    """One test image for each trigger, with that trigger."""
    return ImagesSpec(dataset=size.dataset, images=len(PAPERS), seed=seed, stamped=True)


def networks_of(size: Size, seed: int) -> list[NetworkSpec]:
    """The backdoored networks of one data set, with consecutive seeds."""
    return [size.attacked_network(run, size.threat_model, size.active) for run in range(seed, seed + size.networks)]


def specs_of(size: Size, network: NetworkSpec) -> tuple[Spec, ...]:
    """A backdoored network; its predictions for clean and triggered test images; class counts of three paired batches."""
    predictions = [predictions_of(size, network, trigger) for trigger in (None, *size.triggers)]
    return (network, *predictions, *counts_of(size, network))


def predictions_of(size: Size, network: NetworkSpec, trigger: int | None) -> PredictionsSpec:
    """The predictions for test images with a trigger, or without any."""
    return PredictionsSpec(network=network, trigger=trigger, images=size.test_images)


def counts_of(size: Size, network: NetworkSpec) -> list[CountsSpec]:
    """The class counts of the same images under the same noise in each of :data:`CONDITIONS`."""
    clean = CountsSpec(network=network, points=size.points, sigmas=size.sigmas, ns=(size.n,), seed=network.seed, paired=True)
    return [replace(clean, trigger=trigger) for trigger in (None, size.active, size.inactive)]
