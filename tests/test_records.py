"""The committed records, read with json, numpy and SciPy alone: what the book says follows from them."""

import json
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from matplotlib.cbook import boxplot_stats
from scipy import stats

from bslib.chapters import CHAPTERS, plan_of
from bslib.chapters.beyond import FIRST_SEED
from bslib.chapters.correlation import results as correlation
from bslib.chapters.correlation.pairs import correlations
from bslib.statistics import Estimate
from bslib.store import PUBLISHED, open_store
from bslib.verify import verify

RECORDS = Path(__file__).parents[1] / "book" / "records"
DEBIAN = Path("/usr/share/datasets/fashion-mnist")
FASHION_MNIST = "201c823b"  # the fingerprint of the original files begins so


@cache
def texts(kind: str) -> dict[str, dict]:
    """The text of each record of a kind, by key."""
    return {path.stem: json.loads(path.read_text()) for path in sorted((RECORDS / kind).glob("*.json"))}


@cache
def array_files(kind: str) -> dict[str, Path]:
    """The file with the arrays of each record of a kind, by key."""
    return {path.name.split(".")[0]: path for path in (RECORDS / kind).glob("*.npz")}


def raw(kind, *, threat_model=None, **wanted):
    """Spec and arrays of the Fashion-MNIST records of a kind in the paper's chapters, by seed; of one threat model, if named."""
    found = {}
    for key, record in texts(kind).items():
        spec = record["spec"]
        network = spec if kind == "network" else spec["network"]  # a network's "network" is its name
        if network["dataset"] == "cifar10" or network["seed"] >= FIRST_SEED:
            continue
        if threat_model and spec["network"].get("attack", {}).get("threat_model") != threat_model:
            continue
        if all(spec.get(name) == value for name, value in wanted.items()):
            content = dict(np.load(array_files(kind)[key])) if record["arrays"] else {}
            found[spec["network"]["seed"] if kind in ("counts", "predictions") else spec["seed"]] = record, content
    return found


@pytest.fixture(scope="module")
def over_n():
    return raw("counts", ns=[10, 25, 50, 100, 250, 500, 1000])


@pytest.fixture(scope="module")
def over_sigma():
    return raw("counts", ns=[250], paired=None, held_out=None)


def test_every_committed_record_fits_its_checksum_and_says_where_it_comes_from():
    records = list(open_store(PUBLISHED).iter_records())
    assert len(records) >= len(list(RECORDS.glob("*/*.json"))) >= 17
    for record in records:
        assert {"code", "torch", "device", "seconds", "date"} <= set(record.provenance)
        assert record.provenance["code"] and "+" not in record.provenance["code"], "made by code that was not committed"
        assert record.data.get("fingerprint") or record.spec.kind == "toy"
        if record.data and record.data["name"] == "fashion-mnist":
            assert record.data["fingerprint"].startswith(FASHION_MNIST)


def test_counts_are_whole_and_of_the_right_number(over_n, over_sigma):
    assert set(over_n) == set(over_sigma) == set(range(5))
    for record, arrays in [*over_n.values(), *over_sigma.values()]:
        spec, counts = record["spec"], arrays["counts"]
        assert counts.shape == (len(spec["sigmas"]), len(spec["ns"]), 2500, 10)
        assert (counts.sum(-1) == np.array(spec["ns"])[:, None]).all()
        assert (np.diff(counts, axis=1) >= 0).all(), "prefixes nest"


def test_both_sweeps_of_a_network_agree_where_they_meet(over_n, over_sigma):
    """Same images, same noise, same weights, in two jobs: the counts at sigma 0.1 and 0.25, n = 250 are the same numbers."""
    for seed, (record, arrays) in over_n.items():
        other, others = over_sigma[seed]
        assert record["result"]["weights"] == other["result"]["weights"]
        for sigma in (0.1, 0.25):
            here = arrays["counts"][record["spec"]["sigmas"].index(sigma), 4]
            there = others["counts"][other["spec"]["sigmas"].index(sigma), 0]
            assert np.abs(here - there).sum() <= 2


def test_the_chapters_numbers_follow_from_the_raw_counts(over_n, over_sigma, published_numbers):
    numbers = published_numbers["parameters"]
    w = np.stack([stats.entropy(arrays["counts"], axis=-1) for _, arrays in over_n.values()])
    means, spreads = w.mean((0, 3)), w.std(-1, ddof=1).mean(0)
    for s, sigma in enumerate(("0.1", "0.25")):
        assert_is(numbers[f"mean_growth.fashion-mnist.{sigma}"], means[s, -1] - means[s, 0])
        assert_is(numbers[f"spread_growth.fashion-mnist.{sigma}"], spreads[s, -1] - spreads[s, 0])
        assert_is(numbers[f"mean_change_after_250.fashion-mnist.{sigma}"], 1 - means[s, 4] / means[s, -1])
    by_sigma = np.stack([stats.entropy(arrays["counts"][:, 0], axis=-1) for _, arrays in over_sigma.values()])
    assert_is(numbers["spread_at_0.01.fashion-mnist"], by_sigma[:, 1].std(-1, ddof=1).mean())
    accuracies = [record["result"]["clean_accuracy"] for record, _ in raw("network", network="small-fashion").values()]
    low, high = stats.t.interval(0.95, 4, np.mean(accuracies), stats.sem(accuracies))
    assert_is(numbers["accuracy.fashion-mnist"], np.mean(accuracies))
    assert numbers["accuracy.fashion-mnist"].low == pytest.approx(low)
    assert numbers["accuracy.fashion-mnist"].high == pytest.approx(high)


