"""Patterns crafted after training. No network was trained on them, but some act like a trigger (Sec. 3.2.4)."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from bslib.calling import Logits, evaluating


@contextlib.contextmanager
def frozen_weights(model: nn.Module) -> Iterator[Logits]:
    """Put the model in eval mode and disable gradients of its weights, so that only images get gradients; restore both.

    >>> import torch
    >>> model = nn.Linear(2, 1)
    >>> with frozen_weights(model) as network:
    ...     any(parameter.requires_grad for parameter in network.parameters())
    False
    >>> model.weight.requires_grad
    True
    """
    learned = [parameter for parameter in model.parameters() if parameter.requires_grad]
    with torch.inference_mode(False), evaluating(model) as network:
        try:
            for parameter in learned:
                parameter.requires_grad_(False)
            yield network
        finally:
            for parameter in learned:
                parameter.requires_grad_(True)


def check_images(images: Tensor) -> None:
    """Raise a ValueError that names the value unless images are a batch in [0, 1].

    >>> import torch
    >>> check_images(torch.full((2, 1, 3, 3), 255.0))
    Traceback (most recent call last):
    ValueError: images must be a batch (B, C, H, W) in [0, 1], got values from 255 to 255: divide by 255 first
    """
    if images.ndim != 4 or not len(images):
        raise ValueError(f"images must be a batch (B, C, H, W) in [0, 1], got shape {tuple(images.shape)}")
    if not ((images >= 0) & (images <= 1)).all():
        low, high = images.min().item(), images.max().item()
        hint = (
            ": undo their normalisation, which belongs in the model" if low < 0 else ": divide by 255 first" if high > 1 else ""
        )
        raise ValueError(f"images must be a batch (B, C, H, W) in [0, 1], got values from {low:g} to {high:g}{hint}")


def check_gradients(logits: Tensor) -> None:
    """Raise a ValueError if logits have no gradients, without which no pattern is found.

    >>> import torch
    >>> check_gradients(torch.zeros(1, 2))
    Traceback (most recent call last):
    ValueError: the model gives no gradients: it is quantised, or its forward runs under torch.no_grad or on another library
    """
    if not logits.requires_grad:
        raise ValueError(
            "the model gives no gradients: it is quantised, or its forward runs under torch.no_grad or on another library"
        )
