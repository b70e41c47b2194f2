"""Tables of boxes against matplotlib and numpy, what is drawn from them, and downloads that hold what is drawn."""

from __future__ import annotations

import base64
import dataclasses
import io
import re
import sys
import types
from importlib import import_module

import IPython.display
import matplotlib
import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from matplotlib import pyplot as plt
from matplotlib.cbook import boxplot_stats
from matplotlib.figure import Figure
from scipy import stats
from test_parameters import OVER_N, OVER_SIGMA, SIZE, in_bits
from test_surface import FASHION, surface

from bslib.chapters import plan_of, sizes_of
from bslib.chapters.parameters.figures import FIGURES, estimator_bias, w_against_n, w_against_sigma
from bslib.chapters.parameters.results import ParameterResults
from bslib.chapters.surface.figures import clean_and_triggered, difference_to_clean, paired, patterns
from bslib.chapters.surface.plan import pictures_of
from bslib.chapters.wobbliness.figures import toy
from bslib.chapters.wobbliness.results import records
from bslib.datasets import DATASETS, Source, dataset_of
from bslib.interactive.explorer import explorer
from bslib.plotting import (
    box_table,
    boxes,
    drawn_from,
    finish,
    images,
    panels,
    points_with_intervals,
    reach,
    scatter_pairs,
    short_labels,
)
from bslib.render import downloads, flat, further
from bslib.runner import run
from bslib.specs import ImagesSpec, ToySpec
from bslib.statistics import Estimate
from bslib.store import Record, Records, Store
from bslib.triggers import PATTERNS

matplotlib.use("agg")
VALUES = np.array([[0.0, 0.1, 0.2, 0.3, 9.0], [0.1, 0.2, 0.3, 0.4, 0.5]])
#: A value whose interval lies beside it, and one inside.
ESTIMATES = [Estimate(0.5, 0.6, 0.9, 3), Estimate(0.5, 0.375, 1.0, 3)]


def quantities_of(table: pd.DataFrame) -> dict[str, list[float]]:
    return table.groupby("quantity")["value"].apply(list).to_dict()


@given(arrays(float, st.tuples(st.integers(1, 3), st.integers(1, 9)), elements=st.floats(0, 2.3)))
def test_a_box_has_matplotlibs_whiskers_and_outliers_and_numpys_quartiles(w):
    found, box = quantities_of(box_table([({"n": 10}, w)])), boxplot_stats(w.ravel(), whis=1.5)[0]
    first, median, third = np.percentile(w, [25, 50, 75])
    for name, value in {
        "first quartile": first, "median": median, "third quartile": third, "mean": np.mean(w),
        "lower whisker": box["whislo"], "upper whisker": box["whishi"],
    }.items():  # fmt: skip
        assert found.pop(name) == pytest.approx([value], abs=1e-12), name
    assert found.pop("outlier", []) == box["fliers"].tolist()
    assert found.pop("mean of a network", []) == pytest.approx([row.mean() for row in w] if len(w) > 1 else [])
    assert not found


def test_a_table_of_boxes_keeps_the_settings_of_each():
    table = box_table([({"sigma": 0.1, "n": 5}, VALUES), ({"sigma": 0.25, "n": 5}, VALUES + 1)])
    assert list(table.columns) == ["sigma", "n", "quantity", "value"] and list(table["sigma"].unique()) == [0.1, 0.25]
    assert table[table["quantity"] == "outlier"]["value"].to_list() == [9, 10]


