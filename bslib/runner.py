"""The runner: computes the records of a plan that are missing from a store, on this machine or on a cluster.

Several networks are processed in parallel. Each network is trained once, unless its weights are kept beside the records, and is
then measured in the same job. Each record is written as soon as it is computed, so an interrupted run resumes when it is called
again. Several runs may use one store at the same time; a lock per network prevents them from computing the same network.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from queue import Empty, Queue
from types import FrameType
from typing import Any

import torch
from tqdm.auto import tqdm

from bslib.cluster import pools_at
from bslib.datasets import load
from bslib.files import exit_with_parent, file_digest, locked
from bslib.jobs import compute
from bslib.jobs.base import remove_checkpoints
from bslib.networks import FOR_A_GPU
from bslib.specs import NetworkSpec, Spec
from bslib.store import Record, Store, missing_specs

__all__ = ["chosen_device", "run"]

#: Number of CPU threads of a job. Training with another number of threads rounds differently and gives another network. One
#: thread is available on every machine, and two jobs with one thread each are faster than one job with two threads.
THREADS = 1

Group = list[Spec]


def run(
    plan: Iterable[Spec],
    store: Store,
    *,
    device: str = "auto",
    jobs: int | None = None,
    scheduler: str | None = None,
    progress: bool = True,
) -> None:
    """Compute the records of ``plan`` that are missing from ``store``.

    Parameters
    ----------
    plan : iterable of Spec
        The specs to compute, in order, with the networks and patterns that they need. Consecutive specs of one network are
        computed together.
    store : Store
    device : str
        "auto" (a GPU if available), "cpu", "cuda" or "cuda:1". On a cluster, "auto" sends ResNets to workers that offer a GPU, if
        there are any, and "cuda" sends all jobs to them.
    jobs : int, optional
        Number of networks processed in parallel, each in its own process. Default: one per core on the CPU, one on a GPU.
    scheduler : str, optional
        Address of a Dask scheduler whose workers compute instead of this machine. Workers that share the store's folder keep
        weights and checkpoints there. Other workers send only their records back; their weights are discarded.
    progress : bool
        Show a progress bar over the records of the plan.

    Raises
    ------
    ValueError
        If this machine or the cluster does not have the device, or ``jobs`` is less than 1.
    OSError
        If the store cannot be written to or locked, or the scheduler cannot be reached or is lost.
    RuntimeError
        If records are stale as soon as they are computed.
    """
    if jobs is not None and (not isinstance(jobs, int) or jobs < 1):
        raise ValueError(f"jobs must be 1 or more, got {jobs}")
    if jobs is not None and scheduler is not None:
        raise ValueError(f"a scheduler says itself how many jobs its workers do at a time: leave out jobs, got {jobs}")
    if scheduler is None:
        device = chosen_device(device)
    store.check_writable()
    plan = _with_needs(plan, store)
    if not missing_specs(plan, store):
        return
    store = Store(store.folder.absolute(), writable=store.writable, base=store.base)  # workers have other current folders
    with ExitStack() as stack:
        sign = stack.enter_context(_run_marker(store))  # fails early if the folder cannot be written to
        if scheduler is not None:
            stages, pools = [_groups(plan)], stack.enter_context(pools_at(scheduler, device))
        else:
            stages = _stages(plan)
            jobs = min(jobs or (os.cpu_count() or 1 if device == "cpu" else 1), max(map(len, stages)))
            pools = {device: stack.enter_context(_pool(jobs))} if jobs > 1 else {}
        missing, patient = missing_specs(plan, store), False
        there = len(plan) - len(missing)
        bar = stack.enter_context(tqdm(total=len(plan), initial=there, desc="plan", unit="record", disable=not progress))
        # Repeat: retraining a network makes its old records stale, possibly in a stage that is already finished. Networks that
        # another run is computing are skipped at first; later passes wait for them.
        while missing:
            for groups in stages:
                todo = [group for group in groups if missing_specs(group, store)]
                if pools:
                    shown = progress and scheduler is None
                    for written in _run_groups(todo, pools, store, sign, wait=patient, progress=shown):
                        bar.update(written)
                else:
                    for group in todo:
                        for _ in run_group(group, store, device, wait=patient, progress=progress):
                            bar.update()
            before, missing = missing, missing_specs(plan, store)
            if patient and missing == before:
                first = f"{missing[0].kind}/{missing[0].key}"
                raise RuntimeError(f"{len(missing)} records are stale as soon as they are computed, the first is {first}")
            patient = True
        bar.update(len(plan) - bar.n)  # count the records written by other runs


def run_group(group: Group, store: Store, device: str, *, wait: bool = True, progress: bool = True) -> Iterator[Spec]:
    """Compute the missing records of specs that share one network; yields each spec when its record is written.

    A network and what treatments make of it count as one. The network is retrained if its weights file is missing or does not
    match its record, or if its record was made with other data or definitions. Records measured on other weights are then
    recomputed, so that all records of a network refer to the same weights. If another run is processing the same network, wait
    for it if ``wait`` is true; otherwise do nothing.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(THREADS)
    try:
        with store.alone(group[0], wait=wait) as alone:
            for own in _groups(group, by=lambda spec: spec.on_network or spec) if alone else ():
                for network in _to_make(own, store):
                    store.put(compute(network, store, device=device, progress=progress))
                    remove_checkpoints(network, store)
                    yield network
                for spec in missing_specs(own, store):
                    store.put(compute(spec, store, device=device, progress=progress))
                    yield spec
    finally:
        torch.set_num_threads(threads)


