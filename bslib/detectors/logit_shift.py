"""How differently a pattern moves the logits of different images (after Zhu et al., 2020)."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from bslib.calling import check_inputs, evaluating

__all__ = ["logit_shift_variance", "score"]


def score(model: nn.Module, clean: Tensor, images: Tensor, overlays: Tensor) -> np.ndarray:
    """The :func:`logit_shift_variance` of the batch, shape ()."""
    return np.asarray(logit_shift_variance(model, clean, images))


def logit_shift_variance(model: nn.Module, clean: Tensor, patterned: Tensor) -> float:
    """How differently a pattern moves the logits of different images (after Zhu et al., 2020).

    The variance over the images of the shift of each logit, as a share of the mean square of the shift: 0 where a pattern moves
    every image the same way, as a trigger with one target class would, 1 where what it does to one image says nothing about
    another. A share, so that neither the scale of a network's logits nor the strength of a pattern counts.

    Parameters
    ----------
    model : torch.nn.Module
        Maps (B, C, H, W) to logits; used in eval mode.
    clean, patterned : float32 Tensor, shape (B, C, H, W)
        The same images without the pattern and with it, at least two.

    Returns
    -------
    float
        Between 0 and 1; 1 where the pattern moves nothing at all.

    Raises
    ------
    ValueError
        When the shapes differ or there are fewer than two images.

    >>> x = torch.rand(5, 1, 2, 2)
    >>> logit_shift_variance(nn.Sequential(nn.Flatten(), nn.Linear(4, 3)), x, x + 1) < 1e-9
    True
    """
    if clean.shape != patterned.shape or len(clean) < 2:
        raise ValueError(
            f"two batches of the same images are needed, at least two, got {tuple(clean.shape)} and {tuple(patterned.shape)}"
        )
    check_inputs(model, clean, patterned)
    with evaluating(model) as network:
        pairs = zip(clean.split(500), patterned.split(500), strict=True)
        shift = torch.cat([network(y) - network(x) for x, y in pairs])
    square = shift.square().mean()
    return float(shift.var(0, correction=0).mean() / square) if square > 0 else 1.0
