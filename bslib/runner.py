"""The runner: carries out what a store lacks of a plan, several networks at a time, on this machine or on a cluster.

A network and everything measured on it stay together: it is trained once (or its weights are found beside the store), measured,
and each record is written as soon as it exists. Interrupted at any point, the same call goes on where it was. Several calls may
work on one store at a time: a lock keeps two of them from one network.
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
from collections.abc import Iterable, Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from queue import Empty, Queue
from typing import Any

import torch
from tqdm.auto import tqdm

from bslib.cluster import pools_at
from bslib.files import locked
from bslib.jobs import compute
from bslib.jobs.base import checkpoint_path
from bslib.networks import FOR_A_GPU
from bslib.provenance import weights_digest
from bslib.specs import NetworkSpec, Spec
from bslib.store import Record, Store, missing_specs

__all__ = ["chosen_device", "run"]

#: Threads of a job on the CPU. Training with another number of threads rounds differently and gives another network; every
#: machine has one thread, and two jobs of one thread are faster than one job of two.
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
    """Compute every record of ``plan`` that ``store`` lacks.

    Parameters
    ----------
    plan : iterable of Spec
        Carried out in this order, except that what follows on a network without another between goes with it.
    store : Store
    device : str
        "auto" (a GPU where there is one), "cpu", "cuda" or "cuda:1". On a cluster "auto" sends the ResNets to the workers that
        offer a GPU, where there are any, and "cuda" everything.
    jobs : int, optional
        Networks at a time, each in a process of its own; when not given, one for each core, or one on a GPU.
    scheduler : str, optional
        The address of a Dask scheduler, whose workers do the work instead of this machine. Those that see the store's folder
        keep weights and checkpoints there; the records of the others travel back, and their weights are left behind.
    progress : bool
        Show a bar over the records of the plan.

    Raises
    ------
    ValueError
        For a device that this machine or the cluster does not have, or fewer than one job.
    OSError
        For a store that cannot be written to or locked, and a scheduler that is not there, or no longer.
    """
    if jobs is not None and (not isinstance(jobs, int) or jobs < 1):
        raise ValueError(f"jobs must be 1 or more, got {jobs}")
    if jobs is not None and scheduler is not None:
        raise ValueError(f"a scheduler says itself how many jobs its workers do at a time: leave out jobs, got {jobs}")
    if scheduler is None:
        device = chosen_device(device)
    if not store.writable:
        raise PermissionError(f"the store {store.folder} is read-only: name another one")
    plan = list(dict.fromkeys(plan))
    if not missing_specs(plan, store):
        return
    store = Store(store.folder.absolute(), writable=store.writable, base=store.base)  # workers run in folders of their own
    with ExitStack() as stack:
        sign = stack.enter_context(_run_marker(store))  # a place that cannot be written to is found out before the work
        if scheduler is not None:
            stages, pools = [_groups(plan)], stack.enter_context(pools_at(scheduler, device))
        else:
            stages = _stages(plan)
            jobs = min(jobs or (os.cpu_count() or 1 if device == "cpu" else 1), max(map(len, stages)))
            pools = {device: stack.enter_context(_pool(jobs))} if jobs > 1 else {}
        there = len(plan) - len(missing_specs(plan, store))
        bar = stack.enter_context(tqdm(total=len(plan), initial=there, desc="plan", unit="record", disable=not progress))
        patient = False
        # A network that is trained anew makes what was measured on the old one stale, perhaps in a stage that is over: again.
        # And what another run is at is left to it, until there is nothing else to do.
        while missing_specs(plan, store):
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
            patient = True
        bar.update(len(plan) - bar.n)  # with what another run has done


def run_group(group: Group, store: Store, device: str, *, wait: bool = True, progress: bool = True) -> Iterator[Spec]:
    """Carry out what a store lacks of the specs that need one network; yields each spec whose record was written.

    Where the network's weights are gone from beside the store, or are not the ones that its record speaks of, it is trained
    again, and what was measured on other weights is measured again too: all records of a network speak of one network.
    Nothing is done where another run is at the same network, unless ``wait`` says to wait for it.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(THREADS)
    try:
        with _alone(group, store, wait=wait) as alone:
            network = group[0].on_network
            if alone and network is not None and missing_specs(group, store) and not _has_weights(network, store):
                store.put(compute(network, store, device=device, progress=progress))
                checkpoint_path(network, store, device).unlink(missing_ok=True)
                yield network
            for spec in missing_specs(group, store) if alone else ():
                store.put(compute(spec, store, device=device, progress=progress))
                yield spec
    finally:
        torch.set_num_threads(threads)


