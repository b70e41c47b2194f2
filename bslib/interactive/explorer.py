"""Explorers: interactive views of a chapter's records, in Jupyter and, without a kernel, in the static page.

An explorer holds class counts. Its script, in ``js``, computes W, statistics and figures from them in the browser, so a page
needs only the widget state that papermill saves.
"""

from __future__ import annotations

import html
import zlib
from collections.abc import Mapping, Sequence
from importlib import import_module
from importlib.resources import files
from typing import Any

import anywidget
import numpy as np
import traitlets
from IPython.display import Markdown
from numpy.typing import NDArray

from bslib.chapters.base import Results
from bslib.entropy import ESTIMATORS

__all__ = ["Explorer", "explorer", "packed"]

SCRIPTS = files("bslib.interactive") / "js"


class Explorer(anywidget.AnyWidget):
    """A widget that shows a chapter's records with controls; created by :func:`explorer`.

    Attributes
    ----------
    chapter : str
        Name of the script's view.
    data : dict
        Other data of the view: ``parts`` (one for each data set), ``notes`` and the settings of each batch of points.
    counts : bytes
        Class counts of the batches, as returned by :func:`packed`.
    """

    # One module, because a page loads it as text, which cannot import other modules.
    _esm = "\n".join((SCRIPTS / name).read_text("utf-8") for name in ("numbers.js", "page.js"))
    _css = (SCRIPTS / "page.css").read_text("utf-8")
    chapter = traitlets.Unicode().tag(sync=True)
    data = traitlets.Dict().tag(sync=True)
    counts = traitlets.Bytes().tag(sync=True)

    def _repr_mimebundle_(self, **kwargs: Any) -> tuple[dict[str, Any], dict[str, Any]] | None:
        """Return the widget and a fallback text for readers without scripts, which ``_static/widgets.js`` replaces."""
        bundle = super()._repr_mimebundle_(**kwargs)
        if bundle is None:
            return None
        names = "; ".join(part["name"] for part in self.data["parts"])
        words = f"Controls for {names}. They need scripts; the figures do not."
        place = f'<div class="explorer-place" data-widget="{self.model_id}"><p>{html.escape(words)}</p></div>'
        return bundle[0] | {"text/plain": words, "text/html": place}, bundle[1]


def explorer(chapter: str, results: Mapping[str, Results[Any]], *, view: str = "") -> Explorer | Markdown:
    """Return an explorer of the existing results, with notes on missing ones; only the notes if there are no results.

    Parameters
    ----------
    chapter : str
        A chapter that has a module ``explorer``.
    results : mapping of str to Results
        As returned by the chapter's ``load``.
    view : str
        A view of the script beside the chapter's own, and the function of that module that gives its content.
    """
    missing = [part.missing for part in results.values() if part.missing]
    there = [part for part in results.values() if not part.missing]
    if not there:
        return Markdown("\n\n".join(map(str, missing)))
    settings, batches = getattr(import_module(f"bslib.chapters.{chapter}.explorer"), view or "content")(there)
    data = {
        "parts": [
            {"name": f"{part.size.dataset}, {part.size.network}", "source": part.source} | own
            for part, own in zip(there, settings, strict=True)
        ],
        "notes": [note.replace("**", "").replace("`", "") for note in missing],
        "batches": [about | {"points": len(counts)} for about, counts in batches],
        "estimators": list(ESTIMATORS),
    }
    return Explorer(chapter=view or chapter, data=data, counts=packed([counts for _, counts in batches]))


def packed(batches: Sequence[NDArray[np.integer[Any]]]) -> bytes:
    r"""Compress class counts, using that W does not depend on the order of classes and the number of noisy copies is known.

    For each point, the largest count and all zeros are dropped, and the others are sorted in descending order. The data begin
    with the number of remaining counts of each point of all batches, one byte each. The lower bytes of all counts follow, then
    their upper bytes, most of which are 0. Everything is compressed with zlib.

    Parameters
    ----------
    batches : sequence of ndarray of int, shape (B, C)

    Raises
    ------
    ValueError
        If a count needs more than two bytes.

    >>> zlib.decompress(packed([np.array([[0, 250, 0], [100, 20, 130]])]))
    b'\x00\x02d\x14\x00\x00'
    """
    ordered = [-np.sort(-np.asarray(counts), axis=-1)[:, 1:] for counts in batches]
    if any(rest.max(initial=0) >= 2**16 for rest in ordered):
        raise ValueError(f"a count of {max(int(rest.max(initial=0)) for rest in ordered)} does not fit into two bytes")
    lengths = [(rest > 0).sum(-1).astype(np.uint8).tobytes() for rest in ordered]
    values = np.concatenate([np.zeros(0, int), *(rest[rest > 0] for rest in ordered)])
    halves = [(values % 256).astype(np.uint8).tobytes(), (values // 256).astype(np.uint8).tobytes()]
    return zlib.compress(b"".join(lengths + halves), 9)
