"""scikit-learn's digits, enlarged to the sizes of the paper's images: they need no file."""

from __future__ import annotations

import numpy as np
import torch
from torch.nn.functional import interpolate

from bslib.datasets import Dataset, dataset_of


def load(name: str) -> Dataset:
    """Grey at 28x28, or coloured at 32x32."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    bunch = load_digits()
    side = 32 if name == "digits-rgb" else 28
    grey = torch.from_numpy(bunch.images)[:, None] * (255 / 16)  # pixels are 0 to 16
    grey = interpolate(grey, size=(side, side), mode="bilinear", align_corners=False)
    # Many values lie exactly between two integers. The nudge rounds them up on every machine; it is smaller than any
    # other distance to such a tie (1/3136 at 28x28), so it moves nothing else.
    images = (grey + 1e-4).round().to(torch.uint8)
    if name == "digits-rgb":
        images = _coloured(images)
    labels = torch.from_numpy(bunch.target).to(torch.int64)
    train, test = train_test_split(np.arange(len(labels)), test_size=500, random_state=0, stratify=bunch.target)
    source = f"scikit-learn's digits, {'coloured and ' if name == 'digits-rgb' else ''}enlarged to {side}x{side}"
    return dataset_of(name, (images[train], labels[train], images[test], labels[test]), source)


def _coloured(grey: torch.Tensor) -> torch.Tensor:
    """Give each (1, H, W) image a bright colour of its own on a dark one: (N, 3, H, W)."""
    random = np.random.RandomState(0)  # unlike the newer generators, its stream never changes between releases
    bright = torch.from_numpy(random.randint(160, 256, size=(len(grey), 3, 1, 1)))
    dark = torch.from_numpy(random.randint(0, 96, size=(len(grey), 3, 1, 1)))
    return ((bright * grey + dark * (255 - grey.long())) // 255).to(torch.uint8)
