"""The picture in the README shows today's records. ``python -m tests.test_readme`` draws it again."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

import matplotlib
import pandas as pd

from bslib.chapters.surface.figures import difference_to_clean
from bslib.chapters.surface.results import load
from bslib.render import flat

PICTURE = Path(__file__).parents[1] / "book" / "glance.svg"


def drawn_from(table: pd.DataFrame) -> str:
    text = flat(table).to_csv(index=False, float_format="%.4g")
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def test_the_picture_shows_the_records() -> None:
    first, *_ = load(profile="paper").values()
    found = re.search(r"table (\w{16})", PICTURE.read_text("utf-8"))
    assert found and found[1] == drawn_from(first.by_sigma()), "python -m tests.test_readme draws the picture again"


if __name__ == "__main__":
    first, *_ = load(profile="paper").values()
    matplotlib.rcParams["svg.hashsalt"] = "bslib"
    description = f"table {drawn_from(first.by_sigma())}"
    difference_to_clean(first).savefig(PICTURE, facecolor="white", metadata={"Description": description, "Date": None})
