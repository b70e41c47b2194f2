"""Logit margins of a network for test images, with or without a trigger."""

from __future__ import annotations

import numpy as np
import torch

from bslib.calling import evaluating
from bslib.jobs.base import Parts, measuring_points, trained_network, triggered
from bslib.specs import MarginsSpec
from bslib.store import Store


def compute(spec: MarginsSpec, store: Store, device: torch.device, progress: bool) -> Parts:
    """Compute the difference between the two largest logits of each image, in float32."""
    data, network, weights = trained_network(spec.network, store, device)
    chosen = measuring_points(len(data.test_images), spec.points, spec.seed)
    images = triggered(spec, data.test_images[chosen]).to(device)
    with evaluating(network) as logits:
        values, labels = torch.cat([logits(part) for part in images.split(500)]).topk(2)
    arrays = {
        "margins": (values[:, 0] - values[:, 1]).cpu().numpy(),
        "predicted": labels[:, 0].cpu().numpy().astype(np.int16),
        "labels": data.test_labels[chosen].numpy().astype(np.int16),
    }
    return {"weights": weights, "precision": "float32"}, arrays, data
