"""Explorers: a chapter's records in the reader's hands, in Jupyter and, with no kernel, in the static page.

An explorer holds class counts. Its script (``bslib/explorer``) computes W, statistics and pictures from them in the browser, so
papermill's saved copy of its state is all that a page needs.
"""

from __future__ import annotations

import html
import zlib
from collections.abc import Iterator, Sequence
from importlib.resources import files
from typing import TYPE_CHECKING, Any

import anywidget
import numpy as np
import traitlets
from numpy.typing import NDArray

from bslib.chapters.correlation import EXCLUDE_BELOW, Correlation
from bslib.chapters.parameters import ParameterResults
from bslib.chapters.patterns import (
    CONDITIONS,
    EFFECTIVE,
    Patterns,
    batch_of,
    cleanse_of,
    crafted_batch_of,
    universals_of,
)
from bslib.chapters.surface import CONDITIONS as SURFACE_CONDITIONS
from bslib.chapters.surface import Surface
from bslib.entropy import ESTIMATORS
from bslib.specs import CleanseSpec, CountsSpec, NetworkSpec, UniversalSpec

if TYPE_CHECKING:
    from IPython.display import Markdown

__all__ = ["Explorer", "correlation", "packed", "parameters", "patterns", "surface"]

Counts = NDArray[np.integer[Any]]
#: A batch: what is to be known of it, and its counts, shape (B, C).
Batch = tuple[dict[str, Any], Counts]
SCRIPTS = files("bslib") / "explorer"
#: Points in a batch of the detector that a reader may choose, next to all there are.
BATCH_SIZES = (5, 10, 25, 50, 100)


class Explorer(anywidget.AnyWidget):
    """A chapter's records with controls; the functions of this module make one.

    Attributes
    ----------
    chapter : str
        Which of the script's views this is.
    data : dict
        What the view needs beside counts: ``parts`` (one for each data set), ``notes`` and the settings of each batch of points.
    counts : bytes
        The batches' class counts, as :func:`packed` has them.
    """

    # One module: a page loads it as text, from which nothing can be imported.
    _esm = "\n".join((SCRIPTS / name).read_text("utf-8") for name in ("numbers.js", "page.js"))
    _css = (SCRIPTS / "page.css").read_text("utf-8")
    chapter = traitlets.Unicode().tag(sync=True)
    data = traitlets.Dict().tag(sync=True)
    counts = traitlets.Bytes().tag(sync=True)

    def _repr_mimebundle_(self, **kwargs: Any) -> tuple[dict[str, Any], dict[str, Any]] | None:
        """The widget, and words for those who read without scripts; ``_static/widgets.js`` puts the one in place of the other."""
        bundle = super()._repr_mimebundle_(**kwargs)
        if bundle is None:
            return None
        names = "; ".join(part["name"] for part in self.data["parts"])
        words = f"Controls for {names}. They need scripts; the figures above do not."
        mine = {
            "text/plain": words,
            "text/html": f'<div class="explorer-place" data-widget="{self.model_id}"><p>{html.escape(words)}</p></div>',
        }
        return bundle[0] | mine, bundle[1]


def parameters(*halves: ParameterResults) -> Explorer | Markdown:
    """W over the images of a batch by noise level, number of noisy copies and estimator.

    Parameters
    ----------
    *halves : ParameterResults
        Of :func:`bslib.chapters.parameters.load`.
    """
    there = [half for half in halves if half.runs]

    def batches() -> Iterator[Batch]:
        for part, half in enumerate(there):
            for network, (_, over_n, over_sigma) in enumerate(half.runs):
                for s, sigma in enumerate(half.size.n_sigmas):
                    for at, n in enumerate(half.size.ns):
                        yield {"part": part, "network": network, "sigma": sigma, "n": n}, over_n.arrays["counts"][s, at]
                for s, sigma in enumerate(half.size.sigmas):
                    if sigma not in half.size.n_sigmas:  # else it is one of those above: the same images, the same noise
                        settings = {"part": part, "network": network, "sigma": sigma, "n": half.size.n}
                        yield settings, over_sigma.arrays["counts"][s, 0]

    parts = [_about(half, half.source("sigma")) | {"sigma": half.size.n_sigmas[0], "n": half.size.n} for half in there]
    return _explorer("parameters", halves, parts, list(batches()))


def surface(*surfaces: Surface) -> Explorer | Markdown:
    """W with and without a trigger, image by image, by trigger, noise level and network.

    Parameters
    ----------
    *surfaces : Surface
        Of :func:`bslib.chapters.surface.load`.
    """
    there = [found for found in surfaces if found.runs]
    batches = [
        ({"part": part, "network": network, "kind": kind, "sigma": sigma, "n": found.size.n}, record.arrays["counts"][s, 0])
        for part, found in enumerate(there)
        for network, run in enumerate(found.runs)
        for kind, record in zip(SURFACE_CONDITIONS, run[-3:], strict=True)
        for s, sigma in enumerate(found.size.sigmas)
    ]
    parts = [
        _about(found, found.source)
        | {"sigma": _nearest(found.size.sigmas), "active": found.size.active, "inactive": found.size.inactive}
        for found in there
    ]
    return _explorer("surface", surfaces, parts, batches)


