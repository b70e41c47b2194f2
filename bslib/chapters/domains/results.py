"""W without and with a trigger on tables, texts and tones: the numbers."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pandas as pd

from bslib.chapters.base import Results
from bslib.chapters.domains.plan import THREATS, specs_of
from bslib.chapters.outcomes import defined, quantities, ratio
from bslib.entropy import entropy
from bslib.markdown import markdown_table
from bslib.specs import DomainSpec
from bslib.statistics import Estimate, Estimates, Replicates, leave_one_out, mean_of_networks, success_rate
from bslib.store import Record, Store

__all__ = ["Domain", "Domains", "load", "quantities"]


@dataclass(frozen=True)
class Domain(Results[Any]):
    """The numbers of one data set. A run is one record: a network and what is measured on it."""

    chapter: ClassVar[str] = "domains"
    described: ClassVar[str] = "backdoored "
    details = ""

    def planned(self) -> list[Any]:
        """The planned networks, as :class:`~bslib.specs.others.DomainSpec`."""
        return [spec for threat in THREATS for spec in specs_of(self.size, threat, self.seed)]

    def needed(self, network: Any) -> list[Any]:
        """The spec itself."""
        return [network]

    def records_of(self, threat: str) -> list[Record]:
        """The records of one of :data:`~bslib.chapters.domains.plan.THREATS`."""
        return [self.records[spec] for spec in specs_of(self.size, threat, self.seed) if spec in self.records]

    def means(self, threat: str) -> Replicates:
        """Mean W, shape (2, sigmas): without and with the trigger."""
        return leave_one_out([entropy(record.arrays["counts"]) for record in self.records_of(threat)])

    def level(self, threat: str) -> int:
        """The index of the noise level at which the mean of clean W is nearest to a third of its maximum, log(classes)."""
        third = np.log(self.records_of(threat)[0].arrays["counts"].shape[-1]) / 3
        return int(np.abs(self.means(threat).value[0] - third).argmin())

    def by_sigma(self) -> pd.DataFrame:
        """Mean W without and with the trigger at each noise level, and their ratio."""
        rows = []
        for threat in filter(self.records_of, THREATS):
            means = self.means(threat)
            for s, sigma in enumerate(self.size.sigmas):
                row: dict[str, Any] = {"data set": self.size.dataset, "threat model": threat, "sigma": sigma}
                row["clean"], row["with trigger"] = means.value[:, s]
                row["ratio"] = means.at(s).estimate(ratio, within=(0, np.inf))
                rows.append(row)
        return pd.DataFrame(rows)

    def quantities(self) -> dict[str, Estimate]:
        """The quantities of the chapter's claims by name."""
        return defined(Estimates.of(map(self._quantities_of, filter(self.records_of, THREATS))))

    def _quantities_of(self, threat: str) -> dict[str, Estimate]:
        name, records, means = f"{self.size.dataset}.{threat}", self.records_of(threat), self.means(threat)
        rates, tested = [_rates(record) for record in records], len(records[0].arrays["labels"])
        found = {
            f"{rate}.{name}": mean_of_networks([r[k] for r in rates], tested) for k, rate in enumerate(("success", "accuracy"))
        }
        third, strongest = self.level(threat), int(np.argmax(self.size.sigmas))
        for label, s in {"third": third, **{f"{sigma:g}": s for s, sigma in enumerate(self.size.sigmas)}}.items():
            found[f"less_clean.{name}.{label}"] = means.at(s).estimate(lambda w: w[..., 1] - w[..., 0])
            found[f"ratio.{name}.{label}"] = means.at(s).estimate(ratio, within=(0, np.inf))
        found[f"ratio.{name}.strongest.less.third"] = means.estimate(lambda w: ratio(w[..., strongest]) - ratio(w[..., third]))
        return found


class Domains(dict[str, Domain]):
    """The results of all data sets by name; figures that show all of them are drawn from it."""

    @property
    def missing(self) -> str | None:
        """A message about missing records; None when a data set has results to show."""
        return None if any(part.networks for part in self.values()) else self.not_yet_run()

    def not_yet_run(self) -> str:
        """The message about missing records."""
        return "\n\n".join(part.not_yet_run() for part in self.values())

    @property
    def source(self) -> str:
        """The sources of the data sets, a line each."""
        return "\n".join(part.source for part in self.values() if part.networks)

    def by_sigma(self) -> pd.DataFrame:
        """The tables of :meth:`Domain.by_sigma`, one below the other."""
        return pd.concat([part.by_sigma() for part in self.values() if part.networks], ignore_index=True)

    def as_markdown(self) -> str:
        """Accuracy, success, and W at the level where clean W is a third of its maximum, in Markdown; empty without records."""
        rows = []
        for name, part in self.items():
            own = Estimates(part.quantities())
            for threat in filter(part.records_of, THREATS):
                at = f"{name}.{threat}"
                rates = [f"{own[f'{rate}.{at}']:.1%}" for rate in ("accuracy", "success")]
                rows.append(
                    (name, threat, *rates, f"{part.size.sigmas[part.level(threat)]:g}", f"{own[f'ratio.{at}.third']:.2f}")
                )
        return markdown_table(["data", "threat model", "clean accuracy", "success", "σ", "ratio of W there"], rows, empty="")


def load(*, profile: str, seed: int = 0, store: str | Path | Store | None = None) -> Domains:
    """The results of each data set, as :meth:`bslib.chapters.base.Results.load` gives them."""
    return Domains(Domain.load(profile=profile, seed=seed, store=store))


def _rates(record: Record) -> tuple[float, float]:
    """The success of the trigger, without points of the target class, and the accuracy without it."""
    assert isinstance(record.spec, DomainSpec)
    labels, (clean, triggered) = record.arrays["labels"], record.arrays["predicted"]
    target = record.spec.target(record.arrays["counts"].shape[-1])
    success = success_rate(triggered, labels, np.full_like(labels, target))
    return success, float((clean == labels).mean())
