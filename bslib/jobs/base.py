"""Functions shared by the jobs: selecting test images, applying triggers and patterns, loading trained networks."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from bslib.datasets import Dataset, load, to_float
from bslib.files import file_digest
from bslib.networks import build
from bslib.patterns.neural_cleanse import patched
from bslib.patterns.universal import perturbed
from bslib.specs import CarryingSpec, NetworkSpec, TriggeredSpec, UniversalSpec
from bslib.store import Store, definitions
from bslib.training import load_weights
from bslib.triggers import pattern

__all__ = [
    "Parts", "carrying", "checkpoint_path", "crafting_images", "draw_points", "draw_points_of_each_class", "measuring_points",
    "remove_checkpoints", "split_test_set", "trained_network", "triggered",
]  # fmt: skip

#: The return value of a job: the result, the arrays, and the data set or None.
Parts = tuple[dict[str, Any], dict[str, np.ndarray], Dataset | None]


def draw_points(available: int, points: int, seed: int) -> np.ndarray:
    """Draw the images of a batch: ``points`` distinct indices below ``available``, int64, shape (points,).

    With the same seed, the first k indices are those of a batch of k points.

    >>> draw_points(100, 5, seed=0).shape
    (5,)
    """
    if points < 1:
        raise ValueError(f"at least 1 image is needed, got {points}")
    if points > available:
        raise ValueError(f"{points} images were asked for, and there are only {available}")
    return np.random.default_rng([seed, 1]).permutation(available)[:points]


def draw_points_of_each_class(labels: np.ndarray, points: int, seed: int) -> np.ndarray:
    """Draw the indices of ``points`` test images of each class, class after class, int64, shape (classes * points,).

    >>> draw_points_of_each_class(np.array([0, 1, 0, 1]), 1, seed=0).shape
    (2,)
    """
    members = [np.flatnonzero(labels == c) for c in range(int(labels.max()) + 1)]
    return np.concatenate([own[draw_points(len(own), points, seed)] for own in members])


def split_test_set(available: int) -> tuple[np.ndarray, np.ndarray]:
    """Split the test set into halves for crafting and for measuring patterns; the split is the same for every network.

    >>> [len(half) for half in split_test_set(101)]
    [50, 51]
    """
    order = np.random.default_rng([0, 5]).permutation(available)
    return order[: available // 2], order[available // 2 :]


def measuring_points(available: int, points: int, seed: int) -> np.ndarray:
    """Draw ``points`` indices of test images from the half that no pattern is crafted on."""
    _, measuring = split_test_set(available)
    return measuring[draw_points(len(measuring), points, seed)]


def trained_network(spec: NetworkSpec, store: Store, device: torch.device) -> tuple[Dataset, nn.Module, str]:
    """Load the data set and the trained network; returns both and the digest of the weights, as in the network's record."""
    data = load(spec.dataset)
    network = build(spec.network, classes=len(data.classes), seed=spec.seed).to(device)
    path = store.weights_path(spec)
    load_weights(network, path)
    digest = file_digest(path)
    if spec in store and (record := store.get(spec)):
        if record.result["weights"] != digest:
            raise ValueError(f"{path} holds other weights than its network's record names; delete it to train the network again")
        if record.data["fingerprint"] != data.fingerprint:
            was = f"{record.data['fingerprint'][:8]} at training, {data.fingerprint[:8]} now"
            raise ValueError(f"the images of {spec.dataset} have changed (fingerprint {was}): name another store with --store")
    return data, network, digest


def crafting_images(data: Dataset, count: int, seed: int) -> Tensor:
    """Draw ``count`` uint8 images from the half of the test set that W is not measured on."""
    crafting, _ = split_test_set(len(data.test_images))
    return data.test_images[crafting[draw_points(len(crafting), count, seed)]]


def triggered(spec: TriggeredSpec, images: Tensor) -> Tensor:
    """Convert uint8 images to float, with the spec's trigger if it has one."""
    return to_float(images if spec.trigger is None else pattern(spec.trigger)(images))


def carrying(spec: CarryingSpec, images: Tensor, store: Store) -> tuple[list[Tensor], dict[str, str]]:
    """Convert uint8 images to float and apply the spec's trigger or pattern.

    Returns one batch, or one for each Neural Cleanse candidate, and the checksum of the crafted pattern for the record, if any.
    """
    if spec.pattern is None:
        return [triggered(spec, images)], {}
    record = store.get(spec.pattern)
    crafted = {name: torch.tensor(array) for name, array in record.arrays.items()}
    if isinstance(spec.pattern, UniversalSpec):
        batches = [perturbed(to_float(images), crafted["perturbation"])]
    else:
        pairs = zip(crafted["masks"], crafted["patterns"], strict=True)
        batches = [patched(to_float(images), mask, colours) for mask, colours in pairs]
    return batches, {"pattern": record.checksum}


def checkpoint_path(spec: NetworkSpec, store: Store, device: torch.device, data: Dataset) -> Path:
    """Return the checkpoint path of an unfinished training, specific to the kind of device, the data and the definitions."""
    digest = hashlib.sha256(json.dumps([definitions(spec), data.fingerprint], sort_keys=True).encode()).hexdigest()[:8]
    return store.weights_path(spec).with_suffix(f".{device.type}.{digest}.checkpoint.safetensors")


def remove_checkpoints(spec: NetworkSpec, store: Store) -> None:
    """Remove all checkpoints of a network, those of other devices, data and definitions included."""
    for path in store.weights_path(spec).parent.glob(f"{spec.key}.*checkpoint.safetensors"):
        path.unlink(missing_ok=True)
