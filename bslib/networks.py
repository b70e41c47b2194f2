"""The paper's three networks, exactly: two small ones for Fashion-MNIST and a ResNet-18 for 32x32 images.

All take float images with features in [0, 1] and return logits. None normalises its input, so a noise level sigma means the same
for each. Pooling stands before the ReLU: the two commute, and a quarter of the activations is left to clip.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

__all__ = ["NETWORKS", "build", "larger_fashion", "small_fashion"]


def small_fashion(classes: int = 10) -> nn.Module:
    """The network of Sec. 3.1: 32 and 12 filters, a dense layer of 50; 76,948 parameters; (B, 1, 28, 28) in."""
    return nn.Sequential(
        nn.Conv2d(1, 32, 3), nn.MaxPool2d(2), nn.ReLU(),
        nn.Conv2d(32, 12, 3), nn.ReLU(), nn.Flatten(),
        nn.Linear(12 * 11 * 11, 50), nn.ReLU(),
        nn.Linear(50, classes),
    )  # fmt: skip


def larger_fashion(classes: int = 10) -> nn.Module:
    """The network of Sec. 3.2.1: 64 and 32 filters, two dense layers of 500; 2,211,114 parameters; (B, 1, 28, 28) in."""
    return nn.Sequential(
        nn.Conv2d(1, 64, 3), nn.MaxPool2d(2), nn.ReLU(),
        nn.Conv2d(64, 32, 3), nn.ReLU(), nn.Flatten(),
        nn.Linear(32 * 11 * 11, 500), nn.ReLU(),
        nn.Linear(500, 500), nn.ReLU(),
        nn.Linear(500, classes),
    )  # fmt: skip


def _resnet18(classes: int = 10) -> nn.Module:
    """He et al.'s ResNet-18 with the usual stem for 32x32 images (3x3, stride 1, no pooling); 11,173,962 parameters."""
    from torchvision.models import resnet18  # takes as long to import as torch itself

    network = resnet18(num_classes=classes)
    network.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
    nn.init.kaiming_normal_(network.conv1.weight, mode="fan_out", nonlinearity="relu")
    network.maxpool = nn.Identity()
    return network


#: The networks whose jobs a cluster sends to its GPUs, where it has any.
FOR_A_GPU = frozenset({"resnet18"})

#: Name to the function that makes the network for so many classes.
NETWORKS: dict[str, Callable[[int], nn.Module]] = {
    "small-fashion": small_fashion,
    "larger-fashion": larger_fashion,
    "resnet18": _resnet18,
}


def build(name: str, *, classes: int = 10, seed: int) -> nn.Module:
    """A freshly initialised network in channels-last layout, a function of its name and seed.

    Parameters
    ----------
    name : {"small-fashion", "larger-fashion", "resnet18"}
    classes : int
        Number of outputs.
    seed : int
        Seed of the initial weights; torch's global generator is left as it was.

    Returns
    -------
    torch.nn.Module
        On the CPU, in training mode.

    Raises
    ------
    ValueError
        For a name that is none of the three, no class, and a seed that is none.

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
