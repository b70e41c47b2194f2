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
from bslib.measure import predict
from bslib.patterns.neural_cleanse import patched
from bslib.statistics import levene

__all__ = ["LADDER", "Overlay", "choose_sigma", "clean_accuracy", "compare_w", "held_out_success", "own_trigger", "suspicious"]

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


def choose_sigma(w: Floats) -> tuple[int, bool]:
    """Choose the noise level at which closest to half of the clean images have W above 0.

    Returns
    -------
    index : int
    informative : bool
        Whether that fraction is between one third and two thirds. Otherwise most W are 0, or none is, and tests of W say little.

    >>> choose_sigma(np.array([[0.0, 0.0, 0.0, 0.1], [0.0, 0.2, 0.3, 0.0]]))
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


def own_trigger(model: nn.Module, images: Tensor, clean: NDArray[np.int64], overlay: Overlay, *, seed: int) -> dict[str, Any]:
    """Test a trigger that the user suspects against patches of the same shape and opacity, of random pixels at random places.

    Returns
    -------
    dict
        ``class`` (the class that gains most images), ``success`` (the fraction of other images sent there), the largest success
        of a random patch, to any class, and the p-value. Classes with fewer than five other images count for nothing.
    """
    rng = np.random.default_rng([seed, 11])

    def gain(mask: Tensor, pattern: Tensor) -> tuple[float, int]:
        predicted = predict(model, Overlay(mask, pattern)(images))
        moved = np.bincount(predicted[predicted != clean], minlength=int(clean.max()) + 1)
        others = len(clean) - np.bincount(clean, minlength=len(moved))
        fractions = np.where(others >= FEWEST_OTHERS, moved / np.maximum(others, 1), 0)
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
    median = np.zeros(len(w))
    for k, count in zip(*np.unique(predicted, return_counts=True), strict=True):
        median[predicted == k] = np.median(w[predicted == k]) if count >= FEWEST_OF_A_CLASS else 0
    calm = np.flatnonzero(w < median / 10)
    calm = calm[np.lexsort((predicted[calm], w[calm] / median[calm]))][:MOST_LISTED]
    return [
        {"image": names[int(i)], "class": int(predicted[i]), "W": float(w[i]), "median of its class": float(median[i])}
        for i in calm
    ]


def clean_accuracy(
    model: nn.Module, bare: nn.Module | None, images: Tensor, labels: Tensor | None, classes: int
) -> dict[str, Any]:
    """Clean accuracy, and that of the network under other usual normalisations if its own can be taken off.

    Returns
    -------
    dict
        ``accuracy`` by name (the one in use is ``as given``), and ``doubt``: a sentence, or empty. A doubt is raised if the
        accuracy is below twice that of guessing (of two classes, below 75%), or significantly lower than under another
        normalisation.
    """
    if labels is None:
        return {"accuracy": {}, "doubt": ""}
    truth = labels.cpu().numpy()
    networks = {"as given": model}
    if bare is not None:
        fitting = {name: part for name, part in NORMALISATIONS.items() if len(part[0]) in (1, images.shape[1])}
        networks |= {name: normalised(bare, *part).to(images.device) for name, part in fitting.items()}
    accuracy = {name: float((predict(network, images) == truth).mean()) for name, network in networks.items()}
    given, (best, highest) = accuracy["as given"], max(accuracy.items(), key=lambda pair: pair[1])
    error = float(np.sqrt(max(given * (1 - given), highest * (1 - highest)) * 2 / len(truth)))
    doubt = ""
    if highest - given > max(3 * error, 0.05):
        doubt = f"the normalisation seems wrong: {given:.0%} of the images are right, and {highest:.0%} with that of {best}"
    elif given < min(2 / classes, (1 + 1 / classes) / 2):  # of two classes, twice that of guessing is 1
        doubt = f"only {given:.0%} of the images are right, near guessing: wrong normalisation, labels or size?"
    return {"accuracy": accuracy, "doubt": doubt}
