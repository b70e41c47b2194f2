"""For every module: a cache of its own, a tiny profile, a store in which it is complete, made-up records."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
from filelock import FileLock
from hypothesis import settings

from bslib import ledger
from bslib.chapters import sizes_of
from bslib.chapters.parameters.plan import Size, networks_of, specs_of
from bslib.chapters.parameters.results import ParameterResults
from bslib.engine import import_openvino
from bslib.statistics import Estimate, Estimates
from bslib.store import PUBLISHED, Record, Records, Store

settings.register_profile("beside others", deadline=None)  # two processes of tests share the machine with what they start
settings.load_profile("beside others")


@pytest.fixture(scope="session", autouse=True)
def no_telemetry():
    """Tests that import OpenVINO find it as the package imports it: by itself it would send a message, from a forked process."""
    with contextlib.suppress(ImportError):
        import_openvino()


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory):
    """No test reads or writes the user's cache."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("cache")
        patch.setenv("BSLIB_CACHE", str(folder))
        yield folder


TINY = """
[[wobbliness]]
dataset = "digits"
points = [[0.0, 0.0]]
n = 20

[[parameters]]
dataset = "digits"
network = "small-fashion"
networks = 2
epochs = 1
train_size = 200
points = 6
ns = [10, 25, 50]
n_sigmas = [0.1, 0.25]
sigmas = [0.01, 0.1, 0.25]
n = 25

[[parameters]]
dataset = "digits-rgb"
network = "resnet18"
networks = 1
epochs = 1
train_size = 16
points = 2
ns = [4, 8]
n_sigmas = [0.1]
sigmas = [0.01, 0.1]
n = 8
"""


@pytest.fixture(scope="session")
def tiny_profile(tmp_path_factory) -> str:
    """A profile's file: two data sets, with 2 networks and 1, a second of work each."""
    path = tmp_path_factory.mktemp("profile") / "tiny.toml"
    path.write_text(TINY)
    return str(path)


@pytest.fixture(scope="session")
def tiny_plan(tiny_profile) -> list:
    """The first data set alone: two networks, two measurements on each."""
    size = sizes_of("parameters", tiny_profile)[0]
    return [spec for network in networks_of(size, 0) for spec in specs_of(size, network)]


@pytest.fixture(scope="session")
def completed(tmp_path_factory, tiny_plan) -> Store:
    """A store with all records of ``tiny_plan``, really computed. Copy the folder before writing into it."""
    from bslib.runner import run

    store = Store(tmp_path_factory.mktemp("completed"))
    run(tiny_plan, store, device="cpu", jobs=1, progress=False)
    return store


@pytest.fixture(scope="session")
def published_file(tmp_path_factory) -> Path:
    """The quantities of every chapter on the published records; the first process of tests that asks computes them for all."""
    folder = tmp_path_factory.getbasetemp()
    file = (folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder) / "numbers.json"
    with FileLock(f"{file}.lock"):
        if not file.is_file():
            numbers = ledger.numbers(profile="paper", store=PUBLISHED)
            plain = {chapter: {name: dataclasses.astuple(e) for name, e in own.items()} for chapter, own in numbers.items()}
            file.write_text(json.dumps(plain))
    return file


def read_numbers(file: Path) -> dict[str, Estimates]:
    """What ``published_file`` holds, as :func:`bslib.ledger.numbers` gives it."""
    read = json.loads(file.read_text())
    return {chapter: Estimates({name: Estimate(*e) for name, e in own.items()}) for chapter, own in read.items()}


@pytest.fixture(scope="session")
def published_numbers(published_file) -> dict[str, Estimates]:
    """The quantities of every chapter on the published records."""
    return read_numbers(published_file)


@pytest.fixture(scope="session")
def published_part(tmp_path_factory):
    """A function that gives the first data set of a chapter, from the committed records, with fewer networks.

    By a profile of that size: to read the records of all networks and data sets takes seconds.
    """

    def part(chapter: str, **fewer):
        size = dataclasses.replace(sizes_of(chapter, "paper")[0], **fewer)
        profile = write_profile(tmp_path_factory.mktemp("published") / f"{chapter}.toml", **{chapter: [size]})
        results = import_module(f"bslib.chapters.{chapter}.results")
        return results.load(profile=str(profile), store=PUBLISHED)[size.dataset]

    return part


def write_profile(path: Path, **chapters) -> Path:
    """A profile's file: for each chapter its sizes."""
    lines = []
    for chapter, sizes in chapters.items():
        for size in sizes:
            fields = {k: v for k, v in dataclasses.asdict(size).items() if v is not None}
            lines += [f"[[{chapter}]]", *(f"{name} = {json.dumps(value)}" for name, value in fields.items()), ""]
    path.write_text("\n".join(lines))
    return path


def made_up_counts(rng: np.random.Generator, sigmas, ns, points: int) -> np.ndarray:
    """Nested multinomial counts (S, N, B, 10) of points whose classes mix more as sigma grows."""
    p = np.stack([rng.dirichlet(np.full(10, 0.02 + sigma), size=points) for sigma in sigmas])
    steps = [rng.multinomial(step, p) for step in np.diff([0, *ns])]
    return np.cumsum(steps, axis=0).transpose(1, 0, 2, 3).astype(np.int32)


@pytest.fixture(scope="session")
def made_up_half():
    """A function that gives the results of a size, their records made up at random."""

    def half(size: Size, profile: str = "paper", *, networks: int | None = None, seed: int = 0) -> ParameterResults:
        rng, records = np.random.default_rng(seed), {}
        data = {"name": size.dataset, "fingerprint": "f" * 64, "source": f"made up {size.dataset}"}
        for spec in networks_of(size, 0)[:networks]:
            network, over_n, over_sigma = specs_of(size, spec)
            accuracy = {"clean_accuracy": rng.uniform(0.86, 0.9), "test_images": 10_000}
            records[network] = Record(network, accuracy, data=data)
            for counts in (over_n, over_sigma):
                arrays = {"counts": made_up_counts(rng, counts.sigmas, counts.ns, counts.points)}
                records[counts] = Record(counts, {}, arrays, data)
        return ParameterResults(size, profile, 0, Records(records))

    return half
