"""What is measured on the network: W by noise level, trigger candidates, W with and without them, suspicious images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import stats
from torch import Tensor, nn

from bslib.audit.loading import NORMALISATIONS, normalised
from bslib.detectors.logit_shift import logit_shift_variance
from bslib.detectors.strip import strip_entropy
from bslib.entropy import entropy
from bslib.measure import class_counts, predict
from bslib.patterns.neural_cleanse import patched
from bslib.statistics import levene

__all__ = [
    "LADDER",
    "Overlay",
    "choose_sigma",
    "clean_accuracy",
    "compare_w",
    "describe",
    "held_out_success",
    "own_trigger",
    "suspicious",
    "w_of",
]

Floats = NDArray[np.float64]
#: Noise levels, in units of pixels in [0, 1].
LADDER = (0.025, 0.05, 0.1, 0.2, 0.4, 0.8)
#: The fraction of clean images with W above 0 at a useful noise level.
INFORMATIVE = (1 / 3, 2 / 3)
#: The fewest images of a predicted class whose median W is trusted.
FEWEST_OF_A_CLASS = 8
#: The fewest images of other classes on which the success of a candidate is trusted.
FEWEST_OTHERS = 5
#: Most images that are listed as suspicious.
MOST_LISTED = 20
#: Random patches that a trigger is compared with.
CONTROLS = 99


class Overlay(NamedTuple):
    """A trigger for whole images: opacity (1, H, W) and pixels (C, H, W)."""

    mask: Tensor
    pattern: Tensor

    def __call__(self, images: Tensor) -> Tensor:
        """Return the images with the trigger."""
        return patched(images, self.mask.to(images.device), self.pattern.to(images.device))


def w_of(model: nn.Module, images: Tensor, sigmas: Sequence[float], n: int, *, seed: int, progress: bool = True) -> Floats:
    """W of each image at each noise level, shape (S, B). The noise depends on an image's place, not on what it carries."""
    counts = class_counts(model, images, list(sigmas), n, seed=seed, ids=range(len(images)), progress=progress)
    return entropy(counts)


def choose_sigma(sigmas: Sequence[float], w: Floats) -> tuple[int, bool]:
    """Choose the noise level at which closest to half of the clean images have W above 0.

    Returns
    -------
    index : int
    informative : bool
        Whether that fraction is between one third and two thirds. Otherwise most W are 0, or none is, and tests of W say little.

    >>> choose_sigma([0.1, 0.2], np.array([[0.0, 0.0, 0.0, 0.1], [0.0, 0.2, 0.3, 0.0]]))
    (1, True)
    """
    fractions = (w > 0).mean(1)
    best = int(np.abs(fractions - 0.5).argmin())
    return best, bool(INFORMATIVE[0] <= fractions[best] <= INFORMATIVE[1])


def held_out_success(model: nn.Module, images: Tensor, clean: NDArray[np.int64], overlay: Overlay, target: int) -> float:
    """The fraction of images of other predicted classes that a candidate sends to its class; NaN for fewer than five."""
    others = images[torch.from_numpy(clean != target)]
    return float((predict(model, overlay(others)) == target).mean()) if len(others) >= FEWEST_OTHERS else float("nan")


def compare_w(clean: Floats, tested: Floats) -> dict[str, Any]:
    """Compare W of the same images, under the same noise, without and with a trigger.

    Parameters
    ----------
    clean, tested : ndarray of float, shape (B,)

    Returns
    -------
    dict
        The means; the score of Brown and Forsythe's test (:func:`bslib.statistics.levene` with all points, centred at the
        median) and its p-value, which ask whether the spread differs; the one-sided p-value of a paired permutation test, which
        asks whether W falls; and ``degenerate``: most values are 0, or nothing differs.

    >>> compare_w(np.array([0.3, 0.2, 0.4, 0.5]), np.zeros(4))["p lower"]
    0.0625
    """
    test, difference = levene(clean, tested, center="median", outliers=True), tested - clean
    lower = stats.permutation_test(
        (difference,), np.mean, permutation_type="samples", alternative="less", n_resamples=1999, rng=np.random.default_rng(0)
    )
    return {
        "clean mean": float(clean.mean()),
        "mean": float(tested.mean()),
        "score": test.score,
        "p": test.pvalue,
        "p lower": float(lower.pvalue),
        "degenerate": bool((clean == 0).mean() > INFORMATIVE[1] or not difference.any()),
    }


