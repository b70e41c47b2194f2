"""STRIP (Gao et al., 2019): entropy of the predictions for an image blended with clean images."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from bslib.calling import check_inputs, check_logits, evaluating
from bslib.patterns import check_images

__all__ = ["score", "strip_entropy"]


def score(model: nn.Module, clean: Tensor, images: Tensor, overlays: Tensor) -> np.ndarray:
    """Return the :func:`strip_entropy` of each image, shape (B,)."""
    return strip_entropy(model, images, overlays).cpu().numpy()


def strip_entropy(model: nn.Module, images: Tensor, overlays: Tensor) -> Tensor:
    """Return the mean entropy of the predictions for each image with clean images added to it (STRIP; Gao et al., 2019).

    Each overlay is added to the image and the sum is clipped to [0, 1]. The entropy of the softmax output is averaged over the
    overlays. A trigger determines the prediction under any overlay, so a low value is suspicious.

    Parameters
    ----------
    model : torch.nn.Module
        Maps (B, C, H, W) to logits; used in eval mode.
    images : float32 Tensor, shape (B, C, H, W)
        In [0, 1].
    overlays : float32 Tensor, shape (N, C, H, W)
        Clean images in [0, 1].

    Returns
    -------
    Tensor, shape (B,)
        In nats, between 0 and the logarithm of the number of classes.

    Raises
    ------
    ValueError
        If there are no images or no overlays, they differ in shape or leave [0, 1], or the model returns NaN.

    >>> two_equal_logits = nn.Sequential(nn.AdaptiveAvgPool2d((2, 1)), nn.Flatten())
    >>> strip_entropy(two_equal_logits, torch.zeros(1, 1, 2, 2), torch.zeros(5, 1, 2, 2))
    tensor([0.6931])
    """
    if not len(images):
        raise ValueError("STRIP needs at least one image, got none")
    if not len(overlays) or overlays.shape[1:] != images.shape[1:]:
        raise ValueError(f"overlays must be at least one image of shape {tuple(images.shape[1:])}, got {tuple(overlays.shape)}")
    check_inputs(model, images, overlays)
    for batch in (images, overlays):
        check_images(batch)
    entropies = []
    with evaluating(model) as network:
        for image in images:
            logits = torch.cat([network((image + part).clamp(0, 1)) for part in overlays.split(500)])
            check_logits(logits)
            entropies.append(torch.special.entr(logits.softmax(1)).sum(1).mean())
    return torch.stack(entropies)
