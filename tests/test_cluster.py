"""Runs on a Dask scheduler with two worker processes: what a local run gives, whatever dies on the way."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import Executor, Future
from contextlib import nullcontext

import pytest
from conftest import write_profile
from distributed import Client
from test_runner import checksums, complete
from typer.testing import CliRunner

from bslib import cluster, runner
from bslib.chapters import sizes_of
from bslib.chapters.parameters.plan import networks_of, specs_of
from bslib.cli import app
from bslib.cluster import pools_at
from bslib.profiles import PROFILES
from bslib.runner import run
from bslib.specs import CountsSpec, ImagesSpec, NetworkSpec
from bslib.store import Store

LOCALHOST = "127.0.0.1"
pytestmark = pytest.mark.timeout(600)


class Cluster:
    """A scheduler and its workers, each a process that can be killed."""

    def __init__(self, folder) -> None:
        self.folder, self.workers = folder, []
        file = folder / "scheduler.json"
        self.scheduler = self._start("scheduler", "--host", LOCALHOST, "--port", 0, "--no-dashboard", "--scheduler-file", file)
        until(file.is_file)
        self.address = json.loads(file.read_text())["address"]

    def _start(self, *command) -> subprocess.Popen:
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        with (self.folder / f"{command[0]}-{len(self.workers)}.log").open("w") as log:
            return subprocess.Popen([sys.executable, "-m", "dask", *map(str, command)], stdout=log, stderr=log, env=environment)

    def start_worker(self, *options) -> subprocess.Popen:
        worker = self._start(
            "worker", self.address, "--nthreads", 1, "--no-nanny", "--no-dashboard", "--local-directory", self.folder, *options
        )
        self.workers.append(worker)
        return worker

    def wait_for_workers(self, count: int) -> None:
        with Client(self.address, set_as_default=False) as client:
            until(lambda: len(client.scheduler_info(n_workers=-1)["workers"]) == count)

    def busy(self, client: Client) -> set[int]:
        """The processes that are at a job."""
        pids = client.run(os.getpid)
        return {pids[name] for name, keys in client.processing().items() if keys and name in pids}

    def stop(self) -> None:
        for process in [self.scheduler, *self.workers]:
            process.kill()
            process.wait()


def until(condition, seconds: float = 280) -> None:
    waited = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < waited, "waited for too long"
        time.sleep(0.05)


@pytest.fixture(scope="module")
def running(tmp_path_factory):
    started = Cluster(tmp_path_factory.mktemp("dask"))
    yield started
    started.stop()


@pytest.fixture
def two_workers(running) -> Cluster:
    """The cluster with two workers, new ones where a test has killed them."""
    alive = [worker for worker in running.workers if worker.poll() is None]
    for _ in range(2 - len(alive)):
        running.start_worker()
    running.wait_for_workers(2)
    return running


@pytest.fixture(scope="module")
def longer_size(tiny_profile):
    """Three networks, each with measurements of a second."""
    return dataclasses.replace(sizes_of("parameters", tiny_profile)[0], networks=3, points=20, ns=(10, 200), n=200)


@pytest.fixture(scope="module")
def longer(longer_size) -> list:
    return [spec for network in networks_of(longer_size, 0) for spec in specs_of(longer_size, network)]


@pytest.fixture(scope="module")
def longer_completed(longer, tmp_path_factory) -> Store:
    store = Store(tmp_path_factory.mktemp("longer"))
    complete(longer, store)
    return store


def files(store: Store) -> set[str]:
    return {path.relative_to(store.folder).as_posix() for path in store.folder.rglob("*") if path.is_file()}


def out_of_sight(monkeypatch, folder) -> None:
    """No worker sees the run's sign, as on another machine."""
    monkeypatch.setattr(runner, "_run_marker", lambda store: nullcontext(folder / "on another machine"))