def describe(model: nn.Module, images: Tensor, overlay: Overlay, overlays: Tensor) -> dict[str, float]:
    """STRIP's mean entropy and the variance of the logit shift of images with a trigger; low values are suspicious."""
    tested = overlay(images)
    return {
        "STRIP": float(strip_entropy(model, tested, overlays).mean()),
        "logit shift": logit_shift_variance(model, images, tested),
    }


def own_trigger(model: nn.Module, images: Tensor, clean: NDArray[np.int64], overlay: Overlay, *, seed: int) -> dict[str, Any]:
    """Test a trigger that the user suspects against patches of the same shape and opacity, of random pixels at random places.

    Returns
    -------
    dict
        ``class`` (the class that gains most images), ``success`` (the fraction of other images sent there), the largest success
        of a random patch, to any class, and the p-value.
    """
    rng = np.random.default_rng([seed, 11])

    def gain(mask: Tensor, pattern: Tensor) -> tuple[float, int]:
        predicted = predict(model, Overlay(mask, pattern)(images))
        moved = np.bincount(predicted[predicted != clean], minlength=int(clean.max()) + 1)
        others = len(clean) - np.bincount(clean, minlength=len(moved))
        fractions = moved / np.maximum(others, 1)
        return float(fractions.max()), int(fractions.argmax())

    success, target = gain(*overlay)
    controls = []
    for _ in range(CONTROLS):
        shift = [int(rng.integers(side)) for side in overlay.mask.shape[1:]]
        pattern = torch.from_numpy(rng.random(overlay.pattern.shape, dtype=np.float32))
        controls.append(gain(overlay.mask.roll(shift, (1, 2)), pattern)[0])
    p = (1 + sum(control >= success for control in controls)) / (CONTROLS + 1)
    return {"class": target, "success": success, "random patches": max(controls), "p": p}


def suspicious(w: Floats, predicted: NDArray[np.int64], names: Sequence[str]) -> list[dict[str, Any]]:
    """List images whose W is below a tenth of the median of the images that are predicted as the same class, lowest first.

    A list to look at, not a test: among many clean images a few are calm by chance.

    Parameters
    ----------
    w : ndarray of float, shape (B,)
        At a noise level at which nearly all images have W above 0.
    """
    rows: list[tuple[float, dict[str, Any]]] = []
    for k in np.unique(predicted):
        own = np.flatnonzero(predicted == k)
        median = float(np.median(w[own]))
        for i in own[w[own] < median / 10] if len(own) >= FEWEST_OF_A_CLASS else []:
            row = {"image": names[int(i)], "class": int(k), "W": float(w[i]), "median of its class": median}
            rows.append((float(w[i]) / median, row))
    return [row for _, row in sorted(rows, key=lambda pair: pair[0])[:MOST_LISTED]]


def clean_accuracy(
    model: nn.Module, bare: nn.Module | None, images: Tensor, labels: Tensor | None, classes: int
) -> dict[str, Any]:
    """Clean accuracy, and that of the network under other usual normalisations if its own can be taken off.

    Returns
    -------
    dict
        ``accuracy`` by name (the one in use is ``as given``), and ``doubt``: a sentence, or empty. A doubt is raised if the
        accuracy is below twice that of guessing (of two classes, below 75 %), or significantly lower than under another
        normalisation.
    """
    if labels is None:
        return {"accuracy": {}, "doubt": ""}
    truth, n = labels.cpu().numpy(), len(labels)
    accuracy = {"as given": float((predict(model, images) == truth).mean())}
    for name, (mean, std) in NORMALISATIONS.items() if bare is not None else ():
        if len(mean) in (1, images.shape[1]):
            other = normalised(bare, mean, std).to(images.device)  # type: ignore[arg-type]
            accuracy[name] = float((predict(other, images) == truth).mean())
    given, best = accuracy["as given"], max(accuracy, key=lambda name: accuracy[name])
    error = float(np.sqrt(max(given * (1 - given), accuracy[best] * (1 - accuracy[best])) * 2 / n))
    doubt = ""
    if accuracy[best] - given > 3 * error and accuracy[best] - given > 0.05:
        doubt = (
            f"the normalisation seems wrong: {given:.0%} of the images are right, and {accuracy[best]:.0%} with that of {best}"
        )
    elif given < min(2 / classes, (1 + 1 / classes) / 2):  # of two classes, twice that of guessing is 1
        doubt = f"only {given:.0%} of the images are right, near guessing: wrong normalisation, labels or size?"
    return {"accuracy": accuracy, "doubt": doubt}
