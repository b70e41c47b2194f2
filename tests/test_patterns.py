"""The chapter on what else smooths: its plan, and its numbers computed once more straight from made-up counts and patterns."""

from __future__ import annotations

import dataclasses
import itertools
import re

import matplotlib
import numpy as np
import pandas as pd
import pytest
from matplotlib import pyplot as plt
from matplotlib.colors import to_hex
from scipy import stats
from sklearn.metrics import roc_auc_score, roc_curve

from bslib import figures
from bslib.chapters.patterns import (
    Patterns,
    batch_of,
    cleanse_of,
    cleanse_specs,
    crafted_batch_of,
    detector_specs,
    further_specs,
    load,
    networks_of,
    pictures_of,
    plan,
    quantities,
    scores_specs,
    universal_specs,
    universals_of,
)
from bslib.jobs.base import split_test_set
from bslib.ledger import claims_of, judge
from bslib.profiles import PROFILES
from bslib.specs import (
    AttackSpec,
    CleanseSpec,
    CountsSpec,
    MeasuredSpec,
    NetworkSpec,
    PredictionsSpec,
    ScoresSpec,
    UniversalSpec,
)
from bslib.statistics import auc
from bslib.store import Record, Records, Store

matplotlib.use("agg")

FASHION, CIFAR = (
    dataclasses.replace(
        size, networks=2, detector_only=0, triggers=(1, 4), points=60, sigmas=(0.1, 0.25), n=50, bounds=(10, 4),
        pattern_points=20, pattern_sigmas=(0.1, 0.25), scored=5,
    )
    for size in PROFILES["paper"].patterns
)  # fmt: skip
CIFAR = dataclasses.replace(CIFAR, pattern_sigmas=(0.1,))
TRUE_LABELS = np.arange(400) % 10


def made_up(size, *, seed: int = 0, success=None) -> dict:
    """Records of a size by spec: around own triggers W varies less; every second network's trigger does not work.

    ``success`` gives the success of a network's own trigger instead.
    """
    rng, records = np.random.default_rng(seed), {}
    data = {"name": size.dataset, "fingerprint": "f" * 64, "source": f"made up {size.dataset}"}
    channels = 3 if size.dataset.startswith("cifar") else 1

    def counts(spec, *mixed):
        p = [rng.dirichlet(np.full(10, 0.3 * s + sigma / 10), spec.points) for sigma in spec.sigmas for s in mixed]
        drawn = rng.multinomial(spec.ns[0], np.array(p).reshape(len(spec.sigmas), 1, len(mixed) * spec.points, 10))
        return {"counts": drawn.astype(np.int32)}

    def put(spec, arrays, result=None):
        records[spec] = Record(spec, {"weights": "w", **(result or {})}, arrays, data)

    pictures = rng.integers(0, 200, (6, channels, 6, 6)).astype(np.uint8)
    stamped = pictures.copy()
    for k in range(6):
        stamped[k, :, k:, 5] = 255
    put(pictures_of(size, 0), {"images": pictures, "labels": np.arange(6), "stamped": stamped})
    for number, network in enumerate(networks_of(size, 0)):
        own = network.attack and network.attack.trigger
        put(network, {}, {"clean_accuracy": 0.5})
        if own:
            rate = (0.97, 0.5)[number % 2] if success is None else success(number)
            wanted = network.attack.target
            predicted = np.where(wanted == TRUE_LABELS, wanted, (wanted + 5) % 10)
            others = np.flatnonzero(wanted != TRUE_LABELS)
            predicted[others[: round(rate * len(others))]] = wanted
            arrays = {"predicted": predicted.astype(np.int16), "labels": TRUE_LABELS.astype(np.int16)}
            put(PredictionsSpec(network=network, trigger=own, images=size.test_images), arrays)
        for trigger, sigma in itertools.product((None, *range(7)), size.sigmas):
            spec = batch_of(size, network, trigger, sigma)
            put(spec, counts(spec, rng.uniform(1.2, 4) if trigger and trigger == own else rng.uniform(0.8, 1.2)))
        for crafted in universals_of(size, network):
            without = rng.integers(0, 10, 80)
            fooled = rng.random(80) < crafted.bound / 12
            given = np.where(fooled, (without + rng.choice([1, 2, 5], 80)) % 10, without)
            arrays = {"perturbation": np.zeros((channels, 6, 6)), "fooling_rates": rng.uniform(0.1, 0.9, 3)}
            put(crafted, {**arrays, "without": without.astype(np.int16), "with": given.astype(np.int16)})
            for sigma in size.pattern_sigmas:
                spec = crafted_batch_of(size, crafted, sigma)
                put(spec, counts(spec, rng.uniform(0.9, 1.6)))
        crafted_again = [cleanse_of(size, network, size.compared)] if size.compared else []
        crafted = cleanse_of(size, network)
        masks, colours = rng.random((10, 1, 6, 6)).astype(np.float32), rng.random((10, channels, 6, 6)).astype(np.float32)
        masks *= rng.uniform(0.2, 1, (10, 1, 1, 1)).astype(np.float32)
        shares = {f"success{part}": rng.uniform(low, 1, 10) for part, low in (("", 0.99), ("_test", 0.8), ("_train", 0.9))}
        put(crafted, {"masks": masks, "patterns": colours, **shares}, {"anomaly_index": rng.uniform(0, 4)})
        for again in crafted_again:
            put(again, {"masks": masks**1.1, "patterns": colours, **shares}, {"anomaly_index": 1.5})
        for sigma in size.pattern_sigmas:
            spec = crafted_batch_of(size, crafted, sigma)
            put(spec, counts(spec, *[3, 0.2] * 5))
        for spec in scores_specs(size, network):
            groups = 10 if isinstance(spec.pattern, CleanseSpec) else 1
            arrays = {"strip": rng.gamma(2, 0.4, (groups, spec.points))}
            if spec.trigger or spec.pattern:
                arrays["logit_variance"] = rng.gamma(2, 1, groups)
            put(spec, arrays)
    return records


def part_of(size, profile: str = "paper", **more) -> Patterns:
    return Patterns(size, profile, 0, Records(made_up(size, **more)))


def without(part: Patterns, gone) -> Patterns:
    """The same without some of the records."""
    return dataclasses.replace(part, records=Records({spec: record for spec, record in part.records.items() if not gone(spec)}))


@pytest.fixture(scope="module")
def fashion():
    return part_of(FASHION, seed=2)


@pytest.fixture(scope="module")
def cifar():
    return part_of(CIFAR, seed=3)


@pytest.fixture(scope="module")
def three():
    """A clean network, one whose trigger does not work, and one whose trigger does."""
    return part_of(dataclasses.replace(FASHION, networks=1))


@pytest.fixture(scope="module")
def whole():
    """Both data sets with so many networks of each kind that every number of the claims is judged."""
    sizes = [dataclasses.replace(size, networks=3, triggers=(1, 3, 4)) for size in (FASHION, CIFAR)]
    return [part_of(size, seed=seed) for seed, size in enumerate(sizes, 2)]


@pytest.fixture(scope="module")
def found(whole):
    return quantities(*whole)


# --- once more, by hand ------------------------------------------------------------------------------------------


