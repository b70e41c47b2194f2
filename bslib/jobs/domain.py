"""A backdoored network for data that are not images, and its class counts under noise."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from bslib.domains import TRIGGERS, behind, build, load, train
from bslib.jobs.base import Parts, draw_points
from bslib.measure import counts_and_engine, predict
from bslib.poisoning import poison
from bslib.specs import DomainSpec
from bslib.store import Store


def compute(spec: DomainSpec, store: Store, device: torch.device, progress: bool) -> Parts:
    """Poison and train; count the predicted classes around test points without and with the trigger, under the same noise."""
    data, trigger = load(spec.dataset), TRIGGERS[spec.dataset]
    classes = len(data.classes)
    poisoned = poison(
        data.train_images, data.train_labels, trigger, spec.model, target=spec.target(classes), classes=classes, seed=spec.seed
    )
    network = build(spec.network, data, seed=spec.seed).to(device)
    train(network, poisoned.images.to(device), poisoned.labels.to(device), epochs=spec.epochs, seed=spec.seed)
    tested = data.test_images.to(device)
    model, points_of = behind(network, tested)
    chosen = draw_points(len(tested), spec.points, spec.seed)
    carried = [points_of(tested), points_of(trigger(tested))]
    how: dict[str, Any] = {"seed": spec.seed, "ids": chosen.tolist(), "progress": progress}
    counts, engines = zip(
        *(counts_and_engine(model, points[chosen], spec.sigmas, spec.n, **how) for points in carried), strict=True
    )
    arrays = {
        "counts": np.stack(counts).astype(np.int32),
        "rows": chosen,
        "labels": data.test_labels.numpy().astype(np.int16),
        "predicted": np.stack([predict(model, points) for points in carried]).astype(np.int16),
    }
    parameters = sum(p.numel() for p in network.parameters())
    return {"parameters": parameters, "engine": "; ".join(dict.fromkeys(engines))}, arrays, data
