"""Trigger candidates from Neural Cleanse for a network."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from bslib.datasets import to_float
from bslib.engine import fast_dtype
from bslib.jobs.base import Parts, crafting_images, split_test_set, trained_network
from bslib.measure import predict
from bslib.patterns.neural_cleanse import Candidates, patched, reverse_triggers
from bslib.specs import CleanseSpec
from bslib.statistics import anomaly_index
from bslib.store import Store

#: The largest index that is kept: it is infinite if all masks but one have the same size.
MOST_ANOMALOUS = 1e6


def compute(spec: CleanseSpec, store: Store, device: torch.device, progress: bool) -> Parts:
    """Reverse-engineer a candidate for each class on half of the test set, and measure its success on other images."""
    data, network, weights = trained_network(spec.network, store, device)
    if len(data.classes) < 3:
        raise ValueError(f"Neural Cleanse compares classes and needs at least 3, and {data.name} has {len(data.classes)}")
    images, dtype = crafting_images(data, spec.images, spec.seed), fast_dtype(device)
    found = reverse_triggers(
        network,
        to_float(images).to(device),
        classes=len(data.classes),
        samples=spec.samples,
        steps=spec.steps,
        seed=spec.seed,
        dtype=dtype,
        progress=progress,
    )
    arrays = {name: getattr(found, name).cpu().numpy() for name in ("masks", "patterns", "success", "steps")}
    rng = np.random.default_rng([spec.seed, 6])
    _, measuring = split_test_set(len(data.test_images))
    others = {
        "test": (data.test_images, data.test_labels, measuring[: spec.checked]),
        "train": (data.train_images, data.train_labels, rng.permutation(len(data.train_labels))[: spec.checked]),
    }
    for name, (pictures, labels, chosen) in others.items():
        arrays[f"success_{name}"] = _sent(network, pictures[chosen], labels[chosen], found, device)
    precision = str(dtype).removeprefix("torch.")
    index = min(anomaly_index(found.norms.cpu(), found.success.cpu()), MOST_ANOMALOUS)
    return {"weights": weights, "precision": precision, "anomaly_index": index}, arrays, data


def _sent(network: nn.Module, images: Tensor, labels: Tensor, found: Candidates, device: torch.device) -> np.ndarray:
    """Return, for each candidate, the fraction of other classes' images that are predicted as its class, shape (K,)."""
    shares = []
    for k, (mask, colours) in enumerate(zip(found.masks, found.patterns, strict=True)):
        others = to_float(images[labels != k]).to(device)
        shares.append(float((predict(network, patched(others, mask, colours)) == k).mean()))
    return np.array(shares)
