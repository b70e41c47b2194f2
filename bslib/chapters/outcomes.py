"""What several chapters compute from the records of one attacked network, and how they name their quantities."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import stats

from bslib.chapters.base import Results
from bslib.chapters.beyond import Attack, BeyondSize, nearest
from bslib.datasets import class_count
from bslib.entropy import entropy
from bslib.specs import AttackSpec, CountsSpec, MeasuredSpec, NetworkSpec
from bslib.statistics import Estimate, Estimates, leave_one_out, mean_of_networks, share_of_repeats, success_rate
from bslib.store import Record

__all__ = [
    "BeyondResults", "area", "attack_in_words", "attack_name", "attack_named", "attack_on", "attack_success",
    "copies_as_wanted", "defined", "divided", "labels_flipped", "mean_of", "name_of", "over_seeds", "quantities",
    "quantities_of", "ratio", "usual_level", "w_by_candidate", "w_by_sigma",
]  # fmt: skip

Floats = NDArray[np.float64]
B = TypeVar("B", bound=BeyondSize)
UNBOUNDED = -np.inf, np.inf


@dataclass(frozen=True)
class BeyondResults(Results[B]):
    """Results of a chapter beyond the paper: what is asked of the records of one backdoored network."""

    described: ClassVar[str] = "backdoored "

    def accuracy_of(self, network: NetworkSpec) -> float:
        """The clean accuracy of a network."""
        return float(self.records[network].result["clean_accuracy"])

    def success_of(self, network: NetworkSpec) -> float:
        """The success rate of its trigger."""
        return attack_success(self.records[self.size.predictions_of(network)])

    def counts_of(self, network: NetworkSpec, **more: Any) -> list[Record]:
        """Class counts without and with its trigger; ``more`` as for :meth:`~bslib.chapters.beyond.BeyondSize.counts_of`."""
        return [self.records[self.size.counts_of(network, trigger, **more)] for trigger in network.carried]

    def w_of(self, network: NetworkSpec, **more: Any) -> Floats:
        """W without and with its trigger, shape (2, S, B); a clean network has no second row."""
        return np.stack([w_by_sigma(counts) for counts in self.counts_of(network, **more)])

    def costs(self, networks: Sequence[NetworkSpec], before: Sequence[float]) -> dict[str, Estimate]:
        """Success, accuracy, and the accuracy lost against that of other networks, a number for each network; NaN for none."""
        images = len(self.records[self.size.predictions_of(networks[0])].arrays["labels"])
        accuracies = [self.accuracy_of(network) for network in networks]
        return {
            "success": mean_of_networks([self.success_of(network) for network in networks], images),
            "accuracy": mean_of_networks(accuracies, images),
            "accuracy lost": mean_of(other - accuracy for other, accuracy in zip(before, accuracies, strict=True)),
        }


def attack_on(network: NetworkSpec) -> AttackSpec:
    """The attack on a backdoored network."""
    assert network.attack is not None
    return network.attack


def name_of(network: NetworkSpec) -> str:
    """The name of the attack on a network."""
    return attack_name(attack_on(network).threat_model, attack_on(network).trigger)


def attack_name(threat_model: str, trigger: int) -> str:
    """The name of an attack in quantities.

    >>> attack_name("T1", 4), attack_named("T1-4"), attack_in_words("T1-4")
    ('T1-4', ('T1', 4), 'T1, trigger 4')
    """
    return f"{threat_model}-{trigger}"


def attack_named(name: str) -> Attack:
    """The threat model and the trigger of an attack's name."""
    threat_model, trigger = name.split("-")
    return threat_model, int(trigger)


def attack_in_words(name: str) -> str:
    """The name of an attack for readers."""
    return "{}, trigger {}".format(*attack_named(name))


def attack_success(predictions: Record, *, count_target: bool = False) -> float:
    """The success rate of a trigger, from the predictions for images with it; see :func:`bslib.statistics.success_rate`."""
    predicted, labels = (predictions.arrays[name] for name in ("predicted", "labels"))
    return success_rate(predicted, labels, _wanted(predictions), count_target=count_target)


def usual_level(sigmas: Sequence[float]) -> int:
    """The index of the noise level nearest to 0.1, at which the chapters compare networks.

    >>> usual_level((0.05, 0.1, 0.25))
    1
    """
    return sigmas.index(nearest(sigmas))


def w_by_sigma(counts: Record) -> Floats:
    """W of each image at the largest number of noisy copies, shape (S, B)."""
    return entropy(counts.arrays["counts"][:, -1])


