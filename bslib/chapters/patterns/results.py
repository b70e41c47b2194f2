"""What else smooths the surface: the numbers of Secs. 3.2.4 and 4 (Figs. 6 and 7)."""

from __future__ import annotations

from dataclasses import dataclass

from bslib.chapters.outcomes import defined, quantities
from bslib.chapters.patterns import candidates, detector, others, universal
from bslib.chapters.patterns.batches import FEWEST_SEEDS, Batches
from bslib.statistics import Estimate

__all__ = ["Patterns", "load", "quantities"]


@dataclass(frozen=True)
class Patterns(Batches):
    """The numbers of the chapter on one data set. Methods are what notebooks call; the modules beside this one have the rest."""

    area = detector.area
    detectors_table = others.detectors_table
    cleanse_table = candidates.cleanse_table
    comparison_table = candidates.comparison_table

    def quantities(self) -> dict[str, Estimate]:
        """The quantities of the chapter's claims by name, where there are enough seeds."""
        found = {} if self.missing else detector.quantities(self)
        for subject in (universal, candidates, others):
            found |= subject.quantities(self)
        return {name: own for name, own in defined(found).items() if own.repeats >= FEWEST_SEEDS}


load = Patterns.load
