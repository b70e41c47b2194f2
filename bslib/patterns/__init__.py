"""Patterns that are crafted after training: no network has seen them, and yet some act like a trigger (Sec. 3.2.4)."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from bslib.measure import evaluating
from bslib.speed import trainable


@contextlib.contextmanager
def crafting(model: nn.Module, images: Tensor, *, dtype: torch.dtype | None = None) -> Iterator[tuple[nn.Module, str]]:
    """What to call instead of ``model`` in eval mode for gradients of images alone, and what it is.

    Through the C loops where they fit (:func:`bslib.speed.trainable`, which asks for ``dtype``); afterwards the weights can be
    trained as before.

    >>> import torch
    >>> model = nn.Linear(2, 1)
    >>> with crafting(model, torch.zeros(1, 2)) as (network, what):
    ...     any(parameter.requires_grad for parameter in network.parameters())
    False
    >>> model.weight.requires_grad
    True
    """
    learned = [parameter for parameter in model.parameters() if parameter.requires_grad]
    with evaluating(model):
        try:
            for parameter in learned:
                parameter.requires_grad_(False)
            yield trainable(model, images, dtype=dtype)
        finally:
            for parameter in learned:
                parameter.requires_grad_(True)


def check_images(images: Tensor) -> None:
    """Refuse what no pattern can be crafted on: a ValueError that names the value, unless images are a batch in [0, 1].

    >>> import torch
    >>> check_images(torch.full((2, 1, 3, 3), 255.0))
    Traceback (most recent call last):
    ValueError: images must be a batch (B, C, H, W) in [0, 1], got values from 255 to 255: divide by 255 first
    """
    if images.ndim != 4 or not len(images):
        raise ValueError(f"images must be a batch (B, C, H, W) in [0, 1], got shape {tuple(images.shape)}")
    if not ((images >= 0) & (images <= 1)).all():
        low, high = images.min().item(), images.max().item()
        hint = ": divide by 255 first" if high > 1 else ""
        raise ValueError(f"images must be a batch (B, C, H, W) in [0, 1], got values from {low:g} to {high:g}{hint}")


def check_counts(**counts: int) -> None:
    """Refuse what is no whole number of 1 or more: a ValueError that names it.

    >>> check_counts(steps=0)
    Traceback (most recent call last):
    ValueError: steps must be a whole number of 1 or more, got 0
    """
    for name, number in counts.items():
        if not isinstance(number, int) or number < 1:
            raise ValueError(f"{name} must be a whole number of 1 or more, got {number!r}")
