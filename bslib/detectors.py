"""What others measure on a network that may be backdoored, for comparison with W (Sec. 4)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from bslib.calling import check_inputs, evaluating

__all__ = ["logit_shift_variance", "strip_entropy"]


def strip_entropy(model: nn.Module, images: Tensor, overlays: Tensor) -> Tensor:
    """STRIP (Gao et al., 2019): how undecided the network is about an image on which clean images are laid.

    Each overlay is added to the image and the sum cut to [0, 1]; of each softmax output the entropy over the classes is taken,
    then the mean over the overlays. A trigger keeps its say under any overlay, so a low value is suspicious.

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
        When there are no images or overlays, or they have another shape than the images.

    >>> two_equal_logits = nn.Sequential(nn.AdaptiveAvgPool2d((2, 1)), nn.Flatten())
    >>> strip_entropy(two_equal_logits, torch.zeros(1, 1, 2, 2), torch.zeros(5, 1, 2, 2))
    tensor([0.6931])
    """
    if not len(images):
        raise ValueError("STRIP needs at least one image, got none")
    if not len(overlays) or overlays.shape[1:] != images.shape[1:]:
        raise ValueError(f"overlays must be at least one image of shape {tuple(images.shape[1:])}, got {tuple(overlays.shape)}")
    check_inputs(model, images, overlays)
    entropies = []
    with evaluating(model) as network:
        for image in images:
            logits = torch.cat([network((image + part).clamp(0, 1)) for part in overlays.split(500)])
            log_p = functional.log_softmax(logits, dim=1)
            entropies.append(-(log_p.exp() * log_p).sum(1).mean())
    return torch.stack(entropies)


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
