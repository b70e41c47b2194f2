"""Tables in Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

__all__ = ["markdown_table"]


def markdown_table(head: Sequence[str], rows: Iterable[Sequence[object]], *, empty: str = "(Not yet run.)") -> str:
    """A table with one line for each row, or ``empty`` when there are no rows.

    >>> print(markdown_table(["sigma", "W"], [(0.1, "0.25")]))
    | sigma | W |
    |---|---|
    | 0.1 | 0.25 |
    """
    lines = [f"| {' | '.join(map(str, cells))} |" for cells in (head, *rows)]
    return "\n".join([lines[0], "|---" * len(head) + "|", *lines[1:]]) if len(lines) > 1 else empty
