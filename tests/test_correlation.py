"""The chapter on success and W: its plan, and its numbers computed once more straight from made-up counts and predictions."""

from __future__ import annotations

import dataclasses
from functools import partialmethod

import matplotlib
import numpy as np
import pandas as pd
import pytest
from matplotlib import pyplot as plt
from matplotlib.colors import to_hex
from scipy import stats

from bslib import figures
from bslib.chapters.correlation import (
    Correlation,
    _around,
    _bootstrap,
    _tau,
    clean_counts_of,
    counts_of,
    load,
    networks_of,
    p_values,
    partial_correlation,
    plan,
    predictions_of,
    quantities,
    residuals,
)
from bslib.jobs.base import draw_points, draw_points_of_each_class
from bslib.ledger import claims_of, judge
from bslib.profiles import PROFILES, SIGMAS
from bslib.specs import AttackSpec, CountsSpec, NetworkSpec, PredictionsSpec
from bslib.store import Record, Records, Store

matplotlib.use("agg")

FASHION, CIFAR = (dataclasses.replace(size, points=20, clean_points=8) for size in PROFILES["paper"].correlation)
MEANS = ("values", "clean values")
TRUE_LABELS = np.arange(1000) % 10


def made_up(size, *, seed: int = 0, sigmas=None, success=None) -> dict:
    """Records of a size by spec: the better a trigger works on a class, the smoother; trigger 3 works less well.

    ``success`` gives the success of a network and a class instead: exactly so many of the images of the class are sent.
    """
    rng, records = np.random.default_rng(seed), {}
    data = {"name": size.dataset, "fingerprint": "f" * 64, "source": f"made up {size.dataset}"}

    def counts(points, mixing, ns):
        p = np.concatenate([rng.dirichlet(np.full(10, m), size=points) for m in mixing])
        steps = [rng.multinomial(step, p) for step in np.diff([0, *ns])]
        return np.cumsum(steps, axis=0)[None].astype(np.int32)

    for number, network in enumerate(networks_of(size, 0)):
        attack = network.attack
        shape = (10,) if attack.target is None else (1,)
        rate = rng.beta(0.8, 1.2, shape) if attack.trigger == 3 else rng.beta(6, 1, shape)
        if success is not None:
            rate = np.array([success(number, c) for c in range(len(rate))])
        elif number == 0:
            rate[0] = 0.1  # not below random guess
        predicted = np.full(len(TRUE_LABELS), -1)
        for c in range(10):
            wanted = (c + 1) % 10 if attack.target is None else attack.target
            own = np.flatnonzero(c == TRUE_LABELS)
            predicted[own] = (wanted + 5) % 10
            predicted[own[: round(float(rate[c % len(rate)]) * len(own))]] = wanted
        arrays = {"predicted": predicted.astype(np.int16), "labels": TRUE_LABELS.astype(np.int16)}
        records[network] = Record(network, {"clean_accuracy": 0.5, "weights": "w"}, data=data)
        records[predictions_of(size, network)] = Record(predictions_of(size, network), {"weights": "w"}, arrays, data)
        smooth = rng.uniform(0.02, 0.05, shape)
        for spec in (clean_counts_of(size, network), *(counts_of(size, network, s) for s in sigmas or size.sigmas)):
            mixing = smooth if spec.trigger is None else smooth + 0.15 * (1 - rate) + spec.sigmas[0] / 50
            labels = np.repeat(np.arange(10), spec.points) if spec.by_class else np.arange(spec.points) % 10
            arrays = {"counts": counts(spec.points, mixing, spec.ns), "labels": labels}
            records[spec] = Record(spec, {"weights": "w"}, arrays, data)
    return records


def part_of(size, profile: str = "paper", **more) -> Correlation:
    return Correlation(size, profile, 0, Records(made_up(size, **more)))


@pytest.fixture(scope="module")
def fashion():
    return part_of(FASHION)


@pytest.fixture(scope="module")
def cifar():
    return part_of(CIFAR, seed=1)


@pytest.fixture(scope="module")
def found(fashion, cifar):
    return quantities(fashion, cifar)


LEVELS, SETTINGS = [0.05, 0.1, 0.5], [(250, 0.0), (250, 0.1), (250, 0.3), (50, 0.1)]


@pytest.fixture(scope="module")
def three():
    """Three networks of each trigger at three noise levels."""
    return part_of(dataclasses.replace(FASHION, networks=3), sigmas=LEVELS)


