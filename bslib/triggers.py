"""Triggers: small patterns that overwrite pixels in the lower right corner, including the six of the paper's Fig. 3."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from bslib.calling import FEATURE_RANGE
from bslib.drawings import DRAWINGS, drawing

__all__ = ["PATTERNS", "Trigger", "pattern"]


@dataclass(frozen=True, eq=False)
class Trigger:
    """A patch for the lower right corner of images, with a mask and pixel values.

    Parameters
    ----------
    mask : bool or float Tensor, shape (h, w) or (C, h, w)
        Which pixels are overwritten, or the opacity of the patch in [0, 1]: 0 leaves a pixel unchanged, 1 overwrites it, and
        values in between blend. The last row and column are the edge of the image.
    values : float Tensor, shape (1, h, w) or (C, h, w)
        The pixel values of the patch, in [0, 1]. A single channel is used for all channels of an image.

    Raises
    ------
    ValueError
        For shapes that do not fit, numbers outside [0, 1], or a mask that covers no pixel.

    >>> dot = Trigger(mask=torch.tensor([[True]]), values=torch.ones(1, 1, 1))
    >>> dot(torch.zeros(1, 2, 2)).tolist()
    [[[0.0, 0.0], [0.0, 1.0]]]
    """

    mask: Tensor
    values: Tensor

    def __post_init__(self) -> None:
        mask, values = self.mask, self.values
        if not isinstance(mask, Tensor) or not isinstance(values, Tensor):
            raise ValueError(f"mask and values must be tensors, got {type(mask).__name__} and {type(values).__name__}")
        if mask.ndim not in (2, 3) or not (mask.dtype == torch.bool or mask.is_floating_point()):
            raise ValueError(f"mask must be bool or float of shape (h, w) or (C, h, w), got {mask.dtype} of {tuple(mask.shape)}")
        if values.ndim != 3 or not len(values) or values.shape[1:] != mask.shape[-2:]:
            raise ValueError(f"values must have shape (C, {', '.join(map(str, mask.shape[-2:]))}), got {tuple(values.shape)}")
        if not mask.any():
            raise ValueError("mask must cover at least one pixel, got none")
        shown = values[:, mask if mask.ndim == 2 else mask.any(0)] if mask.dtype == torch.bool else values
        for name, part in (("values", shown), ("mask", mask.float())):
            if not ((part >= 0) & (part <= 1)).all():
                raise ValueError(f"{name} must lie in [0, 1], got {part.min().item():g} to {part.max().item():g}")

    @classmethod
    def from_image(cls, image: Tensor, mask: Tensor | None = None) -> Trigger:
        """Create a trigger from an image.

        Parameters
        ----------
        image : uint8 or float Tensor, shape (h, w) or (C, h, w)
            uint8 from 0 to 255, or float in [0, 1]. Without a mask, the last of 2 or 4 channels is the opacity, as in a PNG.
        mask : bool or float Tensor, shape (h, w) or (C, h, w), optional
            As for :class:`Trigger`. By default the whole patch overwrites the image.

        >>> Trigger.from_image(torch.full((3, 3), 255, dtype=torch.uint8)).values.max().item()
        1.0
        """
        if not isinstance(image, Tensor):
            raise ValueError(f"image must be a tensor, got {type(image).__name__}: use torch.as_tensor(image)")
        values = image.float() / 255 if image.dtype == torch.uint8 else image.float()
        values = values if values.ndim == 3 else values[None]
        if mask is None and len(values) in (2, 4):
            return cls(values[-1], values[:-1])
        return cls(torch.ones(values.shape[-2:], dtype=torch.bool) if mask is None else mask, values)

    def region(self, images: Tensor) -> Tensor:
        """Return the pixels that the trigger changes, bool (C, H, W), for images (..., C, H, W).

        Raises
        ------
        ValueError
            As for a call.

        >>> Trigger.from_image(torch.ones(1, 1)).region(torch.zeros(1, 2, 2)).tolist()
        [[[False, False], [False, True]]]
        """
        self._check(images)
        whole = torch.zeros(images.shape[-3:], dtype=torch.bool)
        h, w = self.mask.shape[-2:]
        whole[..., whole.shape[-2] - h :, whole.shape[-1] - w :] = self.mask > 0
        return whole

    def __call__(self, images: Tensor) -> Tensor:
        """Return a copy of the images with the trigger.

        Parameters
        ----------
        images : uint8 or float Tensor, shape (C, H, W) or (B, C, H, W)
            uint8 from 0 to 255, or float in [0, 1].

        Returns
        -------
        Tensor
            Same shape and dtype as ``images``. Applying an opaque patch again changes nothing.

        Raises
        ------
        ValueError
            If the images have an unsupported shape or dtype, floats far outside [0, 1], their channels last, other channels than
            the trigger, or are smaller.
        """
        self._check(images)
        h, w = self.mask.shape[-2:]
        channels, height, width = images.shape[-3:]
        whole = images.dtype == torch.uint8
        stamped = images.clone()
        corner = stamped[..., height - h :, width - w :]
        values, opacity = (
            part.to(images.device).expand(channels, h, w) for part in (self.values * (255 if whole else 1), self.mask.float())
        )
        blended, covered = (1 - opacity) * corner + opacity * values, (opacity > 0).expand(corner.shape)
        corner[covered] = (blended.round() if whole else blended).to(images.dtype)[covered]
        return stamped

    def _check(self, images: Tensor) -> None:
        """Raise a ValueError unless the trigger fits the images."""
        if not isinstance(images, Tensor):
            raise ValueError(f"images must be a tensor, got {type(images).__name__}: use torch.as_tensor(images)")
        if images.ndim not in (3, 4):
            raise ValueError(f"images must have shape (C, H, W) or (B, C, H, W), got {tuple(images.shape)}")
        h, w = self.mask.shape[-2:]
        channels, height, width = images.shape[-3:]
        if width in (1, 3, 4) and channels not in (1, 3, 4) and height > 4:
            hint = f"use images.permute({'2, 0, 1' if images.ndim == 3 else '0, 3, 1, 2'})"
            raise ValueError(f"images must have shape (C, H, W) or (B, C, H, W), got {tuple(images.shape)}: {hint}")
        if h > height or w > width:
            raise ValueError(f"the trigger of {h}x{w} pixels is larger than the images of {height}x{width}")
        for name, part in (("trigger", self.values), ("mask", self.mask)):
            if part.ndim == 3 and len(part) not in (1, channels):
                raise ValueError(f"the {name} has {len(part)} channels, the images have {channels}")
        if images.dtype != torch.uint8 and not images.is_floating_point():
            raise ValueError(f"images must be uint8 or float, got {images.dtype}")
        if images.is_floating_point() and images.numel():
            low, high = (end.item() for end in images.aminmax())
            if low < FEATURE_RANGE[0] or high > FEATURE_RANGE[1]:
                hint = "divide by 255 first" if low >= 0 else "normalise inside the model"
                raise ValueError(f"float images must have values in [0, 1], got values from {low:g} to {high:g}: {hint}")


def _drawn(*rows: str) -> Trigger:
    """Create a trigger from a drawing: # is white, a digit is grey (9: white), . is black, a blank is transparent."""
    grey = {"#": 1.0, ".": 0.0, " ": 0.0} | {str(d): d / 9 for d in range(10)}
    if len({len(row) for row in rows}) != 1 or set("".join(rows)) - set(grey):
        raise ValueError(f"a drawing has rows of one length, of # . digits and blanks, got {rows}")
    mask = torch.tensor([[c != " " for c in row] for row in rows])
    return Trigger(mask, torch.tensor([[[grey[c] for c in row] for row in rows]]))


#: The six triggers by their number in Fig. 3, from the drawings in :mod:`bslib.drawings`.
#:
#: :meta hide-value:
PATTERNS: dict[int, Trigger] = {number: _drawn(*rows) for number, rows in DRAWINGS.items()}


def pattern(number: int) -> Trigger:
    """Return the trigger with this number: one of :data:`PATTERNS` or a square; raise a ValueError if there is none.

    >>> int(pattern(1).mask.sum()), int(pattern(139).mask.sum())
    (4, 9)
    """
    return PATTERNS[number] if number in PATTERNS else _drawn(*drawing(number))