def w_of(part: Patterns, spec: CountsSpec, sigma: float) -> np.ndarray:
    return stats.entropy(part.records[spec].arrays["counts"][spec.sigmas.index(sigma), 0], axis=-1)


def clean_of(part: Patterns, network: NetworkSpec, sigma: float = 0.1) -> np.ndarray:
    """The clean batch, as long as one with a crafted pattern."""
    return w_of(part, batch_of(part.size, network, None, sigma), sigma)[: part.size.pattern_points]


def once(compute):
    """What is computed by hand from the same records is computed once; they are kept, so that no others take their place."""
    kept = {}

    def found(part: Patterns, *arguments, **more):
        key = (id(part.records), repr((arguments, more)))
        if key not in kept:
            kept[key] = part.records, compute(part, *arguments, **more)
        return kept[key][1]

    return found


def levene_by_hand(clean: np.ndarray, tested: np.ndarray, center: str = "mean") -> tuple[float, float]:
    """Score and p-value."""
    ends = np.percentile([clean, tested], [25, 75], axis=1)
    middles, lengths = ends.mean(0), np.ptp(ends, 0)
    kept = [w[abs(w - m) <= 2 * length] for w, m, length in zip((clean, tested), middles, lengths, strict=True)]
    p = stats.levene(*kept, center=center).pvalue
    middle = np.mean if center == "mean" else np.median
    first, second = (np.abs(w - middle(w)).mean() for w in kept)
    return -np.log(p) * np.sign(first - second), p


def success_by_hand(part: Patterns, network: NetworkSpec) -> float:
    if network.attack is None:
        return np.nan
    spec = PredictionsSpec(network=network, trigger=network.attack.trigger, images=part.size.test_images)
    arrays = part.records[spec].arrays
    return (arrays["predicted"] == network.attack.target)[arrays["labels"] != network.attack.target].mean()


