"""What is drawn is what was computed: read back from the artists."""

from __future__ import annotations

import dataclasses

import matplotlib
import numpy as np
import pytest
from matplotlib import cbook
from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from scipy import stats

from bslib import figures
from bslib.chapters import wobbliness
from bslib.chapters.parameters import ParameterResults
from bslib.profiles import PROFILES, ParametersSize
from bslib.specs import ImagesSpec, ToySpec
from bslib.store import Record

matplotlib.use("agg")

SIZE = ParametersSize(
    dataset="fashion-mnist", network="small-fashion", networks=2, epochs=1, points=30,
    ns=(10, 50, 250), n_sigmas=(0.1, 0.25), sigmas=(0.01, 0.1, 0.25, 0.5), n=250,
)  # fmt: skip


@pytest.fixture(scope="module")
def half(made_up_half):
    return made_up_half(SIZE)


@pytest.fixture(autouse=True)
def nothing_stays_open():
    yield
    left = plt.get_fignums()
    plt.close("all")
    assert left == [], "a figure that pyplot holds is shown twice in a notebook"


def texts(figure: Figure) -> str:
    figure.draw_without_rendering()
    return "\n".join(text.get_text() for text in figure.findobj(matplotlib.text.Text))


def check_boxes(axis, w: np.ndarray) -> None:
    """``w`` has shape (networks, settings, points); a box pools the networks."""
    pooled = [w[:, k].ravel() for k in range(w.shape[1])]
    expected = cbook.boxplot_stats(pooled, whis=1.5)
    lines = [line for line in axis.lines if len(line.get_xdata())]
    boxes = axis.patches
    assert len(boxes) == len(expected)
    for k, (box, values) in enumerate(zip(expected, pooled, strict=True), 1):
        first, _, third = np.percentile(values, [25, 50, 75])
        ends = boxes[k - 1].get_path().vertices[:, 1]
        assert (ends.min(), ends.max()) == pytest.approx((first, third))
        low = values[values >= first - 1.5 * (third - first)].min()
        high = values[values <= third + 1.5 * (third - first)].max()
        assert (box["whislo"], box["whishi"]) == pytest.approx((low, high))
        here = [line for line in lines if abs(np.mean(line.get_xdata()) - k) < 0.3]
        drawn = [np.asarray(line.get_ydata(), dtype=float) for line in here]

        def has(*ys: float, drawn=drawn) -> bool:
            return any(len(y) == len(ys) and np.allclose(y, ys) for y in drawn)

        assert has(first, low) and has(third, high), "whiskers"
        assert has(np.median(values), np.median(values)), "median"
        diamonds = [line for line in here if line.get_marker() == "D"]
        assert [float(line.get_ydata()[0]) for line in diamonds] == pytest.approx([values.mean()])
        outliers = values[(values < low) | (values > high)]
        fliers = [y for line, y in zip(here, drawn, strict=True) if line.get_marker() == "."]
        assert np.allclose(np.sort(np.concatenate(fliers or [np.array([])])), np.sort(outliers))
        beside = [line for line in lines if line.get_marker() == "_" and abs(line.get_xdata()[0] - k - 0.38) < 0.01]
        assert np.allclose(np.concatenate([line.get_ydata() for line in beside]), w[:, k - 1].mean(-1))


def w_of(half: ParameterResults, which: int) -> np.ndarray:
    return np.stack([stats.entropy(run[which].arrays["counts"], axis=-1) for run in half.runs])


def test_w_against_n_draws_the_boxes(half):
    figure = figures.w_against_n(half)
    assert isinstance(figure, Figure) and len(figure.axes) == 2
    w = w_of(half, 1)
    for s, axis in enumerate(figure.axes):
        check_boxes(axis, w[:, s])
        assert [label.get_text() for label in axis.get_xticklabels()] == ["10", "50", "250"]
        assert str(SIZE.n_sigmas[s]) in axis.get_title() and "n" in axis.get_xlabel()
    assert "nats" in figure.axes[0].get_ylabel() and half.source("n") in texts(figure)


def test_w_against_sigma_draws_the_boxes(half):
    figure = figures.w_against_sigma(half)
    assert isinstance(figure, Figure) and len(figure.axes) == 1
    check_boxes(figure.axes[0], w_of(half, 2)[:, :, 0])
    assert [label.get_text() for label in figure.axes[0].get_xticklabels()] == ["0.01", "0.1", "0.25", "0.5"]
    assert "250" in figure.axes[0].get_title() and half.source("sigma") in texts(figure)