# --- what a cluster gives ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("shared", [True, False], ids=["shared folder", "no shared folder"])
def test_a_cluster_gives_what_one_process_gives(two_workers, completed, tiny_plan, tmp_path, monkeypatch, shared):
    if not shared:
        out_of_sight(monkeypatch, tmp_path)
    images = ImagesSpec(dataset="digits", images=3, seed=0)
    store = Store(tmp_path / "store")
    run([*tiny_plan, images], store, device="cpu", scheduler=two_workers.address, progress=False)
    assert images in store and checksums(store).items() > checksums(completed).items() and len(checksums(store)) == 7
    assert all(record.provenance["threads"] == 1 for record in store.iter_records())
    weights = {path.name: path.read_bytes() for path in store.folder.glob("weights/*")}
    assert weights == ({path.name: path.read_bytes() for path in completed.folder.glob("weights/*")} if shared else {})
    assert not [name for name in files(store) if "lock" in name or "/." in name or name.startswith(".")]
    with Client(two_workers.address, set_as_default=False) as client:
        found = client.run(lambda: __import__("bslib.datasets").datasets.load.cache_info().misses)
    assert max(found.values()) == 1, "a worker reads a data set once, however many jobs it does"


def test_a_worker_without_the_folder_goes_on_from_what_is_there(two_workers, completed, tiny_plan, tmp_path, monkeypatch):
    """Its network is trained again, is the same one, and what was measured on it stands."""
    out_of_sight(monkeypatch, tmp_path)
    store = Store(tmp_path / "store")
    for spec in tiny_plan[:2]:
        store.put(completed.get(spec))
    kept = (store.folder / "counts" / f"{tiny_plan[1].key}.json").stat().st_mtime_ns
    run(tiny_plan[:3], store, device="cpu", scheduler=two_workers.address, progress=False)
    assert checksums(store) == {spec.key: completed.get(spec).checksum for spec in tiny_plan[:3]}
    assert (store.folder / "counts" / f"{tiny_plan[1].key}.json").stat().st_mtime_ns == kept


# --- what dies ---------------------------------------------------------------------------------------------------


