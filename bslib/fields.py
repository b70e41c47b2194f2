"""Checks that the fields of a dataclass hold what they are declared to hold."""

from __future__ import annotations

import dataclasses
import sys
from functools import cache
from types import UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

__all__ = ["check_fields"]


def check_fields(instance: Any, what: str, *, signed: frozenset[str] = frozenset()) -> None:
    """Check the types of all fields of a frozen dataclass, and that numbers are finite and not negative; make integers floats.

    Parameters
    ----------
    instance : dataclass instance
        Its integers in fields of type float, and in tuples of floats, become floats: 1 and 1.0 must be the same.
    what : str
        What the instance is, for the message.
    signed : frozenset of str
        Fields whose numbers may be negative.

    Raises
    ------
    ValueError
        For the first field with another value; the message names the field, its type and the value.
    """
    for name, hint in _field_types(type(instance)).items():  # type: ignore[arg-type]
        value = getattr(instance, name)
        if not _fits(value, hint, signed=name in signed):
            raise ValueError(f"the {name} of {what} must be {_in_words(hint)}, got {value!r}")
        if hint is float or hint == tuple[float, ...]:
            object.__setattr__(instance, name, float(value) if hint is float else tuple(map(float, value)))


@cache
def _field_types(kind: type[Any]) -> dict[str, Any]:
    hints = get_type_hints(kind)
    return {f.name: hints[f.name] for f in dataclasses.fields(kind)}


def _fits(value: Any, hint: Any, *, signed: bool) -> bool:
    parts = get_args(hint)
    if get_origin(hint) in (Union, UnionType):
        return any(_fits(value, part, signed=signed) for part in parts)
    if get_origin(hint) is tuple:
        if type(value) is not tuple:
            return False
        parts = parts[:1] * len(value) if parts[-1] is Ellipsis else parts
        pairs = zip(value, parts, strict=False)
        return len(value) == len(parts) and all(_fits(one, part, signed=signed) for one, part in pairs)
    if hint in (int, float):
        # Neither NaN nor infinity, nor an integer that is too large for a float, is below the largest float.
        return type(value) in (int, hint) and (signed or value >= 0) and abs(value) <= sys.float_info.max
    return isinstance(value, hint)


def _in_words(hint: Any) -> str:
    """What a field may hold.

    >>> _in_words(int)
    'int, its numbers finite and 0 or more'
    """
    kinds = [part.kind for part in (get_args(hint) or (hint,)) if hasattr(part, "kind")]
    if kinds:
        return f"{' or '.join(f'a {kind}' for kind in kinds)} spec"
    return f"{getattr(hint, '__name__', hint) if not get_args(hint) else hint}, its numbers finite and 0 or more"