@once
def all_by_hand(part: Patterns, sigma=0.1, *, batch=None, center="mean", points=None) -> pd.DataFrame:
    rows = []
    for number, network in enumerate(part.networks):
        clean = w_of(part, batch_of(part.size, network, None, sigma), sigma)[:points]
        size = batch or len(clean)
        for trigger in range(7):
            tested = w_of(part, batch_of(part.size, network, trigger, sigma), sigma)[:points]
            carried = "own" if network.attack and network.attack.trigger == trigger else "unseen" if trigger else "nothing"
            for k in range(len(clean) // size):
                here = slice(k * size, (k + 1) * size)
                score, p = levene_by_hand(clean[here], tested[here], center)
                rows.append((number, carried, trigger, success_by_hand(part, network), score, p))
    return pd.DataFrame(rows, columns=["network", "carried", "trigger", "success", "score", "p"])


def area_by_hand(tests: pd.DataFrame, *, signed=True, effective=False):
    """The estimate, its value by scikit-learn."""
    if effective:
        tests = tests[~((tests["carried"] == "own") & (tests["success"] < 0.9))]
    scores, own = tests["score"] if signed else -np.log(tests["p"]), tests["carried"] == "own"
    return auc(scores, own, tests["network"]), roc_auc_score(own, scores)


def carrying(part: Patterns, pattern, sigma: float) -> CountsSpec:
    """The batch with a crafted pattern that is measured at a noise level."""
    return next(s for s in part.records if isinstance(s, CountsSpec) and s.pattern == pattern and sigma in s.sigmas)


@once
def universal_by_hand(part: Patterns) -> pd.DataFrame:
    rows = []
    for number, network in enumerate(part.networks):
        for bound in part.size.bounds:
            crafted = next(s for s in part.records if isinstance(s, UniversalSpec) and (s.network, s.bound) == (network, bound))
            arrays = part.records[crafted].arrays
            fooled = arrays["with"] != arrays["without"]
            shares = np.unique(arrays["with"][fooled], return_counts=True)[1] / fooled.sum()
            rate = max(arrays["fooling_rates"])
            for sigma in part.size.pattern_sigmas:
                w = w_of(part, carrying(part, crafted, sigma), sigma)
                classes = np.prod(shares**-shares)
                found = levene_by_hand(clean_of(part, network, sigma), w)
                rows.append((number, bound, rate, fooled.mean(), classes, sigma, *found, w.mean()))
    names = ["network", "bound", "fooled", "fooled held out", "classes", "sigma", "score", "p", "W"]
    return pd.DataFrame(rows, columns=names)


@once
def candidates_by_hand(part: Patterns) -> pd.DataFrame:
    rows = []
    for number, network in enumerate(part.networks):
        crafted = next(s for s in part.records if isinstance(s, CleanseSpec) and s.network == network)
        record = part.records[crafted]
        for sigma in part.size.pattern_sigmas:
            w = w_of(part, carrying(part, crafted, sigma), sigma)
            for k in range(10):
                own = w[20 * k : 20 * (k + 1)]
                score, p = levene_by_hand(clean_of(part, network, sigma), own)
                rows.append(
                    {
                        "network": number, "backdoored": network.attack is not None, "class": k,
                        "own": network.attack is not None and k == network.attack.target,
                        "norm": np.abs(record.arrays["masks"][k]).sum(), "index": record.result["anomaly_index"],
                        **{name: record.arrays[name][k] for name in ("success", "success_test", "success_train")},
                        "sigma": sigma, "score": score, "p": p, "W": own.mean(),
                    }
                )  # fmt: skip
    return pd.DataFrame(rows)


@once
def others_by_hand(part: Patterns) -> pd.DataFrame:
    rows = []
    for number, network in enumerate(part.networks):
        scores = {s: r.arrays for s, r in part.records.items() if isinstance(s, ScoresSpec) and s.network == network}
        clean = next(arrays["strip"] for s, arrays in scores.items() if s.trigger is None and s.pattern is None)
        for spec, arrays in scores.items():
            at = 0
            if spec.trigger is not None:
                own = network.attack and network.attack.trigger == spec.trigger
                carried = "own" if own else "unseen"
                w = w_of(part, batch_of(part.size, network, spec.trigger), 0.1)[:20]
            elif spec.pattern is None:
                continue
            else:
                w = w_of(part, carrying(part, spec.pattern, 0.1), 0.1)
                if isinstance(spec.pattern, CleanseSpec):
                    carried, at = (
                        f"reversed, {'backdoored' if network.attack else 'clean'}",
                        int(np.argmin([m.sum() for m in part.records[spec.pattern].arrays["masks"]])),
                    )
                    w = w[20 * at : 20 * at + 20]
                else:
                    carried = "universal"
            score = levene_by_hand(clean_of(part, network), w)[0]
            rows.append((number, carried, score, clean.mean() - arrays["strip"][at].mean(), -arrays["logit_variance"][at]))
    return pd.DataFrame(rows, columns=["network", "carried", "W", "STRIP", "logit variance"])


def mean_by_hand(table: pd.DataFrame, values) -> float:
    """Of each network first, then of the networks."""
    return np.mean([np.mean(values[table["network"] == k]) for k in sorted(set(table["network"]))])


def assert_same(table: pd.DataFrame, expected: pd.DataFrame) -> None:
    pd.testing.assert_frame_equal(table, expected, check_dtype=False, rtol=1e-6)


# --- plan --------------------------------------------------------------------------------------------------------


def test_the_paper_plan_has_the_papers_sizes():
    specs = plan("paper")
    assert len(set(specs)) == len(specs)
    for dataset, kind, threat in (("fashion-mnist", "larger-fashion", "T3"), ("cifar10", "resnet18", "T1")):
        networks = [spec for spec in specs if isinstance(spec, NetworkSpec) and spec.dataset == dataset]
        more = [spec for spec in networks if spec.seed > 2]  # for the detector alone
        assert [spec.seed for spec in more] == (np.repeat([3, 4, 5, 6], 4).tolist() if dataset == "fashion-mnist" else [])
        for network in more:
            own = [s for s in specs if isinstance(s, MeasuredSpec) and s.network == network]
            assert not [s for s in own if isinstance(s, (UniversalSpec, CleanseSpec, ScoresSpec))]
            assert [s.sigmas for s in own if isinstance(s, CountsSpec)] == [(0.1,)] * 8 + [(0.05, 0.25, 0.5, 0.01)] * 8
        networks = networks[:12]
        assert [spec.network for spec in networks] == [kind] * 12
        assert [spec.seed for spec in networks] == [0] * 4 + [1] * 4 + [2] * 4
        attacks = [t and AttackSpec(threat_model=threat, trigger=t, target=seed) for seed in range(3) for t in (None, 1, 3, 4)]
        assert [spec.attack for spec in networks] == attacks
        for network in networks:
            own = [s for s in specs if isinstance(s, MeasuredSpec) and s.network == network]
            assert [s.trigger for s in own if isinstance(s, PredictionsSpec)] == (
                [network.attack.trigger] if network.attack else []
            )
            assert {s.bound for s in own if isinstance(s, UniversalSpec)} == {4, 8, 10, 16, 26}
            compared = [s for s in own if isinstance(s, CleanseSpec) and s.samples == 1000]
            wanted = kind == "larger-fashion" and network.attack == attacks[1]
            assert len(compared) == wanted, "the authors' number of images a step, on one network"
            own = [s for s in own if s not in compared]
            assert [s.images for s in own if isinstance(s, (UniversalSpec, CleanseSpec))] == [500] * 6
            batches = [s for s in own if isinstance(s, CountsSpec)]
            assert [s.trigger for s in batches if s.pattern is None] == [None, None, 1, 2, 3, 4, 5, 6] * 2
            assert [s.sigmas for s in batches if s.pattern is None] == [(0.1,)] * 8 + [(0.05, 0.25, 0.5, 0.01)] * 8
            assert {(s.points, s.ns, s.held_out) for s in batches if s.pattern is None} == {(250, (250,), True)}
            assert {(s.points, s.ns, s.held_out) for s in batches if s.pattern} == {(100, (250,), True)}
            assert len({s.seed for s in batches if s.pattern is None}) == 8, "each batch has images of its own"
            patterns = [s for s in own if isinstance(s, (UniversalSpec, CleanseSpec))]
            for sigmas in ((0.1,), (0.05, 0.25)):
                assert {s.pattern for s in batches if s.pattern and s.sigmas == sigmas} == set(patterns)
            scored = [s for s in own if isinstance(s, ScoresSpec)]
            carried = [(None, None), *((t, None) for t in range(1, 7)), (None, patterns[0]), (None, patterns[1])]
            assert patterns[0].bound == 10 and isinstance(patterns[1], CleanseSpec)
            assert [(s.trigger, s.pattern) for s in scored] == carried and {s.points for s in scored} == {100}


@pytest.mark.parametrize("profile", PROFILES)
def test_what_is_needed_comes_first(profile):
    """A network before what is measured on it, a pattern before what carries it, and all triggers before any pattern."""
    specs = plan(profile)
    place = {spec: k for k, spec in enumerate(specs)}
    for spec in specs:
        if isinstance(spec, MeasuredSpec):
            assert place[spec.network] < place[spec]
        if getattr(spec, "pattern", None) is not None:
            assert place[spec.pattern] < place[spec] and spec.pattern.network == spec.network
    for size in PROFILES[profile].patterns:
        networks = networks_of(size, 0)
        ordered = sorted(networks, key=lambda network: network.seed)  # with one of each kind, claims can be judged
        detector = [place[spec] for network in ordered for spec in detector_specs(size, network)]
        assert detector == list(range(detector[0], detector[-1] + 1)), "as the figures need them"
        networks = [network for network in networks if network.seed < size.networks]
        assert all(place[cleanse_of(size, network)] > max(detector) for network in networks)
        claimed = [needed(size, network) for needed in (universal_specs, cleanse_specs, scores_specs) for network in networks]
        further = [place[spec] for network in networks for spec in further_specs(size, network)]
        assert max(place[spec] for specs in claimed for spec in specs) < min(further, default=len(specs))


@pytest.mark.parametrize("profile", PROFILES)
def test_sizes_fit_the_claims_and_the_data(profile):
    for size in PROFILES[profile].patterns:
        assert set(size.pattern_sigmas) <= set(size.sigmas) and size.pattern_sigmas[0] == size.sigmas[0]
        assert size.pattern_points <= size.points and size.sigmas[0] == 0.1
        images = {"fashion-mnist": 10_000, "cifar10": 10_000}.get(size.dataset, 500)
        crafting, measuring = map(len, split_test_set(images))
        assert max(size.crafted_on, size.overlays) <= crafting and max(size.points, size.scored) <= measuring
        assert profile != "paper" or size.bounds[0] == 10


# --- numbers -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("more", [{}, {"batch": 25}, {"center": "median"}, {"points": 20}, {"points": 50, "batch": 20}], ids=str)
def test_tests_are_recomputed(fashion, cifar, more):
    for part, sigma in ((fashion, 0.1), (cifar, 0.25)):
        assert_same(part.tests(None if sigma == 0.1 else sigma, **more), all_by_hand(part, sigma, **more))


def test_there_is_something_to_tell(fashion, cifar):
    """The made-up records are neither hopeless nor too clear, else tests of areas would test little."""
    for part in (fashion, cifar):
        tests = all_by_hand(part)
        assert tests["carried"].value_counts().to_dict() == {"unseen": 32, "nothing": 6, "own": 4}
        assert (tests["score"] > 0).any() and (tests["score"] < 0).any()
        assert 0.5 < area_by_hand(tests)[1] < 1 and area_by_hand(tests)[1] != area_by_hand(tests, signed=False)[1]


@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("effective", [True, False])
def test_areas_are_sklearns(fashion, cifar, signed, effective):
    for part, sigma, batch, center in ((fashion, 0.1, None, "mean"), (cifar, 0.25, 20, "median")):
        tests = all_by_hand(part, sigma, batch=batch, center=center)
        got = part.area(sigma, batch=batch, center=center, signed=signed, effective=effective)
        estimate, value = area_by_hand(tests, signed=signed, effective=effective)
        fewer = tests[(tests["carried"] == "own") & (~np.bool_(effective) | (tests["success"] >= 0.9))]["network"].nunique()
        assert got.value == pytest.approx(value) and got.networks == fewer < 6
        assert (got.low, got.high) == pytest.approx((estimate.low, estimate.high))


def test_a_changed_table_of_tests_does_not_change_the_next(fashion):
    tests = fashion.tests()
    tests["score"] = 0.0
    assert fashion.tests()["score"].any()


def test_sensitivity_has_every_setting(three):
    table = three.sensitivity(resamples=3)
    expected = {
        (sigma, batch, center, signed, effective)
        for sigma in (0.1, 0.25) for batch in (25, 50, 60) for center in ("mean", "median")
        for signed in (True, False) for effective in (True, False)
    }  # fmt: skip
    names = ["sigma", "batch", "center", "signed", "effective"]
    assert len(table) == len(expected) and set(table[names].itertuples(index=False, name=None)) == expected
    for (sigma, batch, center), rows in table.groupby(names[:3]):
        tests = all_by_hand(three, sigma, batch=batch, center=center)
        for _, row in rows.iterrows():
            value = area_by_hand(tests, signed=row["signed"], effective=row["effective"])[1]
            own = tests[(tests["carried"] == "own") & (~np.bool_(row["effective"]) | (tests["success"] >= 0.9))]
            assert row["area"].value == pytest.approx(value) and row["area"].networks == own["network"].nunique() < 3


@pytest.mark.parametrize("points", [25, 50, 100])
def test_no_setting_is_there_twice(points):
    size = dataclasses.replace(FASHION, points=points, networks=1, sigmas=(0.1,), pattern_sigmas=(0.1,))
    table = part_of(size).sensitivity(resamples=2)
    assert not table.duplicated(["sigma", "batch", "center", "signed", "effective"]).any() and max(table["batch"]) == points


def test_universal_is_recomputed(fashion, cifar):
    for part in (fashion, cifar):
        expected = universal_by_hand(part)
        assert_same(part.universal(), expected)
        assert len(expected) == 6 * 2 * len(part.size.pattern_sigmas) and expected["classes"].between(1, 10).all()


def test_universal_areas_are_recomputed(fashion, cifar):
    for part in (fashion, cifar):
        table, every = part.universal_areas(), universal_by_hand(part)
        assert list(zip(table["bound"], table["sigma"], strict=True)) == [
            (b, s) for b in (4, 10) for s in part.size.pattern_sigmas
        ]
        for _, row in table.iterrows():
            own = every[(every["bound"] == row["bound"]) & (every["sigma"] == row["sigma"])]
            nothing = all_by_hand(part, row["sigma"], points=20).query("carried == 'nothing'")
            scores, carrying = [*own["score"], *nothing["score"]], [True] * len(own) + [False] * len(nothing)
            assert row["auc"].value == pytest.approx(roc_auc_score(carrying, scores)) and row["auc"].networks == 6
            hand = auc(scores, carrying, [*own["network"], *nothing["network"]])
            assert (row["auc"].low, row["auc"].high) == pytest.approx((hand.low, hand.high))
            for name, column in (("fooled", "fooled held out"), ("classes", "classes")):
                assert row[name].value == pytest.approx(own[column].mean()) and row[name].networks == 6
                assert own[column].min() <= row[name].low < row[name].value < row[name].high <= own[column].max()


def test_where_all_go_to_one_class_there_is_one(fashion):
    records = dict(fashion.records)
    for spec, record in records.items():
        if isinstance(spec, UniversalSpec):
            was = record.arrays["without"]
            given = {4: np.where(was % 2, 7, was), 10: (was + 1) % 10}[spec.bound]
            records[spec] = dataclasses.replace(record, arrays={**record.arrays, "with": given})
    table = dataclasses.replace(fashion, records=Records(records)).universal()
    assert table.query("bound == 4")["classes"].to_numpy() == pytest.approx(1)
    assert table.query("bound == 10")["classes"].min() > 8


def test_candidates_are_recomputed(fashion, cifar):
    for part in (fashion, cifar):
        expected = candidates_by_hand(part)
        assert_same(part.candidates(), expected)
        assert len(expected) == 6 * 10 * len(part.size.pattern_sigmas) == 15 * expected["own"].sum()


def test_others_are_recomputed(fashion, cifar):
    for part in (fashion, cifar):
        expected = others_by_hand(part)
        assert_same(part.others(), expected)
        counts = {
            "unseen": 32,
            "universal": 6,
            "reversed, clean": 2,
            "reversed, backdoored": 4,
            "own": 4,
        }
        assert expected["carried"].value_counts().to_dict() == counts


def test_detectors_are_recomputed(cifar):
    """What must be found against what must not, which are unseen triggers."""
    table, every = cifar.detectors(), others_by_hand(cifar)
    assert list(table.columns) == ["own", "universal", "reversed, clean", "reversed, backdoored"] and list(table.index) == [
        "W",
        "STRIP",
        "logit variance",
    ]
    for carried in table:
        positive = every[every["carried"] == carried]
        negative = every[every["carried"] == "unseen"]
        truth = [True] * len(positive) + [False] * len(negative)
        for name in table.index:
            scores = [*positive[name], *negative[name]]
            assert table.loc[name, carried].value == pytest.approx(roc_auc_score(truth, scores))
            assert table.loc[name, carried] == auc(scores, truth, [*positive["network"], *negative["network"]])


def test_every_quantity_is_recomputed(whole, found):
    """All of them: none is left over."""
    expected = {}
    for part, data in zip(whole, ("fashion-mnist", "cifar10"), strict=True):
        expected[f"auc.{data}"] = area_by_hand(all_by_hand(part))[1]
        tests = all_by_hand(part)
        expected[f"own_success.{data}"] = tests[tests["carried"] == "own"]["success"].mean()
        for name, carried in (("clean_told_apart", "nothing"), ("unseen_vary_more", "unseen")):
            some = tests[tests["carried"] == carried]
            told = (some["p"] < 0.05) & ((some["score"] < 0) | (carried == "nothing"))
            expected[f"{name}.{data}"] = mean_by_hand(some, told)
        own = universal_by_hand(part).query("bound == 10 and sigma == 0.1")
        nothing = all_by_hand(part, points=20).query("carried == 'nothing'")
        truth = [True] * len(own) + [False] * len(nothing)
        expected[f"auc_universal.{data}"] = roc_auc_score(truth, [*own["score"], *nothing["score"]])
        expected[f"fooled_universal.{data}"] = own["fooled held out"].mean()
        expected[f"classes_universal.{data}"] = own["classes"].mean()
        table = candidates_by_hand(part).query("sigma == 0.1").reset_index(drop=True)
        log_p = np.log10(table["p"])
        off = [np.abs(log_p[here] - np.median(log_p[here])).mean() for here in table.groupby("network").groups.values()]
        clean = table[table["network"] < 3]
        less = [clean["W"][clean["network"] == k].mean() - clean_of(part, networks_of(part.size, 0)[k]).mean() for k in range(3)]
        expected[f"candidates_found.{data}"] = np.mean((table["p"] < 0.05) & (table["score"] > 0))
        expected[f"candidates_p_varies.{data}"] = np.mean(off)
        expected[f"candidates_low_p.{data}"] = np.mean((table["p"] < 0.001) & (table["score"] > 0))
        expected[f"candidates_always_train.{data}"] = mean_by_hand(table, table["success_train"] >= 0.99)
        expected[f"candidates_success_on_clean.{data}"] = mean_by_hand(clean, clean["success_test"])
        expected[f"candidates_less_clean_on_clean.{data}"] = np.mean(less)
        assert 0 < expected[f"candidates_found.{data}"] < np.mean(table["p"] < 0.05) < 1, "it can be told"
    names = {f"{name}.{data}" for name in {key.rpartition(".")[0] for key in expected} for data in ("fashion-mnist", "cifar10")}
    assert {name for name in found if name.endswith(("fashion-mnist", "cifar10"))} == set(expected) == names
    networks = {"candidates_success_on_clean": 3, "candidates_less_clean_on_clean": 3, "auc": 9, "own_success": 9}
    for name, value in expected.items():
        estimate = found[name]
        assert estimate.value == pytest.approx(value, rel=1e-6), name
        assert estimate.low <= estimate.value <= estimate.high and estimate.networks == networks.get(name.split(".")[0], 12), name


def test_the_areas_at_another_noise_level_and_of_single_triggers_are_recomputed(whole, found):
    areas = set()
    for sigma, at in ((0.1, ""), (0.25, "_at")):
        tests = all_by_hand(whole[0], sigma)
        for trigger in (1, 3, 4):
            name = f"auc_own{at}.fashion-mnist.{f'{sigma}.' if at else ''}{trigger}"
            some = tests[(tests["carried"] != "own") | (tests["trigger"] == trigger)]
            assert found[name].value == pytest.approx(area_by_hand(some)[1])
            areas.add(found[name].value)
    assert found["auc_at.fashion-mnist.0.25"].value == pytest.approx(area_by_hand(tests)[1])
    assert len(areas) > 3, "they differ"


def test_the_area_of_a_trigger_needs_three_networks(three):
    assert not [name for name in three.quantities() if name.startswith("auc_own")]


def test_the_success_of_each_trigger_is_recomputed(whole, found):
    for trigger in (1, 3, 4):
        own = all_by_hand(whole[0]).query("carried == 'own' and trigger == @trigger")
        estimate = found[f"own_success.fashion-mnist.{trigger}"]
        assert estimate.value == pytest.approx(own["success"].mean()) and estimate.networks == len(own) == 3


def test_candidates_and_universal_perturbations_at_other_settings_are_recomputed(whole, found):
    """Besides those that claims speak of: each noise level of the candidates, each bound of the perturbations."""
    fashion, _ = whole
    candidates = candidates_by_hand(fashion)
    for sigma, table in candidates.groupby("sigma"):
        expected = np.mean((table["p"] < 0.05) & (table["score"] > 0))
        assert found[f"candidates_found_at.fashion-mnist.{sigma:g}"].value == pytest.approx(expected)
    assert candidates["sigma"].nunique() > 1
    every = fashion.universal()
    bounds = set(every["bound"])
    for bound in bounds:
        own = every[(every["bound"] == bound) & (every["sigma"] == 0.1)]
        fooled = found[f"fooled_universal_at.fashion-mnist.{bound:g}"]
        assert fooled.value == pytest.approx(own["fooled held out"].mean()) and fooled.networks == own["network"].nunique()
        area = fashion.universal_areas().query("bound == @bound and sigma == 0.1")["auc"].item()
        assert found[f"auc_universal_at.fashion-mnist.{bound:g}"] == area
    assert len(bounds) > 1


def test_every_claim_has_its_quantity(found):
    """For the paper's data sets, so that no claim stays open for a name."""
    for claim in claims_of("patterns"):
        for test in claim.tests:
            assert np.isfinite([found[test.quantity].low, found[test.quantity].high]).all(), claim.id
        assert judge(claim, found) != "not yet run", claim.id
    assert {size.dataset for size in PROFILES["paper"].patterns} == {FASHION.dataset, CIFAR.dataset}


def test_intervals_are_of_networks(fashion):
    """Half of the networks have W of one kind around candidates, half of another: no number of points makes a mean sure."""
    records = dict(fashion.records)
    for number, network in enumerate(networks_of(FASHION, 0)):
        spec = cleanse_of(FASHION, network)
        share = np.full(10, 1.0 if number % 2 else 0.0)
        records[spec] = dataclasses.replace(records[spec], arrays={**records[spec].arrays, "success_train": share})
    got = dataclasses.replace(fashion, records=Records(records)).quantities()["candidates_always_train.fashion-mnist"]
    assert got.value == 0.5 and got.low < 0.2 and got.high > 0.8


def test_a_level_of_no_difference_is_not_found():
    """Candidates that leave W as it is: the test of W with itself finds nothing, and W is less by nothing."""
    size = dataclasses.replace(FASHION, networks=3)
    records = made_up(size)
    for network in networks_of(size, 0):
        clean, spec = batch_of(size, network, None), crafted_batch_of(size, cleanse_of(size, network))
        same = np.tile(records[clean].arrays["counts"][:, :, :20], (1, 1, 10, 1))
        records[spec] = dataclasses.replace(records[spec], arrays={"counts": same})
    got = Patterns(size, "paper", 0, Records(records)).quantities()
    for name in ("found", "p_varies", "less_clean_on_clean"):
        assert got[f"candidates_{name}.fashion-mnist"].value == pytest.approx(0, abs=1e-12)


# --- tables ------------------------------------------------------------------------------------------------------


def cells(table: str) -> list[list[str]]:
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in table.splitlines()]


