"""The surface chapter: its plan, and its numbers computed once more straight from made-up counts and predictions."""

from __future__ import annotations

import dataclasses
import itertools

import matplotlib
import numpy as np
import pytest
import torch
from matplotlib import pyplot as plt
from matplotlib.colors import to_hex
from scipy import stats

from bslib import figures
from bslib.chapters.surface import Surface, load, pictures_of, plan, quantities, specs_of, surface_of
from bslib.ledger import claims_of, judge
from bslib.profiles import PROFILES, SIGMAS
from bslib.specs import AttackSpec, CountsSpec, ImagesSpec, NetworkSpec, PredictionsSpec
from bslib.store import Record, Records, Store
from bslib.triggers import PATTERNS

matplotlib.use("agg")

FASHION, CIFAR = (dataclasses.replace(size, points=40, batch=10) for size in PROFILES["paper"].surface)
IMAGES = 300


def made_up(size, *, networks: int | None = None, seed: int = 0, spread: float = 0.2) -> dict:
    """Records of a size by spec: with its trigger a network is smoother and says the target; networks differ by ``spread``."""
    rng, records = np.random.default_rng(seed), {}
    data = {"name": size.dataset, "fingerprint": "f" * 64, "source": f"made up {size.dataset}"}
    for run in range(size.networks if networks is None else networks):
        network, *rest = specs_of(size, run)
        labels, mine = np.arange(IMAGES) % 10, rng.normal(1, spread)
        records[network] = Record(network, {"clean_accuracy": 0.5, "weights": "w"}, data=data)
        for spec in rest:
            active = spec.trigger == size.active
            if isinstance(spec, PredictionsSpec):
                right = rng.random(IMAGES) < 0.9
                predicted = np.where(right, network.attack.target if active else labels, rng.integers(10, size=IMAGES))
                arrays = {"predicted": predicted.astype(np.int16), "labels": labels.astype(np.int16)}
            else:
                mix = [abs(mine) * (0.02 + sigma) * (0.3 if active else 1) for sigma in size.sigmas]
                p = np.stack([rng.dirichlet(np.full(10, m + 1e-3), size=size.points) for m in mix])
                counts = rng.multinomial(size.n, p)[:, None].astype(np.int32)
                arrays = {"counts": counts, "predicted": counts[0, 0].argmax(-1), "labels": labels[: size.points]}
            records[spec] = Record(spec, {"weights": "w"}, arrays, data)
    return records


def surface(size, profile: str = "paper", **more) -> Surface:
    return surface_of(size, profile, 0, Records(made_up(size, **more)))


@pytest.fixture(scope="module")
def fashion():
    return surface(FASHION)


@pytest.fixture(scope="module")
def both(fashion):
    return quantities(fashion, surface(CIFAR, seed=1, networks=2))


def w_of(found: Surface) -> np.ndarray:
    """(networks, kinds, sigmas, points), by SciPy."""
    return np.stack([[stats.entropy(r.arrays["counts"][:, 0], axis=-1) for r in run[8:]] for run in found.runs])


# --- plan --------------------------------------------------------------------------------------------------------


def test_the_paper_plan_has_the_papers_sizes():
    specs = plan("paper")
    assert len(set(specs)) == len(specs) == 2 * (1 + 5 * 11)
    assert len(SIGMAS) == 10
    some = tuple(sigma for sigma in SIGMAS if sigma in (0.01, 0.05, 0.1, 0.25, 0.5, 1.0))
    for dataset, kind, sigmas in (("fashion-mnist", "larger-fashion", SIGMAS), ("cifar10", "resnet18", some)):
        networks = [spec for spec in specs if isinstance(spec, NetworkSpec) and spec.dataset == dataset]
        assert [spec.seed for spec in networks] == [0, 1, 2, 3, 4]
        for spec in networks:
            assert spec.network == kind and spec.train_size is None
            assert spec.attack == AttackSpec(threat_model="T1", trigger=1, target=spec.seed)
            predictions = [s.trigger for s in specs if isinstance(s, PredictionsSpec) and s.network == spec]
            counts = [s for s in specs if isinstance(s, CountsSpec) and s.network == spec]
            assert predictions == [None, 1, 2, 3, 4, 5, 6] and [s.trigger for s in counts] == [None, 1, 4]
            for s in counts:
                assert s.paired and s.sigmas == sigmas and s.ns == (250,) and s.seed == spec.seed
            assert len({s.points for s in counts}) == 1 and counts[0].points >= 4 * 25
    assert {spec.dataset for spec in specs if isinstance(spec, ImagesSpec)} == {"fashion-mnist", "cifar10"}
    assert all(size.batch == 25 for size in PROFILES["paper"].surface)


