"""What others measure on a network that may be backdoored, for comparison with W (Sec. 4): one module for each detector.

A module has a function ``score(model, clean, images, overlays)``: the scores of a batch of ``images`` that carry something,
``clean`` being the same images without it and ``overlays`` other clean images, as an array. A new detector is a module and its
name in :data:`DETECTORS`.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module

import numpy as np
from torch import Tensor, nn

__all__ = ["DETECTORS", "detector_named"]

#: The modules.
DETECTORS = ("strip", "logit_shift")


def detector_named(name: str) -> Callable[[nn.Module, Tensor, Tensor, Tensor], np.ndarray]:
    """The scoring function of a detector, or a ValueError that names the choices.

    >>> detector_named("strip").__module__
    'bslib.detectors.strip'
    """
    if name not in DETECTORS:
        raise ValueError(f"detector must be one of {', '.join(DETECTORS)}, got {name!r}")
    score: Callable[[nn.Module, Tensor, Tensor, Tensor], np.ndarray] = import_module(f"bslib.detectors.{name}").score
    return score
