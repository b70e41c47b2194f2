"""Training of a clean or backdoored network."""

from __future__ import annotations

import time

import torch

from bslib.datasets import load
from bslib.engine import fast_dtype
from bslib.jobs.base import Parts, checkpoint_path, draw_points
from bslib.networks import build
from bslib.poisoning import poison
from bslib.provenance import weights_digest
from bslib.specs import NetworkSpec
from bslib.store import Store
from bslib.training import accuracy, save_weights, train
from bslib.triggers import pattern


def compute(spec: NetworkSpec, store: Store, device: torch.device, progress: bool) -> Parts:
    """Train the network, save its weights beside the records, and measure accuracies."""
    data = load(spec.dataset)
    images, labels = data.train_images, data.train_labels
    if spec.train_size is not None:
        chosen = draw_points(len(images), spec.train_size, spec.seed)
        images, labels = images[chosen], labels[chosen]
    if spec.attack is not None:
        poisoned = poison(
            images,
            labels,
            pattern(spec.attack.trigger),
            spec.attack.threat_model,
            target=spec.attack.target,
            classes=len(data.classes),
            seed=spec.seed,
        )
        images, labels = poisoned.images, poisoned.labels
    network = build(spec.network, classes=len(data.classes), seed=spec.seed).to(device)
    dtype = fast_dtype(device)
    path = store.weights_path(spec)
    began = time.monotonic()
    seconds = train(
        network,
        images,
        labels,
        epochs=spec.epochs,
        seed=spec.seed,
        learning_rate=spec.learning_rate,
        batch_size=spec.batch_size,
        weight_decay=spec.weight_decay,
        augment=spec.augment,
        dtype=dtype,
        checkpoint=checkpoint_path(spec, store, device),
        description=f"training {spec.network} on {spec.dataset}, seed {spec.seed}",
        progress=progress,
    )
    before = max(0.0, seconds - (time.monotonic() - began))  # time spent by interrupted runs
    save_weights(network, path)
    result = {
        "seconds before": before,
        "clean_accuracy": accuracy(network, data.test_images, data.test_labels),
        "train_accuracy": accuracy(network, images[:10_000], labels[:10_000]),
        "test_images": len(data.test_images),
        "parameters": sum(p.numel() for p in network.parameters()),
        "weights": weights_digest(path),
        "precision": str(dtype).removeprefix("torch."),
        "engine": "eager, channels last",
    }
    return result, {}, data