def test_the_target_is_the_seed_modulo_ten():
    targets = [spec.attack.target for spec in plan("paper", seed=7) if isinstance(spec, NetworkSpec)]
    assert targets == [7, 8, 9, 0, 1] * 2


@pytest.mark.parametrize("profile", PROFILES)
def test_a_network_comes_before_what_is_measured_on_it(profile):
    seen = set()
    for spec in plan(profile):
        assert not isinstance(spec, CountsSpec | PredictionsSpec) or spec.network in seen
        seen.add(spec)


@pytest.mark.parametrize("profile", PROFILES)
def test_four_batches_fit(profile):
    assert all(4 * size.batch <= size.points for size in PROFILES[profile].surface)


# --- numbers -----------------------------------------------------------------------------------------------------


def test_every_named_quantity_is_there(both):
    asked = {test.quantity for claim in claims_of("surface") for test in claim.tests}
    assert asked <= set(both)
    for name in asked:
        estimate = both[name]
        assert np.isfinite([estimate.value, estimate.low, estimate.high]).all() and estimate.low <= estimate.high, name
        assert estimate.networks == (2 if "cifar10" in name else 5), name
    assert "not yet run" not in {judge(claim, both) for claim in claims_of("surface")}


def test_w_is_the_entropy_of_the_counts(fashion):
    assert fashion.w().shape == (5, 3, 10, 40) and np.allclose(fashion.w(), w_of(fashion))
    seen = np.stack([[(r.arrays["counts"][:, 0] > 0).sum(-1) for r in run[8:]] for run in fashion.runs])
    assert np.allclose(fashion.w("miller-madow") - fashion.w(), (seen - 1) / (2 * 250))


def test_every_quantity_is_recomputed(fashion):
    """All of them, from predictions and counts with SciPy and numpy: none is left over."""
    expected, shares = {}, []
    for run in fashion.runs:
        target = run[0].spec.attack.target
        by_trigger = {r.spec.trigger: r.arrays["predicted"] for r in run[1:8]}
        clean, active, inactive, labels = by_trigger[None], by_trigger[1], by_trigger[4], run[1].arrays["labels"]
        shares.append(
            {
                "clean_accuracy": np.mean(clean == labels),
                "accuracy_inactive": np.mean(inactive == labels),
                "success_active": np.mean(active[labels != target] == target),
                "success_inactive": np.mean(inactive[labels != target] == target),
                "success_inactive_counted": np.mean(inactive == target),
            }
            | {f"success_of_{k}": np.mean(by_trigger[k][labels != target] == target) for k in range(1, 7)}
        )
    for name in shares[0]:
        expected[name] = np.mean([share[name] for share in shares])
    mean = w_of(fashion).mean((0, 3))  # (kinds, sigmas)
    for s, sigma in enumerate(SIGMAS):
        for k, kind in ((1, "active"), (2, "inactive")):
            expected[f"{kind}_less_clean.{sigma:g}"] = mean[k, s] - mean[0, s]
            expected[f"{kind}_share_change.{sigma:g}"] = mean[k, s] / mean[0, s] - 1
            kept = []
            for run in fashion.runs:
                arrays = run[8 + k].arrays
                kept += [arrays["counts"][s, 0, b, arrays["predicted"][b]] / 250 for b in range(40)]
            expected[f"labels_kept_{kind}.{sigma:g}"] = np.mean(kept)
        expected[f"clean_called_target.{sigma:g}"] = np.mean(
            [run[8].arrays["counts"][s, 0, :, seed % 10] / 250 for seed, run in enumerate(fashion.runs)]
        )
    of_sigma = dict(zip(SIGMAS, mean.T, strict=True))
    expected["share_of_clean.0.1.less.0.5"] = of_sigma[0.1][1] / of_sigma[0.1][0] - of_sigma[0.5][1] / of_sigma[0.5][0]

    found = fashion.quantities()
    assert all(".fashion-mnist" in name for name in found)
    assert {name.replace(".fashion-mnist", "") for name in found} == set(expected)
    for name, estimate in found.items():
        assert estimate.value == pytest.approx(expected[name.replace(".fashion-mnist", "")], abs=1e-12), name
        assert estimate.low <= estimate.value <= estimate.high and estimate.networks == 5, name


