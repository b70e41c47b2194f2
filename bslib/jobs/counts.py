"""Class counts under noise, from which W is computed."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from bslib.datasets import Dataset
from bslib.entropy import entropy
from bslib.jobs.base import Parts, carrying, draw_points, draw_points_of_each_class, measuring_points, trained_network
from bslib.measure import counts_and_engine, predict
from bslib.specs import CountsSpec
from bslib.statistics import within_chance
from bslib.store import Record, Store
from bslib.triggers import pattern


def compute(spec: CountsSpec, store: Store, device: torch.device, progress: bool) -> Parts:
    """Count the predicted classes of the noisy copies of a batch."""
    data, network, weights = trained_network(spec.network, store, device)
    chosen = _batch(spec, data)
    batches, crafted = carrying(spec, data.test_images[chosen], store)
    images = torch.cat(batches).to(device)
    ids = chosen.tolist() if spec.paired else None
    mask = None
    if spec.noise_on is not None:
        region = pattern(spec.triggers[-1]).region(images)
        mask = region if spec.noise_on == "trigger" else ~region
    how: dict[str, Any] = {"seed": spec.seed, "ids": ids, "mask": mask, "progress": progress}
    counts, engine = counts_and_engine(network, images, spec.sigmas, spec.ns, **how)
    arrays = {
        "counts": counts.astype(np.int32),
        "images": np.tile(chosen, len(batches)),
        "labels": np.tile(data.test_labels[chosen].numpy(), len(batches)),
        "predicted": predict(network, images),
    }
    # The engine and its precision may depend on how fast the machine is just then. They are provenance, not a result.
    return {"weights": weights, "engine": engine} | crafted, arrays, data


def _batch(spec: CountsSpec, data: Dataset) -> np.ndarray:
    """Return the indices of the test images in the batch."""
    if spec.by_class:
        return draw_points_of_each_class(data.test_labels.numpy(), spec.points, spec.seed)
    if spec.held_out:
        return measuring_points(len(data.test_images), spec.points, spec.seed)
    return draw_points(len(data.test_images), spec.points, spec.seed)


def compare(old: Record, new: Record) -> tuple[bool, str]:
    """Whether counts of one network agree up to noise and rounding: tests the mean difference of W, in standard errors."""
    same = np.array_equal(new.arrays["counts"], old.arrays["counts"])
    if same or new.arrays["counts"].shape[-2] < 2:
        return same, "the counts are the same" if same else "the counts of one point differ"
    difference = entropy(new.arrays["counts"]) - entropy(old.arrays["counts"])
    mean, error = difference.mean(-1), difference.std(-1, ddof=1) / difference.shape[-1] ** 0.5
    return within_chance(np.abs(mean) / np.maximum(error, 1e-4), difference.shape[-1] - 1, "standard errors")
