"""Specs that need no network of images: pictures, the points in the plane of Fig. 1, and data of other domains."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from bslib.drawings import PAPERS
from bslib.entropy import entropy
from bslib.specs.networks import Spec
from bslib.threat_models import ThreatModel, threat_model_named

__all__ = ["DomainSpec", "ImagesSpec", "ToySpec"]


@dataclass(frozen=True, kw_only=True)
class ImagesSpec(Spec):
    """A few test images, so that figures can be drawn without the data set.

    Its record holds images (N, C, H, W), labels (N,) and, if ``stamped``, the images with triggers.

    Parameters
    ----------
    dataset : str
    images : int
        Number of images; the classes alternate.
    seed : int
        Seed of the choice of images.
    stamped : bool, optional
        If True, also keep the first images with one of the paper's triggers each, (triggers, C, H, W).
    """

    kind: ClassVar[str] = "images"
    dataset: str
    images: int
    seed: int
    stamped: bool | None = None

    @property
    def triggers(self) -> tuple[int, ...]:
        """The paper's triggers if ``stamped``, otherwise none."""
        return PAPERS if self.stamped else ()


@dataclass(frozen=True, kw_only=True)
class ToySpec(Spec):
    """A network trained on points in the plane, for Fig. 1.

    Its record holds points, predicted regions and class counts (:mod:`bslib.jobs.toy`).

    Parameters
    ----------
    points : tuple of (x, y)
        The points in [-1, 1]^2 at which W is measured.
    sigma : float
        Noise level, in units of the plane.
    n : int
        Number of noisy copies of each point.
    seed : int
        Seed of the points, the network and the noise.
    """

    kind: ClassVar[str] = "toy"
    signed: ClassVar[frozenset[str]] = frozenset({"points"})
    points: tuple[tuple[float, float], ...]
    sigma: float
    n: int
    seed: int


@dataclass(frozen=True, kw_only=True)
class DomainSpec(Spec):
    """A backdoored network for data that are not images (:mod:`bslib.domains`), and W without and with its trigger.

    Its record holds counts (2, S, B, C) of B test points without and with the trigger, under the same noise; their indices
    ``rows`` (B,); the labels of the test set (N,), and what is predicted for it without and with the trigger, (2, N).

    Parameters
    ----------
    dataset, network : str
        Names in :data:`bslib.domains.DOMAINS` and :data:`bslib.domains.NETWORKS`.
    seed : int
        Seed of the network, the poisons, the batch and the noise; the target class follows from it.
    epochs : int
    threat_model : str
        One with one target class.
    poison_fraction : float, optional
        Fraction of the training set that is poisoned; the threat model's own if None.
    points : int
        Number of test points around which W is measured.
    sigmas : tuple of S floats
        Noise levels, in units of the root mean square of the points.
    n : int
        Number of noisy copies of each point.
    """

    kind: ClassVar[str] = "domain"
    dataset: str
    network: str
    seed: int
    epochs: int
    threat_model: str
    poison_fraction: float | None = None
    points: int
    sigmas: tuple[float, ...]
    n: int

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.model.one_target:
            raise ValueError(f"a domain spec needs a threat model with one target class, got {self.threat_model}")

    @property
    def model(self) -> ThreatModel:
        """The threat model, with this spec's fraction of poisons."""
        named = threat_model_named(self.threat_model)
        fraction = self.poison_fraction
        return named if fraction is None else dataclasses.replace(named, fraction=fraction, count=None)

    def target(self, classes: int) -> int:
        """Return the target class of a data set with so many classes."""
        return int(self.model.target_of_run(self.seed, classes) or 0)

    def summary(self, result: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]) -> NDArray[np.float64]:
        """The mean W without and with the trigger at each noise level."""
        return entropy(arrays["counts"]).mean(-1).ravel()
