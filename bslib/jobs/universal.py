"""A universal perturbation for a network."""

from __future__ import annotations

import numpy as np
import torch

from bslib.datasets import to_float
from bslib.jobs.base import Parts, crafting_images, split_test_set, trained_network
from bslib.measure import predict
from bslib.patterns.universal import perturbed, universal_perturbation
from bslib.specs import UniversalSpec
from bslib.store import Store


def compute(spec: UniversalSpec, store: Store, device: torch.device, progress: bool) -> Parts:
    """Craft the perturbation on half of the test set, and predict the other half without and with it."""
    data, network, weights = trained_network(spec.network, store, device)
    images = crafting_images(data, spec.images, spec.seed)
    found = universal_perturbation(
        network,
        to_float(images).to(device),
        bound=spec.bound / 255,
        passes=spec.passes,
        batch_size=spec.batch_size,
        seed=spec.seed,
        progress=progress,
    )
    _, measuring = split_test_set(len(data.test_images))
    others = to_float(data.test_images[measuring]).to(device)
    arrays = {
        "perturbation": found.perturbation.cpu().numpy(),
        "fooling_rates": np.array(found.fooling_rates),
        "without": predict(network, others).astype(np.int16),
        "with": predict(network, perturbed(others, found.perturbation)).astype(np.int16),
    }
    return {"weights": weights, "precision": "float32"}, arrays, data
