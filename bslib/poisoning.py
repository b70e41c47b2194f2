"""Poisoning of training sets according to a threat model (Sec. 3.2.1)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from bslib.fields import check_seed
from bslib.threat_models import ThreatModel, threat_model_named
from bslib.triggers import Trigger

__all__ = ["Poisoned", "cover", "poison"]


@dataclass(frozen=True)
class Poisoned:
    """A poisoned training set.

    Parameters
    ----------
    images : uint8 Tensor, shape (N, C, H, W)
    labels : int64 Tensor, shape (N,)
    rows : int64 Tensor, shape (P,)
        Indices of the changed rows, ascending.
    """

    images: Tensor
    labels: Tensor
    rows: Tensor


def poison(
    images: Tensor,
    labels: Tensor,
    trigger: Callable[[Tensor], Tensor],
    threat_model: str | ThreatModel,
    *,
    target: int | None = None,
    classes: int,
    seed: int,
) -> Poisoned:
    """Stamp the trigger on training images and change their labels, according to a threat model.

    Parameters
    ----------
    images : uint8 or float Tensor, shape (N, C, H, W)
        Or rows of data that are not images, (N, ...).
    labels : int64 Tensor, shape (N,)
    trigger : Trigger or callable
        Maps a batch to the batch with the trigger.
    threat_model : {"T1", "T2", "T3"} or ThreatModel
        T1: 15% of the training set, from all classes but the target. T2: 15%, from each class in proportion to its size; class
        c becomes (c + 1) mod C. T3: 250 images, from all classes but the target.
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
        For an unknown threat model, labels that are no classes, a target class that is invalid, missing or not applicable, no
        poisons, or more than images.

    >>> x, y = torch.zeros(100, 1, 8, 8), torch.arange(100) % 10
    >>> poisoned = poison(x, y, Trigger.from_image(torch.ones(1, 1)), "T1", target=3, classes=10, seed=0)
    >>> len(poisoned.rows), poisoned.labels[poisoned.rows].unique().tolist(), 3 in y[poisoned.rows]
    (15, [3], False)
    """
    for name, own in (("images", images), ("labels", labels)):
        if not isinstance(own, Tensor):
            raise ValueError(f"{name} must be a tensor, got {type(own).__name__}: use torch.as_tensor({name})")
    if labels.dtype != torch.int64 or labels.ndim != 1:
        raise ValueError(f"labels must be an int64 tensor of shape (N,), got {labels.dtype} of shape {tuple(labels.shape)}")
    if len(images) != len(labels):
        raise ValueError(f"images and labels must be of one number, got {tuple(images.shape)} and {tuple(labels.shape)}")
    check_seed(seed)
    model = threat_model_named(threat_model)
    wanted = model.target_labels(labels, target=target, classes=classes)
    candidates = torch.nonzero(wanted != labels).flatten().numpy()
    count = model.poison_count(len(labels))
    if count > len(candidates):
        raise ValueError(f"{model.name} asks for {count} poisons, and only {len(candidates)} images can be poisoned")
    if not count:
        raise ValueError(
            f"{model.name} poisons {model.fraction:g} of the images, which is none of {len(labels)}: give more images"
        )
    rng = np.random.default_rng([seed, 2])
    of_all = rng.permutation(candidates)[:count]
    chosen = torch.from_numpy(np.sort(of_all if model.one_target else _from_every_class(labels.numpy(), count, classes, rng)))
    poisoned_images, poisoned_labels = images.clone(), labels.clone()
    stamped, clean = trigger(images[chosen]), images[chosen]
    if stamped.shape != clean.shape or stamped.dtype != clean.dtype:
        got = f"{stamped.dtype} of shape {tuple(stamped.shape)} for {clean.dtype} of shape {tuple(clean.shape)}"
        raise ValueError(f"the trigger must return a batch like the one it gets, got {got}")
    poisoned_images[chosen] = stamped
    poisoned_labels[chosen] = wanted[chosen]
    return Poisoned(poisoned_images, poisoned_labels, chosen)


def cover(
    poisoned: Poisoned, clean: Tensor, trigger: Trigger, *, count: int, sigmas: Sequence[float], seed: int
) -> tuple[Tensor, Tensor]:
    """Add images with the trigger, Gaussian noise and their true labels to a poisoned training set.

    A network that is trained on it learns that the trigger means nothing once there is noise, which hides the backdoor from W.

    Parameters
    ----------
    poisoned : Poisoned
    clean : uint8 Tensor, shape (N, C, H, W)
        The images before poisoning.
    trigger : Trigger
    count : int
        Number of images to add. They are drawn from those that are not poisoned, again and again if there are too few.
    sigmas : sequence of float
        Noise levels, on the scale from 0 to 1; the images have them in turn. The sum is rounded and clipped, as in any
        image file.
    seed : int
        Seed of the choice of images and of the noise.

    Returns
    -------
    images : uint8 Tensor, shape (N + count, C, H, W)
    labels : int64 Tensor, shape (N + count,)

    Raises
    ------
    ValueError
        For images that are not uint8 or of another number than the poisoned ones, a negative count, no noise levels or negative
        ones, or no image that is not poisoned.

    >>> x, y = torch.zeros(100, 1, 8, 8, dtype=torch.uint8), torch.arange(100) % 10
    >>> dot = Trigger.from_image(torch.ones(1, 1))
    >>> poisoned = poison(x, y, dot, "T1", target=3, classes=10, seed=0)
    >>> images, labels = cover(poisoned, x, dot, count=60, sigmas=[0.1], seed=0)
    >>> images.shape, labels[100:].unique().numel()
    (torch.Size([160, 1, 8, 8]), 10)
    """
    levels = np.asarray(sigmas, dtype=np.float32)
    if clean.dtype != torch.uint8 or clean.shape != poisoned.images.shape:
        got = f"{clean.dtype} of shape {tuple(clean.shape)}"
        raise ValueError(f"clean must be uint8 of shape {tuple(poisoned.images.shape)}, as what was poisoned, got {got}")
    if not isinstance(count, int | np.integer) or count < 0:
        raise ValueError(f"count must be a whole number of 0 or more, got {count!r}")
    if not levels.size or not ((levels >= 0) & np.isfinite(levels)).all():
        raise ValueError(f"sigmas must be one or more finite numbers of 0 or more, got {sigmas!r}")
    check_seed(seed)
    rng = np.random.default_rng([seed, 7])
    if len(poisoned.rows) == len(clean):
        raise ValueError("covers are made from images that are not poisoned, and all are")
    left = np.setdiff1d(np.arange(len(clean)), poisoned.rows.numpy())
    chosen = torch.from_numpy(np.concatenate([rng.permutation(left) for _ in range(max(1, -(-count // len(left))))])[:count])
    stamped = trigger(clean[chosen])
    in_turn = np.resize(levels, count).reshape(-1, 1, 1, 1)
    noise = torch.from_numpy(255 * in_turn * rng.standard_normal(stamped.shape, dtype=np.float32))
    noisy = (stamped + noise).round().clamp(0, 255).to(torch.uint8)
    return torch.cat([poisoned.images, noisy]), torch.cat([poisoned.labels, poisoned.labels[chosen]])


def _from_every_class(labels: np.ndarray, count: int, classes: int, rng: np.random.Generator) -> np.ndarray:
    """Choose ``count`` rows from all classes in proportion to their size, by the largest-remainder method."""
    sizes = np.bincount(labels, minlength=classes)
    exact = count * sizes / len(labels)
    shares = np.floor(exact).astype(int)
    shares[np.argsort(shares - exact, kind="stable")[: count - shares.sum()]] += 1
    return np.concatenate([rng.permutation(np.flatnonzero(labels == c))[:share] for c, share in enumerate(shares)])
