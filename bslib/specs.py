"""Specs: what is to be computed, as frozen data, each with a key under which its record is kept.

A spec holds no paths, devices or objects, so the same spec means the same on every machine. Its key is a hash of its fields;
a field that is None takes no part in it, so that a field added later (with None for "as before") leaves the old keys valid.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

from numpy.typing import NDArray

from bslib.drawings import DRAWINGS
from bslib.threat_models import threat_model_named

__all__ = [
    "AttackSpec",
    "CleanseSpec",
    "CountsSpec",
    "ImagesSpec",
    "MeasuredSpec",
    "NetworkSpec",
    "PredictionsSpec",
    "ScoresSpec",
    "Spec",
    "ToySpec",
    "UniversalSpec",
    "spec_from",
]


#: What a field that is declared so may hold; fields of other types are checked where they are used.
_PLAIN: dict[str, tuple[type, ...]] = {"int": (int,), "float": (float, int), "str": (str,), "bool": (bool,)}


@dataclass(frozen=True, kw_only=True)
class Spec:
    """What every spec has: a kind, a key, and a form that JSON can hold."""

    kind: ClassVar[str]

    def __post_init__(self) -> None:
        for f in dataclasses.fields(self):
            value, wanted = getattr(self, f.name), str(f.type).removesuffix(" | None")
            if value is None and str(f.type) != wanted:
                continue
            for one in value if isinstance(value, tuple) else (value,):
                allowed = _PLAIN.get(wanted.removeprefix("tuple[").removesuffix(", ...]"))
                if allowed and (type(one) not in allowed or (type(one) is not str and not 0 <= one < math.inf)):
                    text = f"{f.name} of a {self.kind} spec must be {wanted}, its numbers finite and 0 or more"
                    raise ValueError(f"{text}, got {value!r}")

    @property
    def triggers(self) -> tuple[int, ...]:
        """The triggers that a record is made with: with another drawing of one it is another record."""
        return ()

    @cached_property
    def key(self) -> str:
        """Twenty hexadecimal digits, a function of the kind and of the fields that are not None.

        >>> len(ImagesSpec(dataset="digits", images=12, seed=0).key)
        20
        """
        text = json.dumps(self.as_dict(), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()[:20]

    def as_dict(self) -> dict[str, Any]:
        """The kind and the fields that are not None, nested specs as such dictionaries; :func:`spec_from` reads it back."""
        fields = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        plain = {name: v.as_dict() if isinstance(v, Spec) else v for name, v in fields.items() if v is not None}
        return {"kind": self.kind, **plain}


@dataclass(frozen=True, kw_only=True)
class AttackSpec(Spec):
    """What is done to a training set before a network is trained on it; a part of a :class:`NetworkSpec`.

    Parameters
    ----------
    threat_model : {"T1", "T2", "T3"}
    trigger : int
        A pattern of :mod:`bslib.triggers`.
    target : int, optional
        The target class, where the threat model has one.
    """

    kind: ClassVar[str] = "attack"
    threat_model: str
    trigger: int
    target: int | None = None

    def target_labels(self, labels: NDArray[Any], classes: int) -> NDArray[Any]:
        """The label that the attacker wants for each triggered image.

        >>> import numpy as np
        >>> AttackSpec(threat_model="T1", trigger=1, target=3).target_labels(np.array([0, 9]), 10).tolist()
        [3, 3]
        """
        return threat_model_named(self.threat_model).target_labels(labels, target=self.target, classes=classes)


@dataclass(frozen=True, kw_only=True)
class NetworkSpec(Spec):
    """A trained network. Its record: accuracies and the digest of the weights; the weights lie beside the store.

    Parameters
    ----------
    dataset, network : str
        A name of :mod:`bslib.datasets` and one of :mod:`bslib.networks`.
    seed : int
        Seed of the initial weights, the order of the images and the augmentation.
    epochs : int
    train_size : int, optional
        Train on so many training images, drawn with ``seed``; on all when not given.
    learning_rate, batch_size, weight_decay, augment
        As for :func:`bslib.training.train`.
    attack : AttackSpec, optional
        Poisons the training set, with ``seed``; none where the network is clean.
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

    @property
    def triggers(self) -> tuple[int, ...]:
        """The trigger of the attack."""
        return () if self.attack is None else (self.attack.trigger,)


