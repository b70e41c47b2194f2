"""The content of the origin explorer: the phase diagram by number of poisons and noise level. Only means are sent to the page."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from bslib.chapters.base import Content
from bslib.chapters.beyond import nearest
from bslib.chapters.origin.results import Origin

__all__ = ["content"]


def content(there: Sequence[Origin]) -> Content:
    """The cells of each data set; no batches."""
    return [_plane(origin) for origin in there], []


def _plane(origin: Origin) -> dict[str, Any]:
    size, plane = origin.size, origin.plane
    cells = plane.cells.rename(columns={"clean W": "clean"}).drop(columns=["networks", "change"])
    return {
        "source": plane.missing or plane.source,
        "sigma": nearest(size.cell_sigmas),
        "sigmas": size.cell_sigmas,
        "poisons": [count for count in size.poisons if count in set(cells["poisons"])],
        "sides": size.sides,
        "greys": [grey / 9 for grey in size.greys],
        "cells": cells.to_dict("records"),
    }
