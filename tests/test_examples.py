"""The examples run, and show what they say."""

import re
import runpy
import sys
from pathlib import Path

import numpy as np
from PIL import Image

EXAMPLES = Path(__file__).parents[1] / "examples"


def test_own_network(capsys):
    without, with_corner = runpy.run_path(str(EXAMPLES / "own_network.py"))["main"]()
    assert without.shape == with_corner.shape == (3, 50)
    assert (np.diff(without.mean(1)) > 0).all() and not np.array_equal(without, with_corner)
    assert capsys.readouterr().out.count("mean W") == 3


def test_own_trigger(capsys, monkeypatch, tmp_path):
    """With the disc that it draws; a picture of one's own becomes a trigger in the same way."""
    example = runpy.run_path(str(EXAMPLES / "own_trigger.py"))
    monkeypatch.setattr(sys, "argv", ["own_trigger.py"])
    example["main"]()
    success = re.search(r"success of the trigger ([\d.]+)%", capsys.readouterr().out)
    assert float(success.group(1)) > 90
    Image.new("RGBA", (20, 20), (0, 255, 0, 51)).save(tmp_path / "sticker.png")
    green = example["sticker"](str(tmp_path / "sticker.png"))
    assert green.mask.shape == (10, 10) and np.allclose(green.mask, 0.2) and green.values[:, 0, 0].tolist() == [0, 1, 0]
