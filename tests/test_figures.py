"""Figures and results of every profile: where their numbers come from, and words where there are none."""

from __future__ import annotations

import dataclasses
from importlib import import_module

import matplotlib
import pytest
from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from test_parameters import OVER_N, OVER_SIGMA, in_bits
from test_parameters import SIZE as SWEEPS
from test_surface import BITS, SIZE, results_of, split, surface

from bslib.chapters import sizes_of
from bslib.chapters.parameters import figures as parameters
from bslib.chapters.surface import figures as surfaces
from bslib.profiles import PROFILES
from bslib.store import Records, Store

matplotlib.use("agg")
MODULES = {"parameters": parameters, "surface": surfaces}


@pytest.mark.parametrize("which", [0, 1])
@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize("chapter", MODULES)
def test_figures_draw_every_profile_and_name_data_set_networks_and_profile(made_up_half, chapter, profile, which):
    size = dataclasses.replace(sizes_of(chapter, profile)[which], points=16, **({"batch": 4} if chapter == "surface" else {}))
    part = surface(size, profile, networks=1) if chapter == "surface" else made_up_half(size, profile, networks=1)
    for draw in MODULES[chapter].FIGURES:
        figure = draw(part)
        assert isinstance(figure, Figure), draw.__name__
        figure.draw_without_rendering()
        said = figure.get_supxlabel()
        key = part.networks[0].key[:6]
        if draw is surfaces.clean_and_triggered:  # one network's batches, and it says so
            assert said == f"made up {size.dataset}; one network, four batches of 4 images; profile {profile}; network {key}"
            continue
        assert said == part.source and f"made up {size.dataset}; 1 of {size.networks} networks, 16 test images each" in said
        assert f"profile {profile}; networks {key}" in said
    assert plt.get_fignums() == [], "a figure that pyplot holds is shown twice in a notebook"


@pytest.mark.parametrize(("chapter", "words"), [("parameters", ""), ("surface", "backdoored ")])
def test_what_is_missing_is_said_in_words_that_name_command_data_set_and_networks(chapter, words, tmp_path):
    module, command = (
        import_module(f"bslib.chapters.{chapter}.results"),
        f"`bslib run {chapter} --profile paper --store book/records",
    )
    for seed, more in ((0, ""), (4, " --seed 4")):
        found = module.load(profile="paper", seed=seed, store=Store(tmp_path, writable=False))
        assert list(found) == ["fashion-mnist", "cifar10"] and not module.quantities(found)
        for part in found.values():
            assert part.missing.startswith("**Not yet run.**") and f"{command}{more}`" in part.missing
            assert f"{part.size.networks} {words}networks ({part.size.network}) on {part.size.dataset}" in part.missing
            drawn = [draw(part) for draw in MODULES[chapter].FIGURES]
            assert {(type(said).__name__, said.data) for said in drawn} == {("Markdown", part.missing)}
    if chapter == "surface":
        said = surfaces.patterns(part).data
        assert part.pictures is None and "No pictures of cifar10" in said and f"{command}`" in said


@pytest.mark.parametrize("part", [in_bits(SWEEPS, OVER_N, OVER_SIGMA), results_of(SIZE, split(BITS, 8))], ids=MODULES)
def test_a_network_that_lacks_a_record_does_not_count(part):
    keys = [network.key[:6] for network in part.planned()]
    assert len(part.runs) == 3 and part.source.endswith(f"networks {keys[0]} to {keys[2]}")
    for spec in part.needed(part.planned()[1]):
        less = dataclasses.replace(part, records=Records({s: r for s, r in part.records.items() if s != spec}))
        assert [network.seed for network in less.networks] == [run[0].spec.seed for run in less.runs] == [0, 2]
        assert less.missing is None and "2 of 3 networks, 4 test images each" in less.source
        assert "holds 2 of them measured" in less.not_yet_run() and {e.repeats for e in less.quantities().values()} == {2}
    assert [network.seed for network in dataclasses.replace(part, seed=2).networks] == [2]
