"""Backdoor detectors from the literature, for comparison with W (Sec. 4); one module for each detector.

Each module has a function ``score(model, clean, images, overlays)`` that returns an array of scores of a batch ``images`` that
carry a trigger or pattern. ``clean`` is the same batch without it, and ``overlays`` are other clean images. Low scores are
suspicious. To add a detector, add a module and an entry in :data:`DETECTORS`. Importing this package does not import torch.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["DETECTORS", "Detector", "changed_digests", "detector_named"]


class Detector(NamedTuple):
    """How the scores of a detector are labelled and evaluated.

    Parameters
    ----------
    label : str
        Its name in tables.
    against_clean : bool
        Whether scores are compared with those of clean images for the same network, or interpreted on their own.
    """

    label: str
    against_clean: bool


#: The detectors by module name.
#:
#: :meta hide-value:
DETECTORS: dict[str, Detector] = {
    "strip": Detector("STRIP", against_clean=True),
    "logit_shift": Detector("logit variance", against_clean=False),
}

#: The original detectors, whose records have no digests.
_FIRST = frozenset({"strip", "logit_shift"})


def detector_named(name: str) -> Callable[..., NDArray[Any]]:
    """Return the scoring function of a detector; raise a ValueError that lists the choices if the name is unknown.

    >>> detector_named("strip").__module__
    'bslib.detectors.strip'
    """
    if name not in DETECTORS:
        raise ValueError(f"detector must be one of {', '.join(DETECTORS)}, got {name!r}")
    score: Callable[..., NDArray[Any]] = import_module(f"bslib.detectors.{name}").score
    return score


def changed_digests(names: Iterable[str]) -> dict[str, str]:
    """Return the digests of the source of added detectors; if it changes, their records must be recomputed.

    >>> changed_digests(["strip", "logit_shift"])
    {}
    """
    files = {name: Path(__file__).with_name(f"{name}.py") for name in sorted(set(names) - _FIRST)}
    return {name: hashlib.sha256(file.read_bytes()).hexdigest()[:16] for name, file in files.items() if file.is_file()}
