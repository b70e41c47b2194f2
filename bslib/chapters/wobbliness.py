"""The page on the measure W: Fig. 1 on a toy in the plane, and a few of the images that the book speaks of."""

from __future__ import annotations

from pathlib import Path

from bslib.profiles import profile_named
from bslib.specs import ImagesSpec, Spec, ToySpec
from bslib.store import Record, Store, records_for

__all__ = ["plan", "records"]


def plan(profile: str, *, seed: int = 0) -> list[Spec]:
    """The toy, and a dozen test images of the profile's first data set.

    >>> [spec.kind for spec in plan("smoke")]
    ['toy', 'images']
    """
    size = profile_named(profile)
    toy = ToySpec(points=size.toy.points, sigma=size.toy.sigma, n=size.toy.n, seed=seed)
    return [toy, ImagesSpec(dataset=size.parameters[0].dataset, images=12, seed=seed)]


def records(*, profile: str, seed: int = 0, store: str | Path | Store | None = None) -> tuple[Record, Record]:
    """The records of the toy and of the images.

    Raises
    ------
    KeyError
        Where a read-only store lacks one.
    """
    specs = plan(profile, seed=seed)
    found = records_for(specs, store or profile_named(profile).store)
    toy, images = (found[spec] for spec in specs)
    return toy, images