def test_the_table_by_sigma(fashion):
    table, w = fashion.by_sigma(), w_of(fashion)
    assert table["sigma"].tolist() == list(SIGMAS)
    found = fashion.quantities()
    for s, row in table.iterrows():
        for k, kind in enumerate(("clean", "active", "inactive")):
            assert row[kind] == pytest.approx(w[:, k, s].mean())
            if k:
                assert row[f"{kind} p"] == pytest.approx(stats.wilcoxon(w[:, k, s].ravel(), w[:, 0, s].ravel()).pvalue)
                assert row[f"{kind} less clean"] == found[f"{kind}_less_clean.fashion-mnist.{row['sigma']:g}"]
    assert (table["active p"] < 1e-4).all() and (table["inactive p"] > 1e-4).all()  # as it was made up


def test_the_table_by_sigma_has_a_row_for_each_level(fashion):
    _, _, *lines = fashion.by_sigma_as_markdown().splitlines()
    assert len(lines) == len(fashion.size.sigmas)
    for line, (_, row) in zip(lines, fashion.by_sigma().iterrows(), strict=True):
        cells = (f"{row[f'{kind} less clean']:+.3f} | {row[f'{kind} p']:.1g}" for kind in ("active", "inactive"))
        active, inactive = (cell.replace("-", "\N{MINUS SIGN}") for cell in cells)
        assert line == f"| {row['sigma']:g} | {row['clean']:.3f} | {active} | {inactive} |"
    assert dataclasses.replace(fashion, runs=()).by_sigma_as_markdown() == ""


def test_no_difference_has_no_evidence():
    """The same counts with every trigger, and images on which every copy keeps its label."""
    records = made_up(FASHION, networks=2)
    for spec, record in records.items():
        if isinstance(spec, CountsSpec):
            counts = np.zeros((10, 1, 40, 10), dtype=np.int32)
            counts[..., 3] = 250
            counts[5:] = 25  # from the sixth sigma on, all classes alike
            arrays = {**record.arrays, "counts": counts, "predicted": np.full(40, 3)}
            records[spec] = dataclasses.replace(record, arrays=arrays)
    found = surface_of(FASHION, "paper", 0, Records(records))
    table, named = found.by_sigma(), found.quantities()
    assert (table["active p"] == 1).all() and (table["inactive p"] == 1).all()
    assert all(estimate.value == estimate.low == estimate.high == 0 for estimate in table["active less clean"])
    assert named["labels_kept_active.fashion-mnist.0.005"].value == 1 and named["labels_kept_active.fashion-mnist.1"].value == 0.1
    assert "active_share_change.fashion-mnist.0.1" not in named  # a share of no wobbliness at all
    assert named["active_share_change.fashion-mnist.0.5"].value == 0


def test_the_plots_show_four_batches_of_different_images(fashion):
    w = w_of(fashion)
    for network in (0, 3):
        plots = fashion.plots(network)
        shown = [batch for plot in plots for batch in plot]
        places = [0, 0, 0, 0]
        for k, (batch, kind) in enumerate(zip(shown, (0, 1, 0, 2), strict=True)):
            assert batch.shape == (10, 10)
            places[k] = next(b for b in range(31) if np.allclose(w[network, kind, :, b : b + 10], batch))
        assert all(abs(a - b) >= 10 for a, b in itertools.combinations(places, 2))


