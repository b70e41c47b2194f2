"""Tables in Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

__all__ = ["markdown_table", "range_text"]


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


def range_text(values: Iterable[float], form: str = ".1f") -> str:
    """The lowest and the highest value; one of them if both read the same, and nothing if there are no values.

    >>> range_text([0.91, 0.5], ".0%"), range_text([2, 2])
    ('50% to 91%', '2.0')
    """
    ordered = sorted(values)
    return " to ".join(dict.fromkeys(format(end, form) for end in ordered[:1] + ordered[-1:]))
