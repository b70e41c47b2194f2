"""Explorers: a chapter's records in the reader's hands, in Jupyter and, with no kernel, in the static page.

An explorer holds class counts. Its script, in ``js``, computes W, statistics and pictures from them in the browser, so a page
needs only the state that papermill saves.
"""

from __future__ import annotations

import html
import zlib
from collections.abc import Mapping, Sequence
from importlib import import_module
from importlib.resources import files
from typing import TYPE_CHECKING, Any

import anywidget
import numpy as np
import traitlets
from numpy.typing import NDArray

from bslib.chapters.base import Results
from bslib.entropy import ESTIMATORS

if TYPE_CHECKING:
    from IPython.display import Markdown

__all__ = ["Explorer", "explorer", "packed"]

SCRIPTS = files("bslib.interactive") / "js"


class Explorer(anywidget.AnyWidget):
    """A chapter's records with controls; :func:`explorer` makes one.

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


def explorer(chapter: str, results: Mapping[str, Results[Any]]) -> Explorer | Markdown:
    """The explorer of what is there, with a note on what is not; the note alone where nothing is.

    Parameters
    ----------
    chapter : str
        One that has a module ``explorer``.
    results : mapping of str to Results
        As the chapter's ``load`` gives them.
    """
    missing = [part.missing for part in results.values() if part.missing]
    there = [part for part in results.values() if not part.missing]
    if not there:
        from IPython.display import Markdown

        return Markdown("\n\n".join(map(str, missing)))
    settings, batches = import_module(f"bslib.chapters.{chapter}.explorer").content(there)
    names = [{"name": f"{part.size.dataset}, {part.size.network}", "source": part.source} for part in there]
    data = {
        "parts": [about | own for about, own in zip(names, settings, strict=True)],
        "notes": [note.replace("**", "").replace("`", "") for note in missing],
        "batches": [about | {"points": len(counts)} for about, counts in batches],
        "estimators": list(ESTIMATORS),
    }
    return Explorer(chapter=chapter, data=data, counts=packed([counts for _, counts in batches]))


def packed(batches: Sequence[NDArray[np.integer[Any]]]) -> bytes:
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
