"""How often the intervals of :mod:`bslib.statistics` cover the truth, on made-up networks whose truth is known.

    python benchmarks/coverage.py --json book/coverage.json

W is zero-inflated and skewed, as in the records, and networks differ. Each quantity is estimated from 3, 5, 7 and 12 seeds in
500 simulated experiments. Its truth is the average over 200,000 seeds. "Two triggers" has a network with each for every seed, as
the correlation of Fig. 5; "one trigger" has a network with a trigger and a clean one. The networks of a seed resemble each other.
"By network" is what comes of it if they count as independent.
"""

from __future__ import annotations

import argparse
import functools
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from bslib.chapters.correlation.pairs import kendall_tau
from bslib.files import atomic_path
from bslib.statistics import Estimate, Replicates, auc, leave_one_out

Floats = NDArray[np.float64]
SEEDS = (3, 5, 7, 12)
POINTS, BATCHES, PAIRS = 100, 7, 10


def w_of(rng: np.random.Generator, networks: int, points: int = POINTS) -> Floats:
    """W of clean and triggered images, shape (networks, 2, points): 60% of clean W are 0, and networks differ by a third."""
    scale = np.exp(rng.normal(0, 0.35, (networks, 1, 1)) + rng.normal(0, 0.2, (networks, 2, 1))) * [[1.0], [0.6]]
    zero = rng.random((networks, 2, points)) < np.array([[0.6], [0.75]])
    return np.where(zero, 0.0, scale * rng.gamma(1.2, 0.25, (networks, 2, points)))


def scores_of(rng: np.random.Generator, networks: int) -> Floats:
    """Scores of a positive and six negative batches of each network, shape (networks, 7)."""
    scores = rng.normal(0, 1, (networks, BATCHES)) + rng.normal(0, 0.5, (networks, 1))
    scores[:, 0] += 1
    return scores


def pairs_of(rng: np.random.Generator, networks: int) -> Floats:
    """Success and W of ten pairs of each network, negatively correlated, shape (networks, 2, 10)."""
    w = rng.normal(0, 1, (networks, PAIRS)) + rng.normal(0, 0.4, (networks, 1))
    return np.stack([-0.6 * w + rng.normal(0, 0.8, (networks, PAIRS)) + rng.normal(0, 0.3, (networks, 1)), w], axis=1)


def tau(pairs: Floats) -> float:
    """Kendall's tau of all pairs together."""
    return kendall_tau({"success": pairs[:, 0].ravel(), "W": pairs[:, 1].ravel()})


