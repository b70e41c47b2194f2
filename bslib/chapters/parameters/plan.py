"""What the Parameters chapter computes (Sec. 3.1, Fig. 2): sweeps over n and sigma on clean networks."""

from __future__ import annotations

from dataclasses import dataclass

from bslib.chapters import sizes_of
from bslib.chapters.base import NS, SIGMAS, TrainedSize
from bslib.specs import CountsSpec, NetworkSpec, Spec

__all__ = ["Size", "networks_of", "plan", "specs_of"]


@dataclass(frozen=True, kw_only=True)
class Size(TrainedSize):
    """The size of the Parameters chapter on one data set (one row of Fig. 2).

    Parameters
    ----------
    points : int
        Test images that W is measured around.
    batch : int
        So many of them, the first, are in a box plot and in the explorer; the paper's number.
    ns, n_sigmas
        The sweep over n: the numbers of noisy copies, and the noise levels at which it is made.
    sigmas, n
        The sweep over sigma: the noise levels, and the number of noisy copies.
    """

    batch: int = 250
    ns: tuple[int, ...] = NS
    n_sigmas: tuple[float, ...] = (0.1, 0.25)
    sigmas: tuple[float, ...] = SIGMAS
    n: int = 250

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.n not in self.ns:
            raise ValueError(f"n of a Parameters size must be one of its ns {self.ns}, got {self.n}")


def plan(profile: str, *, seed: int = 0) -> list[Spec]:
    """All specs of the chapter, the most useful first.

    >>> len(plan("paper")), plan("paper")[0].network
    (30, 'small-fashion')
    """
    sizes = sizes_of("parameters", profile)
    return [spec for size in sizes for network in networks_of(size, seed) for spec in specs_of(size, network)]


def networks_of(size: Size, seed: int) -> list[NetworkSpec]:
    """The networks of one data set, with consecutive seeds."""
    return [size.network_spec(run) for run in range(seed, seed + size.networks)]


def specs_of(size: Size, network: NetworkSpec) -> tuple[NetworkSpec, CountsSpec, CountsSpec]:
    """A network, the sweep over n, and the sweep over sigma on the same batch with the same noise.

    >>> size = sizes_of("parameters", "paper")[0]
    >>> network, over_n, over_sigma = specs_of(size, size.network_spec(seed=3))
    >>> over_n.sigmas, over_sigma.ns, over_sigma.seed
    ((0.1, 0.25), (250,), 3)
    """
    seed = network.seed
    over_n = CountsSpec(network=network, points=size.points, sigmas=size.n_sigmas, ns=size.ns, seed=seed)
    over_sigma = CountsSpec(network=network, points=size.points, sigmas=size.sigmas, ns=(size.n,), seed=seed)
    return network, over_n, over_sigma
