"""Tables in Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

__all__ = ["markdown_table"]


def markdown_table(
    head: Sequence[str], rows: Iterable[Sequence[object]], *, empty: str = "(Not yet run.)", right: bool = False
) -> str:
    """A table with one line for each row, or ``empty`` when there are no rows; ``right`` aligns all columns but the first.

    >>> print(markdown_table(["sigma", "W"], [(0.1, "0.25")]))
    | sigma | W |
    |---|---|
    | 0.1 | 0.25 |
    """
    lines = [f"| {' | '.join(map(str, cells))} |" for cells in (head, *rows)]
    ruler = "|---" + ("|--:" if right else "|---") * (len(head) - 1) + "|"
    return "\n".join([lines[0], ruler, *lines[1:]]) if len(lines) > 1 else empty
