"""Checks that the fields of a dataclass hold what they are declared to hold."""

from __future__ import annotations

import dataclasses
import numbers
import sys
from collections.abc import Callable
from functools import cache
from types import UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

__all__ = ["check_fields", "check_seed"]


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
    for name, hint, fits in _tests_of_fields(type(instance), signed):  # type: ignore[arg-type]
        value = getattr(instance, name)
        if not fits(value):
            raise ValueError(f"the {name} of {what} must be {_in_words(hint)}, got {value!r}")
        if hint is float or hint == tuple[float, ...]:
            object.__setattr__(instance, name, float(value) if hint is float else tuple(map(float, value)))


def check_seed(seed: object) -> None:
    """Raise a ValueError that names the value unless a seed is a whole number of 0 or more.

    >>> check_seed(-1)
    Traceback (most recent call last):
    ValueError: seed must be a whole number of 0 or more, got -1
    """
    if not isinstance(seed, numbers.Integral) or seed < 0:
        raise ValueError(f"seed must be a whole number of 0 or more, got {seed!r}")


@cache
def _tests_of_fields(kind: type[Any], signed: frozenset[str]) -> list[tuple[str, Any, Callable[[Any], bool]]]:
    """Name, type and test of each field; types are taken apart once for each class, since a plan makes thousands of specs."""
    hints = get_type_hints(kind)
    return [(f.name, hints[f.name], _test_of(hints[f.name], signed=f.name in signed)) for f in dataclasses.fields(kind)]


def _test_of(hint: Any, *, signed: bool) -> Callable[[Any], bool]:
    """Return the test whether a value is of a type."""
    tests = [_test_of(part, signed=signed) for part in get_args(hint) if part is not Ellipsis]
    if get_origin(hint) in (Union, UnionType):
        return lambda value: any(fits(value) for fits in tests)
    if get_origin(hint) is tuple and get_args(hint)[-1] is Ellipsis:
        return lambda value: type(value) is tuple and all(map(tests[0], value))
    if get_origin(hint) is tuple:
        return lambda value: (
            type(value) is tuple and len(value) == len(tests) and all(fits(one) for fits, one in zip(tests, value, strict=True))
        )
    if hint in (int, float):
        # Neither NaN nor infinity, nor an integer that is too large for a float, is below the largest float.
        return lambda value: type(value) in (int, hint) and (signed or value >= 0) and abs(value) <= sys.float_info.max
    return lambda value: isinstance(value, hint)


def _in_words(hint: Any) -> str:
    """What a field may hold.

    >>> _in_words(int)
    'int, its numbers finite and 0 or more'
    """
    kinds = [part.kind for part in (get_args(hint) or (hint,)) if hasattr(part, "kind")]
    if kinds:
        return f"{' or '.join(f'a {kind}' for kind in kinds)} spec"
    return f"{getattr(hint, '__name__', hint) if not get_args(hint) else hint}, its numbers finite and 0 or more"
