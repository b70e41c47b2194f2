"""Universal perturbations (Moosavi-Dezfooli et al., 2017): one small image that changes most predictions when it is added.

DeepFool (Moosavi-Dezfooli et al., 2016) finds for one image the nearest boundary of the classes, as if they were linear around
it; a universal perturbation gathers such steps over many images and is projected back onto a ball of the sup norm after each.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from bslib.calling import check_inputs
from bslib.patterns import check_counts, check_images, frozen_weights
from bslib.progress import bar

__all__ = ["Universal", "deepfool", "perturbed", "universal_perturbation"]


#: Copies of images that DeepFool sends through the network at a time, on a CPU and elsewhere.
TOGETHER, TOGETHER_ON_GPU = 64, 1024


class Universal(NamedTuple):
    """What :func:`universal_perturbation` gave.

    Parameters
    ----------
    perturbation : Tensor, shape (C, H, W)
    fooling_rates : tuple of float
        The share of images that were fooled after each pass.
    """

    perturbation: Tensor
    fooling_rates: tuple[float, ...]


def perturbed(images: Tensor, perturbation: Tensor) -> Tensor:
    """Images (B, C, H, W) in [0, 1] with a perturbation (C, H, W) added, cut to [0, 1].

    >>> perturbed(torch.tensor([[[[0.0, 0.95]]]]), torch.tensor([[[-0.1, 0.1]]])).tolist()
    [[[[0.0, 1.0]]]]
    """
    return (images + perturbation).clamp(0, 1)


def deepfool(model: nn.Module, images: Tensor, *, steps: int = 10, overshoot: float = 0.02, top: int = 10) -> Tensor:
    """For each image a small perturbation, in the Euclidean norm, that takes it over the nearest boundary.

    Parameters
    ----------
    model : torch.nn.Module
        Maps (B, ...) to logits (B, classes); used in eval mode.
    images : float32 Tensor, shape (B, ...)
    steps : int
        At most so many linearisations an image; each image stops when its class has changed.
    overshoot : float
        The perturbation is longer by this fraction, so that it crosses the boundary instead of touching it.
    top : int
        Only the boundaries to the most likely classes are looked at, so many with the image's own, as the authors do.

    Returns
    -------
    Tensor
        Like ``images``. For a linear network its length is the distance to the nearest boundary times 1 + overshoot, and the
        authors' constant of 1e-4.

    >>> model = nn.Linear(2, 2, bias=False)
    >>> model.weight.data = torch.tensor([[1.0, 0.0], [-1.0, 0.0]])
    >>> [round(v, 3) for v in deepfool(model, torch.tensor([[0.5, 3.0]]))[0].tolist()]
    [-0.51, 0.0]
    """
    check_counts(steps=steps, top=top)
    check_inputs(model, images)
    with frozen_weights(model) as network:
        return _deepfool(network, images, steps, overshoot, top)


def _deepfool(network: nn.Module, images: Tensor, steps: int, overshoot: float, top: int = 10) -> Tensor:
    total, logits = torch.zeros_like(images), network(images)
    active, before = torch.arange(len(images), device=images.device), logits.argmax(1)
    for step in range(steps):
        moved = images[active] + (1 + overshoot) * total[active]
        if step:
            logits = network(moved)
            same = logits.argmax(1) == before[active]
            active, moved, logits = active[same], moved[same], logits[same]
        if not len(active):
            break
        likely = _likely(logits, top)
        own = (likely == before[active][:, None]).int().argmax(1)
        total[active] += _to_nearest_boundary(*_linearised(network, moved, likely), own).view_as(moved)
    return (1 + overshoot) * total


def _likely(logits: Tensor, top: int) -> Tensor:
    """The classes whose boundaries are looked at, int64 (B, K): all where they are few, in their order."""
    count, classes = logits.shape
    return torch.arange(classes, device=logits.device).expand(count, -1) if classes <= top else logits.topk(top).indices


def _linearised(network: nn.Module, x: Tensor, classes: Tensor) -> tuple[Tensor, Tensor]:
    """Logits (B, K) of ``classes`` (B, K) and the slope (B, K, values) of each: an image goes there and back once for each.

    A pass of one image takes about as long as reading the weights, so K backward passes, one after the other, would take longer.
    """
    logits, slopes = [], []
    pairs = torch.arange(classes.numel(), device=x.device)
    for rows in pairs.split(TOGETHER if x.device.type == "cpu" else TOGETHER_ON_GPU):
        copies = x[rows // classes.shape[1]].requires_grad_()
        with torch.enable_grad():
            chosen = network(copies).gather(1, classes.flatten()[rows, None])
            (slope,) = torch.autograd.grad(chosen.sum(), copies)
        logits.append(chosen.detach()[:, 0])
        slopes.append(slope.flatten(1))
    return torch.cat(logits).view(classes.shape), torch.cat(slopes).unflatten(0, classes.shape)


def _to_nearest_boundary(logits: Tensor, slopes: Tensor, own: Tensor) -> Tensor:
    """The shortest step (B, values) to where another class would be as likely as ``own``, were the logits linear."""
    rows = torch.arange(len(logits), device=logits.device)
    normals = slopes - slopes[rows, own][:, None]
    gaps = (logits - logits[rows, own][:, None]).abs()
    lengths = normals.norm(dim=2).clamp_min(1e-12)
    distances = gaps / lengths
    distances[rows, own] = torch.inf
    nearest = distances.argmin(1)
    # The small constant is the authors': without it a step may end a rounding error before the boundary.
    scale = (distances[rows, nearest] + 1e-4) / lengths[rows, nearest]
    return scale[:, None] * normals[rows, nearest]


def universal_perturbation(
    model: nn.Module,
    images: Tensor,
    *,
    bound: float,
    fooling_rate: float = 0.8,
    passes: int = 10,
    steps: int = 10,
    overshoot: float = 0.02,
    batch_size: int = 1,
    seed: int,
    progress: bool = True,
) -> Universal:
    """One perturbation that changes the predictions of most images: the one after the pass that fooled most of them.

    The original goes on until it has fooled enough. Where the bound is too tight for that, each step overwrites most of what came
    before it, the rate goes up and down from pass to pass, and the best pass is kept instead of the last. An image is fooled when
    its prediction differs from the network's own without the perturbation; its true label plays no part.

    Parameters
    ----------
    model : torch.nn.Module
        Maps (B, C, H, W) to logits; used in eval mode.
    images : float32 Tensor, shape (B, C, H, W)
        In [0, 1]; perturbed images are cut to it.
    bound : float
        The sup norm of the perturbation never exceeds it.
    fooling_rate : float
        Stop after a pass that fools so large a share of the images.
    passes : int
        At most so many passes over the images, each in an order of its own. The original has no limit.
    steps, overshoot
        As for :func:`deepfool`.
    batch_size : int
        The steps of so many images are computed together, then taken one after the other, each only while its image is not
        fooled yet. 1 is the original algorithm.
    seed : int
        Seed of the orders.
    progress : bool
        Show a bar when it takes longer than two seconds.

    Returns
    -------
    Universal

    Raises
    ------
    ValueError
        For a bound or rate that is not positive, no pass, or images outside [0, 1].
    """
    for name, share in (("bound", bound), ("fooling_rate", fooling_rate)):
        if not isinstance(share, float | int) or not 0 < share <= 1:
            raise ValueError(f"{name} must be a number above 0 and at most 1, got {share!r}")
    check_counts(passes=passes, batch_size=batch_size, steps=steps)
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
                    found = _deepfool(network, perturbed(images[todo], v), steps, overshoot)
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
