"""The toy of Fig. 1, and a dozen test images."""

from __future__ import annotations

from dataclasses import dataclass

from bslib.chapters import sizes_of
from bslib.specs import ImagesSpec, Spec, ToySpec

__all__ = ["Size", "plan"]


@dataclass(frozen=True, kw_only=True)
class Size:
    """The data set of the images; the points of the plane at which W is measured, the noise level and the number of copies."""

    dataset: str
    points: tuple[tuple[float, float], ...] = ((-0.55, -0.65), (0.45, 0.2), (0.0, 0.0), (-0.5, 0.55))
    sigma: float = 0.12
    n: int = 250


def plan(profile: str, *, seed: int = 0) -> list[Spec]:
    """The toy of Fig. 1, and twelve test images.

    >>> [spec.kind for spec in plan("smoke")]
    ['toy', 'images']
    """
    specs: list[Spec] = []
    for size in sizes_of("wobbliness", profile)[:1]:
        toy = ToySpec(points=size.points, sigma=size.sigma, n=size.n, seed=seed)
        specs += [toy, ImagesSpec(dataset=size.dataset, images=12, seed=seed)]
    return specs
