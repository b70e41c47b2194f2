"""The content of the correlation explorer: success against mean W by noise level and exclusion rule.

A pair is a mean over hundreds of images, so only means are sent to the page.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from bslib.chapters.base import Content
from bslib.chapters.correlation.results import Correlation

__all__ = ["content"]


def content(there: Sequence[Correlation]) -> Content:
    """The pairs of each data set; no batches."""
    return [_pairs(part) for part in there], []


def _pairs(part: Correlation) -> dict[str, Any]:
    pairs = part.pairs()
    means = [{"sigma": sigma, "n": n, "W": part.pairs(sigma, n=n)["W"].tolist()} for sigma in part.sigmas for n in part.size.ns]
    columns = {name: pairs[name].tolist() for name in ("network", "trigger", "class", "success")}
    return {
        "sigma": part.size.sigmas[0], "n": part.size.ns[-1], "below": part.rules, "pairs": columns, "means": means
    }  # fmt: skip