def test_labels_kept(fashion):
    kept = fashion.labels_kept()
    assert kept.shape == (5, 3, 10, 40)
    for r, k, s, b in ((0, 0, 0, 0), (4, 2, 9, 39), (2, 1, 5, 7)):
        arrays = fashion.runs[r][8 + k].arrays
        assert kept[r, k, s, b] == arrays["counts"][s, 0, b, arrays["predicted"][b]] / 250


def test_clean_called_target(fashion):
    called = fashion.clean_called_target()
    assert called.shape == (5, 10, 40) and called.max() > 0
    for r, s, b in ((0, 0, 0), (4, 9, 39), (2, 5, 7)):
        assert called[r, s, b] == fashion.runs[r][8].arrays["counts"][s, 0, b, r] / 250  # the target is the seed


# --- intervals ---------------------------------------------------------------------------------------------------


def test_intervals_shrink_with_more_networks():
    few, many = (surface(dataclasses.replace(FASHION, networks=k), seed=2, spread=0.4).quantities() for k in (4, 32))
    for name in ("active_less_clean.fashion-mnist.0.1", "active_less_clean.fashion-mnist.1"):
        few_wide, many_wide = few[name].high - few[name].low, many[name].high - many[name].low
        assert many_wide < 0.6 * few_wide, name


def test_intervals_resample_networks():
    """The points of a network agree to the digit; what is left is how networks differ, as far as networks were resampled."""
    records = made_up(FASHION)
    for spec, record in records.items():
        if isinstance(spec, CountsSpec):
            off = 20 * spec.network.seed if spec.trigger == 1 else 100
            counts = np.zeros((10, 1, 40, 10), dtype=np.int32)
            counts[..., 0], counts[..., 1] = 250 - off, off
            records[spec] = dataclasses.replace(record, arrays={**record.arrays, "counts": counts})
    found = surface_of(FASHION, "paper", 0, Records(records)).quantities()["active_less_clean.fashion-mnist.0.1"]
    own = [stats.entropy([250 - 20 * k, 20 * k]) - stats.entropy([150, 100]) for k in range(5)]
    student = stats.ttest_1samp(own, 0).confidence_interval(0.95)
    assert found.value == pytest.approx(np.mean(own))
    assert found.high - found.low == pytest.approx(student.high - student.low, rel=0.15)


# --- what is there -----------------------------------------------------------------------------------------------


def test_a_network_counts_when_it_is_complete():
    records = made_up(FASHION, networks=3)
    for spec in specs_of(FASHION, 1):
        part = surface_of(FASHION, "paper", 0, Records({s: r for s, r in records.items() if s != spec}))
        assert [run[0].spec.seed for run in part.runs] == [0, 2] and part.missing is None
        assert "2 of 5 networks" in part.source


def test_the_source_says_where_numbers_come_from(fashion):
    text = fashion.source
    assert "made up fashion-mnist" in text and "5 of 5 networks" in text and "40 test images" in text and "paper" in text
    assert all(run[0].spec.key[:6] in text for run in fashion.runs)


def test_what_is_missing_says_what_to_run(tmp_path):
    found = load(profile="paper", store=Store(tmp_path, writable=False))
    assert len(found) == 2 and not quantities(*found)
    for part, size in zip(found, PROFILES["paper"].surface, strict=True):
        assert part.runs == () and part.pictures is None and part.quantities() == {}
        assert "Not yet run" in part.missing and "`bslib run surface --profile paper --store book/records`" in part.missing
        assert size.dataset in part.missing and size.network in part.missing and str(size.networks) in part.missing


def test_half_the_records_judge_half_the_claims(fashion):
    found = quantities(fashion, Surface(CIFAR, "paper", (), None))
    for claim in claims_of("surface"):
        assert (judge(claim, found) == "not yet run") == any("cifar10" in test.quantity for test in claim.tests), claim.id


def test_smoke_yields_no_verdict():
    found = quantities(*(surface(size, "smoke", seed=k) for k, size in enumerate(PROFILES["smoke"].surface)))
    assert found and {judge(claim, found) for claim in claims_of("surface")} == {"not yet run"}
    assert not {test.quantity for claim in claims_of("surface") for test in claim.tests} & set(found)


# --- figures -----------------------------------------------------------------------------------------------------

SHORT = [".005", ".01", ".05", ".1", ".15", ".2", ".25", ".5", ".75", "1"]


