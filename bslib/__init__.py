"""How wobbly is a classifier's decision surface around a point: backdoor smoothing, measured.

What a stranger with a network of their own wants is here, by name; torch is imported only when one of these is asked for, so
that everything that merely reads records starts fast and runs anywhere.

>>> import torch, bslib
>>> network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 3))
>>> bslib.wobbliness(network, torch.rand(2, 1, 2, 2), sigma=0.1).shape
(2,)
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bslib.audit.run import audit as audit
    from bslib.interactive.panel import lab as lab
    from bslib.measure import class_counts as class_counts
    from bslib.measure import wobbliness as wobbliness

_HOME = {
    "audit": "bslib.audit.run",
    "class_counts": "bslib.measure",
    "lab": "bslib.interactive.panel",
    "wobbliness": "bslib.measure",
}

__all__ = ["audit", "class_counts", "lab", "wobbliness"]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(_HOME[name]), name)
    raise AttributeError(f"module 'bslib' has no attribute {name!r}; it has {', '.join(__all__)}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
