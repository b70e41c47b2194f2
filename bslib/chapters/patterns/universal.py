"""Universal perturbations: how many predictions they change, and whether W tells images with them from clean ones (Fig. 7)."""

from __future__ import annotations

from typing import cast

import numpy as np
import pandas as pd

from bslib.chapters.outcomes import over_seeds
from bslib.chapters.patterns.batches import Batches
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
        that fooled images are predicted as: the exponential of the entropy of their fractions), sigma and score.
    """
    rows = []
    for number, network in enumerate(part.networks):
        for crafted in universals_of(part.size, network):
            for sigma in part.size.pattern_sigmas:
                counted = crafted_batch_of(part.size, crafted, sigma)
                if all(spec in part.records for spec in (crafted, counted, batch_of(part.size, network, None, sigma))):
                    score = levene(part.clean_w(network, sigma), part.w(counted, sigma)).score
                    rows.append((number, crafted.bound, *_fooled(part, crafted), sigma, score))
    return pd.DataFrame(rows, columns=["network", "bound", "fooled", "classes", "sigma", "score"])


def _fooled(part: Batches, crafted: UniversalSpec) -> tuple[float, float]:
    """The fraction of images that are fooled, and the effective number of classes that they are predicted as."""
    arrays = part.records[crafted].arrays
    fooled = arrays["with"] != arrays["without"]
    sent = np.bincount(arrays["with"][fooled], minlength=part.size.classes)
    return float(fooled.mean()), float(np.exp(entropy(sent[None])[0])) if fooled.any() else float("nan")


def universal_areas(part: Batches) -> pd.DataFrame:
    """The area under the ROC curve of universal perturbations against clean batches, for each bound and noise level.

    Returns
    -------
    DataFrame
        Columns bound, sigma, auc, fooled and classes, the last three Estimates over seeds.
    """
    rows, every = [], universal(part)
    for (bound, sigma), own in every[every["sigma"].isin(part.sigmas)].groupby(["bound", "sigma"]):
        nothing = part.tests(cast(float, sigma), points=part.size.pattern_points)
        nothing = nothing[(nothing["carried"] == "nothing") & nothing["network"].isin(own["network"])]
        area = part.area_of(pd.concat([own.assign(carried="universal"), nothing]), "universal")
        somewhere = own.dropna(subset="classes")  # undefined where no image is fooled
        classes = over_seeds(somewhere["classes"], part.seeds(somewhere), within=(1, part.size.classes))
        rows.append((bound, sigma, area, over_seeds(own["fooled"], part.seeds(own)), classes))
    return pd.DataFrame(rows, columns=["bound", "sigma", "auc", "fooled", "classes"])


def quantities(part: Batches) -> dict[str, Estimate]:
    """The quantities of universal perturbations at the first noise level."""
    data, found, areas = part.size.dataset, dict[str, Estimate](), universal_areas(part)
    for row in areas[areas["sigma"] == part.size.sigmas[0]].to_dict("records"):
        for name in ("auc", "fooled", "classes"):
            found[f"{name}_universal_at.{data}.{row['bound']:g}"] = row[name]
            if row["bound"] == part.size.bounds[0]:
                found[f"{name}_universal.{data}"] = row[name]
    return found
