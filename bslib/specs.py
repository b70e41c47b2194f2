"""Specs: what is to be computed, as frozen data, each with a key under which its record is kept.

A spec holds no paths, devices or objects, so the same spec means the same on every machine. Its key is a hash of its fields;
a field that is None takes no part in it, so that a field added later (with None for "as before") leaves the old keys valid.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass
from typing import Any, ClassVar

__all__ = ["AttackSpec", "CountsSpec", "ImagesSpec", "NetworkSpec", "PredictionsSpec", "Spec", "ToySpec", "spec_from"]


@dataclass(frozen=True, kw_only=True)
class Spec:
    """What every spec has: a kind, a key, and a form that JSON can hold."""

    kind: ClassVar[str]

    @property
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


@dataclass(frozen=True, kw_only=True)
class CountsSpec(Spec):
    """Class counts of a network on a batch of test images. Its record: counts (S, N, B, C), labels (B,), which images (B,).

    Parameters
    ----------
    network : NetworkSpec
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
    """

    kind: ClassVar[str] = "counts"
    network: NetworkSpec
    points: int
    sigmas: tuple[float, ...]
    ns: tuple[int, ...]
    seed: int
    trigger: int | None = None
    by_class: bool | None = None
    paired: bool | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "sigmas", tuple(map(float, self.sigmas)))  # 1 and 1.0 are one sigma and have one key


@dataclass(frozen=True, kw_only=True)
class PredictionsSpec(Spec):
    """What a network calls the test images, with a trigger or without. Its record: predicted and true labels, each (N,).

    Parameters
    ----------
    network : NetworkSpec
    trigger : int, optional
        The pattern that the images carry; none where they are clean.
    images : int, optional
        So many test images, drawn with the network's seed; all when not given.
    """

    kind: ClassVar[str] = "predictions"
    network: NetworkSpec
    trigger: int | None = None
    images: int | None = None


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
        True to keep the first six images with one of the six trigger patterns each, (6, C, H, W).
    """

    kind: ClassVar[str] = "images"
    dataset: str
    images: int
    seed: int
    stamped: bool | None = None


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
    spec.kind: spec for spec in (AttackSpec, NetworkSpec, CountsSpec, PredictionsSpec, ImagesSpec, ToySpec)
}


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
