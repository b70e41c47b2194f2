"""Universal perturbations (Moosavi-Dezfooli et al., 2017): one small image that changes most predictions when it is added.

DeepFool (Moosavi-Dezfooli et al., 2016) finds the nearest decision boundary of an image by linearising the classifier around it.
A universal perturbation is the sum of such steps over many images, projected onto a ball of the sup norm after each step.
"""

from __future__ import annotations

import numbers
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from bslib.calling import check_counts, check_inputs, check_logits
from bslib.fields import check_seed
from bslib.patterns import check_gradients, check_images, frozen_weights
from bslib.progress import bar

__all__ = ["Universal", "perturbed", "universal_perturbation"]


#: Batch size of DeepFool's passes through the network, on a CPU and on other devices.
TOGETHER, TOGETHER_ON_GPU = 64, 1024


class Universal(NamedTuple):
    """Result of :func:`universal_perturbation`.

    Parameters
    ----------
    perturbation : Tensor, shape (C, H, W)
    fooling_rates : tuple of float
        The fraction of images that are fooled after each pass.
    """

    perturbation: Tensor
    fooling_rates: tuple[float, ...]


def perturbed(images: Tensor, perturbation: Tensor) -> Tensor:
    """Add a perturbation (C, H, W) to images (B, C, H, W) in [0, 1] and clip the result to [0, 1].

    >>> perturbed(torch.tensor([[[[0.0, 0.95]]]]), torch.tensor([[[-0.1, 0.1]]])).tolist()
    [[[[0.0, 1.0]]]]
    """
    return (images + perturbation).clamp(0, 1)


def _deepfool(network: nn.Module, images: Tensor, *, steps: int = 10, overshoot: float = 0.02) -> Tensor:
    """Move each image across its nearest decision boundary, by a perturbation of small Euclidean norm; defaults are the authors'.

    It stops when the predicted class has changed. For a linear network at distance d from the nearest boundary, its length is
    (d + 1e-4) * (1 + overshoot).
    """
    total, logits = torch.zeros_like(images), network(images)
    check_logits(logits)
    active, before = torch.arange(len(images), device=images.device), logits.argmax(1)
    for step in range(steps):
        moved = images[active] + (1 + overshoot) * total[active]
        if step:
            logits = network(moved)
            same = logits.argmax(1) == before[active]
            active, moved, logits = active[same], moved[same], logits[same]
        if not len(active):
            break
        likely = _likely(logits)
        own = (likely == before[active][:, None]).int().argmax(1)
        total[active] += _to_nearest_boundary(*_linearised(network, moved, likely), own).view_as(moved)
    return (1 + overshoot) * total


def _likely(logits: Tensor) -> Tensor:
    """Return the classes whose boundaries count, int64 (B, K): all in order, or the 10 most likely (the authors' number)."""
    count, classes = logits.shape
    return torch.arange(classes, device=logits.device).expand(count, -1) if classes <= 10 else logits.topk(10).indices


