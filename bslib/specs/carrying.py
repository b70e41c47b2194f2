"""Specs of what is measured on images that carry a trigger or a crafted pattern: class counts and scores of detectors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from bslib.datasets import class_count
from bslib.entropy import entropy
from bslib.specs.measured import CleanseSpec, TriggeredSpec, UniversalSpec
from bslib.specs.networks import Spec

__all__ = ["CarryingSpec", "CountsSpec", "DetectorSpec"]


@dataclass(frozen=True, kw_only=True)
class CarryingSpec(TriggeredSpec):
    """Base class of specs that are measured on images that may carry a trigger or a crafted pattern.

    Parameters
    ----------
    pattern : UniversalSpec or CleanseSpec, optional
        The crafted pattern that the images carry. Each Neural Cleanse candidate is applied to the whole batch in turn.
    """

    pattern: UniversalSpec | CleanseSpec | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.trigger is not None and self.pattern is not None:
            got = f"trigger {self.trigger} and a {self.pattern.kind} spec"
            raise ValueError(f"images carry a trigger or a crafted pattern, got {got}")
        if self.pattern is not None and self.pattern.network != self.network:
            raise ValueError("the pattern was crafted for another network than the one that is measured")

    @property
    def needs(self) -> dict[str, Spec]:
        """The network, and the pattern, which is identified by the checksum of its record."""
        return {"weights": self.network} | ({} if self.pattern is None else {"pattern": self.pattern})

    @property
    def batches(self) -> int:
        """How many times the batch is measured: once, or once for each Neural Cleanse candidate."""
        return class_count(self.dataset) if isinstance(self.pattern, CleanseSpec) else 1


@dataclass(frozen=True, kw_only=True)
class CountsSpec(CarryingSpec):
    """Class counts of a network on a batch of test images.

    Its record holds counts (S, N, B, C), labels (B,) and the indices of the images (B,).

    Parameters
    ----------
    points : int
        Number of test images in the batch, drawn without replacement with ``seed``.
    sigmas : tuple of S floats
        Noise levels.
    ns : tuple of N ints
        Numbers of noisy copies of each image; counts are kept for each of these prefixes of the noise.
    seed : int
        Seed of the batch and of the noise.
    trigger, pattern
        As in :class:`CarryingSpec`. For Neural Cleanse candidates, B is the number of classes times ``points``.
    by_class : bool, optional
        If True, draw ``points`` images of each class, class after class, instead of ``points`` in total.
    paired : bool, optional
        If True, key the noise on the image's index instead of its pixels, so that an image gets the same noise with and without
        a trigger.
    held_out : bool, optional
        If True, draw from the half of the test set that no pattern is crafted on.
    noise_on : {"trigger", "rest"}, optional
        The pixels that the noise falls on: those of the trigger (of the network's own on images without one), or all others.
        The other pixels stay as they are. Every pixel if None.
    """

    kind: ClassVar[str] = "counts"
    points: int
    sigmas: tuple[float, ...]
    ns: tuple[int, ...]
    seed: int
    by_class: bool | None = None
    paired: bool | None = None
    held_out: bool | None = None
    noise_on: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.noise_on is not None and (self.noise_on not in ("trigger", "rest") or not self.triggers or self.pattern):
            raise ValueError(f"noise falls on the pixels of the trigger or the rest, got {self.noise_on!r} and {self.triggers}")
        if self.by_class and self.held_out:
            raise ValueError("by_class draws from the whole test set, and held_out from half of it: choose one")
        if self.paired and isinstance(self.pattern, CleanseSpec):
            raise ValueError("paired noise is keyed on the image, and a CleanseSpec puts each image into the batch many times")

    @property
    def work(self) -> float:
        """Number of noisy copies that are classified."""
        batches = class_count(self.dataset) if self.by_class else self.batches
        return self.points * batches * max(self.ns) * len(self.sigmas)

    def summary(self, result: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]) -> NDArray[np.float64]:
        """The mean W at each noise level and number of copies."""
        return entropy(arrays["counts"]).mean(-1).ravel()


@dataclass(frozen=True, kw_only=True)
class DetectorSpec(CarryingSpec):
    """Scores of a detector for a batch of test images.

    Its record holds scores (G, ...): one row for each of G Neural Cleanse candidates, otherwise a single row.

    Parameters
    ----------
    detector : str
        A module of :mod:`bslib.detectors`.
    points : int
        Number of images in the batch, from the half of the test set that no pattern is crafted on.
    overlays : int
        Number of clean images from the other half, for detectors that need them.
    seed : int
        Seed of the choice of both sets of images.
    trigger, pattern
        As in :class:`CarryingSpec`.
    """

    kind: ClassVar[str] = "detector"
    detector: str
    points: int
    overlays: int
    seed: int

    @property
    def work(self) -> float:
        """Number of images that are scored."""
        return self.points * self.batches
