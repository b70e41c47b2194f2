"""Threat models: how many and which training images an attacker poisons, and their new labels (Sec. 3.2.1)."""

from __future__ import annotations

import hashlib
import numbers
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

__all__ = ["THREAT_MODELS", "ThreatModel", "changed_digests", "threat_model_named"]


@dataclass(frozen=True, kw_only=True)
class ThreatModel:
    """The number of poisoned images, and whether there is one target class or each class becomes the next.

    Parameters
    ----------
    name : str
    fraction : float, optional
        Poison fraction, above 0 and at most 1; used if ``count`` is not given.
    count : int, optional
        Number of poisoned images.
    one_target : bool
        Images of all other classes become one target class if true; class c becomes (c + 1) mod C if false.

    Raises
    ------
    ValueError
        If nothing would be poisoned.
    """

    name: str
    fraction: float | None = None
    count: int | None = None
    one_target: bool

    def __post_init__(self) -> None:
        count, fraction = self.count, self.fraction or 0
        fits = isinstance(fraction, numbers.Real) and 0 < fraction <= 1
        if not (fits if count is None else isinstance(count, numbers.Integral) and count >= 1):
            given = f"{self.fraction} and {self.count}"
            raise ValueError(f"{self.name} needs a fraction above 0 and at most 1, or a count of 1 or more, got {given}")

    def poison_count(self, images: int) -> int:
        """Return the number of poisoned images in a training set of ``images`` images.

        >>> THREAT_MODELS["T1"].poison_count(60_000), THREAT_MODELS["T3"].poison_count(60_000)
        (9000, 250)
        """
        return self.count if self.count is not None else round((self.fraction or 0) * images)

    def target_of_run(self, run: int, classes: int) -> int | None:
        """Return the target class of network number ``run``, cycling through the classes, or None without a single target.

        >>> THREAT_MODELS["T3"].target_of_run(12, 10), THREAT_MODELS["T2"].target_of_run(12, 10)
        (2, None)
        """
        return run % classes if self.one_target else None

    def target_labels(self, labels: Any, *, target: int | None, classes: int) -> Any:
        """Return the label that the attacker wants for each triggered image.

        Parameters
        ----------
        labels : ndarray or Tensor of int, shape (N,)
            The true labels.
        target : int, optional
            The target class, or None if the threat model has no single target.
        classes : int
            Number of classes C.

        Returns
        -------
        like ``labels``

        Raises
        ------
        ValueError
            For labels that are no classes, an invalid, missing or inapplicable target class, or fewer than one class.

        >>> import numpy as np
        >>> THREAT_MODELS["T2"].target_labels(np.array([0, 9]), target=None, classes=10).tolist()
        [1, 0]
        """
        if not isinstance(classes, numbers.Integral) or classes < 1:
            raise ValueError(f"classes must be a whole number of 1 or more, got {classes!r}")
        if self.one_target and (not isinstance(target, numbers.Integral) or not 0 <= target < classes):
            raise ValueError(f"{self.name} needs a target class from 0 to {classes - 1}, got {target!r}")
        if not self.one_target and target is not None:
            raise ValueError(f"{self.name} sends each class to the next and takes no target class, got {target!r}")
        if len(labels) and not 0 <= labels.min() <= labels.max() < classes:
            raise ValueError(f"labels must be from 0 to {classes - 1}, got {labels.min()} to {labels.max()}")
        return labels * 0 + target if self.one_target else (labels + 1) % classes


#: The paper's three threat models by name.
THREAT_MODELS: dict[str, ThreatModel] = {
    "T1": ThreatModel(name="T1", fraction=0.15, one_target=True),
    "T2": ThreatModel(name="T2", fraction=0.15, one_target=False),
    "T3": ThreatModel(name="T3", count=250, one_target=True),
}

#: Digests of the paper's threat models.
_FIRST = {"T1": "fbf98cb8a0a76d34", "T2": "8b756b8ac5c3b9a7", "T3": "2a2ca10265320941"}


def changed_digests(names: Iterable[str]) -> dict[str, str]:
    """Return the digests of threat models that differ from the paper's; each record stores those of its network's attack.

    >>> changed_digests(["T1", "T3"])
    {}
    """
    digests = {name: hashlib.sha256(repr(THREAT_MODELS[name]).encode()).hexdigest()[:16] for name in sorted(names)}
    return {name: digest for name, digest in digests.items() if digest != _FIRST.get(name)}


def threat_model_named(threat_model: str | ThreatModel) -> ThreatModel:
    """Return the threat model with this name; raise a ValueError with the valid names if there is none.

    >>> threat_model_named("T1").one_target
    True
    """
    if isinstance(threat_model, ThreatModel):
        return threat_model
    if threat_model not in THREAT_MODELS:
        raise ValueError(f"threat model must be one of {', '.join(THREAT_MODELS)}, got {threat_model!r}")
    return THREAT_MODELS[threat_model]
