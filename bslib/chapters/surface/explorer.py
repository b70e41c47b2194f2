"""The content of the surface explorer: W with and without a trigger, image by image."""

from __future__ import annotations

from collections.abc import Sequence

from bslib.chapters.base import Content
from bslib.chapters.beyond import nearest
from bslib.chapters.surface.plan import CONDITIONS
from bslib.chapters.surface.results import Surface

__all__ = ["content", "glance"]


def content(there: Sequence[Surface]) -> Content:
    """The settings of each data set, and the clean, active and inactive batches."""
    batches = [
        ({"part": k, "network": number, "kind": kind, "sigma": sigma, "n": part.size.n}, record.arrays["counts"][s, 0])
        for k, part in enumerate(there)
        for number, network in enumerate(part.networks)
        for kind, record in zip(CONDITIONS, part.counts(network), strict=True)
        for s, sigma in enumerate(part.size.sigmas)
    ]
    parts = [{"sigma": nearest(part.size.sigmas), "active": part.size.active, "inactive": part.size.inactive} for part in there]
    return parts, batches


def glance(there: Sequence[Surface]) -> Content:
    """Mean W with and without the active trigger, and the interval of the difference, for each data set; no batches."""
    parts = []
    for part in there:
        table = part.by_sigma()
        ends = {name: [getattr(estimate, name) for estimate in table["active minus clean"]] for name in ("low", "high")}
        series = table[["sigma", "clean", "active"]].assign(**ends).to_dict("records")
        about = {"name": part.size.dataset, "source": f"{len(part.networks)} networks, {part.size.points} test images each"}
        parts.append(about | {"sigma": nearest(part.size.sigmas), "series": series})
    return parts, []