def test_boxes_draw_the_lines_that_matplotlib_draws_from_the_values_and_the_means_of_networks():
    ours, theirs = Figure().subplots(), Figure().subplots()
    boxes(ours, box_table([({"n": 9}, VALUES), ({"n": 5}, VALUES[:, ::2])]), "n", places=[1, 3])
    theirs.boxplot([VALUES.ravel(), VALUES[:, ::2].ravel()], positions=[1, 3], widths=0.6, showmeans=True, patch_artist=True)

    def lines(axis, of_networks: bool):
        return sorted(line.get_xydata().ravel().tolist() for line in axis.lines if (line.get_marker() == "_") == of_networks)

    for one, other in zip(lines(ours, False), lines(theirs, False), strict=True):
        assert one == pytest.approx(other)
    for one, other in zip(ours.patches, theirs.patches, strict=True):
        assert np.allclose(one.get_path().vertices, other.get_path().vertices)
    means = [[3.38, VALUES[0, ::2].mean(), 3.38, 0.3], [1.38, VALUES[0].mean(), 1.38, 0.3]]
    assert np.allclose(lines(ours, True), sorted(means))
    with pytest.raises(ValueError):
        boxes(ours, box_table([({"n": 9}, VALUES)]), "n", places=[1, 3])


def test_an_interval_beside_its_value_ends_at_it():
    assert reach(ESTIMATES) == pytest.approx(np.array([[0, 0.125], [0.4, 0.5]]))
    axis = Figure().subplots()
    points_with_intervals(axis, [1, 2], ESTIMATES, "red", "o", "AUC")
    points_with_intervals(axis, [], [], "red", "o", "none")
    [bars] = axis.containers
    assert np.allclose(bars[2][0].get_segments(), [[(1, 0.5), (1, 0.9)], [(2, 0.375), (2, 1)]])
    assert np.allclose(bars[0].get_xydata(), [(1, 0.5), (2, 0.5)]) and bars.get_label() == "AUC"


def test_pairs_are_scattered_by_trigger_and_hollow_ones_are_hollow():
    axis = Figure().subplots()
    pairs = pd.DataFrame({"trigger": [7, 1, 7, 7], "success": [0.1, 0.2, 0.3, 0.4], "W": [1.0, 2.0, 3.0, 4.0]})
    scatter_pairs(axis, pairs, "success", "W", hollow=pairs["success"] > 0.35)
    drawn = [dots.get_offsets().tolist() for dots in axis.collections]
    assert drawn == [[[0.2, 2]], [], [[0.1, 1], [0.3, 3]], [[0.4, 4]]] and not axis.collections[3].get_facecolor().size
    assert [text.get_text() for text in axis.legend().get_texts()] == ["trigger 1", "trigger 7"]


def test_numbers_below_one_have_short_labels():
    assert short_labels([0.005, 0.5, 1.0, 0.0, 10]) == [".005", ".5", "1", "0", "10"]


def test_panels_share_their_y_axis_and_a_finished_figure_has_its_source_and_is_not_pyplots():
    figure, axes = panels(2)
    assert len(axes) == 2 and axes[0].get_shared_y_axes().joined(*axes) and len(panels(1)[1]) == 1
    plt.close("all")
    figure, axes = panels(2)
    assert finish(figure, axes, "costs $5, not $6") is figure and plt.get_fignums() == []
    [source] = figure.findobj(lambda artist: getattr(artist, "get_text", str)() == "costs $5, not $6")
    assert not source.get_parse_math() and [axis.get_ylabel() for axis in axes] == [r"$W_\sigma$ (nats)", ""]


@pytest.mark.parametrize(("count", "channels"), [(12, 1), (5, 3), (1, 3)])
def test_images_show_each_picture_with_the_name_of_its_class(count, channels):
    pictures = np.random.default_rng(0).integers(0, 256, (count, channels, 8, 8)).astype(np.uint8)
    spec, found = ImagesSpec(dataset="digits", images=count, seed=0), {"images": pictures, "labels": np.arange(count) % 3}
    figure = images(Record(spec, {"classes": ["coat", "bag", "boot"]}, found, {"source": "digits"}))
    shown = [axis for axis in figure.axes if axis.images]
    assert [axis.get_title() for axis in shown] == [["coat", "bag", "boot"][k % 3] for k in range(count)]
    for axis, picture in zip(shown, pictures, strict=True):
        assert np.array_equal(np.squeeze(axis.images[0].get_array()), np.squeeze(picture.transpose(1, 2, 0)))
    assert figure.get_supxlabel() == f"digits; record {spec.key[:6]}" and images("not here").data == "not here"


# --- what is drawn beside tables -----------------------------------------------------------------------------------


