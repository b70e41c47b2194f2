"""The networks of the patterns chapter, W of their batches, and Levene's test of each batch against a clean one."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from bslib.chapters.base import Results
from bslib.chapters.outcomes import attack_success
from bslib.chapters.patterns.plan import CONDITIONS, Size, batch_of, only_crafted_networks_of, only_crafted_specs, trained_trigger
from bslib.chapters.surface.plan import pictures_of
from bslib.entropy import entropy
from bslib.markdown import markdown_table, range_text
from bslib.specs import CountsSpec, NetworkSpec, PredictionsSpec
from bslib.statistics import Estimate, auc, levene
from bslib.store import Record

__all__ = ["FEWEST_SEEDS", "FORMS", "SUFFIXES", "Batches"]

Floats = NDArray[np.float64]
#: The smallest number of seeds behind a quantity.
FEWEST_SEEDS = 2
#: Forms of the test, as arguments of :func:`bslib.statistics.levene`: the paper's as we read it, the same around the median, and
#: Brown and Forsythe's with all points, whose p-values are calibrated.
FORMS: dict[str, dict[str, Any]] = {
    "paper": {},
    "median": {"center": "median"},
    "calibrated": {"center": "median", "outliers": True},
}
#: The forms that claims are judged by, and what follows the first part of the name of their quantities.
SUFFIXES = {"paper": "", "calibrated": "_calibrated"}


@dataclass(frozen=True)
class Batches(Results[Size]):
    """Batches with and without triggers on one data set. A network counts once W is measured with all triggers."""

    chapter: ClassVar[str] = "patterns"
    described: ClassVar[str] = "clean and backdoored "

    @cached_property
    def listed(self) -> list[NetworkSpec]:
        """The complete networks, then those that are there for crafted patterns alone. Tables number networks by this list."""
        further = only_crafted_networks_of(self.size, self.seed)
        return self.networks + [n for n in further if all(spec in self.records for spec in only_crafted_specs(self.size, n))]

    @cached_property
    def sigmas(self) -> list[float]:
        """The noise levels at which the detector is measured on each of these networks, ascending."""
        batches = list(itertools.product(self.networks, CONDITIONS))
        return sorted(
            sigma
            for sigma in self.size.sigmas
            if batches and all(batch_of(self.size, *batch, sigma) in self.records for batch in batches)
        )

    @property
    def pictures(self) -> Record | None:
        """Images with and without each trigger, or None if the store has none."""
        return self.records.get(pictures_of(self.size, self.seed))

    @property
    def details(self) -> str:
        """The threat model."""
        return f", clean and under {self.size.threat_model}"

    @property
    def missing(self) -> str | None:
        """The message about missing records, unless networks of every kind are complete."""
        return None if {*map(trained_trigger, self.networks)} >= {0, *self.size.triggers} else self.not_yet_run()

    @cached_property
    def w(self) -> Callable[[CountsSpec, float], Floats]:
        """Maps a batch and one of its noise levels to W, shape (B,)."""
        return functools.cache(lambda spec, sigma: entropy(self.records[spec].arrays["counts"][spec.sigmas.index(sigma), 0]))

    def clean_w(self, network: NetworkSpec, sigma: float) -> Floats:
        """W of as many clean points as a batch with a crafted pattern has."""
        return self.w(batch_of(self.size, network, None, sigma), sigma)[: self.size.pattern_points]

    def success(self, network: NetworkSpec) -> float:
        """The attack success rate of a network's own trigger; NaN for a clean network."""
        if network.attack is None:
            return float("nan")
        [predictions] = [spec for spec in self.needed(network) if isinstance(spec, PredictionsSpec)]
        return attack_success(self.records[predictions])

    def tests(
        self, sigma: float | None = None, *, batch: int | None = None, form: str = "paper", points: int | None = None
    ) -> pd.DataFrame:
        """Levene's test of every batch against a clean batch of the same network.

        Parameters
        ----------
        sigma : float, optional
            The first noise level of the size when not given.
        batch : int, optional
            Points in a batch; all when not given. A smaller one gives several batches of different points.
        form : {"paper", "median", "calibrated"}
            One of :data:`FORMS`.
        points : int, optional
            The number of points to use; all when not given.

        Returns
        -------
        DataFrame
            Columns network (its number), carried ("own", "unseen" or "nothing"), trigger, success (of the network's own trigger),
            score and p.
        """
        return self._tests_once(self.size.sigmas[0] if sigma is None else sigma, batch, form, points).copy()

    @cached_property
    def _tests_once(self) -> Callable[..., pd.DataFrame]:
        return functools.cache(self._tests)  # many areas use the same tests

    def _tests(self, sigma: float, batch: int | None, form: str, points: int | None) -> pd.DataFrame:
        w = self._w_of_batches(sigma)[..., :points]
        size = batch or w.shape[-1]
        count = w.shape[-1] // size  # a remainder is not used
        split = w[..., : count * size].reshape(*w.shape[:2], count, size)
        found = levene(split[:, :1], split[:, 1:], **FORMS[form])
        number, condition, _ = np.indices(found.score.shape)
        trigger, own = np.array(CONDITIONS[1:])[condition], self._trained_triggers[number]
        columns = {
            "network": number,
            "carried": np.select([trigger == 0, trigger == own], ["nothing", "own"], "unseen"),
            "trigger": trigger,
            "success": self._successes[number],
            "score": found.score,
            "p": found.pvalue,
        }
        return pd.DataFrame({name: column.ravel() for name, column in columns.items()})

    @cached_property
    def _trained_triggers(self) -> NDArray[np.int64]:
        return np.array([trained_trigger(network) for network in self.listed], dtype=int)

    @cached_property
    def _successes(self) -> Floats:
        return np.array([self.success(network) for network in self.networks])

    @cached_property
    def _w_of_batches(self) -> Callable[[float], Floats]:
        """W of all batches at a noise level, shape (networks, conditions, points)."""

        def of_all(sigma: float) -> Floats:
            batches = itertools.product(self.networks, CONDITIONS)
            return np.array([self.w(batch_of(self.size, *batch, sigma), sigma) for batch in batches]).reshape(
                len(self.networks), len(CONDITIONS), self.size.points
            )

        return functools.cache(of_all)

    def area_of(self, table: pd.DataFrame, carried: str, score: str = "score") -> Estimate:
        """The area under the ROC curve of a column of a table, for batches that carry one thing against all others."""
        return auc(table[score], table["carried"] == carried, self.seeds(table))

    def seeds(self, table: pd.DataFrame) -> NDArray[np.int64]:
        """The seed of the network of each row of a table."""
        return np.array([network.seed for network in self.listed], dtype=int)[table["network"]]

    def triggers(self, table: pd.DataFrame) -> NDArray[np.int64]:
        """The trigger that the network of each row was trained on; 0 for clean networks."""
        return self._trained_triggers[table["network"]]

    def trained_on(self, tests: pd.DataFrame, triggers: Sequence[int] | None = None) -> pd.DataFrame:
        """The tests on clean networks and on networks with these triggers; by default all."""
        return tests if triggers is None else tests[np.isin(self.triggers(tests), [0, *triggers])]

    def success_table(self) -> str:
        """The success of the networks' own triggers as a Markdown table."""
        rows = []
        for trigger in sorted(self.size.trained):
            own = [self.success(network) for network in self.networks if trained_trigger(network) == trigger]
            rows.append((trigger, len(own), range_text(own, ".1%") or "(not yet run)"))
        return markdown_table(["own trigger", "networks", "success, lowest to highest"], rows)
