"""The content of the Parameters explorer: W by noise level, number of copies and estimator."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from bslib.chapters.base import Batch, Content
from bslib.chapters.parameters.results import ParameterResults

__all__ = ["content"]


def content(there: Sequence[ParameterResults]) -> Content:
    """The settings of each data set, and the first images of both sweeps: all of them would make the page load slowly."""
    parts = [{"sigma": part.size.n_sigmas[0], "n": part.size.n, "source": part.source_of_batch} for part in there]
    return parts, [batch for k, part in enumerate(there) for batch in _batches(k, part)]


def _batches(k: int, part: ParameterResults) -> Iterator[Batch]:
    batch = part.size.batch
    for network, (_, over_n, over_sigma) in enumerate(part.runs):
        about = {"part": k, "network": network}
        for s, sigma in enumerate(part.size.n_sigmas):
            for at, n in enumerate(part.size.ns):
                yield about | {"sigma": sigma, "n": n}, over_n.arrays["counts"][s, at, :batch]
        for s, sigma in enumerate(part.size.sigmas):
            if sigma not in part.size.n_sigmas:  # the sweep over n has these
                yield about | {"sigma": sigma, "n": part.size.n}, over_sigma.arrays["counts"][s, 0, :batch]
