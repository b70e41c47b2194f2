"""Variance across images of the logit shift that a pattern causes (after Zhu et al., 2020)."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from bslib.calling import check_inputs, evaluating

__all__ = ["logit_shift_variance", "score"]


def score(model: nn.Module, clean: Tensor, images: Tensor, overlays: Tensor) -> np.ndarray:
    """Return the :func:`logit_shift_variance` of the batch, shape ()."""
    return np.asarray(logit_shift_variance(model, clean, images))


def logit_shift_variance(model: nn.Module, clean: Tensor, patterned: Tensor) -> float:
    """Return the normalized variance across images of the logit shift that a pattern causes (after Zhu et al., 2020).

    The variance of each logit's shift over the images is averaged over the logits and divided by the mean square of the shift.
    The result is 0 if the pattern shifts the logits of every image equally, as a trigger with one target class would. It is 1 if
    the shift of one image says nothing about that of another. Because it is a fraction, it does not depend on the scale of the
    logits or the strength of the pattern.

    Parameters
    ----------
    model : torch.nn.Module
        Maps (B, C, H, W) to logits; used in eval mode.
    clean, patterned : float32 Tensor, shape (B, C, H, W)
        The same images without and with the pattern; at least two.

    Returns
    -------
    float
        Between 0 and 1; 1 if the pattern does not change any logit.

    Raises
    ------
    ValueError
        If the shapes differ, there are fewer than two images, or a shift is NaN or infinite.

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
        both = [(network(x), network(y)) for x, y in pairs]
    shift = torch.cat([(y - x).where(x != y, 0) for x, y in both])  # a logit that stays at minus infinity does not shift
    if not shift.isfinite().all():
        raise ValueError("the shift of a logit is NaN or infinite: the model's logits are, with or without the pattern")
    square = shift.square().mean()
    return min(1.0, float(shift.var(0, correction=0).mean() / square)) if square > 0 else 1.0  # rounding may exceed 1
