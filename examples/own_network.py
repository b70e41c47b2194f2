"""W of your own network: which points noise moves to another class, and how far a pattern smooths.

Run it with ``python examples/own_network.py``; it takes a few seconds. Replace ``network`` and ``images`` by yours.
"""

from __future__ import annotations

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import nn

import bslib


def main() -> tuple[np.ndarray, np.ndarray]:
    """Train a small network on digits, and return W of test images, without a white corner and with it, at three noise levels."""
    digits = load_digits()
    images = torch.tensor(digits.images / 16, dtype=torch.float32)[:, None]  # (1797, 1, 8, 8) in [0, 1]: sigma has this unit
    labels = torch.tensor(digits.target)
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(1, 16, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16 * 6 * 6, 10))
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-2)
    for _ in range(60):
        optimizer.zero_grad()
        nn.functional.cross_entropy(network(images[:1500]), labels[:1500]).backward()
        optimizer.step()

    clean = images[1500:1550]
    patched = clean.clone()
    patched[:, :, -2:, -2:] = 1
    sigmas, ids = [0.1, 0.25, 0.5], range(len(clean))  # the same id gives an image and its copy the same noise
    without, with_corner = (bslib.wobbliness(network, x, sigmas, ids=ids, progress=False) for x in (clean, patched))
    for sigma, w, v in zip(sigmas, without, with_corner, strict=True):
        print(f"sigma {sigma}: mean W {w.mean():.3f}, with the white corner {v.mean():.3f}; {(w == 0).mean():.0%} never change")
    return without, with_corner


if __name__ == "__main__":
    main()