def test_a_killed_worker_loses_nothing(two_workers, longer, longer_completed, tmp_path):
    """Killed in the middle of a job: another one does it, and leaves alone what was finished."""
    store, before = Store(tmp_path / "store"), {}

    def kill() -> None:
        with Client(two_workers.address, set_as_default=False) as client:
            until(lambda: any(store.folder.glob("counts/[!.]*.json")))
            victim = min(two_workers.busy(client))
            before.update({path: path.stat().st_mtime_ns for path in store.folder.glob("*/[!.]*.json")})
            os.kill(victim, signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    run(longer, store, device="cpu", scheduler=two_workers.address, progress=False)
    killer.join()
    assert len([worker for worker in two_workers.workers if worker.poll() is None]) == 1
    assert checksums(store) == checksums(longer_completed)
    assert before and all(path.stat().st_mtime_ns == time for path, time in before.items()), "done once, kept"
    left = {name for name in files(store) if "/." not in name}  # what the killed one was writing begins with a dot
    assert left == files(longer_completed)


def test_the_scheduler_gone_is_an_error_and_the_next_run_goes_on(longer, longer_completed, tmp_path, monkeypatch, longer_size):
    monkeypatch.setitem(PROFILES, "smoke", write_profile(tmp_path / "longer.toml", parameters=[longer_size]))
    store = Store(tmp_path / "store")
    mine = Cluster(tmp_path)

    def bslib_run() -> tuple[int, str]:
        arguments = ["run", "parameters", "--profile", "smoke", "--store", store.folder, "--device", "cpu"]
        result = CliRunner().invoke(app, [*map(str, arguments), "--scheduler", mine.address])
        assert isinstance(result.exception, SystemExit) and "Traceback" not in result.output
        return result.exit_code, [line for line in re.split(r"[\r\n]", result.stderr) if line.startswith("Error")]

    def kill() -> None:
        until(lambda: any(store.folder.glob("counts/[!.]*.json")))
        mine.scheduler.kill()

    try:
        with monkeypatch.context() as patch:
            patch.setattr(cluster, "PATIENCE", 3.0)
            code, lines = bslib_run()
        assert code == 2 and len(lines) == 1 and f"{mine.address} has no workers" in lines[0]
        mine.start_worker()
        killer = threading.Thread(target=kill)
        killer.start()
        code, lines = bslib_run()
        killer.join()
        assert code == 2 and len(lines) == 1 and f"the scheduler at {mine.address} is gone" in lines[0]
    finally:
        mine.stop()
    kept = checksums(store)
    assert 0 < len(kept) < len(longer) and kept.items() < checksums(longer_completed).items()
    complete(longer, store)
    assert checksums(store) == checksums(longer_completed)


# --- what jobs need ----------------------------------------------------------------------------------------------


def test_needs_that_no_worker_meets_are_an_error_at_the_start(two_workers, tiny_plan, tmp_path):
    store = Store(tmp_path / "store")
    with pytest.raises(ValueError, match=f"device 'cuda' was asked for, and no worker at {two_workers.address} offers it"):
        run(tiny_plan, store, device="cuda", scheduler=two_workers.address, progress=False)
    threaded = two_workers.start_worker("--nthreads", 2)
    two_workers.wait_for_workers(3)
    with pytest.raises(ValueError, match="runs 2 jobs in one process: start it with --nthreads 1"):
        run(tiny_plan, store, device="cpu", scheduler=two_workers.address, progress=False)
    threaded.kill()
    two_workers.wait_for_workers(2)
    assert files(store) == set()


def test_a_worker_that_offers_a_gpu_gets_what_needs_one(two_workers):
    gpu = two_workers.start_worker("--resources", "GPU=1")
    two_workers.wait_for_workers(3)
    try:
        for device, expected in (("auto", {"cpu", "cuda"}), ("cuda", {"cuda"}), ("cpu", {"cpu"})):
            with pools_at(two_workers.address, device) as pools:
                assert set(pools) == expected
                if "cuda" in pools:
                    assert {pools["cuda"].submit(os.getpid).result() for _ in range(3)} == {gpu.pid}
    finally:
        gpu.kill()
    two_workers.wait_for_workers(2)


def test_resnets_go_to_the_gpus_first(completed, tiny_plan, tmp_path):
    submitted = []

    class Noted(Executor):
        def __init__(self, device: str) -> None:
            self.device = device

        def submit(self, function, group, store, known, sign, device, **more):
            assert function is runner._work and device == self.device
            submitted.append((device, group))
            done: Future = Future()
            done.set_result([])
            return done

    resnet = dataclasses.replace(tiny_plan[0], network="resnet18")
    small, big, images = tiny_plan[:3], [resnet], [ImagesSpec(dataset="digits", images=2, seed=0)]
    store = Store(tmp_path)

    def placed(groups, *devices) -> list:
        submitted.clear()
        pools = {device: Noted(device) for device in devices}
        list(runner._run_groups(groups, pools, store, tmp_path / "sign", wait=True, progress=False))
        return submitted

    assert placed([small, big, images], "cpu", "cuda") == [("cuda", big), ("cpu", small), ("cpu", images)]
    assert placed([small, big], "cpu") == [("cpu", small), ("cpu", big)]
    assert placed([small, big], "cuda") == [("cuda", small), ("cuda", big)]
    assert {type(spec) for spec in small} == {NetworkSpec, CountsSpec}


# --- refusals ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("more", "error", "words"),
    [
        ({"scheduler": ""}, ValueError, "such as tcp://host:8786, got ''"),
        ({"scheduler": "host:8786"}, ValueError, "got 'host:8786'"),
        ({"scheduler": "carrier://pigeon"}, ValueError, "'carrier://pigeon'"),
        ({"scheduler": "inproc://a"}, ValueError, "got 'inproc://a'"),
        ({"scheduler": "tcp://[::1"}, ValueError, "got 'tcp://"),
        ({"scheduler": "tls://127.0.0.1:9"}, ValueError, "needs Dask's TLS settings, and there are none"),
        ({"scheduler": "tcp://127.0.0.1:9"}, ConnectionError, "no Dask scheduler answers at 'tcp://127.0.0.1:9'"),
        ({"scheduler": "tcp://127.0.0.1:9", "device": "cuda:1"}, ValueError, "auto, cpu or cuda, got 'cuda:1'"),
        ({"scheduler": "tcp://127.0.0.1:9", "jobs": 2}, ValueError, "leave out jobs, got 2"),
    ],
)
def test_what_is_no_scheduler_is_named(tiny_plan, tmp_path, monkeypatch, more, error, words):
    monkeypatch.setattr(cluster, "PATIENCE", 1.0)
    with pytest.raises(error) as caught:
        run(tiny_plan, Store(tmp_path / "s"), progress=False, **more)
    assert words in str(caught.value) and "\n" not in str(caught.value)


def test_without_dask_the_extra_is_named(tiny_plan, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(RuntimeError, match=r"pip install '\.\[cluster\]'"):
        run(tiny_plan, Store(tmp_path / "s"), scheduler="tcp://127.0.0.1:8786", progress=False)
