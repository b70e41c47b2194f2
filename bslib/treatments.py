"""What a defender may do to a network that could be backdoored, with a few clean images: fine-tuning, pruning, unlearning."""

from __future__ import annotations

import math
import numbers
from typing import Any

import torch
from torch import Tensor, nn

from bslib.calling import evaluating
from bslib.datasets import to_float
from bslib.specs import TreatmentSpec
from bslib.training import train
from bslib.triggers import Trigger

__all__ = ["prune", "treat"]


def treat(
    network: nn.Module, images: Tensor, labels: Tensor, spec: TreatmentSpec, trigger: Trigger, seed: int, *, progress: bool = True
) -> None:
    """Treat a network in place.

    Parameters
    ----------
    network : torch.nn.Module
    images : uint8 Tensor, shape (N, C, H, W)
        The defender's clean images.
    labels : int64 Tensor, shape (N,)
    spec : TreatmentSpec
        "fine-tune" trains on the images. "prune" first prunes filters (:func:`prune`; with training afterwards it is the
        fine-pruning of Liu et al., 2018). "unlearn" trains on the images after the first of them, a fraction, got the trigger
        but kept the true label (Wang et al., 2019); give the images in random order.
    trigger : Trigger
        What is unlearned. The defender would have to find it first; the true one is the best that can be found.
    seed : int
        Seed of the order of the images.
    progress : bool
        Show a progress bar when training takes longer than two seconds.

    >>> from bslib.networks import build
    >>> few, few_labels = torch.zeros(8, 1, 28, 28, dtype=torch.uint8), torch.zeros(8, dtype=torch.int64)
    >>> network = build("small-fashion", seed=0)
    >>> spec = TreatmentSpec(method="prune", images=8, epochs=0, fraction=0.5)
    >>> treat(network, few, few_labels, spec, Trigger.from_image(torch.ones(1, 1)), seed=0)
    >>> int((network[3].weight.flatten(1) == 0).all(1).sum())
    6
    """
    if spec.method == "prune":
        prune(network, images, spec.fraction or 0.0)
    if spec.method == "unlearn":
        carrying = round((spec.fraction or 0.0) * len(images))
        images = torch.cat([trigger(images[:carrying]), images[carrying:]])
    if spec.learning_rate is not None:
        train(
            network, images, labels, epochs=spec.epochs, seed=seed, learning_rate=spec.learning_rate,
            description=f"treatment: {spec.method}", progress=progress,
        )  # fmt: skip


def prune(network: nn.Module, images: Tensor, fraction: float) -> None:
    """Set the filters of the last convolution that are least active on clean images to zero (Liu et al., 2018).

    Training afterwards leaves them at zero if a ReLU follows. A batch norm in between brings them back, as in a ResNet.

    Parameters
    ----------
    network : torch.nn.Module
    images : uint8 Tensor, shape (N, C, H, W)
        Clean images.
    fraction : float
        Fraction of the filters, in [0, 1]; rounded down.

    Raises
    ------
    ValueError
        If the network calls no convolution, or computes the weights of the last one; for no images or another fraction.
    """
    if not isinstance(fraction, numbers.Real) or not 0 <= fraction <= 1:
        raise ValueError(f"fraction must be from 0 to 1, got {fraction!r}")
    if not len(images):
        raise ValueError(f"pruning needs at least one image, got shape {tuple(images.shape)}")
    convolutions = [module for module in network.modules() if isinstance(module, nn.Conv2d)]
    if not convolutions:
        raise ValueError("pruning needs a network with a convolution, got one without")
    activity: dict[nn.Conv2d, Tensor] = {}  # in the order of the last calls

    def note(module: nn.Conv2d, _inputs: Any, out: Tensor) -> None:
        activity[module] = activity.pop(module, 0) + out.clamp(min=0).sum((0, 2, 3))

    handles = [module.register_forward_hook(note) for module in convolutions]
    device = next(network.parameters()).device
    try:
        with evaluating(network) as logits:
            for part in images.split(500):
                logits(to_float(part).to(device))
    finally:
        for handle in handles:
            handle.remove()
    if not activity:
        raise ValueError("pruning needs a convolution that the network calls, got none")
    last, total = [*activity.items()][-1]
    if "weight" not in dict(last.named_parameters(recurse=False)):
        raise ValueError("pruning needs a last convolution with weights of its own, got one that computes them (weight norm?)")
    least = total.argsort()[: math.floor(fraction * last.out_channels)]
    with torch.no_grad():
        last.weight[least] = 0
        if last.bias is not None:
            last.bias[least] = 0