def w_by_candidate(counts: Record) -> Floats:
    """Mean W of the images with each candidate of Neural Cleanse, shape (S, candidates)."""
    assert isinstance(counts.spec, CountsSpec)
    w = w_by_sigma(counts)
    return w.reshape(len(w), -1, counts.spec.points).mean(-1)


def labels_flipped(counts: Record) -> Floats:
    """The fraction of noisy copies whose label is not the image's own without noise, shape (S, B)."""
    return 1 - _called(counts, counts.arrays["predicted"])


def copies_as_wanted(counts: Record) -> Floats:
    """The fraction of noisy copies that get the attacker's label, of the B' images that have another one, shape (S, B')."""
    wanted = _wanted(counts)
    return _called(counts, wanted)[:, wanted != counts.arrays["labels"]]


def area(clean: Floats, triggered: Floats) -> float:
    """The area under the ROC curve of a score, high for suspicious images, of the images of one network; a tie counts half.

    >>> area(np.array([0.0, 1.0]), np.array([1.0, 2.0]))
    0.875
    """
    ranks, images = stats.rankdata(np.concatenate([clean, triggered]))[len(clean) :], len(triggered)
    return float((ranks.sum() - images * (images + 1) / 2) / (images * len(clean)))


def ratio(means: Floats) -> Floats:
    """Mean W with the trigger divided by mean W without, from means (..., 2 or more), without first; NaN where that is 0."""
    return divided(means[..., 1], means[..., 0])


def divided(part: Floats, whole: Floats) -> Floats:
    """One number divided by another; NaN where that is 0."""
    whole = np.asarray(whole)
    return np.divide(part, whole, out=np.full_like(whole, np.nan), where=whole != 0)


def mean_of(values: Iterable[float], *, within: tuple[float, float] = UNBOUNDED) -> Estimate:
    """The mean of one number of each network, with its interval, of which a single network has none."""
    return leave_one_out([np.array([value]) for value in values]).estimate(within=within)


def over_seeds(values: pd.Series[Any], seeds: Any = "seed", *, within: tuple[float, float] = (0, 1)) -> Estimate:
    """The mean over seeds of the mean of each seed's values, with its interval; NaN without values. Each seed counts equally.

    Parameters
    ----------
    values : Series of numbers, booleans or arrays of these
        For booleans, the result is the fraction that is true.
    seeds : str or array
        The level of the index with the seeds, or the seed of each value.
    within : (float, float)
        The smallest and the largest possible value.
    """
    groups = [np.hstack(list(own)) for _, own in values.groupby(seeds)]
    if not groups:
        return Estimate(float("nan"), float("nan"), float("nan"), 0)
    return share_of_repeats(groups) if groups[0].dtype == bool else mean_of([own.mean() for own in groups], within=within)


def quantities_of(table: pd.DataFrame, dataset: str, by: Sequence[str]) -> dict[str, Estimate]:
    """The estimates of a table by name: the column, the data set, and the settings of the row.

    >>> list(quantities_of(pd.DataFrame({"sigma": [0.05], "W with": [Estimate(1, 0, 2, 5)]}), "digits", ["sigma"]))
    ['W_with.digits.0.05']
    """
    found: dict[str, Estimate] = {}
    for row in table.to_dict("records"):
        where = ".".join([dataset, *(f"{row[name]:g}" if isinstance(row[name], float) else str(row[name]) for name in by)])
        found |= {f"{str(name).replace(' ', '_')}.{where}": own for name, own in row.items() if isinstance(own, Estimate)}
    return found


def defined(found: Mapping[str, Estimate]) -> dict[str, Estimate]:
    """The estimates that have a value."""
    return {name: estimate for name, estimate in found.items() if np.isfinite(estimate.value)}


def quantities(results: Mapping[str, Any]) -> Estimates:
    """The quantities of every data set, from the results that a chapter's ``load`` gives."""
    return Estimates.of(part.quantities() for part in results.values())


def _wanted(record: Record) -> NDArray[np.integer[Any]]:
    assert isinstance(record.spec, MeasuredSpec)
    return attack_on(record.spec.network).target_labels(record.arrays["labels"], class_count(record.spec.dataset))


def _called(counts: Record, labels: NDArray[np.integer[Any]]) -> Floats:
    """The fraction of the noisy copies of each image that are predicted as its label, shape (S, B)."""
    own = counts.arrays["counts"][:, -1]
    return np.asarray(np.take_along_axis(own, labels[None, :, None].astype(np.int64), axis=-1)[..., 0] / own.sum(-1))
