"""Base classes of the chapters: the networks of a size, and results loaded from records."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Generic, Self, TypeVar

import numpy as np
from numpy.typing import NDArray

from bslib.chapters import not_yet_run, plan_module, plan_of, records_for, sizes_of
from bslib.datasets import class_count
from bslib.fields import check_fields
from bslib.markdown import markdown_table, range_text
from bslib.profiles import profile_named
from bslib.specs import AttackSpec, NetworkSpec, Spec
from bslib.store import Record, Records, Store
from bslib.threat_models import threat_model_named

__all__ = ["NS", "SIGMAS", "Results", "TrainedSize"]

SIGMAS = (0.005, 0.01, 0.05, 0.1, 0.15, 0.2, 0.25, 0.5, 0.75, 1.0)
NS = (10, 25, 50, 100, 250, 500, 1000)


@dataclass(frozen=True, kw_only=True)
class TrainedSize:
    """The networks that a chapter trains on one data set.

    Parameters
    ----------
    dataset, network : str
    networks : int
        How many (for each trigger, where there are several), with seeds of their own.
    epochs : int
    points : int
        Test images in a batch that W is measured on.
    train_size : int, optional
        Training images; all when not given.
    learning_rate : float
    augment : bool
    """

    dataset: str
    network: str
    networks: int
    epochs: int
    points: int
    train_size: int | None = None
    learning_rate: float = 0.05
    augment: bool = False

    def __post_init__(self) -> None:
        check_fields(self, f"a size of {type(self).__module__.split('.')[-2]}")
        for name in ("sigmas", "ns", "attacks", "covers"):
            if getattr(self, name, None) == ():
                raise ValueError(f"{name} must not be empty")

    @property
    def classes(self) -> int:
        """Classes of the data set."""
        return class_count(self.dataset)

    def attacked_network(self, seed: int, threat_model: str, trigger: int, **more: Any) -> NetworkSpec:
        """A backdoored network; its target class follows from the seed, and ``more`` are further fields of the AttackSpec.

        >>> sizes_of("surface", "paper")[0].attacked_network(13, "T1", trigger=1).attack.target
        3
        """
        target = threat_model_named(threat_model).target_of_run(seed, self.classes)
        return self.network_spec(seed, AttackSpec(threat_model=threat_model, trigger=trigger, target=target, **more))

    def network_spec(self, seed: int, attack: AttackSpec | None = None) -> NetworkSpec:
        """A clean or an attacked network.

        >>> sizes_of("parameters", "paper")[0].network_spec(seed=3).seed
        3
        """
        return NetworkSpec(
            dataset=self.dataset,
            network=self.network,
            seed=seed,
            epochs=self.epochs,
            train_size=self.train_size,
            learning_rate=self.learning_rate,
            augment=self.augment,
            attack=attack,
        )


S = TypeVar("S", bound=TrainedSize)

#: A batch of an explorer: its settings and its class counts, shape (B, C).
Batch = tuple[dict[str, Any], NDArray[np.integer[Any]]]
#: The content of an explorer: the settings of each data set, and the batches.
Content = tuple[list[dict[str, Any]], list[Batch]]


@dataclass(frozen=True)
class Results(Generic[S]):
    """The results of a chapter on one data set.

    Parameters
    ----------
    size : TrainedSize
        The chapter's ``Size``.
    profile : str
    seed : int
        Of the first network.
    records : Records
    """

    size: S
    profile: str
    seed: int
    records: Records
    chapter: ClassVar[str]
    #: An adjective for the networks in the message about missing records.
    described: ClassVar[str] = ""

    @classmethod
    def load(cls, *, profile: str, seed: int = 0, store: str | Path | Store | None = None) -> dict[str, Self]:
        """The results of each data set, from the records of a store, which is completed first unless it is read-only.

        Parameters
        ----------
        profile, seed
            As for :func:`bslib.chapters.plan_of`.
        store
            As for :func:`bslib.store.open_store`; the profile's own choice when not given.

        Returns
        -------
        dict of str to Results
            By the name of the data set, in the order of the profile.
        """
        records = records_for(plan_of(cls.chapter, profile, seed=seed), store or profile_named(profile).store)
        return {size.dataset: cls(size, profile, seed, records) for size in sizes_of(cls.chapter, profile)}

    def planned(self) -> Sequence[NetworkSpec]:
        """The planned networks: unless a chapter says otherwise, those of the function ``networks_of`` of its plan."""
        return plan_module(self.chapter).networks_of(self.size, self.seed)

    def needed(self, network: NetworkSpec) -> Sequence[Spec]:
        """The specs whose records make a network complete, the network first: those of ``specs_of`` of the chapter's plan."""
        return plan_module(self.chapter).specs_of(self.size, network)

    @cached_property
    def networks(self) -> list[NetworkSpec]:
        """The networks whose records are complete."""
        return [network for network in self.planned() if all(spec in self.records for spec in self.needed(network))]

    @cached_property
    def runs(self) -> list[tuple[Record, ...]]:
        """The records of :meth:`needed` for each complete network."""
        return [tuple(self.records[spec] for spec in self.needed(network)) for network in self.networks]

    @property
    def listed(self) -> list[NetworkSpec]:
        """The networks that :meth:`about_networks` describes."""
        return self.networks

    def about_networks(self) -> str:
        """What the networks are, as a Markdown table with a row for each kind, from their specs and records."""
        rows: list[tuple[Any, ...]] = []
        kinds: dict[str, list[NetworkSpec]] = {}
        for network in self.listed:
            kind = f"{network.attack.threat_model}, trigger {network.attack.trigger}" if network.attack else "clean"
            kinds.setdefault(kind, []).append(network)
        for kind, some in kinds.items():
            one, results = some[0], [self.records[network].result for network in some]
            targets = sorted({network.attack.target for network in some if network.attack and network.attack.target is not None})
            how = f"{one.epochs} epoch{'s' if one.epochs > 1 else ''}, rate {one.learning_rate:g}, batches of {one.batch_size}"
            rows.append(
                (
                    kind,
                    len(some),
                    range_text((result["clean_accuracy"] for result in results), ".1%"),
                    f"{how}, weight decay {one.weight_decay:g}{', shifted and mirrored' if one.augment else ''}",
                    ", ".join(map(str, targets)) or "none",
                    ", ".join(sorted({f"{result['precision']}" for result in results})),
                )
            )
        head = ["networks", "how many", "clean accuracy", "training (SGD with momentum, one-cycle rate)", "target", "precision"]
        return markdown_table(head, rows)

    @property
    def details(self) -> str:
        """Text for the source line, after the number of networks."""
        return f", {self.size.points:,} test images each"

    @property
    def source(self) -> str:
        """One line that says which records a figure is drawn from."""
        keys = [network.key[:6] for network in self.networks]
        return (
            f"{self.records[self.networks[0]].data['source']}; {len(keys)} of {len(self.planned())} networks{self.details}; "
            f"profile {self.profile}; networks {keys[0]}{f' to {keys[-1]}' if len(keys) > 1 else ''}"
        )

    @property
    def missing(self) -> str | None:
        """A message about missing records with the command that computes them; None when there are results to show."""
        return None if self.networks else self.not_yet_run()

    def not_yet_run(self) -> str:
        """The message about missing records."""
        needs = f"{len(self.planned())} {self.described}networks ({self.size.network}) on {self.size.dataset}"
        return not_yet_run(self.chapter, self.profile, needs, held=len(self.networks), seed=self.seed)