def test_an_empty_table_is_words_and_a_figure_is_drawn_from_its_table():
    part, drawn = surface(networks=1), []
    figure = drawn_from(lambda results: pd.DataFrame({"W": [1.0]}))(lambda results, table: drawn.append(table) or Figure())
    assert isinstance(figure(part), Figure) and [table["W"].to_list() for table in drawn] == [[1.0]]
    nothing = drawn_from(lambda results: pd.DataFrame())(lambda results, table: drawn.append(table) or Figure())
    assert nothing(part).data == part.not_yet_run() and len(drawn) == 1 and paired.__name__ == "paired"


def test_the_patterns_are_shown_whole_and_below_it_the_corner_that_they_are_in():
    before = torch.randint(20, 230, (6, 1, 28, 28), generator=torch.manual_seed(0)).to(torch.uint8)
    stamped = torch.stack([trigger(image) for trigger, image in zip(PATTERNS.values(), before, strict=True)]).numpy()
    record = Record(pictures_of(FASHION, 0), {}, {"stamped": stamped}, {"source": "made up pictures"})
    figure = patterns(dataclasses.replace(surface(networks=0), records=Records({record.spec: record})))
    assert [axis.get_title() for axis in figure.axes[:6]] == [f"trigger {k}" for k in range(1, 7)]
    for picture, clean, whole, corner in zip(stamped[:, 0], before[:, 0].numpy(), figure.axes[:6], figure.axes[6:], strict=True):
        assert np.array_equal(np.squeeze(whole.images[0].get_array()), picture)
        assert np.array_equal(np.squeeze(corner.images[0].get_array()), picture[-11:, -11:])
        assert (picture != clean).sum() == (picture != clean)[-11:, -11:].sum() > 0
    assert figure.get_supxlabel() == f"made up pictures; record {record.spec.key[:6]}"


def test_the_toy_shows_its_points_their_noise_and_w():
    rng, points = np.random.default_rng(0), ((-0.5, -0.6), (0.4, 0.2), (0.0, 0.0), (-0.5, 0.5))
    counts, grid = np.array([[[50, 0, 0], [25, 25, 0], [20, 20, 10], [49, 1, 0]]]), rng.integers(0, 3, (201, 201))
    found = {
        "train": rng.uniform(-1, 1, (30, 2)),
        "train_labels": np.arange(30) % 3,
        "poisoned": np.arange(30) == 8,
        "grid": grid,
    }
    found |= {"points": np.array(points), "noisy": rng.normal(size=(4, 50, 2)), "counts": counts}
    record = Record(ToySpec(points=points, sigma=0.1, n=50, seed=0), {}, found)
    plane, *bars = toy(record).axes
    for panel, own in zip(bars, counts[0], strict=True):
        assert [bar.get_width() for bar in panel.patches] == pytest.approx(own / 50)
        assert panel.get_title(loc="right") == f"W = {stats.entropy(own):.2f}"
    assert {text.get_text(): text.xy for text in plane.texts} == dict(zip("ABCD", map(pytest.approx, points), strict=True))
    assert sum(len(dots.get_offsets()) for dots in plane.collections) == 30 + 4 * 50, "every training point and noisy copy once"
    assert np.array_equal(plane.images[0].get_array(), grid) and plane.images[0].origin == "lower"


def test_a_seed_that_the_published_records_lack_is_said_in_words():
    """So that a book of other seeds is a book that says what is missing, not an error."""
    for said, draw in zip(records(profile="paper", seed=3, store="published"), (toy, images), strict=True):
        assert draw(said).data == said and said.startswith("**Not yet run.**")
        assert "`bslib run wobbliness --profile paper --store book/records --seed 3`" in said
    assert [type(record) for record in records(profile="paper", store="published")] == [Record, Record]


def test_records_that_a_store_of_ones_own_lacks_are_computed(tmp_path):
    assert [type(record) for record in records(profile="smoke", store=str(tmp_path / "my-records"))] == [Record, Record]
    assert sorted(path.parent.name for path in (tmp_path / "my-records").glob("*/*.json")) == ["images", "toy"]


