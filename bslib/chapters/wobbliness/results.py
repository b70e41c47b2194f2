"""The records of the toy and of the images."""

from __future__ import annotations

from pathlib import Path

from bslib.chapters import not_yet_run, records_for
from bslib.chapters.wobbliness.plan import plan
from bslib.profiles import profile_named
from bslib.store import Record, Store

__all__ = ["records"]


def records(*, profile: str, seed: int = 0, store: str | Path | Store | None = None) -> list[Record | str]:
    """The records of the toy and of the images; where a read-only store lacks one, what to do about it, in words."""
    specs = plan(profile, seed=seed)
    found = records_for(specs, store or profile_named(profile).store)
    lacks = not_yet_run("wobbliness", profile, f"the toy and the images of seed {seed}", seed=seed)
    return [found.get(spec, lacks) for spec in specs] or [lacks, lacks]
