"""Specs: frozen data classes that describe computations; each has a key that identifies its record.

A spec holds no paths, devices or objects, so the same spec means the same on every machine. Its key is a hash of its fields.
Fields that are None are left out of the hash. A field added later, with default None, therefore leaves the old keys valid.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from bslib.datasets import class_count
from bslib.drawings import PAPERS
from bslib.entropy import entropy
from bslib.fields import check_fields
from bslib.threat_models import ThreatModel, threat_model_named

__all__ = [
    "AttackSpec",
    "CarryingSpec",
    "CleanseSpec",
    "CountsSpec",
    "DetectorSpec",
    "DomainSpec",
    "ImagesSpec",
    "MarginsSpec",
    "MeasuredSpec",
    "NetworkSpec",
    "PredictionsSpec",
    "ScoresSpec",
    "Spec",
    "ToySpec",
    "TreatmentSpec",
    "TriggeredSpec",
    "UniversalSpec",
    "spec_from",
]


@dataclass(frozen=True, kw_only=True)
class Spec:
    """Base class of all specs: a kind, a key and a JSON representation."""

    kind: ClassVar[str]
    #: Fields whose numbers may be negative.
    signed: ClassVar[frozenset[str]] = frozenset()

    def __post_init__(self) -> None:
        check_fields(self, f"a {self.kind} spec", signed=self.signed)

    @property
    def on_network(self) -> NetworkSpec | None:
        """The network that this spec describes or measures; None if it needs no network."""
        return None

    @property
    def needs(self) -> dict[str, Spec]:
        """The specs whose results this spec depends on, by the field of the record that identifies the result used."""
        return {}

    @property
    def work(self) -> float:
        """The amount of work, in units that are comparable between records of one kind, data set and network."""
        return 1

    def summary(self, result: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]) -> NDArray[np.float64] | None:
        """The numbers that are compared with those of other networks' records; None if there are none."""
        return None

    def without_seeds(self) -> Self:
        """Return the spec with every seed set to 0; specs that differ only in their seeds become equal."""
        changes: dict[str, Any] = {f.name: 0 for f in dataclasses.fields(self) if f.name == "seed"}
        nested = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        changes |= {name: value.without_seeds() for name, value in nested.items() if isinstance(value, Spec)}
        return dataclasses.replace(self, **changes)

    @property
    def triggers(self) -> tuple[int, ...]:
        """The triggers used to compute the record; if the drawing of one changes, the record becomes stale."""
        return ()

    @cached_property
    def key(self) -> str:
        """The key: 20 hexadecimal digits, computed from the kind and the fields that are not None.

        >>> len(ImagesSpec(dataset="digits", images=12, seed=0).key)
        20
        """
        text = json.dumps(self.as_dict(), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()[:20]

    def as_dict(self) -> dict[str, Any]:
        """Return the kind and the fields that are not None, with nested specs as dictionaries; inverse of :func:`spec_from`."""
        fields = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        plain = {name: v.as_dict() if isinstance(v, Spec) else v for name, v in fields.items() if v is not None}
        return {"kind": self.kind, **plain}


@dataclass(frozen=True, kw_only=True)
class AttackSpec(Spec):
    """A backdoor attack that poisons the training set; part of a :class:`NetworkSpec`.

    Parameters
    ----------
    threat_model : {"T1", "T2", "T3"}
    trigger : int
        A pattern of :mod:`bslib.triggers`.
    target : int, optional
        The target class, if the threat model has one.
    poisons : int, optional
        Number of poisoned images; the threat model's own if None.
    covers : int, optional
        Number of further images with the trigger, noise and their true labels, with which the attacker hides the backdoor from W
        (:func:`bslib.poisoning.cover`).
    cover_sigmas : tuple of float, optional
        The noise levels of the covers.
    """

    kind: ClassVar[str] = "attack"
    threat_model: str
    trigger: int
    target: int | None = None
    poisons: int | None = None
    covers: int | None = None
    cover_sigmas: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.covers is None) != (self.cover_sigmas is None) or self.cover_sigmas == () or self.covers == 0:
            raise ValueError(f"covers need their number and noise levels, got {self.covers} covers of sigmas {self.cover_sigmas}")

    @property
    def model(self) -> ThreatModel:
        """The threat model, with this attack's number of poisons."""
        named = threat_model_named(self.threat_model)
        return named if self.poisons is None else dataclasses.replace(named, count=self.poisons)

    def target_labels(self, labels: NDArray[Any], classes: int) -> NDArray[Any]:
        """Return the label that the attacker wants for each triggered image.

        >>> import numpy as np
        >>> AttackSpec(threat_model="T1", trigger=1, target=3).target_labels(np.array([0, 9]), 10).tolist()
        [3, 3]
        """
        return self.model.target_labels(labels, target=self.target, classes=classes)

    def without_seeds(self) -> Self:
        """Return the attack with any target class set to 0, because the target follows from the network's seed."""
        return self if self.target is None else dataclasses.replace(self, target=0)