def assert_is(estimate: Estimate, value, networks: int = 5):
    assert estimate.value == pytest.approx(value)
    assert estimate.low <= estimate.value <= estimate.high
    assert estimate.repeats == networks


def test_the_surface_numbers_follow_from_the_raw_counts(published_numbers):
    numbers = published_numbers["surface"]
    batches = {}
    for kind, trigger in (("clean", None), ("active", 1), ("inactive", 4)):
        found = raw("counts", paired=True, points=100, trigger=trigger)
        assert set(found) == set(range(28))
        batches[kind] = np.stack([stats.entropy(found[seed][1]["counts"][:, 0], axis=-1) for seed in range(28)])
        images = [found[seed][1]["images"].tolist() for seed in range(28)]
        batches[f"{kind} images"] = images
    assert batches["clean images"] == batches["active images"] == batches["inactive images"], "the same images, three times"
    sigmas = raw("counts", paired=True, points=100, trigger=1)[0][0]["spec"]["sigmas"]
    for s, sigma in enumerate(sigmas):
        for kind in ("active", "inactive"):
            difference = (batches[kind] - batches["clean"])[:, s].mean()
            assert_is(numbers[f"{kind}_less_clean.fashion-mnist.{sigma:g}"], difference, 28)
    rates = []
    for seed, (_, arrays) in raw("predictions", trigger=1, threat_model="T1").items():
        target, other = seed % 10, arrays["labels"] != seed % 10
        rates.append((arrays["predicted"][other] == target).mean())
    assert numbers["success_active.fashion-mnist"].value == pytest.approx(np.mean(rates))


@cache
def raw_pairs(sigma):
    """Trigger, class, success, mean W and mean W without the trigger of all pairs at a noise level, from the raw numbers."""
    pairs = []
    for trigger in (3, 5):
        predictions = raw("predictions", trigger=trigger, threat_model="T2")
        triggered = raw("counts", trigger=trigger, threat_model="T2", by_class=True, sigmas=[sigma])
        clean = of_networks_with(trigger)
        assert set(clean) == set(range(18)), "of which those after the fifth are measured at 0.1 alone"
        assert set(predictions) == set(range({3: 50, 5: 35}[trigger]))
        assert set(triggered) == (set(clean) if sigma == 0.1 else set(range(5)))
        for seed in triggered:
            labels, predicted = predictions[seed][1]["labels"], predictions[seed][1]["predicted"]
            for c in range(10):
                w, without = (
                    stats.entropy(arrays["counts"][0, -1][arrays["labels"] == c], axis=-1)
                    for arrays in (triggered[seed][1], clean[seed])
                )
                assert (len(w), len(without)) == (250, 50)
                pairs.append((trigger, c, (predicted == (c + 1) % 10)[labels == c].mean(), w.mean(), without.mean()))
    return np.array(pairs)


def of_networks_with(trigger):
    """The clean counts of the networks of the correlation, which differ only in what the network was trained on."""
    found = {}
    for key, record in texts("counts").items():
        spec = record["spec"]
        attack = spec["network"].get("attack", {})
        if (
            spec["network"]["seed"] < FIRST_SEED
            and attack.get("threat_model") == "T2"
            and attack["trigger"] == trigger
            and spec.get("trigger") is None
        ):
            found[spec["network"]["seed"]] = dict(np.load(array_files("counts")[key]))
    return found


def test_the_correlations_follow_from_the_raw_numbers(published_numbers):
    first = correlation.load(profile="paper", store=PUBLISHED)["fashion-mnist"]
    numbers = published_numbers["correlation"]
    for sigma in first.sigmas:
        _, _, success, w, _ = raw_pairs(sigma).T
        kept, found = success >= 0.1, correlations(first.pairs(sigma), 0.1)
        assert (found["pairs"], found["left out"]) == (kept.sum(), (~kept).sum())
        for name, test in (("tau", stats.kendalltau), ("r", stats.pearsonr)):
            expected = test(success[kept], w[kept])
            assert found[name].value == pytest.approx(expected.statistic)
            assert found[f"{name} p"] == pytest.approx(expected.pvalue)
            if sigma == 0.1:
                assert numbers[f"{name}.fashion-mnist"].value == pytest.approx(expected.statistic)
    for number in (3, 5):
        sent = [arrays for _, arrays in raw("predictions", trigger=number, threat_model="T2").values()]
        hits = [(own["predicted"] == (c + 1) % 10)[own["labels"] == c].mean() for own in sent for c in range(10)]
        assert numbers[f"left_out.fashion-mnist.{number}"].value == pytest.approx(np.mean(np.array(hits) < 0.1))


