"""The content of the explorer "hide and seek": mean W without and with the trigger, by attack, number of covers and noise level.

Only the means of networks are sent to the page.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from bslib.chapters.base import Content
from bslib.chapters.beyond import nearest
from bslib.chapters.hiding.results import Hiding

__all__ = ["content"]


def content(there: Sequence[Hiding]) -> Content:
    """The networks of each data set; no batches."""
    return [{"sigma": nearest(part.size.sigmas), "means": _means(part)} for part in there], []


def _means(part: Hiding) -> list[dict[str, Any]]:
    """Success, and mean W without and with the trigger, of each network at each noise level."""
    return [
        {"attack": attack, "covers": covers, "network": network.seed, "success": part.success_of(network), "sigma": sigma}
        | {"without": float(without), "with": float(with_it)}
        for (attack, covers), networks in part.groups.items()
        for network in networks
        for sigma, without, with_it in zip(part.size.sigmas, *part.w_of(network).mean(-1), strict=True)
    ]
