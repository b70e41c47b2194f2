"""The six triggers of the paper's Fig. 3 as drawings, and digests that tell when one is drawn anew.

The paper shows its patterns only as a picture. What its text fixes is the corner, the overwriting, that 3 is small and hard to
learn, and that 5 is a larger smiley. 1 is the pattern of Gu et al. (2019) to the pixel; the rest is our choice.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

__all__ = ["DRAWINGS", "PAPERS", "changed_digests", "digest"]

#: The patterns by their number in Fig. 3: # is white, a digit a grey (9 is white), . is black, a blank leaves the pixel as it is.
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
    # Gu et al.'s single pixel in a grey that is hard to learn: in white it is easy.
    3: (
        "4 ",
        "  ",
    ),
    # A grey square: bright patterns set off each other's backdoors, and the paper uses this one as inactive.
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
    # A patch of random greys, as Chen et al.'s random key.
    6: (
        "82506 ",
        "19374 ",
        "50918 ",
        "73062 ",
        "46581 ",
        "      ",
    ),
}  # fmt: skip

#: The digests of the drawings that records without digests were made with.
_FIRST: dict[int, str] = {
    1: "a88964d8cacd8cce",
    2: "da5b8e4c528881ce",
    3: "8e44d4461070ebe9",
    4: "48e864527d4ca7bc",
    5: "268631769c25cd5b",
    6: "cad73ee653a7fee8",
}


#: The paper's six triggers: what its chapters show and measure whatever other triggers there are.
PAPERS = tuple(_FIRST)


def digest(number: int) -> str:
    """Sixteen hexadecimal digits, a function of a drawing: with another drawing, records of the trigger have to be made anew.

    >>> digest(1) == digest(1) != digest(2)
    True
    """
    return hashlib.sha256("\n".join(DRAWINGS[number]).encode()).hexdigest()[:16]


def changed_digests(numbers: Iterable[int]) -> dict[str, str]:
    """The digests of those triggers that are not drawn as at first; this is what a record keeps of the triggers in it.

    >>> changed_digests([1, 5])
    {}
    """
    return {str(number): digest(number) for number in sorted(set(numbers)) if digest(number) != _FIRST.get(number)}
