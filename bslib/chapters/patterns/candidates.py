"""The trigger candidates of Neural Cleanse: their sizes, their success, and whether W tells images with them from clean ones."""

from __future__ import annotations

import numpy as np
import pandas as pd
from scipy.stats import spearmanr

from bslib.chapters.outcomes import UNBOUNDED, over_seeds
from bslib.chapters.patterns.batches import FORMS, SUFFIXES, Batches
from bslib.chapters.patterns.detector import working
from bslib.chapters.patterns.plan import batch_of, cleanse_of, compared_specs, crafted_batch_of, trained_trigger
from bslib.markdown import markdown_table, range_text
from bslib.statistics import Estimate, levene

__all__ = ["candidates", "cleanse_table", "comparison_table", "quantities"]


def candidates(part: Batches) -> pd.DataFrame:
    """All candidates of Neural Cleanse: norm, success, and Levene's test against clean images.

    Returns
    -------
    DataFrame
        Columns network, backdoored, class, own (whether it is the class of the network's backdoor), norm, index (of the
        network), success (on the images that made it), success on test images and on training images, sigma, score and p of
        the paper's test, calibrated score and p of Brown and Forsythe's, and W.
    """
    rows, successes = [], ["success", "success_test", "success_train"]
    for number, network in enumerate(part.listed):
        crafted = cleanse_of(part.size, network)
        target = network.attack.target if network.attack is not None else None
        for sigma in part.size.pattern_sigmas:
            counted = crafted_batch_of(part.size, crafted, sigma)
            if any(spec not in part.records for spec in (crafted, counted, batch_of(part.size, network, None, sigma))):
                continue
            record, clean = part.records[crafted], part.clean_w(network, sigma)
            norms = record.arrays["masks"].sum((1, 2, 3))
            for k, w in enumerate(part.w(counted, sigma).reshape(len(norms), -1)):
                about = (number, target is not None, k, target == k, float(norms[k]), record.result["anomaly_index"])
                success = (float(record.arrays[name][k]) for name in successes)
                calibrated = levene(clean, w, **FORMS["calibrated"])
                rows.append((*about, *success, sigma, *levene(clean, w), *calibrated, float(w.mean())))
    names = ["network", "backdoored", "class", "own", "norm", "index", *successes, "sigma", "score", "p"]
    return pd.DataFrame(rows, columns=[*names, "calibrated score", "calibrated p", "W"])


def cleanse_table(part: Batches) -> str:
    """The results of Neural Cleanse by the networks' own trigger as a Markdown table."""
    rows, table = [], candidates(part)
    table = table[table["sigma"] == part.size.pattern_sigmas[0]]
    for trigger, some in table.groupby([trained_trigger(part.listed[number]) for number in table["network"]]):
        networks, own = some.groupby("network"), some[some["own"]].set_index("network")["norm"]
        index, smallest = networks["index"].first(), (own == networks["norm"].min().reindex(own.index)).sum()
        sizes = (smallest if trigger else "", range_text(own), range_text(networks["norm"].median()))
        least = f"at least {some['success_train'].min():.1%}"
        rows.append((trigger or "none (clean)", len(index), range_text(index), (index > 2).sum(), *sizes, least))
    head = (
        "own trigger", "networks", "anomaly index", "above 2", "the backdoor's mask is the smallest", "its size",
        "median size", "success on training images",
    )  # fmt: skip
    return markdown_table(head, rows)


def comparison_table(part: Batches) -> str:
    """Neural Cleanse on one network with few and with the authors' number of images per step, as a Markdown table."""
    specs = compared_specs(part.size, part.seed)
    if not specs or any(spec not in part.records for spec in specs):
        return "(Not yet run.)"
    attack = specs[0].network.attack
    assert attack is not None and attack.target is not None
    rows, norms = [], []
    for spec in specs:
        record = part.records[spec]
        norms.append(record.arrays["masks"].sum((1, 2, 3)))
        others = np.delete(norms[-1], attack.target)
        least = [f"at least {record.arrays[name].min():.1%}" for name in ("success_test", "success_train")]
        sizes = f"{norms[-1][attack.target]:.1f}", range_text(others)
        rows.append((spec.samples, *sizes, f"{record.result['anomaly_index']:.1f}", *least))
    head = (
        "images in a step", "mask of the backdoor's class", "the others, smallest to largest", "anomaly index",
        "success on test images", "on training images",
    )  # fmt: skip
    rank = float(spearmanr(*norms).statistic)
    return f"{markdown_table(head, rows)}\n\nSpearman's correlation between the mask sizes of the two searches is {rank:.2f}."


def quantities(part: Batches) -> dict[str, Estimate]:
    """The quantities of the candidates: how many W finds at each noise level; at the first one, more about them."""
    data, first, every = part.size.dataset, part.size.sigmas[0], candidates(part)
    table, found = every[every["sigma"] == first], dict[str, Estimate]()
    if table.empty:
        return found
    clean = table[~table["backdoored"]]
    less = clean["W"] - [part.clean_w(part.listed[k], first).mean() for k in clean["network"]]
    found[f"candidates_always_train.{data}"] = over_seeds(table["success_train"] >= 0.99, part.seeds(table))
    found[f"candidates_success_on_clean.{data}"] = over_seeds(clean["success_test"], part.seeds(clean))
    found[f"candidates_less_clean_on_clean.{data}"] = over_seeds(less, part.seeds(clean), within=UNBOUNDED)
    calibrated = every.assign(score=every["calibrated score"], p=every["calibrated p"])
    for form, judged in (("paper", every), ("calibrated", calibrated)):
        found |= _quantities_of_test(part, form, judged)
    return found


def _quantities_of_test(part: Batches, form: str, every: pd.DataFrame) -> dict[str, Estimate]:
    """The quantities that depend on the form of the test, whose score and p the table of candidates has."""
    data, suffix, table = part.size.dataset, SUFFIXES[form], every[every["sigma"] == part.size.sigmas[0]]
    found = {
        f"candidates_found_at{suffix}.{data}.{sigma:g}": over_seeds((some["p"] < 0.05) & (some["score"] > 0), part.seeds(some))
        for sigma, some in every.groupby("sigma")
    }
    log_p = -table["score"].abs() / np.log(10)
    values = {
        "found": (table["p"] < 0.05) & (table["score"] > 0),
        "p_varies": (log_p - log_p.groupby(table["network"]).transform("median")).abs(),
        "low_p": (table["p"] < 0.001) & (table["score"] > 0),
    }
    seeds, clean = part.seeds(table), table[~table["backdoored"]]
    found |= {f"candidates_{name}{suffix}.{data}": over_seeds(of, seeds, within=(0, np.inf)) for name, of in values.items()}
    own = part.trained_on(part.tests(points=part.size.pattern_points, form=form), working(part)).query("carried == 'own'")
    if len(own) and len(clean):
        # Batches with an own trigger that works against batches with a patch for a clean network.
        found[f"backdoor_against_patch{suffix}.{data}"] = part.area_of(pd.concat([own, clean.assign(carried="patch")]), "own")
    return found
