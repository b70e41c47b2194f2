"""The digits of scikit-learn, enlarged to the image sizes of the paper; no files are needed."""

from __future__ import annotations

import numpy as np
import torch
from torch.nn.functional import interpolate

from bslib.datasets import Dataset, dataset_of


def load(name: str) -> Dataset:
    """Load the digits: grey at 28x28, or coloured at 32x32 for ``digits-rgb``."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    bunch = load_digits()
    side = 32 if name == "digits-rgb" else 28
    grey = torch.from_numpy(bunch.images)[:, None] * (255 / 16)  # pixels are 0 to 16
    grey = interpolate(grey, size=(side, side), mode="bilinear", align_corners=False)
    # Many values are exactly halfway between two integers. The offset rounds them up on every machine. It is smaller than the
    # smallest nonzero distance to a halfway value (1/3136 at 28x28), so no other value changes.
    images = (grey + 1e-4).round().to(torch.uint8)
    if name == "digits-rgb":
        images = _coloured(images)
    labels = torch.from_numpy(bunch.target).to(torch.int64)
    train, test = train_test_split(np.arange(len(labels)), test_size=500, random_state=0, stratify=bunch.target)
    source = f"scikit-learn's digits, {'coloured and ' if name == 'digits-rgb' else ''}enlarged to {side}x{side}"
    return dataset_of(name, (images[train], labels[train], images[test], labels[test]), source)


def _coloured(grey: torch.Tensor) -> torch.Tensor:
    """Colour each (1, H, W) image with a random bright colour on a random dark one; returns (N, 3, H, W)."""
    random = np.random.RandomState(0)  # its stream is fixed across numpy releases, unlike that of newer generators
    bright = torch.from_numpy(random.randint(160, 256, size=(len(grey), 3, 1, 1)))
    dark = torch.from_numpy(random.randint(0, 96, size=(len(grey), 3, 1, 1)))
    return ((bright * grey + dark * (255 - grey.long())) // 255).to(torch.uint8)