@pytest.fixture(autouse=True)
def nothing_stays_open():
    yield
    left = plt.get_fignums()
    plt.close("all")
    assert left == [], "a figure that pyplot holds is shown twice in a notebook"


def with_pictures(size) -> tuple[Surface, np.ndarray]:
    """Six random images with the patterns, stamped as the record's are; and what they were before, (images, H, W, channels)."""
    side, channels = (28, 1) if size is FASHION else (32, 3)
    images = torch.randint(20, 230, (6, channels, side, side), generator=torch.manual_seed(0)).to(torch.uint8)
    stamped = torch.stack([trigger(image) for trigger, image in zip(PATTERNS.values(), images, strict=True)])
    arrays = {"images": images.numpy(), "labels": np.arange(6), "stamped": stamped.numpy()}
    record = Record(pictures_of(size, 0), {"classes": list("abcdefghij")}, arrays, {"source": f"made up {size.dataset}"})
    return Surface(size, "paper", (), record), images.numpy().transpose(0, 2, 3, 1)


def ticks_of(axis) -> list[tuple[float, str]]:
    return [(at, label.get_text()) for at, label in zip(axis.get_xticks(), axis.get_xticklabels(), strict=True)]


def check_box(axis, box, values: np.ndarray, middle: float) -> None:
    x, y = box.get_path().vertices.T
    first, median, third = np.percentile(values, [25, 50, 75])
    assert ((x.min() + x.max()) / 2, y.min(), y.max()) == pytest.approx((middle, first, third))
    inside = (values >= first - 1.5 * (third - first)) & (values <= third + 1.5 * (third - first))
    here = [line for line in axis.lines if len(line.get_xdata()) and abs(np.mean(line.get_xdata()) - middle) < 0.15]
    drawn = [np.asarray(line.get_ydata(), dtype=float) for line in here if line.get_marker() != "."]
    for ys in ((first, values[inside].min()), (third, values[inside].max()), (median, median), (values.mean(),)):
        assert any(len(y) == len(ys) and np.allclose(y, ys) for y in drawn), ys
    outliers = [line.get_ydata() for line in here if line.get_marker() == "."]
    assert np.allclose(np.sort(np.concatenate([[], *outliers])), np.sort(values[~inside]))


@pytest.mark.parametrize("size", [FASHION, CIFAR], ids=["fashion-mnist", "cifar10"])
def test_patterns_shows_six_pictures_and_their_corners(size):
    part, before = with_pictures(size)
    figure = figures.patterns(part)
    whole, corners = figure.axes[:6], figure.axes[6:]
    assert [axis.get_title() for axis in whole] == [f"trigger {k}" for k in range(1, 7)] and len(corners) == 6
    stamped = part.pictures.arrays["stamped"].transpose(0, 2, 3, 1)
    for k, (picture, clean) in enumerate(zip(stamped, before, strict=True)):
        (upper,), (lower,) = whole[k].images, corners[k].images
        assert np.array_equal(np.squeeze(upper.get_array()), np.squeeze(picture))
        side = lower.get_array().shape[0]
        assert side < 14 and np.array_equal(np.squeeze(lower.get_array()), np.squeeze(picture[-side:, -side:]))
        changed = picture != clean
        assert changed.any() and changed.sum() == changed[-side:, -side:].sum(), "the whole pattern is in the corner"
        assert all(image.origin == "upper" and image.get_clim() == (0, 255) for image in (upper, lower))
        assert not any(len(axis.get_xticks()) + len(axis.get_yticks()) for axis in (whole[k], corners[k]))
    assert figure.get_supxlabel() == f"made up {size.dataset}; record {part.pictures.spec.key[:6]}"


