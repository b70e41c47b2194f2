"""What the jobs share: which test images make a batch, what these carry, and the network with its weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from bslib.datasets import Dataset, load, to_float
from bslib.engine import fast_dtype
from bslib.networks import build
from bslib.patterns.neural_cleanse import patched
from bslib.patterns.universal import perturbed
from bslib.provenance import weights_digest
from bslib.specs import CarryingSpec, NetworkSpec, UniversalSpec
from bslib.store import Store
from bslib.training import load_weights
from bslib.triggers import pattern

__all__ = [
    "Parts",
    "carrying",
    "checkpoint_path",
    "crafting_images",
    "draw_points",
    "draw_points_of_each_class",
    "split_test_set",
    "trained_network",
]

#: What a job gives: the result, the arrays, and the data set, if any.
Parts = tuple[dict[str, Any], dict[str, np.ndarray], Dataset | None]


def draw_points(available: int, points: int, seed: int) -> np.ndarray:
    """Which images make a batch: ``points`` different numbers below ``available``, int64, shape (points,).

    The first k of a batch are the batch of k points of the same seed.

    >>> draw_points(100, 5, seed=0).shape
    (5,)
    """
    if points < 1:
        raise ValueError(f"at least 1 image is needed, got {points}")
    if points > available:
        raise ValueError(f"{points} images were asked for, and there are only {available}")
    return np.random.default_rng([seed, 1]).permutation(available)[:points]


def draw_points_of_each_class(labels: np.ndarray, points: int, seed: int) -> np.ndarray:
    """Which test images make a batch of ``points`` of each class, class after class, int64, shape (classes * points,).

    >>> draw_points_of_each_class(np.array([0, 1, 0, 1]), 1, seed=0).shape
    (2,)
    """
    members = [np.flatnonzero(labels == c) for c in range(int(labels.max()) + 1)]
    return np.concatenate([own[draw_points(len(own), points, seed)] for own in members])


def split_test_set(available: int) -> tuple[np.ndarray, np.ndarray]:
    """The test set in two halves, the same for every network: what patterns are crafted on, and what they are measured on.

    >>> [len(half) for half in split_test_set(101)]
    [50, 51]
    """
    order = np.random.default_rng([0, 5]).permutation(available)
    return order[: available // 2], order[available // 2 :]


def trained_network(spec: NetworkSpec, store: Store, device: torch.device) -> tuple[Dataset, nn.Module, str]:
    """The data set, the network with the weights that lie beside the store, and the digest that its record names them by."""
    data = load(spec.dataset)
    network = build(spec.network, classes=len(data.classes), seed=spec.seed).to(device)
    path = store.weights_path(spec)
    load_weights(network, path)
    digest = weights_digest(path)
    if spec in store and store.get(spec).result["weights"] != digest:
        raise ValueError(f"{path} holds other weights than the record of its network names; remove it to train the network again")
    return data, network, digest


def crafting_images(data: Dataset, count: int, seed: int) -> Tensor:
    """So many uint8 images from the half of the test set that W is not measured on."""
    crafting, _ = split_test_set(len(data.test_images))
    return data.test_images[crafting[draw_points(len(crafting), count, seed)]]


def carrying(spec: CarryingSpec, images: Tensor, store: Store) -> tuple[list[Tensor], dict[str, str]]:
    """The uint8 images as float batches with what the spec says they carry, and which crafted pattern that was, for the record.

    One batch, or one for each of Neural Cleanse's candidates.
    """
    if spec.pattern is None:
        return [to_float(images if spec.trigger is None else pattern(spec.trigger)(images))], {}
    record = store.get(spec.pattern)
    crafted = {name: torch.from_numpy(array) for name, array in record.arrays.items()}
    if isinstance(spec.pattern, UniversalSpec):
        batches = [perturbed(to_float(images), crafted["perturbation"])]
    else:
        pairs = zip(crafted["masks"], crafted["patterns"], strict=True)
        batches = [patched(to_float(images), mask, colours) for mask, colours in pairs]
    return batches, {"pattern": record.checksum}


def checkpoint_path(spec: NetworkSpec, store: Store, device: torch.device | str) -> Path:
    """Where an unfinished training is kept: by device and precision, so that none goes on with another's."""
    device, dtype = torch.device(device), fast_dtype(torch.device(device))
    kind = f"{device.type}-{str(dtype).removeprefix('torch.')}"
    return store.weights_path(spec).with_suffix(f".{kind}.checkpoint.safetensors")