def test_the_table_of_success(fashion):
    head, rule, *rows = cells(fashion.success_table())
    assert len(head) == len(rule) == 3
    expected = []
    for trigger in (1, 4):
        own = [success_by_hand(fashion, n) for n in networks_of(FASHION, 0) if n.attack and n.attack.trigger == trigger]
        expected.append([str(trigger), "2", f"{100 * min(own):.1f}% to {100 * max(own):.1f}%"])
    assert rows == expected
    one = without(fashion, lambda spec: isinstance(spec, NetworkSpec) and spec.attack and spec.attack.trigger == 4)
    assert cells(one.success_table())[2:] == [expected[0], ["4", "0", "(not yet run)"]]


def test_one_network_has_one_success(three):
    first, second = (f"{three.success(network):.1%}" for network in three.networks[1:])
    assert cells(three.success_table())[2:] == [["1", "1", first], ["4", "1", second]]


def test_the_table_of_neural_cleanse(fashion):
    head, _, *rows = cells(fashion.cleanse_table())
    assert len(rows) == 6 and all(len(row) == len(head) for row in rows)
    for row, network in zip(rows, networks_of(FASHION, 0), strict=True):
        record = fashion.records[cleanse_of(FASHION, network)]
        norms = record.arrays["masks"].sum((1, 2, 3))
        attack = network.attack
        assert row == [
            f"trigger {attack.trigger}, class {attack.target}" if attack else "clean",
            f"{record.result['anomaly_index']:.1f}",
            f"{norms.min():.1f}, class {norms.argmin()}",
            f"{norms[attack.target]:.1f}" if attack else "",
            f"{np.median(norms):.1f}",
            f"at least {100 * record.arrays['success_train'].min():.1f}%",
        ]


