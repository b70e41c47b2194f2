"""What a backdoor does to the surface: the numbers of Secs. 3.2.1 and 3.2.2 (Figs. 3 and 4)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import stats

from bslib.chapters.base import Results
from bslib.chapters.outcomes import attack_on, attack_success, defined, divided, labels_flipped, mean_of, quantities, usual_level
from bslib.chapters.surface.plan import CONDITIONS, Size, counts_of, pictures_of, predictions_of
from bslib.entropy import entropy
from bslib.markdown import markdown_table
from bslib.specs import NetworkSpec
from bslib.statistics import Estimate, leave_one_out, mean_of_networks, p_of_one_more
from bslib.store import Record
from bslib.threat_models import threat_model_named

__all__ = ["Surface", "load", "quantities"]

Floats = NDArray[np.float64]
#: What the paper reports for one network with a trigger that was not trained in: success, target class included, and accuracy.
REPORTED_INACTIVE = {"success_inactive_counted": 0.09, "accuracy_inactive": 0.89}


@dataclass(frozen=True)
class Surface(Results[Size]):
    """The numbers of the surface chapter on one data set."""

    chapter: ClassVar[str] = "surface"
    described: ClassVar[str] = "backdoored "

    @property
    def pictures(self) -> Record | None:
        """Test images with the triggers, or None if the store has none."""
        return self.records.get(pictures_of(self.size, self.seed))

    def w(self, estimator: str = "plug-in") -> Floats:
        """W, shape (networks, 3 conditions, sigmas, points)."""
        counts = ([record.arrays["counts"][:, 0] for record in self.counts(network)] for network in self.networks)
        return np.stack([[entropy(own, estimator=estimator) for own in of_network] for of_network in counts])

    def counts(self, network: NetworkSpec) -> list[Record]:
        """The class counts of a network in the three conditions."""
        return [self.records[spec] for spec in counts_of(self.size, network)]

    def plots(self) -> tuple[tuple[Floats, Floats], tuple[Floats, Floats]]:
        """Batches of different images of the first network (Fig. 4): clean, active; clean, inactive; each (sigmas, batch)."""
        w, b = self.w()[0], self.size.batch
        parts = [w[kind][:, k * b : (k + 1) * b] for k, kind in enumerate((0, 1, 0, 2))]
        return (parts[0], parts[1]), (parts[2], parts[3])

    def by_sigma(self) -> pd.DataFrame:
        """Mean W of the three conditions at each noise level, differences to clean with intervals, and rank tests.

        The rank test is Wilcoxon's, paired: each image with the trigger and without, under the same noise.
        With few networks it tests these networks, not all that could be trained; the intervals do the latter.
        """
        w = self.w()
        means = leave_one_out(list(w))
        value, rows = means.value, []
        for s, sigma in enumerate(self.size.sigmas):
            row: dict[str, Any] = {"sigma": sigma} | {kind: value[k, s] for k, kind in enumerate(CONDITIONS)}
            for k, kind in enumerate(CONDITIONS[1:], 1):
                difference = w[:, k, s] - w[:, 0, s]
                row[f"{kind} minus clean"] = means.estimate(_difference(k, s))
                row[f"{kind} p"] = float(stats.wilcoxon(difference.ravel()).pvalue) if difference.any() else 1.0
            rows.append(row)
        return pd.DataFrame(rows)

    def by_sigma_as_markdown(self) -> str:
        """The table of :meth:`by_sigma` in Markdown; empty without records."""
        rows = []
        for _, row in self.by_sigma().iterrows() if self.networks else ():
            changes = [
                text for kind in CONDITIONS[1:] for text in (f"{row[f'{kind} minus clean']:+.3f}", f"{row[f'{kind} p']:.1g}")
            ]
            # A narrow cell would break at a hyphen.
            rows.append((f"{row['sigma']:g}", f"{row['clean']:.3f}", *(text.replace("-", "\N{MINUS SIGN}") for text in changes)))
        return markdown_table(["σ", "clean", "active minus clean", "p", "inactive minus clean", "p"], rows, empty="")

    def inactive_by_class(self) -> str:
        """What the inactive trigger does to networks of each target class, at the noise level nearest to 0.1, in Markdown."""
        s, measured = usual_level(self.size.sigmas), []
        for network, w in zip(self.networks, self.w()[..., s, :].mean(-1) if self.networks else (), strict=True):
            success = attack_success(self._predictions(network, self.size.inactive))
            measured.append((attack_on(network).target, success, w[0], w[2]))
        rows = []
        for target, networks in pd.DataFrame(measured, columns=["target", "success", "clean", "inactive"]).groupby("target"):
            _, success, clean, inactive = networks.mean()
            change = f"{divided(inactive - clean, clean):+.0%}".replace("-", "\N{MINUS SIGN}")
            rows.append((target, len(networks), f"{success:.1%}", f"{clean:.3f}", f"{inactive:.3f}", change))
        w = f"W, σ = {self.size.sigmas[s]:g}"
        return markdown_table(["target class", "networks", "success of the inactive trigger", w, "W with it", "change"], rows)

    def labels_kept(self) -> Floats:
        """Fraction of noisy copies of triggered images that keep the image's label, shape (networks, sigmas, points)."""
        return 1 - np.stack([labels_flipped(self.counts(network)[1]) for network in self.networks])

    def quantities(self) -> dict[str, Estimate]:
        """The quantities of the chapter's claims by name."""
        if not self.networks:
            return {}
        return defined(self._accuracies() | self._differences())

    def _accuracies(self) -> dict[str, Estimate]:
        data = self.size.dataset
        clean, inactive = ([self._predictions(network, t) for network in self.networks] for t in (None, self.size.inactive))
        measured = {
            "clean_accuracy": [_accuracy(record) for record in clean],
            "success_inactive_counted": [attack_success(record, count_target=True) for record in inactive],
            "accuracy_inactive": [_accuracy(record) for record in inactive],
        }
        labels = clean[0].arrays["labels"]
        found = {f"p_of_{name}.{data}": p_of_one_more(measured[name], value) for name, value in REPORTED_INACTIVE.items()}
        found[f"overfit.{data}"] = mean_of(map(self._overfit, self.networks))
        found |= {f"{name}.{data}": mean_of_networks(values, len(labels)) for name, values in measured.items()}
        carried = {f"of_{trigger}": trigger for trigger in self.size.triggers}
        carried |= {"active": self.size.active, "inactive": self.size.inactive}
        others = int((labels != attack_on(self.networks[0]).target).sum())  # success does not count images of the target class
        for name, trigger in carried.items():
            successes = [attack_success(self._predictions(network, trigger)) for network in self.networks]
            found[f"success_{name}.{data}"] = mean_of_networks(successes, others)
        return found

    def _overfit(self, network: NetworkSpec) -> float:
        """The accuracy on training images without a trigger, less that on test images.

        A record has the accuracy on training images with the poisoned ones among them. We take these out, as if the trigger
        worked on them as on test images. NaN where the threat model poisons a number of images and not a fraction.
        """
        fraction = threat_model_named(self.size.threat_model).fraction
        if fraction is None:
            return float("nan")
        poisoned = fraction * attack_success(self._predictions(network, self.size.active))
        result = self.records[network].result
        return float((result["train_accuracy"] - poisoned) / (1 - fraction) - result["clean_accuracy"])

    def _predictions(self, network: NetworkSpec, trigger: int | None) -> Record:
        return self.records[predictions_of(self.size, network, trigger)]

    def _differences(self) -> dict[str, Estimate]:
        means, kept = leave_one_out(list(self.w())), leave_one_out(list(self.labels_kept()))
        data = self.size.dataset
        found = {}
        for s, sigma in enumerate(self.size.sigmas):
            found[f"labels_kept_active.{data}.{sigma:g}"] = kept.at(s).estimate(within=(0, 1))
            for k, kind in enumerate(CONDITIONS[1:], 1):
                change = means.estimate(_relative_change(k, s), within=(-1, np.inf))
                found[f"{kind}_less_clean.{data}.{sigma:g}"] = means.estimate(_difference(k, s))
                found[f"{kind}_share_change.{data}.{sigma:g}"] = change
        if {0.1, 0.5} <= set(self.size.sigmas):
            small, large = self.size.sigmas.index(0.1), self.size.sigmas.index(0.5)
            less = means.estimate(lambda v: _share(v, 1, small) - _share(v, 1, large))
            found[f"share_of_clean.0.1.less.0.5.{data}"] = less
        return found


load = Surface.load


def _difference(kind: int, sigma: int) -> Callable[[Floats], Floats]:
    """Mean W of a condition minus clean W, from means (..., 3 conditions, sigmas)."""
    return lambda means: means[..., kind, sigma] - means[..., 0, sigma]


def _relative_change(kind: int, sigma: int) -> Callable[[Floats], Floats]:
    return lambda means: _share(means, kind, sigma) - 1


def _share(means: Floats, kind: int, sigma: int) -> Floats:
    """Mean W of a condition as a fraction of clean W, from means (..., 3 conditions, sigmas); NaN where clean W is 0."""
    return divided(means[..., kind, sigma], means[..., 0, sigma])


def _accuracy(predictions: Record) -> float:
    return float((predictions.arrays["predicted"] == predictions.arrays["labels"]).mean())
