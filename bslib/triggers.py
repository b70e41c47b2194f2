"""Triggers: small patterns that overwrite pixels in the lower right corner, and the six of the paper's Fig. 3."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from bslib.drawings import DRAWINGS

__all__ = ["PATTERNS", "Trigger", "pattern"]


@dataclass(frozen=True, eq=False)
class Trigger:
    """A patch for the lower right corner of images: where it overwrites, and with what.

    Parameters
    ----------
    mask : bool Tensor, shape (h, w)
        Which pixels are overwritten; the last row and column lie in the corner of the image.
    values : float Tensor, shape (1, h, w) or (C, h, w)
        What they are overwritten with, in [0, 1]; a single channel serves all channels of an image.

    Raises
    ------
    ValueError
        For shapes that do not fit, values outside [0, 1], or a mask that overwrites nothing.

    >>> dot = Trigger(mask=torch.tensor([[True]]), values=torch.ones(1, 1, 1))
    >>> dot(torch.zeros(1, 2, 2)).tolist()
    [[[0.0, 0.0], [0.0, 1.0]]]
    """

    mask: Tensor
    values: Tensor

    def __post_init__(self) -> None:
        if self.mask.dtype != torch.bool or self.mask.ndim != 2:
            raise ValueError(f"mask must be bool of shape (h, w), got {self.mask.dtype} of shape {tuple(self.mask.shape)}")
        if self.values.ndim != 3 or self.values.shape[1:] != self.mask.shape:
            raise ValueError(
                f"values must have shape (C, {', '.join(map(str, self.mask.shape))}), got {tuple(self.values.shape)}"
            )
        if not self.mask.any():
            raise ValueError("mask must overwrite at least one pixel, got none")
        shown = self.values[:, self.mask]
        if not ((shown >= 0) & (shown <= 1)).all():
            raise ValueError(f"values must lie in [0, 1], got {shown.min().item():g} to {shown.max().item():g}")

    @classmethod
    def from_image(cls, image: Tensor, mask: Tensor | None = None) -> Trigger:
        """A trigger from a picture of one's own.

        Parameters
        ----------
        image : uint8 or float Tensor, shape (h, w) or (C, h, w)
            uint8 from 0 to 255, or float in [0, 1].
        mask : bool Tensor, shape (h, w), optional
            Which pixels overwrite; all of them when not given.

        >>> Trigger.from_image(torch.full((3, 3), 255, dtype=torch.uint8)).values.max().item()
        1.0
        """
        values = image.float() / 255 if image.dtype == torch.uint8 else image.float()
        values = values if values.ndim == 3 else values[None]
        return cls(torch.ones(values.shape[-2:], dtype=torch.bool) if mask is None else mask, values)

    def __call__(self, images: Tensor) -> Tensor:
        """The images with the trigger; the originals stay as they are.

        Parameters
        ----------
        images : uint8 or float Tensor, shape (C, H, W) or (B, C, H, W)

        Returns
        -------
        Tensor
            Like ``images``. Applying the trigger again changes nothing.

        Raises
        ------
        ValueError
            When the images have another layout or type, are smaller than the trigger, or have other channels.
        """
        if images.ndim not in (3, 4):
            raise ValueError(f"images must have shape (C, H, W) or (B, C, H, W), got {tuple(images.shape)}")
        h, w = self.mask.shape
        channels, height, width = images.shape[-3:]
        if h > height or w > width:
            raise ValueError(f"the trigger of {h}x{w} pixels is larger than the images of {height}x{width}")
        if len(self.values) not in (1, channels):
            raise ValueError(f"the trigger has {len(self.values)} channels, the images have {channels}")
        values = self.values.to(images.device)
        if images.dtype == torch.uint8:
            values = (values * 255).round()
        elif not images.is_floating_point():
            raise ValueError(f"images must be uint8 or float, got {images.dtype}")
        stamped = images.clone()
        corner = stamped[..., height - h :, width - w :]
        corner[..., self.mask.to(images.device)] = values.expand(channels, h, w)[:, self.mask].to(images.dtype)
        return stamped


def _drawn(*rows: str) -> Trigger:
    """A trigger from a drawing: # is white, a digit a grey (9 is white), . is black, a blank leaves the pixel as it is."""
    grey = {"#": 1.0, ".": 0.0} | {str(d): d / 9 for d in range(10)}
    mask = torch.tensor([[c != " " for c in row] for row in rows])
    return Trigger(mask, torch.tensor([[[grey.get(c, 0.0) for c in row] for row in rows]]))


#: The six patterns by their number in Fig. 3, as drawn in :mod:`bslib.drawings`.
#:
#: :meta hide-value:
PATTERNS: dict[int, Trigger] = {number: _drawn(*rows) for number, rows in DRAWINGS.items()}


def pattern(number: int) -> Trigger:
    """The pattern of that number, or a ValueError that names the choices.

    >>> int(pattern(1).mask.sum())
    4
    """
    if number not in PATTERNS:
        raise ValueError(f"trigger must be one of {', '.join(map(str, PATTERNS))}, got {number!r}")
    return PATTERNS[number]
