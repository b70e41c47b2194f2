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
    """With the disc that it draws, and with a picture of one's own."""
    Image.new("RGBA", (20, 20), (0, 255, 0, 200)).save(tmp_path / "sticker.png")
    for arguments in ([], [str(tmp_path / "sticker.png")]):
        monkeypatch.setattr(sys, "argv", ["own_trigger.py", *arguments])
        runpy.run_path(str(EXAMPLES / "own_trigger.py"))["main"]()
        success = re.search(r"success of the trigger ([\d.]+)%", capsys.readouterr().out)
        assert float(success.group(1)) > 90
