"""Profiles: how much of everything, as TOML. ``smoke`` runs anywhere in minutes, ``paper`` has the paper's sizes."""

from __future__ import annotations

import functools
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

__all__ = ["PROFILES", "Profile", "profile_named"]

#: The files of the profiles that come with the package.
#:
#: :meta hide-value:
PROFILES = {name: Path(__file__).with_name(f"{name}.toml") for name in ("smoke", "paper")}


class Profile(NamedTuple):
    """What a profile's file says.

    Parameters
    ----------
    name : str
    store : str or None
        The default store of a book of this profile, as for :func:`bslib.store.open_store`.
    tables : mapping of str to sequence of dict
        For each chapter the fields of its ``Size``, once for each data set.
    """

    name: str
    store: str | None
    tables: Mapping[str, Sequence[Mapping[str, Any]]]


def profile_named(name: str) -> Profile:
    """The profile of that name, or of a TOML file of one's own.

    Parameters
    ----------
    name : str
        ``"smoke"``, ``"paper"``, or the path of a file that ends in ``.toml``.

    Raises
    ------
    ValueError
        If the name is unknown, or the file does not exist or is not valid TOML.

    >>> profile_named("paper").store
    'published'
    """
    path = PROFILES.get(name, Path(str(name)))
    if path.suffix != ".toml" or not path.is_file():
        raise ValueError(f"profile must be one of {', '.join(PROFILES)}, or a TOML file, got {name!r}")
    store, tables = _read(path, path.stat().st_mtime_ns)  # a file that is edited is read again
    return Profile(name, store, tables)


@functools.cache
def _read(path: Path, changed: int) -> tuple[str | None, dict[str, list[dict[str, Any]]]]:
    try:
        content = _with_tuples(tomllib.loads(path.read_text(encoding="utf-8")))
    except (ValueError, RecursionError) as problem:
        raise ValueError(f"the profile {path} cannot be read: {problem}") from None
    store = content.pop("store", None)
    for chapter, tables in content.items():
        if not isinstance(tables, tuple) or not all(isinstance(table, dict) for table in tables):
            raise ValueError(f"the profile {path} cannot be read: {chapter} must be tables, each headed [[{chapter}]]")
    return store, {chapter: list(tables) for chapter, tables in content.items()}


def _with_tuples(value: Any) -> Any:
    """TOML's lists as tuples."""
    if isinstance(value, dict):
        return {name: _with_tuples(inner) for name, inner in value.items()}
    return tuple(map(_with_tuples, value)) if isinstance(value, list) else value
