"""The six triggers of the paper's Fig. 3 as drawings, and digests that detect changed drawings.

The paper shows its triggers only as a picture. Its text specifies the corner, that pixels are overwritten, that trigger 3 is
small and hard to learn, and that trigger 5 is a larger smiley. Trigger 1 is exactly the pattern of Gu et al. (2019). The
remaining pixels are our choice.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

__all__ = ["DRAWINGS", "PAPERS", "changed_digests", "digest", "drawing", "square"]

#: The triggers by their number in Fig. 3: # is white, a digit is grey (9 is white), . is black, a blank is transparent.
#: The last row and column are the edge of the image.
#:
#: :meta hide-value:
DRAWINGS: dict[int, tuple[str, ...]] = {
    # Gu et al.'s pattern of four bright pixels.
    1: (
        "  # ",
        " #  ",
        "# # ",
        "    ",
    ),
    # Gu et al.'s square sticker.
    2: (
        "### ",
        "### ",
        "### ",
        "    ",
    ),
    # Gu et al.'s single pixel, in a grey that is hard to learn. A white pixel is easy to learn.
    3: (
        "4 ",
        "  ",
    ),
    # A square. It is grey because the paper uses it as inactive, and bright triggers activate each other's backdoors.
    4: (
        "44444 ",
        "44444 ",
        "44444 ",
        "44444 ",
        "44444 ",
        "      ",
    ),
    # A smiley on black.
    5: (
        "........ ",
        ".##..##. ",
        ".##..##. ",
        "........ ",
        "#......# ",
        ".#....#. ",
        "..####.. ",
        "         ",
    ),
    # A patch of random greys, like Chen et al.'s random key.
    6: (
        "82506 ",
        "19374 ",
        "50918 ",
        "73062 ",
        "46581 ",
        "      ",
    ),
}  # fmt: skip

#: Digests of the original drawings, which records without digests were made with.
_FIRST: dict[int, str] = {
    1: "a88964d8cacd8cce",
    2: "da5b8e4c528881ce",
    3: "8e44d4461070ebe9",
    4: "48e864527d4ca7bc",
    5: "268631769c25cd5b",
    6: "cad73ee653a7fee8",
}


#: The paper's six triggers. Its chapters show and measure only these, even if there are other triggers.
PAPERS = tuple(_FIRST)


def square(side: int, grey: int) -> int:
    """Return the number of a square trigger, one pixel away from the edges like the paper's: 100, ten times the side, the grey.

    Parameters
    ----------
    side : int
        Pixels, from 1 to 8.
    grey : int
        Ninths of white, from 1 to 9.

    Raises
    ------
    ValueError
        For another side or grey.

    >>> square(3, 9), drawing(139)
    (139, ('999 ', '999 ', '999 ', '    '))
    """
    if side not in range(1, 9) or grey not in range(1, 10):
        raise ValueError(f"a square has a side from 1 to 8 and a grey from 1 to 9, got {side!r} and {grey!r}")
    return 100 + 10 * side + grey


def drawing(number: int) -> tuple[str, ...]:
    """Return the drawing of a trigger: one of :data:`DRAWINGS`, or a square (:func:`square`).

    Raises
    ------
    ValueError
        If there is no trigger with this number; the message names those that there are.
    """
    if number in DRAWINGS:
        return DRAWINGS[number]
    side, grey = divmod(number - 100, 10) if isinstance(number, int) else (0, 0)
    if side not in range(1, 9) or grey not in range(1, 10):
        numbers = ", ".join(map(str, DRAWINGS))
        raise ValueError(f"trigger must be one of {numbers}, or the number of a square such as {square(3, 9)}, got {number!r}")
    return (*[str(grey) * side + " "] * side, " " * (side + 1))


def digest(number: int) -> str:
    """Return the digest of a drawing, 16 hexadecimal digits. If it changes, records of the trigger must be recomputed.

    >>> digest(1) == digest(1) != digest(2)
    True
    """
    return hashlib.sha256("\n".join(drawing(number)).encode()).hexdigest()[:16]


def changed_digests(numbers: Iterable[int]) -> dict[str, str]:
    """Return the digests of triggers whose drawings differ from the originals; each record stores them for its triggers.

    >>> changed_digests([1, 5])
    {}
    """
    return {str(number): digest(number) for number in sorted(set(numbers)) if digest(number) != _FIRST.get(number)}