@dataclass(frozen=True, kw_only=True)
class MeasuredSpec(Spec):
    """What is measured on, or crafted for, one network; its record says on which weights.

    Parameters
    ----------
    network : NetworkSpec
    """

    network: NetworkSpec

    @property
    def triggers(self) -> tuple[int, ...]:
        """The network's, and the one that the measured images carry."""
        own: int | None = self.__dict__.get("trigger")
        return self.network.triggers if own is None else (*self.network.triggers, own)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.network, NetworkSpec):
            raise ValueError(f"the network of a {self.kind} spec must be a network spec, got {self.network!r}")


@dataclass(frozen=True, kw_only=True)
class UniversalSpec(MeasuredSpec):
    """A universal perturbation (:mod:`bslib.patterns.universal`). Its record: the perturbation (C, H, W), the fooling rates, and
    what images that it was not crafted on are called without it and with it, each (N,).

    Parameters
    ----------
    images : int
        Test images it is crafted on, from the half of the test set that W is not measured on.
    bound : int
        Its sup norm, in 255ths.
    passes, batch_size
        As for :func:`~bslib.patterns.universal.universal_perturbation`.
    seed : int
        Seed of the choice of images and of their order.
    """  # noqa: D205

    kind: ClassVar[str] = "universal"
    images: int
    bound: int
    passes: int
    batch_size: int
    seed: int


@dataclass(frozen=True, kw_only=True)
class CleanseSpec(MeasuredSpec):
    """Neural Cleanse's trigger candidates, one a class (:mod:`bslib.patterns.neural_cleanse`). Its record: masks (K, 1, H, W),
    patterns (K, C, H, W), their success on the images that made them, on other test images and on training images, each (K,).

    Parameters
    ----------
    images : int
        Test images they are crafted on, from the half of the test set that W is not measured on.
    samples, steps
        As for :func:`~bslib.patterns.neural_cleanse.reverse_triggers`.
    checked : int
        So many other test images, and training images, that their success is measured on; all where there are fewer.
    seed : int
        Seed of the choice of images, of the start and of the order.
    """  # noqa: D205

    kind: ClassVar[str] = "cleanse"
    images: int
    samples: int
    steps: int
    checked: int
    seed: int


@dataclass(frozen=True, kw_only=True)
class CountsSpec(MeasuredSpec):
    """Class counts of a network on a batch of test images. Its record: counts (S, N, B, C), labels (B,), which images (B,).

    Parameters
    ----------
    points : int
        Test images in the batch, drawn without replacement with ``seed``.
    sigmas : tuple of S floats
        Noise levels.
    ns : tuple of N ints
        Noisy copies of each image: the prefixes at which counts are kept.
    seed : int
        Seed of the batch and of the noise.
    trigger : int, optional
        The pattern that the images of the batch carry; none where they are clean.
    by_class : bool, optional
        True for so many points of each class, class after class, instead of so many in all.
    paired : bool, optional
        True for noise that is keyed on which image it is instead of on its pixels: with a trigger or without, an image then gets
        the same noise.
    held_out : bool, optional
        True to draw from the half of the test set that no pattern is crafted on.
    pattern : UniversalSpec or CleanseSpec, optional
        The crafted pattern that the images carry. Of Neural Cleanse's candidates each is put on the whole batch, one after the
        other, so B is the number of classes times ``points``.
    """

    kind: ClassVar[str] = "counts"
    points: int
    sigmas: tuple[float, ...]
    ns: tuple[int, ...]
    seed: int
    trigger: int | None = None
    by_class: bool | None = None
    paired: bool | None = None
    held_out: bool | None = None
    pattern: UniversalSpec | CleanseSpec | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "sigmas", tuple(map(float, self.sigmas)))  # 1 and 1.0 are one sigma and have one key
        super().__post_init__()
        _check_carried(self)
        if self.by_class and self.held_out:
            raise ValueError("by_class draws from the whole test set, and held_out from half of it: choose one")
        if self.paired and isinstance(self.pattern, CleanseSpec):
            raise ValueError("paired noise is keyed on the image, and a CleanseSpec puts each image into the batch many times")