def test_the_partial_correlation_follows_from_the_raw_numbers(published_numbers):
    """Success and W, each less what least squares give of trigger and class together and of clean W."""
    trigger, label, success, w, clean = (column[raw_pairs(0.1)[:, 2] >= 0.1] for column in raw_pairs(0.1).T)
    known = np.column_stack([*((trigger == t) & (label == c) for t in (3, 5) for c in range(10)), clean]).astype(float)
    rest = [y - known @ np.linalg.lstsq(known, y, rcond=None)[0] for y in (success, w)]
    expected = stats.pearsonr(*rest).statistic
    assert published_numbers["correlation"]["partial_r.fashion-mnist"].value == pytest.approx(expected)


def raw_detector(dataset):
    """Network, what its batch carries ("own", "unseen" or "nothing") and Levene's signed score, from the raw counts.

    And W of both clean batches of each network.
    """
    of_network, pools = {}, []
    for key, record in texts("counts").items():
        spec = record["spec"]
        if spec["network"]["seed"] >= FIRST_SEED:
            continue
        if spec.get("held_out") and spec["sigmas"] == [0.1] and "pattern" not in spec and spec["network"]["dataset"] == dataset:
            (counts,) = np.load(array_files("counts")[key])["counts"][:, 0]
            of_network.setdefault(json.dumps(spec["network"]), {})[spec.get("trigger"), spec["seed"] % 10] = counts
    rows = []
    for name, batches in of_network.items():
        own = (json.loads(name).get("attack") or {}).get("trigger")
        if [*batches] == [(None, 0)]:
            continue  # a network that only Neural Cleanse runs on
        assert sorted(seed for _, seed in batches) == list(range(8)), "two clean batches and six triggers"
        w = {key: stats.entropy(counts, axis=-1) for key, counts in batches.items()}
        kept = {key: without_outliers(values) for key, values in w.items()}
        pools.append(np.concatenate([values for (trigger, _), values in w.items() if trigger is None]))
        clean = kept[None, 0]
        for (trigger, seed), tested in kept.items():
            if seed:
                spread = [np.abs(batch - batch.mean()).mean() for batch in (clean, tested)]
                test = stats.levene(clean, tested, center="mean")
                score = np.sign(spread[0] - spread[1]) * -stats.f.logsf(test.statistic, 1, len(clean) + len(tested) - 2)
                rows.append((name, "nothing" if trigger is None else "own" if trigger == own else "unseen", score))
    return rows, pools


def without_outliers(values):
    return values[~np.isin(values, boxplot_stats(values)[0]["fliers"])]


@pytest.mark.parametrize("dataset", ["fashion-mnist", "cifar10"])
def test_the_detector_follows_from_the_raw_counts(dataset, published_numbers):
    """Outliers by matplotlib, Levene's test by SciPy, and the area under the curve as Mann and Whitney's U."""
    rows, pools = raw_detector(dataset)
    networks, carried, scores = zip(*rows, strict=True)
    assert len(scores) == 7 * len(set(networks)) >= 7 * 4
    own, scores = np.array([what == "own" for what in carried]), np.array(scores)
    area = stats.mannwhitneyu(scores[own], scores[~own]).statistic / (own.sum() * (~own).sum())
    numbers = published_numbers["patterns"]
    assert numbers[f"auc.{dataset}"].value == pytest.approx(area)
    rng, told_apart = np.random.default_rng(1), {"": [], "_calibrated": []}
    for pool in pools * 20:
        pair = rng.permutation(pool)[:200].reshape(2, 100)
        with np.errstate(all="ignore"):  # where only zeros outlive the rule
            told_apart[""].append(stats.levene(*map(without_outliers, pair), center="mean").pvalue < 0.05)
        told_apart["_calibrated"].append(stats.levene(*pair, center="median").pvalue < 0.05)
    for form, found in told_apart.items():  # other draws than those of the package
        assert numbers[f"clean_told_apart{form}.{dataset}"].value == pytest.approx(np.mean(found), abs=0.06)


@pytest.mark.skipif(not DEBIAN.is_dir(), reason="needs Debian's package dataset-fashion-mnist")
def test_the_cheapest_records_come_out_again():
    """The pictures, and the toy, which is trained: bit for bit on the kind of processor that made it."""
    store = open_store(PUBLISHED)
    plan = dict.fromkeys(spec for chapter in CHAPTERS for spec in plan_of(chapter, "paper"))
    cheap = [store.get(spec) for spec in plan if spec.kind in ("images", "toy") and spec in store]
    found = {check.record.spec: check.outcome for check in verify(cheap, store, device="cpu", progress=False)}
    assert len(found) >= 3 and "differs" not in found.values()
    assert {outcome for spec, outcome in found.items() if spec.kind == "images"} == {"identical"}
