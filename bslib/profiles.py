"""Profiles: how much of everything, as data. ``smoke`` runs anywhere in minutes, ``paper`` has the paper's sizes."""

from __future__ import annotations

from dataclasses import dataclass

from bslib.store import PUBLISHED

__all__ = ["PROFILES", "ParametersSize", "Profile", "ToySize", "profile_named"]

SIGMAS = (0.005, 0.01, 0.05, 0.1, 0.15, 0.2, 0.25, 0.5, 0.75, 1.0)
NS = (10, 25, 50, 100, 250, 500, 1000)


@dataclass(frozen=True, kw_only=True)
class ParametersSize:
    """One data set's half of the Parameters chapter (one row of Fig. 2).

    Parameters
    ----------
    dataset, network : str
    networks : int
        How many, with seeds of their own.
    epochs : int
    train_size : int, optional
        Training images; all when not given.
    learning_rate : float
    augment : bool
    points : int
        Test images in the batch.
    ns, n_sigmas
        The sweep over n: the numbers of noisy copies, and the noise levels at which it is made.
    sigmas, n
        The sweep over sigma: the noise levels, and the number of noisy copies.
    """

    dataset: str
    network: str
    networks: int
    epochs: int
    train_size: int | None = None
    learning_rate: float = 0.05
    augment: bool = False
    points: int
    ns: tuple[int, ...] = NS
    n_sigmas: tuple[float, ...] = (0.1, 0.25)
    sigmas: tuple[float, ...] = SIGMAS
    n: int = 250


@dataclass(frozen=True, kw_only=True)
class ToySize:
    """Fig. 1: where in the plane W is measured, the noise level and the noisy copies."""

    points: tuple[tuple[float, float], ...] = ((-0.55, -0.65), (0.45, 0.2), (0.0, 0.0), (-0.5, 0.55))
    sigma: float = 0.12
    n: int = 250


@dataclass(frozen=True, kw_only=True)
class Profile:
    """The sizes of every chapter, and the store that a book of this profile is rendered from when none is named.

    Parameters
    ----------
    name : str
    store : str, optional
        As for :func:`bslib.store.open_store`.
    toy : ToySize
    parameters : tuple of ParametersSize
        Fashion-MNIST's row of Fig. 2 and CIFAR-10's, or what stands in for them.
    """

    name: str
    store: str | None
    toy: ToySize
    parameters: tuple[ParametersSize, ParametersSize]


PROFILES: dict[str, Profile] = {
    "smoke": Profile(
        name="smoke",
        store=None,
        toy=ToySize(),
        parameters=(
            ParametersSize(dataset="digits", network="small-fashion", networks=2, epochs=6, points=25),
            ParametersSize(
                dataset="digits-rgb",
                network="resnet18",
                networks=1,
                epochs=2,
                train_size=96,
                augment=True,
                points=5,
                ns=(10, 25, 50),
                n_sigmas=(0.1,),
                sigmas=(0.01, 0.1, 0.25),
                n=50,
            ),
        ),
    ),
    "paper": Profile(
        name="paper",
        store=PUBLISHED,
        toy=ToySize(),
        parameters=(
            ParametersSize(dataset="fashion-mnist", network="small-fashion", networks=5, epochs=2, points=250),
            ParametersSize(
                dataset="cifar10",
                network="resnet18",
                networks=5,
                epochs=30,
                learning_rate=0.1,
                augment=True,
                points=250,
                sigmas=SIGMAS[:7],
            ),
        ),
    ),
}


def profile_named(name: str) -> Profile:
    """The profile of that name, or a ValueError that names the choices.

    >>> profile_named("paper").parameters[0].networks
    5
    """
    if name not in PROFILES:
        raise ValueError(f"profile must be one of {', '.join(PROFILES)}, got {name!r}")
    return PROFILES[name]
