"""Specs: frozen data classes that describe computations; each has a key that identifies its record.

A spec holds no paths, devices or objects, so the same spec means the same on every machine. Its key is a hash of its fields.
Fields that are None are left out of the hash. A field added later, with default None, therefore leaves the old keys valid.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from bslib.specs.carrying import CarryingSpec, CountsSpec, DetectorSpec
from bslib.specs.measured import CleanseSpec, MarginsSpec, MeasuredSpec, PredictionsSpec, TriggeredSpec, UniversalSpec
from bslib.specs.networks import AttackSpec, NetworkSpec, Spec, TreatmentSpec
from bslib.specs.others import DomainSpec, ImagesSpec, ToySpec

__all__ = [
    "AttackSpec", "CarryingSpec", "CleanseSpec", "CountsSpec", "DetectorSpec", "DomainSpec", "ImagesSpec", "MarginsSpec",
    "MeasuredSpec", "NetworkSpec", "PredictionsSpec", "Spec", "ToySpec", "TreatmentSpec", "TriggeredSpec",
    "UniversalSpec", "spec_from",
]  # fmt: skip

_KINDS: dict[str, type[Spec]] = {
    spec.kind: spec
    for spec in (
        AttackSpec, CleanseSpec, CountsSpec, DetectorSpec, DomainSpec, ImagesSpec, MarginsSpec, NetworkSpec, PredictionsSpec,
        ToySpec, TreatmentSpec, UniversalSpec,
    )
}  # fmt: skip


def spec_from(data: dict[str, Any]) -> Spec:
    """Build a spec from the dictionary that :meth:`~bslib.specs.networks.Spec.as_dict` returned.

    Raises
    ------
    ValueError
        If this version does not know the kind or a field.

    >>> spec = ImagesSpec(dataset="digits", images=12, seed=0)
    >>> spec_from(spec.as_dict()) == spec
    True
    """
    fields = dict(data)
    kind = fields.pop("kind", None)
    if kind not in _KINDS:
        raise ValueError(f"a spec's kind must be one of {', '.join(_KINDS)}, got {kind!r}")
    known = {f.name for f in dataclasses.fields(_KINDS[kind])}
    if unknown := set(fields) - known:
        raise ValueError(f"a {kind} spec has no field {', '.join(sorted(unknown))}; it has {', '.join(sorted(known))}")
    return _KINDS[kind](**{name: _frozen(value) for name, value in fields.items()})


def _frozen(value: Any) -> Any:
    """Convert JSON lists to tuples and JSON objects to specs."""
    if isinstance(value, dict):
        return spec_from(value)
    return tuple(map(_frozen, value)) if isinstance(value, list) else value
