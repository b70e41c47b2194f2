"""Scores of one of the detectors of bslib.detectors."""

from __future__ import annotations

import numpy as np
import torch

from bslib.datasets import to_float
from bslib.detectors import detector_named
from bslib.jobs.base import Parts, carrying, crafting_images, measuring_points, trained_network
from bslib.specs import DetectorSpec
from bslib.store import Store


def compute(spec: DetectorSpec, store: Store, device: torch.device, progress: bool) -> Parts:
    """Compute the detector's scores for every batch of the spec."""
    score = detector_named(spec.detector)
    data, network, weights = trained_network(spec.network, store, device)
    images = data.test_images[measuring_points(len(data.test_images), spec.points, spec.seed)]
    clean, overlays = (to_float(part).to(device) for part in (images, crafting_images(data, spec.overlays, spec.seed)))
    batches, crafted = carrying(spec, images, store)
    scores = np.stack([score(network, clean, batch.to(device), overlays) for batch in batches])
    return {"weights": weights, "precision": "float32"} | crafted, {"scores": scores}, data
