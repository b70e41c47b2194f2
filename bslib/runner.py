"""The runner: carries out what a store lacks of a plan, several networks at a time.

A network and everything measured on it stay together: it is trained once (or its weights are found beside the store), measured,
and each record is written as soon as it exists. Interrupted at any point, the same call goes on where it was.
"""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections.abc import Iterable, Iterator
from concurrent.futures import FIRST_EXCEPTION, Executor, Future, ProcessPoolExecutor, wait
from contextlib import nullcontext
from typing import Any

import torch
from tqdm.auto import tqdm

from bslib.jobs import carry_out, checkpoint_path, weights_digest
from bslib.specs import MeasuredSpec, NetworkSpec, Spec
from bslib.store import Store, lacking

__all__ = ["chosen_device", "run"]

#: Threads of a job on the CPU. Training with another number of threads rounds differently and gives another network; every
#: machine has one thread, and two jobs of one thread are faster than one job of two.
THREADS = 1


def run(plan: Iterable[Spec], store: Store, *, device: str = "auto", jobs: int | None = None, progress: bool = True) -> None:
    """Compute every record of ``plan`` that ``store`` lacks.

    Parameters
    ----------
    plan : iterable of Spec
        Carried out in this order, except that what follows on a network without another between goes with it.
    store : Store
    device : str
        "auto" (a GPU where there is one), "cpu", "cuda" or "cuda:1".
    jobs : int, optional
        Networks at a time, each in a process of its own; when not given, one for each core, or one on a GPU.
    progress : bool
        Show a bar over the records of the plan.

    Raises
    ------
    ValueError
        For a device that this machine does not have, or fewer than one job.
    """
    device = chosen_device(device)
    if jobs is not None and jobs < 1:
        raise ValueError(f"jobs must be 1 or more, got {jobs}")
    plan = list(dict.fromkeys(plan))
    if not lacking(plan, store):
        return
    store.folder.mkdir(parents=True, exist_ok=True)  # a place that cannot be written to is found out before the work
    stages = _stages(plan)
    jobs = min(jobs or (os.cpu_count() or 1 if device == "cpu" else 1), max(map(len, stages)))
    with (
        tqdm(total=len(plan), initial=_done(plan, store), desc="plan", unit="record", disable=not progress) as bar,
        _pool(jobs) if jobs > 1 else nullcontext() as pool,
    ):
        # A network that is trained anew makes what was measured on the old one stale, perhaps in a stage that is over: again.
        while lacking(plan, store):
            for groups in stages:
                _run_stage([group for group in groups if lacking(group, store)], store, device, pool, progress, bar)


def _run_stage(
    groups: list[list[Spec]], store: Store, device: str, pool: Executor | None, progress: bool, bar: tqdm[Any]
) -> None:
    if pool is None:
        for group in groups:
            for _ in run_group(group, store, device, progress):
                bar.update()
    else:
        futures = [pool.submit(_run_whole_group, group, store, device, progress) for group in groups]
        for written in _watch(pool, futures, groups, store):
            bar.update(written)


def run_group(group: list[Spec], store: Store, device: str, progress: bool) -> Iterator[Spec]:
    """Carry out what a store lacks of the specs that need one network; yields each spec whose record was written.

    Where the network's weights are gone from beside the store, or are not the ones that its record speaks of, it is trained
    again, and what was measured on other weights is measured again too: all records of a network speak of one network.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(THREADS)
    try:
        network = network_of(group[0])
        if network is not None and not _has_weights(network, store):
            store.put(carry_out(network, store, device=device, progress=progress))
            checkpoint_path(network, store, device).unlink(missing_ok=True)
            yield network
        for spec in lacking(group, store):
            store.put(carry_out(spec, store, device=device, progress=progress))
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
        kind = torch.device(device)
    except RuntimeError:
        kind = None
    if kind is None or kind.type not in ("cpu", "cuda"):
        raise ValueError(f"device must be auto, cpu, cuda or cuda:N, got {device!r}")
    if kind.type == "cuda" and (kind.index or 0) >= torch.cuda.device_count():
        raise ValueError(f"device {device!r} was asked for, and this machine has {torch.cuda.device_count()} CUDA devices")
    return "cpu" if kind.type == "cpu" else device


def network_of(spec: Spec) -> NetworkSpec | None:
    """The network that a spec is or is measured on; None where it needs none."""
    if isinstance(spec, NetworkSpec):
        return spec
    return spec.network if isinstance(spec, MeasuredSpec) else None


def _stages(plan: Iterable[Spec]) -> list[list[list[Spec]]]:
    """The plan in stages that come one after the other, each made of groups that can run side by side.

    A group is what needs one network, or one spec that needs none. A plan that comes back to a network after others begins a new
    stage there, so that what a plan names first is finished first and no network is trained twice.
    """
    stages: list[dict[Spec, list[Spec]]] = [{}]
    last = None
    for spec in plan:
        needs = network_of(spec) or spec
        if needs in stages[-1] and needs != last:
            stages.append({})
        stages[-1].setdefault(needs, []).append(spec)
        last = needs
    return [list(stage.values()) for stage in stages if stage]


def _has_weights(network: NetworkSpec, store: Store) -> bool:
    path = store.weights_path(network)
    return network in store and path.is_file() and weights_digest(path) == store.get(network).result["weights"]


def _run_whole_group(group: list[Spec], store: Store, device: str, progress: bool) -> None:
    for _ in run_group(group, store, device, progress):
        pass


def _pool(jobs: int) -> ProcessPoolExecutor:
    # Fresh interpreters: a forked one would inherit the state of torch's thread pools.
    context = multiprocessing.get_context("spawn")
    lock = context.RLock()
    tqdm.set_lock(lock)
    return ProcessPoolExecutor(jobs, mp_context=context, initializer=_start_worker, initargs=(lock,))


def _start_worker(lock: Any) -> None:
    """Let this worker's bars and the others' take turns, and have it end when the process that started it is killed."""
    tqdm.set_lock(lock)
    parent = multiprocessing.parent_process()
    assert parent is not None  # only workers call this

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _watch(pool: Executor, futures: list[Future[None]], groups: list[list[Spec]], store: Store) -> Iterator[int]:
    """Yields once a second how many records came, until all are there; stops the workers on a failure or an interrupt."""
    specs = [spec for group in groups for spec in group]
    before = _done(specs, store)
    try:
        while True:
            done, waiting = wait(futures, timeout=1, return_when=FIRST_EXCEPTION)
            for future in done:
                future.result()
            now = _done(specs, store)
            yield now - before
            before = now
            if not waiting:
                return
    except BaseException:
        pool.shutdown(wait=False, cancel_futures=True)
        for worker in multiprocessing.active_children():
            worker.terminate()
        raise


def _done(plan: list[Spec], store: Store) -> int:
    return len(plan) - len(lacking(plan, store))
