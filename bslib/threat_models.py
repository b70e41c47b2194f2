"""Threat models: how many training images an attacker changes, which ones, and what their labels become (Sec. 3.2.1)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

__all__ = ["THREAT_MODELS", "ThreatModel", "threat_model_named"]


@dataclass(frozen=True, kw_only=True)
class ThreatModel:
    """How much is poisoned, and whether one class is the target or each class becomes the next.

    Parameters
    ----------
    name : str
    fraction : float, optional
        Fraction of the training set; or else
    count : int, optional
        number of images.
    one_target : bool
        One target class, into which images of all other classes are sent; or class c becomes (c + 1) mod C.
    """

    name: str
    fraction: float | None = None
    count: int | None = None
    one_target: bool

    def poison_count(self, images: int) -> int:
        """How many of ``images`` training images are poisoned.

        >>> THREAT_MODELS["T1"].poison_count(60_000), THREAT_MODELS["T3"].poison_count(60_000)
        (9000, 250)
        """
        return self.count if self.count is not None else round((self.fraction or 0) * images)

    def target_of_run(self, run: int, classes: int) -> int | None:
        """The target class of the network number ``run``, so that the targets take turns; None where there is not one target.

        >>> THREAT_MODELS["T3"].target_of_run(12, 10), THREAT_MODELS["T2"].target_of_run(12, 10)
        (2, None)
        """
        return run % classes if self.one_target else None

    def target_labels(self, labels: Any, *, target: int | None, classes: int) -> Any:
        """The label that the attacker wants for each triggered image.

        Parameters
        ----------
        labels : ndarray or Tensor of int, shape (N,)
            The true labels.
        target : int, optional
            The target class where there is one, else None.
        classes : int
            Number of classes C.

        Returns
        -------
        like ``labels``

        Raises
        ------
        ValueError
            For a target that is no class, missing or not wanted, or no classes.

        >>> import numpy as np
        >>> THREAT_MODELS["T2"].target_labels(np.array([0, 9]), target=None, classes=10).tolist()
        [1, 0]
        """
        if not isinstance(classes, int) or classes < 1:
            raise ValueError(f"classes must be a whole number of 1 or more, got {classes!r}")
        if self.one_target and (not isinstance(target, int) or not 0 <= target < classes):
            raise ValueError(f"{self.name} needs a target class from 0 to {classes - 1}, got {target!r}")
        if not self.one_target and target is not None:
            raise ValueError(f"{self.name} sends each class to the next and takes no target class, got {target!r}")
        return labels * 0 + target if self.one_target else (labels + 1) % classes


#: The paper's three, by name.
THREAT_MODELS: dict[str, ThreatModel] = {
    "T1": ThreatModel(name="T1", fraction=0.15, one_target=True),
    "T2": ThreatModel(name="T2", fraction=0.15, one_target=False),
    "T3": ThreatModel(name="T3", count=250, one_target=True),
}


def threat_model_named(threat_model: str | ThreatModel) -> ThreatModel:
    """The threat model of that name, or a ValueError that names the choices.

    >>> threat_model_named("T1").one_target
    True
    """
    if isinstance(threat_model, ThreatModel):
        return threat_model
    if threat_model not in THREAT_MODELS:
        raise ValueError(f"threat model must be one of {', '.join(THREAT_MODELS)}, got {threat_model!r}")
    return THREAT_MODELS[threat_model]
