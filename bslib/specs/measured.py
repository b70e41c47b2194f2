"""Specs of what is measured on one network or crafted for it: predictions, margins, perturbations, trigger candidates."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from bslib.specs.networks import NetworkSpec, Spec

__all__ = ["CleanseSpec", "MarginsSpec", "MeasuredSpec", "PredictionsSpec", "TriggeredSpec", "UniversalSpec"]


@dataclass(frozen=True, kw_only=True)
class MeasuredSpec(Spec):
    """Base class of specs that are measured on, or crafted for, one network; the record names the weights used.

    Parameters
    ----------
    network : NetworkSpec
    """

    network: NetworkSpec

    @property
    def triggers(self) -> tuple[int, ...]:
        """The triggers of the network."""
        return self.network.triggers

    @property
    def dataset(self) -> str:
        """The network's data set."""
        return self.network.dataset

    @property
    def on_network(self) -> NetworkSpec:
        """The network that is measured."""
        return self.network

    @property
    def needs(self) -> dict[str, Spec]:
        """The network, identified by the digest of its weights."""
        return {"weights": self.network}


@dataclass(frozen=True, kw_only=True)
class UniversalSpec(MeasuredSpec):
    """A universal perturbation (:mod:`bslib.patterns.universal`).

    Its record holds the perturbation (C, H, W), the fooling rates, and the predictions for images that were not used to craft it,
    without and with the perturbation, each (N,).

    Parameters
    ----------
    images : int
        Number of test images used to craft it, from the half of the test set that W is not measured on.
    bound : int
        Its sup norm, in units of 1/255.
    passes, batch_size
        As for :func:`~bslib.patterns.universal.universal_perturbation`.
    seed : int
        Seed of the choice of images and of their order.
    """

    kind: ClassVar[str] = "universal"
    images: int
    bound: int
    passes: int
    batch_size: int
    seed: int


@dataclass(frozen=True, kw_only=True)
class CleanseSpec(MeasuredSpec):
    """Trigger candidates from Neural Cleanse, one for each class (:mod:`bslib.patterns.neural_cleanse`).

    Its record holds masks (K, 1, H, W), patterns (K, C, H, W), and their success rates on the images used to craft them, on other
    test images and on training images, each (K,).

    Parameters
    ----------
    images : int
        Number of test images used to craft them, from the half of the test set that W is not measured on.
    samples, steps
        As for :func:`~bslib.patterns.neural_cleanse.reverse_triggers`.
    checked : int
        Number of other test images, and of training images, on which success is measured; all if there are fewer.
    seed : int
        Seed of the choice of images, the initial candidates and the order of the images.
    """

    kind: ClassVar[str] = "cleanse"
    images: int
    samples: int
    steps: int
    checked: int
    seed: int


@dataclass(frozen=True, kw_only=True)
class TriggeredSpec(MeasuredSpec):
    """Base class of specs that are measured on images that may carry a trigger.

    Parameters
    ----------
    trigger : int, optional
        The trigger that the images carry; None for clean images.
    """

    trigger: int | None = None

    @property
    def triggers(self) -> tuple[int, ...]:
        """The triggers of the network and of the images."""
        return self.network.triggers if self.trigger is None else (*self.network.triggers, self.trigger)


@dataclass(frozen=True, kw_only=True)
class PredictionsSpec(TriggeredSpec):
    """Predictions of a network for test images, with or without a trigger.

    Its record holds the predicted and the true labels, each (N,).

    Parameters
    ----------
    trigger
        As in :class:`TriggeredSpec`.
    images : int, optional
        Number of test images, drawn with the network's seed; all if None.
    """

    kind: ClassVar[str] = "predictions"
    images: int | None = None

    def summary(self, result: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]) -> NDArray[np.float64]:
        """The fraction of images whose predicted label is the true label."""
        return np.array([(arrays["predicted"] == arrays["labels"]).mean()])


@dataclass(frozen=True, kw_only=True)
class MarginsSpec(TriggeredSpec):
    """The logit margins of a network: the largest logit minus the second largest, without noise.

    Its record holds margins (B,), and the predicted and the true labels (B,).

    Parameters
    ----------
    trigger
        As in :class:`TriggeredSpec`.
    points : int
        Number of test images, drawn with ``seed`` from the half of the test set that no pattern is crafted on.
    seed : int
    """

    kind: ClassVar[str] = "margins"
    points: int
    seed: int

    def summary(self, result: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]) -> NDArray[np.float64]:
        """The median margin."""
        return np.array([np.median(arrays["margins"])])
