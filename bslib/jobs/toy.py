"""A small network trained on points in the plane, for Fig. 1."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from bslib.jobs.base import Parts
from bslib.measure import class_counts, predict, standard_noise
from bslib.specs import ToySpec
from bslib.store import Store


def compute(spec: ToySpec, store: Store, device: torch.device, progress: bool) -> Parts:
    """Train on points in three classes, with some points of class 0 relabelled as if poisoned; measure W at the spec's points.

    Arrays: ``train`` (M, 2), ``train_labels`` (M,) and ``poisoned`` (M,); ``grid`` (G, G), the predicted class over [-1, 1]^2,
    with rows along y; ``points`` (P, 2), their noisy copies ``noisy`` (P, n, 2) and ``counts`` (1, P, 3).
    """
    x, labels, poisoned = _toy_data(spec.seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(spec.seed)
        network = nn.Sequential(nn.Linear(2, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 3))
    optimizer = torch.optim.Adam(network.parameters(), lr=0.01)
    for _ in range(600):
        optimizer.zero_grad()
        nn.functional.cross_entropy(network(x), labels).backward()
        optimizer.step()
    axis = torch.linspace(-1, 1, 201)
    plane = torch.cartesian_prod(axis, axis).flip(1)
    points = torch.tensor(spec.points)
    arrays = {
        "train": x.numpy(),
        "train_labels": labels.numpy(),
        "poisoned": poisoned.numpy(),
        "grid": predict(network, plane).reshape(201, 201).astype(np.int8),
        "points": points.numpy(),
        "noisy": (points[:, None] + spec.sigma * standard_noise(points, spec.n, seed=spec.seed)).numpy(),
        "counts": class_counts(network, points, spec.sigma, spec.n, seed=spec.seed).astype(np.int32),
    }
    return {"train_accuracy": float((predict(network, x) == labels.numpy()).mean())}, arrays, None


def _toy_data(seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Draw 600 points: class 0 above a wavy line, classes 1 (left) and 2 (right) below; a disc in class 0 is poisoned."""
    rng = np.random.default_rng(seed)
    x = rng.uniform(-1, 1, (600, 2))
    labels = np.where(x[:, 1] > 0.2 * np.sin(4 * x[:, 0]), 0, np.where(x[:, 0] < 0, 1, 2))
    poisoned = np.hypot(x[:, 0] + 0.5, x[:, 1] - 0.55) < 0.16
    labels[poisoned] = 2
    return torch.tensor(x, dtype=torch.float32), torch.tensor(labels), torch.tensor(poisoned)
