"""Threat models: which training images an attacker changes, and what their labels become (Sec. 3.2.1)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from bslib.triggers import Trigger

__all__ = ["THREAT_MODELS", "Poisoned", "ThreatModel", "poison", "wanted_labels"]


@dataclass(frozen=True, kw_only=True)
class ThreatModel:
    """How much is poisoned, and whether one class is the target or each class becomes the next.

    Parameters
    ----------
    name : str
    fraction : float, optional
        Share of the training set; or else
    count : int, optional
        number of images.
    one_target : bool
        One target class, into which images of all other classes are sent; or class c becomes (c + 1) mod C.
    """

    name: str
    fraction: float | None = None
    count: int | None = None
    one_target: bool

    def poisons(self, images: int) -> int:
        """How many of ``images`` training images are poisoned.

        >>> THREAT_MODELS["T1"].poisons(60_000), THREAT_MODELS["T3"].poisons(60_000)
        (9000, 250)
        """
        return self.count if self.count is not None else round((self.fraction or 0) * images)


#: The paper's three, by name.
THREAT_MODELS: dict[str, ThreatModel] = {
    "T1": ThreatModel(name="T1", fraction=0.15, one_target=True),
    "T2": ThreatModel(name="T2", fraction=0.15, one_target=False),
    "T3": ThreatModel(name="T3", count=250, one_target=True),
}


@dataclass(frozen=True)
class Poisoned:
    """A poisoned training set.

    Parameters
    ----------
    images : uint8 Tensor, shape (N, C, H, W)
    labels : int64 Tensor, shape (N,)
    rows : int64 Tensor, shape (P,)
        Which rows were changed, ascending.
    """

    images: Tensor
    labels: Tensor
    rows: Tensor


def poison(
    images: Tensor,
    labels: Tensor,
    trigger: Trigger,
    threat_model: str | ThreatModel,
    *,
    target: int | None = None,
    classes: int,
    seed: int,
) -> Poisoned:
    """Stamp the trigger on some training images and change their labels, as a threat model says.

    Parameters
    ----------
    images : uint8 or float Tensor, shape (N, C, H, W)
    labels : int64 Tensor, shape (N,)
    trigger : Trigger
    threat_model : {"T1", "T2", "T3"} or ThreatModel
        T1: 15 % of the training set, from all classes but the target. T2: 15 %, from every class in proportion, class c becomes
        (c + 1) mod C. T3: 250 images, from all classes but the target.
    target : int, optional
        The target class of T1 and T3.
    classes : int
        Number of classes C.
    seed : int
        Seed of the choice of images.

    Returns
    -------
    Poisoned

    Raises
    ------
    ValueError
        For an unknown threat model, a target that is no class, missing or not wanted, and more poisons than there are images.

    >>> x, y = torch.zeros(100, 1, 8, 8), torch.arange(100) % 10
    >>> poisoned = poison(x, y, Trigger.from_image(torch.ones(1, 1)), "T1", target=3, classes=10, seed=0)
    >>> len(poisoned.rows), poisoned.labels[poisoned.rows].unique().tolist(), 3 in y[poisoned.rows]
    (15, [3], False)
    """
    if images.ndim != 4 or len(images) != len(labels):
        raise ValueError(
            f"images (N, C, H, W) and labels (N,) must be of one number, got {tuple(images.shape)} and {tuple(labels.shape)}"
        )
    model = _model_named(threat_model)
    wanted = wanted_labels(labels, model, target=target, classes=classes)
    candidates = torch.nonzero(wanted != labels).flatten().numpy()
    count = model.poisons(len(labels))
    if count > len(candidates):
        raise ValueError(f"{model.name} asks for {count} poisons, and only {len(candidates)} images can be poisoned")
    rng = np.random.default_rng([seed, 2])
    of_all = rng.permutation(candidates)[:count]
    chosen = torch.from_numpy(np.sort(of_all if model.one_target else _from_every_class(labels.numpy(), count, classes, rng)))
    poisoned_images, poisoned_labels = images.clone(), labels.clone()
    poisoned_images[chosen] = trigger(images[chosen])
    poisoned_labels[chosen] = wanted[chosen]
    return Poisoned(poisoned_images, poisoned_labels, chosen)


def wanted_labels(labels: Tensor, threat_model: str | ThreatModel, *, target: int | None, classes: int) -> Tensor:
    """What the attacker wants each image to be called once it carries the trigger, int64, shape (N,).

    >>> wanted_labels(torch.tensor([0, 9]), "T2", target=None, classes=10).tolist()
    [1, 0]
    """
    model = _model_named(threat_model)
    if labels.ndim != 1 or labels.dtype != torch.int64:
        raise ValueError(f"labels must be int64 of shape (N,), got {labels.dtype} of shape {tuple(labels.shape)}")
    if not isinstance(classes, int) or classes < 1:
        raise ValueError(f"classes must be a whole number of 1 or more, got {classes!r}")
    if model.one_target and (not isinstance(target, int) or not 0 <= target < classes):
        raise ValueError(f"{model.name} needs a target class from 0 to {classes - 1}, got {target!r}")
    if not model.one_target and target is not None:
        raise ValueError(f"{model.name} sends each class to the next and takes no target class, got {target!r}")
    return torch.full_like(labels, target) if target is not None else (labels + 1) % classes


def _model_named(threat_model: str | ThreatModel) -> ThreatModel:
    if isinstance(threat_model, ThreatModel):
        return threat_model
    if threat_model not in THREAT_MODELS:
        raise ValueError(f"threat model must be one of {', '.join(THREAT_MODELS)}, got {threat_model!r}")
    return THREAT_MODELS[threat_model]


def _from_every_class(labels: np.ndarray, count: int, classes: int, rng: np.random.Generator) -> np.ndarray:
    """``count`` rows, from each class as its share of the training set; what rounding leaves goes to the largest remainders."""
    sizes = np.bincount(labels, minlength=classes)
    exact = count * sizes / len(labels)
    shares = np.floor(exact).astype(int)
    shares[np.argsort(shares - exact, kind="stable")[: count - shares.sum()]] += 1
    return np.concatenate([rng.permutation(np.flatnonzero(labels == c))[:share] for c, share in enumerate(shares)])