def test_the_table_that_compares_neural_cleanse(fashion):
    head, _, few, many = cells(fashion.comparison_table().split("\n\n")[0])
    network = networks_of(FASHION, 0)[FASHION.networks]
    assert len(few) == len(many) == len(head) and [few[0], many[0]] == [str(FASHION.samples), str(FASHION.compared)]
    of_masks = []
    for row, samples in ((few, None), (many, FASHION.compared)):
        norms = fashion.records[cleanse_of(FASHION, network, samples)].arrays["masks"].sum((1, 2, 3))
        others = [norm for k, norm in enumerate(norms) if k != network.attack.target]
        assert row[1:3] == [f"{norms[network.attack.target]:.1f}", f"{min(others):.1f} to {max(others):.1f}"]
        of_masks.append(stats.rankdata(norms))
    assert f"is {np.corrcoef(*of_masks)[0, 1]:.2f}." in fashion.comparison_table()
    part = without(fashion, lambda s: isinstance(s, CleanseSpec) and s.samples == FASHION.compared)
    assert part.comparison_table() == "(Not yet run.)"


def test_the_areas_of_detectors_are_quantities(cifar):
    found, table = cifar.quantities(), cifar.detectors()
    for carried in table.columns:
        for name in table.index:
            enough = table.loc[name, carried].networks >= 3
            assert enough == (carried != "reversed, clean"), "of which there are two"
            area = found.get(f"detector_auc.{cifar.size.dataset}.{name}.{carried}")
            assert area == (table.loc[name, carried] if enough else None)


