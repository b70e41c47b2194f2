"""Predictions of a network for test images, with or without a trigger."""

from __future__ import annotations

import numpy as np
import torch

from bslib.jobs.base import Parts, draw_points, trained_network, triggered
from bslib.measure import predict
from bslib.specs import PredictionsSpec
from bslib.store import Record, Store

#: The fraction of predictions that rounding may change on another processor.
ROUNDED = 1e-3


def compute(spec: PredictionsSpec, store: Store, device: torch.device, progress: bool) -> Parts:
    """Predict the classes of the test images."""
    data, network, weights = trained_network(spec.network, store, device)
    images, labels = data.test_images, data.test_labels.numpy()
    if spec.images is not None:
        chosen = draw_points(len(images), spec.images, spec.network.seed)
        images, labels = images[chosen], labels[chosen]
    predicted = predict(network, triggered(spec, images).to(device))
    arrays = {"predicted": predicted.astype(np.int16), "labels": labels.astype(np.int16)}
    return {"weights": weights, "precision": "float32"}, arrays, data


def compare(old: Record, new: Record) -> tuple[bool, str]:
    """Whether the predictions of one network agree up to rounding, and the fraction that differs, in words."""
    changed = float((old.arrays["predicted"] != new.arrays["predicted"]).mean())
    return changed <= ROUNDED, f"{changed:.2%} of the predictions of one network differ"
