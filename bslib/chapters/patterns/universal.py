"""Universal perturbations: how many predictions they change, and whether W tells images with them from clean ones (Fig. 7)."""

from __future__ import annotations

from typing import cast

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from bslib.chapters.outcomes import over_seeds
from bslib.chapters.patterns.batches import FORMS, SUFFIXES, Batches
from bslib.chapters.patterns.plan import batch_of, crafted_batch_of, universals_of
from bslib.entropy import entropy
from bslib.specs import UniversalSpec
from bslib.statistics import Estimate, levene

__all__ = ["quantities", "universal", "universal_areas"]


def universal(part: Batches) -> pd.DataFrame:
    """All universal perturbations: the predictions they change, and Levene's test against clean images.

    Returns
    -------
    DataFrame
        Columns network, bound (255ths), fooled (of images that it was not crafted on), classes (the effective number of classes
        that fooled images are predicted as: the exponential of the entropy of their fractions), sigma, and the scores of the
        paper's and of the calibrated test.
    """
    rows = []
    for number, network in enumerate(part.listed):
        for crafted in universals_of(part.size, network):
            for sigma in part.size.pattern_sigmas:
                counted = crafted_batch_of(part.size, crafted, sigma)
                if all(spec in part.records for spec in (crafted, counted, batch_of(part.size, network, None, sigma))):
                    pair = part.clean_w(network, sigma), part.w(counted, sigma)
                    scores = (levene(*pair, **FORMS[form]).score for form in SUFFIXES)
                    rows.append((number, crafted.bound, *_fooled(part, crafted), sigma, *scores))
    return pd.DataFrame(rows, columns=["network", "bound", "fooled", "classes", "sigma", *SUFFIXES])


def _fooled(part: Batches, crafted: UniversalSpec) -> tuple[float, float]:
    """The fraction of images that are fooled, and the effective number of classes that they are predicted as."""
    arrays = part.records[crafted].arrays
    fooled = arrays["with"] != arrays["without"]
    sent = np.bincount(arrays["with"][fooled], minlength=part.size.classes)
    return float(fooled.mean()), float(np.exp(entropy(sent[None])[0])) if fooled.any() else float("nan")


def universal_areas(part: Batches) -> pd.DataFrame:
    """The area under the ROC curve of universal perturbations against clean batches, for each bound and noise level.

    A network has several clean batches of ``pattern_points`` images. The first is what every other batch, clean or perturbed, is
    compared with.

    Returns
    -------
    DataFrame
        Columns bound, sigma, auc and auc_calibrated (by the form of the test), fooled and classes, Estimates over seeds.
    """
    rows, every = [], universal(part)
    for (bound, sigma), own in every[every["sigma"].isin(part.sigmas)].groupby(["bound", "sigma"]):
        areas = [_area(part, own, cast(float, sigma), form) for form in SUFFIXES]
        somewhere = own.dropna(subset="classes")  # undefined where no image is fooled
        classes = over_seeds(somewhere["classes"], part.seeds(somewhere), within=(1, part.size.classes))
        rows.append((bound, sigma, *areas, over_seeds(own["fooled"], part.seeds(own)), classes))
    return pd.DataFrame(rows, columns=["bound", "sigma", "auc", "auc_calibrated", "fooled", "classes"])


def _area(part: Batches, own: pd.DataFrame, sigma: float, form: str) -> Estimate:
    """The area by a form of the test for these perturbations against clean batches of the same networks."""
    nothing = [
        pd.DataFrame({"network": number, "carried": "nothing", "score": _clean_scores(part, number, sigma, form)})
        for number in own["network"]
    ]
    return part.area_of(pd.concat([own.assign(carried="universal", score=own[form]), *nothing]), "universal")


def _clean_scores(part: Batches, number: int, sigma: float, form: str) -> NDArray[np.float64]:
    """The scores of all sets of clean points of a network, each as large as a perturbed batch, against the first set."""
    size, clean = part.size.pattern_points, [batch_of(part.size, part.listed[number], which, sigma) for which in (None, 0)]
    every = [part.w(spec, sigma) for spec in clean if spec in part.records]
    sets = np.concatenate([w[: len(w) // size * size].reshape(-1, size) for w in every])
    return levene(sets[:1], sets[1:], **FORMS[form]).score


def quantities(part: Batches) -> dict[str, Estimate]:
    """The quantities of universal perturbations at the first noise level."""
    data, found, areas = part.size.dataset, dict[str, Estimate](), universal_areas(part)
    for row in areas[areas["sigma"] == part.size.sigmas[0]].to_dict("records"):
        for what, suffix in (("auc", ""), ("auc", SUFFIXES["calibrated"]), ("fooled", ""), ("classes", "")):
            found[f"{what}_universal_at{suffix}.{data}.{row['bound']:g}"] = row[what + suffix]
            if row["bound"] == part.size.bounds[0]:
                found[f"{what}_universal{suffix}.{data}"] = row[what + suffix]
    return found