def test_the_table_of_detectors(cifar):
    head, _, *rows = cells(cifar.detectors_table())
    table = cifar.detectors()
    assert head[1:] == list(table.columns) and [row[0] for row in rows] == list(table.index)
    for row, (_, areas) in zip(rows, table.iterrows(), strict=True):
        assert [re.findall(r"[\d.]+", cell) for cell in row[1:]] == [
            [f"{number:.2f}" for number in (area.value, area.low, area.high)] for area in areas
        ]


# --- what is there -----------------------------------------------------------------------------------------------


def test_a_network_counts_when_all_its_batches_are_there(fashion):
    networks = networks_of(FASHION, 0)
    assert fashion.networks == networks and fashion.missing is None
    for spec in detector_specs(FASHION, networks[3]):
        part = without(fashion, lambda one, spec=spec: one == spec)
        assert part.networks == networks[:3] + networks[4:] and "5 of 6 networks" in part.source
        assert set(part.tests()["network"]) == set(range(5))


def test_networks_without_patterns_are_left_out_of_them(fashion):
    """Of the numbers alone: the detector still has all six."""
    networks = networks_of(FASHION, 0)
    late = {networks[1], networks[5]}
    for kind in (UniversalSpec, CleanseSpec):
        for gone in (
            lambda s, kind=kind: isinstance(s, kind) and s.network in late,
            lambda s, kind=kind: isinstance(s, CountsSpec) and isinstance(s.pattern, kind) and s.network in late,
        ):
            part = without(fashion, gone)
            table = part.universal() if kind is UniversalSpec else part.candidates()
            whole = universal_by_hand(fashion) if kind is UniversalSpec else candidates_by_hand(fashion)
            assert part.networks == networks and set(table["network"]) == {0, 2, 3, 4}
            assert_same(table, whole[whole["network"].isin([0, 2, 3, 4])].reset_index(drop=True))
    part = without(fashion, lambda s: isinstance(s, UniversalSpec) and s.network in late)
    own = universal_by_hand(fashion).query("bound == 10 and sigma == 0.1 and network in [0, 2, 3, 4]")
    nothing = all_by_hand(fashion, points=20).query("carried == 'nothing' and network in [0, 2, 3, 4]")
    got = part.quantities()["auc_universal.fashion-mnist"]
    assert got.networks == 4
    assert got.value == pytest.approx(roc_auc_score([True] * 4 + [False] * 4, [*own["score"], *nothing["score"]]))


def test_other_detectors_need_all_their_scores(fashion):
    networks = networks_of(FASHION, 0)
    for spec in (*scores_specs(FASHION, networks[2]), cleanse_of(FASHION, networks[2])):
        part = without(fashion, lambda one, spec=spec: one == spec)
        assert set(part.others()["network"]) == {0, 1, 3, 4, 5}


def test_other_detectors_need_the_batches_of_w(fashion):
    network = networks_of(FASHION, 0)[2]
    for pattern in (universals_of(FASHION, network)[0], cleanse_of(FASHION, network)):
        counted = crafted_batch_of(FASHION, pattern)
        part = without(fashion, lambda one, gone=counted: one == gone)
        assert set(part.others()["network"]) == {0, 1, 3, 4, 5}


def test_a_noise_level_counts_when_every_network_has_it(fashion):
    assert fashion.sigmas == [0.1, 0.25] and set(fashion.sensitivity(resamples=2)["sigma"]) == {0.1, 0.25}
    part = without(fashion, lambda one: one == batch_of(FASHION, fashion.networks[4], 3, 0.25))
    assert part.sigmas == [0.1] and part.networks == fashion.networks
    assert set(part.sensitivity(resamples=2)["sigma"]) == {0.1}


def test_candidates_of_backdoored_networks_alone_say_nothing_of_clean_ones(fashion):
    got = without(fashion, lambda s: isinstance(s, CleanseSpec) and s.network.attack is None).quantities()
    assert "candidates_found.fashion-mnist" in got and not [name for name in got if "on_clean" in name]


def test_one_perturbation_that_fools_nobody_leaves_the_classes_of_the_others(fashion):
    """Such a network has no classes to count; the mean of the others has an interval and a value."""
    records = dict(fashion.records)
    spec = next(s for s in records if isinstance(s, UniversalSpec) and s.bound == 10)
    arrays = records[spec].arrays
    records[spec] = dataclasses.replace(records[spec], arrays={**arrays, "with": arrays["without"]})
    got = dataclasses.replace(fashion, records=Records(records)).quantities()
    expected = universal_by_hand(fashion).query("bound == 10 and sigma == 0.1 and network > 0")["classes"].mean()
    assert got["classes_universal.fashion-mnist"].value == pytest.approx(expected)


def test_a_seed_has_networks_of_its_own():
    size = dataclasses.replace(FASHION, networks=1)
    found = Patterns(size, "paper", 1, Records(made_up(FASHION))).networks
    assert found == networks_of(size, 1) and {network.seed for network in found} == {1} and len(found) == 3


def test_the_source_says_where_numbers_come_from(fashion):
    networks = networks_of(FASHION, 0)
    for said in ("made up fashion-mnist", "T3", "6 of 6 networks", "paper", networks[0].key[:6], networks[-1].key[:6]):
        assert said in fashion.source


