"""The content of the patterns explorer: the ROC curve of Levene's score by positives and batch size."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from bslib.chapters.base import Batch, Content
from bslib.chapters.patterns.detector import working
from bslib.chapters.patterns.plan import CONDITIONS, batch_of, cleanse_of, crafted_batch_of, universals_of
from bslib.chapters.patterns.results import Patterns
from bslib.specs import CleanseSpec, CountsSpec, NetworkSpec, UniversalSpec

__all__ = ["content"]

#: The batch sizes that a reader can choose, beside the full one.
BATCH_SIZES = (5, 10, 25, 50, 100)


def content(there: Sequence[Patterns]) -> Content:
    """The settings of each data set, and the batches of the W detector."""
    batches = [({"part": k} | settings, counts) for k, part in enumerate(there) for settings, counts in _detector_batches(part)]
    parts = [
        {
            "sigma": part.size.sigmas[0],
            "working": working(part),
            "points": [part.size.points, part.size.pattern_points],
            "batches": BATCH_SIZES,
            "triggers": part.size.trained,
            "bounds": [*part.size.bounds, *part.size.more_bounds],
        }
        for part in there
    ]
    return parts, batches


def _detector_batches(part: Patterns) -> Iterator[Batch]:
    """The batches of the W detector, clean ones included, at the noise levels of crafted patterns: a page has a limit of 2 MB."""
    for number, network in enumerate(part.networks):
        own = network.attack.trigger if network.attack else None
        for sigma in (level for level in part.sigmas if level in part.size.pattern_sigmas):
            about = {"network": number, "own": own, "sigma": sigma, "n": part.size.n}
            for trigger in CONDITIONS:
                name = "clean" if trigger is None else "nothing" if trigger == 0 else "own" if trigger == own else "unseen"
                yield about | {"carried": name}, _counts(part, batch_of(part.size, network, trigger, sigma), sigma)
            yield from ((about | settings, counts) for settings, counts in _crafted_batches(part, network, sigma))


def _crafted_batches(part: Patterns, network: NetworkSpec, sigma: float) -> Iterator[Batch]:
    """The batches with crafted patterns of a network; Neural Cleanse has one for each class."""
    if sigma != part.size.sigmas[0]:  # the others would be a sixth of the page, which is large enough
        return
    every: list[UniversalSpec | CleanseSpec] = [*universals_of(part.size, network), cleanse_of(part.size, network)]
    for crafted in every:
        spec = crafted_batch_of(part.size, crafted, sigma)
        if crafted in part.records and spec in part.records:
            carried = f"universal {crafted.bound}" if isinstance(crafted, UniversalSpec) else "reversed"
            counts = _counts(part, spec, sigma)
            for own in counts.reshape(-1, part.size.pattern_points, counts.shape[-1]):
                yield {"carried": carried}, own


def _counts(part: Patterns, spec: CountsSpec, sigma: float) -> NDArray[np.integer]:
    return part.records[spec].arrays["counts"][spec.sigmas.index(sigma), 0]
