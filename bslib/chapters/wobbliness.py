"""The page on the measure W: Fig. 1 on a toy in the plane, and a few of the images that the book speaks of."""

from __future__ import annotations

from pathlib import Path

from bslib.chapters import not_yet_run, records_for
from bslib.profiles import profile_named
from bslib.specs import ImagesSpec, Spec, ToySpec
from bslib.store import Record, Store

__all__ = ["plan", "records"]


def plan(profile: str, *, seed: int = 0) -> list[Spec]:
    """The toy, and a dozen test images of the profile's first data set.

    >>> [spec.kind for spec in plan("smoke")]
    ['toy', 'images']
    """
    size = profile_named(profile)
    toy = ToySpec(points=size.toy.points, sigma=size.toy.sigma, n=size.toy.n, seed=seed)
    return [toy, ImagesSpec(dataset=size.parameters[0].dataset, images=12, seed=seed)]


def records(*, profile: str, seed: int = 0, store: str | Path | Store | None = None) -> list[Record | str]:
    """The records of the toy and of the images; where a read-only store lacks one, what to do about it, in words."""
    specs = plan(profile, seed=seed)
    found = records_for(specs, store or profile_named(profile).store)
    lacks = not_yet_run("wobbliness", profile, f"the toy and the images of seed {seed}", seed=seed)
    return [found.get(spec, lacks) for spec in specs]