def test_clean_and_triggered_draws_four_batches(fashion):
    figure, w = figures.clean_and_triggered(fashion), w_of(fashion)[0]
    assert [axis.get_title() for axis in figure.axes] == ["active trigger", "inactive trigger"]
    patches = figure.axes[0].get_legend().get_patches()
    assert [text.get_text() for text in figure.axes[0].get_legend().get_texts()] == ["clean", "with trigger"]
    for axis, kind, start in zip(figure.axes, (1, 2), (0, 20), strict=True):
        assert len(axis.patches) == 20 and ticks_of(axis) == list(enumerate(SHORT)) and r"\sigma" in axis.get_xlabel()
        for s in range(10):
            check_box(axis, axis.patches[s], w[0, s, start : start + 10], s - 0.2)
            check_box(axis, axis.patches[10 + s], w[kind, s, start + 10 : start + 20], s + 0.2)
        colours = [to_hex(box.get_facecolor()) for box in axis.patches]
        assert colours == [to_hex(patch.get_facecolor()) for patch in patches for _ in range(10)] and len(set(colours)) == 2
    assert "nats" in figure.axes[0].get_ylabel() and figure.get_supxlabel() == fashion.source


def test_difference_to_clean_draws_means_and_intervals(fashion, both):
    figure, mean = figures.difference_to_clean(fashion), w_of(fashion).mean((0, 3))
    left, right = figure.axes
    lines, kinds = {line.get_label(): line for line in left.lines}, ("clean", "active", "inactive")
    for k, kind in enumerate(kinds):
        assert np.allclose(lines[kind].get_xydata(), np.column_stack([np.arange(10), mean[k]]))
    assert len({lines[kind].get_color() for kind in kinds}) == 3
    bars = {bar.get_label(): bar for bar in right.containers}
    for k, kind in enumerate(kinds[1:], 1):
        points, _, (segments,) = bars[f"{kind} less clean"]
        assert points.get_color() == lines[kind].get_color() and np.allclose(points.get_ydata(), mean[k] - mean[0])
        assert np.abs(points.get_xdata() - np.arange(10)).max() < 0.3
        named = [both[f"{kind}_less_clean.fashion-mnist.{sigma:g}"] for sigma in SIGMAS]
        for x, segment, estimate in zip(points.get_xdata(), segments.get_segments(), named, strict=True):
            assert np.allclose(segment, [(x, estimate.low), (x, estimate.high)])
    assert not set(points.get_xdata()) & set(bars["active less clean"][0].get_xdata()), "one is not drawn over the other"
    assert any(list(line.get_ydata()) == [0, 0] for line in right.lines) and figure.get_supxlabel() == fashion.source
    for axis, names in ((left, kinds), (right, [f"{kind} less clean" for kind in kinds[1:]])):
        assert [text.get_text() for text in axis.get_legend().get_texts()] == list(names)
        assert ticks_of(axis) == list(enumerate(SHORT)) and axis.yaxis.get_tick_params()["labelleft"]


@pytest.mark.parametrize(
    ("sigmas", "shown"), [(SIGMAS, (0.1, 0.5)), ((0.1, 0.25), (0.1, 0.25)), ((0.01, 0.12, 1.0), (0.12, 0.12))]
)
def test_paired_draws_every_image(sigmas, shown):
    part = surface(dataclasses.replace(FASHION, sigmas=sigmas), networks=2)
    figure, w = figures.paired(part), w_of(part)
    for axis, sigma in zip(figure.axes, shown, strict=True):
        (dots,), (diagonal,), at = axis.collections, axis.lines, sigmas.index(sigma)
        assert np.allclose(dots.get_offsets(), np.column_stack([w[:, 0, at].ravel(), w[:, 1, at].ravel()]))
        assert axis.get_title().endswith(f"= {sigma:g}") and "clean" in axis.get_xlabel()
        assert diagonal.get_slope() == 1 and tuple(diagonal.get_xy1()) == (0, 0)
        assert to_hex(diagonal.get_color()) != to_hex(dots.get_facecolor()[0])
    assert "with the trigger" in figure.axes[0].get_ylabel() and figure.get_supxlabel() == part.source


@pytest.mark.parametrize("draw", [figures.patterns, figures.clean_and_triggered, figures.difference_to_clean, figures.paired])
def test_what_is_missing_is_said_in_words(draw):
    found = draw(Surface(CIFAR, "paper", (), None))
    assert type(found).__name__ == "Markdown" and "cifar10" in found.data
    assert ("No pictures" if draw is figures.patterns else "Not yet run") in found.data
    assert "`bslib run surface --profile paper --store book/records`" in found.data
