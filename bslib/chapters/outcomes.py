"""What several chapters compute from the records of one attacked network: success, W, labels that flip, areas."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from bslib.datasets import class_count
from bslib.entropy import entropy
from bslib.specs import AttackSpec, MeasuredSpec, NetworkSpec
from bslib.statistics import Estimate, area_replicates, success_rate
from bslib.store import Record

__all__ = [
    "Run", "accuracy_of", "area", "attack_on", "attack_success", "copies_as_wanted", "labels_flipped", "name_of", "network_of",
    "quantities_of", "ratio_at", "usual_level", "w_by_sigma",
]  # fmt: skip

Floats = NDArray[np.float64]
#: The records of a network, its own first.
Run = tuple[Record, ...]


def name_of(attack: AttackSpec) -> str:
    """The name of an attack in quantities.

    >>> name_of(AttackSpec(threat_model="T1", trigger=4, target=0))
    'T1-4'
    """
    return f"{attack.threat_model}-{attack.trigger}"


def attack_on(network: NetworkSpec) -> AttackSpec:
    """The attack on a backdoored network."""
    assert network.attack is not None
    return network.attack


def accuracy_of(run: Run) -> float:
    """The clean accuracy of a network."""
    return float(run[0].result["clean_accuracy"])


def network_of(run: Run) -> NetworkSpec:
    """The network of a run."""
    assert isinstance(run[0].spec, NetworkSpec)
    return run[0].spec


def attack_success(predictions: Record) -> float:
    """The success rate of the trigger, from the predictions for triggered images."""
    predicted, labels = (predictions.arrays[name] for name in ("predicted", "labels"))
    return success_rate(predicted, labels, _wanted(predictions))


def usual_level(sigmas: Sequence[float]) -> int:
    """The index of the noise level nearest to 0.1, at which the chapters compare networks.

    >>> usual_level((0.05, 0.1, 0.25))
    1
    """
    return int(np.abs(np.subtract(sigmas, 0.1)).argmin())


def w_by_sigma(counts: Record) -> Floats:
    """W of each image at the largest number of noisy copies, shape (S, B)."""
    return entropy(counts.arrays["counts"][:, -1])


def labels_flipped(counts: Record) -> Floats:
    """The fraction of noisy copies whose label is not the image's own without noise, shape (S, B)."""
    return 1 - _called(counts, counts.arrays["predicted"])


def copies_as_wanted(counts: Record) -> Floats:
    """The fraction of noisy copies that get the attacker's label, of the B' images that have another one, shape (S, B')."""
    wanted = _wanted(counts)
    return _called(counts, wanted)[:, wanted != counts.arrays["labels"]]


def area(clean: Floats, triggered: Floats) -> float:
    """The area under the ROC curve of a score of the images of one network, which is high for suspicious images.

    >>> area(np.array([0.0, 1.0]), np.array([1.0, 2.0]))
    0.875
    """
    positive = np.repeat([False, True], [clean.size, triggered.size])
    return float(area_replicates(np.concatenate([clean, triggered]), positive, np.zeros(positive.size)).value)


def ratio_at(sigma: int) -> Callable[[Floats], Floats]:
    """Mean W with the trigger divided by mean W without, from means (..., 2, S), without first; NaN where that is 0."""

    def ratio(means: Floats) -> Floats:
        without = np.asarray(means[..., 0, sigma])
        return np.divide(means[..., 1, sigma], without, out=np.full_like(without, np.nan), where=without != 0)

    return ratio


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


def _wanted(record: Record) -> NDArray[np.integer[Any]]:
    assert isinstance(record.spec, MeasuredSpec)
    return attack_on(record.spec.network).target_labels(record.arrays["labels"], class_count(record.spec.dataset))


def _called(counts: Record, labels: NDArray[np.integer[Any]]) -> Floats:
    """The fraction of the noisy copies of each image that are predicted as its label, shape (S, B)."""
    own = counts.arrays["counts"][:, -1]
    return np.asarray(np.take_along_axis(own, labels[None, :, None].astype(np.int64), axis=-1)[..., 0] / own.sum(-1))