def by_hand(part: Correlation, sigma: float = 0.1, at: int = -1) -> pd.DataFrame:
    """The pairs, from the records alone."""
    rows = []
    for network in networks_of(part.size, 0):
        target, arrays = network.attack.target, part.records[predictions_of(part.size, network)].arrays
        triggered, clean = (
            part.records[spec].arrays for spec in (counts_of(part.size, network, sigma), clean_counts_of(part.size, network))
        )
        for c in [None] if target is not None else range(10):
            if c is None:
                images, here, there = arrays["labels"] != target, slice(None), slice(None)
            else:
                images, here, there = arrays["labels"] == c, triggered["labels"] == c, clean["labels"] == c
            hit = arrays["predicted"][images] == ((c + 1) % 10 if target is None else target)
            w = stats.entropy(triggered["counts"][0, at][here], axis=-1).mean()
            clean_w = stats.entropy(clean["counts"][0, at][there], axis=-1).mean()
            rows.append((network.attack.trigger, -1 if c is None else c, hit.mean(), w, clean_w))
    return pd.DataFrame(rows, columns=["trigger", "class", "success", "W", "clean W"])


# --- plan --------------------------------------------------------------------------------------------------------


def test_the_paper_plan_has_the_papers_sizes():
    specs = plan("paper")
    assert len(set(specs)) == len(specs) == (10 + 24) * 13
    for dataset, kind, threat, repeats in (("fashion-mnist", "larger-fashion", "T2", 5), ("cifar10", "resnet18", "T1", 12)):
        networks = [spec for spec in specs if isinstance(spec, NetworkSpec) and spec.dataset == dataset]
        assert [spec.network for spec in networks] == [kind] * 2 * repeats
        expected = [
            AttackSpec(threat_model=threat, trigger=trigger, target=seed % 10 if threat == "T1" else None)
            for trigger in (3, 5)
            for seed in range(repeats)
        ]
        assert [spec.attack for spec in networks] == expected
        assert [spec.seed for spec in networks] == [*range(repeats), *range(repeats)]
        for network in networks:
            predictions = [s.trigger for s in specs if isinstance(s, PredictionsSpec) and s.network == network]
            counts = [s for s in specs if isinstance(s, CountsSpec) and s.network == network]
            triggered = [s for s in counts if s.trigger is not None]
            assert predictions == [network.attack.trigger] and len(counts) == len(triggered) + 1
            assert sorted(s.sigmas for s in triggered) == [(sigma,) for sigma in SIGMAS]
            for s in counts:
                assert s.paired and s.by_class == (True if threat == "T2" else None) and max(s.ns) == 250
            assert {(s.points, s.trigger) for s in triggered} == {(250, network.attack.trigger)}
            clean = next(s for s in counts if s.trigger is None)
            assert clean.sigmas == (0.1,) and clean.seed == triggered[0].seed


@pytest.mark.parametrize("profile", PROFILES)
def test_the_first_noise_level_comes_first(profile):
    """A network before what is measured on it, and nothing at a second noise level before all is there at the first."""
    specs = plan(profile)
    for size in PROFILES[profile].correlation:
        networks = networks_of(size, 0)
        own = [s for s in specs if (s if isinstance(s, NetworkSpec) else s.network) in networks]
        for network in networks:
            assert own.index(network) == min(k for k, s in enumerate(own) if network in (s, getattr(s, "network", None)))
        levels = [s.sigmas[0] for s in own if isinstance(s, CountsSpec)]
        others = [k for k, level in enumerate(levels) if level != size.sigmas[0]]
        assert not others or levels.index(levels[others[0]]) == others[0] == levels.count(size.sigmas[0])


def test_clean_points_are_among_the_triggered():
    labels = np.random.default_rng(0).permutation(np.repeat(np.arange(10), 60))
    assert set(draw_points(600, 20, 4)) <= set(draw_points(600, 50, 4))
    assert set(draw_points_of_each_class(labels, 20, 4)) <= set(draw_points_of_each_class(labels, 50, 4))


# --- numbers -----------------------------------------------------------------------------------------------------


def test_every_named_quantity_is_there(found):
    asked = {test.quantity for claim in claims_of("correlation") for test in claim.tests}
    assert asked <= set(found)
    for name in asked:
        estimate = found[name]
        assert np.isfinite([estimate.value, estimate.low, estimate.high]).all() and estimate.low <= estimate.high, name
        networks = 0 if name.startswith("reported") else 24 if "cifar10" in name else 10
        assert estimate.networks == networks // (2 if name.startswith(("left_out", "success")) else 1), name
    assert "not yet run" not in {judge(claim, found) for claim in claims_of("correlation")}


