"""The chapters, one folder each: plan (specs), results (numbers from records), figures, explorer and claims (TOML).

A new chapter is a folder and its name in :data:`CHAPTERS`.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable
from importlib import import_module
from pathlib import Path
from typing import Any

from bslib.fields import check_seed
from bslib.profiles import profile_named
from bslib.specs import Spec
from bslib.store import PUBLISHED, Records, Store, missing_specs, open_store

__all__ = ["CHAPTERS", "in_a_clone", "not_yet_run", "plan_module", "plan_of", "records_for", "sizes_of"]

#: The chapters by name, in the order of the book.
CHAPTERS = (
    "wobbliness",
    "parameters",
    "surface",
    "correlation",
    "patterns",
    "origin",
    "defence",
    "hiding",
    "mitigation",
    "domains",
)


def plan_of(chapter: str, profile: str, *, seed: int = 0) -> list[Spec]:
    """All specs of a chapter, the most useful first.

    >>> len(plan_of("wobbliness", "smoke"))
    2
    """
    if chapter not in CHAPTERS:
        raise ValueError(f"chapter must be one of {', '.join(CHAPTERS)}, got {chapter!r}")
    check_seed(seed)
    plan: list[Spec] = plan_module(chapter).plan(profile, seed=seed)
    return plan


def plan_module(chapter: str) -> Any:
    """The module ``plan`` of a chapter."""
    return import_module(f"bslib.chapters.{chapter}.plan")


def sizes_of(chapter: str, profile: str) -> list[Any]:
    """The sizes of a chapter in a profile, one for each data set, in the profile's order.

    >>> [size.dataset for size in sizes_of("parameters", "paper")]
    ['fashion-mnist', 'cifar10']
    """
    size, tables = plan_module(chapter).Size, profile_named(profile).tables
    if unknown := set(tables) - set(CHAPTERS):
        raise ValueError(f"the profile {profile} has tables of {', '.join(sorted(unknown))}; chapters are {', '.join(CHAPTERS)}")
    try:
        sizes = [size(**table) for table in tables.get(chapter, [])]
    except (TypeError, ValueError) as problem:
        reason = str(problem).removeprefix("Size.__init__() ")
        raise ValueError(f"the profile {profile}, chapter {chapter}: {reason}") from None
    datasets = [size.dataset for size in sizes]
    if len(set(datasets)) < len(datasets):
        raise ValueError(f"the profile {profile}, chapter {chapter}: one table for each data set, got {', '.join(datasets)}")
    return sizes


def records_for(plan: Iterable[Spec], store: str | Path | Store | None = None) -> Records:
    """The records of a plan. Missing ones are computed, unless the store is read-only.

    This is the door between the computing and the reading side: a chapter calls it, and torch is imported only if something has
    to be computed. A read-only store, such as the published one, computes nothing; the records that it lacks are left out.

    Parameters
    ----------
    plan : iterable of Spec
    store : str, Path or Store, optional
        As for :func:`bslib.store.open_store`.

    Returns
    -------
    dict of Spec to Record
        In the order of the plan.

    Raises
    ------
    ValueError
        If the records come from several versions of a data set.
    """
    plan, store = list(dict.fromkeys(plan)), open_store(store)
    get = functools.cache(store.get)  # reads and checks each record once
    missing = missing_specs(plan, store, get)
    if missing and store.writable:
        from bslib.runner import run

        run(plan, store)
        get.cache_clear()
        missing = missing_specs(plan, store, get)
    absent = set(missing)
    found = {spec: get(spec) for spec in plan if spec not in absent}
    versions: dict[str, set[str]] = {}
    for data in (record.data for record in found.values() if record.data):
        versions.setdefault(data["name"], set()).add(data["fingerprint"])
    for name, several in versions.items():
        if len(several) > 1:
            prints = ", ".join(sorted(fingerprint[:8] for fingerprint in several))
            raise ValueError(f"the records on {name} come from {len(several)} versions of it ({prints}): name a store with one")
    return found


def not_yet_run(chapter: str, profile: str, needs: str, *, held: int = 0, seed: int = 0) -> str:
    """The message that a page shows when records are missing, with the command that computes them.

    >>> print(not_yet_run("surface", "smoke", "5 networks"))
    **Not yet run.** This needs 5 networks, and ... `bslib run surface --profile smoke` computes them.
    """
    store = in_a_clone(profile)
    options, where = store + (f" --seed {seed}" if seed else ""), " in a clone" if store else ""
    return (
        f"**Not yet run.** This needs {needs}, and the store holds {held or 'none'} of them measured. "
        f"`bslib run {chapter} --profile {profile}{options}` computes them{where}."
    )


def in_a_clone(profile: str) -> str:
    """The option of ``bslib run`` that writes to the store from which a profile's pages are built.

    >>> in_a_clone("paper"), in_a_clone("smoke")
    (' --store book/records', '')
    """
    return " --store book/records" if profile_named(profile).store == PUBLISHED else ""