def chosen_device(device: str) -> str:
    """Resolve a device name on this machine; "auto" becomes "cuda" if available, otherwise "cpu".

    >>> chosen_device("cpu")
    'cpu'
    """
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        kind = torch.device(str(device))
    except RuntimeError:
        kind = None
    if kind is None or kind.type not in ("cpu", "cuda"):
        raise ValueError(f"device must be auto, cpu, cuda or cuda:N, got {device!r}")
    if kind.type == "cuda" and (kind.index or 0) >= torch.cuda.device_count():
        raise ValueError(f"device {device!r} was asked for, and this machine has {torch.cuda.device_count()} CUDA devices")
    return "cpu" if kind.type == "cpu" else device


def _with_needs(plan: Iterable[Spec], store: Store) -> list[Spec]:
    """The plan with the networks and patterns that its specs need, since these may be stale.

    What is not in the store is added for missing records only: a finished record without its network is left alone.
    """
    plan = list(dict.fromkeys(plan))
    missing = set(missing_specs(plan, store))
    needs = {spec: [need for need in spec.needs.values() if need in store or spec in missing] for spec in plan}
    return list(dict.fromkeys(part for spec in plan for part in (*needs[spec], spec)))


def _stages(plan: Iterable[Spec]) -> list[list[Group]]:
    """Split the plan into sequential stages; each stage consists of groups that can run in parallel.

    A group consists of the specs that share one network, or of a single spec that needs no network. If the plan returns to a
    network after other networks, a new stage begins there. The first specs of a plan are therefore finished first, and no network
    is trained twice.
    """
    stages: list[list[Spec]] = [[]]
    seen: set[Spec] = set()
    last = None
    for spec in plan:
        if spec.shared in seen and spec.shared != last:
            stages.append([])
            seen.clear()
        stages[-1].append(spec)
        seen.add(spec.shared)
        last = spec.shared
    return [_groups(stage) for stage in stages if stage]


def _groups(specs: Iterable[Spec], by: Callable[[Spec], Spec] = lambda spec: spec.shared) -> list[Group]:
    """Group specs by their network; a spec that needs no network forms its own group."""
    groups: dict[Spec, Group] = {}
    for spec in specs:
        groups.setdefault(by(spec), []).append(spec)
    return list(groups.values())


def _to_make(own: Group, store: Store) -> list[NetworkSpec]:
    """The networks that have to be trained or treated before the missing specs of one network, the untreated one first."""
    network = own[0].on_network
    if network is None or not missing_specs(own, store) or _has_weights(network, store):
        return []
    return [n for n in dict.fromkeys([network.untreated, network]) if n == network or not _has_weights(n, store)]


def _has_weights(network: NetworkSpec, store: Store) -> bool:
    """Return whether the weights are kept and are those of the record, which was made with today's data and definitions."""
    path = store.weights_path(network)
    if missing_specs([network], store) or not path.is_file():
        return False
    record = store.get(network)
    return file_digest(path) == record.result["weights"] and load(network.dataset).fingerprint == record.data["fingerprint"]


@contextmanager
def _run_marker(store: Store) -> Iterator[Path]:
    """Keep a file in the store's folder during a run; a worker that sees it shares the folder. Removes files of killed runs."""
    for left in store.folder.glob(".run-*.lock"):
        with locked(left, wait=False):
            pass
    for left in store.folder.glob("*/.*"):  # parts of files, by atomic_path; no write takes a day
        with suppress(FileNotFoundError):
            if left.is_file() and time.time() - left.stat().st_mtime > 86_400:
                left.unlink()
    sign = store.folder / f".run-{uuid.uuid4().hex}.lock"
    with locked(sign):
        yield sign


# In the calling process