def chosen_device(device: str) -> str:
    """The device that a name stands for on this machine.

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


def _stages(plan: Iterable[Spec]) -> list[list[Group]]:
    """The plan in stages that come one after the other, each made of groups that can run side by side.

    A group is what needs one network, or one spec that needs none. A plan that comes back to a network after others begins a new
    stage there, so that what a plan names first is finished first and no network is trained twice.
    """
    stages: list[list[Spec]] = [[]]
    seen: set[Spec] = set()
    last = None
    for spec in plan:
        needs = spec.on_network or spec
        if needs in seen and needs != last:
            stages.append([])
            seen.clear()
        stages[-1].append(spec)
        seen.add(needs)
        last = needs
    return [_groups(stage) for stage in stages if stage]


def _groups(plan: Iterable[Spec]) -> list[Group]:
    """The plan by what it needs: one network, or for a spec that needs none only itself."""
    groups: dict[Spec, Group] = {}
    for spec in plan:
        groups.setdefault(spec.on_network or spec, []).append(spec)
    return list(groups.values())


def _has_weights(network: NetworkSpec, store: Store) -> bool:
    path = store.weights_path(network)
    return network in store and path.is_file() and weights_digest(path) == store.get(network).result["weights"]


def _alone(group: Group, store: Store, *, wait: bool = True) -> AbstractContextManager[bool]:
    needs = group[0].on_network or group[0]
    return locked(store.folder / needs.kind / f"{needs.key}.lock", wait=wait)


@contextmanager
def _run_marker(store: Store) -> Iterator[Path]:
    """A file in a store's folder for as long as a run lasts: who sees it shares the folder. Those of killed runs are removed."""
    for left in store.folder.glob(".run-*.lock"):
        with locked(left, wait=False):
            pass
    sign = store.folder / f".run-{uuid.uuid4().hex}.lock"
    with locked(sign):
        yield sign


# In the process that was asked


def _run_groups(
    groups: list[Group], pools: dict[str, Executor], store: Store, sign: Path, *, wait: bool, progress: bool
) -> Iterator[int]:
    """Have workers carry groups out; yields, at least once a second, how many records more there are."""
    placed = [(group, _device_of(group, pools)) for group in groups]
    placed.sort(key=lambda pair: pair[1] != "cuda")  # first, or the CPU's jobs would take the GPUs' workers too
    finished: Queue[Future[list[Record]]] = Queue()
    running: dict[Future[list[Record]], Group] = {}
    there: dict[Future[list[Record]], int] = {}
    for group, device in placed:
        known = _known(group, store)
        future = pools[device].submit(_work, group, store, known, sign, device, wait=wait, progress=progress)
        running[future], there[future] = group, len(group) - len(missing_specs(group, store))
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
    """The only device there is, or, on a cluster that has both, the GPU for a ResNet."""
    if len(pools) == 1:
        return next(iter(pools))
    network = group[0].on_network
    return "cuda" if network is not None and network.network in FOR_A_GPU else "cpu"


def _known(group: Group, store: Store) -> list[Record]:
    """The records of a group, its network's and the patterns' in it, for a worker that may not see the store's folder."""
    needed = dict.fromkeys([*(needed for spec in group for needed in spec.needs.values()), *group])
    return [store.get(spec) for spec in needed if spec in store]


def _keep(records: list[Record], group: Group, store: Store) -> None:
    """Put what a worker that does not see the store's folder sent: all or nothing, since it speaks of one network."""
    if records:
        with _alone(group, store):
            for record in records if missing_specs(group, store) else ():
                store.put(record)


# In a worker

#: torch's number of threads and its generator belong to the whole process.
_ONE_AT_A_TIME = threading.Lock()


def _work(
    group: Group, store: Store, known: list[Record], sign: Path, device: str, *, wait: bool, progress: bool
) -> list[Record]:
    """Carry a group out in the store, or, where its folder is not to be seen, beside the known records; these come back."""
    try:
        return _work_alone(group, store, known, sign, device, wait=wait, progress=progress)
    except SystemExit:  # told to stop, and everything is left as it should be; a pool would go on with the next group
        os._exit(_TOLD_TO_STOP)


def _work_alone(
    group: Group, store: Store, known: list[Record], sign: Path, device: str, *, wait: bool, progress: bool
) -> list[Record]:
    with _ONE_AT_A_TIME:
        if sign.is_file():
            for _ in run_group(group, store, device, wait=wait, progress=progress):
                if not sign.is_file():  # the run was stopped, and this worker is not its own
                    break
            return []
        with tempfile.TemporaryDirectory() as folder:
            own = Store(Path(folder))
            for record in known:
                own.put(record)
            return [own.get(spec) for spec in run_group(group, own, device, progress=progress)]


@contextmanager
def _pool(jobs: int) -> Iterator[Executor]:
    """So many processes; they are stopped on a failure or an interrupt."""
    # Fresh interpreters: a forked one would inherit the state of torch's thread pools.
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
                text = "a worker was killed, perhaps for want of memory: what is finished is kept, try fewer jobs at a time"
                raise RuntimeError(text) from None
            raise


#: The exit code of a worker that was told to stop, as shells have it for SIGTERM.
_TOLD_TO_STOP = 143


def _start_worker(lock: Any) -> None:
    """Let this worker's bars and the others' take turns, and have it end when the process that started it is killed.

    Ctrl-C reaches workers too, and is left to that process, which tells them to stop. Then a worker ends as Python does, not at
    once, so that no half-written file is left; a second signal would get between.
    """

    def stop(*_: Any) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        sys.exit(_TOLD_TO_STOP)

    tqdm.set_lock(lock)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, stop)
    parent = multiprocessing.parent_process()
    assert parent is not None  # only workers call this

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
