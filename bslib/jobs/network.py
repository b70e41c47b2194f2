"""Training of a clean or backdoored network, or its treatment by a defender."""

from __future__ import annotations

import time
from typing import Any

import torch
from torch import Tensor

from bslib.datasets import Dataset, load
from bslib.files import file_digest
from bslib.jobs.base import Parts, checkpoint_path, draw_points, trained_network
from bslib.networks import build
from bslib.poisoning import cover, poison
from bslib.specs import NetworkSpec
from bslib.store import Store
from bslib.training import accuracy, save_weights, train
from bslib.treatments import treat
from bslib.triggers import pattern


def compute(spec: NetworkSpec, store: Store, device: torch.device, progress: bool) -> Parts:
    """Train or treat the network, save its weights beside the records, and measure accuracies.

    Training is in float32 on every machine: networks of other precisions would be other networks.
    """
    data = load(spec.dataset)
    path = store.weights_path(spec)
    images, labels = _training_set(spec, data)
    before: dict[str, Any] = {}
    if spec.treatment is not None:
        _, network, before["weights before"] = trained_network(spec.untreated, store, device)
        assert spec.attack is not None
        few = draw_points(len(data.train_images), spec.treatment.images, spec.seed)
        how = spec.treatment, pattern(spec.attack.trigger), spec.seed
        treat(network, data.train_images[few], data.train_labels[few], *how, progress=progress)
    else:
        network = build(spec.network, classes=len(data.classes), seed=spec.seed).to(device)
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
            noise=spec.noise or 0.0,
            checkpoint=checkpoint_path(spec, store, device, data),
            description=f"training {spec.network} on {spec.dataset}, seed {spec.seed}",
            progress=progress,
        )
        before["seconds before"] = max(0.0, seconds - (time.monotonic() - began))  # time spent by interrupted runs
    save_weights(network, path)
    result = before | {
        "clean_accuracy": accuracy(network, data.test_images, data.test_labels),
        "train_accuracy": accuracy(network, images[:10_000], labels[:10_000]),
        "test_images": len(data.test_images),
        "parameters": sum(p.numel() for p in network.parameters()),
        "weights": file_digest(path),
        "precision": "float32",
        "engine": "eager, channels last",
    }
    return result, {}, data


def _training_set(spec: NetworkSpec, data: Dataset) -> tuple[Tensor, Tensor]:
    """The images and labels that the network is trained on, with those of the attacker."""
    images, labels = data.train_images, data.train_labels
    if spec.train_size is not None:
        chosen = draw_points(len(images), spec.train_size, spec.seed)
        images, labels = images[chosen], labels[chosen]
    if spec.attack is None:
        return images, labels
    attack, trigger = spec.attack, pattern(spec.attack.trigger)
    poisoned = poison(images, labels, trigger, attack.model, target=attack.target, classes=len(data.classes), seed=spec.seed)
    if attack.covers is None or attack.cover_sigmas is None:
        return poisoned.images, poisoned.labels
    return cover(poisoned, images, trigger, count=attack.covers, sigmas=attack.cover_sigmas, seed=spec.seed)