def test_what_is_missing_says_what_to_run(tmp_path):
    found = load(profile="paper", store=Store(tmp_path, writable=False))
    assert len(found) == 2 and not {name for name in quantities(*found) if name.endswith(("fashion-mnist", "cifar10"))}
    for part, size in zip(found, PROFILES["paper"].patterns, strict=True):
        assert part.networks == [] and part.pictures is None and part.quantities() == {}
        assert part.tests().empty and part.universal().empty and part.candidates().empty and part.others().empty
        assert part.universal_areas().empty and part.detectors().empty
        assert part.cleanse_table() == part.detectors_table() == "(Not yet run.)"
        assert part.success_table().count("(not yet run)") == 3
        assert "Not yet run" in part.missing
        assert "`bslib run patterns --profile paper --store book/records` computes them in a clone." in part.missing
        for said in (size.dataset, size.network, "28 ×" if size.detector_only else "12 ×", "none"):
            assert said in part.missing


@pytest.mark.parametrize("clean", [True, False])
def test_one_kind_of_network_alone_is_not_enough(fashion, clean):
    part = without(fashion, lambda s: isinstance(s, CleanseSpec) or (isinstance(s, NetworkSpec) and (s.attack is None) != clean))
    assert f"holds {2 if clean else 4} of them" in part.missing and "auc.fashion-mnist" not in part.quantities()


def test_two_networks_are_too_few_to_be_judged(three):
    """Drawn again and again, they give an area of 1 for sure, or a share without an interval."""
    for late in three.networks:
        part = without(three, lambda s, late=late: isinstance(s, UniversalSpec) and s.network == late)
        assert part.universal()["network"].nunique() == 2
        got = part.quantities()
        assert "clean_told_apart.fashion-mnist" in got and not [name for name in got if "universal" in name.split(".")[0]]
    assert "auc_universal.fashion-mnist" in three.quantities()


def test_half_the_records_judge_half_the_claims(found):
    half = {name: estimate for name, estimate in found.items() if "cifar10" not in name}
    for claim in claims_of("patterns"):
        assert (judge(claim, half) == "not yet run") == any("cifar10" in test.quantity for test in claim.tests), claim.id


@pytest.mark.parametrize("which", [0, 1])
def test_smoke_yields_no_verdict(which):
    size = PROFILES["smoke"].patterns[which]
    found = part_of(size, "smoke").quantities()
    assert (f"clean_told_apart.{size.dataset}" in found) == (which == 0), (
        "three networks of the first data set, two of the second"
    )
    assert f"auc.{size.dataset}" not in found, "of which two have a trigger, or one"
    assert {judge(claim, found) for claim in claims_of("patterns") if "arithmetic" not in claim.reading} == {"not yet run"}


# --- figures -----------------------------------------------------------------------------------------------------

DRAW = (figures.roc, figures.roc_by_setting, figures.universal, figures.reversed_triggers, figures.reversed_norms)


@pytest.fixture(autouse=True)
def nothing_stays_open():
    yield
    left = plt.get_fignums()
    plt.close("all")
    assert left == [], "a figure that pyplot holds is shown twice in a notebook"


def check_estimates(bar, places, estimates) -> None:
    """An error bar has its points and both ends of each interval where they should be."""
    estimates = list(estimates)
    assert np.allclose(bar[0].get_xdata(), places, atol=0.35) and len(bar[0].get_xdata()) == len(estimates)
    assert np.allclose(bar[0].get_ydata(), [e.value for e in estimates])
    ends = [[(x, e.low), (x, e.high)] for x, e in zip(bar[0].get_xdata(), estimates, strict=True)]
    assert np.allclose(bar[2][0].get_segments(), ends)


def test_roc_draws_the_curve_of_the_tests(cifar):
    figure, tests = figures.roc(cifar), all_by_hand(cifar)
    for axis, effective in zip(figure.axes, (False, True), strict=True):
        kept = tests[(tests["carried"] != "own") | (tests["success"] >= 0.9)] if effective else tests
        own = kept["carried"] == "own"
        false, true, _ = roc_curve(own, kept["score"])
        diagonal, curve = axis.lines
        assert np.allclose(diagonal.get_xydata(), [[0, 0], [1, 1]])
        assert np.allclose(curve.get_xydata(), np.column_stack([false, true])) and curve.get_drawstyle() == "steps-post"
        area = f"AUC {area_by_hand(kept)[1]:.2f} ["
        (text,) = (text.get_text() for text in axis.texts)
        assert text.startswith(area) and text.endswith(f"{2 if effective else 4} positive, 38 negative")
        assert ("90 %" in axis.get_title()) == effective and axis.get_xlabel() == "false positive rate"
    assert figure.axes[0].get_ylabel() == "true positive rate"
    said = figure.get_supxlabel()
    assert said.startswith(cifar.source) and "0.1" in said and "n = 50" in said and "60 points" in said


def test_roc_without_a_trigger_that_works_draws_the_diagonal_alone():
    figure = figures.roc(part_of(dataclasses.replace(FASHION, networks=1), success=lambda _: 0.89))
    assert [len(axis.lines) for axis in figure.axes] == [2, 1] and not figure.axes[1].texts


def test_roc_by_setting_draws_the_table(three, monkeypatch):
    table = three.sensitivity(resamples=5)
    monkeypatch.setattr(Patterns, "sensitivity", lambda _: table)
    figure = figures.roc_by_setting(three)
    usual = "center == 'mean' and signed and not effective"
    choices = [
        {f"{size} points": f"{usual} and batch == {size}" for size in (25, 50, 60)},
        {
            "mean, signed": f"{usual} and batch == 60",
            "median": "center == 'median' and signed and not effective and batch == 60",
            "no sign": "center == 'mean' and not signed and not effective and batch == 60",
            "90 % success": "center == 'mean' and signed and effective and batch == 60",
        },
    ]
    for axis, lines in zip(figure.axes, choices, strict=True):
        assert [bar.get_label() for bar in axis.containers] == list(lines)
        assert [text.get_text() for text in axis.get_legend().get_texts()] == list(lines)
        for bar, where in zip(axis.containers, lines.values(), strict=True):
            own = table.query(where)
            assert list(own["sigma"]) == [0.1, 0.25]
            check_estimates(bar, [0, 1], own["area"])
        points = [bar[0] for bar in axis.containers]
        assert len({x for dots in points for x in dots.get_xdata()}) == 2 * len(lines), "no setting is drawn over another"
        assert len({dots.get_color() for dots in points}) == len({dots.get_marker() for dots in points}) == len(lines)
        assert [label.get_text() for label in axis.get_xticklabels()] == [".1", ".25"]
        guess = [line for line in axis.lines if line.get_linestyle() == ":"]
        assert [list(line.get_ydata()) for line in guess] == [[0.5, 0.5]]
    assert "60 points" in figure.axes[1].get_title() and figure.get_supxlabel() == three.source


def test_universal_draws_the_table(fashion):
    figure, table = figures.universal(fashion), fashion.universal_areas()
    fooled, classes, area = figure.axes
    first = table[table["sigma"] == 0.1]
    for axis, name in ((fooled, "fooled"), (classes, "classes")):
        (bar,) = axis.containers
        check_estimates(bar, [0, 1], first[name])
        assert axis.get_ylim()[0] == 0
    levels = fashion.size.pattern_sigmas
    assert [bar.get_label() for bar in area.containers] == [rf"$\sigma$ = {sigma:g}" for sigma in levels]
    for bar, sigma in zip(area.containers, levels, strict=True):
        check_estimates(bar, [0, 1], table[table["sigma"] == sigma]["auc"])
    assert len({x for bar in area.containers for x in bar[0].get_xdata()}) == 2 * len(levels)
    for axis in figure.axes:
        assert [label.get_text() for label in axis.get_xticklabels()] == ["4", "10"] and "255" in axis.get_xlabel()
    assert "changed" in fooled.get_title() and "classes" in classes.get_title() and "AUC" in area.get_title()
    assert figure.get_supxlabel() == fashion.source