def _run_groups(
    groups: list[Group], pools: dict[str, Executor], store: Store, sign: Path, *, wait: bool, progress: bool
) -> Iterator[int]:
    """Run groups on workers; yields the number of new records at least once a second."""
    finished: Queue[Future[list[Record]]] = Queue()
    running: dict[Future[list[Record]], Group] = {}
    there: dict[Future[list[Record]], int] = {}
    placed = [(group, _device_of(group, pools)) for group in groups]
    # GPU jobs first, otherwise CPU jobs would occupy the GPU workers
    for group, device in sorted(placed, key=lambda pair: pair[1] != "cuda"):
        # A worker without access to the store's folder needs the records of the network, the patterns and the group itself.
        needed = dict.fromkeys([*(needed for spec in group for needed in spec.needs.values()), *group])
        known = [store.get(spec) for spec in needed if spec in store]
        future = pools[device].submit(_work, group, store, known, sign, device, wait=wait, progress=progress)
        running[future], there[future] = group, sum(spec in store for spec in group)
        future.add_done_callback(finished.put)
    while running:
        try:
            future = finished.get(timeout=1)
        except Empty:
            changed = {future: group for future, group in running.items() if future.running()}
        else:
            changed = {future: running.pop(future)}
            _keep(future.result(), changed[future], store)
        for future, group in changed.items():
            now = sum(spec in store for spec in group)
            yield now - there[future]
            there[future] = now


def _device_of(group: Group, pools: dict[str, Executor]) -> str:
    """Return the only available device; on a cluster with both, "cuda" for a ResNet and "cpu" for other networks."""
    if len(pools) == 1:
        return next(iter(pools))
    network = group[0].on_network
    return "cuda" if network is not None and network.network in FOR_A_GPU else "cpu"


def _keep(records: list[Record], group: Group, store: Store) -> None:
    """Store the records from a worker without access to the store's folder: all or none, since they refer to one network."""
    if records:
        with store.alone(group[0]):
            for record in records if missing_specs(group, store) else ():
                store.put(record)


# In a worker

#: The number of threads and the random generator of torch are global to the process.
_ONE_AT_A_TIME = threading.Lock()


def _work(
    group: Group, store: Store, known: list[Record], sign: Path, device: str, *, wait: bool, progress: bool
) -> list[Record]:
    """Compute a group in the store; without access to its folder, use a temporary store and return the new records."""
    try:
        with _ONE_AT_A_TIME:
            if sign.is_file():
                for _ in run_group(group, store, device, wait=wait, progress=progress):
                    if not sign.is_file():  # the run has ended, but this cluster worker is still alive
                        break
                return []
            with tempfile.TemporaryDirectory() as folder:
                own = Store(Path(folder))
                for record in known:
                    own.put(record)
                return [own.get(spec) for spec in run_group(group, own, device, progress=progress)]
    except SystemExit:  # asked to stop and cleaned up; without an exit, the pool would start the next group
        os._exit(_TOLD_TO_STOP)


@contextmanager
def _pool(jobs: int) -> Iterator[Executor]:
    """Yield a pool of ``jobs`` processes, which are terminated on a failure or an interrupt."""
    # Spawn: a forked process would inherit the state of torch's thread pools.
    context = multiprocessing.get_context("spawn")
    lock = context.RLock()
    tqdm.set_lock(lock)
    others = multiprocessing.active_children()
    with ProcessPoolExecutor(jobs, mp_context=context, initializer=_start_worker, initargs=(lock,)) as pool:
        try:
            yield pool
        except BaseException as problem:
            pool.shutdown(wait=False, cancel_futures=True)
            workers = set(multiprocessing.active_children()).difference(others)
            for worker in workers:
                worker.terminate()
            waited = time.monotonic() + 10
            for worker in workers:
                worker.join(max(0, waited - time.monotonic()))
                worker.kill()
                worker.join()
            if isinstance(problem, BrokenProcessPool):
                raise RuntimeError(
                    "a worker was killed, perhaps for want of memory: what is finished is kept, try fewer jobs at a time "
                    "(a script that computes records calls bslib under `if __name__ == '__main__':`, or its workers end at once)"
                ) from None
            raise


#: Exit code of a worker that was asked to stop: 128 + SIGTERM, as in shells.
_TOLD_TO_STOP = 143


def _start_worker(lock: Any) -> None:
    """Initialize a worker: share the lock of the progress bars, handle signals, and exit if the parent process is killed.

    Workers ignore Ctrl-C; the parent process handles it and sends SIGTERM. On SIGTERM a worker exits through Python's normal
    shutdown, so that no partially written file remains. Further signals are ignored because they would interrupt the cleanup.
    """
    tqdm.set_lock(lock)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _stop)
    exit_with_parent()


def _stop(_: int, frame: FrameType | None) -> None:
    """Exit, a little later if the signal came in the midst of an import, whose locks end in callbacks that swallow exceptions."""
    if frame is not None and frame.f_globals.get("__name__") == "importlib._bootstrap":
        signal.signal(signal.SIGALRM, _stop)
        signal.setitimer(signal.ITIMER_REAL, 0.01)
        return
    for further in (signal.SIGTERM, signal.SIGALRM):
        signal.signal(further, signal.SIG_IGN)
    sys.exit(_TOLD_TO_STOP)
