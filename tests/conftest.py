"""For every module: a cache of its own, a tiny profile, a store in which it is complete, made-up records."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import settings

from bslib.chapters.parameters import ParameterResults, specs_of
from bslib.profiles import ParametersSize, Profile, ToySize
from bslib.store import Record, Store

settings.register_profile("beside others", deadline=None)  # two processes of tests share the machine with what they start
settings.load_profile("beside others")


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory):
    """No test reads or writes the user's cache."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("cache")
        patch.setenv("BSLIB_CACHE", str(folder))
        yield folder


@pytest.fixture(scope="session")
def tiny_profile() -> Profile:
    """Both halves on the grey digits, with 2 networks and 1: a second of work each."""
    first = ParametersSize(
        dataset="digits", network="small-fashion", networks=2, epochs=1, train_size=200, points=6,
        ns=(10, 25, 50), n_sigmas=(0.1, 0.25), sigmas=(0.01, 0.1, 0.25), n=25,
    )  # fmt: skip
    second = ParametersSize(
        dataset="digits", network="larger-fashion", networks=1, epochs=1, train_size=16, points=2,
        ns=(4, 8), n_sigmas=(0.1,), sigmas=(0.01, 0.1), n=8,
    )  # fmt: skip
    return Profile(name="smoke", store=None, toy=ToySize(points=((0.0, 0.0),), n=20), parameters=(first, second))


@pytest.fixture(scope="session")
def tiny_plan(tiny_profile) -> list:
    """The first half alone: two networks, two measurements on each."""
    return [spec for seed in range(2) for spec in specs_of(tiny_profile.parameters[0], seed)]


@pytest.fixture(scope="session")
def completed(tmp_path_factory, tiny_plan) -> Store:
    """A store with all records of ``tiny_plan``, really computed. Copy the folder before writing into it."""
    from bslib.runner import run

    store = Store(tmp_path_factory.mktemp("completed"))
    run(tiny_plan, store, device="cpu", jobs=1, progress=False)
    return store


def made_up_counts(rng: np.random.Generator, sigmas, ns, points: int) -> np.ndarray:
    """Nested multinomial counts (S, N, B, 10) of points whose classes mix more as sigma grows."""
    p = np.stack([rng.dirichlet(np.full(10, 0.02 + sigma), size=points) for sigma in sigmas])
    steps = [rng.multinomial(step, p) for step in np.diff([0, *ns])]
    return np.cumsum(steps, axis=0).transpose(1, 0, 2, 3).astype(np.int32)


@pytest.fixture(scope="session")
def made_up_half():
    """A function that gives the half of a size, its records made up at random."""

    def half(size: ParametersSize, profile: str = "paper", *, networks: int | None = None, seed: int = 0) -> ParameterResults:
        rng, runs = np.random.default_rng(seed), []
        data = {"name": size.dataset, "fingerprint": "f" * 64, "source": f"made up {size.dataset}"}
        for run in range(size.networks if networks is None else networks):
            network, over_n, over_sigma = specs_of(size, run)
            accuracy = {"clean_accuracy": rng.uniform(0.86, 0.9), "test_images": 10_000}
            counts = [made_up_counts(rng, spec.sigmas, spec.ns, spec.points) for spec in (over_n, over_sigma)]
            runs.append(
                (
                    Record(network, accuracy, data=data),
                    Record(over_n, {}, {"counts": counts[0]}, data),
                    Record(over_sigma, {}, {"counts": counts[1]}, data),
                )
            )
        return ParameterResults(size, profile, tuple(runs))

    return half