@dataclass(frozen=True, kw_only=True)
class TreatmentSpec(Spec):
    """What a defender does to a trained network (:mod:`bslib.treatments`); part of a :class:`NetworkSpec`.

    Parameters
    ----------
    method : {"fine-tune", "prune", "unlearn"}
        Training on clean images; pruning of filters; training on images with the trigger and their true labels.
    images : int
        Number of clean training images that the defender has, drawn with the network's seed.
    epochs : int
        Passes over these images, after the pruning if there is any; 0 trains nothing.
    learning_rate : float, optional
        Peak learning rate of the training.
    fraction : float, optional
        Fraction of the filters that are pruned, or of the images that carry the trigger.
    """

    kind: ClassVar[str] = "treatment"
    method: str
    images: int
    epochs: int
    learning_rate: float | None = None
    fraction: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.method not in ("fine-tune", "prune", "unlearn"):
            raise ValueError(f"a treatment is fine-tune, prune or unlearn, got {self.method!r}")
        if self.images < 1 or (self.epochs < 1 and self.method != "prune"):
            raise ValueError(
                f"a treatment needs images, and training unless it prunes, got {self.images} and {self.epochs} epochs"
            )
        if (self.epochs > 0) != (self.learning_rate is not None):
            raise ValueError(f"training needs epochs and a learning rate, got {self.epochs} and {self.learning_rate}")
        if (self.method == "fine-tune") != (self.fraction is None) or (self.fraction or 0) > 1:
            raise ValueError(f"a fraction from 0 to 1 goes with prune and unlearn alone, got {self.method} and {self.fraction}")