def correlation(*correlations: Correlation) -> Explorer | Markdown:
    """Success against mean W by noise level and rule of exclusion, with Kendall's tau and Pearson's r.

    A pair is a mean over hundreds of images: the means are sent, not the counts behind them.

    Parameters
    ----------
    *correlations : Correlation
        Of :func:`bslib.chapters.correlation.load`.
    """
    parts = []
    for found in correlations:
        if found.missing:
            continue
        pairs = found.pairs()
        means = [
            {"sigma": sigma, "n": n, "W": found.pairs(sigma, n=n)["W"].tolist()} for sigma in found.sigmas for n in found.size.ns
        ]
        columns = {name: pairs[name].tolist() for name in ("network", "trigger", "class", "success", "images")}
        parts.append(
            _about(found, found.source)
            | {"sigma": found.size.sigmas[0], "n": found.size.ns[-1], "below": EXCLUDE_BELOW, "pairs": columns, "means": means}
        )
    return _explorer("correlation", correlations, parts, [])


def patterns(*found: Patterns) -> Explorer | Markdown:
    """The ROC curve of Levene's score by what is to be found, size of the batch and noise level.

    Parameters
    ----------
    *found : Patterns
        Of :func:`bslib.chapters.patterns.load`.
    """
    there = [part for part in found if not part.missing]
    batches = [({"part": k} | settings, counts) for k, part in enumerate(there) for settings, counts in _detector_batches(part)]
    parts = [
        _about(part, part.source)
        | {
            "sigma": part.size.sigmas[0],
            "effective": EFFECTIVE,
            "points": [part.size.points, part.size.pattern_points],
            "batches": BATCH_SIZES,
            "triggers": part.size.triggers,
            "bounds": part.size.bounds,
        }
        for part in there
    ]
    return _explorer("patterns", found, parts, batches)


def _detector_batches(part: Patterns) -> Iterator[Batch]:
    """Every batch that the detector is asked about at the noise levels of the detector, and the clean ones."""
    for number, network in enumerate(part.networks):
        own = network.attack.trigger if network.attack else None
        success = part.success(network) if own else None
        for sigma in part.sigmas:
            about = {"network": number, "own": own, "success": success, "sigma": sigma, "n": part.size.n}
            for trigger in CONDITIONS:
                name = "clean" if trigger is None else "nothing" if trigger == 0 else "own" if trigger == own else "unseen"
                yield about | {"carried": name}, _counts(part, batch_of(part.size, network, trigger, sigma), sigma)
            yield from ((about | settings, counts) for settings, counts in _crafted_batches(part, network, sigma))


def _crafted_batches(part: Patterns, network: NetworkSpec, sigma: float) -> Iterator[Batch]:
    """The batches with crafted patterns of a network that are there; Neural Cleanse has one for each class."""
    if sigma not in part.size.pattern_sigmas:
        return
    every: list[UniversalSpec | CleanseSpec] = [*universals_of(part.size, network), cleanse_of(part.size, network)]
    for crafted in every:
        spec = crafted_batch_of(part.size, crafted, sigma)
        if crafted in part.records and spec in part.records:
            carried = f"universal {crafted.bound}" if isinstance(crafted, UniversalSpec) else "reversed"
            counts = _counts(part, spec, sigma)
            for own in counts.reshape(-1, part.size.pattern_points, counts.shape[-1]):
                yield {"carried": carried}, own


def _counts(part: Patterns, spec: CountsSpec, sigma: float) -> Counts:
    return part.records[spec].arrays["counts"][spec.sigmas.index(sigma), 0]


def _nearest(sigmas: Sequence[float]) -> float:
    """The noise level to begin with: the one nearest to 0.1."""
    return min(sigmas, key=lambda sigma: abs(sigma - 0.1))


def _about(found: ParameterResults | Surface | Correlation | Patterns, source: str) -> dict[str, Any]:
    return {"name": f"{found.size.dataset}, {found.size.network}", "source": source}


def _explorer(
    chapter: str,
    found: Sequence[ParameterResults | Surface | Correlation | Patterns],
    parts: list[dict[str, Any]],
    batches: list[Batch],
) -> Explorer | Markdown:
    """The explorer of what is there, with a note on what is not; the note alone where nothing is."""
    missing = [part.missing for part in found if part.missing]
    if not parts:
        from IPython.display import Markdown

        return Markdown("\n\n".join(missing))
    directory = [settings | {"points": len(counts)} for settings, counts in batches]
    notes = [note.replace("**", "").replace("`", "") for note in missing]
    data = {"parts": parts, "notes": notes, "batches": directory, "estimators": list(ESTIMATORS)}
    return Explorer(chapter=chapter, data=data, counts=packed([counts for _, counts in batches]))


def packed(batches: Sequence[Counts]) -> bytes:
    r"""Class counts as few bytes: W does not ask which class is which, and the number of noisy copies is known.

    Of each point the counts of all classes but the most frequent, those that are not 0, largest first: how many there are of
    them, one byte a point, then the counts themselves, two bytes each, low byte first; all of it deflated.

    Parameters
    ----------
    batches : sequence of ndarray of int, shape (B, C)

    Raises
    ------
    ValueError
        If a count needs more than two bytes.

    >>> zlib.decompress(packed([np.array([[0, 250, 0], [100, 20, 130]])]))
    b'\x00\x02d\x00\x14\x00'
    """
    ordered = [-np.sort(-np.asarray(counts), axis=-1)[:, 1:] for counts in batches]
    if any(rest.max(initial=0) >= 2**16 for rest in ordered):
        raise ValueError(f"a count of {max(int(rest.max(initial=0)) for rest in ordered)} does not fit into two bytes")
    lengths = [(rest > 0).sum(-1).astype(np.uint8).tobytes() for rest in ordered]
    values = [rest[rest > 0].astype("<u2").tobytes() for rest in ordered]
    return zlib.compress(b"".join(lengths + values), 9)
