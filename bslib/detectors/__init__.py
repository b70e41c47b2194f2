"""What others measure on a network that may be backdoored, for comparison with W (Sec. 4): one module for each detector.

A module has a function ``score(model, clean, images, overlays)``: the scores of a batch of ``images`` that carry something,
``clean`` being the same images without it and ``overlays`` other clean images, as an array; low scores are suspicious. A new
detector is a module and a line in :data:`DETECTORS`. Importing this package does not import torch.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["DETECTORS", "Detector", "detector_named"]


class Detector(NamedTuple):
    """How a detector is shown and read.

    Parameters
    ----------
    label : str
        Its name in tables.
    against_clean : bool
        Whether scores are compared with those of clean images of the same network, or stand for themselves.
    """

    label: str
    against_clean: bool


#: The detectors by the names of their modules.
DETECTORS: dict[str, Detector] = {
    "strip": Detector("STRIP", against_clean=True),
    "logit_shift": Detector("logit variance", against_clean=False),
}


def detector_named(name: str) -> Callable[..., NDArray[Any]]:
    """The scoring function of a detector, or a ValueError that names the choices.

    >>> detector_named("strip").__module__
    'bslib.detectors.strip'
    """
    if name not in DETECTORS:
        raise ValueError(f"detector must be one of {', '.join(DETECTORS)}, got {name!r}")
    score: Callable[..., NDArray[Any]] = import_module(f"bslib.detectors.{name}").score
    return score