def test_a_figure_is_the_same_twice(tmp_path):
    for k in range(2):
        FIGURES[0](in_bits(SIZE, OVER_N, OVER_SIGMA)).savefig(tmp_path / f"{k}.svg", metadata={"Date": None})
    first, second = ((tmp_path / f"{k}.svg").read_text() for k in range(2))
    assert first.count("<path") == second.count("<path") > 50


def test_what_is_drawn_is_the_table_and_panels_are_named_for_what_they_show(made_up_half):
    size = dataclasses.replace(sizes_of("parameters", "paper")[0], points=20)
    half, part = made_up_half(size, networks=1), surface(networks=1)
    titles = {
        w_against_n: [r"$\sigma$ = 0.1", r"$\sigma$ = 0.25"], w_against_sigma: ["n = 250"],
        estimator_bias: [r"no rare class, $\sigma$ = 0.25", r"with a rare class, $\sigma$ = 0.25"],
        clean_and_triggered: ["active trigger", "inactive trigger"],
        paired: [r"$\sigma$ = 0.1", r"$\sigma$ = 0.5"],
    }  # fmt: skip
    axes = {draw: draw(half if draw in FIGURES else part).axes for draw in titles}
    assert {draw: [axis.get_title() for axis in own] for draw, own in axes.items()} == titles
    for axis, (_, own) in zip(axes[paired], paired.table(part).groupby("sigma"), strict=True):
        assert np.allclose(axis.collections[0].get_offsets(), own[["W clean", "W with the trigger"]])
    (left, right), by_sigma = difference_to_clean(part).axes, part.by_sigma()
    means = {line.get_label(): line.get_ydata() for line in left.lines}
    lines = {"without a trigger": "clean", "active trigger": "active", "inactive trigger": "inactive"}
    assert all(np.allclose(means[name], by_sigma[kind]) for name, kind in lines.items())
    for bars in right.containers:
        assert np.allclose(bars[0].get_ydata(), [estimate.value for estimate in by_sigma[bars.get_label()]])
    boxes_of, (left, right) = clean_and_triggered.table(part).query("quantity == 'third quartile'"), axes[clean_and_triggered]
    for axis, trigger in ((left, "active"), (right, "inactive")):
        for patch, text in zip(left.get_legend().get_patches(), left.get_legend().get_texts(), strict=True):
            drawn = [box.get_path().vertices[:, 1].max() for box in axis.patches if box.get_facecolor() == patch.get_facecolor()]
            own = boxes_of[(boxes_of["trigger"] == trigger) & (boxes_of["images"] == text.get_text())]
            assert np.allclose(drawn, own["value"]), (trigger, text)
    lines = {line.get_label().lower(): line.get_ydata() for line in axes[estimator_bias][1].lines}
    assert all(np.allclose(lines[name], rare[1], equal_nan=True) for name, (_, rare) in half.bias().items())


# --- downloads and further data sets -------------------------------------------------------------------------------


def test_a_flat_table_has_the_ends_of_intervals_as_columns():
    nan = float("nan")
    table = pd.DataFrame({"sigma": [0.1, 0.25], "AUC": [Estimate(0.5, 0.25, 0.75, 5), Estimate(0.75, nan, nan, 5)]})
    wanted = {"sigma": [0.1, 0.25], "AUC": [0.5, 0.75], "AUC low": [0.25, nan], "AUC high": [0.75, nan], "AUC repeats": [5, 5]}
    pd.testing.assert_frame_equal(flat(table), pd.DataFrame(wanted))
    assert flat(pd.DataFrame({"a": []})).empty


@pytest.fixture(scope="module")
def three():
    size = dataclasses.replace(SIZE, dataset="digits")
    return {
        "fashion-mnist": in_bits(SIZE, OVER_N, OVER_SIGMA),
        "cifar10": ParameterResults(dataclasses.replace(SIZE, dataset="cifar10"), "paper", 0, Records({})),
        "digits": in_bits(size, OVER_N[::-1], OVER_SIGMA),
    }


