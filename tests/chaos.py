"""Runs that are killed at random moments and resumed, until they are done: each ends with what a quiet run gives, byte for byte.

    python -m tests.chaos --kills 20                  # a plan of its own, of a minute
    python -m tests.chaos --kills 20 --profile smoke  # the whole smoke profile

Now two runs work on the store at once, now one; what is killed is everything, the run alone, or one of its workers; half of the
kills wait for a checkpoint, so that they fall into a training.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from bslib import training
from bslib.chapters import CHAPTERS, plan_of
from bslib.chapters.parameters.plan import Size, networks_of, specs_of
from bslib.runner import run
from bslib.specs import ImagesSpec, Spec
from bslib.store import Store

TINY = Size(
    dataset="digits", network="small-fashion", networks=2, epochs=5, points=20, ns=(10, 200), n_sigmas=(0.1,),
    sigmas=(0.1, 0.25), n=200,
)  # fmt: skip
RESUMED = "resumed.txt"


def plan_named(name: str) -> list[Spec]:
    if name == "tiny":
        return [
            ImagesSpec(dataset="digits", images=10, seed=0),
            *(spec for network in networks_of(TINY, 0) for spec in specs_of(TINY, network)),
        ]
    return [spec for chapter in CHAPTERS for spec in plan_of(chapter, name)]


def content(store: Store) -> dict[str, bytes]:
    """Every file of a store, without the times and hosts of records and what a killed writer left, which begins with a dot."""
    found = {}
    for path in sorted(store.folder.glob("*/[!.]*")):
        found[path.relative_to(store.folder).as_posix()] = path.read_bytes()
        if path.suffix == ".json":
            text = json.loads(path.read_bytes())
            del text["provenance"], text["provenance_checksum"]
            found[path.relative_to(store.folder).as_posix()] = json.dumps(text).encode()
    return {name: data for name, data in found.items() if not name.endswith(".lock")}


class Runs:
    """One run of a plan, or two at once, as processes that can be killed."""

    def __init__(self, profile: str, store: Store, count: int = 1, jobs: int = 2) -> None:
        self.store = store
        command = [sys.executable, str(Path(__file__)), "--profile", profile, "--store", str(store.folder), "--jobs", str(jobs)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[1])}
        self.log = store.folder.with_suffix(".log")
        with self.log.open("a") as log:
            self.processes = [
                subprocess.Popen(command, env=environment, start_new_session=True, stdout=log, stderr=log) for _ in range(count)
            ]

    def over(self) -> bool:
        return all(process.poll() is not None for process in self.processes)

    def at_work(self) -> bool:
        return any(self.store.folder.glob(".run-*.lock"))

    def training(self) -> bool:
        return any(self.store.folder.glob("weights/[!.]*.checkpoint.safetensors"))

    def wait_for(self, condition, seconds: float = 3600) -> bool:
        """Whether it came true before the runs were over."""
        waited = time.monotonic() + seconds
        while not self.over() and not condition():
            assert time.monotonic() < waited, "neither over nor there"
            time.sleep(0.01)
        return not self.over()

    def kill(self, what: str, rng: np.random.Generator) -> None:
        for process in self.processes:
            workers = children(process.pid) if what == "a worker" else []
            with contextlib.suppress(ProcessLookupError):
                if what == "everything":
                    os.killpg(process.pid, signal.SIGKILL)
                else:
                    os.kill(int(rng.choice(workers)) if workers else process.pid, signal.SIGKILL)
        self.wait()

    def wait(self, seconds: float = 3600) -> list[int]:
        """Exit codes; no process that a run has started outlives it."""
        codes = [process.wait(seconds) for process in self.processes]
        waited = time.monotonic() + 120
        for process in self.processes:
            with contextlib.suppress(ProcessLookupError):
                while time.monotonic() < waited:
                    os.killpg(process.pid, 0)
                    time.sleep(0.05)
                raise AssertionError(f"processes of run {process.pid} are still there two minutes after its end")
        return codes

    def complete(self) -> None:
        codes = self.wait()
        assert set(codes) == {0}, (codes, self.log.read_text())


def children(pid: int) -> list[int]:
    """The workers of a run: all its children but multiprocessing's own."""
    found = Path(f"/proc/{pid}/task/{pid}/children")
    pids = found.read_text().split() if found.exists() else []
    return [int(child) for child in pids if b"resource_tracker" not in Path(f"/proc/{child}/cmdline").read_bytes()]