@dataclass(frozen=True, kw_only=True)
class NetworkSpec(Spec):
    """A trained network.

    Its record holds the accuracies and the digest of the weights. The weights are kept beside the records, in the store's folder.

    Parameters
    ----------
    dataset, network : str
        Names in :mod:`bslib.datasets` and :mod:`bslib.networks`.
    seed : int
        Seed of the initial weights, the order of the images and the augmentation.
    epochs : int
    train_size : int, optional
        Number of training images, drawn with ``seed``; all if None.
    learning_rate, batch_size, weight_decay, augment
        As for :func:`bslib.training.train`.
    attack : AttackSpec, optional
        The attack that poisons the training set, with ``seed``; None for a clean network.
    noise : float, optional
        Standard deviation of Gaussian noise that is added to every training image, anew in each step; None for no noise.
    treatment : TreatmentSpec, optional
        What a defender does to the network afterwards.
    """

    kind: ClassVar[str] = "network"
    dataset: str
    network: str
    seed: int
    epochs: int
    train_size: int | None = None
    learning_rate: float = 0.05
    batch_size: int = 128
    weight_decay: float = 5e-4
    augment: bool = False
    attack: AttackSpec | None = None
    noise: float | None = None
    treatment: TreatmentSpec | None = None

    @property
    def triggers(self) -> tuple[int, ...]:
        """The trigger of the attack."""
        return () if self.attack is None else (self.attack.trigger,)

    @property
    def on_network(self) -> NetworkSpec:
        """The network itself."""
        return self

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.treatment is not None and self.attack is None:
            raise ValueError(
                "a treatment needs an attacked network: it unlearns or is measured against the trigger, got a clean one"
            )

    @property
    def untreated(self) -> NetworkSpec:
        """The network before its treatment; the network itself if there is none."""
        return self if self.treatment is None else dataclasses.replace(self, treatment=None)

    @property
    def needs(self) -> dict[str, Spec]:
        """The network before its treatment, identified by the digest of its weights."""
        return {} if self.treatment is None else {"weights before": self.untreated}

    @property
    def work(self) -> float:
        """Number of training images times epochs; a full training set counts as 50,000 images."""
        if self.treatment is not None:
            return max(1, self.treatment.epochs) * self.treatment.images
        return self.epochs * (self.train_size or 50_000)

    def summary(self, result: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]) -> NDArray[np.float64]:
        """The clean accuracy."""
        return np.array([result["clean_accuracy"]])


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

    @property
    def combined(self) -> tuple[ScoresSpec, str] | None:
        """The older ``ScoresSpec`` whose record also holds these scores, and the array's name; None if there is none."""
        if self.detector not in ScoresSpec.arrays:
            return None
        fields = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name != "detector"}
        return ScoresSpec(**fields), ScoresSpec.arrays[self.detector]


@dataclass(frozen=True, kw_only=True)
class ScoresSpec(CarryingSpec):
    """Scores of two detectors in one record, as stored by earlier versions.

    The store reads such a record as two records with a :class:`DetectorSpec` each.

    Parameters
    ----------
    points, overlays, seed, trigger, pattern
        As in :class:`DetectorSpec`.
    """

    kind: ClassVar[str] = "scores"
    #: The name of the array that holds the scores of each detector.
    arrays: ClassVar[dict[str, str]] = {"strip": "strip", "logit_shift": "logit_variance"}
    points: int
    overlays: int
    seed: int

    def alone(self, detector: str) -> DetectorSpec:
        """Return the spec of one detector's scores."""
        fields = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        return DetectorSpec(detector=detector, **fields)


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

    Its record holds points, predicted regions and class counts (:mod:`bslib.jobs`).

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


_KINDS: dict[str, type[Spec]] = {
    spec.kind: spec
    for spec in (
        AttackSpec, CleanseSpec, CountsSpec, DetectorSpec, DomainSpec, ImagesSpec, MarginsSpec, NetworkSpec, PredictionsSpec,
        ScoresSpec, ToySpec, TreatmentSpec, UniversalSpec,
    )
}  # fmt: skip


def spec_from(data: dict[str, Any]) -> Spec:
    """Build a spec from the dictionary that :meth:`Spec.as_dict` returned.

    Raises
    ------
    ValueError
        If this version does not know the kind or a field.

    >>> spec = ImagesSpec(dataset="digits", images=12, seed=0)
    >>> spec_from(spec.as_dict()) == spec
    True
    """
    fields = dict(data)
    kind = fields.pop("kind", None)
    if kind not in _KINDS:
        raise ValueError(f"a spec's kind must be one of {', '.join(_KINDS)}, got {kind!r}")
    known = {f.name for f in dataclasses.fields(_KINDS[kind])}
    if unknown := set(fields) - known:
        raise ValueError(f"a {kind} spec has no field {', '.join(sorted(unknown))}; it has {', '.join(sorted(known))}")
    return _KINDS[kind](**{name: _frozen(value) for name, value in fields.items()})


def _frozen(value: Any) -> Any:
    """Convert JSON lists to tuples and JSON objects to specs."""
    if isinstance(value, dict):
        return spec_from(value)
    return tuple(map(_frozen, value)) if isinstance(value, list) else value