@dataclass(frozen=True, kw_only=True)
class PredictionsSpec(MeasuredSpec):
    """What a network calls the test images, with a trigger or without. Its record: predicted and true labels, each (N,).

    Parameters
    ----------
    trigger : int, optional
        The pattern that the images carry; none where they are clean.
    images : int, optional
        So many test images, drawn with the network's seed; all when not given.
    """

    kind: ClassVar[str] = "predictions"
    trigger: int | None = None
    images: int | None = None


@dataclass(frozen=True, kw_only=True)
class ScoresSpec(MeasuredSpec):
    """What other detectors say about a batch of test images (:mod:`bslib.detectors`). Its record: STRIP's entropies (G, B) and
    the variance of the shift of the logits (G,), G being the number of candidates, or 1.

    Parameters
    ----------
    points : int
        Images in the batch, from the half of the test set that no pattern is crafted on.
    overlays : int
        Clean images of STRIP, from the other half.
    seed : int
        Seed of both choices.
    trigger, pattern
        As in :class:`CountsSpec`; a clean batch has no shift.
    """  # noqa: D205

    kind: ClassVar[str] = "scores"
    points: int
    overlays: int
    seed: int
    trigger: int | None = None
    pattern: UniversalSpec | CleanseSpec | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_carried(self)


def _check_carried(spec: CountsSpec | ScoresSpec) -> None:
    if spec.pattern is not None and not isinstance(spec.pattern, UniversalSpec | CleanseSpec):
        raise ValueError(f"the pattern of a {spec.kind} spec must be a universal or a cleanse spec, got {spec.pattern!r}")
    if spec.trigger is not None and spec.pattern is not None:
        raise ValueError(
            f"images carry a trigger or a crafted pattern, got trigger {spec.trigger} and a {spec.pattern.kind} spec"
        )
    if spec.pattern is not None and spec.pattern.network != spec.network:
        raise ValueError("the pattern was crafted for another network than the one that is measured")


@dataclass(frozen=True, kw_only=True)
class ImagesSpec(Spec):
    """A few test images, so that pictures need no data set. Its record: images (N, C, H, W), labels (N,) and what is stamped.

    Parameters
    ----------
    dataset : str
    images : int
        How many; the classes take turns.
    seed : int
        Seed of the choice.
    stamped : bool, optional
        True to keep the first images with one of the trigger patterns each, (triggers, C, H, W).
    """

    kind: ClassVar[str] = "images"
    dataset: str
    images: int
    seed: int
    stamped: bool | None = None

    @property
    def triggers(self) -> tuple[int, ...]:
        """All of them where images are stamped."""
        return tuple(DRAWINGS) if self.stamped else ()


@dataclass(frozen=True, kw_only=True)
class ToySpec(Spec):
    """A network on points in the plane, for Fig. 1. Its record: points, regions and class counts (:mod:`bslib.jobs`).

    Parameters
    ----------
    points : tuple of (x, y)
        Where W is measured, in [-1, 1]^2.
    sigma : float
        Noise level, in units of the plane.
    n : int
        Noisy copies of each point.
    seed : int
        Seed of the points, the network and the noise.
    """

    kind: ClassVar[str] = "toy"
    points: tuple[tuple[float, float], ...]
    sigma: float
    n: int
    seed: int


_KINDS: dict[str, type[Spec]] = {
    spec.kind: spec
    for spec in (
        AttackSpec, CleanseSpec, CountsSpec, ImagesSpec, NetworkSpec, PredictionsSpec, ScoresSpec, ToySpec, UniversalSpec
    )
}  # fmt: skip


def spec_from(data: dict[str, Any]) -> Spec:
    """The spec that :meth:`Spec.as_dict` gave ``data`` for.

    Raises
    ------
    ValueError
        For a kind or a field that this version does not know.

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
    """JSON's lists as tuples and its objects as specs."""
    if isinstance(value, dict):
        return spec_from(value)
    return tuple(map(_frozen, value)) if isinstance(value, list) else value
