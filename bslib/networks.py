"""The three networks, exactly as in the paper: two small ones for Fashion-MNIST and a ResNet-18 for 32x32 images.

All networks take float images with features in [0, 1] and return logits. None normalises its input, so a noise level sigma means
the same for each. Max pooling precedes the ReLU. The two commute, and the ReLU then has only a quarter of the activations.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

__all__ = ["NETWORKS", "build", "larger_fashion", "small_fashion"]


def small_fashion(classes: int = 10) -> nn.Module:
    """The network of Sec. 3.1: 32 and 12 filters, a dense layer of 50; 76,948 parameters; input (B, 1, 28, 28)."""
    return nn.Sequential(
        nn.Conv2d(1, 32, 3), nn.MaxPool2d(2), nn.ReLU(),
        nn.Conv2d(32, 12, 3), nn.ReLU(), nn.Flatten(),
        nn.Linear(12 * 11 * 11, 50), nn.ReLU(),
        nn.Linear(50, classes),
    )  # fmt: skip


def larger_fashion(classes: int = 10) -> nn.Module:
    """The network of Sec. 3.2.1: 64 and 32 filters, two dense layers of 500; 2,211,114 parameters; input (B, 1, 28, 28)."""
    return nn.Sequential(
        nn.Conv2d(1, 64, 3), nn.MaxPool2d(2), nn.ReLU(),
        nn.Conv2d(64, 32, 3), nn.ReLU(), nn.Flatten(),
        nn.Linear(32 * 11 * 11, 500), nn.ReLU(),
        nn.Linear(500, 500), nn.ReLU(),
        nn.Linear(500, classes),
    )  # fmt: skip


def _resnet18(classes: int = 10) -> nn.Module:
    """He et al.'s ResNet-18 with the usual stem for 32x32 images (3x3, stride 1, no pooling); 11,173,962 parameters."""
    from torchvision.models import resnet18  # imported here because the import takes as long as that of torch

    network = resnet18(num_classes=classes)
    network.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
    nn.init.kaiming_normal_(network.conv1.weight, mode="fan_out", nonlinearity="relu")
    network.maxpool = nn.Identity()
    return network


#: The networks whose jobs run on the GPUs of a cluster, if it has any.
FOR_A_GPU = frozenset({"resnet18"})

#: Functions that build a network for a number of classes, by name.
NETWORKS: dict[str, Callable[[int], nn.Module]] = {
    "small-fashion": small_fashion,
    "larger-fashion": larger_fashion,
    "resnet18": _resnet18,
}


def build(name: str, *, classes: int = 10, seed: int) -> nn.Module:
    """Build a randomly initialised network in channels-last layout; the weights are a function of the name and seed.

    Parameters
    ----------
    name : {"small-fashion", "larger-fashion", "resnet18"}
    classes : int
        Number of outputs.
    seed : int
        Seed of the initial weights. The state of torch's global generator is restored.

    Returns
    -------
    torch.nn.Module
        On the CPU, in training mode.

    Raises
    ------
    ValueError
        For an unknown name, fewer than one class, or an invalid seed.

    >>> sum(p.numel() for p in build("larger-fashion", seed=0).parameters())
    2211114
    """
    if name not in NETWORKS:
        raise ValueError(f"network must be one of {', '.join(NETWORKS)}, got {name!r}")
    for what, number, least in (("classes", classes, 1), ("seed", seed, 0)):
        if not isinstance(number, int) or not least <= number < 2**63:
            raise ValueError(f"{what} must be a whole number of {least} or more, got {number!r}")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return NETWORKS[name](classes).to(memory_format=torch.channels_last)