def of_pairs(pairs: Floats, kinds: int = 1) -> Estimate:
    """The estimate of tau, leaving out one seed at a time; for each of so many kinds there is a network of every seed."""
    repeat = np.arange(len(pairs)) % (len(pairs) // kinds)
    without = [tau(pairs[repeat != k]) for k in np.unique(repeat)]
    return Replicates(np.array(tau(pairs)), np.array(without), len(without)).estimate(correlation=True)


def of_scores(scores: Floats, kinds: int = 1) -> Estimate:
    """The estimate of the area under the ROC curve, without missing scores; kinds as for :func:`of_pairs`."""
    network, batch = np.nonzero(np.isfinite(scores))
    return auc(scores[network, batch], batch == 0, network % (len(scores) // kinds))


def area(scores: Floats) -> float:
    """The area under the ROC curve of very many networks."""
    own, others = (part[np.isfinite(part)] for part in (scores[:, 0], scores[:, 1:]))
    return float(np.searchsorted(np.sort(others), own).mean() / others.size)


def two_triggers(rng: np.random.Generator, seeds: int) -> Floats:
    """As :func:`pairs_of`, for a network with a trigger that works well and one with a trigger that works badly, of each seed."""
    well, badly = pairs_of(rng, seeds), pairs_of(rng, seeds)
    well[:, 0] += 1.5
    well[:, 1] -= 0.8
    slope = rng.normal(0, 0.4, (seeds, 1))  # how much more or less success depends on W with this seed
    for pairs in (well, badly):
        pairs[:, 0] += slope * pairs[:, 1]
    return np.concatenate([well, badly])


def one_trigger(rng: np.random.Generator, seeds: int) -> Floats:
    """As :func:`scores_of`, for a network with a trigger and a clean one, whose first batch counts as missing, of each seed."""
    own, clean = scores_of(rng, seeds), scores_of(rng, seeds)
    clean[:, 0] = np.nan
    both, shift = np.stack([own, clean]), rng.normal(0, 0.5, (seeds, 1))  # some batches of reference make triggers easy to find
    both[:, :, :1] += shift
    both[:, :, 1:] -= shift
    return np.concatenate(both)


def half_triggered(rng: np.random.Generator, seeds: int) -> Floats:
    """As :func:`one_trigger`, with as many seeds besides that have a clean network alone."""
    scores = one_trigger(rng, 2 * seeds)
    scores[seeds : 2 * seeds] = np.nan
    return scores


def relative(means: Floats) -> Floats:
    """The change of the mean by the trigger, as a fraction."""
    return means[..., 1] / means[..., 0] - 1


def tau_of_two(pairs: Floats) -> float:
    """Kendall's tau of very many networks of each of two kinds, in parts."""
    return float(np.mean([tau(np.concatenate([pairs[k:20_000:200], pairs[k + 20_000 :: 200]])) for k in range(200)]))


Draw = Callable[[np.random.Generator, int], Floats]
#: For each quantity, how its networks are drawn, its estimate, and its value on very many networks.
QUANTITIES: dict[str, tuple[Draw, Callable[[Floats], Estimate], Callable[[Floats], float]]] = {
    "mean of W": (w_of, lambda w: leave_one_out(list(w[:, 0])).estimate(), lambda w: w[:, 0].mean()),
    "difference of means": (
        w_of,
        lambda w: leave_one_out(list(w)).estimate(lambda m: m[..., 1] - m[..., 0]),
        lambda w: w[:, 1].mean() - w[:, 0].mean(),
    ),
    "relative change of the mean": (
        w_of,
        lambda w: leave_one_out(list(w)).estimate(relative),
        lambda w: w[:, 1].mean() / w[:, 0].mean() - 1,
    ),
    "spread of W": (
        w_of,
        lambda w: leave_one_out(list(w[:, 0]), lambda v: v.std(-1, ddof=1)).estimate(),
        lambda w: w[:, 0].std(-1, ddof=1).mean(),
    ),
    "area under the ROC curve": (scores_of, of_scores, area),
    "area, one trigger": (one_trigger, functools.partial(of_scores, kinds=2), area),
    "area, a trigger in half of the seeds": (half_triggered, functools.partial(of_scores, kinds=2), area),
    "Kendall's tau, two triggers": (two_triggers, functools.partial(of_pairs, kinds=2), tau_of_two),
    "Kendall's tau, two triggers, by network": (two_triggers, of_pairs, tau_of_two),
    "Kendall's tau": (pairs_of, of_pairs, lambda p: float(np.mean([tau(part) for part in np.split(p[:20_000], 100)]))),
}


@functools.cache
def truth_of(draw: Draw, of_many: Callable[[Floats], float], seed: int) -> float:
    """The average of a quantity over ten times 20,000 seeds."""
    return float(np.mean([of_many(draw(np.random.default_rng([seed, 1, k]), 20_000)) for k in range(10)]))


def coverage(name: str, runs: int, seed: int = 0) -> list[dict[str, float | str]]:
    """The fraction of intervals of one quantity that cover its truth, and their median width, for each number of seeds."""
    draw, estimate, of_many = QUANTITIES[name]
    truth = truth_of(draw, of_many, seed)
    rows: list[dict[str, float | str]] = []
    for seeds in SEEDS:
        rng = np.random.default_rng([seed, seeds])
        found = [estimate(draw(rng, seeds)) for _ in tqdm(range(runs), desc=f"{name}, {seeds}", leave=False, disable=None)]
        covered = float(np.mean([one.low <= truth <= one.high for one in found]))
        width = float(np.median([one.high - one.low for one in found]))
        rows.append({"quantity": name, "seeds": seeds, "truth": truth, "coverage": covered, "width": width})
    return rows


def main() -> None:
    """Simulate, print, and write a file where one is named."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--json", type=Path, help="file for the result")
    parser.add_argument("--runs", type=int, default=500, help="simulated experiments")
    options = parser.parse_args()
    rows = [row for name in QUANTITIES for row in coverage(name, options.runs)]
    for row in rows:
        print(*(f"{value:.3f}" if isinstance(value, float) else value for value in row.values()), sep="  ")
    if options.json:
        with atomic_path(options.json) as part:
            part.write_text(json.dumps({"runs": options.runs, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