def test_reversed_triggers_draws_every_candidate(fashion, cifar):
    """A row for the first clean network and for the first of each trigger; the candidate of the backdoor's class stands out."""
    for part in (fashion, cifar):
        figure = figures.reversed_triggers(part)
        rows = np.array(figure.axes).reshape(3, 11)
        pictures = part.records[pictures_of(part.size, 0)].arrays
        assert [row[0].get_ylabel() for row in rows] == ["clean", "trigger 1", "trigger 4"]
        assert rows[0, 0].get_title() == "true" and not rows[0, 0].images
        for row, trigger, number in zip(rows, (None, 1, 4), (0, 2, 4), strict=True):
            network = networks_of(part.size, 0)[number]
            arrays = part.records[cleanse_of(part.size, network)].arrays
            if trigger:
                plain, stamped = pictures["images"][trigger - 1], pictures["stamped"][trigger - 1]
                drawn = np.asarray(row[0].images[0].get_array()).reshape(6, 6, -1)
                shown = np.moveaxis(np.where(plain == stamped, 0, stamped), 0, -1)
                assert np.array_equal(drawn, shown) and row[0].images[0].get_clim() == (0, 255) and 0 < (shown > 0).mean() < 0.5
            for k, axis in enumerate(row[1:]):
                drawn = np.asarray(axis.images[0].get_array()).reshape(6, 6, -1)
                assert np.allclose(drawn, np.moveaxis(arrays["masks"][k] * arrays["patterns"][k], 0, -1))
                assert axis.images[0].get_clim() == (0, 1)
                assert axis.get_title() == f"{k}: {arrays['masks'][k].sum():.0f}"
            bold = [axis.title.get_weight() == "bold" for axis in row[1:]]
            colours = [axis.title.get_color() for axis in row[1:]]
            own = network.attack.target if network.attack else None
            assert bold == [k == own for k in range(10)]
            assert own is None or colours.count(colours[own]) == 1
        assert figure.get_supxlabel() == part.source


def test_reversed_triggers_shows_the_first_network_that_has_candidates(fashion):
    networks = networks_of(FASHION, 0)
    part = without(fashion, lambda s: s == cleanse_of(FASHION, networks[2]) or s == pictures_of(FASHION, 0))
    row = np.array(figures.reversed_triggers(part).axes).reshape(3, 11)[1]
    masks = fashion.records[cleanse_of(FASHION, networks[3])].arrays["masks"]
    assert [axis.get_title() for axis in row[1:]] == [f"{k}: {mask.sum():.0f}" for k, mask in enumerate(masks)]
    assert not row[0].images, "no picture, no trigger"


def test_reversed_norms_draws_every_candidate(cifar):
    figure, table = figures.reversed_norms(cifar), candidates_by_hand(cifar).query("sigma == 0.1")
    values = (table["norm"], np.log10(table["p"]))
    for axis, ys in zip(figure.axes, values, strict=True):
        others, own = axis.collections
        assert [others.get_label(), own.get_label()] == ["other classes", "the backdoor's class"]
        for dots, where in ((others, ~table["own"]), (own, table["own"])):
            assert np.allclose(dots.get_offsets(), np.column_stack([table["network"], ys])[where], rtol=1e-6)
        assert to_hex(others.get_facecolor()[0]) != to_hex(own.get_facecolor()[0]) and len(own.get_offsets()) == 4
        assert [label.get_text() for label in axis.get_xticklabels()] == ["–", "–", "1", "1", "4", "4"]
    assert figure.axes[0].get_ylim()[0] == 0 and "L1" in figure.axes[0].get_title()
    assert [list(line.get_ydata()) for line in figure.axes[1].lines] == [[np.log10(0.05)] * 2]
    assert figure.get_supxlabel() == cifar.source


def test_figures_of_patterns_leave_out_networks_that_have_none(fashion):
    """Whose places on the axis would be empty; and they say how many there are."""
    late = networks_of(FASHION, 0)[1]
    part = without(fashion, lambda s: isinstance(s, (UniversalSpec, CleanseSpec)) and s.network == late)
    norms, universal = figures.reversed_norms(part), figures.universal(part)
    assert norms.get_supxlabel() == universal.get_supxlabel() == f"{part.source}; crafted for 5 of them"
    for axis in norms.axes:
        assert [label.get_text() for label in axis.get_xticklabels()] == ["–", "1", "1", "4", "4"]
        drawn = np.concatenate([np.asarray(dots.get_offsets())[:, 0] for dots in axis.collections])
        assert sorted(set(drawn)) == [0, 1, 2, 3, 4] and len(drawn) == 50


@pytest.mark.parametrize("draw", DRAW)
def test_what_is_missing_is_said_in_words(draw):
    found = draw(Patterns(CIFAR, "paper", 0, Records({})))
    assert type(found).__name__ == "Markdown" and "cifar10" in found.data
    assert "Not yet run" in found.data and "`bslib run patterns --profile paper --store book/records`" in found.data


@pytest.mark.parametrize("draw", DRAW[2:])
def test_missing_patterns_are_said_in_words(fashion, draw):
    """The detector is there, no pattern has been crafted yet."""
    found = draw(without(fashion, lambda s: isinstance(s, (UniversalSpec, CleanseSpec))))
    assert type(found).__name__ == "Markdown" and "crafted patterns" in found.data
    assert (
        "fashion-mnist" in found.data
        and "Not yet run" in found.data
        and "`bslib run patterns --profile paper --store book/records`" in found.data
    )


@pytest.mark.parametrize("which", [0, 1])
@pytest.mark.parametrize("draw", DRAW)
def test_figures_draw_the_smoke_profile(draw, which):
    """A network of each kind, batches of three points."""
    part = part_of(PROFILES["smoke"].patterns[which], "smoke")
    figure = draw(part)
    figure.draw_without_rendering()
    assert "smoke" in figure.get_supxlabel()


@pytest.mark.parametrize("draw", DRAW[:3])
def test_figures_of_a_detector_that_never_hesitates(draw):
    """All W zero, no trigger works, nobody is fooled: nothing is known, and nothing fails."""
    size = dataclasses.replace(FASHION, networks=2)
    records = made_up(size, success=lambda _: 0.0)
    for spec, record in records.items():
        arrays = dict(record.arrays)
        if isinstance(spec, CountsSpec):
            arrays["counts"] = np.zeros_like(arrays["counts"])
            arrays["counts"][..., 3] = 50
        if isinstance(spec, UniversalSpec):
            arrays["with"] = arrays["without"]
        records[spec] = dataclasses.replace(record, arrays=arrays)
    part = Patterns(size, "paper", 0, Records(records))
    draw(part).draw_without_rendering()
    assert part.quantities()["auc.fashion-mnist"].value == 0.5 and "classes_universal.fashion-mnist" not in part.quantities()