def test_each_link_holds_the_table_that_its_figure_is_drawn_from(three):
    page = downloads(three, FIGURES).data
    links = dict(re.findall(r'download="([^"]+)" href="data:text/csv;base64,([^"]+)"', page))
    names = ("w_against_n", "estimator_bias", "w_against_sigma")
    assert list(links) == [f"{name}-{data}.csv" for data in ("fashion-mnist", "digits") for name in names]
    assert "cifar10: no numbers yet" in page
    for data in ("fashion-mnist", "digits"):
        for name, drawing in zip(names, FIGURES, strict=True):
            found = pd.read_csv(io.BytesIO(base64.b64decode(links[f"{name}-{data}.csv"])))
            pd.testing.assert_frame_equal(found, drawing.table(three[data]), rtol=1e-5, atol=1e-9, check_dtype=False)


def test_further_data_sets_have_their_figures_under_their_names(three, monkeypatch):
    shown = []
    monkeypatch.setattr(IPython.display, "display", lambda *parts: shown.append(parts))
    further(list(three.values())[2:], FIGURES)
    [(name, *figures)] = shown
    assert name.data == "**digits**" and [figure.get_supxlabel() for figure in figures] == [three["digits"].source] * 3
    further(list(three.values())[1:2], FIGURES)
    assert [part.data for part in shown[1]] == ["**cifar10**", *[three["cifar10"].missing] * 3]


SIZES = {
    "parameters": "points = 3\nns = [4, 8]\nn = 8\nn_sigmas = [0.1]\nsigmas = [0.1, 0.5]\n",
    "surface": "points = 4\nbatch = 1\nn = 4\nsigmas = [0.1, 0.5]\ntest_images = 20\n",
}
TABLE = '[[{}]]\ndataset = "{}"\nnetwork = "{}"\nnetworks = 1\nepochs = 1\ntrain_size = 20\n{}'


@pytest.mark.parametrize("chapter", SIZES)
def test_a_data_set_of_ones_own_in_a_profile_file_is_in_plan_results_numbers_downloads_and_explorer(
    chapter, tmp_path, monkeypatch
):
    def load(name):
        pixels, labels = torch.arange(40 * 784).reshape(40, 1, 28, 28).to(torch.uint8), torch.arange(40) % 3
        return dataset_of(name, (pixels, labels, pixels, labels), "lines in a row")

    monkeypatch.setitem(sys.modules, "bslib.datasets.lines", types.SimpleNamespace(load=load))
    monkeypatch.setitem(DATASETS, "lines", Source("lines", ("a", "b", "c")))
    names = {"digits": "small-fashion", "digits-rgb": "resnet18", "lines": "small-fashion"}
    (tmp_path / "own.toml").write_text("".join(TABLE.format(chapter, *item, SIZES[chapter]) for item in names.items()))
    profile, store = str(tmp_path / "own.toml"), Store(tmp_path / "store")
    plan, module = plan_of(chapter, profile), import_module(f"bslib.chapters.{chapter}.results")
    assert list(dict.fromkeys(spec.dataset for spec in plan if spec.on_network)) == list(names)
    run([spec for spec in plan if spec.dataset != "digits-rgb"], store, device="cpu", jobs=1, progress=False)
    results = module.load(profile=profile, store=Store(store.folder, writable=False))
    assert {name: len(part.runs) for name, part in results.items()} == {"digits": 1, "digits-rgb": 0, "lines": 1}
    assert results["lines"].runs[0][-1].arrays["counts"].shape[-1] == results["lines"].size.classes == 3
    assert results["lines"].source.startswith("lines in a row; 1 of 1 networks")
    assert any("accuracy" in name and name.endswith(".lines") for name in module.quantities(results))
    figures = import_module(f"bslib.chapters.{chapter}.figures").FIGURES
    assert downloads(results, figures).data.count("-lines.csv") == 3
    found = explorer(chapter, results).data
    assert [part["name"].split(",")[0] for part in found["parts"]] == ["digits", "lines"] and len(found["notes"]) == 1
    assert {batch["part"] for batch in found["batches"]} == {0, 1}
