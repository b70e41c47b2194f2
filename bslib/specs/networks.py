"""What every spec is, and the specs of networks: how they are trained, attacked and treated."""

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

from bslib.fields import check_fields
from bslib.threat_models import ThreatModel, threat_model_named

__all__ = ["AttackSpec", "NetworkSpec", "Spec", "TreatmentSpec"]


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
    def shared(self) -> Spec:
        """What specs that are computed under one lock share: the network before any treatment, or without one the spec itself."""
        return self if self.on_network is None else self.on_network.untreated

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
        changes = {name: value.without_seeds() for name, value in self.fields.items() if isinstance(value, Spec)}
        return dataclasses.replace(self, **changes, **({"seed": 0} if "seed" in self.fields else {}))

    @property
    def triggers(self) -> tuple[int, ...]:
        """The triggers used to compute the record; if the drawing of one changes, the record becomes stale."""
        return ()

    @cached_property
    def key(self) -> str:
        """The key: 20 hexadecimal digits, computed from the kind and the fields that are not None."""
        text = json.dumps(self.as_dict(), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()[:20]

    @property
    def fields(self) -> dict[str, Any]:
        """The values of all fields by name."""
        return {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}

    def as_dict(self) -> dict[str, Any]:
        """Return the kind and the fields that are not None, with nested specs as dictionaries.

        :func:`~bslib.specs.spec_from` is the inverse.
        """
        plain = {name: v.as_dict() if isinstance(v, Spec) else v for name, v in self.fields.items() if v is not None}
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
            got = f"{self.images} and {self.epochs} epochs"
            raise ValueError(f"a treatment needs images, and training unless it prunes, got {got}")
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

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.treatment is not None and self.attack is None:
            raise ValueError(
                "a treatment needs an attacked network: it unlearns or is measured against the trigger, got a clean one"
            )

    @property
    def triggers(self) -> tuple[int, ...]:
        """The trigger of the attack."""
        return () if self.attack is None else (self.attack.trigger,)

    @property
    def carried(self) -> tuple[int | None, ...]:
        """What images carry when the network is measured without and with its trigger: None, and the trigger if there is one."""
        return (None, *self.triggers)

    @property
    def on_network(self) -> NetworkSpec:
        """The network itself."""
        return self

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
