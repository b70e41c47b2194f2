"""The cost of a plan, estimated from existing records: core-hours and bytes.

The model assumes that a computation takes the average time per unit of work of the existing records. Work is the number of images
that a network is trained on, or the number of noisy copies that it classifies.
"""

from __future__ import annotations

from collections.abc import Iterable
from statistics import fmean
from typing import NamedTuple

import numpy as np
from rich.filesize import decimal

from bslib.chapters import CHAPTERS, plan_of
from bslib.markdown import markdown_table
from bslib.specs import NetworkSpec, Spec
from bslib.store import PUBLISHED, Store, open_store

__all__ = ["Cost", "Rates", "as_markdown", "by_network", "kind_of_work"]

#: Number of workers, with one core each, and numbers of networks in the table of the book.
WORKERS, NETWORKS = 100, (10, 1_000, 100_000)

Work = tuple[str, str, str]


class Cost(NamedTuple):
    """The cost of a number of networks, including everything that is measured on them."""

    core_hours: float
    record_bytes: float
    weight_bytes: float


class Rates:
    """Average seconds per unit of work on one CPU core, and bytes per record, in a store, by kind of work."""

    def __init__(self, store: Store) -> None:
        self._seconds: dict[Work, list[float]] = {}
        self._bytes: dict[Work, list[int]] = {}
        self._parameters: dict[str, int] = {}
        for record in store.iter_records():
            work = kind_of_work(record.spec)
            if record.provenance.get("threads") == 1:  # a GPU's seconds say nothing about a core's
                self._seconds.setdefault(work, []).append(record.provenance["seconds"] / record.spec.work)
            self._bytes.setdefault(work, []).append(store.bytes_of(record.spec))
            if isinstance(record.spec, NetworkSpec):
                self._parameters[record.spec.network] = record.result["parameters"]

    def seconds(self, specs: Iterable[Spec]) -> float | None:
        """Return the estimated seconds for specs on one core; None if there is no record of some kind of work."""
        specs = list(specs)
        if any(kind_of_work(spec) not in self._seconds for spec in specs):
            return None
        return sum(fmean(self._seconds[kind_of_work(spec)]) * spec.work for spec in specs)

    def of(self, specs: Iterable[Spec], networks: int) -> Cost | None:
        """Return the cost of ``networks`` networks, with the average measurements per network in ``specs``.

        Returns None if a kind of work has no record, or ``specs`` contains no network.
        """
        specs = list(dict.fromkeys(specs))
        own = {spec for spec in specs if isinstance(spec, NetworkSpec)}
        seconds = self.seconds(specs)
        if seconds is None or not own:
            return None
        each = networks / len(own)
        kept = sum(fmean(self._bytes[kind_of_work(spec)]) for spec in specs)
        weights = sum(4 * self._parameters[spec.network] for spec in own)
        return Cost(each * seconds / 3600, each * kept, each * weights)

    def spread(self) -> tuple[float, float]:
        """Return the 10% and 90% quantiles of the ratio of measured to modelled time over the records."""
        ratios = [seconds / fmean(own) for own in self._seconds.values() if fmean(own) for seconds in own] or [1.0]
        low, high = np.quantile(ratios, [0.1, 0.9])
        return float(low), float(high)


def kind_of_work(spec: Spec) -> Work:
    """Return the kind, data set and network of a spec; the last two are empty if it needs no network.

    >>> kind_of_work(NetworkSpec(dataset="digits", network="small-fashion", seed=0, epochs=1))
    ('network', 'digits', 'small-fashion')
    """
    network = spec.on_network
    return (spec.kind, network.dataset, network.network) if network else (spec.kind, "", "")


def as_markdown() -> str:
    """Return the book's cost table in Markdown: the cost of networks of each chapter of profile ``paper``.

    >>> as_markdown().splitlines()[0]
    '| Networks of | How many | Core-hours | Days on 100 cores | Records | Weights |'
    """
    rates = Rates(open_store(PUBLISHED))
    rows, unknown = [], []
    for chapter in CHAPTERS:
        on_networks = [spec for spec in plan_of(chapter, "paper") if spec.on_network]
        for (dataset, network), specs in by_network(on_networks).items():
            name = f"{chapter}, {dataset}, {network}"
            costs = [rates.of(specs, count) for count in NETWORKS]
            rows += [_row(name, count, cost) for count, cost in zip(NETWORKS, costs, strict=True) if cost is not None]
            unknown += [name] if None in costs else []
    heads = ["Networks of", "How many", "Core-hours", f"Days on {WORKERS} cores", "Records", "Weights"]
    lines = [markdown_table(heads, rows, empty="", right=True), ""]
    if rows:
        low, high = rates.spread()
        lines.append(f"Eight of ten records took between {low:.1f} and {high:.1f} times what this model says.")
    if unknown:
        lines.append(f"There is no estimate where a part of the work has no record from a CPU yet: {'; '.join(unknown)}.")
    return "\n".join(lines)


def _row(name: str, networks: int, cost: Cost) -> list[str]:
    hours, kept, weights = cost
    days = hours / 24 / WORKERS
    sizes = (decimal(round(size)) for size in (kept, weights))
    return [name, f"{networks:,}", f"{hours:,.1f}", f"{days:,.2f}", *sizes]


def by_network(plan: Iterable[Spec]) -> dict[tuple[str, str], list[Spec]]:
    """Group specs by the data set and the network that they need; both are empty if they need none."""
    groups: dict[tuple[str, str], list[Spec]] = {}
    for spec in plan:
        groups.setdefault(kind_of_work(spec)[1:], []).append(spec)
    return groups