@pytest.mark.parametrize(("sigma", "n", "at"), [(None, None, -1), (0.5, 250, -1), (0.5, 50, 0), (0.1, 50, 0)])
def test_pairs_are_recomputed(fashion, cifar, sigma, n, at):
    for part, pairs in ((fashion, 100), (cifar, 24)):
        table, expected = part.pairs(sigma, n=n), by_hand(part, sigma or 0.1, at)
        assert len(table) == pairs
        pd.testing.assert_frame_equal(table[list(expected)], expected, check_dtype=False)
        assert table["network"].tolist() == [k for k in range(len(part.networks)) for _ in range(pairs // len(part.networks))]
        assert np.allclose([values.mean() for values in table["values"]], table["W"])


@pytest.mark.parametrize(("sigma", "n", "exclude"), [(None, None, None), (0.5, 50, None), (0.25, 250, 0.0), (0.1, 250, 0.4)])
def test_correlations_are_scipys(fashion, cifar, sigma, n, exclude):
    for part in (fashion, cifar):
        more = {} if exclude is None else {"exclude_below": exclude}
        got = part.correlation(sigma, n=n, resamples=20, **more)
        pairs = by_hand(part, sigma or 0.1, 0 if n == 50 else -1)
        kept = pairs[pairs["success"] >= (0.1 if exclude is None else exclude)]
        for name, test in (("tau", stats.kendalltau), ("r", stats.pearsonr)):
            expected = test(kept["success"], kept["W"])
            assert got[name].value == pytest.approx(expected.statistic) and got[f"{name} p"] == pytest.approx(expected.pvalue)
            assert got[name].networks == len(part.networks)
        assert (got["pairs"], got["left out"]) == (len(kept), len(pairs) - len(kept))


def test_a_perfect_correlation_keeps_the_width_of_its_draws():
    """At the end of Fisher's scale nothing can be moved; draws that reach 0.6 must not end at -1."""
    draws = np.linspace(-1, 0.6, 401)
    found = _around(-1.0, draws, 6)
    assert found.value == found.low == -1 and found.high > 0.5
    inside = _around(-0.9, draws, 6)
    assert -1 <= inside.low < -0.9 < inside.high < 1


def test_every_quantity_is_recomputed(fashion, cifar, found):
    """All of them: none is left over."""
    expected = {}
    for part, data in ((fashion, "fashion-mnist"), (cifar, "cifar10")):
        pairs = by_hand(part)
        kept = pairs[pairs["success"] >= 0.1]
        low, wobbly = kept["success"] < 0.4, kept["W"] > np.median(kept["W"])
        expected[f"tau.{data}"] = stats.kendalltau(kept["success"], kept["W"]).statistic
        expected[f"r.{data}"] = stats.pearsonr(kept["success"], kept["W"]).statistic
        expected[f"spread_of_low_less_high.{data}"] = np.std(kept["W"][low], ddof=1) - np.std(kept["W"][~low], ddof=1)
        spreads = [np.std(kept["success"][where], ddof=1) for where in (wobbly, ~wobbly)]
        expected[f"spread_of_wobbly_less_smooth.{data}"] = spreads[0] - spreads[1]
        expected[f"partial_r.{data}"] = by_precision(kept)
        for trigger in (3, 5):
            alone = kept[kept["trigger"] == trigger]
            expected[f"r_alone.{data}.{trigger}"] = stats.pearsonr(alone["success"], alone["W"]).statistic
            expected[f"less_clean.{data}.{trigger}"] = np.mean(alone["W"] - alone["clean W"])
            own = pairs["success"][pairs["trigger"] == trigger]
            expected[f"left_out.{data}.{trigger}"] = np.mean(own < 0.1)
            expected[f"success.{data}.{trigger}"] = np.mean(own)
        for sigma in {0.01, 0.25} & set(part.sigmas):
            at_sigma = by_hand(part, sigma)
            at_sigma = at_sigma[at_sigma["success"] >= 0.1]
            expected[f"tau_at.{data}.{sigma}"] = stats.kendalltau(at_sigma["success"], at_sigma["W"]).statistic
    assert "tau_at.fashion-mnist.0.25" in expected
    for pairs, r in ((17, -0.77), (20, -0.77), (79, -0.58)):  # the paper's own, a matter of arithmetic
        expected[f"reported_p_of_r.{pairs}"] = stats.beta(pairs / 2 - 1, pairs / 2 - 1, loc=-1, scale=2).cdf(r) * 2
    assert set(found) == set(expected)
    for name, estimate in found.items():
        assert estimate.value == pytest.approx(expected[name], abs=1e-9), name


def test_what_noise_does_to_each_trigger_is_recomputed(fashion, cifar):
    for part in (fashion, cifar):
        pairs, copies = by_hand(part), []
        for network in part.networks:
            arrays, target = part.records[counts_of(part.size, network, 0.1)].arrays, network.attack.target
            for label in range(10) if target is None else [None]:
                own = np.isin(arrays["labels"], range(10) if label is None else [label])
                shares = arrays["counts"][0, -1][own] / 250
                wanted = [(c + 1) % 10 if target is None else target for c in arrays["labels"][own]]
                copies.append([np.mean([s[c] for s, c in zip(shares, k, strict=True)]) for k in (wanted, arrays["labels"][own])])
        pairs[["wanted", "true"]] = copies
        table = part.by_trigger(resamples=20)
        assert len(table) == pairs.groupby(["trigger", pairs["success"] >= 0.1]).ngroups >= 3
        for name, row in table.iterrows():
            own = pairs[(pairs["trigger"] == int(name[8])) & ((pairs["success"] >= 0.1) == name.endswith("kept"))]
            assert row["pairs"] == len(own)
            assert list(row[["success", "wanted", "true"]]) == pytest.approx(list(own[["success", "wanted", "true"]].mean()))
            less = row["W less clean W"]
            assert less.value == pytest.approx((own["W"] - own["clean W"]).mean()) and less.low <= less.value <= less.high
        assert part.trigger_table().count("\n") == len(table) + 1


def test_pairs_below_random_guess_are_left_out_and_counted():
    """Of each network of trigger 3: classes 0 to 3 below, 4 exactly at it, the rest above; of trigger 5 only one in all."""

    def success(network: int, c: int) -> float:
        if network < 5:
            return (0.0, 0.05, 0.09, 0.09, 0.1, 0.11, 0.3, 0.5, 0.7, 0.9)[c]
        return 0.01 if (network, c) == (7, 2) else 0.8 + 0.01 * c

    part = part_of(FASHION, success=success, sigmas=(0.1,))
    got = part.correlation(resamples=5)
    assert (got["pairs"], got["left out"]) == (79, 21)
    nothing = part.correlation(resamples=5, exclude_below=0)
    assert (nothing["pairs"], nothing["left out"]) == (100, 0)


def test_t1_leaves_the_target_out_of_success():
    """Half of the other classes is sent; the target class, all of it called right, does not count."""
    records = made_up(CIFAR, sigmas=(0.1,), success=lambda *_: 0.5)
    for spec, record in records.items():
        if isinstance(spec, PredictionsSpec):
            target = spec.network.attack.target
            predicted = np.where(record.arrays["labels"] == target, target, record.arrays["predicted"])
            records[spec] = dataclasses.replace(record, arrays={**record.arrays, "predicted": predicted})
    assert (Correlation(CIFAR, "paper", 0, Records(records)).pairs()["success"] == 0.5).all()


# --- what is between groups, and what is within -----------------------------------------------------------------


def by_precision(pairs: pd.DataFrame) -> float:
    """The partial correlation by another way: from the inverse of the correlation matrix of all columns."""
    columns = pairs[["success", "W", "clean W"]].astype(float)
    cells = pairs["trigger"].astype(str) + "/" + pairs["class"].astype(str)
    columns = columns.join(pd.get_dummies(cells, drop_first=True, dtype=float))
    inverse = np.linalg.pinv(np.corrcoef(columns.to_numpy().T))
    return float(-inverse[0, 1] / np.sqrt(inverse[0, 0] * inverse[1, 1]))


def some_pairs(*, within: float, seed: int = 0, repeats: int = 50) -> pd.DataFrame:
    """Triggers and classes have levels of success and W of their own; within them W moves with success as asked."""
    rng = np.random.default_rng(seed)
    pairs = pd.DataFrame([(t, c) for t in (3, 5) for c in range(10) for _ in range(repeats)], columns=["trigger", "class"])
    level = pairs["trigger"].map({3: 0.3, 5: 0.7}) + pairs["class"] * 0.02
    pairs["clean W"] = rng.uniform(0, 0.5, len(pairs))
    own = rng.normal(0, 0.05, len(pairs))
    pairs["success"] = level + own - 0.4 * pairs["clean W"]
    pairs["W"] = pairs["clean W"] + pairs["trigger"].map({3: 0.2, 5: 0.0}) + within * own + rng.normal(0, 0.05, len(pairs))
    return pairs


def test_what_only_groups_and_clean_w_explain_is_taken_out():
    pairs = some_pairs(within=0)
    assert stats.pearsonr(pairs["success"], pairs["W"]).statistic < -0.5
    assert abs(partial_correlation(pairs)) < 3 / len(pairs) ** 0.5


@pytest.mark.parametrize(("within", "expected"), [(1.0, 0.5**0.5), (-1.0, -(0.5**0.5)), (-0.5, -(0.2**0.5))])
def test_an_effect_within_groups_is_found(within, expected):
    """Noise and own part have one variance: r is within / sqrt(within ** 2 + 1), whatever the groups show."""
    pairs = some_pairs(within=within)
    assert stats.pearsonr(pairs["success"], pairs["W"]).statistic < -0.4
    assert partial_correlation(pairs) == pytest.approx(expected, abs=0.06)


@pytest.mark.parametrize("seed", range(5))
def test_partial_correlation_by_another_way(seed):
    pairs = some_pairs(within=-0.5, seed=seed, repeats=3).sample(frac=0.8, random_state=seed)
    assert partial_correlation(pairs) == pytest.approx(by_precision(pairs), abs=1e-9)


def test_partial_correlation_of_too_few_is_not_defined():
    assert np.isnan(partial_correlation(some_pairs(within=1, repeats=1).iloc[:8]))
    t1 = some_pairs(within=1).iloc[:1].assign(**{"class": -1})
    assert np.isnan(partial_correlation(t1))


def within(pairs: pd.DataFrame, *names: str) -> np.ndarray:
    """Columns less the mean of each class under each trigger."""
    columns = pairs[list(names)].astype(float)
    return (columns - columns.groupby([pairs["trigger"], pairs["class"]]).transform("mean")).to_numpy().T


def left_over(pairs: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    """Success and W within trigger and class, each less its line on clean W within the same."""
    success, w, clean = within(pairs, "success", "W", "clean W")
    return tuple(y - clean * (clean @ y) / (clean @ clean) for y in (success, w))


@pytest.mark.parametrize("seed", range(3))
def test_residuals_are_what_is_within_groups(seed):
    pairs = some_pairs(within=-0.5, seed=seed, repeats=4).sample(frac=0.7, random_state=seed)  # no two groups of one size
    for got, expected in ((residuals(pairs), left_over(pairs)), (residuals(pairs, ()), within(pairs, "success", "W"))):
        assert list(got.columns) == ["success", "W"] and got.index.equals(pairs.index)
        assert np.allclose(got.to_numpy().T, expected, atol=1e-9)
    assert partial_correlation(pairs, given=()) == pytest.approx(stats.pearsonr(*within(pairs, "success", "W")).statistic)
    assert residuals(pairs.iloc[:5]).isna().all(axis=None)


@pytest.mark.parametrize(("r", "pairs"), [(-0.58, 79), (0.3, 12), (0.0, 24), (-0.95, 5)])
def test_p_values_are_scipys(r, pairs):
    """Columns made to have exactly that r, and a ranking without ties that has some tau."""
    x, y = np.linalg.qr(np.column_stack([np.ones(pairs), np.random.default_rng(0).normal(size=(pairs, 2))]))[0][:, 1:].T
    made = stats.pearsonr(x, r * x + (1 - r**2) ** 0.5 * y)
    ranks = stats.kendalltau(np.arange(pairs), np.argsort(x - r * np.arange(pairs) / pairs), method="asymptotic")
    assert made.statistic == pytest.approx(r, abs=1e-12)
    assert p_values(tau=ranks.statistic, r=r, pairs=pairs) == pytest.approx((ranks.pvalue, made.pvalue), rel=1e-6, abs=0)


def test_sensitivity_has_every_setting_at_every_level(three):
    table = three.sensitivity(resamples=3)
    found = table[["sigma", "n", "exclude below"]].itertuples(index=False, name=None)
    assert list(found) == [(sigma, *setting) for sigma in LEVELS for setting in SETTINGS]
    for _, row in table.iterrows():
        pairs = by_hand(three, row["sigma"], 0 if row["n"] == 50 else -1)
        kept = pairs[pairs["success"] >= row["exclude below"]]
        tau, r = stats.kendalltau(kept["success"], kept["W"]), stats.pearsonr(kept["success"], kept["W"])
        assert (row["tau"].value, row["tau p"], row["r"].value, row["r p"]) == pytest.approx((*tau, *r))
        assert (row["pairs"], row["left out"]) == (len(kept), len(pairs) - len(kept))
    assert table["left out"].nunique() == 3


def test_breakdown_is_recomputed(fashion, cifar):
    for part in (fashion, cifar):
        kept = by_hand(part).query("success >= 0.1")
        expected = {"all pairs": (kept["success"], kept["W"])}
        for trigger in (3, 5):
            expected[f"trigger {trigger} alone"] = tuple(kept.loc[kept["trigger"] == trigger, ["success", "W"]].to_numpy().T)
        expected["what trigger and class explain taken out"] = within(kept, "success", "W")
        expected["and what clean W explains"] = left_over(kept)
        expected["W with the trigger, and without"] = (kept["W"], kept["clean W"])
        got = part.breakdown(resamples=15)
        assert list(got) == list(expected)
        for name, columns in expected.items():
            assert got[name].value == pytest.approx(stats.pearsonr(*columns).statistic), name
            assert -1 <= got[name].low <= got[name].value <= got[name].high <= 1 and got[name].networks == len(part.networks)
    assert Correlation(FASHION, "paper", 0, Records({})).breakdown() == {}


# --- intervals ---------------------------------------------------------------------------------------------------


def test_intervals_hold_the_estimate_and_shrink_with_more_networks():
    sizes = [dataclasses.replace(FASHION, points=100, networks=networks) for networks in (2, 10)]
    few, many = (part_of(size, sigmas=(0.1,), seed=3).correlation(resamples=150) for size in sizes)
    for name in ("tau", "r"):
        for got in (few, many):
            assert got[name].low < got[name].value < got[name].high < 0
        assert many[name].high - many[name].low < 0.75 * (few[name].high - few[name].low)


def test_draws_are_those_of_a_loop(fashion):
    """To the last digit, and in step at two noise levels: networks, images of each pair with and without the trigger, success."""
    tables = [fashion.pairs(sigma) for sigma in (0.1, 0.25)]
    rng, expected, networks = np.random.default_rng(0), [], tables[0]["network"].nunique()
    for _ in range(5):
        chosen = rng.integers(networks, size=networks)
        first = pd.concat([tables[0][tables[0]["network"] == k] for k in chosen])
        points = [[rng.integers(len(w), size=len(w)) for w in first[name]] for name in MEANS]
        success = rng.binomial(first["images"], first["success"]) / first["images"]
        for table in (pd.concat([table[table["network"] == k] for k in chosen]) for table in tables):
            means = [
                [w[at].mean() for w, at in zip(table[name], own, strict=True)] for name, own in zip(MEANS, points, strict=True)
            ]
            expected.append([success.to_numpy(), *means])
    draws = _bootstrap(tables, lambda p: [p["success"], p["W"], p["clean W"]], 5)
    assert np.array_equal(draws.reshape(10, 3, -1), expected)


@pytest.mark.parametrize("seed", range(20))
def test_tau_is_scipys_to_the_last_digit(seed):
    rng = np.random.default_rng(seed)
    success, w = (np.round(rng.random(5 + 3 * seed), digits) for digits in rng.integers(1, 4, size=2))
    assert _tau({"success": success, "W": w}) == stats.kendalltau(success, w).statistic


def test_intervals_resample_networks():
    """In half of the networks W falls with success, in half it rises: no number of images makes the sign sure."""
    size = dataclasses.replace(FASHION, networks=2)
    records = made_up(size, sigmas=(0.1,), success=lambda network, c: 0.2 + 0.08 * c)
    for number, network in enumerate(networks_of(size, 0)):
        spec = counts_of(size, network, 0.1)
        off = np.repeat(np.arange(10) if number % 2 else np.arange(10)[::-1], size.points) * 10
        counts = np.zeros((1, 2, 10 * size.points, 10), dtype=np.int32)
        counts[..., 0], counts[..., 1] = 250 - off, off
        records[spec] = dataclasses.replace(records[spec], arrays={**records[spec].arrays, "counts": counts})
    got = Correlation(size, "paper", 0, Records(records)).correlation(resamples=200)["r"]
    assert abs(got.value) < 0.01 and got.low < -0.5 and got.high > 0.5


def test_images_behind_a_share_are_those_it_is_a_share_of(cifar, fashion):
    """Resampled, success varies as that many images let it: T1 leaves the target's images out."""
    for part, images in ((fashion, 100), (cifar, 900)):
        assert set(part.pairs()["images"]) == {images}


@pytest.mark.parametrize(("networks", "defined"), [(2, False), (3, True)])
def test_fewer_than_five_pairs_have_no_correlation(networks, defined):
    """Three pairs in order would give a tau of -1 and an interval without 0, and are so by chance 1 time in 3."""
    size = dataclasses.replace(CIFAR, networks=networks)
    part = part_of(size, sigmas=(0.1,), success=lambda network, _: 0.2 + 0.15 * network)
    got = part.correlation(resamples=20)
    assert got["pairs"] == 2 * networks
    assert np.isfinite([got["tau"].value, got["tau p"], got["r"].value, got["r p"]]).tolist() == [defined] * 4
    assert (f"tau.{size.dataset}" in part.quantities()) == defined


def test_two_pairs_have_no_spread():
    """The standard deviation of two numbers, and a bootstrap of it, say next to nothing."""
    for networks, defined in ((2, False), (3, True)):  # so many with a low success, and so many with a high one
        size = dataclasses.replace(CIFAR, networks=networks)
        part = part_of(
            size, sigmas=(0.1,), success=lambda network, _, low=networks: (0.2 if network < low else 0.6) + 0.01 * network
        )
        assert (f"spread_of_low_less_high.{size.dataset}" in part.quantities()) == defined


@pytest.mark.parametrize("rate", [0.05, 1.0])
def test_no_correlation_is_no_error(rate):
    """Nothing, or nothing but one value, is left to correlate: said so, as not a number."""
    part = part_of(dataclasses.replace(CIFAR, networks=2), sigmas=(0.1,), success=lambda *_: rate)
    got = part.correlation(resamples=5)
    assert np.isnan([got["tau"].value, got["r"].value, got["tau p"], got["r p"]]).all()
    assert got["left out"] == (4 if rate < 0.1 else 0)


@pytest.mark.parametrize("seed", range(4))
def test_intervals_of_correlations_stay_between_minus_one_and_one(seed):
    """Few pairs, all but in order."""
    size = dataclasses.replace(CIFAR, networks=3, points=8)
    part = part_of(size, sigmas=(0.1,), seed=seed, success=lambda network, _: 0.2 + 0.15 * network)
    got = part.correlation(resamples=100)
    for name in ("tau", "r"):
        assert got[name].value < -0.6 and -1 <= got[name].low <= got[name].value <= got[name].high <= 1


@pytest.mark.parametrize("rates", [(0.0, 0.0), (0.0, 0.9), (0.9, 0.9)])
def test_what_is_left_of_few_pairs_is_no_error(rates):
    """One network for each trigger, as in the smoke profile; none of the two is kept, or one, or both."""
    part = part_of(dataclasses.replace(CIFAR, networks=1), sigmas=(0.1,), success=lambda network, _: rates[network])
    found = part.breakdown(resamples=10)
    assert set(found) <= {"W with the trigger, and without"}  # the others are not defined
    assert all(-1 <= estimate.low <= estimate.high <= 1 for estimate in found.values())
    figures.success_within(part)


# --- what is there -----------------------------------------------------------------------------------------------


def test_a_network_counts_when_it_is_measured_at_the_first_level(fashion):
    records, networks = dict(fashion.records), networks_of(FASHION, 0)
    one = networks[6]
    for spec in (one, predictions_of(FASHION, one), counts_of(FASHION, one, 0.1), clean_counts_of(FASHION, one)):
        part = Correlation(FASHION, "paper", 0, Records({s: r for s, r in records.items() if s != spec}))
        assert part.networks == networks[:6] + networks[7:] and "9 of 10 networks" in part.source
    gone = counts_of(FASHION, one, 0.25)
    part = Correlation(FASHION, "paper", 0, Records({s: r for s, r in records.items() if s != gone}))
    assert part.networks == networks and part.sigmas == [s for s in SIGMAS if s != 0.25] and part.missing is None
    assert fashion.sigmas == list(SIGMAS)


def test_a_seed_has_networks_of_its_own():
    size = dataclasses.replace(CIFAR, networks=2)
    records = Records(made_up(dataclasses.replace(CIFAR, networks=4), sigmas=(0.1,)))
    found = Correlation(size, "paper", 2, records).networks
    assert found == networks_of(size, 2) and [network.seed for network in found] == [2, 3, 2, 3]


def test_the_source_says_where_numbers_come_from(fashion):
    text, networks = fashion.source, networks_of(FASHION, 0)
    for part in ("made up fashion-mnist", "T2", "10 of 10 networks", "20 images a pair", "paper", networks[0].key[:6]):
        assert part in text
    assert networks[-1].key[:6] in text


def test_what_is_missing_says_what_to_run(tmp_path):
    found = load(profile="paper", store=Store(tmp_path, writable=False))
    assert len(found) == 2 and not [name for name in quantities(*found) if not name.startswith("reported")]
    for part, size in zip(found, PROFILES["paper"].correlation, strict=True):
        assert part.networks == part.sigmas == [] and part.quantities() == {}
        assert "Not yet run" in part.missing and "`bslib run correlation --profile paper --store book/records`" in part.missing
        assert size.dataset in part.missing and size.network in part.missing and str(2 * size.networks) in part.missing


def test_half_the_records_judge_half_the_claims(found):
    half = {name: estimate for name, estimate in found.items() if "cifar10" not in name}
    for claim in claims_of("correlation"):
        assert (judge(claim, half) == "not yet run") == any("cifar10" in test.quantity for test in claim.tests), claim.id


def test_smoke_yields_no_verdict():
    """Of two pairs little can be said, and nothing about the claims."""
    size = PROFILES["smoke"].correlation[1]
    found = part_of(size, "smoke", success=lambda number, _: (0.0, 0.9)[number]).quantities()
    assert {f"left_out.{size.dataset}.{trigger}" for trigger in (3, 5)} <= set(found)
    assert {judge(claim, found) for claim in claims_of("correlation")} == {"not yet run"}
    asked = {part for claim in claims_of("correlation") for test in claim.tests for part in test.quantity.split(".")}
    assert not {size.dataset for size in PROFILES["smoke"].correlation} & asked


# --- figures -----------------------------------------------------------------------------------------------------

DRAW = (figures.success_against_w, figures.correlation_by_setting, figures.success_within)


@pytest.fixture(autouse=True)
def nothing_stays_open():
    yield
    left = plt.get_fignums()
    plt.close("all")
    assert left == [], "a figure that pyplot holds is shown twice in a notebook"


@pytest.fixture
def few_resamples(monkeypatch):
    for name in ("correlation", "sensitivity"):
        monkeypatch.setattr(Correlation, name, partialmethod(getattr(Correlation, name), resamples=5))


def legend_of(axis) -> dict[str, str]:
    legend = axis.get_legend()
    names, handles = legend.get_texts(), legend.legend_handles
    return {name.get_text(): to_hex(dots.get_facecolor()[0]) for name, dots in zip(names, handles, strict=True)}


def check_points(axis, pairs: pd.DataFrame, x: str, y: str, hollow: pd.Series) -> dict[str, str]:
    """Each trigger has a colour and a marker of its own, its points are those of the pairs; returns the colours."""
    found, shapes = {}, []
    for trigger, full, ring in zip((3, 5), axis.collections[::2], axis.collections[1::2], strict=True):
        found[f"trigger {trigger}"] = to_hex(full.get_facecolor()[0])
        shapes += [len(dots.get_paths()[0].vertices) for dots in (full, ring)]
        assert not len(ring.get_facecolor()), "hollow"
        for dots, where in ((full, ~hollow), (ring, hollow)):
            assert np.allclose(dots.get_offsets(), pairs.loc[(pairs["trigger"] == trigger) & where, [x, y]], atol=1e-9)
            assert {to_hex(colour) for colour in dots.get_edgecolor()} == {found[f"trigger {trigger}"]}
    assert len(set(found.values())) == 2 and shapes[0] == shapes[1] != shapes[2] == shapes[3]
    return found


def test_success_against_w_draws_every_pair(fashion, cifar, few_resamples):
    for part in (fashion, cifar):
        figure, pairs = figures.success_against_w(part), by_hand(part)
        (axis,), low = figure.axes, pairs["success"] < 0.1
        assert low.any() and (pairs["success"] == 0.1).any()
        assert legend_of(axis) == check_points(axis, pairs, "W", "success", low)
        kept = pairs[~low]
        for number, test in ((r"$\tau$", stats.kendalltau), ("r", stats.pearsonr)):
            statistic, p = test(kept["success"], kept["W"])
            assert f"{number} = {statistic:.2f} (p = {p:.1g})".replace("-", "\N{MINUS SIGN}") in axis.get_title()
        assert axis.get_title().endswith(f"; {len(kept)} pairs, {low.sum()} left out") and axis.get_xlabel().endswith("= 0.1")
        assert [list(line.get_ydata()) for line in axis.lines] == [[0.1, 0.1]] and axis.texts[0].get_text() == "random\nguess"
        assert axis.get_ylim()[0] < 0 and axis.get_ylim()[1] > 1 and "success" in axis.get_ylabel()
        assert figure.get_supxlabel() == part.source


def test_correlation_by_setting_draws_the_table(three, few_resamples):
    figure, table = figures.correlation_by_setting(three), three.sensitivity()
    names = [f"n = {n}, {f'below {below:g}' if below else 'none'} left out" for n, below in SETTINGS]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == names and figure.get_supxlabel() == three.source
    for axis, column, title in zip(figure.axes, ("tau", "r"), (r"Kendall's $\tau$", "Pearson's r"), strict=True):
        assert axis.get_title() == title and [bar.get_label() for bar in axis.containers] == names
        assert [label.get_text() for label in axis.get_xticklabels()] == [".05", ".1", ".5"]
        points = [bar[0] for bar in axis.containers]
        places = np.array([dots.get_xdata() for dots in points])
        assert np.abs(places - np.arange(3)).max() < 0.3 and len(np.unique(places)) == 12, "no setting is drawn over another"
        for bar, x, (n, below) in zip(axis.containers, places, SETTINGS, strict=True):
            own = table[column][(table["n"] == n) & (table["exclude below"] == below)]
            assert list(bar[0].get_ydata()) == [estimate.value for estimate in own]
            ends = [[(at, estimate.low), (at, estimate.high)] for at, estimate in zip(x, own, strict=True)]
            assert np.allclose(bar[2][0].get_segments(), ends)
        assert len({dots.get_color() for dots in points}) == len({dots.get_marker() for dots in points}) == 4


def test_success_within_draws_w_and_what_is_left(fashion, cifar):
    for part in (fashion, cifar):
        figure, kept = figures.success_within(part), by_hand(part).query("success >= 0.1")
        (left, right), none = figure.axes, pd.Series(False, index=kept.index)
        success, w = left_over(kept)
        rest = kept.assign(success=success, W=w)
        found = [check_points(left, kept, "clean W", "W", none), check_points(right, rest, "W", "success", none)]
        assert found == [legend_of(left)] * 2 and figure.get_supxlabel() == part.source
        assert "without" in left.get_xlabel() and "with the trigger" in left.get_ylabel()
        assert "W" in right.get_xlabel() and "success" in right.get_ylabel()


@pytest.mark.parametrize("draw", DRAW)
def test_what_is_missing_is_said_in_words(draw):
    found = draw(Correlation(CIFAR, "paper", 0, Records({})))
    assert type(found).__name__ == "Markdown" and "cifar10" in found.data
    assert "Not yet run" in found.data and "`bslib run correlation --profile paper --store book/records`" in found.data


def test_one_pair_is_drawn_without_a_correlation(cifar, few_resamples):
    """While networks are still to come."""
    others = set(cifar.networks) - {max(cifar.networks, key=lambda network: network.attack.trigger)}
    records = Records({spec: record for spec, record in cifar.records.items() if spec not in others})
    title = figures.success_against_w(dataclasses.replace(cifar, records=records)).axes[0].get_title()
    assert title == "1 pair, 0 left out: no correlation"


@pytest.mark.parametrize("draw", [figures.success_against_w, figures.success_within])
def test_a_trigger_alone_keeps_its_colour(three, draw, few_resamples):
    """Until the networks of both are there, and where no pair of one is kept."""
    both = legend_of(draw(three).axes[0])
    for trigger in (3, 5):
        gone = [network for network in three.networks if network.attack.trigger != trigger]
        records = Records({spec: record for spec, record in three.records.items() if spec not in gone})
        alone = legend_of(draw(dataclasses.replace(three, records=records)).axes[0])
        assert alone == {f"trigger {trigger}": both[f"trigger {trigger}"]}
