"""The audit: is this network backdoored? Its answers are *backdoor likely*, *no sign found* and *not enough evidence*.

Someone else has trained a network; you have its weights, and a folder of images. The audit reconstructs a trigger candidate for
each class (Neural Cleanse) and asks whether one is too small to be chance. It measures W with and without the candidates, and
lists suspicious images. ``bslib.audit(model, images)`` calls :func:`bslib.audit.run.audit`; importing this package does not
import torch.
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bslib.audit.report import Audit

__all__: list[str] = []


class _Callable(ModuleType):
    """``bslib.audit`` is this package and, for users, a function."""

    def __call__(self, *arguments: Any, **options: Any) -> Audit:
        from bslib.audit.run import audit

        return audit(*arguments, **options)


sys.modules[__name__].__class__ = _Callable
