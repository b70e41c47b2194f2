"""The examples run, and show what they say."""

import runpy
from pathlib import Path

import numpy as np

EXAMPLES = Path(__file__).parents[1] / "examples"


def test_own_network(capsys):
    without, with_corner = runpy.run_path(str(EXAMPLES / "own_network.py"))["main"]()
    assert without.shape == with_corner.shape == (3, 50)
    assert (np.diff(without.mean(1)) > 0).all() and not np.array_equal(without, with_corner)
    assert capsys.readouterr().out.count("mean W") == 3