def _linearised(network: nn.Module, x: Tensor, classes: Tensor) -> tuple[Tensor, Tensor]:
    """Return the logits (B, K) of ``classes`` (B, K) and their gradients (B, K, values).

    All K copies of an image share batched passes. K sequential backward passes would take longer, since a pass of one image takes
    about as long as reading the weights.
    """
    logits, slopes = [], []
    pairs = torch.arange(classes.numel(), device=x.device)
    for rows in pairs.split(TOGETHER if x.device.type == "cpu" else TOGETHER_ON_GPU):
        copies = x[rows // classes.shape[1]].requires_grad_()
        with torch.enable_grad():
            chosen = network(copies).gather(1, classes.flatten()[rows, None])
            check_gradients(chosen)
            (slope,) = torch.autograd.grad(chosen.sum(), copies)
        logits.append(chosen.detach()[:, 0])
        slopes.append(slope.flatten(1))
    return torch.cat(logits).view(classes.shape), torch.cat(slopes).unflatten(0, classes.shape)


def _to_nearest_boundary(logits: Tensor, slopes: Tensor, own: Tensor) -> Tensor:
    """Return the shortest step (B, values) to a boundary between ``own`` and another class, for linearised logits."""
    rows = torch.arange(len(logits), device=logits.device)
    normals = slopes - slopes[rows, own][:, None]
    gaps = (logits - logits[rows, own][:, None]).abs()
    lengths = normals.norm(dim=2).clamp_min(1e-12)
    distances = gaps / lengths
    distances[rows, own] = torch.inf
    nearest = distances.argmin(1)
    # The constant 1e-4 is the authors'. Without it, rounding may let a step end just before the boundary.
    scale = (distances[rows, nearest] + 1e-4) / lengths[rows, nearest]
    return scale[:, None] * normals[rows, nearest]


def universal_perturbation(
    model: nn.Module,
    images: Tensor,
    *,
    bound: float,
    fooling_rate: float = 0.8,
    passes: int = 10,
    batch_size: int = 1,
    seed: int,
    progress: bool = True,
) -> Universal:
    """Compute one perturbation that changes the predictions of most images.

    The original algorithm continues until it reaches the fooling rate. If the bound is too tight for that, each step overwrites
    most of the previous ones, and the rate fluctuates between passes. This function therefore returns the perturbation of the
    best pass, not of the last. An image is fooled if its prediction differs from its prediction without the perturbation. True
    labels are not used.

    Parameters
    ----------
    model : torch.nn.Module
        Maps (B, C, H, W) to logits; used in eval mode.
    images : float32 Tensor, shape (B, C, H, W)
        In [0, 1]. Perturbed images are clipped to [0, 1].
    bound : float
        Upper bound of the sup norm of the perturbation.
    fooling_rate : float
        Stop after a pass that fools at least this fraction of the images.
    passes : int
        Maximum number of passes over the images, each in its own random order. The original has no limit.
    batch_size : int
        Number of images whose steps are computed together, then applied one by one to images not yet fooled. 1 is the original.
    seed : int
        Seed of the random orders.
    progress : bool
        Show a progress bar when the run takes longer than two seconds.

    Raises
    ------
    ValueError
        For a bound or rate outside (0, 1], fewer than one pass, an invalid seed, images outside [0, 1], or a model
        that returns NaN.
    """
    for name, share in (("bound", bound), ("fooling_rate", fooling_rate)):
        if not isinstance(share, numbers.Real) or not 0 < share <= 1:
            raise ValueError(f"{name} must be a number above 0 and at most 1, got {share!r}")
    check_counts(passes=passes, batch_size=batch_size)
    check_seed(seed)
    check_images(images)
    check_inputs(model, images)
    rng = np.random.default_rng([seed, 3])
    v = best = torch.zeros_like(images[0])
    rates: list[float] = []
    total = passes * len(images)
    with frozen_weights(model) as network, bar(total=total, desc="universal", unit="image", show=progress) as shown:
        own = _labels(network, images)
        for _ in range(passes):
            for chunk in torch.from_numpy(rng.permutation(len(images))).to(images.device).split(batch_size):
                todo = chunk[_labels(network, perturbed(images[chunk], v)) == own[chunk]]
                if len(todo):
                    found = _deepfool(network, perturbed(images[todo], v))
                    for k, (i, step) in enumerate(zip(todo, found, strict=True)):
                        if k == 0 or _labels(network, perturbed(images[i : i + 1], v)) == own[i]:
                            v = (v + step).clamp(-bound, bound)
                shown.update(len(chunk))
            rates.append(float((_labels(network, perturbed(images, v)) != own).float().mean()))
            best = v if rates[-1] == max(rates) else best
            if rates[-1] >= fooling_rate:
                break
    return Universal(best, tuple(rates))


def _labels(model: nn.Module, images: Tensor) -> Tensor:
    return torch.cat([model(part).argmax(1) for part in images.split(500)])