def disturbed(profile: str, folder: Path, quiet: dict[str, bytes], *, kills: int, longest: float, seed: int, say=print) -> int:
    """Run and kill until so many kills are done, then complete; each store that is completed must be the quiet one's.

    Returns how often a training went on from a checkpoint.
    """
    rng = np.random.default_rng(seed)
    killed, rounds, resumed = 0, 0, 0
    while True:
        rounds += 1
        store = Store(folder / f"round-{rounds}")
        store.folder.mkdir()
        while killed < kills:
            count, jobs = map(int, rng.integers(1, 3, size=2))
            what, in_training = str(rng.choice(["everything", "the run", "a worker"])), killed == 0 or rng.random() < 0.5
            runs = Runs(profile, store, count, jobs)
            if not runs.wait_for(runs.training if in_training else runs.at_work):
                break
            if killed > 0:  # the first falls into a training for certain
                time.sleep(float(rng.uniform(0, 0.5 if in_training else longest)))
            if runs.over():
                break
            runs.kill(what, rng)
            killed += 1
            records = len(list(store.iter_records()))  # each is whole
            left = f"{records} records, {'a' if runs.training() else 'no'} checkpoint"
            say(f"kill {killed}: {what} of {count} with {jobs} jobs, {left}", flush=True)
        else:
            runs = Runs(profile, store)
        runs.complete()
        found = content(store)
        assert found == quiet, sorted(name for name in found.keys() | quiet.keys() if found.get(name) != quiet.get(name))
        steps = (store.folder / RESUMED).read_text().split() if (store.folder / RESUMED).exists() else []
        resumed += len(steps)
        say(
            f"round {rounds}: {len(found)} files, each as in the quiet run; trainings went on at steps {', '.join(steps) or '-'}",
            flush=True,
        )
        if killed >= kills:
            return resumed


def main(profile: str, kills: int, seed: int) -> None:
    with tempfile.TemporaryDirectory(prefix="chaos-") as name:
        began = time.monotonic()
        store = Store(Path(name) / "quiet")
        runs = Runs(profile, store)
        assert runs.wait_for(runs.at_work)
        start = time.monotonic()
        runs.complete()
        longest, quiet = time.monotonic() - start, content(store)
        print(f"quiet run: {len(list(store.iter_records()))} records in {longest:.0f} s", flush=True)
        resumed = disturbed(profile, Path(name), quiet, kills=kills, longest=longest, seed=seed)
        print(f"{kills} kills, {resumed} trainings gone on from a checkpoint, no byte differs ({time.monotonic() - began:.0f} s)")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--profile", default="tiny", choices=["tiny", "smoke"])
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--store", help=argparse.SUPPRESS)  # one of the runs, with so many
    parser.add_argument("--jobs", type=int, help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ in ("__main__", "__mp_main__") and "--store" in sys.argv:  # a run, or one of its workers
    training.CHECKPOINT_SECONDS = 0.1
    _resume = training._resume

    def noted(network, optimizer, checkpoint, run):
        """As it is, with a note of the step at which it goes on."""
        state = _resume(network, optimizer, checkpoint, run)
        with (checkpoint.parents[1] / RESUMED).open("a") as file:
            file.write(f"{state[0]}\n")
        return state

    training._resume = noted

if __name__ == "__main__":
    options = arguments()
    if options.store:
        run(plan_named(options.profile), Store(Path(options.store)), device="cpu", jobs=options.jobs, progress=False)
    else:
        main(options.profile, options.kills, options.seed)
