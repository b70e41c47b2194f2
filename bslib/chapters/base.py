"""What the chapters share: the networks that a size trains, and results that are loaded from records."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Generic, Self, TypeVar

import numpy as np
from numpy.typing import NDArray

from bslib.chapters import not_yet_run, plan_of, records_for, sizes_of
from bslib.datasets import class_count
from bslib.profiles import profile_named
from bslib.specs import AttackSpec, NetworkSpec, Spec
from bslib.store import Record, Records, Store
from bslib.threat_models import threat_model_named

__all__ = ["NS", "SIGMAS", "Results", "TrainedSize"]

SIGMAS = (0.005, 0.01, 0.05, 0.1, 0.15, 0.2, 0.25, 0.5, 0.75, 1.0)
NS = (10, 25, 50, 100, 250, 500, 1000)


@dataclass(frozen=True, kw_only=True)
class TrainedSize:
    """The networks that a part of a chapter trains.

    Parameters
    ----------
    dataset, network : str
    networks : int
        How many (for each trigger, where there are several), with seeds of their own.
    epochs : int
    train_size : int, optional
        Training images; all when not given.
    learning_rate : float
    augment : bool
    """

    dataset: str
    network: str
    networks: int
    epochs: int
    train_size: int | None = None
    learning_rate: float = 0.05
    augment: bool = False

    @property
    def classes(self) -> int:
        """Classes of the data set."""
        return class_count(self.dataset)

    def attacked_network(self, seed: int, threat_model: str, trigger: int) -> NetworkSpec:
        """One of these networks, backdoored; the target classes take turns with the seed.

        >>> sizes_of("surface", "paper")[0].attacked_network(13, "T1", trigger=1).attack.target
        3
        """
        target = threat_model_named(threat_model).target_of_run(seed, self.classes)
        return self.network_spec(seed, AttackSpec(threat_model=threat_model, trigger=trigger, target=target))

    def network_spec(self, seed: int, attack: AttackSpec | None = None) -> NetworkSpec:
        """One of these networks, clean or attacked.

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

#: A batch of an explorer: what is to be known of it, and its class counts, shape (B, C).
Batch = tuple[dict[str, Any], NDArray[np.integer[Any]]]
#: What an explorer shows: what is to be known of each data set, and the batches.
Content = tuple[list[dict[str, Any]], list[Batch]]


@dataclass(frozen=True)
class Results(Generic[S]):
    """One data set's part of a chapter, as far as there are records; a chapter's class says which networks it needs and what of each.

    Parameters
    ----------
    size : TrainedSize
        The chapter's ``Size``.
    profile : str
    seed : int
        Of the first network.
    records : Records
    """  # noqa: E501

    size: S
    profile: str
    seed: int
    records: Records
    chapter: ClassVar[str]
    #: What the networks are called where they are missing.
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
        """The networks of the plan."""
        raise NotImplementedError

    def needed(self, network: NetworkSpec) -> Sequence[Spec]:
        """What has to be there of a network before it counts, the network itself first."""
        raise NotImplementedError

    @cached_property
    def networks(self) -> list[NetworkSpec]:
        """The networks that count."""
        return [network for network in self.planned() if all(spec in self.records for spec in self.needed(network))]

    @cached_property
    def runs(self) -> list[tuple[Record, ...]]:
        """For each of these the records of :meth:`needed`."""
        return [tuple(self.records[spec] for spec in self.needed(network)) for network in self.networks]

    @property
    def details(self) -> str:
        """What the line on the source says beside the number of networks."""
        return ""

    @property
    def source(self) -> str:
        """Where the numbers of a figure come from, in one line."""
        keys = [network.key[:6] for network in self.networks]
        return (
            f"{self.records[self.networks[0]].data['source']}; {len(keys)} of {len(self.planned())} networks{self.details}; "
            f"profile {self.profile}; networks {keys[0]}{f' to {keys[-1]}' if len(keys) > 1 else ''}"
        )

    @property
    def missing(self) -> str | None:
        """What is not yet run, in words with the command that runs it; None where there is something to show."""
        return None if self.networks else self.not_yet_run()

    def not_yet_run(self) -> str:
        """What the records lack, in words with the command that computes it."""
        needs = f"{len(self.planned())} {self.described}networks ({self.size.network}) on {self.size.dataset}"
        return not_yet_run(self.chapter, self.profile, needs, held=len(self.networks), seed=self.seed)