def test_estimator_bias_draws_the_numbers(half):
    figure = figures.estimator_bias(half)
    bias = half.bias()
    for column, axis in enumerate(figure.axes):
        lines = {line.get_label(): line for line in axis.lines}
        assert axis.get_title().endswith("= 0.25")  # the larger noise of the sweep
        for name, parts in bias.items():
            assert np.allclose(lines[name].get_ydata(), parts[column][1])
            assert list(lines[name].get_xdata()) == [10, 50, 250]
    legend = [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
    assert legend == list(bias) and len({line.get_color() for line in list(lines.values())[:3]}) == 3


@pytest.mark.parametrize("profile", PROFILES)
def test_figures_draw_every_profile(made_up_half, profile):
    for size in PROFILES[profile].parameters:
        half = made_up_half(dataclasses.replace(size, points=5), profile, networks=1)
        for draw in (figures.w_against_n, figures.w_against_sigma, figures.estimator_bias):
            assert isinstance(draw(half), Figure)


@pytest.mark.parametrize("draw", [figures.w_against_n, figures.w_against_sigma, figures.estimator_bias])
def test_what_is_missing_is_said_in_words(draw):
    size = PROFILES["paper"].parameters[1]
    found = draw(ParameterResults(size, "paper", ()))
    assert type(found).__name__ == "Markdown"
    assert "Not yet run" in found.data and "bslib run parameters --profile paper" in found.data and "cifar10" in found.data


def toy_record() -> Record:
    rng = np.random.default_rng(0)
    points = np.array([[-0.5, -0.6], [0.4, 0.2], [0.0, 0.0], [-0.5, 0.5]], np.float32)
    counts = np.array([[[50, 0, 0], [25, 25, 0], [20, 20, 10], [49, 1, 0]]], np.int32)
    arrays = {
        "train": rng.uniform(-1, 1, (30, 2)).astype(np.float32),
        "train_labels": np.arange(30) % 3,
        "poisoned": np.arange(30) == 8,
        "grid": rng.integers(0, 3, (201, 201)).astype(np.int8),
        "points": points,
        "noisy": points[:, None] + 0.1 * rng.normal(size=(4, 50, 2)).astype(np.float32),
        "counts": counts,
    }
    spec = ToySpec(points=tuple(map(tuple, points.tolist())), sigma=0.1, n=50, seed=0)
    return Record(spec, {}, arrays)


def test_a_seed_that_the_published_records_lack_is_said_in_words():
    """So that a book of other seeds is a book that says what is missing, not an error."""
    toy, images = wobbliness.records(profile="paper", seed=3, store="published")
    for said, draw in ((toy, figures.toy), (images, figures.images)):
        assert draw(said).data == said
        assert (
            said.startswith("**Not yet run.**") and "`bslib run wobbliness --profile paper --store book/records --seed 3`" in said
        )
    assert {type(record) for record in wobbliness.records(profile="paper", store="published")} == {Record}


def test_the_toy_shows_points_counts_and_w():
    record = toy_record()
    figure = figures.toy(record)
    plane, *bars = figure.axes
    assert len(bars) == 4
    words = texts(figure)
    for p, panel in enumerate(bars):
        counts = record.arrays["counts"][0, p]
        assert [bar.get_width() for bar in panel.patches] == pytest.approx(list(counts / 50))
        assert f"W = {stats.entropy(counts):.2f}" in words
    assert [(text.get_text(), text.xy) for text in plane.texts if text.get_text() in "ABCD"] == [
        (letter, pytest.approx(point)) for letter, point in zip("ABCD", record.arrays["points"], strict=True)
    ]
    drawn = np.concatenate([np.asarray(dots.get_offsets()) for dots in plane.collections])
    assert len(drawn) == 30 + 4 * 50  # every training point once, every noisy copy once
    grid = plane.images[0].get_array()
    assert np.array_equal(grid, record.arrays["grid"]) and plane.images[0].origin == "lower"


@pytest.mark.parametrize(("count", "channels", "columns"), [(12, 1, 6), (5, 3, 4), (1, 3, 6)])
def test_images_show_each_picture_with_its_class(count, channels, columns):
    rng = np.random.default_rng(0)
    pictures = rng.integers(0, 256, (count, channels, 8, 8)).astype(np.uint8)
    labels = np.arange(count) % 3
    spec = ImagesSpec(dataset="digits", images=count, seed=0)
    figure = figures.images(
        Record(spec, {"classes": ["coat", "bag", "boot"]}, {"images": pictures, "labels": labels}, {"source": "digits"}), columns
    )
    assert "digits" in texts(figure), "it says where the pictures come from"
    shown = [axis for axis in figure.axes if axis.images]
    assert len(shown) == count
    for axis, picture, label in zip(shown, pictures, labels, strict=True):
        assert axis.get_title() == ["coat", "bag", "boot"][label]
        drawn = axis.images[0]
        assert np.array_equal(np.squeeze(drawn.get_array()), np.squeeze(picture.transpose(1, 2, 0)))
        assert channels == 3 or drawn.get_clim() == (0, 255)


def test_a_figure_is_the_same_twice(half, tmp_path):
    for k in range(2):
        figures.w_against_n(half).savefig(tmp_path / f"{k}.svg", metadata={"Date": None})
    first, second = ((tmp_path / f"{k}.svg").read_text() for k in range(2))
    assert first.count("<path") == second.count("<path") > 50
